"""The write-ahead log (WAL) of an SQLite file: turned on at the first open, and kept small by checkpoints (ADR 3)."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, Engine, event

from ..errors import BusyError, ReadOnlyError
from .sqlite_errors import translate
from .sqlite_files import is_memory
from .sqlite_open_files import close_connection, open_connection

CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
RETRY_SECONDS: Final = 1.0  # between two attempts, while a reader keeps the log from becoming smaller

log = logging.getLogger("services.storage.backends")


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


def use_wal(connection: Connection) -> None:
    """Turn WAL on, which the file keeps. Raises BusyError if others use the file for longer than the busy timeout."""
    if is_memory(connection.engine.url):
        return
    while connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return  # even if the mode is still not WAL: some file systems do not support it
        except BusyError:
            # Changing the journal mode ignores the busy timeout; BEGIN EXCLUSIVE waits for it.
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
            connection.rollback()


def require_wal(engine: Engine) -> None:
    """Turn WAL on in a file that has lost it, such as a copy made by VACUUM INTO; log a warning if it stays off."""
    if is_memory(engine.url):
        return
    with engine.connect() as connection:
        mode = _read_mode(connection)
        if mode == "wal":
            return
        reason = "the file system does not support WAL"
        try:
            use_wal(connection)
            mode = _read_mode(connection)
        except (BusyError, ReadOnlyError) as error:
            reason = str(error)
    if mode != "wal":
        log.warning("the journal mode is %s: readers and writers wait for each other (%s)", mode, reason)


@contextmanager
def write_lock(engine: Engine, connection: Any, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the write lock with a connection of its own, so that a checkpoint of `connection` meets no commit (ADR 3).

    The checkpoint must be PASSIVE, which never waits: the other modes wait for readers while they hold the write lock,
    and become PASSIVE without that lock when another connection is writing. Raises the driver's error if others keep
    the lock for longer than `wait_seconds`.
    """
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    locker = open_connection(engine.dialect, engine.url, [path], {"timeout": wait_seconds})
    try:
        locker.isolation_level = None
        locker.execute("BEGIN IMMEDIATE")
        yield
        locker.execute("ROLLBACK")
    finally:
        close_connection(locker)


def _read_mode(connection: Connection) -> str:
    """Return the journal mode, asked of the driver alone: opening an up-to-date database logs a single statement."""
    driver: Any = connection.connection.dbapi_connection
    try:
        return str(driver.execute("PRAGMA journal_mode").fetchone()[0])
    except Exception as error:
        raise (translate(error) or error) from error


class Checkpoints:
    """Replaces the automatic checkpoints of `engine`, which are unsafe in an SQLite with the WAL-reset bug.

    A connection that has written checks the size of the log when it returns to the pool. The checkpoint holds the write
    lock, taken by a connection of its own, so that it cannot coincide with a commit. It waits for nobody: if another
    connection is writing, that one checks the size next; what a reader still needs stays in the log until later.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._attempted_size = 0
        self._retry_at = 0.0
        event.listen(engine, "checkin", self._checkin)

    def _checkin(self, connection: Any, record: Any) -> None:
        if connection is None or connection.total_changes == record.info["changes"]:
            return
        record.info["changes"] = connection.total_changes
        try:
            size = os.stat(record.info["wal"]).st_size
        except OSError:
            return
        if size <= CHECKPOINT_BYTES:
            self._attempted_size = 0
        elif not connection.in_transaction and self._is_due(size):
            self._checkpoint(connection, size)

    def _is_due(self, size: int) -> bool:
        return size >= self._attempted_size + CHECKPOINT_BYTES or monotonic() >= self._retry_at

    def _checkpoint(self, connection: Any, size: int) -> None:
        """Copy the log into the file, as far as readers permit. The next writer then starts the log again."""
        with (
            suppress(self._engine.dialect.loaded_dbapi.Error),  # best effort: the disk may be full
            write_lock(self._engine, connection),
        ):
            self._attempted_size, self._retry_at = size, monotonic() + RETRY_SECONDS
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
