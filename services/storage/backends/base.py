"""What a backend provides, as one protocol for each kind of user: SQL modules, search, the engine, replicas."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    PoolProxiedConnection,
    QueuePool,
    Select,
    Table,
)
from sqlalchemy.exc import TimeoutError
from sqlalchemy.orm import Session

from ..errors import PoolTimeoutError, StorageError
from ..json_members import JSONKind
from ..models import Base
from ..settings import EngineOptions
from .backup_dialect import BackupDialect
from .schema_dialect import DiagnosticsDialect, SchemaDialect
from .wakeup import WakeupDialect

if TYPE_CHECKING:
    from ..search_query import Query

# With those that Alembic and copy_database() create.
OWN_TABLES: Final = frozenset([*Base.metadata.tables, "alembic_version", "copy_progress"])
Bind = TypeVar("Bind", Engine, Connection)
Phase = Literal["connect", "statement", "commit"]  # what the driver was doing when it raised an error

# A query is common when COMMON_MATCHES of the newest RECENT_PROMPTS prompts match it: scanning the prompts, newest
# first, then finds a page of matches quickly (ADR 23). Backends decide by id which prompts are the newest.
RECENT_PROMPTS: Final = 1_000
COMMON_MATCHES: Final = 5


class ConnectionPool(QueuePool):
    """A pool whose timeout is a PoolTimeoutError, also in the middle of a session."""

    def connect(self) -> PoolProxiedConnection:
        """Return a connection. Raises PoolTimeoutError if none becomes free in time."""
        try:
            return super().connect()
        except TimeoutError as error:
            raise PoolTimeoutError(orig=error) from error


class StatementClock(Protocol):
    """The time of a statement, constant within it, so that, unlike now(), it can bound an index scan."""

    def __call__(self, offset: timedelta) -> ColumnElement[datetime]:
        """Return an SQL expression for the time of the statement plus `offset`."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters with which the statement must be executed now."""


