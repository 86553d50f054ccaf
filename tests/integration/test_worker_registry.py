"""The registry of workers: who counts, for how long, and what every report says of it."""

import asyncio
import os
import socket
import threading
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.storage import (
    Job,
    Storage,
    Worker,
    WorkerStatus,
    __version__,
    backup_database,
    claim_generation,
    copy_database,
    estimate_completion,
    explain_wait,
    get_attempts,
    get_queue_stats,
    get_session,
    get_workers,
    heartbeat_generation,
    prune_generations,
    reclaim_generations,
    register_worker,
    reset_database,
    restore_database,
    unregister_worker,
)
from services.storage.models import RegisteredWorker
from services.storage.types import utcnow
from services.storage.worker import WorkerInterrupted, heartbeat, loop, registration
from services.storage.worker.waiting import Waiting
from tests.support.factories import a_generation
from tests.support.stored_times import ago, expire_lease, pass_time, rewrite_worker, set_clock_back


def workers() -> list[WorkerStatus]:
    """Return the live workers, after a check that the number in the statistics agrees."""
    with get_session(read_only=True) as session:
        found = get_workers(session)
        assert get_queue_stats(session).workers == len(found)
    return found


def register(worker_id: str, **labels: Any) -> None:
    with get_session() as session:
        register_worker(session, worker_id, **labels)


def wait_for_state(state: str) -> None:
    """Wait until the only live worker says that it is in this state; pytest's timeout limits the wait."""
    while workers()[0].state != state:
        pass


def submit(**changes: Any) -> str:
    with get_session() as session:
        return a_generation(session, **changes).id


@pytest.mark.usefixtures("db")
class TestRegistration:
    def test_a_registered_worker_is_listed_with_what_it_said(self) -> None:
        register("gpu-0", model_names=["small", "large", "small"], warm_model="large", device="cuda:0", version="2.1")
        (worker,) = workers()
        assert (worker.id, worker.host, worker.pid) == ("gpu-0", socket.gethostname()[:128], os.getpid())
        assert (worker.model_names, worker.warm_model) == (("large", "small"), "large")
        assert (worker.device, worker.version, worker.state, worker.generation_id) == ("cuda:0", "2.1", "idle", None)
        assert worker.last_seen_at == worker.started_at
        assert worker.expires_at - worker.last_seen_at == pytest.approx(timedelta(seconds=45), abs=timedelta(seconds=1))
        assert worker.to_dict()["model_names"] == ["large", "small"]

    def test_registering_again_keeps_the_start_and_extends_the_promise(self) -> None:
        register("gpu-0", alive_seconds=5)
        (first,) = workers()
        register("gpu-0", alive_seconds=60, state="stopping")
        (second,) = workers()
        assert second.started_at == first.started_at
        assert second.expires_at > first.expires_at
        assert second.state == "stopping"

    def test_an_unregistered_worker_is_gone(self) -> None:
        register("gpu-0")
        with get_session() as session:
            assert unregister_worker(session, "gpu-0")
            assert not unregister_worker(session, "gpu-0")
            assert not unregister_worker(session, "\0")
        assert workers() == []

    @pytest.mark.parametrize("field", ["worker_id", "warm_model", "device", "version", "generation_id"])
    @pytest.mark.parametrize("bad", ["", " ", "\0", "\ud800", "x" * 256, 5, b"x"])
    def test_bad_labels_are_refused_by_name(self, field: str, bad: Any) -> None:
        arguments = {"worker_id": "gpu-0"} | {field: bad}
        with get_session() as session, pytest.raises((ValueError, TypeError), match=field):
            register_worker(session, **arguments)
        assert workers() == []

    @pytest.mark.parametrize(
        ("field", "bad"),
        [
            ("model_names", "small"),
            ("model_names", ["small", ""]),
            ("state", "asleep"),
            ("state", None),
            ("alive_seconds", 0),
            ("alive_seconds", float("nan")),
        ],
    )
    def test_bad_values_are_refused_by_name(self, field: str, bad: Any) -> None:
        with get_session() as session, pytest.raises((ValueError, TypeError), match=field):
            register_worker(session, "gpu-0", **{field: bad})

    def test_the_mapped_class_refuses_the_same(self) -> None:
        for field, bad in (("pid", -1), ("state", "asleep"), ("model_names", "small"), ("expires_at", "now")):
            with pytest.raises((ValueError, TypeError), match=field):
                RegisteredWorker(**{field: bad})  # type: ignore[misc]

    def test_the_mapped_class_reads_what_was_registered(self) -> None:
        register("gpu-0", model_names=["small"])
        with get_session(read_only=True) as session:
            row = session.get_one(RegisteredWorker, "gpu-0")
        assert repr(row) == "<RegisteredWorker gpu-0 state=idle>"
        assert row.to_dict()["model_names"] == ["small"]
        assert RegisteredWorker.from_dict(row.to_dict()).to_dict() == row.to_dict()


