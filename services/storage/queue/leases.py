"""How an attempt at a generation goes on and ends, above all under a lease. SQL only: no threads, no sleeping.

Only the holder of the lease may end its attempt, so a result is recorded exactly once, while work is done at least
once. Each ended attempt leaves one row of history; the plain functions without a lease leave none. Nothing commits.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Text, case, cast, insert, literal, select, update
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..conditions import HAS_ATTEMPTS_LEFT, PROCESSING, REFRESH, literal_int
from ..errors import IllegalTransitionError, LeaseLostError
from ..lifecycle import AttemptOutcome, GenerationStatus, transition_values
from ..limits import INTEGER_LIMIT, LEASE_SECONDS, ROWS_PER_STATEMENT
from ..models import Attempt, Base, Generation, Lease
from ..retry import DEFAULT_RETRY_POLICY, RetryPolicy
from ..types import utcnow
from ..validation import (
    clean_error_message,
    is_storable,
    merge_metadata,
    validate_count,
    validate_generation_field,
    validate_seconds,
)

ATTEMPTS = Base.metadata.tables["attempts"]

CANCEL_REQUESTED = Generation.cancel_requested_at.is_not(None)
# What reclaim says of a generation that lost its worker once too often, such as "worker lost in attempt 3 of 3".
WORKER_LOST = (
    literal("worker lost in attempt ") + cast(Generation.attempt, Text) + " of " + cast(Generation.max_attempts, Text)
)


def heartbeat_generation(
    session: Session,
    lease: Lease,
    *,
    progress: float | None = None,
    current_step: str | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> Generation:
    """Hold the lease for `lease_seconds` from now, and say how far the work is (a fraction of 1) and at what step.

    None leaves what was said before. Look at `cancel_requested_at` of the row it returns. Raises LeaseLostError when
    the lease is no longer held, ValueError or TypeError for a bad argument.
    """
    lease_seconds = validate_seconds("lease_seconds", lease_seconds)
    values: dict[str, Any] = {"lease_expires_at": backend_for(session).now(lease_seconds)}
    if progress is not None:
        values["progress"] = validate_generation_field("progress", progress)
    if current_step is not None:
        values["current_step"] = validate_generation_field("current_step", current_step)
    # The version stays: no plain path writes these columns, and a heartbeat is no reason for one to start again.
    beat = update(Generation).where(*_lease_held(lease)).values(values).returning(Generation)
    generation = session.scalars(beat, execution_options=REFRESH).one_or_none()
    if generation is None:
        raise LeaseLostError
    return generation


def complete_generation(
    session: Session,
    generation_id: str,
    generation_time: float,
    file_size_bytes: int | None,
    metadata: Mapping[str, Any] | None = None,
    *,
    lease: Lease | None = None,
) -> Generation | None:
    """Say that the track is there: `generation_time` in seconds, its size, and metadata laid over what is stored.

    Returns None for an unknown id. Raises IllegalTransitionError when the generation is finished already, ConflictError
    when another writer changed it meanwhile, ValueError or TypeError for a bad value; then nothing is changed.

    Under a `lease`: raises LeaseLostError when it is no longer held; the same call again returns the stored row; and a
    generation whose cancellation was asked for ends as cancelled, without the result.
    """
    if lease is not None:
        _require_lease_of(generation_id, lease)
        return _complete_under_lease(session, lease, generation_time, file_size_bytes, metadata)
    generation = _find_unfinished(session, generation_id, GenerationStatus.COMPLETED)
    if generation is None:
        return None
    file_size_bytes = validate_generation_field("file_size_bytes", file_size_bytes)
    stored = generation.metadata_json
    merged = merge_metadata(stored, metadata)
    generation.mark_completed(generation_time)
    generation.file_size_bytes = file_size_bytes
    if merged != stored:
        generation.metadata_json = merged
    session.flush()
    return generation


def fail_generation(
    session: Session,
    generation_id: str,
    error_message: str,
    *,
    lease: Lease | None = None,
    retry: bool | None = None,
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
) -> Generation | None:
    """Say that it went wrong: failed, or with `retry` pending again after a wait, as long as it has attempts left.

    `retry` None means yes with a lease and no without. The message is cleaned and cut to 8,192 characters, never
    refused. Returns None for an unknown id. Raises IllegalTransitionError when the generation is finished already;
    under a `lease` it behaves as complete_generation() does.
    """
    message = clean_error_message(error_message)
    if lease is not None:
        _require_lease_of(generation_id, lease)
        return _fail_under_lease(session, lease, message, None if retry is False else retry_policy)
    generation = _find_unfinished(session, generation_id, GenerationStatus.FAILED)
    if generation is None:
        return None
    if retry and generation.attempt < generation.max_attempts:
        generation.status = GenerationStatus.PENDING
        generation.scheduled_at = utcnow() + timedelta(seconds=retry_policy.delay(max(generation.attempt, 1)))
        generation.error_message = message
    else:
        generation.mark_failed(message)
    session.flush()
    return generation


def release_generation(session: Session, lease: Lease) -> Generation:
    """Give a claimed generation back unfinished: pending at its old place, and the attempt is not held against it.

    Raises LeaseLostError when the lease is no longer held; the same call again returns the stored row. One whose
    cancellation was asked for ends as cancelled.
    """
    done = _end_attempt(session, lease, AttemptOutcome.RELEASED)
    if done is not None:
        return done
    one_more = case((Generation.max_attempts < INTEGER_LIMIT, Generation.max_attempts + 1), else_=INTEGER_LIMIT)
    return _transition(session, [lease.generation_id], GenerationStatus.PENDING, {"max_attempts": one_more})[0]


def reclaim_generations(session: Session, limit: int = 100) -> list[Generation]:
    """Take up to `limit` generations back whose lease has run out by the database's clock, and return them.

    They become pending again, failed when they have no attempt left, or cancelled where that was asked for. Those made
    processing without a lease are left alone.
    """
    limit = validate_count("limit", limit)
    reclaimed: list[Generation] = []
    while len(reclaimed) < limit:
        size = min(limit - len(reclaimed), ROWS_PER_STATEMENT)
        now = select(backend_for(session).now()).scalar_subquery()
        expired = select(Generation).where(PROCESSING, Generation.lease_expires_at < now)
        expired = expired.order_by(Generation.lease_expires_at).limit(literal_int(size))
        lost = _insert_attempt(
            session, expired.with_for_update(skip_locked=True), literal(AttemptOutcome.LOST.value), None
        )
        ids = [attempt.generation_id for attempt in lost]
        if ids:
            reclaimed += _transition(session, ids, GenerationStatus.CANCELLED, {}, CANCEL_REQUESTED)
            reclaimed += _transition(session, ids, GenerationStatus.PENDING, {}, HAS_ATTEMPTS_LEFT)
            reclaimed += _transition(session, ids, GenerationStatus.FAILED, {"error_message": WORKER_LOST})
        if len(ids) < size:
            break
    return reclaimed


def get_attempts(session: Session, generation_id: str) -> list[Attempt]:
    """Return the ended attempts at a generation under a lease, the first one first; [] for an unknown id."""
    if not is_storable("generation_id", generation_id):
        return []
    history = select(Attempt).where(Attempt.generation_id == generation_id).order_by(Attempt.number)
    return list(session.scalars(history))


def _require_lease_of(generation_id: str, lease: Lease) -> None:
    _require_lease(lease)
    if lease.generation_id != generation_id:
        raise ValueError("lease belongs to another generation than the one that generation_id names")


def _require_lease(lease: Lease) -> None:
    if not isinstance(lease, Lease):
        raise TypeError(f"lease must be a Lease, as generation.lease gives it, not {type(lease).__name__}")


def _complete_under_lease(
    session: Session,
    lease: Lease,
    generation_time: float,
    file_size_bytes: int | None,
    metadata: Mapping[str, Any] | None,
) -> Generation:
    result: dict[str, Any] = {
        "generation_time_seconds": validate_generation_field("generation_time_seconds", generation_time),
        "file_size_bytes": validate_generation_field("file_size_bytes", file_size_bytes),
    }
    if merge_metadata(None, metadata) is None:
        done = _end_attempt(session, lease, AttemptOutcome.COMPLETED)
        return done or _transition(session, [lease.generation_id], GenerationStatus.COMPLETED, result)[0]
    # What is stored may refuse to be merged with, and is certain only once the row is locked: then undo the history.
    with session.begin_nested():
        done = _end_attempt(session, lease, AttemptOutcome.COMPLETED)
        if done is not None:
            return done
        stored = session.scalar(select(Generation.metadata_json).where(Generation.id == lease.generation_id))
        result["metadata_json"] = merge_metadata(stored, metadata)
        return _transition(session, [lease.generation_id], GenerationStatus.COMPLETED, result)[0]


def _fail_under_lease(session: Session, lease: Lease, message: str, policy: RetryPolicy | None) -> Generation:
    done = _end_attempt(session, lease, AttemptOutcome.FAILED, message)
    if done is not None:
        return done
    ids = [lease.generation_id]
    if policy is not None:
        wait = {"error_message": message, "scheduled_at": backend_for(session).now(policy.delay(lease.attempt))}
        if retried := _transition(session, ids, GenerationStatus.PENDING, wait, HAS_ATTEMPTS_LEFT):
            return retried[0]
    return _transition(session, ids, GenerationStatus.FAILED, {"error_message": message})[0]


def _find_unfinished(session: Session, generation_id: str, target: GenerationStatus) -> Generation | None:
    generation = session.get(Generation, generation_id) if is_storable("generation_id", generation_id) else None
    if generation is not None and generation.is_finished:
        raise IllegalTransitionError(generation.status, target.value)
    return generation


def _end_attempt(
    session: Session, lease: Lease, outcome: AttemptOutcome, message: str | None = None
) -> Generation | None:
    """Record how the attempt ends and keep the row locked; or return the row, when nothing is left to do.

    That is so when the same call came before, and when the generation's cancellation was asked for. Raises
    LeaseLostError when the lease is no longer held.
    """
    held = select(Generation).where(*_lease_held(lease)).with_for_update()
    recorded = _insert_attempt(
        session, held, case((CANCEL_REQUESTED, AttemptOutcome.CANCELLED.value), else_=outcome.value), message
    )
    if recorded and recorded[0].outcome == outcome:
        return None
    if recorded:
        return _transition(session, [lease.generation_id], GenerationStatus.CANCELLED, {})[0]
    before = session.get(Attempt, (lease.generation_id, lease.attempt), populate_existing=True)
    generation = session.get(Generation, lease.generation_id, populate_existing=True)
    if (
        before is None
        or before.worker_id != lease.worker_id
        or before.outcome not in (outcome, AttemptOutcome.CANCELLED)
    ):
        raise LeaseLostError
    assert generation is not None, "the history goes with its generation"
    return generation


def _lease_held(lease: Lease) -> list[ColumnElement[bool]]:
    """Return the conditions under which `lease` is held. Raises LeaseLostError for one that nobody can have given."""
    _require_lease(lease)
    if not (is_storable("generation_id", lease.generation_id) and is_storable("worker_id", lease.worker_id)):
        raise LeaseLostError
    return [
        Generation.id == lease.generation_id,
        Generation.worker_id == lease.worker_id,
        Generation.attempt == validate_generation_field("attempt", lease.attempt),
        PROCESSING,
    ]


def _insert_attempt(
    session: Session, leased: Select[Any], outcome: ColumnElement[str], message: str | None
) -> Sequence[Row[Any]]:
    """Write the history of the attempts at the rows `leased` selects. Comes first: its locks decide who ends them."""
    session.flush()
    history: dict[str, Any] = {
        "generation_id": Generation.id,
        "number": Generation.attempt,
        "worker_id": Generation.worker_id,
        "started_at": Generation.started_at,
        "finished_at": backend_for(session).now(),
        "outcome": outcome,
        "error_message": literal(message, Text),
    }
    record = insert(ATTEMPTS).from_select(list(history), leased.with_only_columns(*history.values()))
    return session.execute(record.returning(ATTEMPTS.c.generation_id, ATTEMPTS.c.outcome)).all()


def _transition(
    session: Session,
    ids: list[str],
    target: GenerationStatus,
    values: Mapping[str, Any],
    *conditions: ColumnElement[bool],
) -> list[Generation]:
    """Move the rows among `ids` that are still processing and meet `conditions` to `target`."""
    moved = transition_values(GenerationStatus.PROCESSING, target)
    if "completed_at" in moved:
        moved["completed_at"] = backend_for(session).now()
    moved |= {"status": target.value, "version": Generation.version + 1} | dict(values)
    leave = update(Generation).where(Generation.id.in_(ids), PROCESSING, *conditions).values(moved)
    return list(session.scalars(leave.returning(Generation), execution_options=REFRESH))
