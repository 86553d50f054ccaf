"""Idle workers start what becomes due at once. Their polls are so far apart that no test would see one."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, literal, select, text

from services.storage import (
    Generation,
    Job,
    Storage,
    Worker,
    claim_generation,
    count_generations,
    create_generations,
    fail_generation,
    migrations,
    pause_queue,
    release_generation,
    resume_queue,
    retry_generation,
    retry_generations,
    set_favorite,
)
from services.storage.backends import postgresql_wakeup, sqlite_wakeup
from services.storage.backends import wakeup as backend_wakeup
from services.storage.queue import seconds_until_due, wakeup
from services.storage.queue.wakeup import Wakeups
from tests.integration.test_fork import Child
from tests.integration.test_postgresql_settings import pool_like_pgbouncer
from tests.support.factories import a_generation, a_request
from tests.support.stored_times import ahead

NEVER = 3_000.0


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait until `condition` holds; pytest's timeout limits the wait."""
    while not condition():
        time.sleep(0.005)


def wake_up_threads() -> int:
    return sum(thread.name == "wake-ups" for thread in threading.enumerate())


class IdleWorker:
    """A worker in a thread; `jobs` are those it has started."""

    def __init__(self, storage: Storage, **options: Any) -> None:
        self.storage = storage
        self.jobs: list[Job] = []
        self.worker = Worker(self.jobs.append, storage=storage, **({"poll_seconds": NEVER} | options))
        self.thread = threading.Thread(target=self.worker.run)

    @property
    def is_idle(self) -> bool:
        return bool(self.storage.due_wakeups._subscriptions)

    def stop(self) -> None:
        self.worker.stop()
        self.thread.join()


@contextmanager
def idle_worker(storage: Storage, *, has_source: bool = True, **options: Any) -> Iterator[IdleWorker]:
    """Run a worker in a thread, from when it waits for work until the end of the block."""
    idle = IdleWorker(storage, **options)
    idle.thread.start()
    try:
        wait_until(lambda: idle.is_idle and (not has_source or storage.due_wakeups._source is not None))
        time.sleep(0.05)  # for the call that follows the subscription, so that it is not this one that wakes the worker
        yield idle
    finally:
        idle.stop()


@pytest.fixture
def other(db: Storage, database_url: str) -> Iterator[Storage]:
    """Return another Storage on the database of `db`, as another process has."""
    storage = Storage(database_url)
    yield storage
    storage.dispose()


def create(storage: Storage, **request: Any) -> str:
    with storage.session() as session:
        return a_generation(session, **request).id


def listeners(storage: Storage) -> int:
    """Return how many sessions of the server listen in this database."""
    with storage.engine.connect() as connection:
        mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        return int(connection.execute(text(mine)).scalar_one())


def ended(storage: Storage) -> str:
    """Store a failed generation."""
    generation_id = create(storage)
    with storage.session() as session:
        fail_generation(session, generation_id, "no GPU")
    return generation_id


def leased(storage: Storage) -> Generation:
    create(storage)
    with storage.session() as session:
        generation = claim_generation(session, "other")
        assert generation is not None
        return generation


