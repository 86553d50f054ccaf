"""Storage: one configured database with its engines and sessions; and the default Storage, at DATABASE_URL.

Of the tables it uses only Alembic's version table.
"""

import os
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, ExceptionContext, event, inspect
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from . import schema_check
from .backends import Phase, backend_for, is_refused_when_reading
from .defaults import TRANSACTION_ATTEMPTS
from .errors import (
    CorruptError,
    DatabaseURLError,
    ForeignDatabaseError,
    NotInitializedError,
    ReadOnlyError,
    RetryableError,
    StorageError,
    UnreachableError,
)
from .queue.wakeup import forget_all, hold_all, open_wakeups, release_all
from .replicas import Replicas
from .retry_policy import RetryPolicy
from .row_loading import SeveralStatementsError
from .session import StorageSession, raise_conflicts
from .settings import mask_url, parse_replica_urls, parse_url, read_engine_options

TABLES = ("generations", "prompts")  # of the first revision: a database with neither is not this library's
TRANSACTION_RETRY = RetryPolicy(base_seconds=0.05, cap_seconds=2.0, jitter=1.0)
Result = TypeVar("Result")


class Storage:
    """One database: `Storage("sqlite:///file.db")`, then `with storage.session() as session: …`.

    `replica_urls` name PostgreSQL standbys. One of them answers a read-only session if it shows every commit of this
    process and lags by at most `replica_max_lag` seconds. Without `database_url` and `replica_urls`, they are read from
    DATABASE_REPLICA_URLS, separated by commas. `options` are those of EngineOptions; an option that is missing or None
    is read from the environment: `pool_size` from DATABASE_POOL_SIZE and so on.

    Raises DatabaseURLError for an invalid URL, DriverMissingError if the driver is not installed, ValueError or
    TypeError for an invalid option, and ValueError for replicas of SQLite. Does not connect yet.
    """

    def __init__(self, database_url: str | None = None, *, replica_urls: Iterable[str] = (), **options: Any) -> None:
        self.options = read_engine_options(options)
        self.given_url = parse_url(database_url)
        self.backend = backend_for(self.given_url)
        self.url = self.backend.resolve_url(self.given_url)
        engine = None
        with suppress(ArgumentError, ValueError):
            engine = self.backend.create_engine(self.url, self.options)
        if engine is None:
            raise DatabaseURLError  # outside any `except`, whose error would stay in __context__, with parts of the URL
        self.engine = engine
        self._read_only_engine = self.backend.read_only(self.engine)
        self._step_engine = self.engine.execution_options(is_step=True)
        self._anchor = self.backend.open_anchor(self.url, self.options)
        self._schema_checked = False
        self.due_wakeups, self.commit_wakeups = open_wakeups(self, self.backend, self.url, self.options)
        self.replicas: Replicas | None = None
        if replicas := parse_replica_urls(replica_urls, from_environment=not database_url):
            self.replicas = Replicas(self.backend, self.engine, replicas, self.options)
        self.engines = (self.engine, *(self.replicas.engines if self.replicas else ()))
        for engine in self.engines:
            translate_errors(engine)
            raise_conflicts(engine)
            # Python 3.13 warns about connections that the garbage collector closes.
            weakref.finalize(self, engine.dispose)
        for engine in (self._read_only_engine, *self.engines[1:]):
            event.listen(engine, "before_cursor_execute", _refuse_writes)
        _open_storages.add(self)
        if self._anchor is not None:
            weakref.finalize(self, self._anchor.close)

    @property
    def is_memory(self) -> bool:
        """Whether the database is in the memory of this process and is lost when the process ends."""
        return self._anchor is not None

    def is_same(self, other: "Storage") -> bool:
        """Return whether `other` has the same URLs and options."""
        mine, theirs = (
            (
                storage.given_url if storage.is_memory else storage.url,
                storage.replicas.urls if storage.replicas else (),
                storage.options,
            )
            for storage in (self, other)
        )
        return mine == theirs

    @property
    def display_url(self) -> str:
        """The URL with every password replaced, safe to print."""
        return mask_url(self.url)

    def session(self, *, read_only: bool = False) -> AbstractContextManager[Session]:
        """Open a session: commit at the end of the block, roll back when it raises.

        A `read_only` session reads one snapshot and raises ReadOnlyError for a write; an up-to-date replica answers it
        if there is one, else the primary. Raises NotInitializedError, SchemaOutdatedError or SchemaTooNewError if the
        schema is not at this library's revision.
        """
        return self._session_on(self._open_reader if read_only else lambda: self.engine)

    @contextmanager
    def _session_on(self, open_bind: Callable[[], Engine | Connection]) -> Generator[Session]:
        self.require_schema()
        bind = open_bind()
        # close_resets_only=False: a session used after its block raises an error; otherwise it would begin a
        # transaction that is never committed.
        session = StorageSession(bind, expire_on_commit=False, close_resets_only=False)
        try:
            yield session
            session.commit()
        except (OperationalError, ProgrammingError, NotInitializedError):
            session.expunge_all()
            session.rollback()
            self.require_schema(refresh=True)  # the true error, if another process has changed the schema meanwhile
            raise
        except BaseException:
            session.expunge_all()  # rollback() expires the objects, and error handlers may need their ids
            session.rollback()
            raise
        finally:
            session.close()
            if isinstance(bind, Connection):
                bind.close()

    def run_in_transaction(
        self, fn: Callable[[Session], Result], *, attempts: int = TRANSACTION_ATTEMPTS, read_only: bool = False
    ) -> Result:
        """Return what `fn(session)` returns, once its transaction is committed.

        If the database rolled the transaction back (RetryableError), runs `fn` again after a short random delay, up to
        `attempts` times in all. So `fn` must have no effects outside the database that must not happen twice. Does not
        repeat what may have been committed: raises CommitUnknownError if the connection was lost during the commit, and
        the RetryableError itself if `fn` had committed before it.
        """
        return self._repeat(fn, lambda: self.session(read_only=read_only), attempts)

    def run_step(self, fn: Callable[[Session], Result], *, attempts: int = TRANSACTION_ATTEMPTS) -> Result:
        """Do what run_in_transaction() does, in one round trip if `fn` executes a single statement.

        Where a statement can write two tables (PostgreSQL), it is executed in autocommit, without BEGIN and COMMIT. If
        `fn` turns out to need several statements, it is run again in a transaction. See ADR 25.
        """
        # Behind PgBouncer the settings of the session belong to a transaction.
        if self.backend.has_writing_ctes and not self.options.pgbouncer:
            with suppress(SeveralStatementsError):
                return self._repeat(fn, lambda: self._session_on(lambda: self._step_engine), attempts)
        return self.run_in_transaction(fn, attempts=attempts)

    def look(self, read: Callable[[Connection], Result]) -> Result:
        """Return what `read(connection)` returns after one query, without the cost of a session."""
        # On SQLite, where a query begins no transaction, turning autocommit on and off would only take time.
        one_trip = self.backend.has_writing_ctes and not self.options.pgbouncer
        with (self._step_engine if one_trip else self.engine).connect() as connection:
            return read(connection)

    def _repeat(
        self,
        fn: Callable[[Session], Result],
        open_session: Callable[[], AbstractContextManager[Session]],
        attempts: int,
    ) -> Result:
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        attempt = 1
        while True:
            session: Session | None = None
            try:
                with open_session() as session:
                    return fn(session)
            except RetryableError:
                if attempt >= attempts or (session is not None and "committed" in session.info):
                    raise
                time.sleep(TRANSACTION_RETRY.delay(attempt))
                attempt += 1

    def read_revision(self) -> str | None:
        """Return the revision stored in the database, or None if there is none. Executes one query.

        Raises ForeignDatabaseError if there are several.
        """
        return schema_check.read_revision(self.engine) if self.backend.is_present(self.url) else None

    def require_schema(self, *, refresh: bool = False) -> None:
        """Raise NotInitializedError, SchemaOutdatedError or SchemaTooNewError unless the schema is at the head.

        Raises SchemaDamagedError if the database says that it is, but lacks a table or column, and ForeignDatabaseError
        for a revision of another program. Queries the database until the check has succeeded once; with `refresh`,
        every time.
        """
        if self._schema_checked and not refresh:
            return
        was_checked, self._schema_checked = self._schema_checked, False
        is_present = self.backend.is_present(self.url)
        revision, is_whole = schema_check.find_revision(self.engine) if is_present else (None, False)
        if revision is None:
            raise self._explain_missing_schema()
        schema_check.require_head(revision, is_whole, self.display_url)
        if not was_checked:
            self.backend.check_file(self.engine)
        self._schema_checked = True

    def forget_schema(self) -> None:
        """Check the schema again at the next session: a restore may have replaced it."""
        self._schema_checked = False

    def _explain_missing_schema(self) -> StorageError:
        if not self.backend.is_present(self.url):
            return NotInitializedError(
                f"The database {self.display_url} does not exist: check DATABASE_URL for a mistake, or create the "
                "database with init_db(), `dgx-storage init` or `just db-init`."
            )
        tables = set(inspect(self.engine).get_table_names()) - {"alembic_version"}
        if tables and not tables & set(TABLES):
            return ForeignDatabaseError(
                f"The database {self.display_url} holds tables of another program, such as {min(tables)}: check "
                "DATABASE_URL. Nothing was changed."
            )
        return NotInitializedError(
            f"The database {self.display_url} is not initialized yet: call init_db(), or run `dgx-storage init` or "
            "`just db-init`."
        )

    def dispose(self, *, close: bool = True) -> None:
        """Close every idle connection; a memory database keeps its data until the Storage itself is deleted.

        Ends the watches of generations. With `close=False` the pools drop the connections without closing them: after a
        fork they belong to the parent.
        """
        if close:
            self.due_wakeups.close()
            self.commit_wakeups.close()
        for engine in self.engines:
            engine.dispose(close=close)

    def _open_reader(self) -> Engine | Connection:
        """Return the bind of a read-only session: a connection to a replica, or the engine of the primary."""
        return (self.replicas.connect() if self.replicas else None) or self._read_only_engine

    def __repr__(self) -> str:
        return f"<Storage {self.display_url}>"


