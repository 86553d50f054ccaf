"""The registry of workers: each writes that it is alive, and is counted for as long as it promised. See ADR 32.

SQL only; never commits. A worker that is not registered counts while it holds a lease.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Integer,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    union,
    union_all,
)
from sqlalchemy.orm import Session, aliased

from ..backends import Backend, StatementClock, backend_for
from ..conditions import PROCESSING
from ..defaults import ALIVE_SECONDS
from ..lifecycle import WorkerState
from ..models import Base, Generation, RegisteredWorker
from ..queue_models import WORKER_RULES
from ..row_loading import connection_of
from ..serialization import Report
from ..types import UTCDateTime, load_json_names
from ..validation import is_storable, validate_seconds
from .clock_correction import TOLERANCE_SECONDS

WORKERS: Final = Base.metadata.tables["workers"]
TOLERANCE: Final = timedelta(seconds=TOLERANCE_SECONDS)


@dataclass(frozen=True)
class WorkerStatus(Report):
    """A live worker, and what it is doing.

    It counts until `expires_at` and is seen again before, unless it dies. `model_names` None means any model.
    `warm_model` is the model in its memory. A worker that is not registered is known by its leases alone: `host`, `pid`
    and `last_seen_at` are None, and `started_at` is the start of its job.
    """

    id: str
    host: str | None
    pid: int | None
    model_names: tuple[str, ...] | None
    warm_model: str | None
    device: str | None
    version: str | None
    state: WorkerState
    generation_id: str | None
    started_at: datetime | None
    last_seen_at: datetime | None
    expires_at: datetime


def register_worker(
    session: Session,
    worker_id: str,
    *,
    model_names: Iterable[str] | None = None,
    warm_model: str | None = None,
    device: str | None = None,
    version: str | None = None,
    state: str = WorkerState.IDLE,
    generation_id: str | None = None,
    alive_seconds: float = ALIVE_SECONDS,
) -> None:
    """Register this process as a live worker, or say again that it is alive: it then counts for `alive_seconds` more.

    A Worker does this itself. A process that calls claim_generation() with `worker_id` may do it before its first claim
    and then about three times in `alive_seconds`, also while it works, and call unregister_worker() at its end.
    `model_names` are the models that it claims, None means any; `warm_model` is the one in its memory; `device` and
    `version` are labels to show; `state` is idle, busy (with `generation_id`, if it holds no lease) or stopping.
    Raises ValueError or TypeError for a bad argument.
    """
    given = {
        "id": WORKER_RULES["id"]("worker_id", worker_id),
        "host": socket.gethostname()[:128] or "unknown",
        "pid": os.getpid(),
        "model_names": model_names,
        "warm_model": warm_model,
        "device": device,
        "version": version,
        "state": state,
        "generation_id": generation_id,
    }
    values = {field: WORKER_RULES[field](field, value) for field, value in given.items()}
    alive = timedelta(seconds=validate_seconds("alive_seconds", alive_seconds))
    connection_of(session).execute(_registration(backend_for(session)), values | {"alive_seconds": alive})


def unregister_worker(session: Session, worker_id: str) -> bool:
    """Remove a worker that has ended; it no longer counts. Returns whether it was registered."""
    if not is_storable("worker_id", worker_id):
        return False
    return bool(connection_of(session).execute(delete(WORKERS).where(WORKERS.c.id == worker_id)).rowcount)


def get_workers(session: Session) -> list[WorkerStatus]:
    """Return the live workers, the one that started first first; WorkerStatus says what counts as live."""
    statement, clock = _live_workers(backend_for(session))
    rows = connection_of(session).execute(statement, clock.parameters()).all()
    workers = [_status(**row._mapping) for row in rows]
    return sorted(workers, key=lambda worker: (worker.started_at or worker.expires_at, worker.id))


def remove_silent_workers(session: Session) -> None:
    """Remove the workers that were silent for longer than they promised.

    The row of one that holds a lease stays until the lease has expired, so that the lease does not make it count.
    """
    backend = backend_for(session)
    now, future = backend.now(), backend.now(TOLERANCE_SECONDS)
    leased = exists().where(PROCESSING, Generation.worker_id == WORKERS.c.id, Generation.lease_expires_at > now)
    silent = or_(WORKERS.c.expires_at <= now, WORKERS.c.last_seen_at > future)
    connection_of(session).execute(delete(WORKERS).where(silent, ~leased))


def get_warm_models(session: Session, worker_id: str) -> set[str]:
    """Return the models that live workers other than `worker_id` have in memory or are rendering with."""
    statement, clock = _warm_models(backend_for(session))
    return set(connection_of(session).execute(statement, clock.parameters() | {"worker_id": worker_id}).scalars())


def count_workers(clock: StatementClock) -> Any:
    """Return the number of live workers as an SQL expression; it agrees with get_workers()."""
    registered = select(func.count()).where(*_is_live(clock)).scalar_subquery()
    others = select(func.count(Generation.worker_id.distinct())).where(*_only_leased(clock)).scalar_subquery()
    return registered + others


def select_claiming_models(clock: StatementClock) -> CompoundSelect[Any]:
    """Return the query for what each live worker that is not stopping claims: a row to give to is_claimed()."""
    registered = select(func.coalesce(cast(RegisteredWorker.model_names, Text), "null").label("models"))
    registered = registered.where(*_is_live(clock), RegisteredWorker.state != WorkerState.STOPPING.value)
    others = select(literal("null", Text)).where(*_only_leased(clock)).group_by(Generation.worker_id)
    return union_all(registered, others)


def is_claimed(model_name: str, claiming: Iterable[str]) -> bool:
    """Return whether any of these rows of select_claiming_models() is of a worker that claims this model."""
    return any(claims_model(models, model_name) for models in claiming)


def claims_model(models: str, model_name: str) -> bool:
    """Return whether a worker with this row of select_claiming_models() claims generations of a model."""
    names = _names(models)
    return names is None or model_name in names


def _status(*, model_names: str | None, state: str, **values: Any) -> WorkerStatus:
    return WorkerStatus(**values, model_names=_names(model_names), state=WorkerState(state))


def _names(text: str | None) -> tuple[str, ...] | None:
    names = None if text is None else load_json_names(text)
    return None if names is None else tuple(names)


def _is_live(clock: StatementClock) -> tuple[ColumnElement[bool], ...]:
    # A row from the future was written before the clock was set back: nobody knows until when it counts. The worker
    # writes it again within a third of its promise.
    return (
        RegisteredWorker.expires_at > clock(timedelta(0)),
        RegisteredWorker.last_seen_at <= clock(TOLERANCE),
    )


def _only_leased(clock: StatementClock) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for generations whose worker is known by its lease alone."""
    return (
        PROCESSING,
        Generation.lease_expires_at > clock(timedelta(0)),
        Generation.worker_id.is_not(None),
        ~exists().where(RegisteredWorker.id == Generation.worker_id),
    )