class TestWaking:
    @pytest.mark.parametrize(
        "submit",
        [
            create,
            lambda storage: storage.run_in_transaction(
                lambda session: create_generations(session, [a_request(), a_request()])
            ),
            lambda storage: storage.run_in_transaction(lambda session: session.add(Generation(**a_request()))),
            lambda storage: create(storage, scheduled_at=ahead(seconds=0.3)),
            lambda storage: create(storage, idempotency_key="once"),
        ],
        ids="one many added scheduled keyed".split(),
    )
    def test_a_submission_starts_at_once(self, db: Storage, other: Storage, submit: Callable[[Storage], Any]) -> None:
        with idle_worker(db) as idle:
            submit(other)
            wait_until(lambda: idle.jobs)

    @pytest.mark.parametrize(
        ("prepare", "change"),
        [
            (ended, retry_generation),
            (ended, lambda session, generation_id: session.get_one(Generation, generation_id)),
            (leased, lambda session, generation: release_generation(session, generation.lease)),
        ],
        ids="retry bulk release".split(),
    )
    def test_what_becomes_due_again_starts_at_once(
        self, db: Storage, other: Storage, prepare: Callable[[Storage], Any], change: Callable[..., Any]
    ) -> None:
        prepared = prepare(other)
        with idle_worker(db) as idle:
            if prepare is ended and change is not retry_generation:
                assert retry_generations(ids=[prepared], storage=other) == 1
            else:
                with other.session() as session:
                    change(session, prepared)
            wait_until(lambda: idle.jobs)

    def test_a_queue_that_is_resumed_continues_at_once(self, db: Storage, other: Storage) -> None:
        with other.session() as session:
            pause_queue(session)
            a_generation(session)
        with idle_worker(db) as idle:
            with other.session() as session:
                resume_queue(session)
            wait_until(lambda: idle.jobs)

    def test_a_failed_attempt_is_repeated_when_its_backoff_is_over(self, db: Storage, other: Storage) -> None:
        def fail(job: Job) -> None:
            attempts.append(job.generation.attempt)
            raise RuntimeError("no GPU")

        attempts: list[int] = []
        create(db, max_attempts=2)
        Worker(fail, storage=db, poll_seconds=NEVER).run(max_jobs=2)
        assert attempts == [1, 2]

    def test_a_worker_wakes_for_its_models_only(self, db: Storage, other: Storage) -> None:
        with idle_worker(db, model_names=["large"]) as idle:
            create(other, model_name="small")
            create(other, model_name="large")
            wait_until(lambda: idle.jobs)
            assert [job.generation.model_name for job in idle.jobs] == ["large"]

    def test_a_worker_in_another_process_wakes(self, db: Storage, database_url: str, tmp_path: Path) -> None:
        from tests.integration.test_worker import Process

        first = create(db)
        process = Process(database_url, "at once", tmp_path, poll_seconds=NEVER)
        assert process.line() == ["started", first, "1"]
        time.sleep(0.5)
        second = create(db)
        assert process.line() == ["started", second, "1"]
        process.popen.terminate()
        assert process.line() == ["ended", "2"]
        assert process.close() == 0

    @pytest.mark.parametrize("is_other_pending", [False, True])
    def test_a_woken_worker_claims_without_a_look_unless_something_else_was_pending(
        self, db: Storage, other: Storage, is_other_pending: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wakeup, "CALM_SECONDS", math.inf)  # no look before the commit is visible
        if is_other_pending:
            create(db, scheduled_at=ahead(hours=1))
        executed: list[str] = []
        with idle_worker(db) as idle:
            event.listen(db.engine, "before_cursor_execute", lambda *arguments: executed.append(arguments[2]))
            create(other)
            wait_until(lambda: idle.jobs)
        assert ("UPDATE generations" in executed[0]) is not is_other_pending

    def test_without_inotify_a_submission_starts_soon(
        self, other: Storage, db: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_wakeup, "_watch_folder", lambda folder: None)
        with idle_worker(db) as idle:
            create(other)
            wait_until(lambda: idle.jobs)

    def test_without_inotify_looks_are_rarer_the_longer_nothing_comes(
        self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_wakeup, "_watch_folder", lambda folder: None)
        storage = Storage(sqlite_url)
        source = sqlite_wakeup.SQLiteChanges(storage.engine.dialect, storage.url)
        intervals: list[float] = []
        monkeypatch.setattr(source, "wait_for_descriptors", intervals.append)
        for idle_seconds in (0.0, 2.0, 2.5, 5.0, 12.5, 1_000.0):
            source.wait(0.001, idle_seconds)
        assert intervals == pytest.approx([0.008, 0.008, 0.01, 0.02, 0.05, 0.05])
        source.close()

    def test_a_memory_database_wakes_its_workers(self) -> None:
        storage = Storage("sqlite:///:memory:")
        migrations.upgrade(storage)
        with idle_worker(storage) as idle:
            create(storage)
            wait_until(lambda: idle.jobs)
        storage.dispose()

    def test_files_of_others_in_the_folder_wake_nobody(self, sqlite_url: str, tmp_path: Path) -> None:
        dialect = Storage(sqlite_url).engine.dialect
        source = sqlite_wakeup.SQLiteChanges(dialect, Storage(sqlite_url).url)
        (tmp_path / "track.wav").write_bytes(bytes(10_000))
        assert not source.wait(0.01, 0)
        storage = Storage(sqlite_url)
        create(storage)
        assert source.wait(10, 0)
        assert source.has_changed()
        assert not source.has_changed()
        source.close()
        storage.dispose()


