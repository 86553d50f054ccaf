"""The queue as a whole: claim, cancel, retry, pause, position. SQL only: no threads, no sleeping, no rendering.

Nothing here commits. A claim gives a lease, see leases.py; commit it before the work begins.
"""

import os
import secrets
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.orm import Session, aliased

from .backends import Backend, backend_for, inline, priorities
from .engine import REFRESH
from .errors import IllegalTransitionError
from .models import HAS_ATTEMPTS_LEFT, PENDING, Generation, QueueState, consequences
from .schema import INTEGER_LIMIT, GenerationStatus
from .validation import is_storable, validate_count, validate_name, validate_seconds

LOOK_AHEAD = 50  # rows, in claim order, among which a warm model is looked for
PATIENCE_SECONDS = 300.0  # after which the head of the queue goes first, whatever model is warm

NOT_PAUSED = select(QueueState.paused_at).scalar_subquery().is_(None)


def claim_generation(
    session: Session,
    worker_id: str | None = None,
    *,
    model_names: Iterable[str] | None = None,
    prefer_model: str | None = None,
    lease_seconds: float = 60.0,
) -> Generation | None:
    """Take the next due generation: highest priority, then oldest. None when there is none or the queue is paused.

    `worker_id` None makes up a new one (host:pid:random); `generation.lease` is what finishing it takes. Only
    `model_names` are taken when given. The first of `prefer_model`, the model in memory, goes ahead of up to 49 others,
    unless the head of the queue has waited for five minutes. After `lease_seconds` without a heartbeat anybody may
    reclaim it. Raises ValueError or TypeError for a bad argument.
    """
    claimed = claim_generations(
        session, 1, worker_id, model_names=model_names, prefer_model=prefer_model, lease_seconds=lease_seconds
    )
    return claimed[0] if claimed else None


def claim_generations(
    session: Session,
    limit: int,
    worker_id: str | None = None,
    *,
    model_names: Iterable[str] | None = None,
    prefer_model: str | None = None,
    lease_seconds: float = 60.0,
) -> list[Generation]:
    """Take up to `limit` due generations at once and return them in claim order; see claim_generation()."""
    limit = min(validate_count("limit", limit), INTEGER_LIMIT)
    worker_id = new_worker_id() if worker_id is None else validate_name("worker_id", worker_id)
    lease_seconds = validate_seconds("lease_seconds", lease_seconds)
    models = _validate_models(model_names)
    preferred = None if prefer_model is None else validate_name("prefer_model", prefer_model)
    if limit == 0 or not models:
        return []
    claim = _claim(backend_for(session), limit, models, preferred, lease_seconds)
    claimed = session.scalars(claim, {"claiming_worker": worker_id}, execution_options=REFRESH)
    return sorted(claimed, key=lambda row: (-row.priority, row.scheduled_at, row.id))


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
        consequences(GenerationStatus.FAILED, GenerationStatus.PENDING)
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
    levels = priorities([PENDING], true())
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


def has_due(session: Session, model_names: Iterable[str] | None = None) -> bool:
    """Tell whether there is anything to claim, also where another claim is just taking it; never when paused."""
    backend = backend_for(session)
    found = (
        exists(backend.take_due(_waiting(model), [Generation.id], 1, locked=False))
        for model in _validate_models(model_names)
    )
    return any(session.scalar(select(and_(one, NOT_PAUSED))) for one in found)


def new_worker_id() -> str:
    """Return a name that no other worker has: host:pid:random."""
    return f"{socket.gethostname()[:128]}:{os.getpid()}:{secrets.token_hex(4)}"


def _validate_models(model_names: Iterable[str] | None) -> tuple[str | None, ...]:
    """Return the different names, or None alone for whatever model."""
    if model_names is None:
        return (None,)
    if isinstance(model_names, str):
        raise TypeError("model_names must be several names, not text: put the one name into a list")
    return (*sorted({validate_name("model_names", name) for name in model_names}),)


def _waiting(model: str | None) -> list[ColumnElement[bool]]:
    return [PENDING] if model is None else [PENDING, Generation.model_name == model]


@lru_cache(maxsize=128)  # building it takes longer than executing it, and a worker asks the same again and again
def _claim(
    backend: Backend, limit: int, models: tuple[str | None, ...], preferred: str | None, lease_seconds: float
) -> Any:
    chosen = _choose(backend, limit, models, preferred).cte()
    claim = update(Generation).where(Generation.id.in_(select(chosen.c.id)), NOT_PAUSED)
    claim = claim.values(
        consequences(GenerationStatus.PENDING, GenerationStatus.PROCESSING)
        | {
            "status": GenerationStatus.PROCESSING.value,
            "worker_id": bindparam("claiming_worker"),
            "attempt": Generation.attempt + 1,
            "started_at": backend.now(),
            "lease_expires_at": backend.now(lease_seconds),
            "error_message": None,
            "version": Generation.version + 1,
        }
    )
    return claim.returning(Generation)


def _choose(backend: Backend, limit: int, models: tuple[str | None, ...], preferred: str | None) -> Select[Any]:
    """Return the query for the ids of the rows to claim, locked where the database knows row locks."""
    if len(models) == 1 and (preferred is None or models != (None,)):
        return backend.take_due(_waiting(models[0]), [Generation.id], limit)
    # Each model has its own place in the index; the first rows of every one, merged, begin with the first rows of all.
    size = limit + LOOK_AHEAD - 1
    columns = [Generation.id, Generation.model_name, Generation.priority, Generation.scheduled_at]
    firsts = [backend.take_due(_waiting(model), columns, size, locked=False).subquery() for model in models]
    merged = union_all(*(select(first) for first in firsts)).subquery()
    window = (
        select(merged).order_by(merged.c.priority.desc(), merged.c.scheduled_at, merged.c.id).limit(inline(size)).cte()
    )
    order: list[Any] = [window.c.priority.desc(), window.c.scheduled_at, window.c.id]
    if preferred is not None:
        head = select(window.c.scheduled_at).order_by(*order).limit(1).scalar_subquery()
        goes_ahead = and_(window.c.model_name == preferred, head > backend.now(-PATIENCE_SECONDS))
        order.insert(0, case((goes_ahead, 0), else_=1))
    return backend.lock_pending(select(window.c.id).order_by(*order), limit)


def _cancel(session: Session, condition: ColumnElement[bool]) -> list[Generation]:
    is_pending = Generation.status == GenerationStatus.PENDING.value
    moved = consequences(GenerationStatus.PENDING, GenerationStatus.CANCELLED)
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
