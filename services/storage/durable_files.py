"""Files that are complete when they have their name, and that survive a power failure.

Never for the file of an open database: only SQLite may open that, see ADR 28.
"""

import os
from pathlib import Path


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
