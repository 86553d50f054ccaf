"""The supported database systems: all code that differs between them. See Backend for what each provides."""

from functools import cache

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session

from ..errors import DatabaseURLError
from .base import Backend, LogPosition, Replication
from .statements import is_refused_when_reading, is_write

__all__ = ["Backend", "LogPosition", "Replication", "backend_for", "is_refused_when_reading", "is_write"]


def backend_for(source: URL | Session | Connection | Engine) -> Backend:
    """Return the backend for the database of `source`. Raises DatabaseURLError for an unsupported database system."""
    if isinstance(source, URL):
        return _backend(source.get_backend_name())
    return _backend((source.get_bind() if isinstance(source, Session) else source).dialect.name)


@cache
def _backend(name: str) -> Backend:
    # Imported on demand: importing a dialect takes 20 ms, which users of the other one should not wait for.
    if name == "sqlite":
        from .sqlite import SQLite

        return SQLite()
    if name == "postgresql":
        from .postgresql import PostgreSQL

        return PostgreSQL()
    raise DatabaseURLError(
        f"{name} databases are not supported: use sqlite:///path/to/file.db or postgresql://user@host/name"
    )