@pytest.mark.usefixtures("db")
class TestCounting:
    def test_a_silent_worker_no_longer_counts(self) -> None:
        register("gpu-0", alive_seconds=45)
        pass_time(seconds=44)
        assert len(workers()) == 1
        pass_time(seconds=2)
        assert workers() == []

    def test_a_lease_does_not_make_a_silent_registered_worker_count(self) -> None:
        submit()
        register("gpu-0", alive_seconds=45)
        with get_session() as session:
            assert claim_generation(session, "gpu-0", lease_seconds=60) is not None
        pass_time(seconds=46)
        assert workers() == []
        with get_session() as session:
            reclaim_generations(session)
        assert workers() == []  # the row stays while the lease is valid
        pass_time(seconds=20)
        with get_session() as session:
            assert len(reclaim_generations(session)) == 1
            assert session.scalars(select(RegisteredWorker)).all() == []
        assert workers() == []

    def test_a_worker_that_is_not_registered_counts_by_its_leases(self) -> None:
        ids = [submit(model_name=name) for name in ("a", "b")]
        with get_session() as session:
            for _ in ids:
                claim_generation(session, "by hand", lease_seconds=30)
        (worker,) = workers()
        assert (worker.id, worker.host, worker.state, worker.last_seen_at) == ("by hand", None, "busy", None)
        assert worker.generation_id in ids
        expire_lease(ids[0])
        assert len(workers()) == 1
        expire_lease(ids[1])
        assert workers() == []

    def test_what_a_worker_does_is_known_from_its_leases(self) -> None:
        generation_id = submit(model_name="large")
        register("gpu-0", warm_model="small")
        with get_session() as session:
            claim_generation(session, "gpu-0")
        (worker,) = workers()
        assert (worker.state, worker.generation_id, worker.warm_model) == ("busy", generation_id, "large")
        register("gpu-0", warm_model="large", state="busy", generation_id=generation_id)
        expire_lease(generation_id)
        with get_session() as session:
            reclaim_generations(session)
        (worker,) = workers()
        assert (worker.state, worker.generation_id, worker.warm_model) == ("idle", None, "large")
        register("gpu-0", state="busy")
        assert workers()[0].state == "busy"  # as it says: it may work on something without a lease

    def test_a_step_of_the_clock_makes_nobody_live_forever(self, db: Storage) -> None:
        register("dead")
        register("alive")
        set_clock_back(db, hours=1)
        assert workers() == []  # until when they promised to be alive is not known
        register("alive")
        with get_session() as session:
            reclaim_generations(session)
            assert [row.id for row in session.scalars(select(RegisteredWorker))] == ["alive"]
        assert [worker.id for worker in workers()] == ["alive"]

    def test_model_names_of_other_programs_that_cannot_be_read_mean_any_model(self, db: Storage) -> None:
        generation_id = submit(model_name="m")
        register("gpu-0", model_names=["x"])
        for stored in ('{"x": 1}', '["x", 1]', "5"):
            with db.engine.begin() as connection:
                connection.exec_driver_sql(f"UPDATE workers SET model_names = '{stored}'")
            assert workers()[0].model_names is None
            with get_session() as session:
                wait = explain_wait(session, generation_id)
                assert wait is not None
                assert wait.reason == "next"


