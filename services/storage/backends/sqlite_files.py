"""The file of an SQLite database: which one a URL names, how it is created, and why it cannot be opened.

Never opens an existing database: closing the descriptor would drop SQLite's locks
(https://sqlite.org/howtocorrupt.html, 2.2).
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from errno import ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from sqlalchemy import URL

from ..errors import UnreachableError

MEMORY_VFS: Final = "memdb"
ADVICE: Final = "check DATABASE_URL, the folder and its permissions"


def is_memory(url: URL) -> bool:
    """Return whether `url`, as returned by resolve_url(), is that of a memory database."""
    return url.query.get("vfs") == MEMORY_VFS


def path_of(url: URL) -> Path:
    """Return the absolute path of the file that `url` names, by a path or an SQLite URI (https://sqlite.org/uri.html)."""
    name = str(url.database)
    if name.startswith("file:"):
        name = name.removeprefix("file:").partition("#")[0]
        if name.startswith("//"):
            name = "/" + name[2:].partition("/")[2]  # the authority is empty or localhost
        name = os.fsdecode(unquote_to_bytes(name))
    return Path(os.path.abspath(name))


def uri_of(path: Path) -> str:
    """Return `path` as an SQLite URI."""
    return "file:" + quote(os.fsencode(path))


def open_url(url: URL) -> URL:
    """Return `url` as an SQLite URI that never creates the file: SQLite would make it readable for others."""
    mode = url.query.get("mode", "rwc")
    url = url.set(database=uri_of(path_of(url)))
    return url.update_query_dict({"uri": "true", "mode": "rw" if mode == "rwc" else mode})


def is_present(url: URL) -> bool:
    """Return whether the file exists. Raises UnreachableError if this user may not know."""
    path = path_of(url)
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR, ENAMETOOLONG):
            return False
        raise UnreachableError(explain(path), orig=error) from error
    return True


def create(url: URL) -> None:
    """Create the file if it is missing, mode 0600, and the folders above it, mode 0700.

    Creates the target of a symbolic link, but not the folder of the target. Creates nothing for a URI with mode=ro or
    mode=rw.
    """
    if url.query.get("mode", "rwc") != "rwc":
        return
    path = path_of(url)
    try:
        for folder in [folder for folder in reversed(path.parents) if not folder.exists()]:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)  # not parents=True, which gives this mode to the last folder only
        with suppress(FileExistsError):
            # Of the link's target: O_EXCL does not follow a link, and SQLite would make the file readable for others.
            os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        reason = _why_not_created(path) or error.strerror
        raise UnreachableError(f"{path} cannot be created, because {reason}: {ADVICE}.", orig=error) from error


def explain(path: Path) -> str | None:
    """Return a message that says why this process cannot open or write the file, or None if no reason is found."""
    reason = _why_not_opened(path)
    return reason and f"The database cannot be used, because {reason}: {ADVICE}."


def _why_not_created(path: Path) -> str | None:
    folders = [folder for folder in path.parents if os.path.lexists(folder)]
    if reason := _why_not_entered(folders):
        return reason
    if not os.access(folders[0], os.W_OK):
        return f"this user may not write in the folder {folders[0]}"
    if os.path.islink(path):
        return f"it is a link to {os.path.realpath(path)}, whose folder is missing"
    return None


def _why_not_opened(path: Path) -> str | None:
    if reason := _why_not_entered([folder for folder in path.parents if os.path.lexists(folder)]):
        return reason
    target = Path(os.path.realpath(path))
    if not os.path.lexists(path):
        return f"there is no file {path}" if path.parent.exists() else f"there is no folder {path.parent}"
    if not target.exists():
        return f"{path} is a link to {target}, which does not exist"
    if target.is_dir():
        return f"{path} is a folder"
    if not os.access(target, os.R_OK):
        return f"this user may not read {target}"
    if not os.access(target.parent, os.W_OK):
        return f"this user may not write in the folder {target.parent}, where SQLite keeps its -wal and -shm files"
    files = (target, *(target.with_name(f"{target.name}{suffix}") for suffix in ("-wal", "-shm")))
    closed = [file for file in files if file.exists() and not os.access(file, os.W_OK)]
    return f"this user may not write {closed[0]}" if closed else None


def _why_not_entered(folders: Iterable[Path]) -> str | None:
    for folder in reversed(list(folders)):
        if not os.path.isdir(folder):
            return f"{folder} is not a folder"
        if not os.access(folder, os.X_OK):
            return f"this user may not enter the folder {folder}"
    return None
