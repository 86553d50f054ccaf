"""The reports, compared with plain Python on the same rows."""

import random
import statistics
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, text

from services.storage import (
    Attempt,
    Generation,
    Storage,
    create_generations,
    get_failure_reasons,
    get_performance_stats,
    get_prompt_stats,
    get_queue_stats,
    get_session,
    get_usage,
    register_worker,
)
from services.storage.analytics import reports
from services.storage.analytics.percentiles import find_percentiles, likely_ranges
from services.storage.models import QueueState
from services.storage.types import utcnow
from tests.support.factories import a_generation, a_request
from tests.support.plans import statements_of
from tests.support.rows_that_break_checks import break_row
from tests.support.stored_times import rewrite_worker


def test_reports_of_an_empty_database_are_empty(db: Storage) -> None:
    with get_session(read_only=True) as session:
        stats = get_queue_stats(session)
        assert (stats.backlog, stats.oldest_seconds, stats.scheduled, stats.processing, stats.workers) == (
            0,
            None,
            0,
            0,
            0,
        )
        assert not stats.is_paused
        assert abs(stats.at - utcnow()) < timedelta(minutes=1)
        assert get_performance_stats(session) == []
        assert get_failure_reasons(session) == []
        assert get_prompt_stats(session, "unknown") is get_prompt_stats(session, "\0") is None
        assert len(get_usage(session)) == 30


def test_queue_stats_follow_their_definitions(db: Storage) -> None:
    now = utcnow()
    with get_session() as session:
        for seconds in (10, 500, 20):
            a_generation(session, scheduled_at=now - timedelta(seconds=seconds))
        a_generation(session, scheduled_at=now + timedelta(hours=1))
        for worker, lease in (("a", 60), ("a", 60), ("b", 60), ("late", -1), (None, None)):
            row = a_generation(session)
            row.mark_processing()
            row.worker_id = worker
            row.lease_expires_at = None if lease is None else now + timedelta(seconds=lease)
        for minutes, outcome in ((1, "completed"), (59, "completed"), (61, "completed"), (2, "failed")):
            row = a_generation(session)
            row.status = outcome
            row.completed_at = now - timedelta(minutes=minutes)
        session.add(Attempt(generation_id=row.id, number=1, worker_id="c", outcome="completed"))
        for worker in ("b", "d", "e", "f"):
            register_worker(session, worker)
        rewrite_worker(session, "e", expires_at=now - timedelta(seconds=1))  # silent for longer than it promised
        rewrite_worker(session, "f", last_seen_at=now + timedelta(hours=1))  # before the clock was set back
        session.add(QueueState(paused_at=now, reason="new GPU"))
    with get_session(read_only=True) as session:
        stats = get_queue_stats(session)
    assert stats.is_paused
    assert (stats.backlog, stats.scheduled) == (3, 1)
    assert stats.oldest_seconds is not None
    assert 500 <= stats.oldest_seconds < 560
    assert (stats.processing, stats.expired) == (5, 1)
    assert stats.workers == 3  # a holds leases, b is registered too, d is idle; that c ended an attempt says nothing
    assert (stats.completed_per_hour, stats.failed_per_hour) == (2, 1)


VALUES = st.lists(
    st.tuples(
        st.sampled_from(["m1", "m2"]),
        st.sampled_from(["completed", "completed", "failed", "cancelled"]),
        st.one_of(st.none(), st.just(0.0), st.floats(1e-100, 1e6), st.integers(1, 9).map(float)),
        st.one_of(st.none(), st.integers(-5_000_000, 10**12)),
    ),
    max_size=40,
)


