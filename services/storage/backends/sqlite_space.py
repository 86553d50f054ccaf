"""The size of an SQLite file: measure it, return unused pages in steps, rebuild it, write its log into it."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy import Connection

from ..errors import BusyError
from .sqlite_errors import translate
from .sqlite_files import is_memory, path_of
from .sqlite_wal import CHECKPOINT_BYTES, write_lock

INCREMENTAL: Final = 2  # https://sqlite.org/pragma.html#pragma_auto_vacuum
LOCK_SECONDS: Final = 1.0  # for one attempt to write the log; whoever waits for the write lock blocks nobody


class SQLiteSpace:
    """The space that an SQLite file takes; see SpaceDialect."""

    def measure_space(self, connection: Connection) -> tuple[int, int]:
        pages, unused, size = (_read(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        return pages * size, unused * size

    def measure_log(self, connection: Connection) -> int | None:
        if is_memory(connection.engine.url):
            return None
        try:
            return os.stat(f"{path_of(connection.engine.url)}-wal").st_size  # harmless: it opens nothing
        except FileNotFoundError:
            return 0

    def release_pages(self, connection: Connection, count: int) -> bool:
        if _read(connection, "auto_vacuum") != INCREMENTAL:
            return False
        for _ in range(min(count, _read(connection, "freelist_count"))):
            # One page each: the driver fetches no further than that, whatever number the PRAGMA names.
            connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
        return _read(connection, "freelist_count") > 0

    def vacuum(self, connection: Connection, tables: Sequence[str], *, full: bool) -> None:
        if full:
            connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
            connection.exec_driver_sql("VACUUM")

    def write_log(self, connection: Connection) -> bool:
        engine = connection.engine
        if is_memory(engine.url):
            return True
        try:
            with write_lock(engine, connection.connection.dbapi_connection, wait_seconds=LOCK_SECONDS):
                _, pages, written = connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one()
        except engine.dialect.loaded_dbapi.Error as error:
            translated = translate(error)
            if isinstance(translated, BusyError):
                return False
            raise (translated or error) from error
        size = self.measure_log(connection)
        if pages == written and size is not None and size > CHECKPOINT_BYTES:
            # The next commit starts the log again, and journal_size_limit cuts it then.
            with suppress(BusyError):
                connection.exec_driver_sql(f"PRAGMA user_version = {_read(connection, 'user_version')}")
        return bool(pages == written)


def _read(connection: Connection, pragma: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one())
