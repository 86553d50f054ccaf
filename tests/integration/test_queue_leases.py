"""Leases: the calls that the holder can make, the refusals for everybody else, and the recorded history."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    IllegalTransitionError,
    Lease,
    LeaseLostError,
    RetryPolicy,
    cancel_batch,
    cancel_generation,
    claim_generation,
    complete_generation,
    create_generation,
    create_generations,
    delete_generation,
    fail_generation,
    get_attempts,
    get_generation,
    get_session,
    heartbeat_generation,
    reclaim_generations,
    release_generation,
    retry_generation,
    update_generation_status,
)
from services.storage.types import utcnow
from tests.support.factories import a_generation, a_request
from tests.support.stored_times import ago, expire_lease, make_due, rewrite

pytestmark = pytest.mark.usefixtures("db")
AT_ONCE = RetryPolicy(base_seconds=0, cap_seconds=0)


def leased(worker_id: str = "gpu-0", **changes: Any) -> Lease:
    """Submit a generation and claim it; return its lease."""
    with get_session() as session:
        a_generation(session, **changes)
    return claim(worker_id)


def claim(worker_id: str = "gpu-0") -> Lease:
    with get_session() as session:
        generation = claim_generation(session, worker_id)
        assert generation is not None
        assert generation.lease is not None
        return generation.lease


def stored(lease: Lease) -> Generation:
    with get_session() as session:
        generation = get_generation(session, lease.generation_id)
        assert generation is not None
        return generation


def history(lease: Lease) -> list[tuple[int, str, str]]:
    with get_session() as session:
        return [(row.number, row.worker_id, row.outcome) for row in get_attempts(session, lease.generation_id)]


def complete(session: Session, lease: Lease, **options: Any) -> Generation | None:
    return complete_generation(session, lease.generation_id, 18.5, 5_000_000, lease=lease, **options)


def fail(session: Session, lease: Lease, **options: Any) -> Generation | None:
    return fail_generation(session, lease.generation_id, "CUDA out of memory", lease=lease, **options)


ENDINGS = {"complete": complete, "fail": fail, "release": release_generation}


class TestHeartbeat:
    def test_a_heartbeat_extends_the_lease_and_stores_the_progress(self) -> None:
        lease = leased()
        expire_lease(lease.generation_id)
        with get_session() as session:
            generation = heartbeat_generation(session, lease, progress=0.25, current_step="decoding", lease_seconds=120)
        assert (generation.progress, generation.current_step) == (0.25, "decoding")
        assert generation.lease_expires_at is not None
        assert timedelta(seconds=110) < generation.lease_expires_at - utcnow() <= timedelta(seconds=120)

    def test_a_heartbeat_without_progress_keeps_the_stored_progress(self) -> None:
        lease = leased()
        with get_session() as session:
            heartbeat_generation(session, lease, progress=0.25, current_step="decoding")
            heartbeat_generation(session, lease)
        assert (stored(lease).progress, stored(lease).current_step) == (0.25, "decoding")

    def test_a_heartbeat_does_not_conflict_with_another_writer(self) -> None:
        lease = leased()
        with get_session() as mine:
            generation = get_generation(mine, lease.generation_id)
            assert generation is not None
            with get_session() as session:
                heartbeat_generation(session, lease)
            generation.is_favorite = True
        assert stored(lease).is_favorite

    @pytest.mark.parametrize(
        "bad", [{"progress": 1.5}, {"progress": "half"}, {"current_step": ""}, {"lease_seconds": 0}]
    )
    def test_a_bad_value_is_named_and_changes_nothing(self, bad: dict[str, Any]) -> None:
        lease = leased()
        before = stored(lease).to_dict()
        with get_session() as session, pytest.raises((ValueError, TypeError), match=next(iter(bad))):
            heartbeat_generation(session, lease, **bad)
        assert stored(lease).to_dict() == before


class TestComplete:
    def test_the_result_is_stored_and_the_lease_ends(self) -> None:
        lease = leased(metadata={"genre": "trap", "bpm": 90})
        with get_session() as session:
            generation = complete(session, lease, metadata={"bpm": 140})
        assert generation is not None
        assert generation.is_complete
        assert (generation.generation_time_seconds, generation.file_size_bytes) == (18.5, 5_000_000)
        assert generation.get_metadata() == {"genre": "trap", "bpm": 140}
        assert generation.completed_at is not None
        assert generation.lease is None
        assert history(lease) == [(1, "gpu-0", "completed")]

    def test_the_history_has_the_start_and_end_of_the_attempt(self) -> None:
        lease = leased()
        with get_session() as session:
            complete(session, lease)
            (attempt,) = get_attempts(session, lease.generation_id)
        assert attempt.started_at is not None
        assert attempt.started_at <= attempt.finished_at

    def test_an_object_in_the_session_is_refreshed(self) -> None:
        lease = leased()
        with get_session() as session:
            generation = get_generation(session, lease.generation_id)
            assert complete(session, lease, metadata={"key": "Cm"}) is generation
            assert generation is not None
            assert generation.is_complete
            assert generation.get_metadata() == {"key": "Cm"}

    def test_an_error_of_an_earlier_attempt_does_not_stay_on_a_completed_row(self) -> None:
        lease = leased()
        with get_session() as session:
            fail(session, lease, retry_policy=AT_ONCE)
        assert stored(lease).error_message == "CUDA out of memory"
        second = claim("gpu-1")
        with get_session() as session:
            complete(session, second)
        assert stored(second).error_message is None
        assert history(lease) == [(1, "gpu-0", "failed"), (2, "gpu-1", "completed")]

    @pytest.mark.parametrize(
        ("field", "arguments"),
        [
            ("generation_time", (-1.0, 5, None)),
            ("file_size_bytes", (18.5, -5, None)),
            ("metadata", (18.5, 5, {"bpm": float("nan")})),
            ("metadata", (18.5, 5, {"too": "x" * 70_000})),
        ],
    )
    def test_a_bad_result_is_refused_and_the_lease_stays(self, field: str, arguments: tuple[Any, ...]) -> None:
        lease = leased()
        with get_session() as session, pytest.raises(ValueError, match=field):
            complete_generation(session, lease.generation_id, *arguments, lease=lease)
        assert stored(lease).lease == lease
        assert history(lease) == []

    def test_metadata_that_cannot_be_merged_adds_no_history(self) -> None:
        lease = leased(metadata={"first": "x" * 40_000})
        with get_session() as session:
            with pytest.raises(ValueError, match="metadata"):
                complete(session, lease, metadata={"second": "y" * 40_000})
            complete(session, lease, metadata={"second": "y"})
        assert stored(lease).is_complete
        assert history(lease) == [(1, "gpu-0", "completed")]


class TestFail:
    def test_a_failed_attempt_is_retried_after_a_backoff(self) -> None:
        lease = leased()
        with get_session() as session:
            generation = fail(session, lease, retry_policy=RetryPolicy(base_seconds=100, jitter=0))
        assert generation is not None
        assert generation.is_pending
        assert generation.error_message == "CUDA out of memory"
        assert timedelta(seconds=95) < generation.scheduled_at - utcnow() <= timedelta(seconds=100)
        with get_session() as session:
            assert claim_generation(session) is None

    def test_a_generation_fails_for_good_when_no_attempt_is_left(self) -> None:
        lease = leased(max_attempts=2)
        with get_session() as session:
            fail(session, lease, retry_policy=AT_ONCE)
        second = claim("gpu-1")
        with get_session() as session:
            generation = fail(session, second)
        assert generation is not None
        assert generation.is_failed
        assert generation.completed_at is not None
        assert generation.error_message == "CUDA out of memory"
        assert history(lease) == [(1, "gpu-0", "failed"), (2, "gpu-1", "failed")]

    def test_retry_false_fails_at_once(self) -> None:
        lease = leased()
        with get_session() as session:
            fail(session, lease, retry=False)
        assert stored(lease).is_failed

    def test_a_message_of_any_kind_is_stored(self) -> None:
        lease = leased()
        with get_session() as session:
            fail_generation(session, lease.generation_id, "nul\0 \ud800" + "x" * 10_000, lease=lease)
            (attempt,) = get_attempts(session, lease.generation_id)
        assert attempt.error_message == stored(lease).error_message
        assert len(attempt.error_message or "") <= 8_192

    def test_without_a_lease_the_default_is_no_retry(self) -> None:
        with get_session() as session:
            generation = a_generation(session)
            failed = fail_generation(session, generation.id, "no GPU")
            assert failed is generation
            assert generation.is_failed
            assert get_attempts(session, generation.id) == []
            with pytest.raises(IllegalTransitionError):
                fail_generation(session, generation.id, "no GPU")

    def test_without_a_lease_a_retry_can_be_requested(self) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation.mark_processing()
            fail_generation(session, generation.id, "no GPU", retry=True, retry_policy=AT_ONCE)
            assert generation.is_pending
            assert generation.error_message == "no GPU"
            assert claim_generation(session) is generation


class TestRelease:
    def test_a_released_generation_keeps_its_position_and_its_attempts(self) -> None:
        lease = leased(max_attempts=1)
        with get_session() as session:
            younger = a_generation(session)
            generation = release_generation(session, lease)
            assert generation.is_pending
            assert (generation.attempt, generation.max_attempts) == (1, 2)
            assert (generation.started_at, generation.progress) == (None, None)
            assert claim_generation(session, "gpu-1") is generation
            assert younger.is_pending
        assert history(lease) == [(1, "gpu-0", "released")]

    def test_a_release_does_not_exceed_the_limit_of_max_attempts(self) -> None:
        lease = leased(max_attempts=2**31 - 1)
        with get_session() as session:
            assert release_generation(session, lease).max_attempts == 2**31 - 1


class TestLostLeases:
    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("first", ENDINGS)
    def test_an_attempt_ends_once_and_repeating_the_call_returns_the_row(self, first: str, ending: str) -> None:
        lease = leased()
        with get_session() as session:
            ENDINGS[first](session, lease)
        after = stored(lease).to_dict()
        with get_session() as session:
            if ending == first:
                generation = ENDINGS[ending](session, lease)
                assert generation is not None
                assert generation.to_dict() == after
            else:
                with pytest.raises(LeaseLostError):
                    ENDINGS[ending](session, lease)
        assert stored(lease).to_dict() == after
        assert len(history(lease)) == 1

    @pytest.mark.parametrize("ending", [*ENDINGS, "heartbeat"])
    @pytest.mark.parametrize(
        "loss", ["reclaimed", "reclaimed and claimed", "completed plainly", "cancelled plainly", "deleted", "forged"]
    )
    def test_a_lease_is_lost_after_the_generation_was_reclaimed(self, loss: str, ending: str) -> None:
        lease = leased()
        with get_session() as session:
            if loss.startswith("reclaimed"):
                expire_lease(lease.generation_id)
                assert [row.id for row in reclaim_generations(session)] == [lease.generation_id]
            if loss == "reclaimed and claimed":
                assert claim_generation(session, "gpu-0") is not None  # also by a worker with the same id
            elif loss == "completed plainly":
                complete_generation(session, lease.generation_id, 1.0, 1)
            elif loss == "cancelled plainly":
                update_generation_status(session, lease.generation_id, "cancelled")
            elif loss == "deleted":
                assert delete_generation(session, lease.generation_id)
            elif loss == "forged":
                lease = lease._replace(worker_id="gpu-1")
        with get_session() as session:
            before = getattr(get_generation(session, lease.generation_id), "to_dict", dict)()
        with get_session() as session, pytest.raises(LeaseLostError):
            heartbeat_generation(session, lease) if ending == "heartbeat" else ENDINGS[ending](session, lease)
        with get_session() as session:
            assert getattr(get_generation(session, lease.generation_id), "to_dict", dict)() == before

    def test_an_expired_lease_holds_until_it_is_reclaimed(self) -> None:
        lease = leased()
        expire_lease(lease.generation_id)
        with get_session() as session:
            complete(session, lease)
        assert stored(lease).is_complete
        with get_session() as session:
            assert reclaim_generations(session) == []

    @pytest.mark.parametrize("lease", [None, ("id", "gpu-0", 1), "id"])
    def test_a_value_that_is_not_a_lease_is_refused(self, lease: Any) -> None:
        with get_session() as session:
            for call in (heartbeat_generation, release_generation):
                with pytest.raises(TypeError, match="lease"):
                    call(session, lease)
            if lease is not None:
                for ending in (complete_generation, fail_generation):
                    with pytest.raises(TypeError, match="lease"):
                        ending(session, "id", *((1.0, 1) if ending is complete_generation else ("x",)), lease=lease)  # type: ignore[operator]

    def test_the_lease_of_another_generation_is_refused(self) -> None:
        lease = leased()
        with get_session() as session:
            with pytest.raises(ValueError, match="another generation"):
                complete_generation(session, "other", 1.0, 1, lease=lease)
            with pytest.raises(ValueError, match="another generation"):
                fail_generation(session, "other", "x", lease=lease)
        assert stored(lease).lease == lease

    @pytest.mark.parametrize(
        "lease", [Lease("unknown", "gpu-0", 1), Lease("nul\0", "gpu-0", 1), Lease("id", "\ud800", 1)]
    )
    def test_a_lease_with_invalid_values_counts_as_lost(self, lease: Lease) -> None:
        with get_session() as session:
            for call in (heartbeat_generation, *ENDINGS.values()):
                with pytest.raises(LeaseLostError):
                    call(session, lease)


class TestReclaim:
    def test_only_expired_leases_are_reclaimed(self) -> None:
        running = leased()
        lost = leased("gpu-1")
        expire_lease(lost.generation_id)
        with get_session() as session:
            assert [row.id for row in reclaim_generations(session)] == [lost.generation_id]
            assert reclaim_generations(session) == []
        assert stored(lost).is_pending
        assert stored(running).lease == running
        assert history(lost) == [(1, "gpu-1", "lost")]

    def test_a_generation_processing_without_a_lease_is_not_reclaimed(self) -> None:
        with get_session() as session:
            a_generation(session).mark_processing()
        with get_session() as session:
            assert reclaim_generations(session) == []

    def test_a_job_whose_every_attempt_is_lost_fails(self) -> None:
        lease = leased("gpu-1", max_attempts=3)
        for worker in ("gpu-2", "gpu-3"):
            expire_lease(lease.generation_id)
            with get_session() as session:
                assert reclaim_generations(session)[0].is_pending
            lease = claim(worker)
        expire_lease(lease.generation_id)
        with get_session() as session:
            (generation,) = reclaim_generations(session)
        assert generation.is_failed
        assert generation.error_message == "worker lost in attempt 3 of 3"
        assert history(lease) == [(1, "gpu-1", "lost"), (2, "gpu-2", "lost"), (3, "gpu-3", "lost")]

    def test_the_limit_reclaims_the_longest_expired_leases(self) -> None:
        leases = [leased() for _ in range(5)]
        for age, lease in enumerate(leases):
            rewrite(lease.generation_id, lease_expires_at=ago(minutes=age + 1))
        with get_session() as session:
            assert {row.id for row in reclaim_generations(session, limit=2)} == {
                leases[4].generation_id,
                leases[3].generation_id,
            }
            assert reclaim_generations(session, limit=0) == []
            assert len(reclaim_generations(session)) == 3
            with pytest.raises(ValueError, match="limit"):
                reclaim_generations(session, limit=-1)


class TestCancel:
    def test_a_pending_generation_is_cancelled_at_once(self) -> None:
        with get_session() as session:
            generation = a_generation(session)
            assert cancel_generation(session, generation.id) is generation
            assert generation.is_cancelled
            assert generation.completed_at is not None
            assert claim_generation(session) is None
            assert get_attempts(session, generation.id) == []

    def test_a_heartbeat_reports_the_request_to_cancel(self) -> None:
        lease = leased()
        with get_session() as session:
            generation = cancel_generation(session, lease.generation_id)
            assert generation is not None
            assert generation.is_processing
            assert generation.lease == lease
        with get_session() as session:
            assert heartbeat_generation(session, lease).cancel_requested_at is not None

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_a_cancelled_running_generation_ends_as_cancelled_whatever_its_outcome(self, ending: str) -> None:
        lease = leased()
        with get_session() as session:
            cancel_generation(session, lease.generation_id)
        with get_session() as session:
            generation = ENDINGS[ending](session, lease)
            assert generation is not None
            assert generation.is_cancelled
            assert generation.file_size_bytes is None
            assert ENDINGS[ending](session, lease) is generation
        assert history(lease) == [(1, "gpu-0", "cancelled")]

    def test_a_cancelled_running_generation_whose_worker_is_lost_ends_as_cancelled(self) -> None:
        lease = leased()
        with get_session() as session:
            cancel_generation(session, lease.generation_id)
        expire_lease(lease.generation_id)
        with get_session() as session:
            (generation,) = reclaim_generations(session)
            assert generation.is_cancelled
        assert history(lease) == [(1, "gpu-0", "lost")]

    def test_cancelling_again_changes_nothing(self) -> None:
        lease = leased()
        with get_session() as session:
            first = cancel_generation(session, lease.generation_id)
            assert first is not None
            since = first.cancel_requested_at
            cancel_generation(session, lease.generation_id)
            assert first.cancel_requested_at == since
            release_generation(session, lease)
            at = first.completed_at
            assert cancel_generation(session, lease.generation_id) is first
            assert first.completed_at == at

    @pytest.mark.parametrize("status", ["completed", "failed"])
    def test_a_completed_or_failed_generation_cannot_be_cancelled(self, status: str) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation.status = status
            with pytest.raises(IllegalTransitionError):
                cancel_generation(session, generation.id)
            assert generation.status == status

    def test_a_batch_is_cancelled_as_a_whole(self) -> None:
        with get_session() as session:
            rows = create_generations(session, [a_request() for _ in range(4)], batch_id="album")
            other = a_generation(session, batch_id="single")
            rows[0].mark_completed(1.0)
            assert claim_generation(session) is rows[1]
            assert cancel_batch(session, "album") == 3
            assert [row.status for row in rows] == ["completed", "processing", "cancelled", "cancelled"]
            assert rows[1].cancel_requested_at is not None
            assert other.is_pending
            assert cancel_batch(session, "album") == 1  # processing still
            assert cancel_batch(session, "unknown") == 0
            assert cancel_batch(session, "nul\0") == 0

    def test_cancelling_a_batch_loads_no_rows_but_refreshes_those_of_the_session(self) -> None:
        with get_session() as session:
            ids = [row.id for row in create_generations(session, [a_request() for _ in range(50)], batch_id="album")]
        with get_session() as session:
            held = session.get_one(Generation, ids[7])
            assert cancel_batch(session, "album") == 50
            assert [row.id for row in session.identity_map.values()] == [held.id]
            assert held.is_cancelled
            assert held.version == 2
        assert held.completed_at is not None


class TestRetryByHand:
    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    def test_a_retried_generation_is_due_with_an_attempt_left(self, status: str) -> None:
        lease = leased(max_attempts=1)
        with get_session() as session:
            if status == "cancelled":
                cancel_generation(session, lease.generation_id)
            assert getattr(fail(session, lease), "status", None) == status
            generation = retry_generation(session, lease.generation_id)
            assert generation is not None
            assert generation.is_pending
            assert (generation.attempt, generation.max_attempts) == (1, 2)
            assert (generation.completed_at, generation.error_message) == (None, None)
            assert generation.cancel_requested_at is None
            again = claim_generation(session, "gpu-1")
            assert again is generation
            assert again.lease is not None
            complete(session, again.lease)
        assert stored(lease).is_complete
        assert [outcome for _, _, outcome in history(lease)] == [status, "completed"]

    def test_a_retried_generation_waits_behind_earlier_ones(self) -> None:
        with get_session() as session:
            failed = a_generation(session)
            failed.mark_failed("no GPU")
            waiting = a_generation(session)
            retry_generation(session, failed.id)
            assert claim_generation(session) is waiting

    def test_retrying_a_pending_generation_changes_nothing(self) -> None:
        with get_session() as session:
            generation = a_generation(session)
            session.commit()
            before = generation.to_dict()
            assert retry_generation(session, generation.id) is generation
            assert generation.to_dict() == before

    @pytest.mark.parametrize("status", ["processing", "completed"])
    def test_a_processing_or_completed_generation_cannot_be_retried(self, status: str) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation.status = status
            with pytest.raises(IllegalTransitionError):
                retry_generation(session, generation.id)


def test_a_request_is_repeated_claimed_failed_retried_and_completed() -> None:
    """The example of the README: one key used twice, a claim, a failure, a retry, a completion."""
    with get_session() as session:
        first = create_generation(session, **a_request(idempotency_key="click-7", batch_id="album"))
        assert create_generation(session, **a_request(idempotency_key="click-7", batch_id="album")) is first
    lease = claim("gpu-0")
    with get_session() as session:
        heartbeat_generation(session, lease, progress=0.5, current_step="sampling")
        fail(session, lease)
    make_due(lease.generation_id)
    again = claim("gpu-1")
    assert again == Lease(first.id, "gpu-1", 2)
    assert stored(again).progress is None
    with get_session() as session:
        complete(session, again, metadata={"bpm": 140})
    assert stored(again).is_complete
    assert history(again) == [(1, "gpu-0", "failed"), (2, "gpu-1", "completed")]


def test_unknown_ids_return_none() -> None:
    with get_session() as session:
        for unknown in ("unknown", "nul\0", "\ud800", ""):
            assert complete_generation(session, unknown, 1.0, 1) is None
            assert fail_generation(session, unknown, "x") is None
            assert cancel_generation(session, unknown) is None
            assert retry_generation(session, unknown) is None
            assert get_attempts(session, unknown) == []
        for call in (cancel_generation, retry_generation, get_attempts):
            with pytest.raises(TypeError, match="generation_id"):
                call(session, 7)
