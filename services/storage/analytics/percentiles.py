"""Percentiles: those of PostgreSQL's percentile_cont, by sorting, or by counting where there are many values.

They are numpy's "linear" and statistics.quantiles(method="inclusive"), type 7 of Hyndman and Fan, Sample Quantiles in
Statistical Packages, 1996: the value at p · (n - 1) of n sorted values numbered from 0, interpolated linearly between
its neighbours. Python does the interpolation, so both databases give exactly the same results.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Select, case, func, select

from ..backends import Backend
from .report_types import Percentiles

PERCENTS: Final = (50, 90, 99)


def select_percentiles(group: Any, subject: Any, value: Any) -> Select[Any]:
    """Return rows of (group, subject, count, the two neighbours of each percentile) for the values that are not NULL.

    Window functions, because SQLite has no percentile_cont.
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
    """Return the percentiles of `count` values from the two neighbours of each."""
    found = []
    for index, percent in enumerate(PERCENTS):
        low, high = neighbours[2 * index : 2 * index + 2]
        found.append(low + (high - low) * ((count - 1) * percent % 100 / 100))
    return Percentiles(count, *found)


def likely_ranges(sample: Iterable[float]) -> list[tuple[float, float]]:
    """Return for each percentile a range of values that contains its neighbours, if the sample is random.

    The rank of a percentile in the sample has a binomial distribution; the range is four standard deviations wide on
    each side, so it misses a neighbour in one of 10,000 cases.
    """
    ordered = sorted(sample)
    ranges = []
    for percent in PERCENTS:
        rank, share = len(ordered) * percent / 100, percent / 100
        margin = 4 * math.sqrt(rank * (1 - share)) + 1
        low, high = math.floor(rank - margin), math.ceil(rank + margin)
        ranges.append((ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]))
    return ranges


def count_by_ranges(backend: Backend, value: Any, ranges: Sequence[tuple[float, float]]) -> list[Any]:
    """Return the columns for find_percentiles(): the count, and for each range those below and the values in it."""
    columns = [func.count(value)]
    for low, high in ranges:
        columns += [func.count(case((value < low, 1))), backend.collect(value, value.between(low, high))]
    return columns


def find_percentiles(count: int, *in_ranges: Any) -> Percentiles | None:
    """Return the percentiles from the columns of count_by_ranges(); None if one is outside its range."""
    neighbours = []
    for index, percent in enumerate(PERCENTS):
        below, values = in_ranges[2 * index], sorted(in_ranges[2 * index + 1] or ())
        for rounding in (0, 99):
            position = ((count - 1) * percent + rounding) // 100 - below
            if not 0 <= position < len(values):
                return None
            neighbours.append(values[position])
    return interpolate(count, *neighbours)
