"""The PostgreSQL backend, through psycopg 3: pool, timeouts, snapshots, advisory lock, error codes."""

import math
import re
import time
from decimal import Decimal
from functools import cache
from select import POLLIN, poll
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
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session

from ..errors import DriverMissingError, StorageError, UnreachableError
from ..settings import EngineOptions, read_libpq_options
from ..types import dump_json, load_json
from .base import Bind, ConnectionPool, Phase
from .postgresql_backup import PostgreSQLBackups
from .postgresql_diagnostics import PostgreSQLDiagnostics
from .postgresql_errors import translate
from .postgresql_schema import PostgreSQLSchema
from .postgresql_search import TSVectorSearch
from .postgresql_session import apply_to_connection, apply_to_transactions
from .postgresql_space import PostgreSQLSpace
from .postgresql_sql import PostgreSQLSQL
from .postgresql_wakeup import PostgreSQLWakeups
from .replication import StreamingReplication, has_many_hosts

PING_SECONDS = 5.0  # of idleness, after which a connection is tested before use: its server may be gone silently
MIGRATION_LOCK_TIMEOUT_SECONDS = 600.0  # for the migration of another process, which may rewrite millions of rows
MIGRATION_LOCK = 0x6467785F6D757369  # the bytes "dgx_musi": a key that no other program on the server should use

# libpq's connection parameters unless the URL sets them (https://www.postgresql.org/docs/current/libpq-connect.html).
# With these, a host that disappears is detected after 60 seconds on an idle connection and after 30 seconds during a
# statement; with the system's defaults after two hours and 15 minutes.
CONNECT_ARGUMENTS: dict[str, Any] = {
    "fallback_application_name": "dgx-storage",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

# A JSON string, which stays as it is, or a number with an exponent.
JSON_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.]*[eE][-+]?[0-9]+')


