"""PostgreSQL through psycopg 3: pool, timeouts, snapshots, advisory lock, error codes."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    NullPool,
    Select,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert

from ..errors import (
    BusyError,
    ConflictError,
    ConstraintError,
    CorruptError,
    DisconnectedError,
    DriverMissingError,
    FullError,
    NotInitializedError,
    ReadOnlyError,
    SerializationError,
    StatementTimeoutError,
    StorageError,
    UnreachableError,
)
from ..models import CLAIM_ORDER, PENDING, Generation, Prompt
from ..schema import BIG_INTEGER_LIMIT
from .base import EngineOptions, inline, priorities

MIGRATION_LOCK = 0x6467785F6D757369  # "dgx_musi": any constant that no other program on the server uses

# Prefixes of SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), the first that fits.
ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("40001", SerializationError),
    ("40P01", SerializationError),
    ("55P03", BusyError),
    ("53300", BusyError),
    ("57014", StatementTimeoutError),
    ("57P0", DisconnectedError),
    ("25P03", DisconnectedError),
    ("08", DisconnectedError),
    ("25006", ReadOnlyError),
    ("53100", FullError),
    ("23505", ConflictError),
    ("23", ConstraintError),
    ("22", ConstraintError),
    ("42P01", NotInitializedError),
    ("28", UnreachableError),
    ("3D000", UnreachableError),
    ("XX001", CorruptError),
    ("XX002", CorruptError),
)


class PostgreSQL:
    """The grown-up engine: many writers at once, one server or a primary with replicas."""

    name = "postgresql"

    def resolve_url(self, url: URL) -> URL:
        # SQLAlchemy 2.0 would take psycopg2 for a bare postgresql://
        return url.set(drivername="postgresql+psycopg")

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        timeouts = {
            "statement_timeout": options.statement_timeout,
            "lock_timeout": options.lock_timeout,
            "idle_in_transaction_session_timeout": options.idle_transaction_timeout,
        }
        settings = " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in timeouts.items() if seconds)
        given = url.query.get("options", "")
        engine = self._create_engine(
            url,
            echo=options.echo,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            pool_pre_ping=True,
            json_deserializer=load_json,
            connect_args={"options": f"{settings} {given}".strip()},  # the URL's come last and win
        )

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            connection.adapters.register_loader("timestamptz", _lenient_timestamptz())

        return engine

    def _create_engine(self, url: URL, **arguments: Any) -> Engine:
        try:
            return create_engine(url, hide_parameters=True, **arguments)
        except ModuleNotFoundError as error:
            raise DriverMissingError(orig=error) from error

    def is_present(self, url: URL) -> bool:
        return True

    def create_database(self, url: URL) -> None:
        return None

    def keep_alive(self, url: URL) -> None:
        return None

    def read_only(self, engine: Engine) -> Engine:
        return engine.execution_options(read_only=True, isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def create_migration_engine(self, url: URL) -> Engine:
        return self._create_engine(url, poolclass=NullPool)

    def lock_migrations(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})

    def prepare_file(self, connection: Connection) -> None:
        return None

    def translate(self, error: BaseException, *, is_disconnect: bool, is_connecting: bool) -> StorageError | None:
        import psycopg  # only where a PostgreSQL error can come from is the driver there for sure

        if not isinstance(error, psycopg.Error):
            return None
        diagnosis = error.diag
        if diagnosis.message_primary:
            # The detail and the context quote rows, and class 22 (bad values) even in the message; rows hold prompts.
            quotes = (error.sqlstate or "").startswith("22")
            error.args = (type(error).__name__ if quotes else diagnosis.message_primary,)
        kind = next((kind for prefix, kind in ERRORS if (error.sqlstate or "").startswith(prefix)), None)
        if is_connecting and kind in (None, DisconnectedError):
            kind = UnreachableError
        elif is_disconnect:
            kind = DisconnectedError
        if kind is None:
            return None
        message = (kind.__doc__ or "").strip()
        subject = diagnosis.constraint_name or diagnosis.column_name
        return kind(f"{message} ({subject})" if subject else message, orig=error)

    def now(self, plus_seconds: float = 0.0) -> ColumnElement[datetime]:
        clock: ColumnElement[datetime] = func.clock_timestamp()
        return clock + literal(timedelta(seconds=plus_seconds)) if plus_seconds else clock

    def take_due(
        self, waiting: Sequence[ColumnElement[bool]], columns: Sequence[Any], limit: int, *, locked: bool = True
    ) -> Select[Any]:
        # A clock that is asked once can bound an index scan; the bare volatile function would filter row by row.
        due = Generation.scheduled_at <= select(self.now()).scalar_subquery()
        levels = priorities(waiting, due)
        rows = select(*columns).where(*waiting, Generation.priority == levels.c.priority, due)
        rows = rows.order_by(*CLAIM_ORDER[1:]).limit(inline(limit))
        first = (rows.with_for_update(skip_locked=True) if locked else rows).lateral()
        # Lateral and without an order of its own: a nested loop that looks into the next priority, and locks a row,
        # only while rows are wanted (https://www.postgresql.org/docs/current/queries-with.html, on LIMIT).
        return select(first).select_from(levels.join(first, true())).limit(inline(limit))

    def lock_pending(self, ids: Select[Any], limit: int) -> Select[Any]:
        wanted = ids.subquery()
        row = select(Generation.id).where(Generation.id == wanted.c.id, PENDING).limit(inline(1))
        locked = row.with_for_update(skip_locked=True).lateral()
        return select(locked).select_from(wanted.join(locked, true())).limit(inline(limit))

    def insert(self, table: Any) -> Any:
        return postgresql_insert(table)

    def prompt_key(self) -> list[Any]:
        return [text("md5(text)")]

    def prompt_is(self, text: str) -> ColumnElement[bool]:
        return (func.md5(Prompt.text) == func.md5(text)) & (Prompt.text == text)


def load_json(text: str | bytes) -> Any:
    """Return what JSONB holds. It writes 1e300 out in digits, so an integer larger than any we store was a float."""
    return json.loads(text, parse_int=_parse_int)


def _parse_int(digits: str) -> int | float:
    number = int(digits) if len(digits) <= 20 else None
    return number if number is not None and abs(number) <= BIG_INTEGER_LIMIT else float(digits)


@cache
def _lenient_timestamptz() -> type[Any]:
    """Return psycopg's loader of times, made to give None for what Python has none for: infinity and years B.C."""
    import psycopg
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    fast: Any = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, Format.TEXT)

    class LenientTimestamptz(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = fast(oid, context).load

        def load(self, data: Any) -> Any:
            try:
                return self._load(data)
            except psycopg.DataError:
                return None

    return LenientTimestamptz