@pytest.fixture(params=["sorted", "sampled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the report sort all values, or count those of each model, as it does for large ones."""
    if request.param == "sampled":
        monkeypatch.setattr(reports, "SORTED_AT_ONCE", 0)
        monkeypatch.setattr(reports, "LARGE_SAMPLE", 1)
        monkeypatch.setattr(reports, "SAMPLED_DIGITS", tuple("02468ace"))
    return str(request.param)


@given(VALUES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_percentiles_are_those_of_plain_python(db: Storage, way: str, rows: list[tuple[str, str, Any, Any]]) -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    with get_session() as session:
        session.execute(delete(Generation))
        for model, status, seconds, wait in rows:
            row = a_generation(session, model_name=model, duration_seconds=12.5, scheduled_at=now)
            row.status = status
            row.generation_time_seconds = seconds
            row.started_at = None if wait is None else now + timedelta(microseconds=wait)
        session.flush()
        reports = {report.model_name: report for report in get_performance_stats(session)}
        assert reports.keys() == {row[0] for row in rows}
        for model, report in reports.items():
            mine = [row for row in rows if row[0] == model]
            times = [row[2] for row in mine if row[1] == "completed" and row[2] is not None]
            waits = [
                timedelta(microseconds=row[3]).total_seconds()
                for row in mine
                if row[1] != "cancelled" and row[3] is not None
            ]
            assert report.completed == sum(row[1] == "completed" for row in mine)
            assert report.failed == sum(row[1] == "failed" for row in mine)
            assert report.cancelled == sum(row[1] == "cancelled" for row in mine)
            ended = report.completed + report.failed
            assert report.failure_rate == (report.failed / ended if ended else None)
            for found, values in (
                (report.generation_time, times),
                (report.real_time_factor, [time / 12.5 for time in times]),
                (report.queue_wait, waits),
            ):
                assert found.count == len(values)
                assert (found.p50, found.p90, found.p99) == tuple(percentile(values, p) for p in (50, 90, 99))
        session.rollback()


@pytest.mark.parametrize("sampled", ["at random", "only the shortest"])
def test_the_values_of_a_large_model_are_counted_unless_the_sample_misleads(
    db: Storage, monkeypatch: pytest.MonkeyPatch, sampled: str
) -> None:
    monkeypatch.setattr(reports, "SORTED_AT_ONCE", 100)
    monkeypatch.setattr(reports, "LARGE_SAMPLE", 40)
    generator = random.Random(7)
    times = [generator.lognormvariate(3, 1) for _ in range(300)]
    with get_session() as session:
        rows = create_generations(session, [a_request(generation_id=f"job {n} {n % 4}") for n in range(300)])
        monkeypatch.setattr(reports, "SAMPLED_DIGITS", ("3",))
        for number, row in enumerate(rows):
            times[number] = 1.0 if sampled == "only the shortest" and number % 4 == 3 else times[number]
            row.mark_completed(times[number])
            row.started_at = row.scheduled_at + timedelta(microseconds=generator.randrange(10**8))
        session.flush()
        with statements_of(session) as statements:
            [report] = get_performance_stats(session)
    assert report.generation_time.p50 == percentile(times, 50)
    assert (report.completed, report.queue_wait.count) == (300, 300)
    assert any("collect_numbers" in statement or "array_agg" in statement for statement, _ in statements)


def test_a_random_sample_tells_where_the_percentiles_are() -> None:
    generator = random.Random(8)
    values = [generator.lognormvariate(3, 1) for _ in range(100_000)]
    columns: list[Any] = []
    for low, high in likely_ranges(generator.sample(values, 6_000)):
        near = [value for value in values if low <= value <= high]
        assert len(near) < 8_000
        columns += [sum(value < low for value in values), near]
    found = find_percentiles(len(values), *columns)
    assert found is not None
    assert [found.p50, found.p90, found.p99] == [percentile(values, percent) for percent in (50, 90, 99)]


def percentile(values: list[float], percent: int) -> float | None:
    """Compute percentile_cont of PostgreSQL in plain Python."""
    if not values:
        return None
    ordered = sorted(values)
    low, part = divmod((len(values) - 1) * percent, 100)
    high = low + bool(part)
    return ordered[low] + (ordered[high] - ordered[low]) * (part / 100)


def test_percentiles_are_those_of_the_standard_library_and_of_postgresql(db: Storage) -> None:
    generator = random.Random(6)
    values = [generator.lognormvariate(3, 1) for _ in range(1_001)]
    with get_session() as session:
        rows = create_generations(session, [a_request() for _ in values])
        for row, value in zip(rows, values, strict=True):
            row.mark_completed(value)
        session.flush()
        [report] = get_performance_stats(session)
        inclusive = statistics.quantiles(values, n=100, method="inclusive")
        found = report.generation_time
        assert (found.p50, found.p90, found.p99) == pytest.approx(
            (inclusive[49], inclusive[89], inclusive[98]), rel=1e-12
        )
        if db.backend.name == "postgresql":
            theirs = session.execute(
                text(
                    "SELECT percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY generation_time_seconds) "
                    "FROM generations"
                )
            ).scalar_one()
            assert (found.p50, found.p90, found.p99) == pytest.approx(tuple(theirs), rel=1e-12)


@pytest.mark.parametrize(("taken", "length"), [(5e-324, 16.0), (1e300, 1e-300), (1e-300, 1e300), (0.0, 5e-324)])
def test_every_time_and_length_that_can_be_stored_can_be_reported(db: Storage, taken: float, length: float) -> None:
    with get_session() as session:
        a_generation(session, duration_seconds=length).mark_completed(taken)
        session.flush()
        [report] = get_performance_stats(session)
        assert report.generation_time.p50 == taken
        assert report.real_time_factor.p50 is not None


def test_performance_can_be_limited_to_a_time_and_a_model(db: Storage) -> None:
    now = utcnow()
    with get_session() as session:
        for model, days, seconds in (("a", 1, 5.0), ("a", 9, 50.0), ("b", 1, 7.0)):
            row = a_generation(session, model_name=model)
            row.mark_completed(seconds)
            row.completed_at = now - timedelta(days=days)
        session.flush()
        recent = get_performance_stats(session, since=now - timedelta(days=2))
        assert [(one.model_name, one.generation_time.p50) for one in recent] == [("a", 5.0), ("b", 7.0)]
        assert [one.completed for one in get_performance_stats(session, model_name="a")] == [2]
        assert get_performance_stats(session, model_name="\0") == []


@pytest.mark.parametrize(("bucket", "hours"), [("hour", 1), ("day", 24), ("week", 168)])
def test_usage_includes_empty_buckets(db: Storage, bucket: Any, hours: int) -> None:
    now = utcnow()
    size = timedelta(hours=hours)
    with get_session() as session:
        for ago, status in (
            (0, "pending"),
            (0, "completed"),
            (3, "failed"),
            (3, "cancelled"),
            (29, "pending"),
            (31, "pending"),
        ):
            row = a_generation(session)
            row.created_at = now - ago * size
            row.status = status
            if row.completed_at is not None:
                row.completed_at = row.created_at
        session.flush()
        usage = get_usage(session, bucket=bucket)
    starts = [one.start for one in usage]
    assert len(usage) == 30
    assert all(later - earlier == size for earlier, later in pairwise(starts))
    assert starts[-1] <= now + timedelta(minutes=1)
    assert starts[-1] + size > now
    assert all(start.minute == start.second == start.microsecond == 0 for start in starts)
    if bucket != "hour":
        assert all(start.hour == 0 for start in starts)
    if bucket == "week":
        assert all(start.weekday() == 0 for start in starts)
    by_age = {round((starts[-1] - one.start) / size): one for one in usage}
    assert (by_age[0].created, by_age[0].completed) == (2, 1)
    assert (by_age[3].created, by_age[3].failed, by_age[3].cancelled) == (2, 1, 1)
    assert by_age[29].created == 1
    assert sum(one.created for one in usage) == 5


def test_usage_starts_with_the_bucket_of_since(db: Storage) -> None:
    since = utcnow() - timedelta(days=10)
    with get_session() as session:
        row = a_generation(session)
        row.created_at = since - timedelta(hours=since.hour, minutes=since.minute, seconds=since.second)
        session.flush()
        usage = get_usage(session, since=since)
        assert usage[0].start.date() == since.date()
        assert usage[0].created == 1
        assert len(usage) == 11
        with pytest.raises(ValueError, match="bucket must be one of hour, day, week"):
            get_usage(session, bucket="year")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="since must be less than 20,000 hours ago"):
            get_usage(session, since=utcnow() - timedelta(days=1_000), bucket="hour")
        assert get_usage(session, since=utcnow() + timedelta(days=3)) == []


def test_prompt_stats_count_the_generations_of_the_prompt(db: Storage) -> None:
    with get_session() as session:
        for number, status in enumerate(["completed", "completed", "failed", "cancelled", "pending", "completed"]):
            row = a_generation(session, prompt="slow piano")
            if status == "completed":
                row.mark_completed([10.0, 30.0, 0, 0, 0, 14.0][number])
            else:
                row.status = status
            row.is_favorite = number == 1
        a_generation(session, prompt="other").mark_completed(99.0)
        session.flush()
        stats = get_prompt_stats(session, "slow piano")
        assert stats is not None
        assert (stats.text, stats.used_count, stats.generations) == ("slow piano", 6, 6)
        assert (stats.completed, stats.failed, stats.favorites) == (3, 1, 1)
        assert (stats.success_rate, stats.median_seconds) == (0.75, 14.0)
        assert stats.first_used_at <= stats.last_used_at


def test_failures_that_differ_in_numbers_are_one_reason(db: Storage) -> None:
    now = utcnow()
    with get_session() as session:
        messages = [f"CUDA out of memory: {2**n} MiB of 24 GiB" for n in range(30)] + ["disk full"] * 3 + [None]
        for number, message in enumerate(messages):
            row = a_generation(session, model_name=f"m{number % 2}")
            row.status = "failed"
            row.error_message = message
            row.completed_at = now - timedelta(days=number)
        a_generation(session).status = "cancelled"
        session.flush()
        reasons = get_failure_reasons(session)
        assert [(one.reason, one.count, one.models) for one in reasons] == [
            ("CUDA out of memory: # MiB of # GiB", 30, 2),
            ("disk full", 3, 2),
            ("", 1, 1),
        ]
        assert reasons[0].last_at == now
        assert [one.count for one in get_failure_reasons(session, since=now - timedelta(days=9.5))] == [10]
        assert [one.count for one in get_failure_reasons(session, model_name="m0", limit=1)] == [15]


def test_stored_times_in_other_formats_do_not_break_a_report(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    forms = ("2026-11-22 10:00:00", "2026-11-22T10:00:00.25Z", "nonsense", "")
    with storage.session() as session:
        for number in range(len(forms)):
            a_generation(session, generation_id=str(number)).mark_completed(5.0)
    for number, form in enumerate(forms):
        break_row(storage, str(number), created_at=form, scheduled_at=form, started_at=form, completed_at=form)
    with storage.session(read_only=True) as session:
        [report] = get_performance_stats(session)
        assert (report.completed, report.queue_wait.count, report.queue_wait.p99) == (4, 2, 0.0)
        assert len(get_usage(session)) == 30
        assert get_queue_stats(session).backlog == 0
    storage.dispose()


def test_each_report_is_one_statement(db: Storage) -> None:
    with get_session() as session:
        session.execute(insert(QueueState.__table__), [{"id": 1}])  # type: ignore[arg-type]
        for report in (get_queue_stats, get_performance_stats, get_usage, get_failure_reasons):
            with statements_of(session) as sent:
                report(session)  # type: ignore[operator]
            assert len(sent) == 1, report
