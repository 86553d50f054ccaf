"""The folder of rendered files: which files rows name, which ones may be deleted, deleting and opening them.

Paths are compared as they are on disk, after following symbolic links; a file is only deleted where no link is on its
path. The database's own files are left out, because only SQLite may open them.
"""

import errno
import os
import stat
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select

from ..engine import Storage
from ..file_reading import COMPANIONS
from ..models import Generation

ROWS_AT_ONCE: Final = 2_000
FOLDERS_REMEMBERED: Final = 4_096
# How long before its commit a transaction may have set the created_at of a row.
LONGEST_INSERT: Final = timedelta(minutes=1)
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY


class Outputs:
    """A folder with the files of generations. Raises ValueError naming `field` if it is not a folder."""

    def __init__(self, field: str, folder: str | os.PathLike[str], storage: Storage) -> None:
        if not os.path.isdir(folder):
            raise ValueError(f"{field} must be an existing folder")
        self.root = os.path.realpath(folder)
        self.given = os.path.abspath(folder)
        self._here = os.getcwd()
        self._real_folder = lru_cache(maxsize=FOLDERS_REMEMBERED)(os.path.realpath)
        self._database = set(database_files(storage))
        self._names = [array("Q") for _ in range(256)]  # hashes of the paths that rows name, by their first byte
        self._pruned: Counter[int] = Counter()
        self._since: Any = None

    def read_names(self, storage: Storage, visit: Callable[[Any], None] | None = None) -> None:
        """Read the path of every row, 8 bytes of memory each; call `visit` for each row."""
        columns = (Generation.id, Generation.file_path, Generation.status)
        known = (Generation.file_size_bytes, Generation.file_sha256, Generation.file_missing_since)
        page = select(*columns, *known).order_by(Generation.id).limit(ROWS_AT_ONCE)
        with storage.session(read_only=True) as session:
            self._since = session.execute(select(storage.backend.now())).scalar_one() - LONGEST_INSERT
        last = ""
        while True:
            with storage.session(read_only=True) as session:  # short, so that SQLite's log can be emptied
                rows = session.execute(page.where(Generation.id > last)).all()
            if not rows:
                break
            for row in rows:
                for name in self._names_of(row.file_path):
                    self._names[name >> 56].append(name)
                if visit is not None:
                    visit(row)
            last = rows[-1].id
        self._names = [array("Q", sorted(names)) for names in self._names]

    def read_new_names(self, storage: Storage) -> set[str]:
        """Return the real paths that rows name which were created since read_names() began, or just before."""
        recent = select(Generation.file_path).where(Generation.created_at >= self._since)
        with storage.session(read_only=True) as session:
            return {real for path in session.scalars(recent) for real in self._real_paths(path)}

    def contains(self, file: str) -> bool:
        """Return whether a real path is below the folder."""
        return file.startswith(self.root.rstrip(os.sep) + os.sep)

    def is_named(self, file: str) -> bool:
        """Return whether a row names the file at a real path."""
        return self._count(_hash(file)) > 0

    def choose(self, paths: Sequence[str]) -> list[str | None]:
        """Return for the path of each deleted row the file to delete with it, None while another row names the file."""
        deleted: Counter[int] = Counter()
        files: list[str | None] = []
        for path in paths:
            deleted.update(self._names_of(path))
            file = self._deletable(path)
            if file is not None:
                name = _hash(file)
                if self._count(name) > self._pruned[name] + deleted[name]:
                    file = None
            files.append(file)
        return files

    def forget(self, paths: Sequence[str]) -> None:
        """Count the rows with these paths as deleted."""
        for path in paths:
            for name in self._names_of(path):
                if self._count(name) > 1:  # for any other name, no further row will ask
                    self._pruned[name] += 1

    def find(self, path: str) -> str | None:
        """Return the existing file that a row names, or None if there is none. Raises OSError if that is unknown."""
        for base in self._bases(path):
            try:
                candidate = os.path.join(base, path)
                os.stat(candidate)
                return candidate
            except (FileNotFoundError, NotADirectoryError, ValueError):
                continue
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:  # no file can have such a name
                    raise
        return None

    def spell(self, file: str, like: str) -> str:
        """Return the real path of a file below the folder, relative or absolute like the path `like` of its row."""
        relative = os.path.relpath(file, self.root)
        if not os.path.isabs(like):
            started_here = os.path.normpath(os.path.join(self._here, like))
            is_below = f"{started_here}/".startswith((f"{self.given}/", f"{self.root}/"))
            return os.path.relpath(file, os.path.realpath(self._here)) if is_below else relative
        return os.path.join(self.given, relative) if like.startswith(f"{self.given}/") else file

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield the real path and the size of each file below the folder; follow no symbolic link."""
        folders = [self.root]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and not self._is_database(entry.stat()):
                        yield entry.path, entry.stat().st_size

    def measure(self, file: str) -> int:
        """Return the size of a file that choose() returned. Raises OSError."""
        return os.lstat(file).st_size

    def delete(self, file: str) -> int:
        """Delete a file that choose() returned and return its size. Raises OSError, also if a link is on its path."""
        with self._folder_of(file) as (folder, name):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or self._is_database(found):
                raise FileNotFoundError(file)
            os.unlink(name, dir_fd=folder)
            return found.st_size

    def open(self, path: str) -> int | None:
        """Open the file that a row names for reading; None if it is not a file below the folder without any link.

        Returns a file descriptor. Raises OSError if the file cannot be read.
        """
        file = self._deletable(path)
        if file is None:
            return None
        try:
            with self._folder_of(file) as (folder, name):
                # Before it is opened: closing a descriptor of the database would drop this process's locks.
                if self._is_database(os.stat(name, dir_fd=folder, follow_symlinks=False)):
                    return None
                return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def _folder_of(self, file: str) -> Iterator[tuple[int, str]]:
        """Open the folder of a real path without following a link; yield its descriptor and the name of the file."""
        *folders, name = os.path.relpath(file, self.root).split(os.sep)
        inner = os.open(self.root, FOLDER)
        try:
            for folder in folders:
                outer, inner = inner, os.open(folder, FOLDER | os.O_NOFOLLOW, dir_fd=inner)
                os.close(outer)
            yield inner, name
        finally:
            os.close(inner)

    def _bases(self, path: str) -> list[str]:
        """Return the folders in which a path may start: a relative one in this folder or in the current one."""
        return [""] if os.path.isabs(path) else list(dict.fromkeys((self.root, self._here)))

    def _real_paths(self, path: str) -> list[str]:
        """Return the real paths that the path of a row may mean; a link at its end is not followed."""
        reals = []
        for base in self._bases(path):
            folder, name = os.path.split(os.path.join(base, path))
            try:
                real = os.path.join(self._real_folder(folder), name)
                reals.append(os.path.realpath(real) if name in ("", ".", "..") else real)
            except ValueError:  # a NUL character, from another program
                continue
        return reals

    def _names_of(self, path: str) -> set[int]:
        reals = self._real_paths(path)
        targets = [os.path.realpath(real) for real in reals if os.path.islink(real)]
        return {_hash(real) for real in (*reals, *targets)}

    def _deletable(self, path: str) -> str | None:
        """Return the real path of the file that a row names, if it is a file below the folder without any link."""
        for base, real in zip(self._bases(path), self._real_paths(path), strict=False):
            literal = os.path.normpath(os.path.join(base, path))
            for start in (self.given, self.root):
                if literal.startswith(f"{start}{os.sep}"):
                    literal = os.path.join(self.root, os.path.relpath(literal, start))
                    break
            if literal != real or not self.contains(real):
                continue
            try:
                found = os.lstat(real)
            except OSError:
                continue
            if stat.S_ISREG(found.st_mode) and not self._is_database(found):
                return real
        return None

    def _count(self, name: int) -> int:
        names = self._names[name >> 56]
        return bisect_right(names, name) - bisect_left(names, name)

    def _is_database(self, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) in self._database


def _hash(path: str) -> int:
    return int.from_bytes(blake2b(os.fsencode(path), digest_size=8).digest(), "big")


def database_files(storage: Storage) -> Iterator[tuple[int, int]]:
    """Yield the device and inode of the database file and of the files that SQLite keeps beside it."""
    for suffix in ("", *COMPANIONS):
        try:
            found = os.stat(f"{storage.url.database}{suffix}")
        except (OSError, ValueError):
            continue
        yield found.st_dev, found.st_ino


def is_database_file(path: Path, storage: Storage) -> bool:
    """Return whether `path` is a file of the database, which only SQLite may open (ADR 28)."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return False
    return (found.st_dev, found.st_ino) in set(database_files(storage))
