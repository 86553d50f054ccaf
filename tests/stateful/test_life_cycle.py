"""Random sequences of calls on the queue, compared with a simple model of the life cycle."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.storage import (
    Generation,
    IllegalTransitionError,
    Lease,
    LeaseLostError,
    RetryPolicy,
    Storage,
    cancel_batch,
    cancel_generation,
    check_health,
    claim_generations,
    complete_generation,
    delete_generation,
    explain_wait,
    fail_generation,
    get_attempts,
    get_database_stats,
    get_queue_position,
    get_queue_stats,
    get_workers,
    heartbeat_generation,
    pause_queue,
    reclaim_generations,
    register_worker,
    release_generation,
    resume_queue,
    retry_generation,
    unregister_worker,
)
from services.storage.models import RegisteredWorker
from services.storage.queue import seconds_until_due
from services.storage.schema import FINISHED
from tests.support.factories import a_generation
from tests.support.stored_times import ago, ahead, rewrite_worker

AT_ONCE = RetryPolicy(base_seconds=0, cap_seconds=0)
MODELS = ("small", "large")
WORKERS = ("gpu-0", "gpu-1", "gpu-2")
OUTCOMES = ("completed", "failed", "retried", "released")


@dataclass
class Row:
    """The state of a generation in the model."""

    priority: int
    model_name: str
    due: bool
    batch_id: str | None
    max_attempts: int
    order: int
    status: str = "pending"
    attempt: int = 0
    lease: Lease | None = None
    cancel_requested: bool = False
    expired: bool = False
    history: dict[int, str] = field(default_factory=dict)


@dataclass
class Registered:
    """The row of a worker in the registry, in the model."""

    model_names: list[str] | None
    is_stopping: bool
    is_silent: bool = False


class LifeCycle(RuleBasedStateMachine):
    storage: ClassVar[Storage]
    ids = Bundle("ids")
    leases = Bundle("leases")

    @initialize(target=ids)
    def begin(self) -> Any:
        self.rows: dict[str, Row] = {}
        self.registered: dict[str, Registered] = {}
        self.paused = False
        self.clock = 0
        with self.storage.session() as session:
            session.query(Generation).delete()
            session.query(RegisteredWorker).delete()
            resume_queue(session)
        return multiple(*(self.create_row(number % 2, MODELS[number % 2], True, None, 3) for number in range(4)))

    def next_order(self) -> int:
        self.clock += 1
        return self.clock

    def end(self, row: Row, outcome: str) -> None:
        row.history[row.attempt] = outcome
        row.lease, row.expired = None, False

    def back_to_pending(self, row: Row, *, keeps_order: bool) -> None:
        row.status, row.cancel_requested = "pending", False
        if not keeps_order:
            row.order = self.next_order()

    @rule(
        target=ids,
        priority=st.integers(-2, 2),
        model_name=st.sampled_from(MODELS),
        due=st.sampled_from([True, True, True, False]),
        batch_id=st.sampled_from([None, "album"]),
        max_attempts=st.integers(1, 3),
    )
    def create(self, priority: int, model_name: str, due: bool, batch_id: str | None, max_attempts: int) -> str:
        return self.create_row(priority, model_name, due, batch_id, max_attempts)

    def create_row(self, priority: int, model_name: str, due: bool, batch_id: str | None, max_attempts: int) -> str:
        with self.storage.session() as session:
            generation = a_generation(
                session,
                priority=priority,
                model_name=model_name,
                scheduled_at=None if due else ahead(days=1),
                batch_id=batch_id,
                max_attempts=max_attempts,
            )
        self.rows[generation.id] = Row(priority, model_name, due, batch_id, max_attempts, self.next_order())
        return generation.id

    @precondition(lambda self: len(self.rows) > 4)
    @rule(generation_id=consumes(ids))
    def delete(self, generation_id: str) -> None:
        with self.storage.session() as session:
            assert delete_generation(session, generation_id)
        del self.rows[generation_id]

    @rule(
        target=leases,
        worker_id=st.sampled_from(WORKERS),
        limit=st.integers(1, 3),
        model_names=st.sampled_from([None, ["small"], ["large", "small"]]),
    )
    def claim(self, worker_id: str, limit: int, model_names: list[str] | None) -> Any:
        waiting = [
            (generation_id, row)
            for generation_id, row in self.rows.items()
            if row.status == "pending" and row.due and row.model_name in (model_names or MODELS)
        ]
        waiting.sort(key=lambda item: (-item[1].priority, item[1].order))
        expected = [] if self.paused else waiting[:limit]
        with self.storage.session() as session:
            claimed = claim_generations(session, limit, worker_id, model_names=model_names)
        assert [row.id for row in claimed] == [generation_id for generation_id, _ in expected]
        for generation, (generation_id, row) in zip(claimed, expected, strict=True):
            row.status, row.attempt = "processing", row.attempt + 1
            row.lease = Lease(generation_id, worker_id, row.attempt)
            assert generation.lease == row.lease
        return claimed[0].lease if claimed else Lease("none", worker_id, 1)

    def held(self, lease: Lease) -> Row | None:
        row = self.rows.get(lease.generation_id)
        return row if row is not None and row.lease == lease else None

    def recorded_outcome(self, lease: Lease) -> str | None:
        row = self.rows.get(lease.generation_id)
        return None if row is None else row.history.get(lease.attempt)

    @rule(lease=leases)
    def heartbeat(self, lease: Lease) -> None:
        row = self.held(lease)
        with self.storage.session() as session:
            if row is None:
                with pytest.raises(LeaseLostError):
                    heartbeat_generation(session, lease)
                return
            generation = heartbeat_generation(session, lease, progress=0.5)
            assert (generation.cancel_requested_at is not None) == row.cancel_requested
            row.expired = False

    @precondition(lambda self: any(row.lease for row in self.rows.values()))
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def finish_a_running_attempt(self, data: st.DataObject, outcome: str) -> None:
        running = [row.lease for row in self.rows.values() if row.lease]
        self.finish(data.draw(st.sampled_from(running)), outcome)

    @rule(lease=leases, outcome=st.sampled_from(OUTCOMES))
    def finish_with_any_lease(self, lease: Lease, outcome: str) -> None:
        self.finish(lease, outcome)

    def finish(self, lease: Lease, outcome: str) -> None:
        row, before = self.held(lease), self.recorded_outcome(lease)
        recorded = "failed" if outcome == "retried" else outcome
        with self.storage.session() as session:
            if row is None and before not in (recorded, "cancelled"):
                with pytest.raises(LeaseLostError):
                    self.call(session, lease, outcome)
                return
            generation = self.call(session, lease, outcome)
            assert generation is not None
        if row is None:
            return  # a repeated call returns the stored row, and the invariants check that nothing changed
        if row.cancel_requested:
            row.status = "cancelled"
            self.end(row, "cancelled")
        elif outcome == "released":
            self.back_to_pending(row, keeps_order=True)
            row.max_attempts += 1
            self.end(row, "released")
        elif outcome == "retried" and row.attempt < row.max_attempts:
            self.back_to_pending(row, keeps_order=False)
            self.end(row, "failed")
        else:
            row.status = recorded
            self.end(row, recorded)

    def call(self, session: Any, lease: Lease, outcome: str) -> Generation | None:
        if outcome == "completed":
            return complete_generation(session, lease.generation_id, 18.5, 1, {"bpm": 140}, lease=lease)
        if outcome == "released":
            return release_generation(session, lease)
        retry = outcome == "retried"
        return fail_generation(session, lease.generation_id, "x", lease=lease, retry=retry, retry_policy=AT_ONCE)

    @rule(generation_id=ids)
    def lose_worker(self, generation_id: str) -> None:
        row = self.rows[generation_id]
        if row.lease is None:
            return
        row.expired = True
        with self.storage.session() as session:
            session.get_one(Generation, generation_id).lease_expires_at = ago(seconds=1)

    @rule(
        worker_id=st.sampled_from(WORKERS),
        model_names=st.sampled_from([None, ["small"], ["large"], ["tiny"]]),
        is_stopping=st.sampled_from([False, False, True]),
    )
    def register(self, worker_id: str, model_names: list[str] | None, is_stopping: bool) -> None:
        self.registered[worker_id] = Registered(model_names, is_stopping)
        with self.storage.session() as session:
            state = "stopping" if is_stopping else "idle"
            register_worker(session, worker_id, model_names=model_names, state=state)

    @rule(worker_id=st.sampled_from(WORKERS))
    def unregister(self, worker_id: str) -> None:
        with self.storage.session() as session:
            assert unregister_worker(session, worker_id) == (self.registered.pop(worker_id, None) is not None)

    @rule(worker_id=st.sampled_from(WORKERS))
    def hear_nothing_of(self, worker_id: str) -> None:
        if worker_id not in self.registered:
            return
        self.registered[worker_id].is_silent = True
        with self.storage.session() as session:
            rewrite_worker(session, worker_id, expires_at=ago(seconds=1))

    def lease_holders(self) -> dict[str, set[str]]:
        """Return the ids of the generations under a valid lease, by worker."""
        holders: dict[str, set[str]] = {}
        for generation_id, row in self.rows.items():
            if row.lease is not None and not row.expired:
                holders.setdefault(row.lease.worker_id, set()).add(generation_id)
        return holders

    @rule()
    def reclaim(self) -> None:
        holders = self.lease_holders()
        self.registered = {
            worker_id: worker
            for worker_id, worker in self.registered.items()
            if not worker.is_silent or worker_id in holders
        }
        expired = {generation_id for generation_id, row in self.rows.items() if row.expired}
        with self.storage.session() as session:
            assert {row.id for row in reclaim_generations(session)} == expired
        for row in (self.rows[generation_id] for generation_id in expired):
            if row.cancel_requested:
                row.status = "cancelled"
            elif row.attempt < row.max_attempts:
                self.back_to_pending(row, keeps_order=True)
            else:
                row.status = "failed"
            self.end(row, "lost")

    @rule(generation_id=ids)
    def cancel(self, generation_id: str) -> None:
        row = self.rows[generation_id]
        with self.storage.session() as session:
            if row.status in ("completed", "failed"):
                with pytest.raises(IllegalTransitionError):
                    cancel_generation(session, generation_id)
            else:
                assert cancel_generation(session, generation_id) is not None
                self.cancel_row(row)

    @rule()
    def cancel_album(self) -> None:
        album = [row for row in self.rows.values() if row.batch_id and row.status in ("pending", "processing")]
        with self.storage.session() as session:
            assert cancel_batch(session, "album") == len(album)
        for row in album:
            self.cancel_row(row)

    def cancel_row(self, row: Row) -> None:
        if row.status == "pending":
            row.status = "cancelled"
        elif row.status == "processing":
            row.cancel_requested = True

    @rule(generation_id=ids)
    def retry(self, generation_id: str) -> None:
        row = self.rows[generation_id]
        with self.storage.session() as session:
            if row.status in ("processing", "completed"):
                with pytest.raises(IllegalTransitionError):
                    retry_generation(session, generation_id)
                return
            assert retry_generation(session, generation_id) is not None
        if row.status != "pending":
            self.back_to_pending(row, keeps_order=False)
            row.due = True
            row.max_attempts = max(row.max_attempts, row.attempt + 1)

    @rule(generation_id=ids, status=st.sampled_from(["pending", "processing", "completed", "failed"]))
    def assign_status(self, generation_id: str, status: str) -> None:
        row = self.rows[generation_id]
        legal = {
            "pending": {"processing", "completed", "failed"},
            "processing": {"pending", "completed", "failed"},
            "completed": set(),
            "failed": {"pending"},
            "cancelled": {"pending"},
        }[row.status] | {row.status}
        with self.storage.session() as session:
            generation = session.get_one(Generation, generation_id)
            if status not in legal:
                with pytest.raises(IllegalTransitionError):
                    generation.status = status
                return
            generation.status = status
        if status == row.status:
            return
        row.lease, row.expired = None, False
        if status == "pending":
            self.back_to_pending(row, keeps_order=True)
            row.max_attempts = max(row.max_attempts, row.attempt + 1)
        row.status = status

    @rule(paused=st.sampled_from([True, False, False, False]))
    def pause_or_resume(self, paused: bool) -> None:
        self.paused = paused
        with self.storage.session() as session:
            pause_queue(session) if paused else resume_queue(session)

    @invariant()
    def the_database_agrees_with_the_model(self) -> None:
        with self.storage.session(read_only=True) as session:
            stored = {row.id: row for row in session.query(Generation)}
            assert stored.keys() == self.rows.keys()
            for generation_id, row in self.rows.items():
                generation = stored[generation_id]
                assert generation.status == row.status
                assert generation.attempt == row.attempt
                assert generation.max_attempts == row.max_attempts
                assert generation.lease == row.lease
                assert generation.is_finished == (generation.completed_at is not None)
                assert generation.lease is None or generation.is_processing
                assert generation.is_processing or generation.worker_id is None
                history = {attempt.number: attempt.outcome for attempt in get_attempts(session, generation_id)}
                assert history == row.history

    @invariant()
    def the_counts_and_the_position_agree_with_the_model(self) -> None:
        with self.storage.session(read_only=True) as session:
            stats = get_database_stats(session)
            statuses = [row.status for row in self.rows.values()]
            for status in ("pending", "processing", *FINISHED):
                assert stats[f"{status}_generations"] == statuses.count(status)
            due = [item for item in self.rows.items() if item[1].status == "pending" and item[1].due]
            if due:
                last, _ = min(due, key=lambda item: (item[1].priority, -item[1].order))
                assert get_queue_position(session, last) == len(due)

    @invariant()
    def an_idle_worker_knows_whether_anything_is_due(self) -> None:
        pending = [row for row in self.rows.values() if row.status == "pending"]
        with self.storage.session(read_only=True) as session:
            for model_names in (None, *([name] for name in MODELS)):
                waiting = [row for row in pending if model_names is None or row.model_name in model_names]
                seconds = seconds_until_due(session, model_names)
                if self.paused or not waiting:
                    assert seconds is None
                else:
                    assert seconds is not None
                    assert (seconds == 0) == any(row.due for row in waiting)

    @invariant()
    def every_report_counts_the_same_workers(self) -> None:
        holders = self.lease_holders()
        live = {worker_id for worker_id, worker in self.registered.items() if not worker.is_silent}
        live |= holders.keys() - self.registered.keys()
        with self.storage.session(read_only=True) as session:
            workers = {worker.id: worker for worker in get_workers(session)}
            assert workers.keys() == live
            assert get_queue_stats(session).workers == len(live)
            stored = {row.id for row in session.query(RegisteredWorker)}
            assert stored == self.registered.keys()
            claiming = []
            for worker_id, worker in workers.items():
                known = self.registered.get(worker_id, Registered(None, False))
                busy = "busy" if worker_id in holders else "idle"
                assert worker.state == ("stopping" if known.is_stopping else busy)
                assert (worker.generation_id in holders[worker_id]) if worker_id in holders else True
                assert worker.model_names == (None if known.model_names is None else tuple(known.model_names))
                claiming += [] if known.is_stopping else [known.model_names or MODELS]
            for generation_id, row in self.rows.items():
                if row.status == "pending" and row.due and not self.paused:
                    wait = explain_wait(session, generation_id)
                    assert wait is not None
                    assert (wait.reason == "no_workers") == (not claiming)
                    nobody = bool(claiming) and not any(row.model_name in models for models in claiming)
                    assert (wait.reason == "no_worker_for_model") == nobody
        health = check_health(storage=self.storage)
        due = sum(row.status == "pending" and row.due for row in self.rows.values())
        assert (health.ok, health.workers, health.backlog, health.paused) == (True, len(live), due, self.paused)
        waiting = {row.model_name for row in self.rows.values() if row.status == "pending" and row.due}
        unclaimed = waiting.difference(*claiming)
        assert bool(health.problems) == (bool(unclaimed) and not self.paused)
        assert set(health.unclaimed_models or ()) == unclaimed


def test_the_life_cycle_is_what_its_model_says(db: Storage, scaled: Any) -> None:
    LifeCycle.storage = db
    run_state_machine_as_test(
        LifeCycle,
        settings=settings(
            max_examples=scaled(400),
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
