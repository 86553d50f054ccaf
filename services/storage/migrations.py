"""Create, upgrade, adopt, check and reset the schema with Alembic. See ADR 1.

No other module imports Alembic, and this one is imported only where the schema may have to change. Every change is one
transaction under one lock: many processes may start at once, and a killed process leaves the old schema or the new one.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from .engine import Storage, translate_errors
from .errors import ForeignDatabaseError, NotInitializedError, SchemaTooNewError
from .models import Base
from .schema import REVISIONS

BASELINE = REVISIONS[0]

# The tables and columns of the first revision: a database without a version must have them to be adopted.
BASELINE_COLUMNS = {
    "generations": frozenset(
        [
            "id",
            "prompt",
            "model_name",
            "model_version",
            "duration_seconds",
            "sample_rate",
            "channels",
            "file_path",
            "file_size_bytes",
            "status",
            "created_at",
            "completed_at",
            "generation_time_seconds",
            "error_message",
            "metadata",
        ]
    ),
    "prompts": frozenset(["id", "text", "used_count", "first_used_at", "last_used_at"]),
}
BASELINE_INDEXES = {
    "idx_generations_status": "generations (status)",
    "idx_generations_created_at": "generations (created_at DESC)",
    "idx_generations_model_name": "generations (model_name)",
    "idx_generations_completed_at": "generations (completed_at DESC)",
}


def upgrade(storage: Storage, revision: str = "head") -> None:
    """Upgrade the database to `revision`; first create one that is missing, and adopt one that has no version.

    Raises ForeignDatabaseError or SchemaTooNewError, with nothing changed, for a database that this library cannot
    upgrade, and ValueError for an unknown revision.
    """
    if not revision:
        raise ValueError("revision must be one of " + ", ".join(REVISIONS) + " or head")
    storage.backend.create_database(storage.url)
    with exclusive(storage) as connection:
        adopt(connection)
        _run(command.upgrade, connection, revision)


def downgrade(storage: Storage, revision: str) -> None:
    """Downgrade the database to `revision` ("-1" for one step). Each revision's docstring says what that loses.

    Raises NotInitializedError for a database without a version and ValueError for an unknown revision.
    """
    if not storage.backend.is_present(storage.url):
        raise NotInitializedError
    with exclusive(storage) as connection:
        if _read_revision(connection) is None:
            raise NotInitializedError
        _run(command.downgrade, connection, revision)


def reset(storage: Storage) -> None:
    """Drop this library's tables and create them again, in one transaction: all data is lost, or nothing is changed."""
    storage.backend.create_database(storage.url)
    with exclusive(storage, accept_partial=True) as connection:
        present = set(sa.inspect(connection).get_table_names())
        for table in (*reversed(Base.metadata.sorted_tables), sa.Table("alembic_version", sa.MetaData())):
            if table.name in present:
                table.drop(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS prompts_fts")
        _run(command.upgrade, connection, "head")


def check(storage: Storage) -> list[Any]:
    """Return the differences between the tables and the models, as Alembic's operations; [] if there are none."""
    if not storage.backend.is_present(storage.url):
        raise NotInitializedError
    with connect(storage) as connection:
        context = MigrationContext.configure(connection, opts=options(connection))
        with reflection():
            return list(compare_metadata(context, Base.metadata))


@contextmanager
def connect(storage: Storage) -> Iterator[Connection]:
    """Open a connection for migrations, outside the pool of `storage`."""
    engine = storage.backend.create_migration_engine(storage.url, storage.options)
    translate_errors(engine)
    with engine.connect() as connection:
        yield connection


@contextmanager
def exclusive(storage: Storage, *, accept_partial: bool = False) -> Iterator[Connection]:
    """Open a connection in a transaction that holds the migration lock; commit at the end of the block.

    Raises ForeignDatabaseError or SchemaTooNewError before anything is written. `accept_partial` accepts any database
    that has at least one of the library's tables, with the columns of the first revision, at any revision.
    """
    with connect(storage) as connection:
        for prepare in (storage.backend.prepare_file, None):
            storage.backend.lock_migrations(connection)
            _refuse_foreign(connection, accept_partial)
            if prepare:
                # Outside the transaction, and only after the check that the file may be changed.
                connection.rollback()
                prepare(connection)
        yield connection
        connection.commit()


def adopt(connection: Connection) -> None:
    """Create the indexes of the first revision in a database without a version, and stamp it with that revision.

    Changes nothing in an empty database or one with a version. The later revisions repair invalid rows.
    """
    inspector = sa.inspect(connection)
    if _read_revision(connection) is not None or not inspector.has_table("generations"):
        return
    _refuse_name_conflicts(inspector)
    for name, target in BASELINE_INDEXES.items():
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name} ON {target}")
    MigrationContext.configure(connection).stamp(ScriptDirectory.from_config(_config()), BASELINE)


