"""Claims: which generation is claimed next."""

import os
import socket
from typing import Any

import pytest
from sqlalchemy import Engine, event

from services.storage import (
    ConflictError,
    Generation,
    Lease,
    Storage,
    cancel_generation,
    claim_generation,
    claim_generations,
    complete_generation,
    create_generation,
    create_generations,
    get_generation,
    get_pending_generations,
    get_queue_position,
    get_session,
    pause_queue,
    reclaim_generations,
    resume_queue,
)
from services.storage.models import QueueState
from services.storage.queue import seconds_until_due
from tests.support.factories import a_generation, a_request
from tests.support.stored_times import ago, ahead, make_due


def submit(**changes: Any) -> str:
    with get_session() as session:
        return a_generation(session, **changes).id


def claimed(**options: Any) -> str | None:
    """Claim in a new session; return the id."""
    with get_session() as session:
        generation = claim_generation(session, **options)
        return None if generation is None else generation.id


@pytest.mark.usefixtures("db")
class TestOrder:
    def test_higher_priority_is_claimed_first_then_older(self) -> None:
        ids = [submit(priority=priority) for priority in (0, 5, -3, 5, 0)]
        assert [claimed() for _ in ids] == [ids[1], ids[3], ids[0], ids[4], ids[2]]
        assert claimed() is None

    def test_pending_generations_are_listed_in_claim_order(self) -> None:
        for priority in (0, 2, 1, 2, 0):
            submit(priority=priority)
        with get_session() as session:
            listed = [generation.id for generation in get_pending_generations(session)]
        assert [claimed() for _ in listed] == listed

    def test_nothing_is_claimed_before_scheduled_at(self) -> None:
        later = submit(priority=9, scheduled_at=ahead(hours=1))
        now = submit()
        assert claimed() == now
        assert claimed() is None
        make_due(later)
        assert claimed() == later

    def test_an_earlier_schedule_is_claimed_before_an_earlier_submission(self) -> None:
        second = submit(scheduled_at=ago(minutes=1))
        first = submit(scheduled_at=ago(minutes=2))
        assert [claimed(), claimed()] == [first, second]

    def test_finished_and_processing_rows_are_never_claimed(self) -> None:
        with get_session() as session:
            for status in ("processing", "completed", "failed", "cancelled"):
                a_generation(session).status = status
        assert claimed() is None

    def test_many_different_priorities_are_claimed_in_order(self) -> None:
        with get_session() as session:
            create_generations(session, [a_request(priority=priority) for priority in range(300)])
        with get_session() as session:
            assert [row.priority for row in claim_generations(session, 200)] == list(range(299, 99, -1))

    def test_the_claim_is_part_of_the_transaction(self) -> None:
        waiting = submit()
        with get_session() as session:
            assert claim_generation(session) is not None
            session.rollback()
        assert claimed() == waiting

    def test_a_transaction_can_claim_what_it_submitted(self) -> None:
        with get_session() as session:
            generation = a_generation(session)
            assert claim_generation(session) is generation
            assert generation.is_processing


@pytest.mark.usefixtures("db")
class TestClaimedRow:
    def test_a_claim_returns_a_lease(self) -> None:
        generation_id = submit()
        with get_session() as session:
            generation = claim_generation(session, "gpu-0", lease_seconds=30)
            assert generation is not None
            assert generation.lease == Lease(generation_id, "gpu-0", 1)
            assert generation.started_at is not None
            assert generation.lease_expires_at is not None
            assert 29 <= (generation.lease_expires_at - generation.started_at).total_seconds() <= 31
            assert generation.version == 2

    def test_a_claim_refreshes_the_object_in_the_session(self) -> None:
        with get_session() as session:
            generation = a_generation(session)
            session.commit()
            assert claim_generation(session, "gpu-0") is generation
            assert (generation.status, generation.worker_id) == ("processing", "gpu-0")

    def test_the_default_worker_id_names_this_process(self) -> None:
        submit(), submit()
        with get_session() as session:
            first, second = claim_generations(session, 1)[0], claim_generations(session, 1)[0]
            assert first.worker_id is not None
            host, pid, random = first.worker_id.rsplit(":", 2)
            assert (host, pid) == (socket.gethostname()[:128], str(os.getpid()))
            assert first.worker_id != second.worker_id
            assert random


