"""The SQLite backend: its engines, and BEGIN IMMEDIATE before the first write of a transaction."""

import os
import re
from operator import methodcaller
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

from ..errors import CorruptError, DatabaseURLError, StorageError
from ..limits import INTEGER_LIMIT
from ..settings import EngineOptions
from .base import AnchorConnection, Bind, ConnectionPool, Phase
from .read_only import is_write, keyword_of
from .sqlite_backup import SQLiteBackups
from .sqlite_diagnostics import SQLiteDiagnostics
from .sqlite_errors import translate
from .sqlite_files import MEMORY_VFS, create, explain, is_memory, is_present, path_of, uri_of
from .sqlite_open_files import load_module, refuse_inherited, watch
from .sqlite_schema import SQLiteSchema
from .sqlite_search import FTS5Search, trim_or_fold
from .sqlite_space import SQLiteSpace
from .sqlite_sql import CollectNumbers, SQLiteSQL, compare_json_number
from .sqlite_wakeup import SQLiteWakeups
from .sqlite_wal import CHECKPOINT_BYTES, Checkpoints, has_wal_reset_bug, require_wal, use_wal

MIGRATION_BUSY_TIMEOUT_SECONDS = 600.0  # long enough for another process to rebuild a table of millions of rows
# Messages of integrity_check about rows and the search index: check_database() checks both in more detail.
CHECKED_ELSEWHERE = re.compile(r"CHECK constraint failed in |[\w-]+ value in |.*prompts_fts")

# The query parameters that a URL may have without being an SQLite URI (https://docs.python.org/3/library/sqlite3.html#sqlite3.connect).
DRIVER_ARGUMENTS = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri"}


# U+FFFD for invalid bytes: the driver would raise an error that quotes the value, a prompt. Called for each text, 1,000
# times for a page of a hundred rows, so it is no function of Python, which would be slower.
DECODE = methodcaller("decode", "utf-8", "replace")


