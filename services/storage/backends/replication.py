"""Replicas of PostgreSQL: how they are opened, and how far they have replayed the log of the primary. See ADR 30."""

from dataclasses import replace
from typing import Final, Protocol

from sqlalchemy import URL, Connection, Engine, text

from ..settings import EngineOptions
from .base import LogPosition

REPLICA_CONNECT_SECONDS: Final = 2.0

PRIMARY_POSITION = text(
    "SELECT pg_current_wal_insert_lsn()::text, (SELECT system_identifier::text FROM pg_control_system())"
)
REPLICA_POSITION = text(
    "SELECT (SELECT system_identifier::text FROM pg_control_system()) = :system, "
    "pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= CAST(:lsn AS pg_lsn)"
)


class PrimaryBackend(Protocol):
    """What replication needs of the backend that it belongs to."""

    def resolve_url(self, url: URL) -> URL: ...

    def create_engine(self, url: URL, options: EngineOptions, *, pre_ping: bool = True) -> Engine: ...


class StreamingReplication:
    """PostgreSQL's streaming replication: one log, and positions in it."""

    def __init__(self, backend: PrimaryBackend) -> None:
        self._backend = backend

    def resolve_url(self, url: URL) -> URL:
        if has_many_hosts(url) and "target_session_attrs" not in url.query:
            url = url.update_query_dict({"target_session_attrs": "prefer-standby"})
        return self._backend.resolve_url(url)

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        # No ping: has_reached() is asked of every connection anyway. The primary is there to fall back on, so no
        # reader waits for long.
        patience = min(options.connect_timeout, REPLICA_CONNECT_SECONDS)
        return self._backend.create_engine(url, replace(options, connect_timeout=patience), pre_ping=False)

    def primary_position(self, connection: Connection) -> LogPosition:
        # What is inserted, not what is flushed: with synchronous_commit=off a commit is flushed later.
        lsn, system = connection.execute(PRIMARY_POSITION).one()
        return LogPosition(lsn, system)

    def has_reached(self, connection: Connection, position: LogPosition) -> bool | None:
        same, reached = connection.execute(REPLICA_POSITION, {"lsn": position.lsn, "system": position.system}).one()
        return bool(reached) if same else None


def has_many_hosts(url: URL) -> bool:
    """Tell whether a URL names more than one host."""
    hosts = url.query.get("host", "")
    return "," in hosts if isinstance(hosts, str) else len(hosts) > 1
