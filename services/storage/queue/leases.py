"""Leases: extend them, and complete, fail, release or reclaim the attempts they protect. SQL only; never commits.

Only the holder of the lease may end its attempt, so a result is recorded exactly once while the work is done at least
once. Each attempt that ends under a lease adds one row to `attempts`; calls without a lease add none.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Text, bindparam, case, cast, literal, select, type_coerce, update
from sqlalchemy.orm import Session

from ..backends import Backend, backend_for
from ..conditions import HAS_ATTEMPTS_LEFT, PROCESSING, REFRESH, is_valid, literal_int
from ..declarative import stored_number
from ..defaults import LEASE_SECONDS
from ..errors import IllegalTransitionError, LeaseLostError
from ..lifecycle import AttemptOutcome, GenerationStatus, is_legal_move, transition_values
from ..limits import INTEGER_LIMIT, ROWS_PER_STATEMENT
from ..models import Attempt, Generation, Lease
from ..retry_policy import DEFAULT_RETRY_POLICY, RetryPolicy
from ..row_loading import GENERATIONS, connection_of, load_generations, require_transaction
from ..types import UTCDateTime
from ..validation import (
    clean_error_message,
    is_storable,
    merge_metadata,
    validate_count,
    validate_generation_field,
    validate_seconds,
)
from .clock_correction import correct_times
from .due import announce_due
from .end_attempt import ATTEMPTS, LEASE_HELD, complete_at_once, fail_at_once, lease_parameters
from .workers import remove_silent_workers

CANCEL_REQUESTED = Generation.cancel_requested_at.is_not(None)
# The error message of a generation whose last attempt was lost, such as "worker lost in attempt 3 of 3".
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
    """Extend the lease to `lease_seconds` from now, and store the progress (0 to 1) and the current step.

    None keeps the stored value. Check `cancel_requested_at` of the returned row: if it is set, a user asked to cancel.
    Raises LeaseLostError if the lease is no longer held, ValueError or TypeError for a bad argument.
    """
    lease_seconds = validate_seconds("lease_seconds", lease_seconds)
    values: dict[str, Any] = {}
    if progress is not None:
        values["progress"] = validate_generation_field("progress", progress)
    if current_step is not None:
        values["current_step"] = validate_generation_field("current_step", current_step)
    parameters = lease_parameters(lease) | values | {"lease_seconds": timedelta(seconds=lease_seconds)}
    extended = connection_of(session).execute(_heartbeat(backend_for(session), *values), parameters)
    generations = load_generations(session, extended)
    if not generations:
        raise LeaseLostError
    return generations[0]


def complete_generation(
    session: Session,
    generation_id: str,
    generation_time: float,
    file_size_bytes: int | None,
    metadata: Mapping[str, Any] | None = None,
    *,
    lease: Lease | None = None,
    file_sha256: str | None = None,
    file_format: str | None = None,
) -> Generation | None:
    """Complete a generation: `generation_time` in seconds, the size of its file, and metadata merged into the stored.

    A generation that was marked as completed but has neither time nor size gets them. `file_sha256`, 64 hexadecimal
    digits, lets find_files() recognize the file when it was moved; `file_format` is a name such as "wav". Returns None
    for an unknown id. Raises IllegalTransitionError if the generation is already finished otherwise, ConflictError if
    another writer changed it meanwhile, ValueError or TypeError for a bad value; then nothing is changed.

    With a `lease`: raises LeaseLostError if it is no longer held. Repeating the call returns the stored row. If a user
    asked to cancel the generation, it ends as cancelled and the result is not stored.
    """
    if lease is not None:
        _require_lease_of(generation_id, lease)
        file = {"file_size_bytes": file_size_bytes, "file_sha256": file_sha256, "file_format": file_format}
        return _complete_under_lease(session, lease, generation_time, file, metadata)
    generation = _find_unfinished(session, generation_id, GenerationStatus.COMPLETED)
    if generation is None:
        return None
    file_size_bytes = validate_generation_field("file_size_bytes", file_size_bytes)
    file_sha256 = validate_generation_field("file_sha256", file_sha256)
    file_format = validate_generation_field("file_format", file_format)
    stored = generation.metadata_json
    merged = merge_metadata(stored, metadata)
    generation.mark_completed(generation_time)
    generation.file_size_bytes = file_size_bytes
    generation.file_sha256, generation.file_format = file_sha256, file_format
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
    """Fail a generation, or make it pending again after a backoff if `retry` is true and it has attempts left.

    `retry` None means true with a lease and false without. Any message is accepted; it is cleaned and cut to 8,192
    characters. Returns None for an unknown id. Raises IllegalTransitionError if the generation is already finished.
    With a `lease` it behaves as complete_generation() does.
    """
    message = clean_error_message(error_message)
    if lease is not None:
        _require_lease_of(generation_id, lease)
        return _fail_under_lease(session, lease, message, None if retry is False else retry_policy)
    generation = _find_unfinished(session, generation_id, GenerationStatus.FAILED)
    if generation is None:
        return None
    attempt = stored_number("attempt", generation.attempt) if retry else 0
    if retry and attempt < stored_number("max_attempts", generation.max_attempts):
        generation.status = GenerationStatus.PENDING
        delay = retry_policy.delay(max(attempt, 1))
        generation.scheduled_at = session.scalars(
            select(type_coerce(backend_for(session).now(delay), UTCDateTime()))
        ).one()
        generation.error_message = message
    else:
        generation.mark_failed(message)
    session.flush()
    return generation


def release_generation(session: Session, lease: Lease) -> Generation:
    """Make a claimed generation pending again, at its old position. The attempt does not count against `max_attempts`.

    Raises LeaseLostError if the lease is no longer held. Repeating the call returns the stored row. If a user asked to
    cancel the generation, it ends as cancelled.
    """
    done = _end_attempt(session, lease, AttemptOutcome.RELEASED)
    if done is not None:
        return done
    one_more = case((Generation.max_attempts < INTEGER_LIMIT, Generation.max_attempts + 1), else_=INTEGER_LIMIT)
    announce_due(session)
    return _transition(session, [lease.generation_id], GenerationStatus.PENDING, {"max_attempts": one_more})[0]


def reclaim_generations(session: Session, limit: int = 100) -> list[Generation]:
    """Reclaim up to `limit` generations whose lease has expired by the database's clock, and return them.

    Each becomes pending again, failed if it has no attempt left, or cancelled if a user asked for that. Generations
    that are processing without a lease are not touched. If the clock was set back, times in the future are corrected
    first: what was due before becomes due, and a lease ends within its own length from now. Workers that were silent
    for longer than they promised are removed from the registry.
    """
    limit, backend = validate_count("limit", limit), backend_for(session)
    correct_times(session)
    remove_silent_workers(session)
    reclaimed: list[Generation] = []
    while len(reclaimed) < limit:
        size = min(limit - len(reclaimed), ROWS_PER_STATEMENT)
        now = select(backend.now()).scalar_subquery()
        expired = select(Generation).where(PROCESSING, Generation.lease_expires_at < now, is_valid(backend.name))
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
    """Return the ended attempts at a generation, the first one first; [] for an unknown id.

    Only attempts under a lease are recorded.
    """
    if not is_storable("generation_id", generation_id):
        return []
    history = select(Attempt).where(Attempt.generation_id == generation_id).order_by(Attempt.number)
    return list(session.scalars(history))


@cache
def _heartbeat(backend: Backend, *fields: str) -> Any:
    # `version` is not increased: nothing but a heartbeat writes these columns of a leased row, and a larger version
    # would make concurrent ORM updates of the row fail.
    beat = update(Generation).where(*LEASE_HELD).values({field: bindparam(field) for field in fields})
    return beat.values(lease_expires_at=backend.now_after("lease_seconds")).returning(GENERATIONS)


def _require_lease_of(generation_id: str, lease: Lease) -> None:
    lease_parameters(lease)
    if lease.generation_id != generation_id:
        raise ValueError("lease belongs to another generation than generation_id")


def _complete_under_lease(
    session: Session,
    lease: Lease,
    generation_time: float,
    file: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> Generation:
    given = {"generation_time_seconds": generation_time, **file}
    result = {field: validate_generation_field(field, value) for field, value in given.items()}
    if merge_metadata(None, metadata) is None:  # raises what is wrong with the metadata
        metadata = None
    if (done := complete_at_once(session, lease, result, metadata)) is not None:
        return done
    if metadata is None:
        done = _end_attempt(session, lease, AttemptOutcome.COMPLETED)
        return done or _transition(session, [lease.generation_id], GenerationStatus.COMPLETED, result)[0]
    require_transaction(session)
    # The stored metadata is known only once the row is locked. If the merge then raises, the savepoint removes the
    # attempt's row again.
    with session.begin_nested():
        done = _end_attempt(session, lease, AttemptOutcome.COMPLETED)
        if done is not None:
            return done
        stored = session.scalar(select(Generation.metadata_json).where(Generation.id == lease.generation_id))
        result["metadata_json"] = merge_metadata(stored, metadata)
        return _transition(session, [lease.generation_id], GenerationStatus.COMPLETED, result)[0]


def _fail_under_lease(session: Session, lease: Lease, message: str, policy: RetryPolicy | None) -> Generation:
    delay = None if policy is None else policy.delay(lease.attempt)
    if (done := fail_at_once(session, lease, message, delay)) is not None:
        return done
    if (done := _end_attempt(session, lease, AttemptOutcome.FAILED, message)) is not None:
        return done
    ids = [lease.generation_id]
    if delay is not None:
        wait = {"error_message": message, "scheduled_at": backend_for(session).now(delay)}
        if retried := _transition(session, ids, GenerationStatus.PENDING, wait, HAS_ATTEMPTS_LEFT):
            return retried[0]
    return _transition(session, ids, GenerationStatus.FAILED, {"error_message": message})[0]


def _find_unfinished(session: Session, generation_id: str, target: GenerationStatus) -> Generation | None:
    generation = session.get(Generation, generation_id) if is_storable("generation_id", generation_id) else None
    if generation is None or (generation.status != target and is_legal_move(generation.status, target)):
        return generation
    has_result = generation.generation_time_seconds is not None or generation.file_size_bytes is not None
    if target == GenerationStatus.COMPLETED and generation.is_complete and not has_result:
        return generation  # only its status was set, for example by update_generation_status()
    raise IllegalTransitionError(generation.status, target.value)


def _end_attempt(
    session: Session, lease: Lease, outcome: AttemptOutcome, message: str | None = None
) -> Generation | None:
    """Record the outcome of the attempt and lock its generation; return the generation if nothing is left to do.

    Nothing is left to do if the same call was made before, or if a user asked to cancel the generation. Raises
    LeaseLostError if the lease is no longer held.
    """
    require_transaction(session)
    leased = select(Generation).where(*_lease_held(lease)).with_for_update()
    recorded = _insert_attempt(
        session, leased, case((CANCEL_REQUESTED, AttemptOutcome.CANCELLED.value), else_=outcome.value), message
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
    assert generation is not None, "deleting a generation deletes its attempts"
    return generation


def _lease_held(lease: Lease) -> list[ColumnElement[bool]]:
    """Return the conditions under which `lease` is held. Raises what lease_parameters() raises."""
    given = lease_parameters(lease)
    return [
        Generation.id == given["lease_generation_id"],
        Generation.worker_id == given["lease_worker_id"],
        Generation.attempt == given["lease_attempt"],
        PROCESSING,
    ]


def _insert_attempt(
    session: Session, leased: Select[Any], outcome: ColumnElement[str], message: str | None
) -> Sequence[Row[Any]]:
    """Insert a row of history for each generation that `leased` selects.

    Call it before the generations are updated: the row locks it takes decide which caller ends each attempt.
    """
    session.flush()
    backend = backend_for(session)
    history: dict[str, Any] = {
        "generation_id": Generation.id,
        "number": Generation.attempt,
        "worker_id": Generation.worker_id,
        "started_at": Generation.started_at,
        "finished_at": backend.now(),
        "outcome": outcome,
        "error_message": literal(message, Text),
    }
    record = backend.insert(ATTEMPTS).from_select(list(history), leased.with_only_columns(*history.values()))
    # A number occurs twice only where somebody has set back `attempt` by hand: the new attempt replaces the old.
    changed = {name: record.excluded[name] for name in list(history)[2:]}
    record = record.on_conflict_do_update(index_elements=["generation_id", "number"], set_=changed)
    return session.execute(record.returning(ATTEMPTS.c.generation_id, ATTEMPTS.c.outcome)).all()


def _transition(
    session: Session,
    ids: list[str],
    target: GenerationStatus,
    values: Mapping[str, Any],
    *conditions: ColumnElement[bool],
) -> list[Generation]:
    """Change the status of those `ids` that are still processing and meet `conditions` to `target`; return the rows."""
    moved = transition_values(GenerationStatus.PROCESSING, target)
    if "completed_at" in moved:
        moved["completed_at"] = backend_for(session).now()
    moved |= {"status": target.value, "version": Generation.version + 1} | dict(values)
    move = update(Generation).where(Generation.id.in_(ids), PROCESSING, *conditions).values(moved)
    return list(session.scalars(move.returning(Generation), execution_options=REFRESH))
