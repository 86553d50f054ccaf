"""What people do to the queue: cancel, retry, pause, resume, and ask for a position. SQL only; never commits."""

from sqlalchemy import ColumnElement, case, func, select, true, tuple_, update
from sqlalchemy.orm import Session, aliased

from ..backends import backend_for
from ..conditions import HAS_ATTEMPTS_LEFT, PENDING, REFRESH, distinct_priorities
from ..errors import IllegalTransitionError
from ..lifecycle import GenerationStatus, transition_values
from ..models import Generation, QueueState
from ..validation import is_storable, validate_name


def cancel_generation(session: Session, generation_id: str) -> Generation | None:
    """Cancel a pending generation, or ask the worker of a processing one to stop: its next heartbeat tells it.

    A cancelled one stays as it is. Returns None for an unknown id. Raises IllegalTransitionError when it was completed
    or has failed.
    """
    if not is_storable("generation_id", generation_id):
        return None
    cancelled = _cancel(session, Generation.id == generation_id)
    return cancelled[0] if cancelled else _unchanged(session, generation_id, GenerationStatus.CANCELLED)


def cancel_batch(session: Session, batch_id: str) -> int:
    """Cancel whatever of a batch is not finished, as cancel_generation() does; return how many those were."""
    return len(_cancel(session, Generation.batch_id == batch_id)) if is_storable("batch_id", batch_id) else 0


def retry_generation(session: Session, generation_id: str) -> Generation | None:
    """Make a failed or cancelled generation pending again by hand: due now, with at least one attempt left.

    A pending one stays as it is. Returns None for an unknown id. Raises IllegalTransitionError when it is processing or
    completed.
    """
    if not is_storable("generation_id", generation_id):
        return None
    ended = (GenerationStatus.FAILED.value, GenerationStatus.CANCELLED.value)
    retry = update(Generation).where(Generation.id == generation_id, Generation.status.in_(ended))
    retry = retry.values(
        transition_values(GenerationStatus.FAILED, GenerationStatus.PENDING)
        | {
            "status": GenerationStatus.PENDING.value,
            "scheduled_at": backend_for(session).now(),
            "max_attempts": case((HAS_ATTEMPTS_LEFT, Generation.max_attempts), else_=Generation.attempt + 1),
            "version": Generation.version + 1,
        }
    )
    retried = session.scalars(retry.returning(Generation), execution_options=REFRESH).one_or_none()
    return retried or _unchanged(session, generation_id, GenerationStatus.PENDING)


def pause_queue(session: Session, reason: str | None = None) -> None:
    """Make every claim of every worker come back empty until resume_queue(); what is running goes on.

    A queue that is paused already stays so since then; `reason` replaces the one before.
    """
    reason = None if reason is None else validate_name("reason", reason)
    backend = backend_for(session)
    pause = backend.insert(QueueState).values(id=1, paused_at=backend.now(), reason=reason)
    since = func.coalesce(QueueState.paused_at, pause.excluded.paused_at)
    session.execute(pause.on_conflict_do_update(index_elements=["id"], set_={"paused_at": since, "reason": reason}))


def resume_queue(session: Session) -> None:
    """Let claims be served again; does nothing to a queue that is not paused."""
    session.execute(update(QueueState).values(paused_at=None, reason=None))


def get_queue_position(session: Session, generation_id: str) -> int | None:
    """Return the place of a pending generation in claim order, 1 for the next; None when it is unknown or not pending.

    Ahead of it is what has a higher priority, or the same and an earlier schedule, and will be due when it is.
    """
    if not is_storable("generation_id", generation_id):
        return None
    me = aliased(Generation)
    now = select(backend_for(session).now()).scalar_subquery()
    levels = distinct_priorities([PENDING], true())
    higher_levels = select(levels.c.priority).where(levels.c.priority > me.priority).correlate(me)
    ahead = select(func.count()).select_from(Generation).where(PENDING).correlate(me)
    older = ahead.where(
        Generation.priority == me.priority,
        tuple_(Generation.scheduled_at, Generation.id) < tuple_(me.scheduled_at, me.id),
    )
    higher = ahead.where(
        Generation.priority.in_(higher_levels),
        Generation.scheduled_at <= case((me.scheduled_at > now, me.scheduled_at), else_=now),
    )
    place = older.scalar_subquery() + higher.scalar_subquery() + 1
    mine = select(place).where(me.id == generation_id, me.status == GenerationStatus.PENDING.value)
    return session.scalar(mine)


def _cancel(session: Session, condition: ColumnElement[bool]) -> list[Generation]:
    is_pending = Generation.status == GenerationStatus.PENDING.value
    moved = transition_values(GenerationStatus.PENDING, GenerationStatus.CANCELLED)
    now = backend_for(session).now()
    moved |= {"status": GenerationStatus.CANCELLED.value, "completed_at": now}
    unfinished = Generation.status.in_((GenerationStatus.PENDING.value, GenerationStatus.PROCESSING.value))
    cancel = update(Generation).where(condition, unfinished)
    cancel = cancel.values(
        {field: case((is_pending, value), else_=getattr(Generation, field)) for field, value in moved.items()}
        | {
            "cancel_requested_at": func.coalesce(Generation.cancel_requested_at, now),
            "version": Generation.version + 1,
        }
    )
    return list(session.scalars(cancel.returning(Generation), execution_options=REFRESH))


def _unchanged(session: Session, generation_id: str, target: GenerationStatus) -> Generation | None:
    """Return the row that a change did not fit because it is as wanted already, or None for an unknown id."""
    generation = session.get(Generation, generation_id, populate_existing=True)
    if generation is not None and generation.status != target:
        raise IllegalTransitionError(generation.status, target.value)
    return generation
