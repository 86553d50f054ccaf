"""Replicas of a primary: which one may answer a reader now. Knows no session and no SQL; writes nothing.

A replica may answer when it shows all that this process has committed, and everybody else's commits up to
`replica_max_lag` seconds ago. Both are one question: has it replayed the log up to a position the primary was at?
The position is asked of the primary after a commit of this process, when a reader comes, and else once in
`replica_max_lag` seconds; so writers pay nothing, and no clock is compared with another one.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, event

from .backends import Backend, LogPosition, Replication, is_write
from .errors import DisconnectedError, StorageError, UnreachableError
from .settings import EngineOptions

REST_SECONDS = 5.0  # how long a replica that is down is left alone, so that not every reader waits for it

log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """Where the primary was, which of our commits that covers, and until when it counts as fresh."""

    position: LogPosition
    covers: object
    fresh_until: float


class Replicas:
    """The replicas of one primary. Raises ValueError on a database system that has none."""

    def __init__(self, backend: Backend, primary: Engine, urls: Sequence[URL], options: EngineOptions) -> None:
        if backend.replication is None:
            raise ValueError(f"replica_urls must be empty with {backend.name}, which has no replicas: use PostgreSQL")
        if any(url.get_backend_name() != backend.name for url in urls):
            raise ValueError("replica_urls must be of the same database system as database_url")
        self._backend = backend
        self._replication: Replication = backend.replication
        self._primary = primary
        self._max_lag = options.replica_max_lag
        self.urls = tuple(self._replication.resolve_url(url) for url in urls)
        self.engines = tuple(self._replication.create_engine(url, options) for url in self.urls)
        self._turns = itertools.count()
        self._rest_until = [0.0] * len(self.engines)
        self._sample: _Sample | None = None
        self._last_commit = object()  # stands for our latest commit; another one, another object
        self._watch_commits()

    def connect(self) -> Connection | None:
        """Return a read-only connection to a replica that may answer now, each in its turn, or None: ask the primary.

        Raises SQLAlchemy's TimeoutError when a pool has no connection to give.
        """
        position = self._position()
        if position is None:
            return None
        turn = next(self._turns)
        for step in range(len(self.engines)):
            index = (turn + step) % len(self.engines)
            if time.monotonic() < self._rest_until[index]:
                continue
            try:
                connection = self._connect(self.engines[index], position)
            except StorageError as error:
                self._rest_until[index] = time.monotonic() + REST_SECONDS
                log.warning("replica %d of %d is left alone for a while: %s", index + 1, len(self.engines), error)
                continue
            if connection is not None:
                return connection
        return None

    def _position(self) -> LogPosition | None:
        """Return what a replica must have reached, or None when nobody can say."""
        sample, last_commit, now = self._sample, self._last_commit, time.monotonic()
        if sample is not None and sample.covers is last_commit and now < sample.fresh_until:
            return sample.position
        try:
            with self._primary.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")  # one round trip instead of three
                position = self._replication.primary_position(connection)
        except (UnreachableError, DisconnectedError):
            if sample is None or sample.covers is not last_commit:
                return None
            position = sample.position  # a replica that shows our own writes is the best there is without a primary
        self._sample = _Sample(position, last_commit, now + self._max_lag)
        return position

    def _connect(self, engine: Engine, position: LogPosition) -> Connection | None:
        for fresh in (False, True):
            connection = engine.connect()
            try:
                # Outside the reader's transaction: a snapshot taken before the answer could be older than it.
                connection.execution_options(isolation_level="AUTOCOMMIT")
                reached = self._replication.has_reached(connection, position)
                connection.rollback()
                if reached:
                    return self._backend.read_only(connection)
            except DisconnectedError:
                connection.close()
                if fresh:
                    raise
                continue  # the server was restarted under an idle connection, and the pool knows by now
            except BaseException:
                connection.close()
                raise
            connection.close()
            if reached is None:
                raise UnreachableError("it is not a replica of this primary: check DATABASE_REPLICA_URLS")
            return None
        return None

    def _watch_commits(self) -> None:
        """Notice every commit on the primary that wrote something, through sessions and connections alike."""

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
            # Once more, because the event above comes before the commit: another thread may have asked in between.
            if record.info.pop("wrote", False):
                self._last_commit = object()
