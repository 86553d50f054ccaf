"""Claims: choose the next due generation and give it to a worker. SQL only; never commits.

A claim creates a lease, see leases.py. Commit the claim before the work begins. ADR 15 explains the statement.
"""

import os
import secrets
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, and_, bindparam, case, literal_column, null, select, union_all, update
from sqlalchemy.orm import Session

from ..backends import Backend, backend_for
from ..conditions import NOT_PAUSED, PROCESSING, literal_int
from ..defaults import LEASE_SECONDS
from ..lifecycle import GenerationStatus, transition_values
from ..limits import INTEGER_LIMIT
from ..models import Generation
from ..row_loading import GENERATIONS, connection_of, load_generations
from ..validation import validate_count, validate_name, validate_seconds
from .due import validate_models, waiting_for
from .leases import heartbeat_generation
from .workers import get_warm_models

LOOK_AHEAD = 50  # how many rows, in claim order, are searched for the preferred model
PATIENCE_SECONDS = 300.0  # once the head of the queue has waited this long, it is claimed whatever its model


def claim_generation(
    session: Session,
    worker_id: str | None = None,
    *,
    model_names: Iterable[str] | None = None,
    prefer_model: str | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> Generation | None:
    """Claim the next due generation: highest priority, then oldest. Returns None if none is due or the queue is paused.

    Without a `worker_id` a new one is generated (host:pid:random). Pass `generation.lease` to the functions that finish
    the generation. With `model_names`, only generations of these models are claimed. A generation of `prefer_model`
    (the model in memory) is claimed ahead of up to 49 others, unless the head of the queue has waited for five minutes.
    After `lease_seconds` without a heartbeat the generation may be reclaimed. Raises ValueError or TypeError for a bad
    argument.
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
    """Claim up to `limit` due generations in one statement and return them in claim order; see claim_generation()."""
    limit = min(validate_count("limit", limit), INTEGER_LIMIT)
    worker_id = new_worker_id() if worker_id is None else validate_name("worker_id", worker_id)
    lease_seconds = validate_seconds("lease_seconds", lease_seconds)
    models = validate_models(model_names)
    preferred = None if prefer_model is None else validate_name("prefer_model", prefer_model)
    if limit == 0 or not models:
        return []
    claim = _claim(backend_for(session), limit, models, preferred, lease_seconds)
    rows = connection_of(session).execute(claim, {"claiming_worker": worker_id}).all()
    if len(rows) > 1:
        rows = sorted(rows, key=lambda row: (-row.priority, row.scheduled_at, row.id))
    return load_generations(session, rows)


def resume_claim(session: Session, worker_id: str, *, lease_seconds: float = LEASE_SECONDS) -> Generation | None:
    """Return a generation that `worker_id` has claimed and not finished, with its lease extended; None without one.

    For a worker that has no job, after the answer to the commit of its claim was lost. The id must be the worker's own.
    """
    mine = select(Generation).where(PROCESSING, Generation.worker_id == worker_id)
    claimed = session.scalars(mine.order_by(Generation.started_at.desc()).limit(1)).one_or_none()
    if claimed is None or claimed.lease is None:
        return None
    return heartbeat_generation(session, claimed.lease, lease_seconds=lease_seconds)


def choose_model(session: Session, worker_id: str, *, model_names: Iterable[str] | None = None) -> str | None:
    """Return the model that a worker without one in memory should load: to pass to its claim as `prefer_model`.

    The first due generation whose model no other live worker has in memory decides, among the first 50 in claim order.
    So workers that start together load different models, and each keeps its own. None if there is no such generation.
    """
    warm = get_warm_models(session, worker_id)
    if not warm:
        return None
    backend = backend_for(session)
    columns = [Generation.priority, Generation.scheduled_at, Generation.id, Generation.model_name]
    due: list[Any] = []
    for model in validate_models(model_names):
        due += connection_of(session).execute(backend.select_due(waiting_for(model), columns, LOOK_AHEAD, locked=False))
    due.sort(key=lambda row: (-row.priority, row.scheduled_at, row.id))
    return next((row.model_name for row in due[:LOOK_AHEAD] if row.model_name not in warm), None)


def new_worker_id() -> str:
    """Return a new, unique worker id: host:pid:random."""
    return f"{socket.gethostname()[:128]}:{os.getpid()}:{secrets.token_hex(4)}"


@lru_cache(maxsize=128)  # building the statement takes longer than executing it, and a worker repeats its arguments
def _claim(
    backend: Backend, limit: int, models: tuple[str | None, ...], preferred: str | None, lease_seconds: float
) -> Any:
    chosen = _choose(backend, limit, models, preferred).cte()
    claim = update(Generation).where(Generation.id.in_(select(chosen.c.id)), NOT_PAUSED)
    claim = claim.values(
        transition_values(GenerationStatus.PENDING, GenerationStatus.PROCESSING)
        | {
            # Literals where a value is always the same: to bind one takes 1 µs.
            "status": literal_column(f"'{GenerationStatus.PROCESSING}'"),
            "worker_id": bindparam("claiming_worker"),
            "attempt": Generation.attempt + literal_int(1),
            "started_at": backend.now(),
            "lease_expires_at": backend.now(lease_seconds),
            "error_message": null(),
            "version": Generation.version + literal_int(1),
        }
    )
    return claim.returning(GENERATIONS)


def _choose(backend: Backend, limit: int, models: tuple[str | None, ...], preferred: str | None) -> Select[Any]:
    """Return the query for the ids of the rows to claim; it locks them where the database has row locks."""
    if len(models) == 1 and (preferred is None or models != (None,)):
        return backend.select_due(waiting_for(models[0]), [Generation.id], limit)
    # One index seek for each model; merging the first rows of every model gives the first rows of all of them.
    size = limit + LOOK_AHEAD - 1
    columns = [Generation.id, Generation.model_name, Generation.priority, Generation.scheduled_at]
    firsts = [backend.select_due(waiting_for(model), columns, size, locked=False).subquery() for model in models]
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
