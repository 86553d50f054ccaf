"""What a backend must answer, how an engine is opened, and what counts as a write."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import URL, ColumnElement, CompoundSelect, Connection, Engine, ExecutionContext, Select

from ..errors import StorageError

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

    def now(self) -> ColumnElement[datetime]:
        """Return the database's clock as an SQL expression."""

    def insert(self, table: Any) -> Any:
        """Return the dialect's INSERT for `table`, which knows ON CONFLICT."""

    def prompt_key(self) -> list[Any]:
        """Return the index elements by which a prompt's text is unique."""

    def prompt_is(self, text: str) -> ColumnElement[bool]:
        """Return the condition that finds the prompt with exactly this text through the unique index."""


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
