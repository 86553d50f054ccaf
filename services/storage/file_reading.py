"""Open files that are not a database in use: only SQLite may open that.

Closing another descriptor of it would drop SQLite's locks in this process, and then acknowledged commits are lost
(https://sqlite.org/howtocorrupt.html, 2.2). See ADR 28.
"""

import os
from errno import EBUSY
from io import BufferedReader
from pathlib import Path
from typing import Final

COMPANIONS: Final = ("-wal", "-shm", "-journal")  # the files that SQLite keeps beside a database in use


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading bytes. Raises OSError if that is impossible, and for a database that is in use."""
    name = os.fspath(path)
    for suffix in COMPANIONS:
        if os.path.exists(f"{name}{suffix}") or (name.endswith(suffix) and os.path.exists(name.removesuffix(suffix))):
            raise OSError(EBUSY, "it is a database in use, which only SQLite may open", name)
    return Path(path).open("rb")
