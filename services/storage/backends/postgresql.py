"""PostgreSQL through psycopg 3: pool, timeouts, snapshots, advisory lock, replicas' positions, error codes."""

import json
import math
import re
from decimal import Decimal
from functools import cache
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    NullPool,
    Table,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.orm import Session

from ..errors import (
    AccessDeniedError,
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
from ..settings import EngineOptions
from ..types import dump_json
from .base import Bind
from .postgresql_sql import PostgreSQLSQL
from .replication import StreamingReplication, has_many_hosts
from .tsvector import TSVectorSearch

MIGRATION_LOCK = 0x6467785F6D757369  # "dgx_musi": any constant that no other program on the server uses

# Prefixes of SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), the first that fits.
ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("40001", SerializationError),
    ("40P01", SerializationError),
    ("40003", DisconnectedError),
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
    ("54", ConstraintError),
    ("42P01", NotInitializedError),
    ("42501", AccessDeniedError),
    ("0A000", ReadOnlyError),  # SQLAlchemy asks a standby for a transaction that may write
    ("28", UnreachableError),
    ("3D000", UnreachableError),
    ("58", UnreachableError),
    ("XX001", CorruptError),
    ("XX002", CorruptError),
)

# What libpq is told unless the URL says otherwise (https://www.postgresql.org/docs/current/libpq-connect.html). A host
# that vanishes without a word is noticed after a minute when idle, after half a minute when spoken to; by default
# after two hours and a quarter of an hour.
CONNECTION: dict[str, Any] = {
    "fallback_application_name": "dgx-storage",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

# A JSON string, to be left alone, or a number with an exponent.
JSON_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.]*[eE][-+]?[0-9]+')


class PostgreSQL(PostgreSQLSQL, TSVectorSearch):
    """The grown-up engine: many writers at once, one server or a primary with replicas."""

    name = "postgresql"

    @property
    def replication(self) -> StreamingReplication:
        return StreamingReplication(self)

    def resolve_url(self, url: URL) -> URL:
        # SQLAlchemy 2.0 would take psycopg2 for a bare postgresql://
        url = url.set(drivername="postgresql+psycopg")
        if has_many_hosts(url) and "target_session_attrs" not in url.query:
            # The first host that answers may be a standby, which refuses every write.
            url = url.update_query_dict({"target_session_attrs": "read-write"})
        return url

    def create_engine(self, url: URL, options: EngineOptions, *, pre_ping: bool = True) -> Engine:
        arguments = CONNECTION | {"connect_timeout": math.ceil(options.connect_timeout)}
        arguments = {name: value for name, value in arguments.items() if name not in url.query}
        if options.pgbouncer:
            # In transaction mode a server connection changes hands at every commit: it keeps no prepared statement,
            # and PgBouncer refuses a connection that asks for `options`. The role carries the timeouts instead.
            arguments["prepare_threshold"] = None
        else:
            arguments["options"] = _settings(url, options)
        engine = self._create_engine(
            url,
            echo=options.echo,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            pool_recycle=options.pool_recycle or -1,
            pool_pre_ping=pre_ping,
            pool_use_lifo=True,  # connections that a quiet hour does not need grow old and are replaced, not kept warm
            json_deserializer=load_json,
            connect_args=arguments,
        )

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            connection.adapters.register_loader("timestamptz", _lenient_timestamptz())

        @event.listens_for(engine, "handle_error")
        def leave_standby(context: ExceptionContext) -> None:
            # A server that has become a standby refuses writes (25006): the next call must find the new primary.
            connection = context.connection
            if getattr(context.original_exception, "sqlstate", None) == "25006" and connection is not None:
                context.is_disconnect = not connection.get_execution_options().get("read_only", False)

        return engine

    def _create_engine(self, url: URL, **arguments: Any) -> Engine:
        try:
            engine = create_engine(url, hide_parameters=True, json_serializer=dump_jsonb, **arguments)
        except ModuleNotFoundError as error:
            raise DriverMissingError(orig=error) from error

        @event.listens_for(engine, "connect", insert=True)  # before the dialect, which fails in SQL_ASCII
        def require_unicode(connection: Any, record: Any) -> None:
            if connection.info.parameter_status("server_encoding") not in (None, "UTF8"):
                connection.close()  # SQLAlchemy 2.0 would leave it to the garbage collector
                raise UnreachableError(
                    "The database cannot hold every prompt: make one with createdb --encoding=UTF8 -T template0."
                )

        return engine

    def is_present(self, url: URL) -> bool:
        return True

    def create_database(self, url: URL) -> None:
        return None

    def open_anchor(self, url: URL) -> None:
        return None

    def read_only(self, bind: Bind) -> Bind:
        return bind.execution_options(read_only=True, isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def create_migration_engine(self, url: URL) -> Engine:
        # Nothing prepared, because PgBouncer may stand between.
        return self._create_engine(url, poolclass=NullPool, connect_args={"prepare_threshold": None})

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
        elif is_disconnect and kind is not ReadOnlyError:
            kind = DisconnectedError
        if kind is None:
            return None
        message = (kind.__doc__ or "").strip()
        subject = diagnosis.constraint_name or diagnosis.column_name
        return kind(f"{message} ({subject})" if subject else message, orig=error)

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        key = table.autoincrement_column
        if key is None:
            return
        last = select(func.max(key)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(table.name, key.name)
        connection.execute(select(func.setval(sequence, func.coalesce(last, 1), last.is_not(None))))

    def check_integrity(self, session: Session) -> list[str]:
        return []  # the server's own matter: pg_amcheck, and checksums of its pages


def load_json(text: str | bytes) -> Any:
    """Return what JSONB holds; an integer with more digits than Python reads, which others wrote, as a float."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= 4_000 else float(digits))


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


def dump_jsonb(value: Any) -> str:
    """Return `value` as JSON in which a float stays a float.

    JSONB holds numbers as decimals: 1e16 would come back as an integer, and 1.2345678901234567e17 as one that is not
    even equal. What has a fraction keeps it, so 10000000000000000.0 comes back as the float it was.
    """
    document = dump_json(value)
    if "e+" not in document:
        return document
    return JSON_EXPONENT.sub(_without_exponent, document)


def _without_exponent(token: re.Match[str]) -> str:
    number = token.group()
    if number.startswith('"'):
        return number
    plain = format(Decimal(number), "f")
    return plain if "." in plain else f"{plain}.0"


def _settings(url: URL, options: EngineOptions) -> str:
    """Return the server settings a connection starts with; the URL's come last and win."""
    timeouts = {
        "statement_timeout": options.statement_timeout,
        "lock_timeout": options.lock_timeout,
        "idle_in_transaction_session_timeout": options.idle_transaction_timeout,
    }
    # Rounded up: 0 means no timeout at all.
    settings = [f"-c {name}={math.ceil(seconds * 1000)}" for name, seconds in timeouts.items() if seconds]
    given = url.query.get("options", ())
    return " ".join([*settings, *([given] if isinstance(given, str) else given)])