class Lockstep:
    """Time for workers that share a process: it passes only when all of them wait, also in the stored times."""

    def __init__(self, count: int, seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        self.counts: list[int] = []
        self._seconds, self._steps = seconds, steps
        self._workers: list[Worker] = []
        self._barrier = threading.Barrier(count, action=self._tick)
        for module in (loop, heartbeat, registration):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(Waiting, "wait", lambda waiting, seconds: self._barrier.wait())

    def run(self, *workers: Worker) -> None:
        self._workers = list(workers)
        threads = [threading.Thread(target=worker.run) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _tick(self) -> None:
        self.counts.append(len(list_workers()))
        pass_time(seconds=self._seconds)
        self.now += self._seconds
        if len(self.counts) == self._steps:
            for worker in self._workers:
                worker.stop()


def list_workers() -> list[WorkerStatus]:
    with get_session(read_only=True) as session:
        return get_workers(session)


@pytest.mark.usefixtures("db")
class TestWorkers:
    def test_a_worker_is_listed_while_it_runs(self) -> None:
        generation_id = submit(model_name="large")
        seen: list[WorkerStatus] = []
        worker = Worker(
            lambda job: seen.extend(workers()),
            worker_id="gpu-0",
            model_names=["large", "small"],
            device="cuda:0",
            lease_seconds=20,
        )
        assert worker.run(until_empty=True) == 1
        assert [(one.id, one.device, one.version) for one in seen] == [("gpu-0", "cuda:0", __version__)]
        assert (seen[0].model_names, seen[0].warm_model) == (("large", "small"), "large")
        assert (seen[0].state, seen[0].generation_id) == ("busy", generation_id)
        promised = seen[0].expires_at - (seen[0].last_seen_at or utcnow())
        assert promised == pytest.approx(timedelta(seconds=20), abs=timedelta(seconds=1))
        assert workers() == []

    @pytest.mark.parametrize(("lease", "promise"), [(0.5, 0.5), (20, 20), (60, 45), (3_600, 45)])
    def test_a_worker_counts_for_its_lease_or_45_seconds(self, lease: float, promise: float) -> None:
        submit()
        seen: list[WorkerStatus] = []
        Worker(lambda job: seen.extend(workers()), lease_seconds=lease).run(until_empty=True)
        assert seen[0].last_seen_at is not None
        counts_for = (seen[0].expires_at - seen[0].last_seen_at).total_seconds()
        assert counts_for == pytest.approx(promise, abs=0.2)

    def test_a_worker_with_the_id_of_a_dead_one_has_started_now(self) -> None:
        register("gpu-0")
        with get_session() as session:
            rewrite_worker(session, "gpu-0", started_at=ago(hours=1))
        submit()
        seen: list[WorkerStatus] = []
        Worker(lambda job: seen.extend(workers()), worker_id="gpu-0").run(until_empty=True)
        assert seen[0].started_at is not None
        assert seen[0].started_at > ago(minutes=1)

    def test_a_cold_worker_that_prefers_warm_models_takes_one_that_nobody_has(self) -> None:
        for model in ("a", "a", "b", "c", "a", "b"):
            submit(model_name=model)
        register("other", warm_model="b")
        with get_session() as session:
            claimed = claim_generation(session, "by hand")  # renders with a, as its lease says
            assert claimed is not None
            assert claimed.model_name == "a"
        rendered: list[str] = []
        Worker(lambda job: rendered.append(job.generation.model_name), prefer_warm=True).run(until_empty=True)
        assert rendered == ["c", "a", "a", "b", "b"]

    @pytest.mark.parametrize("warm", [None, "a", "b", "c"])
    def test_without_a_model_that_nobody_has_the_order_is_that_of_the_queue(self, warm: str | None) -> None:
        for model in ("a", "b"):
            submit(model_name=model)
        register("other", warm_model=warm)
        register("ending", warm_model="a", state="stopping")
        rendered: list[str] = []
        Worker(lambda job: rendered.append(job.generation.model_name), prefer_warm=True, model_names=["a", "b"]).run(
            max_jobs=1
        )
        assert rendered == ["b" if warm == "a" else "a"]

    @pytest.mark.parametrize("told", [False, True])
    @pytest.mark.parametrize("ending", [None, ValueError, SystemExit, asyncio.CancelledError, WorkerInterrupted])
    def test_what_a_job_does_counts_and_what_the_worker_was_told_does_not(
        self, ending: type[BaseException] | None, told: bool
    ) -> None:
        generation_id = submit()
        seen: list[str] = []

        def render(job: Job) -> None:
            if told:
                worker.stop()
                wait_for_state("stopping")
            seen.append(workers()[0].state)
            if ending is not None:
                raise ending

        worker = Worker(render)
        with pytest.raises(SystemExit) if ending is SystemExit else nullcontext():
            worker.run(max_jobs=1)
        assert seen == ["stopping" if told else "busy"]
        assert workers() == []
        with get_session() as session:
            outcomes = [attempt.outcome for attempt in get_attempts(session, generation_id)]
        is_interruption = ending is not None and not issubclass(ending, Exception)
        expected = "completed" if ending is None else "released" if told and is_interruption else "failed"
        assert outcomes == [expected]

    def test_a_stopping_worker_says_so_and_takes_nothing(self) -> None:
        first, second = submit(), submit()

        def render(job: Job) -> None:
            worker.stop()
            wait_for_state("stopping")
            with get_session() as session:
                wait = explain_wait(session, second)
                assert wait is not None
                assert wait.reason == "no_workers"
                assert estimate_completion(session, second) is None

        worker = Worker(render)
        assert worker.run() == 1
        assert workers() == []
        with get_session() as session:
            wait = explain_wait(session, first)
            assert wait is not None
            assert wait.reason == "finished"

    def test_a_worker_that_ends_with_an_exception_is_removed(self) -> None:
        submit()
        with pytest.raises(SystemExit):
            Worker(exit_by_itself).run()
        assert workers() == []

    def test_two_idle_workers_count_for_ten_minutes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        time = Lockstep(2, seconds=5, steps=120, monkeypatch=monkeypatch)
        time.run(Worker(lambda job: None), Worker(lambda job: None, lease_seconds=21))
        assert time.counts == [2] * 120
        assert workers() == []

    def test_an_idle_worker_writes_its_row_every_fifteen_seconds_at_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written: list[float] = []
        register = registration.register_worker
        time = Lockstep(1, seconds=1, steps=100, monkeypatch=monkeypatch)

        def count(*arguments: Any, **labels: Any) -> None:
            written.append(time.now)
            register(*arguments, **labels)

        monkeypatch.setattr(registration, "register_worker", count)
        time.run(Worker(lambda job: None))
        assert written == [1_000 + 15 * number for number in range(7)]

    def test_a_worker_in_a_long_job_counts_even_when_its_lease_is_lost(self) -> None:
        submit()

        def render(job: Job) -> None:
            with get_session() as session:
                heartbeat_generation(session, job.lease, lease_seconds=0.001)
                rewrite_worker(session, "gpu-0", last_seen_at=ago(seconds=1))
            while not job.cancelled:
                with get_session() as session:
                    reclaim_generations(session)
            began = workers()[0].expires_at
            while workers()[0].expires_at <= began:
                pass

        Worker(render, worker_id="gpu-0", lease_seconds=1).run(max_jobs=1)

    def test_a_removed_registration_is_written_again(self, db: Storage) -> None:
        submit()

        def render(job: Job) -> None:
            reset_database()
            assert workers() == []
            while not workers():
                pass

        Worker(render, lease_seconds=0.4).run(max_jobs=1)


def exit_by_itself(job: Job) -> None:
    raise SystemExit(3)


class TestMaintenance:
    def test_a_copy_leaves_the_workers_behind(self, database_url: str, tmp_path: Any) -> None:
        source, target = Storage(database_url), Storage(f"sqlite:///{tmp_path / 'copy.db'}")
        with source.session() as session:
            a_generation(session)
            register_worker(session, "gpu-0")
        report = copy_database(database_url, str(target.url))
        assert "workers" not in [table.name for table in report.tables]
        with target.session() as session:
            assert get_workers(session) == []
            register_worker(session, "gpu-1")  # a worker may be waiting there already
        with source.session() as session:
            assert [worker.id for worker in get_workers(session)] == ["gpu-0"]
        for storage in (source, target):
            storage.dispose()

    def test_workers_in_the_target_do_not_stop_a_copy(self, database_url: str, tmp_path: Any) -> None:
        target = Storage(f"sqlite:///{tmp_path / 'copy.db'}")
        source = Storage(database_url)
        copy_database(database_url, str(target.url))
        with source.session() as session:
            a_generation(session)
        with target.session() as session:
            register_worker(session, "gpu-1")
        assert copy_database(database_url, str(target.url)).row_count == 2
        for storage in (source, target):
            storage.dispose()

    @pytest.mark.usefixtures("client_programs")
    def test_workers_of_a_backup_count_no_longer_than_they_promised(self, db: Storage, tmp_path: Any) -> None:
        register("gpu-0")
        backup = backup_database(tmp_path / f"backup{db.backend.backups.suffix}")
        assert next(count for table, count in backup.row_counts.items() if table.endswith("workers")) == 1
        with get_session() as session:
            unregister_worker(session, "gpu-0")
        restore_database(backup.path)
        assert [worker.id for worker in workers()] == ["gpu-0"]
        pass_time(seconds=46)
        assert workers() == []

    def test_pruning_keeps_the_workers(self, db: Storage) -> None:
        generation_id = submit()
        with get_session() as session:
            a_generation(session).mark_completed(1.0)
        register("gpu-0", generation_id=generation_id)
        prune_generations(older_than=timedelta(0))
        assert [worker.id for worker in workers()] == ["gpu-0"]
