"""What the admin page writes and draws: durations, ages, sizes, charts and waveforms."""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage import Usage
from services.storage.admin.charts import draw_usage, draw_waveform
from services.storage.admin.formatting import (
    write_age,
    write_band,
    write_duration,
    write_moment,
    write_percent,
    write_size,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NOTHING = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (None, NOTHING), (math.inf, NOTHING), (math.nan, NOTHING), (-1, "0 s"), (0, "0 s"), (0.842, "0.84 s"),
        (18.4, "18 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7_500, "2 h 5 min"),
        (90_000, "1 d 1 h"), (86_400 * 4_000, "4,000 d"),
    ],
)  # fmt: skip
def test_durations_have_the_units_that_matter(seconds: float | None, written: str) -> None:
    assert write_duration(seconds) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "just now"), (12, "12 s ago"), (200, "3 min ago"), (7_500, "2 h ago"), (90_000, "1 d ago"), (-90, "in 1 min"),
     (86_400 * 30, "26 Oct 2026")],
)  # fmt: skip
def test_ages_are_written_roughly_and_old_ones_as_dates(seconds: float, written: str) -> None:
    assert write_age(NOW - timedelta(seconds=seconds), NOW) == written


def test_a_missing_time_is_a_dash() -> None:
    assert write_age(None, NOW) == write_moment(None) == NOTHING


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [(12, 18, "in 12-18 s"), (-5, 0.2, "in 0-1 s"), (17.9, 18.1, "in 18 s"), (60, 200, "in 1-3 min"),
     (3_600, 9_000, "in 1-2 h")],
)  # fmt: skip
def test_estimates_are_written_as_a_range_in_one_unit(low: float, high: float, written: str) -> None:
    first, last = (NOW + timedelta(seconds=seconds) for seconds in (low, high))
    assert write_band(first, last, NOW).replace(NOTHING, "-") == written


@pytest.mark.parametrize(
    ("size", "written"),
    [(None, NOTHING), (0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (384_044, "384 kB"), (5_242_880, "5.24 MB"),
     (10**12, "1 TB")],
)  # fmt: skip
def test_sizes_have_decimal_units(size: int | None, written: str) -> None:
    assert write_size(size) == written


@given(st.integers(0, 2**63 - 1))
def test_every_size_is_short(size: int) -> None:
    assert len(write_size(size)) <= 12


@given(st.floats(0, 1))
def test_a_percentage_says_all_or_nothing_only_when_it_is(fraction: float) -> None:
    written = write_percent(fraction)
    assert (written == "100 %") == (fraction == 1)
    assert (written in ("0 %", "0.0 %")) == (fraction == 0)
    assert write_percent(None) == NOTHING


@given(st.lists(st.tuples(*[st.integers(0, 10**6)] * 3), max_size=40))
def test_every_bar_is_inside_the_drawing_and_every_count_is_visible(counts: list[tuple[int, int, int]]) -> None:
    usage = [Usage(NOW + timedelta(hours=at), 0, *three) for at, three in enumerate(counts)]
    chart = draw_usage(usage, "%H:00")
    bars = re.findall(
        r'class="(?:completed|failed|cancelled)" x="([\d.]+)" y="(-?[\d.]+)" width="(\d+)" height="([\d.]+)"', chart.svg
    )
    assert len(bars) == sum(count > 0 for three in counts for count in three)
    for x, y, width, height in bars:
        assert float(height) >= 1
        assert float(x) + int(width) <= 12 * len(usage)
        assert -3 <= float(y) <= 100  # a count that would be too small to see is drawn a little larger
    assert chart.top >= max((sum(three) for three in counts), default=0)
    assert chart.top % 2 == 0
    assert chart.is_empty == (not bars)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=300))
def test_a_waveform_has_at_most_64_bars_and_keeps_the_loudest_peaks(peaks: list[float]) -> None:
    drawn = draw_waveform({"peaks": peaks})
    assert drawn is not None
    spans = re.findall(r"M[\d.]+ (\d+)V(\d+)", drawn)
    assert len(spans) == min(64, len(peaks))
    assert max(int(bottom) - int(top) for top, bottom in spans) == pytest.approx(2 * (46 * max(peaks) + 2), abs=1.1)


@pytest.mark.parametrize(
    "peaks",
    [None, "loud", [], [1], ["<script>", 1], [0.5, math.nan], [0.5, 2], [0.5, -1], [True, False], [0.5] * 5_000],
)
def test_metadata_that_is_no_waveform_draws_nothing(peaks: Any) -> None:
    assert draw_waveform({"peaks": peaks}) is None
