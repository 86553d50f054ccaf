"""estimate_completion() and explain_wait() on known histories."""

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from benchmarks.estimate_accuracy import share_inside
from services.storage import (
    Generation,
    Storage,
    estimate_completion,
    explain_wait,
    get_session,
    register_worker,
    unregister_worker,
)
from services.storage.analytics.estimates import _explain_pending, remaining_times
from services.storage.models import QueueState
from services.storage.types import utcnow
from tests.support.factories import a_generation


def test_a_job_alone_is_estimated_from_jobs_of_the_same_length(db: Storage) -> None:
    with get_session() as session:
        a_history(session, "m", [(16.0, seconds) for seconds in range(10, 31)])
        register_worker(session, "w1")
        job = a_generation(session, model_name="m", duration_seconds=16.0)
        session.flush()
        estimate = estimate_completion(session, job.id)
        assert estimate is not None
        assert (estimate.jobs_ahead, estimate.workers, estimate.samples) == (0, 1, 21)
        assert seconds(estimate.p50_at, estimate.at) == pytest.approx(20, abs=0.5)
        assert seconds(estimate.p10_at, estimate.at) == pytest.approx(12, abs=0.5)
        assert seconds(estimate.p90_at, estimate.at) == pytest.approx(28, abs=0.5)


def test_jobs_of_the_same_length_are_preferred_to_scaled_times(db: Storage) -> None:
    with get_session() as session:
        a_history(session, "m", [(8.0, 10.0)] * 30 + [(16.0, 14.0)] * 25)
        register_worker(session, "w1")
        like = a_generation(session, model_name="m", duration_seconds=16.0, priority=2)
        unlike = a_generation(
            session, model_name="m", duration_seconds=80.0, priority=2, scheduled_at=like.scheduled_at
        )
        session.flush()
        first, second = estimate_completion(session, like.id), estimate_completion(session, unlike.id)
        assert first is not None
        assert second is not None
        assert seconds(first.p50_at, first.at) == pytest.approx(14, abs=0.1)
        assert 70 <= seconds(second.p50_at, second.at) <= 114


def test_the_wait_is_the_work_ahead_divided_by_the_workers(db: Storage) -> None:
    now = utcnow() - timedelta(minutes=1)
    with get_session() as session:
        a_history(session, "m", [(16.0, 20.0)] * 30)
        jobs = [
            a_generation(session, model_name="m", scheduled_at=now + timedelta(milliseconds=number))
            for number in range(41)
        ]
        a_generation(session, model_name="m", scheduled_at=now + timedelta(hours=1), priority=9)
        register_worker(session, "w1")
        session.flush()
        alone = estimate_completion(session, jobs[-1].id)
        register_worker(session, "w2")
        session.flush()
        shared = estimate_completion(session, jobs[-1].id)
        assert alone is not None
        assert shared is not None
        assert (alone.jobs_ahead, alone.workers, shared.workers) == (40, 1, 2)
        assert seconds(alone.p50_at, alone.at) == pytest.approx(41 * 20)
        assert seconds(shared.p50_at, shared.at) == pytest.approx(20 * 20 + 20, abs=10)


def test_a_running_job_is_estimated_from_the_remaining_times_of_longer_jobs(db: Storage) -> None:
    with get_session() as session:
        a_history(session, "m", [(16.0, 20.0)] * 30)
        job = a_generation(session, model_name="m")
        job.mark_processing()
        job.worker_id, job.lease_expires_at = "w", utcnow() + timedelta(seconds=60)
        job.started_at = utcnow() - timedelta(seconds=15)
        session.flush()
        estimate = estimate_completion(session, job.id)
        assert estimate is not None
        assert seconds(estimate.p50_at, estimate.at) == pytest.approx(5, abs=1)


def test_there_is_no_estimate_without_history_worker_or_running_queue(db: Storage) -> None:
    with get_session() as session:
        assert estimate_completion(session, "unknown") is estimate_completion(session, "\0") is None
        job = a_generation(session, model_name="m")
        session.flush()
        assert estimate_completion(session, job.id) is None  # no history
        a_history(session, "m", [(16.0, 20.0)] * 3)
        session.flush()
        assert estimate_completion(session, job.id) is None  # no worker
        register_worker(session, "w1")
        session.flush()
        assert estimate_completion(session, job.id) is not None
        session.add(QueueState(paused_at=utcnow()))
        session.flush()
        assert estimate_completion(session, job.id) is None  # paused
        job.mark_completed(3.0)
        session.flush()
        assert estimate_completion(session, job.id) is None  # finished


