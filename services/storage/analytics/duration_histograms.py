"""How long generations waited and rendered in the last hour, by model, counted into buckets in one statement."""

from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session

from ..backends import Backend, StatementClock, backend_for
from ..lifecycle import GenerationStatus
from ..models import Generation
from ..row_loading import connection_of
from .reports import THROUGHPUT_WINDOW, seconds_between

# Upper bounds of the buckets, in seconds. A claim is made within milliseconds or waits for a render of about 18 s.
WAIT_BOUNDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3_600.0)
RENDER_BOUNDS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True)
class Distribution:
    """How many of `count` times are at most each of `bounds`, and the sum of all, in seconds."""

    bounds: tuple[float, ...]
    at_most: tuple[int, ...]
    count: int
    total: float

    def __add__(self, other: "Distribution") -> "Distribution":
        both = zip(self.at_most, other.at_most, strict=True)
        at_most = tuple(mine + theirs for mine, theirs in both)
        return Distribution(self.bounds, at_most, self.count + other.count, self.total + other.total)


@dataclass(frozen=True)
class LastHour:
    """The generations of one model that finished in the last hour: their number by status, and their times.

    `wait` is the time from being due to the start of the last attempt, of completed and failed ones; `render` the
    reported time of completed ones.
    """

    finished: dict[str, int]
    wait: Distribution
    render: Distribution


def read_last_hour(session: Session) -> dict[str, LastHour]:
    """Return LastHour for each model that finished anything in the last hour, by name."""
    statement, clock = _last_hour(backend_for(session))
    models: dict[str, LastHour] = {}
    for model, status, count, *numbers in connection_of(session).execute(statement, clock.parameters()):
        wait = _distribution(WAIT_BOUNDS, numbers[: len(WAIT_BOUNDS) + 2])
        render = _distribution(RENDER_BOUNDS, numbers[len(WAIT_BOUNDS) + 2 :])
        known = models.get(model)
        if known is not None:
            wait, render = known.wait + wait, known.render + render
        models[model] = LastHour((known.finished if known else {}) | {status: count}, wait, render)
    return models


@cache
def _last_hour(backend: Backend) -> tuple[Select[Any], StatementClock]:
    clock = backend.statement_clock()
    is_completed = Generation.status == GenerationStatus.COMPLETED.value
    waited = seconds_between(backend, Generation.started_at, Generation.scheduled_at)
    finished = (
        select(
            Generation.model_name,
            Generation.status,
            case((Generation.status != GenerationStatus.CANCELLED.value, waited)).label("wait"),
            case((is_completed, Generation.generation_time_seconds)).label("render"),
        )
        .where(Generation.completed_at > clock(-THROUGHPUT_WINDOW), Generation.completed_at <= clock(timedelta(0)))
        .subquery()
    )
    times = ((finished.c.wait, WAIT_BOUNDS), (finished.c.render, RENDER_BOUNDS))
    numbers = [column for time, bounds in times for column in _numbers(time, bounds)]
    columns = (finished.c.model_name, finished.c.status)
    return select(*columns, func.count(), *numbers).group_by(*columns), clock


def _numbers(time: Any, bounds: tuple[float, ...]) -> list[Any]:
    # A sum of the largest floats would be infinite, which PostgreSQL refuses.
    total = func.coalesce(func.sum(case((time < 0, 0.0), (time > 1e9, 1e9), else_=time)), 0.0)
    return [*(func.count(case((time <= bound, 1))) for bound in bounds), func.count(time), total]


def _distribution(bounds: tuple[float, ...], numbers: list[Any]) -> Distribution:
    *at_most, count, total = numbers
    return Distribution(bounds, tuple(at_most), count, float(total))
