"""What SQLite and the file system say about a database: version, log, disk space, and who may read the files."""

import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection

from .schema_dialect import EngineDiagnostics, FileMode, LowSequence
from .sqlite_files import is_memory, path_of
from .sqlite_wal import has_wal_reset_bug

WAL_RESET_BUG = "WAL-reset: a checkpoint that coincides with a commit may corrupt the file; the library avoids it"


class SQLiteDiagnostics:
    """The diagnostics dialect of SQLite; see DiagnosticsDialect."""

    def read_diagnostics(self, connection: Connection) -> EngineDiagnostics:
        module: Any = connection.dialect.loaded_dbapi
        mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
        bugs = (WAL_RESET_BUG,) if has_wal_reset_bug(module.sqlite_version_info) else ()
        version = f"SQLite {module.sqlite_version}"
        if is_memory(connection.engine.url):
            return EngineDiagnostics(version, (), mode, None, None, None)
        path = Path(os.path.realpath(path_of(connection.engine.url)))
        wal_bytes = _size(path.with_name(f"{path.name}-wal"))
        # In WAL mode only a checkpoint writes the file itself.
        age = max(0.0, time.time() - path.stat().st_mtime) if wal_bytes else 0.0
        return EngineDiagnostics(version, bugs, mode, wal_bytes, age, shutil.disk_usage(path.parent).free)

    def find_open_files(self, url: URL) -> list[FileMode]:
        if is_memory(url):
            return []
        path = Path(os.path.realpath(path_of(url)))
        files = (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"))
        found = [
            FileMode(file, mode, 0o600, is_folder=False)
            for file in files
            if (mode := _mode(file)) is not None and mode & 0o077
        ]
        mode = _mode(path.parent)
        # Others who may only list the folder can do no harm; with the sticky bit they cannot replace the file either.
        if mode is not None and mode & 0o022 and not mode & stat.S_ISVTX:
            found.append(FileMode(path.parent, mode, 0o700, is_folder=True))
        return found

    def find_low_sequences(self, connection: Connection) -> list[LowSequence]:
        return []  # it generates the highest key plus one


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
