"""Replicas of a primary: choose the one that answers a reader. Contains no sessions and no SQL. See ADR 18.

A replica may answer if it shows every commit of this process, and those of other processes up to `replica_max_lag`
seconds ago. Both follow from one check: it has replayed the log up to a known position of the primary. The first reader
after a commit of this process queries the primary for that position, other readers once in `replica_max_lag` seconds.
So commits take no longer, and no two clocks are compared.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, event

from .backends import Backend, LogPosition, Replication, is_write
from .errors import BusyError, DisconnectedError, PoolTimeoutError, StorageError, UnreachableError
from .settings import EngineOptions

SKIP_SECONDS = 5.0  # how long readers skip a replica that is down, so that not each of them waits for the timeout

log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """A position of the primary, the last commit it covers, and the monotonic time until which it is used."""

    position: LogPosition
    covers: object
    fresh_until: float


class Replicas:
    """The replicas of one primary. Raises ValueError for a database system without replicas."""

    def __init__(self, backend: Backend, primary: Engine, urls: Sequence[URL], options: EngineOptions) -> None:
        if backend.replication is None:
            raise ValueError(f"replica_urls must be empty with {backend.name}, which has no replicas: use PostgreSQL")
        if any(url.get_backend_name() != backend.name for url in urls):
            raise ValueError(f"replica_urls must be of the same database system as database_url: {backend.name}")
        self._backend = backend
        self._replication: Replication = backend.replication
        self._primary = primary
        self._max_lag = options.replica_max_lag
        self.urls = tuple(self._replication.resolve_url(url) for url in urls)
        self.engines = tuple(self._replication.create_engine(url, options) for url in self.urls)
        self._round_robin = itertools.count()
        self._skip_until = [0.0] * len(self.engines)
        self._sample: _Sample | None = None
        self._last_commit = object()  # identifies the latest commit: each commit replaces the object
        self._watch_commits()

    def connect(self) -> Connection | None:
        """Return a read-only connection to a replica that may answer now, or None if the primary has to answer.

        Uses the replicas in rotation. Raises PoolTimeoutError if no connection of a pool becomes free in time.
        """
        position = self._position()
        if position is None:
            return None
        start = next(self._round_robin)
        for offset in range(len(self.engines)):
            index = (start + offset) % len(self.engines)
            if time.monotonic() < self._skip_until[index]:
                continue
            try:
                connection = self._connect(self.engines[index], position)
            except PoolTimeoutError:
                raise
            except StorageError as error:
                self._skip_until[index] = time.monotonic() + SKIP_SECONDS
                log.warning("replica %d of %d is skipped for a while: %s", index + 1, len(self.engines), error)
                continue
            if connection is not None:
                return connection
        return None

    def measure_lag(self) -> list[int | None]:
        """Return how many bytes of the primary's log each replica has not replayed yet; None for one that is down."""
        with self._primary.connect() as connection:
            position = self._replication.primary_position(connection)
        found: list[int | None] = []
        for engine in self.engines:
            try:
                with engine.connect() as connection:
                    found.append(self._replication.bytes_behind(connection, position))
            except StorageError:
                found.append(None)
        return found

    def _position(self) -> LogPosition | None:
        """Return the position that a replica must have reached, or None if it cannot be determined."""
        sample, last_commit, now = self._sample, self._last_commit, time.monotonic()
        if sample is not None and sample.covers is last_commit and now < sample.fresh_until:
            return sample.position
        try:
            with self._primary.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")  # one round trip instead of three
                position = self._replication.primary_position(connection)
        except (UnreachableError, BusyError, DisconnectedError):
            if sample is None or sample.covers is not last_commit:
                return None
            position = sample.position  # without a primary, a replica that shows our own writes may answer
        self._sample = _Sample(position, last_commit, now + self._max_lag)
        return position

    def _connect(self, engine: Engine, position: LogPosition) -> Connection | None:
        for is_retry in (False, True):
            connection = engine.connect()
            try:
                # Outside the reader's transaction, whose snapshot would be older than the position that is checked.
                connection.execution_options(isolation_level="AUTOCOMMIT")
                reached = self._replication.has_reached(connection, position)
                connection.rollback()
                if reached:
                    return self._backend.read_only(connection)
            except DisconnectedError:
                connection.close()
                if is_retry:
                    raise
                continue  # an idle connection broke when the server restarted; the pool has discarded it
            except BaseException:
                connection.close()
                raise
            connection.close()
            if reached is None:
                raise UnreachableError("It is not a replica of this primary: check DATABASE_REPLICA_URLS.")
            return None
        return None

    def _watch_commits(self) -> None:
        """Record every commit on the primary that wrote something, made by a session or by a connection."""

        @event.listens_for(self._primary, "before_cursor_execute")
        def write(
            connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
        ) -> None:
            if is_write(statement, context):
                connection.info["wrote"] = True

        @event.listens_for(self._primary, "commit")
        def commit(connection: Connection) -> None:
            if connection.info.get("wrote"):
                self._last_commit = object()

        @event.listens_for(self._primary, "checkin")
        def checkin(connection: Any, record: Any) -> None:
            # Again, because the event above precedes the commit: another thread may have read the position in between.
            if record.info.pop("wrote", False):
                self._last_commit = object()
