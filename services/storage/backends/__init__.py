"""The databases this library runs on: what differs between them is here, and nothing else."""

from functools import cache

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session

from ..errors import DatabaseURLError
from .base import Backend, EngineOptions, inline, is_refused_when_reading, priorities

__all__ = ["Backend", "EngineOptions", "backend_for", "inline", "is_refused_when_reading", "priorities"]


def backend_for(source: URL | Session | Connection | Engine) -> Backend:
    """Return the backend that `source` speaks to. Raises DatabaseURLError for any other database system."""
    if isinstance(source, URL):
        return _backend(source.get_backend_name())
    return _backend((source.get_bind() if isinstance(source, Session) else source).dialect.name)


@cache
def _backend(name: str) -> Backend:
    # Imported when asked for: each dialect costs 20 ms that users of the other one should not pay.
    if name == "sqlite":
        from .sqlite import SQLite

        return SQLite()
    if name == "postgresql":
        from .postgresql import PostgreSQL

        return PostgreSQL()
    raise DatabaseURLError(
        f"{name} databases are not supported: use sqlite:///path/to/file.db or postgresql://user@host/name"
    )