class TestSafetyNet:
    """A wake-up may be lost; the next poll finds the job."""

    def test_a_lost_notification_costs_one_poll(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dropped: list[Any] = []

        def drop(source: Any) -> bool:
            dropped.append(source)
            return False

        for source in (sqlite_wakeup.SQLiteChanges, postgresql_wakeup.Notifications):
            monkeypatch.setattr(source, "has_changed", drop)
        resume = postgresql_wakeup.Notifications.resume
        monkeypatch.setattr(postgresql_wakeup.Notifications, "resume", lambda source: resume(source) and False)
        with idle_worker(db, poll_seconds=0.4) as idle:
            create(other)
            wait_until(lambda: idle.jobs)
        assert dropped

    def test_a_source_that_cannot_be_opened_leaves_the_polls(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: Any) -> Any:
            raise OSError("no more descriptors")

        monkeypatch.setattr(db.due_wakeups, "_open_source", refuse)
        with idle_worker(db, has_source=False, poll_seconds=0.2) as idle:
            create(other)
            wait_until(lambda: idle.jobs)
        wait_until(lambda: wake_up_threads() == 0)

    def test_a_source_that_breaks_is_opened_again(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wakeup, "REOPEN", wakeup.RetryPolicy(base_seconds=0, cap_seconds=0))
        with idle_worker(db) as idle:
            first = db.due_wakeups._source

            def fail(*arguments: Any) -> bool:
                raise OSError("broken")

            assert first is not None
            monkeypatch.setattr(first, "wait", fail)
            first.interrupt()
            wait_until(lambda: db.due_wakeups._source not in (None, first))
            create(other)
            wait_until(lambda: idle.jobs)

    def test_without_wakeup_nothing_is_watched_and_nothing_is_sent(self, db: Storage, database_url: str) -> None:
        storage = Storage(database_url, wakeup=False)
        statements: list[str] = []
        event.listen(storage.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        with idle_worker(storage, poll_seconds=0.2) as idle:
            assert isinstance(storage.due_wakeups._source, backend_wakeup.Ticker)
            create(storage)
            storage.run_in_transaction(lambda session: create_generations(session, [a_request(), a_request()]))
            wait_until(lambda: len(idle.jobs) == 3)
        assert statements
        assert not [statement for statement in statements if "notify" in statement.lower()]
        storage.dispose()


class TestManyWorkers:
    def test_eight_idle_workers_claim_one_job_once_and_do_not_storm(self, db: Storage, database_url: str) -> None:
        storages = [Storage(database_url) for _ in range(8)]
        statements: list[str] = []
        for storage in storages:
            event.listen(storage.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        idle = [IdleWorker(storage) for storage in storages]
        for worker in idle:
            worker.thread.start()
        try:
            wait_until(lambda: all(worker.is_idle for worker in idle))
            before = -1
            while before < len(statements):  # whoever subscribes is called soon, and then claims
                before = len(statements)
                time.sleep(0.5)
            statements.clear()
            generation_id = create(db)
            wait_until(lambda: any(worker.jobs for worker in idle))
            time.sleep(0.5)
        finally:
            executed = list(statements)
            for worker in idle:
                worker.stop()
                worker.storage.dispose()
        assert [job.generation.id for worker in idle for job in worker.jobs] == [generation_id]
        claims = [
            sql for sql in executed if "UPDATE generations" in sql and "WITH" in sql and "INTO attempts" not in sql
        ]
        # Each claims once, and the winner once more after its job; those that got nothing look. On a busy machine a
        # worker is woken again before the winner has committed, and claims twice.
        assert 1 <= len(claims) <= 8 * 2, claims
        assert len(executed) <= 8 * 5, len(executed)

    def test_commits_that_are_no_work_cost_few_looks(self, db: Storage, other: Storage) -> None:
        generation_id = create(other, model_name="other")
        looks: list[str] = []
        with idle_worker(db, model_names=["mine"]):
            event.listen(db.engine, "before_cursor_execute", lambda *arguments: looks.append(arguments[2]))
            for number in range(50):
                with other.session() as session:
                    set_favorite(session, generation_id, number % 2 == 0)
                time.sleep(0.01)
        assert len(looks) <= 25


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestNotifications:
    @pytest.fixture
    def received(self, db: Storage) -> Iterator[Callable[[], int]]:
        """Return a function that returns the number of notifications since its last call."""
        source = db.backend.open_due_source(db.url, db.options)
        assert isinstance(source, postgresql_wakeup.Notifications)
        found: list[Any] = []
        driver: Any = source._connection.connection.dbapi_connection
        driver.add_notify_handler(found.append)

        def count() -> int:
            source._connection.exec_driver_sql("SELECT 1")  # the server sends what was committed before the answer
            number = len(found)
            found.clear()
            return number

        yield count
        source.close()

    def test_a_transaction_sends_one(self, db: Storage, received: Callable[[], int]) -> None:
        with db.session() as session:
            for _ in range(3):
                a_generation(session)
            create_generations(session, [a_request(), a_request()])
        assert received() == 1

    @pytest.mark.parametrize("many", [False, True])
    def test_what_is_due_much_later_sends_none(self, db: Storage, received: Callable[[], int], many: bool) -> None:
        with db.session() as session:
            request = a_request(scheduled_at=ahead(hours=1))
            create_generations(session, [request]) if many else a_generation(session, **request)
        assert received() == 0

    def test_what_is_rolled_back_sends_none(self, db: Storage, received: Callable[[], int]) -> None:
        with suppress(LookupError), db.session() as session:
            a_generation(session)
            raise LookupError
        assert received() == 0

    def test_two_schemas_of_a_database_do_not_wake_each_other(
        self, db: Storage, received: Callable[[], int], database_url: str
    ) -> None:
        with db.engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA second"))
        joint = "&" if "?" in database_url else "?"
        second = Storage(f"{database_url}{joint}options=-csearch_path%3Dsecond")
        migrations.upgrade(second)
        create(second)
        assert received() == 0
        with idle_worker(second) as idle:
            wait_until(lambda: idle.jobs)
            create(second)
            wait_until(lambda: len(idle.jobs) == 2)
        create(db)
        assert received() == 1
        second.dispose()

    def test_behind_pgbouncer_a_worker_polls_and_a_submission_wakes_others(
        self, db: Storage, other: Storage, database_url: str
    ) -> None:
        storage = Storage(database_url, pgbouncer=True)
        pool_like_pgbouncer(storage)
        with idle_worker(storage, poll_seconds=0.2) as idle:
            assert isinstance(storage.due_wakeups._source, backend_wakeup.Ticker)
            assert listeners(other) == 0
            create(other)
            wait_until(lambda: idle.jobs)
        with idle_worker(db) as idle:
            assert listeners(other) == 1
            create(storage)
            wait_until(lambda: idle.jobs)
        storage.dispose()

    def test_a_worker_that_has_a_job_does_not_listen(self, db: Storage, other: Storage) -> None:
        may_end = threading.Event()

        def handle(job: Job) -> None:
            idle.jobs.append(job)
            may_end.wait()

        with idle_worker(db) as idle:
            idle.worker.handler = handle
            assert listeners(other) == 1
            create(other)
            wait_until(lambda: idle.jobs)
            wait_until(lambda: listeners(other) == 0)
            may_end.set()
            wait_until(lambda: listeners(other) == 1)
            create(other)
            wait_until(lambda: len(idle.jobs) == 2)

    def test_between_the_wake_ups_of_a_burst_nobody_listens(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listening: list[int] = []
        paused = SimpleNamespace(sleep=lambda seconds: listening.append(listeners(other)))
        monkeypatch.setattr(wakeup, "time", paused)
        with idle_worker(db, model_names=["mine"]) as idle:
            for _ in range(20):
                create(other)
            create(other, model_name="mine")
            wait_until(lambda: idle.jobs)
        wait_until(lambda: wake_up_threads() == 0)
        assert 0 in listening

    def test_a_server_that_ends_the_session_is_listened_to_again(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wakeup, "REOPEN", wakeup.RetryPolicy(base_seconds=0.01, cap_seconds=0.01))
        with idle_worker(db) as idle:
            first = db.due_wakeups._source
            with other.engine.connect() as connection:
                found = connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
                ).all()
            assert found == [(True,)]
            wait_until(lambda: db.due_wakeups._source not in (None, first))
            create(other)
            wait_until(lambda: idle.jobs)


class TestLifetime:
    def test_a_stopped_worker_leaves_no_thread(self, db: Storage) -> None:
        with idle_worker(db):
            assert wake_up_threads() == 1
        wait_until(lambda: wake_up_threads() == 0)

    def test_a_worker_that_never_waits_starts_no_thread(self, db: Storage) -> None:
        create(db)
        seen: list[int] = []
        Worker(lambda job: seen.append(wake_up_threads()), storage=db).run(until_empty=True)
        assert seen == [0]
        assert wake_up_threads() == 0

    def test_a_worker_goes_on_after_its_storage_was_disposed(self, db: Storage, other: Storage) -> None:
        with idle_worker(db) as idle:
            db.dispose()
            wait_until(lambda: idle.is_idle)
            create(other)
            wait_until(lambda: idle.jobs)

    def test_storages_that_are_garbage_end_their_threads(self, database_url: str) -> None:
        storage = Storage(database_url)
        storage.due_wakeups.subscribe(lambda: None)
        assert wake_up_threads() == 1
        del storage
        wait_until(lambda: wake_up_threads() == 0)

    def test_a_child_can_use_the_database_and_the_parent_still_wakes(self, db: Storage, other: Storage) -> None:
        def work(child: Child) -> None:
            assert wake_up_threads() == 0
            assert not db.due_wakeups._subscriptions
            create(db)
            with db.session() as session:
                assert count_generations(session) == 1

        with idle_worker(db) as idle:
            Child(work).finish()
            wait_until(lambda: len(idle.jobs) == 1)
            create(other)
            wait_until(lambda: len(idle.jobs) == 2)

    def test_calls_of_a_busy_database_come_together_and_none_is_lost(self) -> None:
        class Source(backend_wakeup.Ticker):
            """Changes all the time until `count` is 0."""

            count = 200

            def wait(self, seconds: float, idle_seconds: float) -> bool:
                if self.count:
                    return True
                self.wait_for_descriptors(seconds)
                return False

            def has_changed(self) -> bool:
                self.count -= self.count > 0
                return self.count > 0

        calls: list[float] = []
        wakeups = Wakeups(lambda: Source(1), longest_pause=0.02)
        with closing(wakeups.subscribe(lambda: calls.append(time.monotonic()))):
            time.sleep(0.5)
        wakeups.close()
        assert 3 <= len(calls) <= 40

    def test_commits_that_wake_nobody_leave_the_source_idle(self) -> None:
        class Source(backend_wakeup.Ticker):
            """Changes every 10 ms; says in `idle` for how long nobody was called, and calls if `is_work`."""

            idle = 0.0
            is_work = False

            def wait(self, seconds: float, idle_seconds: float) -> bool:
                Source.idle = idle_seconds
                return super().wait(seconds, idle_seconds)

            def has_row(self, query: Any) -> bool:
                return Source.is_work

        wakeups = Wakeups(lambda: Source(0.01), longest_pause=0.02)
        with closing(wakeups.subscribe(lambda: None, only_if=select(literal(1)))):
            wait_until(lambda: Source.idle > 0.3)
            Source.is_work = True
            wait_until(lambda: Source.idle < 0.1)
        wakeups.close()

    def test_a_paused_subscription_gets_no_calls(self, db: Storage, other: Storage) -> None:
        calls: list[int] = []
        with closing(db.due_wakeups.subscribe(lambda: calls.append(1))) as subscription:
            wait_until(lambda: calls)
            subscription.pause()
            time.sleep(0.05)
            calls.clear()
            create(other)
            time.sleep(0.1)
            assert not calls
            subscription.resume()
            wait_until(lambda: calls)


class TestNextDue:
    def seconds(self, db: Storage, models: list[str] | None = None) -> float | None:
        return db.run_step(lambda session: seconds_until_due(session, models))

    def test_it_is_the_time_until_the_earliest_of_all_priorities(self, db: Storage) -> None:
        assert self.seconds(db) is None
        create(db, scheduled_at=ahead(hours=2), priority=5)
        create(db, scheduled_at=ahead(hours=1), priority=-5, model_name="small")
        create(db, scheduled_at=ahead(hours=3))
        seconds = self.seconds(db)
        assert seconds is not None
        assert 3_500 < seconds <= 3_600
        in_models = self.seconds(db, ["small", "other"])
        assert in_models is not None
        assert 3_500 < in_models <= 3_600
        assert self.seconds(db, ["other"]) is None
        assert self.seconds(db, []) is None
        create(db)
        assert self.seconds(db) == 0

    def test_nothing_is_due_while_the_queue_is_paused(self, db: Storage) -> None:
        create(db)
        with db.session() as session:
            pause_queue(session)
        assert self.seconds(db) is None

    def test_one_name_in_place_of_a_list_is_refused(self, db: Storage) -> None:
        with pytest.raises(TypeError, match="put a single name into a list"):
            self.seconds(db, "small")  # type: ignore[arg-type]
