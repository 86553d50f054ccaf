"""The size of an SQLite file: measure it, return unused pages in steps, rebuild it, empty its log."""

import os
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from .sqlite_files import is_memory, path_of

INCREMENTAL: Final = 2  # https://sqlite.org/pragma.html#pragma_auto_vacuum


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

    def empty_log(self, connection: Connection) -> None:
        # Without waiting: a checkpoint that waits for readers makes every writer wait too.
        timeout = _read(connection, "busy_timeout")
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        try:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {timeout}")


def _read(connection: Connection, pragma: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one())
