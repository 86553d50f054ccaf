"""Control of the queue by its users: cancel, retry, pause, resume, queue position. SQL only; never commits."""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, bindparam, case, func, select, true, tuple_, update
from sqlalchemy.orm import Session, aliased

from ..backends import Backend, backend_for
from ..claim_order import distinct_priorities
from ..conditions import HAS_ATTEMPTS_LEFT, PENDING, REFRESH, still_has_status
from ..errors import IllegalTransitionError
from ..lifecycle import GenerationStatus, transition_values
from ..limits import ROWS_PER_STATEMENT
from ..models import Generation, QueueState
from ..row_loading import connection_of
from ..validation import is_storable, validate_name
from .due import announce_due


def cancel_generation(session: Session, generation_id: str) -> Generation | None:
    """Cancel a pending generation, or request the cancellation of a processing one.

    The worker of a processing generation learns of the request at its next heartbeat. A cancelled generation is
    returned unchanged. Returns None for an unknown id. Raises IllegalTransitionError for a completed or failed one.
    """
    if not is_storable("generation_id", generation_id):
        return None
    cancel = update_to_cancelled(session, Generation.id == generation_id).returning(Generation)
    cancelled = session.scalars(cancel, execution_options=REFRESH).one_or_none()
    return cancelled or _unchanged(session, generation_id, GenerationStatus.CANCELLED)


def cancel_batch(session: Session, batch_id: str) -> int:
    """Cancel every unfinished generation of a batch, as cancel_generation() does, and return their number.

    One statement, which loads no rows: only objects that the session has already are read again. Its locks, on SQLite
    the write lock, are held until the transaction of the caller ends, so commit soon after a large batch.
    """
    if not is_storable("batch_id", batch_id):
        return 0
    of_batch = Generation.batch_id == batch_id
    result: Any = session.execute(
        update_to_cancelled(session, of_batch), execution_options={"synchronize_session": False}
    )
    # An expired object lacks the attributes, and is read again when it is used.
    attributes = [row.__dict__ for row in session.identity_map.values() if isinstance(row, Generation)]
    held = [values["id"] for values in attributes if values.get("batch_id") == batch_id and "id" in values]
    for start in range(0, len(held), ROWS_PER_STATEMENT):
        some = Generation.id.in_(held[start : start + ROWS_PER_STATEMENT])
        session.scalars(select(Generation).where(some), execution_options={"populate_existing": True}).all()
    return int(result.rowcount)


def retry_generation(session: Session, generation_id: str) -> Generation | None:
    """Make a failed or cancelled generation pending again: due now, with at least one attempt left.

    A pending generation is returned unchanged. Returns None for an unknown id. Raises IllegalTransitionError for a
    processing or completed one.
    """
    if not is_storable("generation_id", generation_id):
        return None
    retry = update_to_pending(session, Generation.id == generation_id)
    retried = session.scalars(retry.returning(Generation), execution_options=REFRESH).one_or_none()
    if retried is None:
        return _unchanged(session, generation_id, GenerationStatus.PENDING)
    announce_due(session)
    return retried


def pause_queue(session: Session, reason: str | None = None) -> None:
    """Stop all claims until resume_queue() is called. Generations being processed continue.

    If the queue is already paused, `paused_at` stays, and a `reason` replaces the earlier one.
    """
    reason = None if reason is None else validate_name("reason", reason)
    backend = backend_for(session)
    pause = backend.insert(QueueState).values(id=1, paused_at=backend.now(), reason=reason)
    since = func.coalesce(QueueState.paused_at, pause.excluded.paused_at)
    latest = func.coalesce(pause.excluded.reason, QueueState.reason)
    session.execute(pause.on_conflict_do_update(index_elements=["id"], set_={"paused_at": since, "reason": latest}))


def resume_queue(session: Session) -> bool:
    """Allow claims again. Returns whether the queue was paused; does nothing if it was not."""
    paused = QueueState.paused_at.is_not(None)
    resumed: Any = session.execute(update(QueueState).where(paused).values(paused_at=None, reason=None))
    announce_due(session)
    return bool(resumed.rowcount)


def get_queue_position(session: Session, generation_id: str) -> int | None:
    """Return the position of a pending generation in claim order, from 1; None if it is unknown or not pending.

    A generation is ahead if it has a higher priority, or the same priority and an earlier `scheduled_at`, and is due no
    later than this one.
    """
    if not is_storable("generation_id", generation_id):
        return None
    statement = _select_position(backend_for(session))
    position: int | None = connection_of(session).execute(statement, {"generation_id": generation_id}).scalar()
    return position


@cache
def _select_position(backend: Backend) -> Select[Any]:
    target = aliased(Generation)
    now = select(backend.now()).scalar_subquery()
    levels = distinct_priorities([PENDING], true())
    higher_levels = select(levels.c.priority).where(levels.c.priority > target.priority).correlate(target)
    ahead = select(func.count()).select_from(Generation).where(PENDING).correlate(target)
    older = ahead.where(
        Generation.priority == target.priority,
        tuple_(Generation.scheduled_at, Generation.id) < tuple_(target.scheduled_at, target.id),
    )
    higher = ahead.where(
        Generation.priority.in_(higher_levels),
        Generation.scheduled_at <= case((target.scheduled_at > now, target.scheduled_at), else_=now),
    )
    place = older.scalar_subquery() + higher.scalar_subquery() + 1
    return select(place).where(target.id == bindparam("generation_id"), target.status == GenerationStatus.PENDING.value)


def update_to_pending(session: Session, condition: ColumnElement[bool]) -> Update:
    """Return the UPDATE of retry_generation() for the failed and cancelled generations that meet `condition`."""
    ended = (GenerationStatus.FAILED.value, GenerationStatus.CANCELLED.value)
    return (
        update(Generation)
        .where(condition, still_has_status(ended))
        .values(
            transition_values(GenerationStatus.FAILED, GenerationStatus.PENDING)
            | {
                "status": GenerationStatus.PENDING.value,
                "scheduled_at": backend_for(session).now(),
                "max_attempts": case((HAS_ATTEMPTS_LEFT, Generation.max_attempts), else_=Generation.attempt + 1),
                "version": Generation.version + 1,
            }
        )
    )


def update_to_cancelled(session: Session, condition: ColumnElement[bool]) -> Update:
    """Return the UPDATE of cancel_generation() for the unfinished generations that meet `condition`."""
    is_pending = Generation.status == GenerationStatus.PENDING.value
    moved = transition_values(GenerationStatus.PENDING, GenerationStatus.CANCELLED)
    now = backend_for(session).now()
    moved |= {"status": GenerationStatus.CANCELLED.value, "completed_at": now}
    unfinished = still_has_status((GenerationStatus.PENDING.value, GenerationStatus.PROCESSING.value))
    cancel = update(Generation).where(condition, unfinished)
    return cancel.values(
        {field: case((is_pending, value), else_=getattr(Generation, field)) for field, value in moved.items()}
        | {
            "cancel_requested_at": func.coalesce(Generation.cancel_requested_at, now),
            "version": Generation.version + 1,
        }
    )


def _unchanged(session: Session, generation_id: str, target: GenerationStatus) -> Generation | None:
    """Return the row if it already has the status `target`, None for an unknown id.

    Raises IllegalTransitionError if it has another status.
    """
    generation = session.get(Generation, generation_id, populate_existing=True)
    if generation is not None and generation.status != target:
        raise IllegalTransitionError(generation.status, target.value)
    return generation
