"""Move a database to a revision: create, upgrade, adopt, downgrade, reset."""

import sqlalchemy as sa
from alembic import command
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from ..backends import backend_for
from ..declarative import checks_of
from ..engine import Storage
from ..errors import NotInitializedError
from ..models import TABLES
from ..schema import REVISIONS, get_schema_version
from .autogenerate import options, reflection
from .connections import exclusive
from .drift import expected_schema, recreate
from .recognition import VERSION_TABLE, find_missing, is_empty, read_revision
from .scripts import load_scripts, run

BASELINE = REVISIONS[0]
BASELINE_INDEXES = {
    "idx_generations_status": "generations (status)",
    "idx_generations_created_at": "generations (created_at DESC)",
    "idx_generations_model_name": "generations (model_name)",
    "idx_generations_completed_at": "generations (completed_at DESC)",
}


def upgrade(storage: Storage, revision: str = "head") -> None:
    """Upgrade the database to `revision`; first create one that is missing, and adopt one that has no version.

    Raises ForeignDatabaseError or SchemaTooNewError, with nothing changed, for a database that this library cannot
    upgrade, SchemaDamagedError for one that lacks tables of its revision, and ValueError for a revision that is unknown
    or older than the database.
    """
    if not revision:
        raise ValueError("revision must be one of " + ", ".join(REVISIONS) + " or head")
    storage.backend.create_database(storage.url)
    with exclusive(storage) as connection:
        adopt(connection)
        current = read_revision(connection) or ""
        if revision in REVISIONS and revision < current:
            raise ValueError(f"{revision} is older than {current}: use `dgx-storage rollback {revision}`")
        run(command.upgrade, connection, revision)


def downgrade(storage: Storage, revision: str) -> None:
    """Downgrade the database to `revision` ("-1" for one step). Each revision's docstring says what that loses.

    Raises NotInitializedError for a database without a version, ValueError for a revision that is unknown or newer than
    the database, and ForeignDatabaseError, with nothing changed, if another program's object depends on what has to go.
    """
    if not storage.backend.is_present(storage.url):
        raise NotInitializedError
    with exclusive(storage) as connection:
        current = read_revision(connection)
        if current is None:
            raise NotInitializedError
        if revision in REVISIONS and revision > current:
            raise ValueError(f"{revision} is newer than {current}: use `dgx-storage migrate {revision}`")
        run(command.downgrade, connection, revision)


def reset(storage: Storage) -> None:
    """Drop this library's tables and create them again, in one transaction: all data is lost, or nothing is changed.

    Tables of others are kept with their rows, also those that refer to rows which are lost.
    """
    storage.backend.create_database(storage.url)
    with exclusive(storage, accept_partial=True) as connection:
        backend, schema = storage.backend, storage.backend.own_schema(connection)
        present = set(sa.inspect(connection).get_table_names(schema=schema))
        is_head = VERSION_TABLE in present and read_revision(connection) == get_schema_version()
        # of an older database, only what is exactly ours: the name may be somebody else's
        leftovers = backend.drop_derived(
            expected_schema(connection), backend.read_schema(connection), only_equal=not is_head
        )
        links = _foreign_keys_of_others(connection)
        for link in links:
            connection.execute(sa.schema.DropConstraint(link))
        for table in (*reversed(TABLES), sa.Table(VERSION_TABLE, sa.MetaData())):
            if table.name in present:
                table.drop(connection)
        backend.run_repair(connection, tuple(leftovers))
        run(command.upgrade, connection, "head")
        for link in links:
            connection.execute(sa.schema.AddConstraint(link))


def adopt(connection: Connection) -> None:
    """Stamp a database without a version; change nothing in an empty database or one with a version.

    With the tables of the head, because it lost its version or create_all() made it, it is stamped with the head, and
    the search index, triggers and functions are created if they are missing. With those of the first revision, it is
    stamped with that one, whose indexes are created; the later revisions repair invalid rows.
    """
    if read_revision(connection) is not None or is_empty(connection):
        return
    context = MigrationContext.configure(connection, opts=options(connection))
    if _has_head_tables(connection):
        context.stamp(load_scripts(), get_schema_version())
        recreate(connection)
        return
    for name, target in BASELINE_INDEXES.items():
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name} ON {target}")
    context.stamp(load_scripts(), BASELINE)


def _has_head_tables(connection: Connection) -> bool:
    """Return whether all tables, columns and CHECK constraints of the models are there."""
    if find_missing(connection, baseline=False):
        return False
    inspector, dialect = sa.inspect(connection), connection.dialect.name
    schema = backend_for(connection).own_schema(connection)
    with reflection():
        return all(
            {check.name for check in checks_of(table, dialect)}
            <= {check["name"] for check in inspector.get_check_constraints(table.name, schema=schema)}
            for table in TABLES
        )


def _foreign_keys_of_others(connection: Connection) -> list[sa.ForeignKeyConstraint]:
    """Return the foreign keys of other tables to this library's, if the database does not drop a table that has one."""
    if not connection.dialect.supports_alter:
        return []
    ours = {table.name for table in TABLES}
    others, found = sa.MetaData(), []
    for name in set(sa.inspect(connection).get_table_names()) - ours:
        for link in sa.Table(name, others, autoload_with=connection).foreign_key_constraints:
            if link.referred_table.name in ours:
                link.dialect_kwargs[f"{connection.dialect.name}_not_valid"] = True
                found.append(link)
    return found