@cache
def _registration(backend: Backend) -> Any:
    written = ("host", "pid", "model_names", "warm_model", "device", "version", "state", "generation_id")
    values: dict[str, Any] = {name: bindparam(name, type_=WORKERS.c[name].type) for name in ("id", *written)}
    values |= dict.fromkeys(("started_at", "last_seen_at"), backend.now())
    values["expires_at"] = backend.now_after("alive_seconds")
    insert = backend.insert(WORKERS).values(values)
    changed = {name: insert.excluded[name] for name in (*written, "last_seen_at", "expires_at")}
    return insert.on_conflict_do_update(index_elements=["id"], set_=changed)


@cache
def _live_workers(backend: Backend) -> tuple[CompoundSelect[Any], StatementClock]:
    clock, worker = backend.statement_clock(), RegisteredWorker
    job = aliased(Generation)
    leased = select(job.id).where(
        job.is_processing, job.worker_id == worker.id, job.lease_expires_at > clock(timedelta(0))
    )
    leased_id = leased.order_by(job.started_at.desc(), job.id).limit(1).correlate(worker).scalar_subquery()
    written_id = select(job.id).where(job.id == worker.generation_id, job.is_processing).correlate(worker)
    current = func.coalesce(leased_id, written_id.scalar_subquery())
    registered = select(worker, current.label("current")).where(*_is_live(clock)).subquery()
    row = registered.c
    is_busy = or_(row.current.is_not(None), (row.state == WorkerState.BUSY.value) & row.generation_id.is_(None))
    state = case(
        (row.state == WorkerState.STOPPING.value, row.state),
        (is_busy, WorkerState.BUSY.value),
        else_=WorkerState.IDLE.value,
    )
    model = select(job.model_name).where(job.id == row.current).correlate(registered).scalar_subquery()
    statement = union_all(
        select(
            row.id,
            row.host,
            row.pid,
            cast(row.model_names, Text).label("model_names"),
            func.coalesce(model, row.warm_model).label("warm_model"),
            row.device,
            row.version,
            state.label("state"),
            row.current.label("generation_id"),
            row.started_at,
            row.last_seen_at,
            row.expires_at,
        ),
        _workers_by_lease(clock),
    )
    return statement, clock


@cache
def _warm_models(backend: Backend) -> tuple[CompoundSelect[Any], StatementClock]:
    clock, me = backend.statement_clock(), bindparam("worker_id", type_=Text())
    warm = select(RegisteredWorker.warm_model).where(
        *_is_live(clock),
        RegisteredWorker.id != me,
        RegisteredWorker.state != WorkerState.STOPPING.value,
        RegisteredWorker.warm_model.is_not(None),
    )
    # A worker that began its job a moment ago has not written so yet.
    rendering = select(Generation.model_name).where(
        PROCESSING, Generation.lease_expires_at > clock(timedelta(0)), Generation.worker_id != me
    )
    return union(warm, rendering), clock


def _workers_by_lease(clock: StatementClock) -> Any:
    """Return the query for the workers that are not registered, with the columns of _live_workers()."""
    nothing = cast(null(), Text)
    return (
        select(
            Generation.worker_id,
            nothing,
            cast(null(), Integer),
            nothing,
            func.min(Generation.model_name),
            nothing,
            nothing,
            literal(WorkerState.BUSY.value, Text),
            func.min(Generation.id),
            func.min(Generation.started_at, type_=UTCDateTime()),
            cast(null(), UTCDateTime()),
            func.max(Generation.lease_expires_at, type_=UTCDateTime()),
        )
        .where(*_only_leased(clock))
        .group_by(Generation.worker_id)
    )
