"""What a backend must answer, how an engine is opened, and what counts as a write."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import (
    CTE,
    URL,
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    ExecutionContext,
    Integer,
    Select,
    bindparam,
    cast,
    exists,
    func,
    literal_column,
    select,
)

from ..errors import StorageError
from ..models import Generation

READING = ("SELECT", "VALUES", "PRAGMA", "EXPLAIN", "SHOW")
TRANSACTION_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "RELEASE", "VACUUM", "ATTACH", "DETACH", "SET")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is opened; times in seconds."""

    echo: bool = False
    synchronous: str = "FULL"
    busy_timeout: float = 5.0
    pool_size: int = 5
    max_overflow: int = 10
    pool_timeout: float = 30.0
    statement_timeout: float = 60.0
    lock_timeout: float = 10.0
    idle_transaction_timeout: float = 300.0


class Keeper(Protocol):
    """What a database needs to stay in existence, until it is closed."""

    def close(self) -> None: ...


class Backend(Protocol):
    """One database system: how it is opened, locked, asked and understood when it fails."""

    name: str

    def __hash__(self) -> int: ...

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

    def read_only(self, engine: Engine) -> Engine:
        """Return a view of `engine` whose transactions see one snapshot; it shares the pool."""

    def create_migration_engine(self, url: URL) -> Engine:
        """Return an engine for migrations: no pool, no statement timeout, foreign keys not enforced."""

    def lock_migrations(self, connection: Connection) -> None:
        """Begin the migration's transaction and wait for its turn among other processes."""

    def prepare_file(self, connection: Connection) -> None:
        """Set what is stored in the file and cannot change inside a transaction."""

    def translate(self, error: BaseException, *, is_disconnect: bool, is_connecting: bool) -> StorageError | None:
        """Return our error for a driver's, or None where there is none better."""

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