@pytest.mark.usefixtures("db")
class TestBatches:
    def test_a_batch_is_claimed_across_priorities(self) -> None:
        ids = [submit(priority=priority) for priority in (0, 1, 2, 0, 1)]
        submit(scheduled_at=ahead(days=1), priority=3)
        with get_session() as session:
            batch = claim_generations(session, 4, "gpu-0")
            assert [row.id for row in batch] == [ids[2], ids[1], ids[4], ids[0]]
            assert {row.worker_id for row in batch} == {"gpu-0"}
            assert [row.id for row in claim_generations(session, 2**63 - 1)] == [ids[3]]

    def test_a_limit_of_zero_claims_nothing(self) -> None:
        submit()
        with get_session() as session:
            assert claim_generations(session, 0) == []

    def test_two_concurrent_transactions_claim_different_rows(self, db: Storage) -> None:
        """On SQLite the second waits for the first, on PostgreSQL it skips the locked rows."""
        ids = [submit(priority=priority) for priority in (1, 1, 0, 0)]
        with get_session() as first:
            mine = [row.id for row in claim_generations(first, 3)]
            if db.backend.name == "sqlite":
                first.commit()
            with get_session() as second:
                theirs = [row.id for row in claim_generations(second, 3)]
        assert mine == ids[:3]
        assert theirs == ids[3:]


@pytest.mark.usefixtures("db")
class TestModels:
    def test_only_the_named_models_are_claimed(self) -> None:
        large = submit(model_name="large", priority=9)
        small = submit(model_name="small")
        assert claimed(model_names=["small"]) == small
        assert claimed(model_names=["small"]) is None
        assert claimed(model_names=("large", "small")) == large

    def test_several_models_are_claimed_in_one_order(self) -> None:
        ids = [
            submit(model_name=model, priority=priority)
            for model, priority in [("a", 0), ("b", 1), ("c", 9), ("b", 0), ("a", 1)]
        ]
        with get_session() as session:
            batch = claim_generations(session, 9, model_names=["b", "a"])
        assert [row.id for row in batch] == [ids[1], ids[4], ids[0], ids[3]]

    def test_an_empty_list_of_models_claims_nothing(self) -> None:
        submit()
        assert claimed(model_names=[]) is None

    def test_the_preferred_model_is_claimed_first(self) -> None:
        head = submit(model_name="cold")
        warm = submit(model_name="warm")
        assert claimed(prefer_model="warm") == warm
        assert claimed(prefer_model="warm") == head

    def test_the_preferred_model_is_searched_among_the_first_fifty_only(self) -> None:
        with get_session() as session:
            rows = create_generations(session, [a_request(model_name="cold") for _ in range(50)])
            warm = a_generation(session, model_name="warm").id
        assert claimed(prefer_model="warm") == rows[0].id
        assert claimed(prefer_model="warm") == warm

    def test_a_head_that_waited_five_minutes_is_claimed_before_the_preferred_model(self) -> None:
        head = submit(model_name="cold", scheduled_at=ago(minutes=6))
        warm = submit(model_name="warm")
        assert claimed(prefer_model="warm") == head
        assert claimed(prefer_model="warm") == warm

    def test_one_of_the_named_models_can_be_preferred(self) -> None:
        submit(model_name="other", priority=9)
        cold, warm = submit(model_name="cold"), submit(model_name="warm")
        assert claimed(model_names=["cold", "warm"], prefer_model="warm") == warm
        assert claimed(model_names=["cold", "warm"], prefer_model="warm") == cold
        assert claimed(model_names=["cold", "warm"], prefer_model="warm") is None

    def test_a_batch_claims_the_preferred_model_first(self) -> None:
        cold = [submit(model_name="cold") for _ in range(2)]
        warm = [submit(model_name="warm") for _ in range(2)]
        with get_session() as session:
            batch = {row.id for row in claim_generations(session, 3, prefer_model="warm")}
        assert batch == {*warm, cold[0]}


