"""What a backend must do, as one protocol for each kind of user: SQL modules, search, the engine, replicas."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, Engine, FromClause, Select, Table, and_, or_
from sqlalchemy.orm import Session

from ..errors import StorageError
from ..settings import EngineOptions

if TYPE_CHECKING:
    from ..search_query import Query, Term

Bind = TypeVar("Bind", Engine, Connection)
JSONKind = Literal["text", "number", "boolean", "any"]

# A word that COMMON_MATCHES of the newest RECENT_PROMPTS prompts have is common: a walk through all prompts, newest
# first, meets enough of them soon (ADR 43). Newest by id, because deleted prompts leave gaps that nobody can count.
RECENT_PROMPTS: Final = 1_000
COMMON_MATCHES: Final = 5


class SQLDialect(Protocol):
    """The expressions and statements that the two databases write differently."""

    def now(self, plus_seconds: float = 0.0) -> ColumnElement[datetime]:
        """Return the database's clock, moved by `plus_seconds`, as an SQL expression."""

    def statement_clock(self) -> Callable[[timedelta], ColumnElement[datetime]]:
        """Return a function of an offset that gives the time of the statement plus that offset.

        It gives the same time throughout a statement, so unlike now() it may be compared with an indexed column.
        """

    def epoch_microseconds(self, time: Any) -> ColumnElement[int]:
        """Return a column's time as whole microseconds since 1970, or NULL where it cannot be read."""

    def select_due(
        self, waiting: Sequence[ColumnElement[bool]], columns: Sequence[Any], limit: int, *, locked: bool = True
    ) -> Select[Any]:
        """Return the query for the first `limit` due rows among `waiting`, in claim order.

        It seeks the due rows of each priority in an index, so rows that are not due, or not among `waiting`, cost
        nothing. `locked` takes row locks and skips rows that another claim has locked, where the database has them.
        """

    def lock_pending(self, ids: Select[Any], limit: int) -> Select[Any]:
        """Return the query for the first `limit` of the rows that `ids` names, in its order, locked for a claim."""

    def insert(self, table: Any) -> Any:
        """Return the dialect's INSERT for `table`, which has ON CONFLICT."""

    def prompt_conflict_target(self) -> list[Any]:
        """Return the index elements by which the text of a prompt is unique."""

    def prompt_text_equals(self, text: str) -> ColumnElement[bool]:
        """Return the condition that finds the prompt with exactly this text through the unique index."""

    def json_member(self, document: Any, key: str, kind: JSONKind) -> ColumnElement[Any]:
        """Return the value under `key` of a JSON object as text, number or 0 and 1; NULL unless it is of that kind.

        "any" gives the name of its type, NULL when it is missing or null. A document that cannot be read has no keys.
        """

    def json_number(self, value: float) -> ColumnElement[Any]:
        """Return a number to compare with that of json_member()."""

    def unnest(self, numbers: Sequence[int]) -> FromClause:
        """Return a table of one column, `value`, with a row for each of the `numbers`, sent as one bound value."""


class SearchDialect(Protocol):
    """Full-text search of prompts."""

    def select_matches(self, query: "Query", *, with_text: bool = False) -> Select[Any]:
        """Return the query for the id, and the text, of the prompts that match, found through the search index."""

    def select_newest_matches(
        self, session: Session, query: "Query", limit: int, *, with_text: bool = False
    ) -> Select[Any]:
        """Return the query for the newest `limit` of select_matches(), newest first."""

    def match_ids_if_rare(self, query: "Query", limit: int) -> Select[Any]:
        """Return the query for a list of up to `limit` ids of select_matches(), or NULL if matches are common."""

    def match_condition(self, query: "Query", prompt_id: Any) -> ColumnElement[bool]:
        """Return the condition that the prompt with this id matches, for rows that are read in another order."""

    def check_search_index(self, session: Session) -> bool:
        """Tell whether the search index agrees with the prompts."""

    def rebuild_search_index(self, session: Session) -> None:
        """Rebuild the search index from the prompts."""


class AnchorConnection(Protocol):
    """A connection that keeps a memory database in existence until it is closed."""

    def close(self) -> None: ...


class LogPosition(NamedTuple):
    """A position in the log of a database, and the system identifier of that database."""

    lsn: str
    system: str


class Replication(Protocol):
    """Replicas of a database: how they are opened, and how far they have replayed its log."""

    def resolve_url(self, url: URL) -> URL:
        """Return the URL of a replica with its driver named."""

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine for a replica; its users call has_reached() on every connection before they use it."""

    def primary_position(self, connection: Connection) -> LogPosition:
        """Return a position that covers every commit acknowledged before the call."""

    def has_reached(self, connection: Connection, position: LogPosition) -> bool | None:
        """Tell whether a replica shows all commits up to `position`; None when it replicates another database."""


class Backend(SQLDialect, SearchDialect, Protocol):
    """One database system: its SQL, its search, and how it is opened, locked and understood when it fails."""

    name: str

    def __hash__(self) -> int: ...

    @property
    def replication(self) -> Replication | None:
        """How replicas are opened and asked for their position, or None on a system without them."""

    def resolve_url(self, url: URL) -> URL:
        """Return `url` with its driver named and its file, if any, as an absolute path."""

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine with this backend's pool, pragmas and transaction rules; connects to nothing yet."""

    def create_migration_engine(self, url: URL) -> Engine:
        """Return an engine for migrations: no pool, no statement timeout, foreign keys not enforced."""

    def read_only(self, bind: Bind) -> Bind:
        """Return a view of an engine, which shares its pool, or a connection, whose transactions see one snapshot."""

    def is_present(self, url: URL) -> bool:
        """Tell whether there is anything to open at `url` that opening would not first create."""

    def create_database(self, url: URL) -> None:
        """Create what must exist before the first connection: the folder, and a file that only its owner may read."""

    def open_anchor(self, url: URL) -> AnchorConnection | None:
        """Return the connection that a memory database needs for as long as the engine lives, or None."""

    def prepare_file(self, connection: Connection) -> None:
        """Set the properties that are stored in the file and cannot change inside a transaction."""

    def lock_migrations(self, connection: Connection) -> None:
        """Begin the migration's transaction, after those of other processes."""

    def translate(self, error: BaseException, *, is_disconnect: bool, is_connecting: bool) -> StorageError | None:
        """Return our error for a driver's, or None where there is none better."""

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        """Make generated keys of `table` continue after the highest one stored."""

    def check_integrity(self, session: Session) -> list[str]:
        """Return what is wrong with the structure of the database, in its own words; rows are not looked at."""


def has_literals(text: Any, term: "Term") -> ColumnElement[bool]:
    """Return the condition that `text` contains what `term` wants as it stands, but for case."""
    return and_(*(or_(*(text.icontains(literal, autoescape=True) for literal in any_of)) for any_of in term.literals))
