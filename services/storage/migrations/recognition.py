"""What is in a database: this library's tables, another program's, or nothing; and which revision it is at."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from ..backends import backend_for
from ..errors import ForeignDatabaseError, SchemaDamagedError, SchemaTooNewError
from ..models import TABLES
from ..schema import REVISIONS, get_schema_version, is_own_revision, name_several_revisions

VERSION_TABLE: Final = "alembic_version"

# The tables and columns of the first revision: a database without a version must have them to be adopted.
BASELINE_COLUMNS: Final = {
    "generations": (
        "id prompt model_name model_version duration_seconds sample_rate channels file_path file_size_bytes status "
        "created_at completed_at generation_time_seconds error_message metadata"
    ).split(),
    "prompts": "id text used_count first_used_at last_used_at".split(),
}
ELSEWHERE: Final = "point DATABASE_URL at another database. Nothing was changed."


def read_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None if it has none. Raises ForeignDatabaseError if there are several."""
    schema = backend_for(connection).own_schema(connection)
    inspector = sa.inspect(connection)
    if not inspector.has_table(VERSION_TABLE, schema=schema):
        return None
    if all(column["name"] != "version_num" for column in inspector.get_columns(VERSION_TABLE, schema=schema)):
        return None
    table = sa.table(VERSION_TABLE, sa.column("version_num"), schema=schema)
    revisions = connection.scalars(sa.select(table.c.version_num).order_by(table.c.version_num)).all()
    if len(revisions) > 1:
        raise ForeignDatabaseError(name_several_revisions(revisions))
    return revisions[0] if revisions else None


def find_missing(connection: Connection, *, baseline: bool = True) -> list[str]:
    """Return what the tables of the first revision lack, or, with `baseline=False`, those of the models, in words."""
    inspector = sa.inspect(connection)
    schema = backend_for(connection).own_schema(connection)
    present = set(inspector.get_table_names(schema=schema))
    models = {table.name: table.columns.keys() for table in TABLES}
    missing = []
    for table, columns in (BASELINE_COLUMNS if baseline else models).items():
        if table not in present:
            missing.append(f"the table {table}")
            continue
        names = {column["name"] for column in inspector.get_columns(table, schema=schema)}
        missing += [f"the column {table}.{column}" for column in columns if column not in names]
    return missing


def is_empty(connection: Connection) -> bool:
    """Return whether the database has no tables but those of tools that keep their own in every database."""
    return not _tables(connection)


def refuse_foreign(connection: Connection, *, accept_partial: bool = False, accept_damaged: bool = False) -> None:
    """Raise unless the database is empty, or has this library's tables and a known revision or none.

    `accept_partial` accepts a database with at least one of the tables of the first revision, at whatever revision;
    `accept_damaged` one that is stamped with the head, but lacks something of it.
    """
    tables, revision = _tables(connection), read_revision(connection)
    if not tables and revision is None:
        return
    missing = find_missing(connection)
    if accept_partial and any(not any(f" {name}" in words for words in missing) for name in BASELINE_COLUMNS):
        return
    if missing:
        raise ForeignDatabaseError(_name_foreign(tables, revision, missing))
    if revision is None:
        return
    if not is_own_revision(revision):
        raise ForeignDatabaseError(
            f"{VERSION_TABLE} says {revision!r}, a revision of another program, which keeps its own there: {ELSEWHERE}"
        )
    if revision not in REVISIONS:
        raise SchemaTooNewError
    if revision == get_schema_version() and not accept_damaged and (lost := find_missing(connection, baseline=False)):
        raise SchemaDamagedError(name_damage(revision, lost[0]))


def name_damage(revision: str, lost: str) -> str:
    """Return the message for a database that lacks something of the revision that it is stamped with."""
    return (
        f"The database says that it is at revision {revision}, but {lost} is missing: restore a backup; or create it "
        "again, without its values, with `dgx-storage check --fix`; or, if `alembic stamp` set a wrong revision, stamp "
        "the right one. Nothing was changed."
    )


def _tables(connection: Connection) -> set[str]:
    backend = backend_for(connection)
    names = sa.inspect(connection).get_table_names(schema=backend.own_schema(connection))
    return {name for name in names if name != VERSION_TABLE} - backend.ignored_tables(connection)


def _name_foreign(tables: set[str], revision: str | None, missing: list[str]) -> str:
    if not tables:
        return (
            f"The database has no tables, yet {VERSION_TABLE} says {revision}: if the tables are lost, restore a "
            f"backup, or drop {VERSION_TABLE} and run `just db-init`; if they are another program's, {ELSEWHERE}"
        )
    if own := sorted(tables.intersection(BASELINE_COLUMNS)):
        return f"The database has a table {own[0]}, but not {missing[0]} of this library: {ELSEWHERE}"
    return f"The database holds the table {min(tables)} and none of this library's: {ELSEWHERE}"
