"""Every function of the queue on a locked database, in a closed session and in a read-only session."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from services.storage import (
    BusyError,
    Generation,
    Lease,
    ReadOnlyError,
    Storage,
    cancel_batch,
    cancel_generation,
    claim_generation,
    claim_generations,
    complete_generation,
    fail_generation,
    get_attempts,
    get_queue_position,
    heartbeat_generation,
    pause_queue,
    reclaim_generations,
    release_generation,
    resume_queue,
    retry_generation,
)
from services.storage.queue import seconds_until_due
from tests.support.factories import a_generation
from tests.support.stored_times import ago

Call = Callable[[Session, Lease], Any]

WRITES: dict[str, Call] = {
    "claim_generation": lambda session, lease: claim_generation(session),
    "claim_generations": lambda session, lease: claim_generations(session, 5),
    "heartbeat_generation": heartbeat_generation,
    "complete_generation": lambda session, lease: complete_generation(session, lease.generation_id, 1.0, 1),
    "complete_generation under a lease": lambda session, lease: complete_generation(
        session, lease.generation_id, 1.0, 1, lease=lease
    ),
    "complete_generation with metadata": lambda session, lease: complete_generation(
        session, lease.generation_id, 1.0, 1, {"bpm": 140}, lease=lease
    ),
    "fail_generation": lambda session, lease: fail_generation(session, lease.generation_id, "x"),
    "fail_generation under a lease": lambda session, lease: fail_generation(
        session, lease.generation_id, "x", lease=lease
    ),
    "release_generation": release_generation,
    "reclaim_generations": lambda session, lease: reclaim_generations(session),
    "cancel_generation": lambda session, lease: cancel_generation(session, lease.generation_id),
    "cancel_batch": lambda session, lease: cancel_batch(session, "album"),
    "retry_generation": lambda session, lease: retry_generation(session, "ended"),
    "pause_queue": lambda session, lease: pause_queue(session),
    "resume_queue": lambda session, lease: resume_queue(session),
}
READS: dict[str, Call] = {
    "get_attempts": lambda session, lease: get_attempts(session, lease.generation_id),
    "get_queue_position": lambda session, lease: get_queue_position(session, lease.generation_id),
    "seconds_until_due": lambda session, lease: seconds_until_due(session, ["musicgen-small", "large"]),
}
# PostgreSQL locks rows, and these functions skip locked rows or need no lock, so other writers do not block them.
SKIPS_LOCKED = {"claim_generation", "claim_generations", "reclaim_generations"}


@pytest.fixture
def short_timeouts(database_url: str) -> Iterator[Storage]:
    """Return a database whose sessions do not wait for locks."""
    storage = Storage(database_url, busy_timeout=0.05, lock_timeout=0.05)
    yield storage
    storage.dispose()


@pytest.fixture
def lease(short_timeouts: Storage) -> Lease:
    """Return a valid lease in a database with a suitable row for every function."""
    with short_timeouts.session() as session:
        a_generation(session, batch_id="album", priority=1)
        a_generation(session, generation_id="ended").mark_failed("no GPU")
        a_generation(session)
        pause_queue(session)
        resume_queue(session)
        claimed = claim_generation(session)
        assert claimed is not None
        claimed.lease_expires_at = ago(seconds=1)
        assert claimed.lease is not None
        return claimed.lease


@pytest.mark.parametrize("name", WRITES)
def test_a_locked_database_raises_and_the_call_works_later(short_timeouts: Storage, lease: Lease, name: str) -> None:
    if name == "resume_queue":
        with short_timeouts.session() as session:
            pause_queue(session)
    with short_timeouts.engine.connect() as other:
        for table in ("generations", "queue_state"):
            other.execute(text(f"UPDATE {table} SET id = id"))
        with short_timeouts.session() as session:
            if short_timeouts.backend.name == "postgresql" and name in SKIPS_LOCKED:
                assert not WRITES[name](session, lease)
            else:
                with pytest.raises(BusyError):
                    WRITES[name](session, lease)
            session.rollback()
        other.rollback()
    with short_timeouts.session() as session:
        WRITES[name](session, lease)


@pytest.mark.parametrize("name", READS)
def test_reads_do_not_wait_for_locks(short_timeouts: Storage, lease: Lease, name: str) -> None:
    with short_timeouts.engine.connect() as other:
        for table in ("generations", "queue_state"):
            other.execute(text(f"UPDATE {table} SET id = id"))
        with short_timeouts.session(read_only=True) as session:
            READS[name](session, lease)


@pytest.mark.parametrize("name", [*WRITES, *READS])
def test_a_session_whose_block_has_ended_is_refused(short_timeouts: Storage, lease: Lease, name: str) -> None:
    with short_timeouts.session() as session:
        pass
    with pytest.raises(InvalidRequestError, match="closed"):
        (WRITES | READS)[name](session, lease)
    with short_timeouts.session() as session:
        assert session.get_one(Generation, lease.generation_id).lease == lease


@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_session_refuses_every_write(short_timeouts: Storage, lease: Lease, name: str) -> None:
    with short_timeouts.session(read_only=True) as session:
        with pytest.raises(ReadOnlyError):
            WRITES[name](session, lease)
        session.rollback()