@pytest.mark.usefixtures("db")
class TestPause:
    def test_a_paused_queue_gives_no_claims_until_it_is_resumed(self) -> None:
        waiting = submit()
        with get_session() as session:
            pause_queue(session, "maintenance")
        for options in ({}, {"model_names": ["musicgen-small"]}, {"prefer_model": "musicgen-small"}):
            assert claimed(**options) is None
        with get_session() as session:
            assert seconds_until_due(session) is None
            resume_queue(session)
            assert seconds_until_due(session) == 0
        assert claimed() == waiting

    def test_running_jobs_can_finish_while_the_queue_is_paused(self) -> None:
        submit()
        with get_session() as session:
            generation = claim_generation(session)
            assert generation is not None
            pause_queue(session)
            complete_generation(session, generation.id, 1.0, 1, lease=generation.lease)
            assert generation.is_complete

    def test_pausing_again_keeps_paused_at_and_only_another_reason_replaces_the_first(self) -> None:
        with get_session() as session:
            pause_queue(session, "first")
        with get_session() as session:
            since = session.get_one(QueueState, 1).paused_at
            assert since is not None
        for given, kept in ((None, "first"), ("second", "second"), (None, "second")):
            with get_session() as session:
                pause_queue(session, given)
            with get_session() as session:
                state = session.get_one(QueueState, 1)
                assert (state.paused_at, state.reason) == (since, kept)
        with get_session() as session:
            resume_queue(session)
            pause_queue(session)
            assert session.get_one(QueueState, 1, populate_existing=True).reason is None

    def test_resuming_a_queue_that_is_not_paused_does_nothing(self) -> None:
        submit()
        with get_session() as session:
            resume_queue(session)
        assert claimed() is not None


@pytest.mark.usefixtures("db")
class TestPosition:
    def test_the_position_counts_in_claim_order(self) -> None:
        ids = [submit(priority=priority) for priority in (0, 5, -3, 5, 0)]
        with get_session() as session:
            assert [get_queue_position(session, one) for one in ids] == [3, 1, 5, 2, 4]

    def test_a_scheduled_generation_is_ahead_only_of_later_ones(self) -> None:
        tomorrow = submit(priority=9, scheduled_at=ahead(days=1))
        today = submit()
        next_week = submit(scheduled_at=ahead(days=7))
        with get_session() as session:
            assert [get_queue_position(session, one) for one in (today, tomorrow, next_week)] == [1, 1, 3]

    def test_the_position_is_none_unless_pending(self) -> None:
        generation_id = submit()
        assert claimed() == generation_id
        with get_session() as session:
            assert get_queue_position(session, generation_id) is None
            assert get_queue_position(session, "unknown") is None
            assert get_queue_position(session, "nul\0") is None

    def test_the_next_claim_returns_position_one(self) -> None:
        ids = [submit(priority=priority % 3) for priority in range(7)]
        for _ in ids:
            with get_session() as session:
                places = {get_queue_position(session, one): one for one in ids}
            assert claimed() == places[1]


@pytest.mark.usefixtures("db")
class TestWithoutLease:
    def test_an_orm_update_of_a_row_that_was_claimed_meanwhile_is_refused(self) -> None:
        generation_id = submit()
        with get_session() as mine:
            generation = get_generation(mine, generation_id)
            assert generation is not None
            assert claimed() == generation_id
            generation.mark_processing()
            with pytest.raises(ConflictError):
                mine.flush()
            mine.rollback()

    def test_a_claimed_generation_can_be_completed_without_its_lease(self) -> None:
        generation_id = submit()
        assert claimed() == generation_id
        with get_session() as session:
            generation = complete_generation(session, generation_id, 18.5, 5_000_000)
            assert generation is not None
            assert generation.is_complete
            assert generation.lease is None


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize(
    "arguments",
    [
        {"worker_id": ""},
        {"worker_id": 7},
        {"model_names": "musicgen-small"},
        {"model_names": [""]},
        {"prefer_model": "  "},
        {"lease_seconds": 0},
        {"lease_seconds": -1},
        {"lease_seconds": float("nan")},
        {"lease_seconds": 1e300},
        {"lease_seconds": "60"},
    ],
)
def test_a_bad_argument_is_named_and_claims_nothing(arguments: dict[str, Any]) -> None:
    waiting = submit()
    with get_session() as session:
        with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
            claim_generation(session, **arguments)
        for limit in (-1, True, "1"):
            with pytest.raises((ValueError, TypeError), match="limit"):
                claim_generations(session, limit)  # type: ignore[arg-type]
    assert claimed() == waiting


