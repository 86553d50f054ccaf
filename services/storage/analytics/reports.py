"""Statistics of generations, models and prompts. Each is one read-only statement, so its numbers fit together.

Only get_performance_stats() of many generations needs several, each for some of the models. Results are the same on
every database.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Double,
    Select,
    Subquery,
    Text,
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
from .percentiles import count_by_ranges, find_percentiles, interpolate, likely_ranges, select_percentiles
from .report_types import FailureReason, Percentiles, PerformanceStats, PromptStats, QueueStats

THROUGHPUT_WINDOW = timedelta(hours=1)
REASON_LENGTH = 200
# Up to so many generations, the report is one statement. Of more, the large models are counted, not sorted.
SORTED_AT_ONCE = 20_000
SAMPLED_DIGITS = ("7",)  # one of 16 rows, because the last digit of a UUID is random
LARGE_SAMPLE = 5_000  # so many sampled values make a model large: about 80,000 finished generations
SUBJECTS = ("time", "factor", "wait")
ENDED = (GenerationStatus.COMPLETED, GenerationStatus.FAILED, GenerationStatus.CANCELLED)


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
    generation is read, which takes seconds for a million. See ADR 22.
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
    columns = (time.label("time"), factor.label("factor"), wait.label("wait"))
    finished = select(Generation.model_name, Generation.status, *columns).where(*conditions)
    models, count = _sort_models(session, finished.limit(SORTED_AT_ONCE + 1))
    if count > SORTED_AT_ONCE:
        models = _count_large_models(session, finished)
        models |= _sort_models(session, finished.where(Generation.model_name.not_in([*models])))[0]
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


def _sort_models(session: Session, finished: Select[Any]) -> tuple[dict[str, dict[str, Any]], int]:
    """Return for each model its counts by status and the percentiles of each of SUBJECTS; and the number of rows."""
    rows = finished.cte("finished")
    counts = select(rows.c.model_name, rows.c.status.label("subject"), func.count(), *[null()] * 6)
    counts = counts.group_by(rows.c.model_name, rows.c.status)
    values = [select_percentiles(rows.c.model_name, literal(name), rows.c[name]) for name in SUBJECTS]
    models: dict[str, dict[str, Any]] = {}
    total = 0
    for model, subject, count, *neighbours in session.execute(union_all(counts, *values)):
        is_status = neighbours[0] is None
        models.setdefault(model, {})[subject] = count if is_status else interpolate(count, *neighbours)
        total += count if is_status else 0
    return models, total


def _count_large_models(session: Session, finished: Select[Any]) -> dict[str, dict[str, Any]]:
    """Return the models of _sort_models() that are large, without sorting their values: three times as fast.

    A sample says about where the percentiles are. One statement then counts the values below and collects those nearby.
    A model whose sample was not random is left out.
    """
    backend = backend_for(session)
    last_digit = func.substr(Generation.id, func.length(Generation.id))
    sampled: dict[str, list[Any]] = {}
    for model, _, *values in session.execute(finished.where(last_digit.in_(SAMPLED_DIGITS))):
        sampled.setdefault(model, []).append(values)
    counts = []
    for model, rows in sampled.items():
        samples = [[value for value in column if isinstance(value, (int, float))] for column in zip(*rows, strict=True)]
        if min(map(len, samples)) >= LARGE_SAMPLE:
            # The LIMIT keeps SQLite from computing a value each time that it is compared.
            one = finished.where(Generation.model_name == model).limit(BIG_INTEGER_LIMIT).subquery()
            ended = [func.count(case((one.c.status == literal(status, Text), 1))) for status in ENDED]
            counted = [
                count_by_ranges(backend, one.c[name], likely_ranges(sample))
                for name, sample in zip(SUBJECTS, samples, strict=True)
            ]
            counts.append(select(literal(model, Text), *ended, *chain(*counted)))
    models: dict[str, dict[str, Any]] = {}
    for model, *numbers in session.execute(union_all(*counts)) if counts else ():
        ended, near = numbers[: len(ENDED)], numbers[len(ENDED) :]
        width = len(near) // len(SUBJECTS)
        percentiles = [find_percentiles(*near[start : start + width]) for start in range(0, len(near), width)]
        if None not in percentiles:
            models[model] = dict(zip((*ENDED, *SUBJECTS), (*ended, *percentiles), strict=True))
    return models


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