class SQLDialect(Protocol):
    """The expressions and statements that differ between SQLite and PostgreSQL."""

    has_writing_ctes: bool  # INSERT … RETURNING can be a CTE, so that one round trip writes two tables
    has_own_clock: bool  # the clock is that of a server, not of this host
    merges_metadata: bool  # the database merges JSON objects as validation.merge_metadata() does

    def now(self, plus_seconds: float = 0.0) -> ColumnElement[datetime]:
        """Return an SQL expression for the current time of the database plus `plus_seconds`."""

    def now_after(self, parameter: str) -> ColumnElement[datetime]:
        """Return an SQL expression for now() plus the bound `parameter`, a timedelta."""

    def statement_clock(self) -> StatementClock:
        """Return the clock for one statement, which may be built once and executed many times."""

    def epoch_microseconds(self, time: Any) -> ColumnElement[int]:
        """Return a column's time as whole microseconds since 1970, or NULL if the stored value is not a time."""

    def is_standby(self) -> ColumnElement[bool]:
        """Return an SQL expression for whether the database replays the log of another one and refuses writes."""

    def select_due(
        self, waiting: Sequence[ColumnElement[bool]], columns: Sequence[Any], limit: int, *, locked: bool = True
    ) -> Select[Any]:
        """Return the query for the first `limit` due rows among `waiting`, in claim order.

        `waiting` are conditions. The query seeks the due rows of each priority in an index, so it does not read rows
        that are not due (ADR 15). With `locked` it locks the rows, and skips those that another claim has locked, on
        databases with row locks.
        """

    def lock_pending(self, ids: Select[Any], limit: int) -> Select[Any]:
        """Return the query for the first `limit` ids of `ids`, in its order, with their rows locked for a claim."""

    def insert(self, table: Any) -> Any:
        """Return the dialect's INSERT for `table`, which supports ON CONFLICT."""

    def byte_order(self, text: Any) -> ColumnElement[str]:
        """Return an expression that sorts a column of text by its UTF-8 bytes."""

    def prompt_conflict_target(self) -> list[Any]:
        """Return the index elements of the unique index on the text of prompts, for ON CONFLICT."""

    def prompt_text_equals(self, text: Any) -> ColumnElement[bool]:
        """Return the condition that finds the prompt with exactly this text through the unique index."""

    def merge_metadata(self, stored: Any) -> tuple[ColumnElement[str], ColumnElement[bool]]:
        """Return `stored` metadata with other metadata merged into it, and the condition under which that is right.

        The parameters are those of merge_parameters(). Where the condition is false, validation.merge_metadata()
        decides.
        """

    def merge_parameters(self, stored: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of merge_metadata(). `stored` is used only where the database cannot merge.

        Raises what validation.merge_metadata() raises.
        """

    def json_member(self, document: Any, key: Any, kind: JSONKind) -> ColumnElement[Any]:
        """Return the value of `key`, an SQL expression, in a JSON object; NULL if it is not of that kind.

        The value is text, a number, or 0 or 1. "any" returns the name of its type, "value" what JSONValue reads, and
        both NULL if it is missing or null. Invalid JSON has no keys.
        """

    def collect(self, number: Any, condition: ColumnElement[bool]) -> Any:
        """Return an aggregate: the sequence of the numbers of the rows that meet `condition`; empty or None if none."""

    def compare_json_number(self, document: Any, key: Any, number: Any) -> ColumnElement[int]:
        """Return -1, 0 or 1 as the number under `key` of a JSON object compares with a decimal text, exactly."""

    def unnest(self, numbers: Sequence[int]) -> FromClause:
        """Return a table with one column, `value`, and one row per number; `numbers` is sent as one bound value."""


class SearchDialect(Protocol):
    """Full-text search of prompts."""

    def select_matches(self, query: "Query", *, with_text: bool = False) -> Select[Any]:
        """Return the query for the ids, with `with_text` also the texts, of the prompts that match in the index."""

    def select_newest_matches(
        self, session: Session, query: "Query", limit: int, *, with_text: bool = False
    ) -> Select[Any]:
        """Return the query for the newest `limit` rows of select_matches(), newest first."""

    def match_ids_if_rare(self, query: "Query", limit: int) -> Select[Any]:
        """Return the query for a list of up to `limit` ids of matches, or for NULL if matches are common (ADR 23)."""

    def match_condition(self, query: "Query", prompt_id: Any) -> ColumnElement[bool]:
        """Return the condition that the prompt with this id matches, for queries that read rows in another order."""

    def check_search_index(self, session: Session) -> bool:
        """Return whether the search index agrees with the prompts."""

    def rebuild_search_index(self, session: Session) -> None:
        """Rebuild the search index from the prompts."""


class AnchorConnection(Protocol):
    """A connection that keeps a memory database alive until it is closed."""

    def close(self) -> None: ...


class LogPosition(NamedTuple):
    """A position in the write-ahead log of a database, and the system identifier of that database."""

    lsn: str
    system: str


class Replication(Protocol):
    """Replicas of a database: how to open them, and how far they have replayed its log."""

    def resolve_url(self, url: URL) -> URL:
        """Return the URL of a replica with its driver named."""

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine for a replica; callers must call has_reached() on a connection before they use it."""

    def primary_position(self, connection: Connection) -> LogPosition:
        """Return a position that covers every commit acknowledged before the call."""

    def has_reached(self, connection: Connection, position: LogPosition) -> bool | None:
        """Return whether a replica shows all commits up to `position`; None if it replicates another database."""

    def bytes_behind(self, connection: Connection, position: LogPosition) -> int | None:
        """Return how much log a replica has not replayed up to `position`; None if it replicates another database."""


class SpaceDialect(Protocol):
    """The space that a database takes, and how to return what it does not use."""

    def measure_space(self, connection: Connection) -> tuple[int, int]:
        """Return the size of the database, and what is unused inside its file, in bytes."""

    def measure_log(self, connection: Connection) -> int | None:
        """Return the size of the write-ahead log in bytes; None if there is none or the user may not see it."""

    def release_pages(self, connection: Connection, count: int) -> bool:
        """In a transaction that writes, return up to `count` unused pages; return whether more can be returned."""

    def vacuum(self, connection: Connection, tables: Sequence[str], *, full: bool) -> None:
        """Make the space of deleted rows usable; with `full` rebuild the tables. Needs AUTOCOMMIT and no timeouts."""

    def write_log(self, connection: Connection) -> bool:
        """Write the log into the database file, which gets its final size then; False if others are in the way."""


class Backend(SQLDialect, SearchDialect, SchemaDialect, DiagnosticsDialect, SpaceDialect, WakeupDialect, Protocol):
    """One database system: its SQL, its search, its engines, its migration lock and its errors."""

    name: str

    def __hash__(self) -> int: ...

    @property
    def backups(self) -> BackupDialect:
        """How backups are written, read and restored."""

    @property
    def replication(self) -> Replication | None:
        """How to open replicas and read their position, or None for a database system without replicas."""

    def resolve_url(self, url: URL) -> URL:
        """Return `url` with its driver named, and with an absolute path if it names a file."""

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine with this backend's pool, settings and transaction rules; do not connect yet."""

    def create_migration_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine for migrations: no pool, no statement timeout, foreign keys not enforced."""

    def read_only(self, bind: Bind) -> Bind:
        """Return `bind` with options that make its transactions read-only and give each one snapshot.

        An engine comes back as a copy that shares its pool, a connection as itself.
        """

    def is_present(self, url: URL) -> bool:
        """Return whether the database at `url` exists already, so that connecting would not create it."""

    def create_database(self, url: URL) -> None:
        """Create what must exist before the first connection: the folder, and a file that only its owner can read."""

    def explain(self, url: URL) -> str | None:
        """Return a message that says why the database cannot be opened or written, or None if that is not known."""

    def open_anchor(self, url: URL, options: EngineOptions) -> AnchorConnection | None:
        """Return the connection that must stay open to keep a memory database alive; None for any other database."""

    def prepare_file(self, connection: Connection) -> None:
        """Set the properties that are stored in the database file and cannot change inside a transaction."""

    def check_file(self, engine: Engine) -> None:
        """Set these properties again in a file that lost them, as a copy has; log a warning if that is impossible."""

    def lock_migrations(self, connection: Connection, options: EngineOptions) -> None:
        """Begin the transaction of a migration, after waiting for the migrations of other processes.

        From then on a statement waits for a lock no longer than the lock timeout of `options`.
        """

    def translate(self, error: BaseException, *, phase: Phase, is_disconnect: bool) -> StorageError | None:
        """Return the StorageError for a driver's error, or None if there is no specific one. See ADR 13."""

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        """Make the generated keys of `table` continue after the highest stored key."""

    def check_integrity(self, session: Session) -> list[str]:
        """Return the database's own messages about damage to its structure; does not check the values in rows."""


def error_of_kind(kind: type[StorageError], orig: BaseException, subject: str | None) -> StorageError:
    """Return an error with its default message and, in parentheses, the constraint or column it is about."""
    message = (kind.__doc__ or "").strip()
    return kind(f"{message} ({subject})" if subject else message, orig=orig)
