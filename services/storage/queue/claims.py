"""Claims: which due generation a worker gets next. SQL only; never commits.

A claim gives a lease, see leases.py; commit it before the work begins. ADR 16 explains the statement.
"""

import os
import secrets
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, exists, select, union_all, update
from sqlalchemy.orm import Session

from ..backends import Backend, backend_for
from ..conditions import NOT_PAUSED, PENDING, REFRESH, literal_int
from ..lifecycle import GenerationStatus, transition_values
from ..limits import INTEGER_LIMIT, LEASE_SECONDS
from ..models import Generation
from ..validation import validate_count, validate_name, validate_seconds

LOOK_AHEAD = 50  # rows, in claim order, among which a warm model is looked for
PATIENCE_SECONDS = 300.0  # after which the head of the queue goes first, whatever model is warm


def claim_generation(
    session: Session,
    worker_id: str | None = None,
    *,
    model_names: Iterable[str] | None = None,
    prefer_model: str | None = None,
    lease_seconds: float = LEASE_SECONDS,
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
    lease_seconds: float = LEASE_SECONDS,
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


def has_due(session: Session, model_names: Iterable[str] | None = None) -> bool:
    """Tell whether there is anything to claim, also where another claim is just taking it; never when paused."""
    backend = backend_for(session)
    found = (
        exists(backend.select_due(_waiting(model), [Generation.id], 1, locked=False))
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
        transition_values(GenerationStatus.PENDING, GenerationStatus.PROCESSING)
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
        return backend.select_due(_waiting(models[0]), [Generation.id], limit)
    # Each model has its own place in the index; the first rows of every one, merged, begin with the first rows of all.
    size = limit + LOOK_AHEAD - 1
    columns = [Generation.id, Generation.model_name, Generation.priority, Generation.scheduled_at]
    firsts = [backend.select_due(_waiting(model), columns, size, locked=False).subquery() for model in models]
    merged = union_all(*(select(first) for first in firsts)).subquery()
    window = (
        select(merged)
        .order_by(merged.c.priority.desc(), merged.c.scheduled_at, merged.c.id)
        .limit(literal_int(size))
        .cte()
    )
    order: list[Any] = [window.c.priority.desc(), window.c.scheduled_at, window.c.id]
    if preferred is not None:
        head = select(window.c.scheduled_at).order_by(*order).limit(1).scalar_subquery()
        goes_ahead = and_(window.c.model_name == preferred, head > backend.now(-PATIENCE_SECONDS))
        order.insert(0, case((goes_ahead, 0), else_=1))
    return backend.lock_pending(select(window.c.id).order_by(*order), limit)
