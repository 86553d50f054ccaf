"""Whether the schema of a database is the one that this library works with. Needs no Alembic and one query."""

from contextlib import suppress
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from .errors import (
    ForeignDatabaseError,
    NotInitializedError,
    SchemaDamagedError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from .models import Base
from .schema import REVISIONS, get_schema_version, is_own_revision, name_several_revisions

_TABLES = Base.metadata.sorted_tables
_COLUMNS = ", ".join(f"{table.name}.{column.name}" for table in _TABLES for column in table.columns)
REVISION: Final = "SELECT version_num FROM alembic_version"
# Fails if a table or column of the models is missing. Reads no row of them.
REVISION_OF_HEAD: Final = (
    f"{REVISION} WHERE NOT EXISTS (SELECT {_COLUMNS} FROM {', '.join(table.name for table in _TABLES)} WHERE 1 = 0)"
)


def read_revision(engine: Engine, statement: str = REVISION) -> str | None:
    """Return the stored revision, or None if there is none. Raises ForeignDatabaseError if there are several."""
    try:
        with engine.connect() as connection:
            revisions = connection.exec_driver_sql(statement).scalars().all()
    except NotInitializedError:
        return None
    if len(revisions) > 1:
        raise ForeignDatabaseError(name_several_revisions(sorted(revisions)))
    return revisions[0] if revisions else None


def find_revision(engine: Engine) -> tuple[str | None, bool]:
    """Return the stored revision, and whether all tables and columns of the head are there."""
    with suppress(OperationalError, ProgrammingError):  # a column is missing
        if (revision := read_revision(engine, REVISION_OF_HEAD)) is not None:
            return revision, True
    return read_revision(engine), False


def require_head(revision: str, is_whole: bool, display_url: str) -> None:
    """Raise the error that Storage.require_schema() describes unless a database with this revision is at the head."""
    if not is_own_revision(revision):
        raise ForeignDatabaseError(
            f"The database {display_url} is at revision {revision!r} of another program: point DATABASE_URL at another "
            "database. Nothing was changed."
        )
    if revision != get_schema_version():
        raise (SchemaOutdatedError if revision in REVISIONS else SchemaTooNewError)
    if not is_whole:
        raise SchemaDamagedError(
            f"The database {display_url} says that it is at revision {revision}, but a table or column of it is "
            "missing: restore a backup; or create it again, without its values, with `dgx-storage check --fix`; or, if "
            "`alembic stamp` set a wrong revision, stamp the right one."
        )