class PostgreSQL(
    PostgreSQLSQL, PostgreSQLSchema, PostgreSQLDiagnostics, PostgreSQLSpace, PostgreSQLWakeups, TSVectorSearch
):
    """PostgreSQL: many concurrent writers; one server, or a primary with replicas."""

    name = "postgresql"

    @property
    def backups(self) -> PostgreSQLBackups:
        return PostgreSQLBackups()

    @property
    def replication(self) -> StreamingReplication:
        return StreamingReplication(self)

    def resolve_url(self, url: URL) -> URL:
        # SQLAlchemy 2.0 uses psycopg2 for postgresql:// without a driver.
        url = url.set(drivername="postgresql+psycopg")
        if has_many_hosts(url) and "target_session_attrs" not in url.query:
            # Without it, libpq connects to the first host that answers, which may be a read-only standby.
            url = url.update_query_dict({"target_session_attrs": "read-write"})
        return url

    def create_engine(self, url: URL, options: EngineOptions, *, pre_ping: bool = True) -> Engine:
        arguments = CONNECT_ARGUMENTS | {"connect_timeout": math.ceil(options.connect_timeout)}
        arguments = {name: value for name, value in arguments.items() if name not in url.query}
        if options.pgbouncer:
            # In transaction mode each transaction may use another server connection, so prepared statements are lost,
            # and PgBouncer refuses connections with `options`. Set the timeouts on the role instead (ALTER ROLE … SET).
            arguments["prepare_threshold"] = None
        else:
            arguments["options"] = _server_settings(url, options)
        engine = self._create_engine(
            url,
            per_transaction=options.pgbouncer,
            echo=options.echo,
            poolclass=ConnectionPool,
            pool_size=options.pool_size,
            max_overflow=options.max_overflow,
            pool_timeout=options.pool_timeout,
            pool_recycle=options.pool_recycle or -1,
            pool_use_lifo=True,  # in quiet hours surplus connections stay unused until pool_recycle replaces them
            json_deserializer=load_jsonb,
            execution_options={"announces_due": options.wakeup},
            connect_args=arguments,
        )

        if pre_ping:
            _ping_suspects(engine)
        _execute_alone(engine)

        @event.listens_for(engine, "connect")
        def configure(connection: Any, record: Any) -> None:
            connection.adapters.register_loader("timestamptz", _lenient_timestamptz())

        @event.listens_for(engine, "handle_error")
        def leave_standby(context: ExceptionContext) -> None:
            # A primary that became a standby refuses writes (25006): drop the connection so that the next one is made
            # to the new primary.
            connection = context.connection
            if getattr(context.original_exception, "sqlstate", None) == "25006" and connection is not None:
                context.is_disconnect = not connection.get_execution_options().get("read_only", False)

        return engine

    def _create_engine(self, url: URL, *, per_transaction: bool, **arguments: Any) -> Engine:
        try:
            # The isolation level is part of BEGIN, so a default of the role or the database does not count.
            engine = create_engine(
                url, hide_parameters=True, isolation_level="READ COMMITTED", json_serializer=dump_jsonb, **arguments
            )
        except ModuleNotFoundError as error:
            raise DriverMissingError(orig=error) from error

        @event.listens_for(engine, "connect", insert=True)  # before the dialect, which fails in SQL_ASCII
        def configure_session(connection: Any, record: Any) -> None:
            try:
                require_unicode(connection)
                if not per_transaction:
                    apply_to_connection(connection)
            except Exception:
                connection.close()  # SQLAlchemy 2.0 would leave it to the garbage collector
                raise

        if per_transaction:
            apply_to_transactions(engine)
        return engine

    def is_present(self, url: URL) -> bool:
        return True

    def create_database(self, url: URL) -> None:
        return None

    def explain(self, url: URL) -> None:
        return None

    def open_anchor(self, url: URL, options: EngineOptions) -> None:
        return None

    def read_only(self, bind: Bind) -> Bind:
        return bind.execution_options(read_only=True, isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def create_migration_engine(self, url: URL, options: EngineOptions) -> Engine:
        # No prepared statements, because PgBouncer may be between this process and the server.
        return self._create_engine(
            url, per_transaction=True, poolclass=NullPool, connect_args={"prepare_threshold": None}
        )

    def lock_migrations(self, connection: Connection, options: EngineOptions) -> None:
        limits = "statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"
        no_limits = text("SELECT set_config(name, '0', true) FROM pg_settings WHERE name = ANY (:names)")
        connection.execute(no_limits, {"names": list(limits)})
        for seconds in (MIGRATION_LOCK_TIMEOUT_SECONDS, options.lock_timeout):
            lock_timeout = text("SELECT set_config('lock_timeout', :milliseconds, true)")
            connection.execute(lock_timeout, {"milliseconds": str(math.ceil(seconds * 1000))})
            # The second time it is held already: only the statements of the migration wait for the shorter time.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})

    def prepare_file(self, connection: Connection) -> None:
        return None

    def check_file(self, engine: Engine) -> None:
        return None

    def translate(self, error: BaseException, *, phase: Phase, is_disconnect: bool) -> StorageError | None:
        return translate(error, phase=phase, is_disconnect=is_disconnect)

    def advance_sequences(self, connection: Connection, table: Table) -> None:
        key = table.autoincrement_column
        if key is None:
            return
        last = select(func.max(key)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(table.name, key.name)
        connection.execute(select(func.setval(sequence, func.coalesce(last, 1), last.is_not(None))))

    def check_integrity(self, session: Session) -> list[str]:
        return []  # PostgreSQL has its own tools for this: pg_amcheck and data checksums


def _ping_suspects(engine: Engine) -> None:
    """Test a pooled connection before use if its socket has data to read or if it was idle for PING_SECONDS.

    SQLAlchemy's pool_pre_ping does so each time, which takes a round trip, as long as a short query. A server that ends
    a connection sends an error and closes the socket, which the operating system reports at once. See ADR 25.
    """
    import psycopg

    @event.listens_for(engine, "checkin")
    def note_time(connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, proxy: Any) -> None:
        idle_since = record.info.pop("idle_since", None)
        if idle_since is None:
            return  # new
        try:
            if time.monotonic() - idle_since > PING_SECONDS or _is_readable(connection.fileno()):
                engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise InvalidatePoolError from error


def _execute_alone(engine: Engine) -> None:
    """Execute a query that is marked as ALONE, and the statement of a step, in autocommit, if no transaction has begun.

    READ COMMITTED gives each statement a snapshot of its own, so the result is the same; BEGIN and COMMIT would be two
    more round trips, each as long as a short query. Another statement begins the transaction. See ADR 25. Here and not
    by the isolation level AUTOCOMMIT, because SQLAlchemy sets and resets that for each session: 75 µs.
    """
    from psycopg.pq import TransactionStatus

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        options, driver = context.execution_options, cursor.connection
        if not (options.get("is_alone", False) or options.get("is_step", False)):
            return False
        if "isolation_level" in options or driver.autocommit:
            return False
        if driver.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        driver.autocommit = True
        try:
            context.dialect.do_execute(cursor, statement, parameters, context)
        finally:
            if driver.pgconn.transaction_status == TransactionStatus.IDLE:
                driver.autocommit = False
            else:
                driver.close()  # lost, or interrupted in the query: the pool must not keep it in autocommit
        return True


def _is_readable(socket: int) -> bool:
    waiting = poll()
    waiting.register(socket, POLLIN)
    return bool(waiting.poll(0))


def require_unicode(connection: Any) -> None:
    if connection.info.parameter_status("server_encoding") not in (None, "UTF8"):
        raise UnreachableError(
            "The encoding of the database is not UTF8: create one with createdb --encoding=UTF8 -T template0."
        )


@cache
def _lenient_timestamptz() -> type[Any]:
    """Return a psycopg loader of times that gives None for those that Python cannot represent: infinity, years B.C."""
    import psycopg
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    base_loader: Any = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, Format.TEXT)

    class LenientTimestamptz(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = base_loader(oid, context).load

        def load(self, data: Any) -> Any:
            try:
                return self._load(data)
            except psycopg.DataError:
                return None

    return LenientTimestamptz


def dump_jsonb(value: Any) -> str:
    """Return `value` as JSON in which floats are written without an exponent.

    JSONB stores numbers as decimals: 1e16 would be read back as an integer, and 1.2345678901234567e17 as an integer of
    another value. JSONB keeps a fraction, so 10000000000000000.0 is read back as the same float.
    """
    document = dump_json(value)
    if "e+" not in document:
        return document
    return JSON_EXPONENT.sub(_without_exponent, document)


def load_jsonb(document: str | bytes) -> Any:
    """Return the value of a JSON document; None if it is too deep for Python, because a row must always load."""
    try:
        return load_json(document)
    except RecursionError:
        return None


def _without_exponent(token: re.Match[str]) -> str:
    number = token.group()
    if number.startswith('"'):
        return number
    digits = format(Decimal(number), "f")
    return digits if "." in digits else f"{digits}.0"


def _server_settings(url: URL, options: EngineOptions) -> str:
    """Return the server settings of new connections as command-line options; those of the URL come last and win."""
    timeouts = {
        "statement_timeout": options.statement_timeout,
        "lock_timeout": options.lock_timeout,
        "idle_in_transaction_session_timeout": options.idle_transaction_timeout,
    }
    # Rounded up, because 0 would mean no timeout.
    settings = [f"-c {name}={math.ceil(seconds * 1000)}" for name, seconds in timeouts.items() if seconds]
    # libpq ignores PGOPTIONS if it gets `options`, and migrations, which set none, follow it.
    url_options = url.query.get("options") or read_libpq_options()
    return " ".join([*settings, *([url_options] if isinstance(url_options, str) else url_options)])
