"""What a backup of a database is, and what each database system must be able to do with one."""

from pathlib import Path
from typing import NamedTuple, Protocol

from sqlalchemy import Engine


class Contents(NamedTuple):
    """What a database or a backup holds: its revision, the rows of each table, and one checksum of all of them."""

    revision: str | None
    row_counts: dict[str, int]
    checksum: str


class BackupDialect(Protocol):
    """How a database is written into one file and restored from it."""

    suffix: str

    def recognizes(self, path: Path) -> bool:
        """Tell whether the file at `path` has the format of this dialect."""

    def write(self, engine: Engine, path: Path) -> Contents:
        """Write one consistent moment of the database into `path`, a new file, and return what that moment held."""

    def read(self, path: Path) -> Contents:
        """Return what the backup at `path` holds, after checking its structure. Raises BackupError for a bad one."""

    def restore(self, engine: Engine, path: Path) -> Path | None:
        """Replace the contents of the database with those of a backup, all or nothing, while others have it open.

        Return the folder of the files that were moved aside because they were too damaged to be opened, or None.
        """
