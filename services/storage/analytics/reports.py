"""Statistics of generations, models and prompts. Each is one read-only statement, so its numbers fit together.

Results are the same on every database. Percentiles are those of PostgreSQL's percentile_cont, numpy's "linear" and
statistics.quantiles(method="inclusive"), type 7 of Hyndman and Fan, Sample Quantiles in Statistical Packages, 1996: the
value at p · (n - 1) of n sorted values numbered from 0, interpolated linearly between its neighbours.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Double,
    Select,
    Subquery,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy.orm import Session

from ..backends import Backend, StatementClock, backend_for
from ..claim_order import CLAIM_ORDER
from ..conditions import PENDING, PROCESSING
from ..lifecycle import GenerationStatus
from ..limits import BIG_INTEGER_LIMIT
from ..models import Generation, Prompt, QueueState
from ..queue.workers import count_workers
from ..row_loading import ALONE, connection_of
from ..validation import is_storable, validate_count, validate_moment
from .report_types import FailureReason, Percentiles, PerformanceStats, PromptStats, QueueStats

THROUGHPUT_WINDOW = timedelta(hours=1)
REASON_LENGTH = 200
PERCENTS = (50, 90, 99)


def get_database_stats(session: Session) -> dict[str, Any]:
    """Return the number of generations, in total and of each status, and the number of prompts.

    The keys: total_generations, pending_generations, processing_generations, completed_generations,
    failed_generations, cancelled_generations, total_prompts. The total includes unknown statuses.
    """
    rows: Sequence[Any] = connection_of(session).execute(_database_stats()).all()
    counts: dict[str | None, int] = dict(rows)
    total_prompts = counts.pop(None)
    return {
        "total_generations": sum(counts.values()),
        **{f"{status}_generations": counts.get(status, 0) for status in GenerationStatus},
        "total_prompts": total_prompts,
    }


def get_queue_stats(session: Session) -> QueueStats:
    """Return the state of the queue by the database's clock; QueueStats defines each number."""
    statement, clock = _queue_stats(backend_for(session))
    at, paused, *rest = connection_of(session).execute(statement, clock.parameters()).one()
    return QueueStats(at, paused > 0, *rest)


def get_performance_stats(
    session: Session, *, since: datetime | None = None, model_name: str | None = None
) -> list[PerformanceStats]:
    """Return the performance of each model, ordered by name; PerformanceStats defines each number.

    `since` limits it to generations finished since then, `model_name` to one model. Without `since` every finished
    generation is read and sorted, which takes seconds for a million.
    """
    conditions = [Generation.completed_at.is_not(None), *_conditions(since, model_name)]
    completed = Generation.status == GenerationStatus.COMPLETED
    time = case((completed, Generation.generation_time_seconds))
    factor = case(
        (
            completed,
            _clamp_for_division(Generation.generation_time_seconds) / _clamp_for_division(Generation.duration_seconds),
        )
    )
    wait = case(
        (
            Generation.status != GenerationStatus.CANCELLED,
            seconds_between(backend_for(session), Generation.started_at, Generation.scheduled_at),
        )
    )
    finished = (
        select(Generation.model_name, Generation.status, time.label("time"), factor.label("factor"), wait.label("wait"))
        .where(*conditions)
        .cte("finished")
    )
    counts = select(finished.c.model_name, finished.c.status.label("subject"), func.count(), *[null()] * 6)
    counts = counts.group_by(finished.c.model_name, finished.c.status)
    values = [
        select_percentiles(finished.c.model_name, literal(name), finished.c[name])
        for name in ("time", "factor", "wait")
    ]
    models: dict[str, dict[str, Any]] = {}
    for model, subject, count, *neighbours in session.execute(union_all(counts, *values)):
        models.setdefault(model, {})[subject] = count if neighbours[0] is None else interpolate(count, *neighbours)
    return [_performance(model, subjects) for model, subjects in sorted(models.items())]


