"""What a backend must answer, how an engine is opened, where a replica stands, and what counts as a write."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import (
    CTE,
    URL,
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    ExecutionContext,
    FromClause,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.orm import Session

from ..errors import StorageError
from ..models import Generation

if TYPE_CHECKING:
    from ..terms import Query, Term

READING = ("SELECT", "VALUES", "PRAGMA", "EXPLAIN", "SHOW")
TRANSACTION_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "RELEASE", "VACUUM", "ATTACH", "DETACH", "SET")
SECONDS = (
    "busy_timeout",
    "pool_timeout",
    "pool_recycle",
    "connect_timeout",
    "statement_timeout",
    "lock_timeout",
    "idle_transaction_timeout",
    "replica_max_lag",
)
Bind = TypeVar("Bind", Engine, Connection)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is opened; times in seconds. Raises ValueError or TypeError naming the option."""

    echo: bool = False
    synchronous: str = "FULL"
    busy_timeout: float = 5.0
    pool_size: int = 5
    max_overflow: int = 10
    pool_timeout: float = 30.0
    pool_recycle: float = 1800.0
    connect_timeout: float = 5.0
    statement_timeout: float = 60.0
    lock_timeout: float = 10.0
    idle_transaction_timeout: float = 300.0
    replica_max_lag: float = 10.0
    pgbouncer: bool = False

    def __post_init__(self) -> None:
        if self.synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be FULL or NORMAL, not {self.synchronous!r}")
        for name, minimum in (("pool_size", 1), ("max_overflow", 0)):
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
            if value < minimum:
                raise ValueError(f"{name} must be at least {minimum}")
        for name in SECONDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
            if not (0 <= value < math.inf):
                raise ValueError(f"{name} must be 0 or more seconds")


class Position(NamedTuple):
    """How far a database's log has come, and of which database it is."""

    lsn: str
    system: str


class Keeper(Protocol):
    """What a database needs to stay in existence, until it is closed."""

    def close(self) -> None: ...


# What OFTEN of the RECENT newest prompts answer is met soon by walking through all of them. Newest by id: of deleted
# ones nobody knows.
RECENT = 1_000
OFTEN = 5

JSONKind = Literal["text", "number", "boolean", "any"]


class Backend(Protocol):
    """One database system: how it is opened, locked, asked and understood when it fails."""

    name: str

    def __hash__(self) -> int: ...

    @property
    def replication(self) -> "Replication | None":
        """How replicas of a primary are asked where they stand, or None where there are none."""

    def resolve_url(self, url: URL) -> URL:
        """Return `url` with its driver named and its file, if any, as an absolute path."""

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine with this backend's pool, pragmas and transaction rules; connects to nothing yet."""

    def is_present(self, url: URL) -> bool:
        """Tell whether there is anything to open at `url` that opening would not first create."""

    def create_database(self, url: URL) -> None:
        """Make what must exist before the first connection: the folder and a file only its owner may read."""

    def keep_alive(self, url: URL) -> Keeper | None:
        """Return what must live as long as the engine does, if anything."""

    def read_only(self, bind: Bind) -> Bind:
        """Return a view of an engine, which shares its pool, or a connection, whose transactions see one snapshot."""

    def create_migration_engine(self, url: URL) -> Engine:
        """Return an engine for migrations: no pool, no statement timeout, foreign keys not enforced."""

    def lock_migrations(self, connection: Connection) -> None:
        """Begin the migration's transaction and wait for its turn among other processes."""

    def prepare_file(self, connection: Connection) -> None:
        """Set what is stored in the file and cannot change inside a transaction."""

    def translate(self, error: BaseException, *, is_disconnect: bool, is_connecting: bool) -> StorageError | None:
        """Return our error for a driver's, or None where there is none better."""

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        """Let generated keys of `table` continue after the highest one stored."""

    def now(self, plus_seconds: float = 0.0) -> ColumnElement[datetime]:
        """Return the database's clock, moved by `plus_seconds`, as an SQL expression."""

    def take_due(
        self, waiting: Sequence[ColumnElement[bool]], columns: Sequence[Any], limit: int, *, locked: bool = True
    ) -> Select[Any]:
        """Return the query for the first `limit` due rows among `waiting`, in claim order.

        It seeks each priority's due rows in an index, so rows that are not due, or not among `waiting`, cost nothing.
        `locked` keeps other claims off them and passes over those of others, where that needs saying.
        """

    def lock_pending(self, ids: Select[Any], limit: int) -> Select[Any]:
        """Return the query for the first `limit` of the rows that `ids` names, in its order, locked for a claim."""

    def insert(self, table: Any) -> Any:
        """Return the dialect's INSERT for `table`, which knows ON CONFLICT."""

    def prompt_key(self) -> list[Any]:
        """Return the index elements by which a prompt's text is unique."""

    def prompt_is(self, text: str) -> ColumnElement[bool]:
        """Return the condition that finds the prompt with exactly this text through the unique index."""

    def clock(self) -> Callable[[timedelta], ColumnElement[datetime]]:
        """Return a clock that stands still: for an offset, the time so far from that of the statement.

        Unlike now(), it may be compared with an index.
        """

    def microseconds(self, time: Any) -> ColumnElement[int]:
        """Return a column's time as whole microseconds since 1970, or NULL where it cannot be read."""

    def json_member(self, document: Any, key: str, kind: JSONKind) -> ColumnElement[Any]:
        """Return the value under `key` of a JSON object as text, number or 0 and 1; NULL unless it is of that kind.

        "any" gives the name of its type, NULL when it is missing or null. A document that cannot be read has no keys.
        """

    def json_number(self, value: float) -> ColumnElement[Any]:
        """Return a number to compare with json_member()'s."""

    def matching_prompts(self, query: "Query", *, with_text: bool = False) -> Select[Any]:
        """Return the select of the id, and the text, of the prompts that answer `query`, found through the index."""

    def newest_matches(self, session: Session, query: "Query", limit: int, *, with_text: bool = False) -> Select[Any]:
        """Return the select of the newest `limit` of matching_prompts(), newest first."""

    def few_matches(self, query: "Query", limit: int) -> Select[Any]:
        """Return the query for a list of `limit` of matching_prompts()' ids, or NULL if they are met OFTEN."""

    def prompt_matches(self, query: "Query", prompt_id: Any) -> ColumnElement[bool]:
        """Return the condition that the prompt with this id answers `query`, for rows met in another order."""

    def numbers(self, numbers: Sequence[int]) -> FromClause:
        """Return a table of one column, `value`, with a row for each of the `numbers`."""

    def check_integrity(self, session: Session) -> list[str]:
        """Return what is wrong with the database's own structure, as it says it; what rows hold is not its matter."""

    def check_search_index(self, session: Session) -> bool:
        """Tell whether the search index is what the prompts say."""

    def rebuild_search_index(self, session: Session) -> None:
        """Make the search index anew from the prompts."""


