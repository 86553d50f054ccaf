"""Compare the tables with the models, as `alembic check` and --autogenerate do, without reports on foreign objects."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from ..backends import backend_for
from ..engine import Storage
from ..errors import NotInitializedError
from ..models import TABLES, Base
from .connections import connect


def check(storage: Storage) -> list[Any]:
    """Return the differences between the tables and the models, as Alembic's operations; [] if there are none."""
    if not storage.backend.is_present(storage.url):
        raise NotInitializedError
    with connect(storage) as connection:
        context = MigrationContext.configure(connection, opts=options(connection))
        with reflection():
            return list(compare_metadata(context, Base.metadata))


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
        table = item if kind == "table" else item.table
        return table in TABLES and bool(item.info.get("only_on", dialect) == dialect)

    return {
        "transactional_ddl": True,
        "render_as_batch": True,
        "compare_type": True,
        "include_object": include_object,
        # Not the alembic_version of another program, in a schema further down the search path.
        "version_table_schema": backend_for(connection).own_schema(connection),
    }


@contextmanager
def reflection() -> Iterator[None]:
    """Suppress SQLAlchemy's warnings about what it cannot reflect: NOT VALID constraints, indexes on expressions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Can't validate argument 'dialect_options'")
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index")
        warnings.filterwarnings("ignore", "Failed to look up filter predicate of partial index")
        warnings.filterwarnings("ignore", "Did not recognize type")
        yield