def test_only_workers_that_claim_the_model_and_their_jobs_count_for_an_estimate(db: Storage) -> None:
    with get_session() as session:
        a_history(session, "large", [(16.0, 20.0)] * 30)
        a_history(session, "small", [(16.0, 2.0)] * 30)
        others = [a_generation(session, model_name="large") for _ in range(10)]
        running = a_generation(session, model_name="large")
        running.mark_processing()
        job = a_generation(session, model_name="small")
        register_worker(session, "first", model_names=["large"])
        session.flush()
        assert estimate_completion(session, job.id) is None  # nobody claims it
        register_worker(session, "second", model_names=["small", "tiny"])
        alone = estimate_completion(session, job.id)
        assert alone is not None
        assert (alone.jobs_ahead, alone.workers) == (0, 1)
        assert seconds(alone.p50_at, alone.at) == pytest.approx(2, abs=0.1)
        register_worker(session, "third")
        register_worker(session, "fourth", state="stopping")
        shared = estimate_completion(session, job.id)
        assert shared is not None
        assert (shared.jobs_ahead, shared.workers) == (len(others), 2)


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (timedelta(seconds=45.4), "45 s"),
        (timedelta(minutes=2), "2 minutes"),
        (timedelta(minutes=119), "119 minutes"),
        (timedelta(hours=47.5), "47 hours"),
        (timedelta(days=5, hours=5), "5 days"),
    ],
)
def test_a_wait_until_a_time_is_said_in_a_fitting_unit_and_with_the_time(wait: timedelta, words: str) -> None:
    now = utcnow()
    row = SimpleNamespace(paused_at=None, now=now, scheduled_at=now + wait, attempt=1, ahead=0)
    at = f"{row.scheduled_at:%Y-%m-%d %H:%M} UTC"
    assert _explain_pending(row).explanation == f"It is due in {words}, at {at}, after attempt 1."


def test_explain_wait_returns_each_reason(db: Storage) -> None:
    now = utcnow()
    with get_session() as session:

        def reason(row: Generation) -> tuple[str, int]:
            session.flush()
            wait = explain_wait(session, row.id)
            assert wait is not None
            assert wait.explanation.endswith(".")
            return wait.reason, wait.ahead

        assert explain_wait(session, "unknown") is explain_wait(session, "\0") is None
        first = a_generation(session, scheduled_at=now - timedelta(seconds=9))
        second = a_generation(session, scheduled_at=now - timedelta(seconds=8))
        later = a_generation(session, scheduled_at=now + timedelta(hours=1))
        assert reason(first) == ("no_workers", 0)
        register_worker(session, "w0", model_names=["other", "another\nmodel"])
        assert reason(first) == ("no_worker_for_model", 0)
        assert reason(second) == ("no_worker_for_model", 1)
        register_worker(session, "w1", state="stopping")
        assert reason(first) == ("no_worker_for_model", 0)
        unregister_worker(session, "w0")
        assert reason(first) == ("no_workers", 0)
        register_worker(session, "w1")
        assert reason(first) == ("next", 0)
        assert reason(second) == ("behind", 1)
        assert reason(later) == ("scheduled", 2)
        urgent = a_generation(session, scheduled_at=now - timedelta(seconds=7), priority=1)
        assert reason(second) == ("behind", 2)
        pause = QueueState(paused_at=now, reason="new GPU")
        session.add(pause)
        assert reason(urgent) == ("paused", 0)
        wait = explain_wait(session, urgent.id)
        assert wait is not None
        assert "new GPU" in wait.explanation
        first.mark_processing()
        assert reason(first) == ("unleased", 0)
        first.worker_id, first.lease_expires_at = "w", now + timedelta(seconds=60)
        assert reason(first) == ("processing", 0)
        first.lease_expires_at = now - timedelta(seconds=60)
        assert reason(first) == ("expired", 0)
        first.attempt = 3
        first.mark_failed("no")
        assert reason(first) == ("exhausted", 0)
        second.status = "cancelled"
        assert reason(second) == ("finished", 0)


@pytest.mark.drill
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_about_eighty_percent_of_true_times_lie_in_the_interval(workers: int, scaled: Callable[[int], int]) -> None:
    """80 of 100 are expected; at least 75 are required, because the intervals come from samples."""
    assert share_inside(workers, scaled(20_000)) >= 0.75


@pytest.mark.sampled
@pytest.mark.parametrize("length", [1e-300, 16.0, 1e300])
@pytest.mark.parametrize("taken", [0.0, 1e-300, 1e300])
@pytest.mark.parametrize("running", [False, True])
def test_every_time_and_length_that_can_be_stored_can_be_estimated(
    db: Storage, length: float, taken: float, running: bool
) -> None:
    with get_session() as session:
        a_history(session, "m", [(length, taken)] * 30)
        register_worker(session, "w1")
        for duration in (16.0, 1e300, 1e-300):
            first = a_generation(session, model_name="m", duration_seconds=duration)
            if running:
                first.mark_processing()
        job = a_generation(session, model_name="m", duration_seconds=length)
        session.flush()
        estimate = estimate_completion(session, job.id)
        if taken < 1 and length == 16.0:
            assert estimate is not None
        if estimate is not None:
            assert estimate.at <= estimate.p10_at <= estimate.p50_at <= estimate.p90_at


def test_a_job_longer_than_all_others_is_expected_to_take_a_tenth_more() -> None:
    assert remaining_times([10.0, 20.0], 15.0) == [5.0]
    assert remaining_times([10.0, 20.0], 50.0) == [5.0]


def a_history(session: object, model: str, samples: list[tuple[float, float]]) -> None:
    now = utcnow()
    for number, (length, taken) in enumerate(samples):
        row = a_generation(session, model_name=model, duration_seconds=length)  # type: ignore[arg-type]
        row.mark_completed(taken)
        row.completed_at = now - timedelta(seconds=number)
        row.created_at = row.scheduled_at = now - timedelta(hours=1, seconds=number)


def seconds(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds()
