"""The databases this library runs on: what differs between them is here, and nothing else."""

import re
from functools import cache

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session

from ..errors import DatabaseURLError
from .base import Backend, EngineOptions, Position, Replication, inline, is_refused_when_reading, priorities

__all__ = [
    "Backend",
    "EngineOptions",
    "Position",
    "Replication",
    "backend_for",
    "inline",
    "is_refused_when_reading",
    "priorities",
    "spell_url",
]

# libpq's postgresql://user@first:5432,second:5433/name, which SQLAlchemy cannot read
MANY_HOSTS = re.compile(r"(?P<head>postgresql[^:]*://(?:[^@/?]*@)?)(?P<hosts>[^@/?]*,[^@/?]*)(?P<tail>.*)", re.DOTALL)


def backend_for(source: URL | Session | Connection | Engine) -> Backend:
    """Return the backend that `source` speaks to. Raises DatabaseURLError for any other database system."""
    if isinstance(source, URL):
        return _backend(source.get_backend_name())
    return _backend((source.get_bind() if isinstance(source, Session) else source).dialect.name)


def spell_url(given: str) -> str:
    """Return a URL as SQLAlchemy spells it, whether written for it or for the database's own tools."""
    if given.startswith("postgres://"):
        given = given.replace("postgres://", "postgresql://", 1)
    if (many := MANY_HOSTS.fullmatch(given)) is None:
        return given
    path, _, query = many["tail"].partition("?")
    hosts = [f"host={host}" if ":" in host else f"host={host}:5432" for host in many["hosts"].split(",")]
    return f"{many['head']}{path or '/'}?{'&'.join([*hosts, *([query] if query else [])])}"


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
