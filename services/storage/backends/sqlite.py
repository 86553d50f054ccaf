"""SQLite: lazy BEGIN IMMEDIATE, WAL, private files, memory databases that threads can share."""

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
    QueuePool,
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
from .base import Bind
from .fts5 import FTS5Search
from .sqlite_sql import SQLiteSQL
from .statements import is_write

MIGRATION_PATIENCE_SECONDS = 600.0  # a rebuild of millions of rows by another process is waited for
CHECKPOINT_BYTES = 4 * 1024 * 1024
MEMORY_VFS = "memdb"
# What integrity_check says of rows and of the search index; both are looked at by others, who know more.
NOT_OF_THE_FILE = re.compile(r"CHECK constraint failed in |[\w-]+ value in |.*prompts_fts")

# Prefixes of sqlite3's error names (https://sqlite.org/rescode.html), the first that fits.
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


# What a URL may set without being an SQLite URI (https://docs.python.org/3/library/sqlite3.html#sqlite3.connect).
DRIVER_ARGUMENTS = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri"}


class SQLite(SQLiteSQL, FTS5Search):
    """The embedded database: one file, many readers, one writer at a time."""

    name = "sqlite"
    replication = None

    def resolve_url(self, url: URL) -> URL:
        url = url.set(drivername="sqlite")
        name = url.database or ":memory:"
        if name == ":memory:" or name.startswith("file::memory:") or url.query.get("mode") == "memory":
            # Shared by the threads of this process. The other ways lose rows or show rolled-back ones to other threads.
            return url.set(database=f"file:/dgx-{uuid4()}", query={"vfs": MEMORY_VFS, "uri": "true"})
        if is_memory(url):
            return url
        if name.startswith("file:"):
            return url.update_query_dict({"uri": "true"})
        if stray := url.query.keys() - DRIVER_ARGUMENTS:
            # SQLAlchemy would leave it out: a file to be opened with mode=ro could be written.
            raise DatabaseURLError(f"For {min(stray)} the database URL has to be sqlite:///file:PATH?{min(stray)}=….")
        # A later chdir() must not make new pool connections open another file.
        return url.set(database=os.path.abspath(name))

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        engine = create_engine(
            url,
            echo=options.echo,
            hide_parameters=True,
            poolclass=QueuePool,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            connect_args={"timeout": options.busy_timeout, "check_same_thread": False},
        )
        self._set_pragmas(engine, url, options)
        self._begin_transactions(engine, url)
        return engine

    def _set_pragmas(self, engine: Engine, url: URL, options: EngineOptions) -> None:
        """Configure each new connection, and checkpoint ourselves where SQLite's own checkpoints are unsafe (ADR 3)."""
        checkpointed = not is_memory(url) and has_wal_reset_bug(sqlite3.sqlite_version_info)

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, record: Any) -> None:
            with _closed_on_error(connection):
                connection.isolation_level = None  # _begin_transactions() emits BEGIN
                connection.text_factory = _decode
                connection.execute("PRAGMA foreign_keys = ON")
                # trusted_schema stays ON: FTS5 counts as unsafe in triggers (3.40.1), and they keep the search index.
                connection.execute(f"PRAGMA synchronous = {options.synchronous}")
                connection.execute("PRAGMA temp_store = MEMORY")
                connection.execute("PRAGMA cache_size = -65536")
                if checkpointed:
                    connection.execute("PRAGMA wal_autocheckpoint = 0")
                    # SQLite's own name of the file: the URL may name a link to it, or be a file: URI.
                    record.info["wal"] = Path(connection.execute("PRAGMA database_list").fetchone()[2] + "-wal")

        @event.listens_for(engine, "checkout")
        def own_transactions(connection: sqlite3.Connection, record: Any, proxy: Any) -> None:
            # SQLAlchemy turns the driver's own BEGIN on again after somebody has used AUTOCOMMIT.
            connection.isolation_level = None

        if checkpointed:

            @event.listens_for(engine, "checkin")
            def checkpoint(connection: sqlite3.Connection | None, record: Any) -> None:
                if connection is not None and "wal" in record.info:
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
            if read_only and not is_memory(url) and not statement.startswith("PRAGMA"):
                driver.execute("BEGIN")
            elif is_write(statement, context):
                # Before the first write, not before the first read: a reader never takes the writer's place, and a
                # transaction that reads first can never fail with SQLITE_BUSY_SNAPSHOT (292 of 400 did with BEGIN).
                try:
                    driver.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as error:
                    raise (self.translate(error, is_disconnect=False, is_connecting=False) or error) from error

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
        """Return a connection that keeps a memory database in existence, or None for a file."""
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
            connect_args={"timeout": MIGRATION_PATIENCE_SECONDS, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, record: Any) -> None:
            with _closed_on_error(connection):
                connection.isolation_level = None
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
        while connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            try:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return  # also where there can be no WAL, as on a file system without shared memory
            except BusyError:
                # The switch ignores the busy timeout; an exclusive lock honours it, so wait with that.
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
                connection.rollback()

    def translate(self, error: BaseException, *, is_disconnect: bool, is_connecting: bool) -> StorageError | None:
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorname", "")
        if code == "SQLITE_ERROR" and str(error).startswith("no such table"):
            return NotInitializedError(orig=error)
        for prefix, kind in ERRORS:
            if code.startswith(prefix):
                message = (kind.__doc__ or "").strip()
                # SQLite names the constraint and its columns here, never a value.
                subject = str(error).partition("constraint failed: ")[2]
                return kind(f"{message} ({subject})" if subject else message, orig=error)
        return None

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        return None  # without AUTOINCREMENT the next key follows the highest one by itself

    def check_integrity(self, session: Session) -> list[str]:
        try:
            found = session.scalars(text(f"PRAGMA integrity_check({INTEGER_LIMIT})")).all()
        except CorruptError:
            return ["the file is damaged beyond reading"]
        return [line for line in found if line != "ok" and not NOT_OF_THE_FILE.match(line)]


def is_memory(url: URL) -> bool:
    """Tell whether `url` is a resolved memory database."""
    return url.query.get("vfs") == MEMORY_VFS


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Tell whether this SQLite may corrupt a file when a checkpoint meets a commit (https://sqlite.org/wal.html).

    Versions 3.7.0 to 3.51.2 do, but not 3.44.6 and 3.50.7 and what followed on those branches.
    """
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version < (3, 51, 3)


def _decode(text: bytes) -> str:
    """Read what others wrote in another encoding with marks for it: the driver would refuse the row, and quote it."""
    return text.decode("utf-8", "replace")


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close a connection that cannot be set up: SQLAlchemy 2.0 would leave it to the garbage collector."""
    try:
        yield
    except sqlite3.Error:
        connection.close()
        raise


def _is_uri(url: URL) -> bool:
    return str(url.database).startswith("file:")


def _checkpoint(connection: sqlite3.Connection, wal: Path, busy_timeout: float) -> None:
    """Empty a large WAL while holding the writer's lock, which is what automatic checkpoints lack on these versions.

    Best effort: a reader may be in the way, and then the next commit tries again; a WAL four times too large waits for
    its turn. A connection that is still in a transaction is about to be rolled back by the pool.
    """
    try:
        size = wal.stat().st_size
    except OSError:
        return
    if size <= CHECKPOINT_BYTES or connection.in_transaction:
        return
    patience = 0 if size <= 4 * CHECKPOINT_BYTES else int(busy_timeout * 1000)
    with contextlib.suppress(sqlite3.Error):
        connection.execute(f"PRAGMA busy_timeout = {patience}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