class SQLite(SQLiteSQL, SQLiteSchema, SQLiteDiagnostics, SQLiteSpace, SQLiteWakeups, FTS5Search):
    """SQLite through Python's sqlite3: one file, many readers, one writer at a time."""

    name = "sqlite"
    replication = None

    @property
    def backups(self) -> SQLiteBackups:
        return SQLiteBackups(translate)

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
            return url.set(database=uri_of(path_of(url))).update_query_dict({"uri": "true"})
        if unknown := url.query.keys() - DRIVER_ARGUMENTS:
            # SQLAlchemy would ignore such a parameter: mode=ro would open the file for writing.
            name = min(unknown)
            raise DatabaseURLError(f"To set {name}, write the database URL as sqlite:///file:PATH?{name}=….")
        # Absolute, because after a chdir() new connections of the pool would open another file.
        return url.set(database=os.path.abspath(name))

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        module = load_module(options.sqlite_module)
        engine = create_engine(
            url,
            module=module,
            echo=options.echo,
            hide_parameters=True,
            poolclass=ConnectionPool,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            connect_args={"timeout": options.busy_timeout, "check_same_thread": False},
        )
        replaces_checkpoints = not is_memory(url) and has_wal_reset_bug(module.sqlite_version_info)
        self._configure_connections(engine, url, options, replaces_checkpoints)
        self._begin_transactions(engine, url)
        if replaces_checkpoints:
            Checkpoints(engine)
        return engine

    def _configure_connections(
        self, engine: Engine, url: URL, options: EngineOptions, replaces_checkpoints: bool
    ) -> None:
        def configure(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # _begin_transactions() emits BEGIN
            connection.text_factory = DECODE
            connection.create_function("ltrim", 2, trim_or_fold, deterministic=True)
            connection.create_function("compare_json_number", 3, compare_json_number, deterministic=True)
            connection.create_aggregate("collect_numbers", 1, CollectNumbers)
            connection.execute("PRAGMA foreign_keys = ON")
            # trusted_schema stays ON: when OFF, SQLite before 3.43 refuses FTS5 in triggers, which keep the search
            # index up to date. See ADR 21.
            connection.execute(f"PRAGMA synchronous = {options.synchronous}")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA cache_size = -65536")
            if not is_memory(url):
                connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_BYTES}")
            if replaces_checkpoints:
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                # The path as SQLite resolved it: the URL may name a symbolic link.
                record.info["wal"] = connection.execute("PRAGMA database_list").fetchone()[2] + "-wal"
                record.info["changes"] = connection.total_changes

        watch(engine, url, configure)

        @event.listens_for(engine, "checkout")
        def disable_driver_begin(connection: Any, record: Any, proxy: Any) -> None:
            # SQLAlchemy turns the driver's BEGIN on again when a connection that used AUTOCOMMIT is returned.
            connection.isolation_level = None

    def _begin_transactions(self, engine: Engine, url: URL) -> None:
        """Emit BEGIN IMMEDIATE before the first write of a transaction, BEGIN before a read-only one (ADR 2).

        By events of the dialect: for events of the engine each Connection looks up its listeners, 20 µs a session.
        """
        has_snapshots = not is_memory(url)

        @event.listens_for(engine, "do_execute")
        @event.listens_for(engine, "do_executemany")
        def begin(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
            driver = cursor.connection
            refuse_inherited(driver)
            if driver.in_transaction or context.execution_options.get("isolation_level") == "AUTOCOMMIT":
                return
            is_read_only = context.execution_options.get("read_only", False)
            if is_read_only and has_snapshots and keyword_of(statement) != "PRAGMA":
                driver.execute("BEGIN")
            elif is_write(statement, context):
                # Not before the first read: a session that only reads must not take the write lock. Not a plain BEGIN:
                # of 400 transactions that read before they wrote, 292 failed with SQLITE_BUSY_SNAPSHOT.
                driver.execute("BEGIN IMMEDIATE")

        @event.listens_for(engine, "do_execute_no_params")
        def begin_without_parameters(cursor: Any, statement: str, context: Any) -> None:
            begin(cursor, statement, (), context)

    def is_present(self, url: URL) -> bool:
        return is_memory(url) or is_present(url)

    def create_database(self, url: URL) -> None:
        if not is_memory(url):
            create(url)

    def explain(self, url: URL) -> str | None:
        return None if is_memory(url) else explain(path_of(url))

    def open_anchor(self, url: URL, options: EngineOptions) -> AnchorConnection | None:
        """Return a connection that keeps a memory database alive, or None for a file."""
        if not is_memory(url):
            return None
        module = load_module(options.sqlite_module)
        anchor: AnchorConnection = module.connect(f"{url.database}?vfs={MEMORY_VFS}", uri=True, check_same_thread=False)
        return anchor

    def read_only(self, bind: Bind) -> Bind:
        return bind.execution_options(read_only=True)

    def create_migration_engine(self, url: URL, options: EngineOptions) -> Engine:
        module = load_module(options.sqlite_module)
        engine = create_engine(
            url,
            module=module,
            hide_parameters=True,
            poolclass=NullPool,
            connect_args={"timeout": MIGRATION_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )

        def configure(connection: Any, record: Any) -> None:
            connection.isolation_level = None
            connection.create_function("ltrim", 2, trim_or_fold, deterministic=True)
            # With foreign keys on, dropping the old table of a rebuild silently deletes the rows that refer to it.
            connection.execute("PRAGMA foreign_keys = OFF")
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                # Only possible before the first transaction, and before the change to WAL (ADR 27).
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            if has_wal_reset_bug(module.sqlite_version_info):
                connection.execute("PRAGMA wal_autocheckpoint = 0")

        watch(engine, url, configure)
        return engine

    def lock_migrations(self, connection: Connection, options: EngineOptions) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def prepare_file(self, connection: Connection) -> None:
        if is_memory(connection.engine.url):
            return
        use_wal(connection)

    def check_file(self, engine: Engine) -> None:
        require_wal(engine)

    def translate(self, error: BaseException, *, phase: Phase, is_disconnect: bool) -> StorageError | None:
        return translate(error)

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        return None  # without AUTOINCREMENT, SQLite generates the highest key plus one

    def check_integrity(self, session: Session) -> list[str]:
        try:
            messages = session.scalars(text(f"PRAGMA integrity_check({INTEGER_LIMIT})")).all()
        except CorruptError:
            return ["the file is too damaged for an integrity check"]
        return [line for line in messages if line != "ok" and not CHECKED_ELSEWHERE.match(line)]
