"""Backups of SQLite: a copy of one moment, made and restored by SQLite itself.

SQLite alone opens a live file. Closing any other descriptor of it would drop the POSIX locks of this process, and then
acknowledged commits are lost (https://sqlite.org/howtocorrupt.html, 2.2).
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Engine

from ..durable_files import flush, partial_path
from ..errors import BackupError, BusyError, CorruptError, ReadOnlyError, StorageError, UnreachableError
from .backup_dialect import Contents
from .sqlite_files import explain, is_memory, path_of

CHECKSUM_BYTES: Final = 16
ROWS_AT_ONCE: Final = 1_000
Translate = Callable[[BaseException], StorageError | None]

# Tables with rows of their own: not virtual ones, nor those in which a virtual table keeps its index.
TABLES: Final = """
    SELECT name FROM sqlite_master AS t WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    AND sql NOT LIKE 'CREATE VIRTUAL%' AND NOT EXISTS (
        SELECT 1 FROM sqlite_master AS v WHERE v.sql LIKE 'CREATE VIRTUAL%'
        AND substr(t.name, 1, length(v.name) + 1) = v.name || '_'
    ) ORDER BY name
"""


class SQLiteBackups:
    """The backups of SQLite; see BackupDialect. `translate` gives our error for one of the driver."""

    suffix = ".db"

    def __init__(self, translate: Translate) -> None:
        self._translate = translate

    def recognizes(self, path: Path) -> bool:
        with closing(_open_immutable(sqlite3, path)) as connection:
            try:
                connection.execute("PRAGMA schema_version")
            except sqlite3.DatabaseError as error:
                return error.sqlite_errorname != "SQLITE_NOTADB"
        return True

    def write(self, engine: Engine, path: Path) -> Contents:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with self._errors(live=engine.url), closing(engine.raw_connection()) as pooled:
            source: Any = pooled.driver_connection
            source.execute("BEGIN")  # the copy is of the moment of the first read
            try:
                contents = _read_contents(source)
                with closing(_driver(engine).connect(path)) as target:
                    # The file counts only once it is complete: no journal, and one fsync at the end.
                    target.execute("PRAGMA journal_mode = OFF")
                    target.execute("PRAGMA synchronous = OFF")
                    source.backup(target, progress=_give_up_when_busy(source))
            finally:
                source.execute("ROLLBACK")
        return contents

    def read(self, path: Path) -> Contents:
        if os.path.exists(f"{path}-wal") and os.stat(f"{path}-wal").st_size:
            raise BackupError(
                f"{path} is a database in use, or the copy of one: a -wal file is beside it. Make a backup of it."
            )
        # No -wal, so nobody writes; immutable keeps SQLite from making a -wal and -shm beside the backup.
        with self._errors(path), closing(_open_immutable(sqlite3, path)) as backup:
            backup.text_factory = bytes
            found = [line.decode(errors="replace") for (line,) in backup.execute("PRAGMA integrity_check(5)")]
            if found != ["ok"]:
                raise BackupError(f"{path} is damaged ({found[0]}): use another backup")
            if broken := backup.execute("PRAGMA foreign_key_check").fetchone():
                table = broken[0].decode()
                raise BackupError(f"{path} has a row of {table} that refers to a missing row: use another backup")
            return _read_contents(backup)

    def restore(self, engine: Engine, path: Path) -> Path | None:
        try:
            self._restore_into(engine, path)
            return None
        except CorruptError:
            engine.pool.dispose()
            return self._restore_aside(path_of(engine.url), path)

    def _restore_into(self, engine: Engine, path: Path) -> None:
        with self._errors(live=engine.url), closing(engine.raw_connection()) as pooled:
            target: Any = pooled.driver_connection
            target.execute("SELECT count(*) FROM sqlite_master")  # recovers what a crash left in the -wal
            with closing(_open_immutable(_driver(engine), path)) as source:
                # One step, one transaction: readers go on with what they see, a kill leaves the old contents.
                source.backup(target, progress=_give_up_when_busy(target))

    def _restore_aside(self, live: Path, path: Path) -> Path:
        """Move a database that cannot be opened into a folder beside it, and put a copy of the backup in its place."""
        aside = live.with_name(f"{live.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
        partial = partial_path(live)
        with self._errors(path):
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                with closing(_open_immutable(sqlite3, path)) as source, closing(sqlite3.connect(partial)) as target:
                    source.backup(target)
                flush(partial)
                aside.mkdir(mode=0o700)
                # The -wal first: without the database nobody applies it, and a database without it is complete.
                for name in (f"{live.name}-wal", f"{live.name}-shm", live.name):
                    if (member := live.with_name(name)).exists():
                        member.rename(aside / name)
                partial.rename(live)
                flush(live.parent)
            finally:
                partial.unlink(missing_ok=True)
        return aside

    @contextmanager
    def _errors(self, path: Path | None = None, *, live: URL | None = None) -> Iterator[None]:
        """Raise our errors for those of the driver; those about the backup `path` name it."""
        try:
            yield
        except Exception as error:
            known = self._translate(error)
            if path is not None and isinstance(known, CorruptError):
                raise BackupError(
                    f"{path} is not a sound SQLite database ({error}): use another backup", orig=error
                ) from error
            if live is not None and isinstance(known, (ReadOnlyError, UnreachableError)) and not is_memory(live):
                raise type(known)(explain(path_of(live)) or str(known), orig=error) from error
            raise (known or error) from error


def _driver(engine: Engine) -> Any:
    """Return the driver module of the engine: two copies of SQLite on one file drop each other's locks."""
    return engine.dialect.dbapi


def _open_immutable(driver: Any, path: Path) -> Any:
    return driver.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)


def _give_up_when_busy(connection: Any) -> Callable[[int, int, int], None]:
    """Return a progress function that ends a wait for other writers: the driver alone would wait for ever."""
    deadline = monotonic() + connection.execute("PRAGMA busy_timeout").fetchone()[0] / 1000

    def check(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and monotonic() > deadline:
            raise BusyError

    return check


def _read_contents(connection: Any) -> Contents:
    """Return what a connection sees; every value counts in the checksum as SQLite stores it."""
    factory, connection.text_factory = connection.text_factory, bytes
    try:
        tables = [name.decode() for (name,) in connection.execute(TABLES)]
        counts: dict[str, int] = {}
        digest = blake2b(digest_size=CHECKSUM_BYTES)
        for table in tables:
            counts[table] = 0
            digest.update(table.encode())
            name = table.replace('"', '""')
            cursor = connection.execute(f'SELECT * FROM "{name}" NOT INDEXED')
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                counts[table] += len(rows)
                for row in rows:
                    digest.update(repr(row).encode())
        revision = None
        if "alembic_version" in tables:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            revision = None if found is None else found[0].decode()
        return Contents(revision, counts, digest.hexdigest())
    finally:
        connection.text_factory = factory
