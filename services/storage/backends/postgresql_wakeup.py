"""LISTEN and NOTIFY: tells when another session has submitted generations that are due. See ADR 35."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import URL, ColumnElement, Engine, Select, func, literal_column

from ..settings import EngineOptions
from .wakeup import NEVER_SECONDS, ChangeSource, Interruptible, Ticker

# Notifications stay within a database. Two storages in one database have different schemas.
CHANNEL: Final = "'dgx_due_' || md5(coalesce(current_schema(), ''))"
COMMIT_INTERVAL_SECONDS: Final = 0.01  # with the pause after each call, one look in 30 ms


class PostgreSQLWakeups:
    """The wake-ups of PostgreSQL; see WakeupDialect."""

    def open_due_source(self, url: URL, options: EngineOptions) -> ChangeSource:
        if not options.wakeup or options.pgbouncer:  # in transaction mode, PgBouncer passes no notifications on
            return Ticker(NEVER_SECONDS)
        return Notifications(self.create_engine(url, replace(options, pool_size=1, max_overflow=0), pre_ping=False))

    def open_commit_source(self, url: URL, options: EngineOptions) -> ChangeSource:
        # No notification for each commit: it makes commits wait for each other.
        return Ticker(COMMIT_INTERVAL_SECONDS)

    def announce_due(self) -> ColumnElement[Any]:
        return func.pg_notify(literal_column(CHANNEL), "")

    create_engine: Callable[..., Engine]


class Notifications(Interruptible):
    """A session that listens. Raises a StorageError if the server cannot be reached or refuses to listen."""

    pauses: Final = ()

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_notified = False
        try:
            self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._channel = self._connection.exec_driver_sql(f"SELECT {CHANNEL}").scalar()
            self.resume()
        except BaseException:
            engine.dispose()
            raise
        driver: Any = self._connection.connection.dbapi_connection
        self._libpq = driver.pgconn
        super().__init__(self._libpq.socket)

    def wait(self, seconds: float, idle_seconds: float) -> bool:
        if not self.wait_for_descriptors(seconds):
            return False
        self._libpq.consume_input()  # raises OperationalError when the server has closed the connection
        while self._libpq.notifies():
            self._is_notified = True
        return self._is_notified

    def has_changed(self) -> bool:
        is_notified, self._is_notified = self._is_notified, False
        return is_notified

    def has_row(self, query: Select[Any]) -> bool:
        return True

    def pause(self) -> None:
        # The server wakes the process of a session that listens for each commit that notifies, which took 7 % of the
        # time of creates that follow each other without a pause.
        self._connection.exec_driver_sql(f'UNLISTEN "{self._channel}"')

    def resume(self) -> bool:
        self._is_notified = False
        self._connection.exec_driver_sql(f'LISTEN "{self._channel}"')
        return True

    def close(self) -> None:
        self.close_descriptors()
        try:
            self._connection.invalidate()  # the pool would keep the session, which listens
            self._connection.close()
        finally:
            self._engine.dispose()