def translate_errors(engine: Engine) -> None:
    """Turn the driver errors that `engine` raises into StorageErrors: chained, with `orig`, no passwords or prompts.

    See ADR 13.
    """
    backend = backend_for(engine)

    @event.listens_for(engine, "handle_error")
    def translate(context: ExceptionContext) -> BaseException | None:
        original = context.original_exception
        if type(original) in (TypeError, ValueError):  # a value that its column type refused, not the driver
            return type(original)(*original.args)
        error = backend.translate(original, phase=_phase(context), is_disconnect=context.is_disconnect)
        if isinstance(error, (ReadOnlyError, UnreachableError)) and (reason := backend.explain(engine.url)):
            error.args = (reason,)
        if isinstance(error, (CorruptError, UnreachableError)):
            error.args = (f"{error} ({mask_url(engine.url)})",)  # names the database: a copy and replicas use several
        return error


def _phase(context: ExceptionContext) -> Phase:
    if context.connection is None:
        return "connect"
    options = context.connection.get_execution_options()
    if options.get("is_step", False):
        return "commit"  # the statement commits itself
    # The traceback says whether it was COMMIT: listeners to the engine's "commit" would cost each session 20 µs.
    calls = traceback.walk_tb(context.original_exception.__traceback__)
    is_commit = any(frame.f_code.co_name == "do_commit" for frame, _ in calls)
    return "commit" if is_commit and not options.get("read_only", False) else "statement"


