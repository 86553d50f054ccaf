"""The SQLite backend: BEGIN IMMEDIATE before the first write, WAL, private files, shared memory databases."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    Table,
    create_engine,
    event,
    text,
)
from sqlalchemy.orm import Session

from ..errors import (
    BusyError,
    ConflictError,
    ConstraintError,
    CorruptError,
    DatabaseURLError,
    FullError,
    NotInitializedError,
    ReadOnlyError,
    StorageError,
    UnreachableError,
)
from ..limits import INTEGER_LIMIT
from ..settings import EngineOptions
from .base import Bind, ConnectionPool, Phase, error_of_kind
from .fts5 import FTS5Search, trim_or_fold
from .sqlite_backup import SQLiteBackups
from .sqlite_sql import SQLiteSQL
from .statements import is_write, keyword_of

MIGRATION_BUSY_TIMEOUT_SECONDS = 600.0  # long enough for another process to rebuild a table of millions of rows
CHECKPOINT_BYTES = 4 * 1024 * 1024
MEMORY_VFS = "memdb"
# Messages of integrity_check about rows and the search index: check_database() checks both in more detail.
CHECKED_ELSEWHERE = re.compile(r"CHECK constraint failed in |[\w-]+ value in |.*prompts_fts")

# Prefixes of SQLite's error names (https://sqlite.org/rescode.html); the first match counts.
ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("SQLITE_BUSY", BusyError),
    ("SQLITE_LOCKED", BusyError),
    ("SQLITE_FULL", FullError),
    ("SQLITE_READONLY", ReadOnlyError),
    ("SQLITE_CORRUPT", CorruptError),
    ("SQLITE_NOTADB", CorruptError),
    ("SQLITE_CANTOPEN", UnreachableError),
    ("SQLITE_PERM", UnreachableError),
    ("SQLITE_AUTH", UnreachableError),
    ("SQLITE_IOERR", UnreachableError),
    ("SQLITE_CONSTRAINT_UNIQUE", ConflictError),
    ("SQLITE_CONSTRAINT_PRIMARYKEY", ConflictError),
    ("SQLITE_CONSTRAINT_ROWID", ConflictError),
    ("SQLITE_CONSTRAINT", ConstraintError),
    ("SQLITE_TOOBIG", ConstraintError),
)

# The query parameters that a URL may have without being an SQLite URI (https://docs.python.org/3/library/sqlite3.html#sqlite3.connect).
DRIVER_ARGUMENTS = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri"}


class SQLite(SQLiteSQL, FTS5Search):
    """SQLite through Python's sqlite3: one file, many readers, one writer at a time."""

    name = "sqlite"
    replication = None

    @property
    def backups(self) -> SQLiteBackups:
        return SQLiteBackups(lambda error: self.translate(error, phase="statement", is_disconnect=False))

    def resolve_url(self, url: URL) -> URL:
        url = url.set(drivername="sqlite")
        name = url.database or ":memory:"
        if name == ":memory:" or name.startswith("file::memory:") or url.query.get("mode") == "memory":
            # Shared by the threads of this process. With a plain :memory: each connection has its own database, and one
            # shared connection shows uncommitted rows to other threads. See ADR 10.
            return url.set(database=f"file:/dgx-{uuid4()}", query={"vfs": MEMORY_VFS, "uri": "true"})
        if is_memory(url):
            return url
        if name.startswith("file:"):
            return url.update_query_dict({"uri": "true"})
        if unknown := url.query.keys() - DRIVER_ARGUMENTS:
            # SQLAlchemy would ignore such a parameter: mode=ro would open the file for writing.
            name = min(unknown)
            raise DatabaseURLError(f"To set {name}, write the database URL as sqlite:///file:PATH?{name}=….")
        # Absolute, because after a chdir() new connections of the pool would open another file.
        return url.set(database=os.path.abspath(name))

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        engine = create_engine(
            url,
            echo=options.echo,
            hide_parameters=True,
            poolclass=ConnectionPool,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            connect_args={"timeout": options.busy_timeout, "check_same_thread": False},
        )
        self._set_pragmas(engine, url, options)
        self._begin_transactions(engine, url)
        return engine

    def _set_pragmas(self, engine: Engine, url: URL, options: EngineOptions) -> None:
        """Configure each new connection, and replace automatic checkpoints where SQLite's are unsafe (ADR 3)."""
        replaces_checkpoints = not is_memory(url) and has_wal_reset_bug(sqlite3.sqlite_version_info)

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, record: Any) -> None:
            with _closed_on_error(connection):
                connection.isolation_level = None  # _begin_transactions() emits BEGIN
                connection.text_factory = _decode
                connection.create_function("ltrim", 2, trim_or_fold, deterministic=True)
                connection.execute("PRAGMA foreign_keys = ON")
                # trusted_schema stays ON: when OFF, SQLite before 3.43 refuses FTS5 in triggers, which keep the search
                # index up to date. See ADR 21.
                connection.execute(f"PRAGMA synchronous = {options.synchronous}")
                connection.execute("PRAGMA temp_store = MEMORY")
                connection.execute("PRAGMA cache_size = -65536")
                if replaces_checkpoints:
                    connection.execute("PRAGMA wal_autocheckpoint = 0")
                    # The path as SQLite resolved it: the URL may name a symbolic link or be a file: URI.
                    record.info["wal"] = connection.execute("PRAGMA database_list").fetchone()[2] + "-wal"
                    record.info["changes"] = connection.total_changes

        @event.listens_for(engine, "checkout")
        def disable_driver_begin(connection: sqlite3.Connection, record: Any, proxy: Any) -> None:
            # SQLAlchemy turns the driver's BEGIN on again when a connection that used AUTOCOMMIT is returned.
            if connection.isolation_level is not None:
                connection.isolation_level = None

        if replaces_checkpoints:

            @event.listens_for(engine, "checkin")
            def checkpoint(connection: sqlite3.Connection | None, record: Any) -> None:
                if connection is None or record.info.get("changes") in (None, connection.total_changes):
                    return  # nothing was written, so the WAL has not grown
                record.info["changes"] = connection.total_changes
                _checkpoint(connection, record.info["wal"], options.busy_timeout)

    def _begin_transactions(self, engine: Engine, url: URL) -> None:
        """Emit BEGIN IMMEDIATE before the first write of a transaction, BEGIN before a read-only one (ADR 2)."""

        @event.listens_for(engine, "before_cursor_execute")
        def begin(
            connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
        ) -> None:
            driver = connection.connection.dbapi_connection
            assert isinstance(driver, sqlite3.Connection)
            if driver.in_transaction or connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
                return
            read_only = connection.get_execution_options().get("read_only", False)
            if read_only and not is_memory(url) and keyword_of(statement) != "PRAGMA":
                driver.execute("BEGIN")
            elif is_write(statement, context):
                # Not before the first read: a session that only reads must not take the write lock. Not a plain BEGIN:
                # of 400 transactions that read before they wrote, 292 failed with SQLITE_BUSY_SNAPSHOT.
                try:
                    driver.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as error:
                    raise (self.translate(error, phase="statement", is_disconnect=False) or error) from error

    def is_present(self, url: URL) -> bool:
        if is_memory(url) or _is_uri(url):
            return True
        return os.path.exists(str(url.database))

    def create_database(self, url: URL) -> None:
        if is_memory(url) or _is_uri(url):
            return
        path = Path(str(url.database))
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise UnreachableError(
                f"{path} cannot be created ({error.strerror}): check DATABASE_URL, the folder and its permissions",
                orig=error,
            ) from error

    def open_anchor(self, url: URL) -> sqlite3.Connection | None:
        """Return a connection that keeps a memory database alive, or None for a file."""
        if not is_memory(url):
            return None
        return sqlite3.connect(f"{url.database}?vfs={MEMORY_VFS}", uri=True, check_same_thread=False)

    def read_only(self, bind: Bind) -> Bind:
        return bind.execution_options(read_only=True)

    def create_migration_engine(self, url: URL) -> Engine:
        engine = create_engine(
            url,
            hide_parameters=True,
            poolclass=NullPool,
            connect_args={"timeout": MIGRATION_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, record: Any) -> None:
            with _closed_on_error(connection):
                connection.isolation_level = None
                connection.create_function("ltrim", 2, trim_or_fold, deterministic=True)
                # With foreign keys on, dropping the old table of a rebuild silently deletes the rows that refer to it.
                connection.execute("PRAGMA foreign_keys = OFF")
                if has_wal_reset_bug(sqlite3.sqlite_version_info):
                    connection.execute("PRAGMA wal_autocheckpoint = 0")

        return engine

    def lock_migrations(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def prepare_file(self, connection: Connection) -> None:
        if is_memory(connection.engine.url):
            return
        if connection.exec_driver_sql("PRAGMA page_count").scalar() == 0:
            # Only possible before the first page is written, also by the change to WAL (ADR 27).
            connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
        while connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            try:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return  # even if the mode is still not WAL: some file systems do not support it
            except BusyError:
                # Changing the journal mode ignores the busy timeout; BEGIN EXCLUSIVE waits for it.
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
                connection.rollback()

    def translate(self, error: BaseException, *, phase: Phase, is_disconnect: bool) -> StorageError | None:
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorname", "")
        if code == "SQLITE_ERROR" and str(error).startswith("no such table"):
            return NotInitializedError(orig=error)
        for prefix, kind in ERRORS:
            if code.startswith(prefix):
                # This part of the message names the constraint and its columns, never a value.
                return error_of_kind(kind, error, str(error).partition("constraint failed: ")[2])
        return None

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        return None  # without AUTOINCREMENT, SQLite generates the highest key plus one

    def check_integrity(self, session: Session) -> list[str]:
        try:
            messages = session.scalars(text(f"PRAGMA integrity_check({INTEGER_LIMIT})")).all()
        except CorruptError:
            return ["the file is too damaged for an integrity check"]
        return [line for line in messages if line != "ok" and not CHECKED_ELSEWHERE.match(line)]


def is_memory(url: URL) -> bool:
    """Return whether `url`, as returned by resolve_url(), is that of a memory database."""
    return url.query.get("vfs") == MEMORY_VFS


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Return whether this SQLite may corrupt a file when a checkpoint coincides with a commit (ADR 3).

    Source: https://sqlite.org/wal.html, "the WAL-reset bug". Versions 3.7.0 to 3.51.2 have it, except 3.44.6, 3.50.7
    and later releases of those two branches.
    """
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version < (3, 51, 3)


def _decode(text: bytes) -> str:
    """Decode UTF-8, with U+FFFD for invalid bytes: the driver would raise an error that quotes the value, a prompt."""
    return text.decode("utf-8", "replace")


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close the connection if its setup fails: SQLAlchemy 2.0 leaves that to the garbage collector."""
    try:
        yield
    except sqlite3.Error:
        connection.close()
        raise


def _is_uri(url: URL) -> bool:
    return str(url.database).startswith("file:")


def _checkpoint(connection: sqlite3.Connection, wal: str, busy_timeout: float) -> None:
    """Truncate a WAL larger than CHECKPOINT_BYTES while holding the write lock, so that no commit can coincide with it.

    Best effort: if a reader blocks it, the next connection returned to the pool tries again. From four times that size
    it waits for up to the busy timeout. Skips a connection in a transaction, which the pool is about to roll back.
    """
    try:
        size = os.stat(wal).st_size
    except OSError:
        return
    if size <= CHECKPOINT_BYTES or connection.in_transaction:
        return
    timeout_ms = 0 if size <= 4 * CHECKPOINT_BYTES else int(busy_timeout * 1000)
    with contextlib.suppress(sqlite3.Error):
        connection.execute(f"PRAGMA busy_timeout = {timeout_ms}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
