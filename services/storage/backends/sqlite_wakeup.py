"""Tells when another connection has committed to an SQLite database: PRAGMA data_version, and on Linux inotify. ADR 35.

inotify watches the folder of the file, so nothing but SQLite opens the file itself: closing another descriptor of it
would drop this process's locks (https://sqlite.org/howtocorrupt.html, 2.2).
"""

import ctypes
import math
import os
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import URL, Dialect, Select, create_engine

from ..settings import EngineOptions
from .sqlite_files import is_memory, open_url
from .sqlite_open_files import close_connection, load_module, open_connection
from .wakeup import NEVER_SECONDS, ChangeSource, Interruptible, Ticker

# inotify reports the write to the -wal, before the commit is visible: looking only then had a median of 58 ms. Most
# commits are visible within 1 ms, one that waits for a busy disk within 64 ms. The thread sees them 0 to 25 % later.
PAUSES: Final = tuple(0.00015 * 1.25**number for number in range(21))

# Without inotify the interval of the looks is a 250th of the idle time, within these limits.
SHORTEST_INTERVAL: Final = 0.008
LONGEST_INTERVAL: Final = 0.05
INTERVALS_PER_IDLE_TIME: Final = 250

BUSY_SECONDS: Final = 1.0  # only without WAL do readers wait
IN_MODIFY: Final = 0x2  # <sys/inotify.h>
EVENT: Final = struct.Struct("iIII")  # wd, mask, cookie, and the length of the name that follows
EVENT_BYTES: Final = 65_536


class SQLiteWakeups:
    """The wake-ups of SQLite; see WakeupDialect."""

    def open_due_source(self, url: URL, options: EngineOptions) -> ChangeSource:
        if not options.wakeup:
            return Ticker(NEVER_SECONDS)
        return self.open_commit_source(url, options)

    def open_commit_source(self, url: URL, options: EngineOptions) -> ChangeSource:
        dialect = create_engine("sqlite://", module=load_module(options.sqlite_module)).dialect
        return SQLiteChanges(dialect, url)

    def announce_due(self) -> None:
        return None


class SQLiteChanges(Interruptible):
    """The changes of one database. Raises an error of the driver if it cannot be opened."""

    def __init__(self, dialect: Dialect, url: URL) -> None:
        arguments, parameters = dialect.create_connect_args(url if is_memory(url) else open_url(url))
        settings = {**parameters, "timeout": BUSY_SECONDS, "check_same_thread": False}
        self._connection = open_connection(dialect, url, arguments, settings)
        try:
            self._version = self._read_version()
            path = self._connection.execute("PRAGMA database_list").fetchone()[2]  # with symbolic links resolved
        except BaseException:
            close_connection(self._connection)
            raise
        self._names = {os.fsencode(os.path.basename(path) + suffix) for suffix in ("", "-wal", "-journal")}
        self._inotify = _watch_folder(os.path.dirname(path)) if path and not is_memory(url) else None
        super().__init__(*([] if self._inotify is None else [self._inotify]))
        self.pauses: Sequence[float] = () if self._inotify is None else PAUSES
        self._dialect = dialect
        self._queries: dict[Select[Any], str] = {}

    def wait(self, seconds: float, idle_seconds: float) -> bool:
        if self._inotify is not None:
            return self.wait_for_descriptors(seconds) and self._read_events(self._inotify)
        interval = min(max(SHORTEST_INTERVAL, idle_seconds / INTERVALS_PER_IDLE_TIME), LONGEST_INTERVAL)
        for _ in range(math.ceil(seconds / interval)):
            self.wait_for_descriptors(interval)
            if self.is_interrupted:
                return False
            if self._read_version() != self._version:
                return True
        return False

    def has_changed(self) -> bool:
        previous, self._version = self._version, self._read_version()
        return bool(self._version != previous)

    def has_row(self, query: Select[Any]) -> bool:
        if query not in self._queries:
            compiled = query.compile(dialect=self._dialect, compile_kwargs={"literal_binds": True})
            self._queries[query] = str(compiled)
        return self._connection.execute(self._queries[query]).fetchone() is not None

    def close(self) -> None:
        self.close_descriptors()
        if self._inotify is not None:
            os.close(self._inotify)
        close_connection(self._connection)

    def _read_version(self) -> Any:
        """Return a number that is another one after each commit of another connection."""
        return self._connection.execute("PRAGMA data_version").fetchone()[0]

    def _read_events(self, inotify: int) -> bool:
        """Return whether the events are about the database: other files may be in its folder."""
        data, start, is_ours = os.read(inotify, EVENT_BYTES), 0, False
        while start < len(data):
            length = EVENT.unpack_from(data, start)[3]
            start += EVENT.size + length
            is_ours = is_ours or data[start - length : start].rstrip(b"\0") in self._names
        return is_ours


def _watch_folder(folder: str) -> int | None:
    """Return a descriptor of inotify that is readable once a file in `folder` is written; None where there is none.

    Through libc, because Python has no interface to it (https://man7.org/linux/man-pages/man7/inotify.7.html).
    """
    if sys.platform != "linux":
        return None
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))  # the values of IN_NONBLOCK and IN_CLOEXEC
        if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_MODIFY) >= 0:
            return descriptor
        if descriptor >= 0:
            os.close(descriptor)
    return None
