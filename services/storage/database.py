"""The API of the specification on the default database: init_db, sessions, and the functions it names in this module.

The functions imported from other modules take a session as their first argument and never commit; the `with` block of
the session does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from .analytics import get_database_stats
from .defaults import BUSY_TIMEOUT_SECONDS, TRANSACTION_ATTEMPTS
from .engine import Storage, get_default, get_storage, set_storage
from .errors import (
    ForeignDatabaseError,
    NotInitializedError,
    SchemaDamagedError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from .generations import (
    clone_generation,
    count_generations,
    create_generation,
    create_generations,
    delete_generation,
    get_all_generations,
    get_generation,
    get_generations_by_status,
    get_pending_generations,
    list_generations,
    set_favorite,
    update_generation_status,
)
from .prompts import (
    delete_prompt,
    get_all_prompts,
    get_most_used_prompts,
    get_prompt,
    get_prompt_by_text,
    track_prompt_usage,
)
from .queue import complete_generation
from .session import SessionBlock

__all__ = [
    "clone_generation",
    "complete_generation",
    "count_generations",
    "create_generation",
    "create_generations",
    "delete_generation",
    "delete_prompt",
    "get_all_generations",
    "get_all_prompts",
    "get_database_stats",
    "get_engine",
    "get_generation",
    "get_generations_by_status",
    "get_most_used_prompts",
    "get_pending_generations",
    "get_prompt",
    "get_prompt_by_text",
    "get_session",
    "get_storage",
    "init_db",
    "list_generations",
    "reset_database",
    "run_in_transaction",
    "set_favorite",
    "track_prompt_usage",
    "update_generation_status",
]

Result = TypeVar("Result")


def init_db(
    database_url: str | None = None,
    *,
    replica_urls: Iterable[str] = (),
    echo: bool = False,
    synchronous: str = "FULL",
    busy_timeout: float = BUSY_TIMEOUT_SECONDS,
) -> None:
    """Make the database at `database_url` (else DATABASE_URL, else sqlite:///data/generations.db) the default one.

    Creates a missing database, upgrades an older one, and adopts one that has this library's tables but no version; for
    an up-to-date one it executes a single query. `echo` logs SQL; `synchronous`, FULL or NORMAL, and `busy_timeout`, in
    seconds, are for SQLite. Each call that names a memory database creates a new, empty one. `replica_urls` (else
    DATABASE_REPLICA_URLS) answer read-only sessions on PostgreSQL. The pool and timeouts are read from the environment,
    see Storage. Raises ForeignDatabaseError or SchemaTooNewError, with nothing changed, for a database that this
    library cannot upgrade.
    """
    storage = Storage(
        database_url, replica_urls=replica_urls, echo=echo, synchronous=synchronous, busy_timeout=busy_timeout
    )
    current = get_default()
    if current is not None and current.is_same(storage) and (database_url is None or not storage.is_memory):
        storage = current
    try:
        try:
            storage.require_schema(refresh=True)
        except (
            ForeignDatabaseError,
            NotInitializedError,
            SchemaDamagedError,
            SchemaOutdatedError,
            SchemaTooNewError,
        ):  # migrations look closer: the database may hold other programs' tables beside ours, or lack a table
            # Here, because Alembic doubles the import time and an up-to-date database does not need it.
            from . import migrations

            migrations.upgrade(storage)
    except BaseException:
        storage.dispose()
        raise
    set_storage(storage)


def reset_database() -> None:
    """Drop and recreate every table of the default database, in one transaction. ALL DATA IS LOST."""
    from . import migrations

    migrations.reset(get_storage())


def get_session(*, read_only: bool = False) -> AbstractContextManager[Session]:
    """Open a session of the default database: commit at the end of the `with` block, roll back if it raises.

    A `read_only` session reads one snapshot and raises ReadOnlyError for a write. Raises NotInitializedError,
    SchemaOutdatedError or SchemaTooNewError if the schema is not at this library's revision. Also a dependency of
    FastAPI: `session: Annotated[Session, Depends(get_session)]`.
    """
    return SessionBlock(get_storage().session(read_only=read_only))


def _yield_session() -> Iterator[Session]:
    yield from SessionBlock(get_storage().session())


# FastAPI looks here for a generator function and for its parameters, which it would publish: read_only is not for
# clients.
get_session.__wrapped__ = _yield_session  # type: ignore[attr-defined]


def get_engine() -> Engine:
    """Return the SQLAlchemy engine of the default database; its transactions begin as those of sessions do."""
    return get_storage().engine


def run_in_transaction(
    fn: Callable[[Session], Result], *, attempts: int = TRANSACTION_ATTEMPTS, read_only: bool = False
) -> Result:
    """Run `fn(session)` in a transaction, commit it and return the result; see Storage.run_in_transaction()."""
    return get_storage().run_in_transaction(fn, attempts=attempts, read_only=read_only)