class Recorder:
    """Records the statements of an engine and explains the last one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.statements: list[tuple[str, Any]] = []
        event.listen(engine, "before_cursor_execute", self.record)

    def record(self, _c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        self.statements.append((statement, parameters))

    def explain(self) -> str:
        """Return the plan of the last statement."""
        event.remove(self.engine, "before_cursor_execute", self.record)
        statement, parameters = self.statements[-1]
        prefix = "EXPLAIN QUERY PLAN " if self.engine.dialect.name == "sqlite" else "EXPLAIN "
        with self.engine.connect() as connection:
            plan = connection.exec_driver_sql(prefix + statement, parameters).all()
            return "\n".join(str(row[-1]) for row in plan)


def fill(session: Any, count: int, **changes: Any) -> None:
    create_generations(session, [a_request(**changes) for _ in range(count)])


@pytest.mark.parametrize("analyzed", ["never", "while all were pending", "while none was pending"])
class TestPlans:
    @pytest.fixture
    def backlog(self, db: Storage, analyzed: str) -> Storage:
        """Return a database with enough rows for the planner to use an index, with and without statistics."""
        with get_session() as session:
            fill(session, 500)
            fill(session, 500, priority=5, scheduled_at=ahead(days=1))
            fill(session, 500, model_name="large")
        analyze = db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if analyzed == "while none was pending":
            analyze.exec_driver_sql("UPDATE generations SET status = 'failed', completed_at = created_at")
        if analyzed != "never":
            analyze.exec_driver_sql("ANALYZE")
        if analyzed == "while none was pending":
            analyze.exec_driver_sql("UPDATE generations SET status = 'pending', completed_at = NULL")
        analyze.close()
        return db

    @pytest.mark.parametrize(
        ("options", "index"),
        [({}, "idx_generations_due"), ({"model_names": ["musicgen-small"]}, "idx_generations_due_model")],
    )
    def test_a_claim_seeks_in_the_partial_index_without_a_sort(
        self, backlog: Storage, options: dict[str, Any], index: str
    ) -> None:
        recorder = Recorder(backlog.engine)
        with get_session() as session:
            assert claim_generation(session, **options) is not None
        plan = recorder.explain()
        scans = [line for line in plan.splitlines() if "idx_generations" in line]
        assert scans
        assert all(f"{index} " in line + " " for line in scans), plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan
        assert "Seq Scan on generations" not in plan
        assert "SCAN generations" not in plan
        if backlog.backend.name == "sqlite":
            assert "priority=? AND scheduled_at<?" in plan

    @pytest.mark.parametrize("options", [{"model_names": ["musicgen-small", "large"]}, {"prefer_model": "large"}])
    def test_a_claim_of_several_models_sorts_only_the_merged_rows(
        self, backlog: Storage, options: dict[str, Any]
    ) -> None:
        recorder = Recorder(backlog.engine)
        with get_session() as session:
            assert claim_generation(session, **options) is not None
        plan = recorder.explain()
        assert "Seq Scan on generations" not in plan
        assert "SCAN generations" not in plan
        assert "idx_generations_status" not in plan
        assert "idx_generations_due" in plan

    def test_pending_generations_are_read_from_the_index_of_the_queue(self, backlog: Storage) -> None:
        recorder = Recorder(backlog.engine)
        with get_session() as session:
            assert len(get_pending_generations(session)) == 100
        plan = recorder.explain()
        assert "idx_generations_due" in plan
        assert "TEMP B-TREE" not in plan

    def test_expired_leases_are_found_in_their_index(self, backlog: Storage) -> None:
        with get_session() as session:
            claim_generations(session, 200)
        recorder = Recorder(backlog.engine)
        with get_session() as session:
            assert reclaim_generations(session) == []
        plan = recorder.explain()
        assert "idx_generations_lease" in plan, plan
        assert "TEMP B-TREE" not in plan
        assert "Seq Scan on generations" not in plan

    def test_a_queue_position_is_counted_in_the_index_alone(self, backlog: Storage) -> None:
        with get_session() as session:
            last = a_generation(session, priority=-1).id
        recorder = Recorder(backlog.engine)
        with get_session() as session:
            assert get_queue_position(session, last) == 1001
        plan = recorder.explain()
        assert "Seq Scan on generations" not in plan
        assert "SCAN generations" not in plan
        if backlog.backend.name == "sqlite":
            assert plan.count("USING COVERING INDEX idx_generations_due") == 4


def test_cancelled_rows_leave_the_queue(db: Storage) -> None:
    first, second = submit(), submit()
    with get_session() as session:
        cancel_generation(session, first)
        assert get_queue_position(session, second) == 1
    assert claimed() == second


def test_enqueueing_is_part_of_the_callers_transaction(db: Storage) -> None:
    with get_session() as session:
        create_generation(session, **a_request())
        session.rollback()
    assert claimed() is None
    with get_session() as session:
        assert session.query(Generation).count() == 0
