"""What a backend must answer, how an engine is opened, and what counts as a write."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from sqlalchemy import URL, ColumnElement, Connection, Engine, ExecutionContext, Select, and_, or_
from sqlalchemy.orm import Session

from ..errors import StorageError
from ..terms import Query, Term

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


JSONKind = Literal["text", "number", "boolean", "any"]


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

    def keep_alive(self, url: URL) -> object | None:
        """Return what must live as long as the engine does, if anything."""

    def read_only(self, engine: Engine) -> Engine:
        """Return a view of `engine` whose transactions see one snapshot; it shares the pool."""

    def migration_connection(self, url: URL) -> AbstractContextManager[Connection]:
        """Open a connection for migrations, outside the pool: no statement timeout, foreign keys not enforced."""

    def lock_migrations(self, connection: Connection) -> None:
        """Begin the migration's transaction and wait for its turn among other processes."""

    def prepare_file(self, connection: Connection) -> None:
        """Set what is stored in the file and cannot change inside a transaction."""

    def translate(self, error: BaseException, *, is_disconnect: bool, is_connecting: bool) -> StorageError | None:
        """Return our error for a driver's, or None where there is none better."""

    def now(self) -> ColumnElement[datetime]:
        """Return the database's clock as an SQL expression."""

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

    def matching_prompts(self, query: Query) -> Select[Any]:
        """Return the select of one column, the ids of the prompts that answer `query`, found through the index."""

    def prompt_matches(self, query: Query, prompt_id: Any, text: Any) -> ColumnElement[bool]:
        """Return the condition that the prompt with this id and text answers `query`, for rows met in another order."""

    def check_search_index(self, session: Session) -> bool:
        """Tell whether the search index is what the prompts say."""

    def rebuild_search_index(self, session: Session) -> None:
        """Make the search index anew from the prompts."""


def is_write(statement: str, context: ExecutionContext | None) -> bool:
    """Tell whether a statement changes the database. In doubt it does: a comment before SELECT counts as a write."""
    word = statement.lstrip()[:10].upper()
    if word.startswith(READING) or word.startswith(TRANSACTION_CONTROL):
        return False
    if word.startswith("WITH"):
        compiled = getattr(context, "compiled", None)
        return compiled is None or bool(compiled.isinsert or compiled.isupdate or compiled.isdelete)
    return True


def has_literals(text: Any, term: Term) -> ColumnElement[bool]:
    """Return the condition that `text` contains what `term` wants as it stands, but for case."""
    return and_(*(or_(*(text.icontains(literal, autoescape=True) for literal in any_of)) for any_of in term.literals))