def get_prompt_stats(session: Session, text: str) -> PromptStats | None:
    """Return the uses and results of the prompt with exactly this text, or None if there is none."""
    if not is_storable("text", text):
        return None
    prompt = select(Prompt).where(backend_for(session).prompt_text_equals(text)).cte("asked")
    stored = select(Generation).join(prompt, Generation.prompt_id == prompt.c.id).cte("stored")
    completed = stored.c.status == GenerationStatus.COMPLETED
    times = select_percentiles(literal(""), literal(""), case((completed, stored.c.generation_time_seconds))).subquery()
    statement = select(
        *prompt.c,
        select(func.count()).select_from(stored).scalar_subquery(),
        select(func.count()).where(completed).scalar_subquery(),
        select(func.count()).where(stored.c.status == GenerationStatus.FAILED).scalar_subquery(),
        select(func.count()).where(stored.c.is_favorite).scalar_subquery(),
        *(select(column).scalar_subquery() for column in list(times.c)[2:]),
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return None
    known, (count, *neighbours) = row[:9], row[9:]
    median = interpolate(count, *neighbours).p50 if count else None
    return PromptStats(*known, rate(known[6], known[7]), median)


def get_failure_reasons(
    session: Session, *, since: datetime | None = None, model_name: str | None = None, limit: int = 20
) -> list[FailureReason]:
    """Return the reasons of failed generations, most frequent first.

    `since` limits it to generations that failed since then, `model_name` to one model. Messages that differ only in
    numbers are one reason. Generations without a message have the reason "".
    """
    limit = validate_count("limit", limit)
    reason: Any = func.substr(func.coalesce(Generation.error_message, ""), 1, REASON_LENGTH)
    for digit in "0123456789":
        reason = func.replace(reason, digit, "#")
    for _ in range(4):  # runs of up to 16 digits
        reason = func.replace(reason, "##", "#")
    conditions = [Generation.status == literal_column("'failed'"), *_conditions(since, model_name)]
    failed = (
        select(reason.label("reason"), Generation.model_name, Generation.completed_at).where(*conditions).subquery()
    )
    count = func.count().label("count")
    grouped = (
        select(failed.c.reason, count, func.count(failed.c.model_name.distinct()), func.max(failed.c.completed_at))
        .group_by(failed.c.reason)
        .order_by(count.desc(), failed.c.reason)
        .limit(limit)
    )
    return [FailureReason(*row) for row in session.execute(grouped)]


@cache
def _database_stats() -> CompoundSelect[Any]:
    by_status = select(Generation.status, func.count()).group_by(Generation.status)
    counts: CompoundSelect[Any] = union_all(by_status, select(null(), func.count()).select_from(Prompt))
    return counts.execution_options(**ALONE)


@cache
def _queue_stats(backend: Backend) -> tuple[Select[Any], StatementClock]:
    clock = backend.statement_clock()
    now = clock(timedelta(0))
    waiting = pending_generations()
    scheduled = waiting.c.scheduled_at
    pending = select(
        func.count(case((scheduled <= now, 1))).label("backlog"),
        func.min(case((scheduled <= now, scheduled))).label("oldest"),
        func.count(case((scheduled > now, 1))).label("scheduled"),
    ).subquery()
    claimed = select(
        func.count().label("processing"), func.count(case((Generation.lease_expires_at <= now, 1))).label("expired")
    )
    processing = claimed.where(PROCESSING).subquery()
    finished = select(
        func.count(case((Generation.status == GenerationStatus.COMPLETED, 1))).label("completed"),
        func.count(case((Generation.status == GenerationStatus.FAILED, 1))).label("failed"),
    )
    lately = finished.where(Generation.completed_at > clock(-THROUGHPUT_WINDOW)).subquery()
    columns = (
        now.label("at"),
        select(func.count()).where(QueueState.paused_at.is_not(None)).scalar_subquery(),
        pending.c.backlog,
        seconds_between(backend, now, pending.c.oldest),
        pending.c.scheduled,
        processing.c.processing,
        processing.c.expired,
        count_workers(clock),
        lately.c.completed,
        lately.c.failed,
        select(func.max(QueueState.reason)).where(QueueState.paused_at.is_not(None)).scalar_subquery(),
    )
    statement = select(*columns).select_from(pending.join(processing, true()).join(lately, true()))
    return statement.execution_options(**ALONE), clock


def pending_generations() -> Subquery:
    """Return the id, priority and scheduled_at of the pending generations.

    The ORDER BY and a LIMIT above any count make the planner read only the queue's index and no table row: for 50,000
    pending generations that takes 10 ms instead of 100.
    """
    columns = select(Generation.id, Generation.priority, Generation.scheduled_at)
    return columns.where(PENDING).order_by(*CLAIM_ORDER).limit(BIG_INTEGER_LIMIT).subquery()


def seconds_between(backend: Backend, later: Any, earlier: Any) -> ColumnElement[float]:
    """Return the seconds between two times, rounded to the nearest double as Python's total_seconds() does."""
    return type_coerce(
        cast(backend.epoch_microseconds(later) - backend.epoch_microseconds(earlier), Double) / 1e6, Double
    )


def _conditions(since: datetime | None, model_name: str | None) -> list[ColumnElement[bool]]:
    """Return the conditions for generations finished since `since`, and for those of `model_name`."""
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(Generation.completed_at >= validate_moment("since", since))
    if model_name is not None:
        conditions.append(Generation.model_name == model_name if is_storable("model_name", model_name) else false())
    return conditions


def _clamp_for_division(seconds: Any) -> ColumnElement[float]:
    """Return the seconds, clamped so that a quotient of two never overflows: PostgreSQL raises an error for that."""
    return case((seconds.between(5e-324, 1e-100), 1e-100), (seconds > 1e100, 1e100), else_=seconds)


def select_percentiles(group: Any, subject: Any, value: Any) -> Select[Any]:
    """Return rows of (group, subject, count, the two neighbours of each percentile) for the values that are not NULL.

    Window functions instead of percentile_cont: SQLite has no percentile_cont, and Python does the interpolation, so
    both databases give exactly the same results.
    """
    given = select(group.label("grouped"), value.label("value")).where(value.is_not(None)).cte()
    # A separate aggregate: count() over the window would buffer every row and take half as long again.
    counted = select(given.c.grouped, (func.count() - 1).label("last")).group_by(given.c.grouped).subquery()
    position = func.row_number().over(partition_by=given.c.grouped, order_by=given.c.value) - 1
    numbered = select(given, position.label("position")).subquery()
    neighbours = [
        func.max(case((numbered.c.position == (counted.c.last * percent + rounding) // 100, numbered.c.value)))
        for percent in PERCENTS
        for rounding in (0, 99)
    ]
    columns = [numbered.c.grouped, subject.label("subject"), (func.max(counted.c.last) + 1).label("count"), *neighbours]
    both = numbered.join(counted, numbered.c.grouped == counted.c.grouped)
    return select(*columns).select_from(both).group_by(numbered.c.grouped)


def interpolate(count: int, *neighbours: float) -> Percentiles:
    found = []
    for index, percent in enumerate(PERCENTS):
        low, high = neighbours[2 * index : 2 * index + 2]
        found.append(low + (high - low) * ((count - 1) * percent % 100 / 100))
    return Percentiles(count, *found)


def _performance(model_name: str, subjects: dict[str, Any]) -> PerformanceStats:
    def count(status: GenerationStatus) -> int:
        return int(subjects.get(status, 0))

    nothing = Percentiles(0, None, None, None)
    completed, failed = count(GenerationStatus.COMPLETED), count(GenerationStatus.FAILED)
    return PerformanceStats(
        model_name,
        completed,
        failed,
        count(GenerationStatus.CANCELLED),
        rate(failed, completed),
        *(subjects.get(name, nothing) for name in ("time", "factor", "wait")),
    )


def rate(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
