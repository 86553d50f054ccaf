"""Estimate when each running generation will finish, all in one statement. Read-only."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, CompoundSelect, Double, Select, Text, cast, null, select, union_all
from sqlalchemy.orm import Session

from ..backends import Backend, StatementClock, backend_for
from ..conditions import PROCESSING
from ..models import Generation
from ..row_loading import connection_of
from .estimates import LONGEST, clamp_seconds, percentile, remaining_times, select_samples, times_alike
from .report_types import Remaining
from .reports import seconds_between


def estimate_running(session: Session) -> dict[str, Remaining]:
    """Return when each processing generation will finish, by its id.

    The estimates are those of estimate_completion(): the times of the latest completed generations of the same model
    that took longer than this one has taken. Generations of a model without any are left out.
    """
    statement, clock = _running(backend_for(session))
    at: datetime | None = None
    jobs: list[tuple[str, str, float, float | None]] = []
    history: dict[str, list[tuple[float, float]]] = {}
    for generation_id, model, now, duration, seconds in connection_of(session).execute(statement, clock.parameters()):
        if generation_id is not None:
            jobs.append((generation_id, model, duration, seconds))
        elif model is not None:
            history.setdefault(model, []).append((duration, seconds))
        else:
            at = datetime.fromtimestamp(0, tz=UTC) + timedelta(microseconds=now)
    assert at is not None
    found = {}
    for generation_id, model, duration, elapsed in jobs:
        times = times_alike(history.get(model, []), duration)
        if times:
            left = remaining_times(times, elapsed or 0.0)
            low, middle, high = (
                at + timedelta(seconds=min(percentile(left, part), LONGEST)) for part in (0.1, 0.5, 0.9)
            )
            found[generation_id] = Remaining(generation_id, at, low, middle, high, len(times))
    return found


@cache
def _running(backend: Backend) -> tuple[CompoundSelect[Any], StatementClock]:
    clock = backend.statement_clock()
    now = clock(timedelta(0))
    running = _row(
        Generation.id,
        Generation.model_name,
        duration=clamp_seconds(Generation.duration_seconds),
        seconds=seconds_between(backend, now, Generation.started_at),
    )
    return union_all(
        _row(now=backend.epoch_microseconds(now)),
        running.where(PROCESSING),
        select_samples(lambda model, length, seconds: _row(model=model, duration=length, seconds=seconds)),
    ), clock


def _row(
    generation_id: Any = None, model: Any = None, now: Any = None, duration: Any = None, seconds: Any = None
) -> Select[Any]:
    """Return one SELECT of the UNION ALL; which of the five columns are NULL tells its rows apart."""
    values = ((generation_id, Text), (model, Text), (now, BigInteger), (duration, Double), (seconds, Double))
    columns: list[Any] = [cast(null() if value is None else value, its_type) for value, its_type in values]
    return select(*columns)
