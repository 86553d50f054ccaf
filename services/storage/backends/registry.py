"""Which backend serves a database, and the error for databases that none serves."""

from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, func, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from ..errors import DatabaseURLError
from ..json_members import ComparedNumber, JSONMember
from .backup_dialect import BackupDialect
from .base import Backend

ASYNC_DRIVERS = frozenset({"aiosqlite", "asyncpg", "psycopg_async"})


def backups_of(path: Path) -> BackupDialect:
    """Return the backup dialect that the file at `path` was written with: SQLite's, else PostgreSQL's."""
    sqlite = _backend("sqlite").backups
    return sqlite if sqlite.recognizes(path) else _backend("postgresql").backups


def backend_for(source: URL | Session | Connection | Engine) -> Backend:
    """Return the backend for the database of `source`. Raises DatabaseURLError for an unsupported database system."""
    if isinstance(source, URL):
        name, _, driver = source.drivername.partition("+")
        if driver in ASYNC_DRIVERS:
            raise DatabaseURLError(
                f"The driver {driver} is for async engines, which this library does not use: write {name}://… instead, "
                "and call the library from async code in a thread, for example with run_in_threadpool()."
            )
        return _backend(name)
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


@compiles(JSONMember)
def _write_member(member: JSONMember, compiler: SQLCompiler, **options: Any) -> str:
    try:
        backend = _backend(compiler.dialect.name)
    except DatabaseURLError:  # str() of a query, without an engine
        return compiler.process(func.json_member(*member.clauses), **options)
    document, key = member.clauses
    value = backend.json_member(document, key, member.kind)
    if member.kind == "boolean":
        return f"({compiler.process(value == 1, **options)})"
    return compiler.process(type_coerce(value, member.type), **options)


@compiles(ComparedNumber)
def _write_compared_number(number: ComparedNumber, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(_backend(compiler.dialect.name).compare_json_number(*number.clauses), **options)
