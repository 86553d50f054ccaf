"""What migrations and the check of a schema need to know of a database system beyond SQLAlchemy's inspector."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import URL, Connection

# Called with a table and a column, returns the SQL expression that fills the column in existing rows. Raises KeyError
# if the column may stay NULL.
Fill = Callable[[str, str], str]
REFUSES_INSERTS: Final = (
    "is not this library's, may not be NULL and has no default, so every insert fails: give it a default, let it be "
    "NULL, or drop it; the repair lets it be NULL"
)


class Difference(NamedTuple):
    """An object of the schema that is not as the revisions create it, in words."""

    kind: str
    name: str
    problem: str
    is_kept: bool = False  # something that others added to an object of ours, and that repairs keep
    loss: str = ""  # what is so after the repair, in words, if only a backup has what was lost

    @property
    def subject(self) -> str:
        """What it is about, such as "column generations.status"."""
        return f"{self.kind} {self.name}"

    def __str__(self) -> str:
        return f"the {self.subject} {self.problem}"


def lost_table(name: str) -> Difference:
    """Return the difference for a table that is missing."""
    return _lost("table", name, "rows", "empty")


def lost_column(table: str, column: str, fill: Fill) -> Difference:
    """Return the difference for a column that is missing and that is not computed."""
    try:
        value = fill(table, column)
    except KeyError:
        value = "NULL"
    contents = "with what other columns tell" if "(" in value else f"with {value} in every row"
    return _lost("column", f"{table}.{column}", "values", contents)


def _lost(kind: str, name: str, what: str, contents: str) -> Difference:
    problem = f"is missing, and its {what} with it: the repair creates it again {contents}; a backup has its {what}"
    return Difference(
        kind, name, problem, loss=f"was missing, and was created again {contents}; a backup has its {what}"
    )


class Repair(NamedTuple):
    """Statements that repair one or more differences; none where only a person can decide."""

    differences: tuple[Difference, ...]
    statements: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """Whether it undoes what others added, so that only they may run it."""
        return any(difference.is_kept for difference in self.differences)


class Obstacle(NamedTuple):
    """What a statement of a migration met, in words; `exists` if it has a name that the statement needed."""

    name: str
    exists: bool


class EngineDiagnostics(NamedTuple):
    """What the database system says about itself; None for what it does not have or this user may not know."""

    version: str
    known_bugs: tuple[str, ...]
    journal_mode: str | None
    wal_bytes: int | None
    checkpoint_age_seconds: float | None
    disk_free_bytes: int | None


class FileMode(NamedTuple):
    """A file or folder that others may read or change, and the mode that it should have."""

    path: Path
    mode: int
    wanted: int
    is_folder: bool


class LowSequence(NamedTuple):
    """A sequence whose next key is in the table already, and the statement that advances it."""

    name: str
    statement: str


class DiagnosticsDialect(Protocol):
    """What a check reports beside the schema and the rows."""

    def read_diagnostics(self, connection: Connection) -> EngineDiagnostics:
        """Return what the database system says about itself and the database."""

    def find_low_sequences(self, connection: Connection) -> list[LowSequence]:
        """Return the sequences that would give a key a second time, as after a restore of rows alone."""

    def find_open_files(self, url: URL) -> list[FileMode]:
        """Return the files of the database that other users of the host may read, or its folder if they may write."""


class SchemaDialect(Protocol):
    """What migrations need to know of a database beyond SQLAlchemy's inspector."""

    row_number: str  # SQL for a number that no other row of the table has
    current_time: str  # SQL for the current time as it is stored

    def own_schema(self, connection: Connection) -> str | None:
        """Return the schema that holds, or is to hold, this library's tables; None on databases without schemas."""

    def ignored_tables(self, connection: Connection) -> set[str]:
        """Return the tables that extensions and replication tools keep in every database."""

    def find_obstacle(self, error: Any) -> Obstacle | None:
        """Return what a failed statement of a migration met, or None if it failed for another reason."""

    def empty_schema(self, connection: Connection) -> AbstractContextManager[Connection]:
        """Return a connection to an empty schema that exists until the end of the block."""

    def read_schema(self, connection: Connection) -> Any:
        """Return every object of the schema, for compare_schemas() and drop_derived()."""

    def compare_schemas(self, expected: Any, present: Any, fill: Fill) -> list[Repair]:
        """Return the repairs of what differs from `expected`, in the order in which to run them."""

    def drop_derived(self, expected: Any, present: Any, *, only_equal: bool) -> list[str]:
        """Return the statements that drop our objects which stay when our tables are dropped.

        With `only_equal` only those that are exactly as expected.
        """

    def write_script(self, statements: list[str], schema: str | None) -> str:
        """Return a script that runs the statements of repairs in one transaction, with the driver or a shell."""

    def run_repair(self, connection: Connection, statements: tuple[str, ...]) -> None:
        """Execute the statements of a repair in the transaction of a migration."""
