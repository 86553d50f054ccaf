"""Alembic from Python: the only way the schema is made, changed, adopted, checked and reset.

The only importer of Alembic, and itself imported only where a schema may have to change. Every change is one
transaction under one lock, so many processes may start at once and a kill leaves the old schema or the new one.
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

# What a database made without Alembic must have to be taken for ours: the tables and columns of the first revision.
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
    """Bring the database to `revision`: make an empty one, adopt one without a version, upgrade an older one.

    Raises ForeignDatabaseError or SchemaTooNewError, with nothing changed, for a database that is not ours to upgrade,
    and ValueError for an unknown revision.
    """
    if not revision:
        raise ValueError("revision must be a revision of this library, or head")
    storage.backend.create_database(storage.url)
    with exclusive(storage) as connection:
        adopt(connection)
        _run(command.upgrade, connection, revision)


def downgrade(storage: Storage, revision: str) -> None:
    """Take the database back to `revision` ("-1" for one step). What that loses stands in each revision's docstring.

    Raises NotInitializedError for a database without a version and ValueError for an unknown revision.
    """
    if not storage.backend.is_present(storage.url):
        raise NotInitializedError
    with exclusive(storage) as connection:
        if _read_revision(connection) is None:
            raise NotInitializedError
        _run(command.downgrade, connection, revision)


def reset(storage: Storage) -> None:
    """Drop every table of ours and make them again, in one transaction: all data is lost, or nothing has happened."""
    storage.backend.create_database(storage.url)
    with exclusive(storage, any_of_ours=True) as connection:
        present = set(sa.inspect(connection).get_table_names())
        for table in (*reversed(Base.metadata.sorted_tables), sa.Table("alembic_version", sa.MetaData())):
            if table.name in present:
                table.drop(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS prompts_fts")
        _run(command.upgrade, connection, "head")


def check(storage: Storage) -> list[Any]:
    """Return how the tables differ from the models, in Alembic's terms; [] where they agree."""
    if not storage.backend.is_present(storage.url):
        raise NotInitializedError
    with connect(storage) as connection:
        context = MigrationContext.configure(connection, opts=options(connection))
        with reflection():
            return list(compare_metadata(context, Base.metadata))


@contextmanager
def connect(storage: Storage) -> Iterator[Connection]:
    """Open a connection for migrations, outside the pool of `storage`."""
    engine = storage.backend.create_migration_engine(storage.url)
    translate_errors(engine)
    with engine.connect() as connection:
        yield connection


@contextmanager
def exclusive(storage: Storage, *, any_of_ours: bool = False) -> Iterator[Connection]:
    """Open a connection in a transaction that no other migration can be in; commit at the end of the block.

    Raises ForeignDatabaseError or SchemaTooNewError before anything is written; `any_of_ours` lets
    pass whatever still has one of our tables, at whatever revision: its name alone is not enough.
    """
    with connect(storage) as connection:
        for prepare in (storage.backend.prepare_file, None):
            storage.backend.lock_migrations(connection)
            _refuse_foreign(connection, any_of_ours)
            if prepare:
                # Outside the transaction, and only once it is certain that the file is ours to change.
                connection.rollback()
                prepare(connection)
        yield connection
        connection.commit()


def adopt(connection: Connection) -> None:
    """Stamp a database of ours that has no version as the first revision, with the indexes that one has.

    Does nothing to an empty database or one with a version. The rows are mended by the revisions that follow.
    """
    inspector = sa.inspect(connection)
    if _read_revision(connection) is not None or not inspector.has_table("generations"):
        return
    _refuse_namesakes(inspector)
    for name, target in BASELINE_INDEXES.items():
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name} ON {target}")
    MigrationContext.configure(connection).stamp(ScriptDirectory.from_config(_config()), BASELINE)


def options(connection: Connection) -> dict[str, Any]:
    """Return the options of an Alembic context: one transaction, and silence about what is not ours to manage."""
    dialect = connection.dialect.name
    for index in (index for table in Base.metadata.tables.values() for index in table.indexes if "where" in index.info):
        index.dialect_kwargs[f"{dialect}_where"] = sa.text(index.info["where"])

    def include_object(item: Any, name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
        if reflected:
            # An operator's own table, column or index beside ours stays, and so does what only the revisions know of:
            # an index of one database system alone.
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
    """Keep SQLAlchemy from warning about what it reflects itself: a constraint that PostgreSQL holds as NOT VALID."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Can't validate argument 'dialect_options'")
        yield


def script_location() -> Path:
    """Return the folder of the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "_alembic"
    return shipped if shipped.is_dir() else package.parents[1] / "alembic"


def _config() -> Config:
    config = Config()
    # The value goes through configparser: a folder with a % in its name would be an interpolation.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(operation: Any, connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        operation(config, revision)
    except CommandError as error:
        raise ValueError(f"revision {revision!r} cannot be reached: {error}") from error


def _read_revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _refuse_namesakes(inspector: sa.Inspector) -> None:
    """Raise when a database without a version already has a table or column that the coming revisions make."""
    for table in Base.metadata.sorted_tables:
        baseline = BASELINE_COLUMNS.get(table.name)
        if baseline is None:
            taken = [table.name] if inspector.has_table(table.name) else []
        else:
            present = {column["name"] for column in inspector.get_columns(table.name)}
            new = present.intersection(table.columns.keys()) - baseline
            taken = [f"{table.name}.{column}" for column in sorted(new)]
        if taken:
            raise ForeignDatabaseError(
                f"The database has no version, yet already has {taken[0]}: rename that if it is yours, or run `alembic "
                "stamp` if the version was lost. Nothing was changed."
            )


def _refuse_foreign(connection: Connection, any_of_ours: bool) -> None:
    """Raise unless the database is empty, or ours at a revision this library knows, or ours without one."""
    inspector = sa.inspect(connection)
    tables = set(inspector.get_table_names()) - {"alembic_version"}
    revision = _read_revision(connection)
    if not tables and revision is None:
        return
    ours = [
        table in tables and columns <= {column["name"] for column in inspector.get_columns(table)}
        for table, columns in BASELINE_COLUMNS.items()
    ]
    if any_of_ours and any(ours):
        return
    if not all(ours):
        raise ForeignDatabaseError
    if revision is not None and revision not in REVISIONS:
        raise SchemaTooNewError