def get_default() -> Storage | None:
    """Return the default Storage, or None if none has been opened yet."""
    return _default


def get_storage() -> Storage:
    """Return the default Storage: the one that init_db() opened last, or else a new one at DATABASE_URL."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Storage()
        return _default


def set_storage(storage: Storage) -> Storage:
    """Make `storage` the default and close the idle connections of the previous default; return `storage`."""
    global _default
    with _default_lock:
        previous, _default = _default, storage
    if previous is not None and previous is not storage:
        previous.engine.pool.dispose()  # unlike engine.dispose(), keeps the pool for open sessions
    return storage


def _refuse_writes(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    if connection.get_execution_options().get("read_only", False) and is_refused_when_reading(statement, context):
        raise ReadOnlyError("This session is read-only: open one without read_only=True to write.")


def _close_idle_connections() -> None:
    """Close idle connections before a fork, so that the child inherits only those in use.

    SQLite in the child would assume that it holds the parent's file locks, and after the parent has closed its last
    connection, the child's commits would go to a deleted WAL (https://sqlite.org/howtocorrupt.html, section 2.6).
    """
    hold_all()  # first: their threads may be using a connection, which would then become idle
    for storage in list(_open_storages):
        # Unlike engine.dispose(), pool.dispose() keeps the pool, to which connections in use return.
        for engine in storage.engines:
            engine.pool.dispose()


def _forget_connections() -> None:
    """Drop all connections in a forked child without closing them: they belong to the parent."""
    global _default_lock
    _default_lock = Lock()  # a thread of the parent may have held it during the fork
    forget_all()
    for storage in list(_open_storages):
        storage.dispose(close=False)


_default: Storage | None = None
_default_lock = Lock()
_open_storages: weakref.WeakSet[Storage] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_idle_connections, after_in_parent=release_all, after_in_child=_forget_connections)
