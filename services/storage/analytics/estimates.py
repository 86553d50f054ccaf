"""Estimate when one generation will finish, and explain why it waits, from the history and the queue. Read-only."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from math import fsum, sqrt
from statistics import NormalDist, fmean, pvariance
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Double,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.orm import Session, aliased

from ..backends import Backend, StatementClock, backend_for
from ..claim_order import is_before
from ..conditions import PENDING, PROCESSING, is_valid
from ..lifecycle import FINISHED, GenerationStatus
from ..models import Generation, QueueState
from ..queue.workers import claims_model, is_claimed, select_claiming_models
from ..row_loading import connection_of
from ..validation import is_storable
from .report_types import Estimate, Wait, WaitReason
from .reports import pending_generations, seconds_between

HISTORY_SIZE = 2_000
MODEL_SAMPLES = 200
ENOUGH_ALIKE = 20
GRID = 25
RETRY = "retry_generation(), or `dgx-storage retry`"
SHORTEST, LONGEST = 1e-3, 1e9  # seconds; stored times are clamped to these (1e9 s are about thirty years)


def estimate_completion(session: Session, generation_id: str) -> Estimate | None:
    """Estimate when a pending or processing generation will finish, from the last 2,000 finished ones.

    The rendering time is that of the 200 latest completed generations of the same model: those whose length differs by
    at most a tenth if there are 20 of them, otherwise all, scaled in proportion to length.

    The waiting time: with k workers, the first one becomes free for this generation when the work (what remains of the
    running jobs, and the jobs ahead) is done, except for what then remains of the other k - 1 jobs. Their expected
    residual life is E[S²] / 2 E[S] each, where S is the time of a job (Cox, Renewal Theory, 1962). Hence the wait is
    (work - (k - 1) E[S²] / 2 E[S]) / k; its distribution is taken as normal. The k workers are the live ones that claim
    this model and are not stopping, and the jobs are those of the models that these claim. Retries, failures and the
    help of other workers with these jobs are not modelled.

    Returns None if there is no estimate: for an unknown or finished id, for a pending one while the queue is paused or
    no worker claims its model, for a model without recent completed generations, and beyond thirty years.
    """
    if not is_storable("generation_id", generation_id):
        return None
    statement, clock = _estimation(backend_for(session))
    parameters = {"generation_id": generation_id} | clock.parameters()
    rows: dict[str, list[Any]] = {}
    for kind, *row in connection_of(session).execute(statement, parameters):
        rows.setdefault(kind, []).append(row)
    return _estimate(generation_id, rows) if "job" in rows else None


def explain_wait(session: Session, generation_id: str) -> Wait | None:
    """Explain why a generation is not finished yet; Wait lists the reasons. Returns None for an unknown id."""
    if not is_storable("generation_id", generation_id):
        return None
    statement, clock = _explanation(backend_for(session))
    parameters = {"generation_id": generation_id} | clock.parameters()
    row = connection_of(session).execute(statement, parameters).one_or_none()
    if row is None:
        return None
    if row.status not in set(GenerationStatus):
        return Wait(
            WaitReason.INVALID,
            f"This library does not know its status {row.status!r}, so no worker gets it: see `dgx-storage check`.",
        )
    if not row.is_valid and row.status not in FINISHED:
        return Wait(
            WaitReason.INVALID, "It violates a rule of the schema, so no worker gets it: `dgx-storage check` says why."
        )
    if row.status == GenerationStatus.PENDING:
        return _explain_pending(row)
    if row.status == GenerationStatus.PROCESSING:
        return _explain_processing(row)
    if row.status == GenerationStatus.FAILED and row.is_valid and row.attempt >= row.max_attempts:
        times = f"{row.attempt} of {row.max_attempts} attempts"
        return Wait(
            WaitReason.EXHAUSTED,
            f"It failed after {times}: {RETRY}, gives it one more.",
        )
    hint = "" if row.status == GenerationStatus.COMPLETED else f": {RETRY}, makes it pending again"
    return Wait(WaitReason.FINISHED, f"It is already {row.status}{hint}.")


@cache
def _estimation(backend: Backend) -> tuple[CompoundSelect[Any], StatementClock]:
    clock = backend.statement_clock()
    now = clock(timedelta(0))
    job = _job()
    generation_id = bindparam("generation_id", type_=Text())
    elapsed = seconds_between(backend, now, Generation.started_at)
    length = clamp_seconds(Generation.duration_seconds)
    claiming = select_claiming_models(clock).subquery()
    statement = union_all(
        _row("now", number=backend.epoch_microseconds(now)),
        _row(
            "job",
            job.model_name,
            None,
            clamp_seconds(job.duration_seconds),
            seconds_between(backend, job.scheduled_at, now),
        ).where(job.id == generation_id),
        _row("status", job.status, None, seconds_between(backend, now, job.started_at)).where(job.id == generation_id),
        _row("worker", claiming.c.models).select_from(claiming),
        _row("paused", number=func.count()).where(QueueState.paused_at.is_not(None)),
        _row("ahead", Generation.model_name, func.count(), func.sum(length), func.sum(length * length))
        .where(PENDING, Generation.scheduled_at <= now, is_before(Generation, job), job.id == generation_id)
        .group_by(Generation.model_name),
        _row("running", Generation.model_name, None, length, elapsed).where(PROCESSING, Generation.id != generation_id),
        select_samples(lambda model, length, seconds: _row("sample", model, None, length, seconds)),
    )
    return statement, clock


@cache
def _explanation(backend: Backend) -> tuple[Select[Any], StatementClock]:
    clock, job = backend.statement_clock(), _job()
    pending = pending_generations()
    claiming = select_claiming_models(clock).subquery()
    ahead = select(func.count()).where(pending.c.scheduled_at <= clock(timedelta(0)), is_before(pending.c, job))
    statement = select(
        job.status,
        job.attempt,
        job.max_attempts,
        job.scheduled_at,
        job.started_at,
        job.worker_id,
        job.lease_expires_at,
        clock(timedelta(0)).label("now"),
        select(func.max(QueueState.paused_at)).scalar_subquery().label("paused_at"),
        select(func.max(QueueState.reason)).scalar_subquery().label("pause_reason"),
        # One text, because a row for each worker would repeat the count of the jobs ahead; JSON has no line breaks.
        select(func.aggregate_strings(claiming.c.models, "\n")).scalar_subquery().label("claiming"),
        job.model_name,
        ahead.correlate(job).scalar_subquery().label("ahead"),
        is_valid(backend.name).label("is_valid"),
    ).where(job.id == bindparam("generation_id"))
    return statement, clock


@cache
def _job() -> Any:
    # Cached because a new alias of 33 columns takes a millisecond.
    return aliased(Generation)


def _explain_pending(row: Any) -> Wait:
    if row.paused_at is not None:
        reason = f" ({row.pause_reason})" if row.pause_reason else ""
        return Wait(
            WaitReason.PAUSED,
            f"The queue is paused{reason}: resume_queue(), or `dgx-storage resume`, allows claims again.",
            row.ahead,
        )
    if row.scheduled_at > row.now:
        due = f"It is due in {_round(row.scheduled_at - row.now)}, at {row.scheduled_at:%Y-%m-%d %H:%M} UTC"
        after = f", after attempt {row.attempt}" if row.attempt else ""
        return Wait(WaitReason.SCHEDULED, f"{due}{after}.", row.ahead, row.scheduled_at)
    claiming = [] if row.claiming is None else row.claiming.split("\n")
    if not claiming:
        return Wait(
            WaitReason.NO_WORKERS,
            "No worker is running, or all are stopping: start one with `dgx-storage worker MODULE:FUNCTION`.",
            row.ahead,
        )
    if not is_claimed(row.model_name, claiming):
        return Wait(
            WaitReason.NO_WORKER_FOR_MODEL,
            f"No running worker claims the model {row.model_name}: start one that does.",
            row.ahead,
        )
    if row.ahead:
        others = f"{row.ahead:,} other generation{'' if row.ahead == 1 else 's'}"
        return Wait(WaitReason.BEHIND, f"It waits behind {others}.", row.ahead)
    return Wait(WaitReason.NEXT, "It is the next to be claimed.")


def _explain_processing(row: Any) -> Wait:
    if row.lease_expires_at is None:
        return Wait(
            WaitReason.UNLEASED,
            "It was started without a lease, so it is unknown whether a worker is still working on it.",
        )
    if row.lease_expires_at <= row.now:
        return Wait(
            WaitReason.EXPIRED,
            "Its lease has expired without a heartbeat from its worker: it will be reclaimed.",
            0,
            row.lease_expires_at,
        )
    return Wait(
        WaitReason.PROCESSING, f"{row.worker_id} is working on it, attempt {row.attempt}.", 0, row.lease_expires_at
    )


def _round(wait: timedelta) -> str:
    """Return a time in the largest unit of which it has at least two, such as "5 days"."""
    for unit, seconds in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if wait.total_seconds() >= 2 * seconds:
            return f"{wait.total_seconds() // seconds:.0f} {unit}"
    return f"{wait.total_seconds():.0f} s"


def _row(kind: str, name: Any = None, number: Any = None, first: Any = None, second: Any = None) -> Select[Any]:
    """Return one SELECT of the UNION ALL; `kind` tells its rows apart, and all have the same four columns."""
    values: list[tuple[Any, Any]] = [(name, Text), (number, BigInteger), (first, Double), (second, Double)]
    columns: list[Any] = [cast(null() if value is None else value, its_type) for value, its_type in values]
    return select(literal(kind), *columns)


def select_samples(row: Callable[[Any, Any, Any], Select[Any]]) -> Select[Any]:
    """Return the query for the lengths and times of the latest completed generations of each model.

    `row` returns the SELECT of a model name, a length and a time.
    """
    finished = select(Generation).where(Generation.completed_at.is_not(None))
    latest = finished.order_by(Generation.completed_at.desc()).limit(HISTORY_SIZE).subquery()
    age = func.row_number().over(partition_by=latest.c.model_name, order_by=latest.c.completed_at.desc()).label("age")
    completed = (latest.c.status == GenerationStatus.COMPLETED) & latest.c.generation_time_seconds.is_not(None)
    samples = select(latest, age).where(completed).subquery()
    times = (samples.c.duration_seconds, samples.c.generation_time_seconds)
    return row(samples.c.model_name, *map(clamp_seconds, times)).where(samples.c.age <= MODEL_SAMPLES)


def clamp_seconds(seconds: Any) -> ColumnElement[float]:
    """Return SQL for seconds within what estimates compute with."""
    return case((seconds > LONGEST, LONGEST), (seconds < SHORTEST, SHORTEST), else_=seconds)


def _estimate(generation_id: str, rows: dict[str, list[Any]]) -> Estimate | None:
    (model, _, duration, delay), (status, _, elapsed, _) = rows["job"][0], rows["status"][0]
    is_paused = rows["paused"][0][1] > 0
    claiming = [models for models, *_ in rows.get("worker", []) if claims_model(models, model)]

    def concerns(job: list[Any]) -> bool:
        return is_claimed(job[0], claiming)

    history: dict[str, list[tuple[float, float]]] = {}
    for name, _, length, seconds in rows.get("sample", []):
        history.setdefault(name, []).append((length, seconds))
    own = times_alike(history.get(model, []), duration)
    if not own or status in FINISHED:
        return None
    ahead = list(filter(concerns, rows.get("ahead", []))) if status == GenerationStatus.PENDING else []
    if status == GenerationStatus.PROCESSING:
        total = remaining_times(own, elapsed or 0.0)
    elif is_paused or not claiming:
        return None
    else:
        running = list(filter(concerns, rows.get("running", [])))
        wait = waiting_time(history, own, duration, len(claiming), ahead, running)
        total = total_time(wait, own, max(delay, 0.0))
    if percentile(total, 0.9) > LONGEST:
        return None
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=rows["now"][0][1])
    p10, p50, p90 = (at + timedelta(seconds=percentile(total, fraction)) for fraction in (0.1, 0.5, 0.9))
    return Estimate(generation_id, at, p10, p50, p90, sum(count for _, count, _, _ in ahead), len(claiming), len(own))


def times_alike(history: list[tuple[float, float]], duration: float) -> list[float]:
    """Return the sorted times of jobs of this length; if there are too few, scale all times in proportion to length."""
    alike = [(length, seconds) for length, seconds in history if abs(length / duration - 1) <= 0.1]
    return sorted(seconds * duration / length for length, seconds in (alike if len(alike) >= ENOUGH_ALIKE else history))


def remaining_times(times: list[float], elapsed: float) -> list[float]:
    """Return the remaining times of the jobs that took longer than `elapsed`; if none did, a tenth of `elapsed`."""
    return [seconds - elapsed for seconds in times if seconds > elapsed] or [elapsed / 10]


def waiting_time(
    history: dict[str, list[tuple[float, float]]],
    own: list[float],
    duration: float,
    workers: int,
    ahead: list[Any],
    running: list[Any],
) -> NormalDist:
    """Return the time until the first of `workers` becomes free for a pending job; see estimate_completion()."""
    work = variance = squares = 0.0
    fallback = [(duration, seconds) for seconds in own]
    for name, _, length, squared in ahead:
        samples = history.get(name) or fallback
        rate = fsum(seconds for _, seconds in samples) / fsum(length for length, _ in samples)
        spread = fmean((seconds / length - rate) ** 2 for length, seconds in samples)
        work += rate * length
        variance += spread * squared
        squares += (rate**2 + spread) * squared
    jobs = sum(count for _, count, _, _ in ahead)
    whole = work
    for name, _, length, elapsed in running:
        times = times_alike(history.get(name) or fallback, length)
        remaining = remaining_times(times, elapsed or 0.0)
        work += fmean(remaining)
        variance += pvariance(remaining)
        if not jobs:
            whole += fmean(times)
            squares += fmean(seconds**2 for seconds in times)
    if jobs + len(running) < workers:
        return NormalDist(0.0, 0.0)
    # The other workers are in the middle of a job then. Its residual life is taken as uniform between 0 and twice its
    # mean, which has the variance mean² / 3.
    residual = squares / (2 * whole)
    variance += (workers - 1) * residual**2 / 3
    return NormalDist(max(0.0, work - (workers - 1) * residual) / workers, sqrt(variance) / workers)


def total_time(wait: NormalDist, own: list[float], delay: float) -> list[float]:
    """Return the sorted sums of two independent times, on a grid of their quantiles; the wait is at least `delay`."""
    fractions = [(index + 0.5) / GRID for index in range(GRID)]
    waits = [wait.inv_cdf(fraction) if wait.stdev else wait.mean for fraction in fractions]
    times = [percentile(own, fraction) for fraction in fractions]
    return sorted(max(waited, delay) + time for waited in waits for time in times)


def percentile(values: list[float], fraction: float) -> float:
    """Return a percentile of sorted values, as reports.py defines it."""
    position = fraction * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)
