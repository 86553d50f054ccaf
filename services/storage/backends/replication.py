"""PostgreSQL's streaming replication: how to open replicas, and how far they have replayed the log. See ADR 18."""

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
BYTES_BEHIND = text(
    "SELECT CASE WHEN (SELECT system_identifier::text FROM pg_control_system()) <> :system THEN NULL "
    "WHEN pg_is_in_recovery() THEN greatest(0, pg_wal_lsn_diff(CAST(:lsn AS pg_lsn), pg_last_wal_replay_lsn())) "
    "ELSE 0 END"
)


class PrimaryBackend(Protocol):
    """The part of the PostgreSQL backend that StreamingReplication uses."""

    def resolve_url(self, url: URL) -> URL: ...

    def create_engine(self, url: URL, options: EngineOptions, *, pre_ping: bool = True) -> Engine: ...


class StreamingReplication:
    """The replication protocol for PostgreSQL; see Replication."""

    def __init__(self, backend: PrimaryBackend) -> None:
        self._backend = backend

    def resolve_url(self, url: URL) -> URL:
        if has_many_hosts(url) and "target_session_attrs" not in url.query:
            url = url.update_query_dict({"target_session_attrs": "prefer-standby"})
        return self._backend.resolve_url(url)

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        # No ping: has_reached() queries every connection anyway. The timeout is short because a reader can use the
        # primary instead.
        connect_timeout = min(options.connect_timeout, REPLICA_CONNECT_SECONDS)
        return self._backend.create_engine(url, replace(options, connect_timeout=connect_timeout), pre_ping=False)

    def primary_position(self, connection: Connection) -> LogPosition:
        # The insert position, not the flush position: with synchronous_commit=off a commit is flushed later.
        lsn, system = connection.execute(PRIMARY_POSITION).one()
        return LogPosition(lsn, system)

    def has_reached(self, connection: Connection, position: LogPosition) -> bool | None:
        is_same_system, reached = connection.execute(REPLICA_POSITION, position._asdict()).one()
        return bool(reached) if is_same_system else None

    def bytes_behind(self, connection: Connection, position: LogPosition) -> int | None:
        behind = connection.execute(BYTES_BEHIND, position._asdict()).scalar()
        return None if behind is None else int(behind)


def has_many_hosts(url: URL) -> bool:
    """Return whether a URL names more than one host."""
    hosts = url.query.get("host", "")
    return "," in hosts if isinstance(hosts, str) else len(hosts) > 1