def priorities(waiting: Sequence[ColumnElement[bool]], due: ColumnElement[bool], enough: int | None = None) -> CTE:
    """Return the different priorities among `waiting`, highest first and None last, at one index seek each.

    Stops after `enough` of them with a `due` row, so that a million different priorities cost no more than one.
    """
    highest = func.max(Generation.priority).label("priority")
    seen = select(highest, literal_column("0", Integer).label("found")).where(*waiting).cte(recursive=True)
    lower = select(func.max(Generation.priority)).where(*waiting, Generation.priority < seen.c.priority)
    step = select(lower.scalar_subquery(), seen.c.found).where(seen.c.priority.is_not(None))
    if enough is not None:
        has_due = exists().where(*waiting, Generation.priority == seen.c.priority, due)
        step = select(lower.scalar_subquery(), seen.c.found + cast(has_due, Integer))
        step = step.where(seen.c.priority.is_not(None), seen.c.found < enough)
    return seen.union_all(step)


def inline(number: int) -> ColumnElement[int]:
    """Return `number` as it stands in the statement's text: planners weigh a LIMIT they can read."""
    return bindparam(None, number, Integer, literal_execute=True)


class Replication(Protocol):
    """Replicas of a database: how they are opened, and how far they have come."""

    def resolve_url(self, url: URL) -> URL:
        """Return the URL of a replica with its driver named."""

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine for a replica, whose users ask has_reached() on every connection before they use it."""

    def primary_position(self, connection: Connection) -> Position:
        """Return a position that covers every commit acknowledged before the call."""

    def has_reached(self, connection: Connection, position: Position) -> bool | None:
        """Tell whether a replica shows all there was at `position`; None when it is a replica of something else."""


def is_write(statement: str, context: ExecutionContext | None) -> bool:
    """Tell whether a statement changes the database. In doubt it does: a comment before SELECT counts as a write."""
    word = statement.lstrip()[:10].upper()
    if word.startswith(READING) or word.startswith(TRANSACTION_CONTROL):
        return False
    if word.startswith("WITH"):
        compiled: Any = getattr(context, "compiled", None)
        # Text may lead to DELETE, and SQLAlchemy cannot see it there.
        is_select = isinstance(getattr(compiled, "statement", None), (Select, CompoundSelect))
        return not is_select or bool(compiled.isinsert or compiled.isupdate or compiled.isdelete)
    return True


def is_refused_when_reading(statement: str, context: ExecutionContext | None) -> bool:
    """Tell whether a read-only session must not run a statement: it writes, or changes the file or the connection."""
    word = statement.lstrip()[:10].upper()
    setting = word.startswith("PRAGMA") and "=" in statement
    return setting or word.startswith(("VACUUM", "ATTACH", "DETACH")) or is_write(statement, context)


def has_literals(text: Any, term: "Term") -> ColumnElement[bool]:
    """Return the condition that `text` contains what `term` wants as it stands, but for case."""
    return and_(*(or_(*(text.icontains(literal, autoescape=True) for literal in any_of)) for any_of in term.literals))
