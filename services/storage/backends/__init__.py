"""The databases this library runs on: everything that differs between them, and nothing else."""

from functools import cache

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session

from ..errors import DatabaseURLError
from .base import Backend, LogPosition, Replication
from .statements import is_refused_when_reading, is_write

__all__ = ["Backend", "LogPosition", "Replication", "backend_for", "is_refused_when_reading", "is_write"]


def backend_for(source: URL | Session | Connection | Engine) -> Backend:
    """Return the backend of the database that `source` names. Raises DatabaseURLError for any other database system."""
    if isinstance(source, URL):
        return _backend(source.get_backend_name())
    return _backend((source.get_bind() if isinstance(source, Session) else source).dialect.name)


@cache
def _backend(name: str) -> Backend:
    # Imported on demand: each dialect costs 20 ms, which users of the other one should not pay.
    if name == "sqlite":
        from .sqlite import SQLite

        return SQLite()
    if name == "postgresql":
        from .postgresql import PostgreSQL

        return PostgreSQL()
    raise DatabaseURLError(
        f"{name} databases are not supported: use sqlite:///path/to/file.db or postgresql://user@host/name"
    )