def options(connection: Connection) -> dict[str, Any]:
    """Return the options of an Alembic context: one transaction, and no reports about foreign objects (ADR 12)."""
    dialect = connection.dialect.name
    for index in (index for table in Base.metadata.tables.values() for index in table.indexes if "where" in index.info):
        index.dialect_kwargs[f"{dialect}_where"] = sa.text(index.info["where"])

    def include_object(item: Any, name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
        if reflected:
            # Never drop what the models lack: an operator's own tables, columns and indexes, or an index that the
            # revisions create on one database system only.
            return counterpart is not None
        return bool(item.info.get("only_on", dialect) == dialect)

    return {
        "transactional_ddl": True,
        "render_as_batch": True,
        "compare_type": True,
        "include_object": include_object,
    }


@contextmanager
def reflection() -> Iterator[None]:
    """Suppress a warning that SQLAlchemy emits when it reflects a NOT VALID constraint of PostgreSQL."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Can't validate argument 'dialect_options'")
        yield


def script_location() -> Path:
    """Return the folder of the migrations: in the installed package, or in a checkout the folder alembic/."""
    package = Path(__file__).resolve().parent
    installed = package / "_alembic"
    return installed if installed.is_dir() else package.parents[1] / "alembic"


def _config() -> Config:
    config = Config()
    # configparser interpolates %, which a folder name may contain.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(operation: Any, connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        operation(config, revision)
    except CommandError as error:
        raise ValueError(f"cannot migrate to revision {revision!r}: {error}") from error


def _read_revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _refuse_name_conflicts(inspector: sa.Inspector) -> None:
    """Raise if a database without a version already has a table or column that a later revision creates."""
    for table in Base.metadata.sorted_tables:
        baseline = BASELINE_COLUMNS.get(table.name)
        if baseline is None:
            conflicts = [table.name] if inspector.has_table(table.name) else []
        else:
            present = {column["name"] for column in inspector.get_columns(table.name)}
            new = present.intersection(table.columns.keys()) - baseline
            conflicts = [f"{table.name}.{column}" for column in sorted(new)]
        if conflicts:
            raise ForeignDatabaseError(
                f"The database has no version, yet already has {conflicts[0]}: rename it if it is your own, or run "
                "`alembic stamp REVISION` if the version was lost. Nothing was changed."
            )


def _refuse_foreign(connection: Connection, accept_partial: bool) -> None:
    """Raise unless the database is empty, or has this library's tables and a known revision or none."""
    inspector = sa.inspect(connection)
    tables = set(inspector.get_table_names()) - {"alembic_version"}
    revision = _read_revision(connection)
    if not tables and revision is None:
        return
    has_table = [
        table in tables and columns <= {column["name"] for column in inspector.get_columns(table)}
        for table, columns in BASELINE_COLUMNS.items()
    ]
    if accept_partial and any(has_table):
        return
    if not all(has_table):
        raise ForeignDatabaseError
    if revision is not None and revision not in REVISIONS:
        raise SchemaTooNewError
