"""Files that are complete when they have their name, and that survive a power failure.

Never for the file of an open database: only SQLite may open that, see ADR 28.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def partial_path(target: Path) -> Path:
    """Return where this process writes a file until it is complete."""
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def delete_partials(folder: Path) -> None:
    """Delete the partial files in a folder whose processes were killed."""
    for partial in folder.glob(".*.partial"):
        process = partial.name.split(".")[-2]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except (OSError, ValueError):
            continue


@contextmanager
def new_file(target: Path, *, overwrite: bool) -> Generator[IO[bytes]]:
    """Yield a file of mode 0600 that gets the name `target` at the end of the block, unless the block raises.

    Raises FileExistsError if the name is taken, unless `overwrite`; OSError if the file cannot be written.
    """
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(str(target))
    delete_partials(target.parent)
    partial = partial_path(target)
    partial.unlink(missing_ok=True)  # of a killed process that had this number: in a container numbers repeat
    try:
        with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b") as file:
            yield file
        publish(partial, target, overwrite=overwrite)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, target: Path, *, overwrite: bool) -> None:
    """Give a complete file its final name in the same folder. Raises FileExistsError if the name is taken."""
    flush(partial)
    if overwrite:
        partial.replace(target)
    else:
        os.link(partial, target)  # unlike a rename, it fails when another process has made the file meanwhile
    flush(target.parent)
