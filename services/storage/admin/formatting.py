"""How times, durations, sizes and numbers are written on the page. Pure."""

import math
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

NOTHING: Final = "\N{EN DASH}"  # instead of a value; also between two numbers
UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def write_duration(seconds: float | None) -> str:
    """Return seconds with the one or two units that matter: 0.84 s, 18 s, 3 min 20 s, 2 h 5 min, 4 d."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    seconds = max(seconds, 0.0)
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    (unit, size), (small, small_size) = next(pair for pair in pairwise(UNITS) if whole >= pair[0][1])
    rest = whole % size // small_size
    return f"{whole // size:,} {unit}" + (f" {rest} {small}" if rest else "")


def write_age(moment: datetime | None, now: datetime) -> str:
    """Return how long ago a time was: just now, 12 s ago, 3 min ago, 2 h ago; from a week on, the date."""
    if moment is None:
        return NOTHING
    seconds = (now - moment).total_seconds()
    if seconds >= 7 * 86_400:
        return f"{moment:%-d %b %Y}"
    if seconds < -1:
        return f"in {_write_roughly(-seconds)}"
    return "just now" if seconds < 2 else f"{_write_roughly(seconds)} ago"


def write_moment(moment: datetime | None) -> str:
    """Return a time in UTC to the second."""
    return NOTHING if moment is None else f"{moment.astimezone(UTC):%-d %b %Y, %H:%M:%S} UTC"


def write_band(low: datetime, high: datetime, now: datetime) -> str:
    """Return when something is expected, as a range of durations from now: in 12 to 18 s."""
    first, last = ((moment - now).total_seconds() for moment in (low, high))
    size, unit = (1, "s") if last < 100 else (60, "min") if last < 6_000 else (3_600, "h")
    start, end = max(0, round(first / size)), max(1, round(last / size))
    return f"in {start:,}{NOTHING}{end:,} {unit}" if start < end else f"in {end:,} {unit}"


def write_size(size: int | None) -> str:
    """Return a number of bytes with a decimal unit: 512 B, 5.2 MB."""
    if size is None:
        return NOTHING
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.3g} {unit}"
        amount /= 1_000
    return f"{amount:,.3g} TB"


def write_count(number: int) -> str:
    """Return a whole number with separators."""
    return f"{number:,}"


def write_percent(fraction: float | None) -> str:
    """Return a fraction as a percentage that never rounds to 0 % or 100 % by mistake."""
    if fraction is None:
        return NOTHING
    percent = fraction * 100
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) or 10 <= percent < 99.5 else f"{percent:.1f} %"


def _write_roughly(seconds: float) -> str:
    unit, size = next((pair for pair in UNITS if seconds >= pair[1]), UNITS[-1])
    return f"{int(seconds // size)} {unit}"


FILTERS: Final[dict[str, Any]] = {
    "age": write_age,
    "count": write_count,
    "duration": write_duration,
    "moment": write_moment,
    "percent": write_percent,
    "size": write_size,
}
