"""Callers that wait for a generation are told of its end and of each change, in threads and in event loops."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from services.storage import (
    Generation,
    Lease,
    Result,
    Storage,
    StorageError,
    Worker,
    aio,
    cancel_generation,
    claim_generation,
    complete_generation,
    count_generations,
    delete_generation,
    fail_generation,
    heartbeat_generation,
    set_favorite,
    wait_for_generation,
    watch_generation,
)
from services.storage.watching import _readers
from tests.integration.test_fork import Child
from tests.integration.test_wakeup import create, wait_until, wake_up_threads
from tests.support.factories import a_generation


@pytest.fixture
def other(db: Storage, database_url: str) -> Iterator[Storage]:
    """Return another Storage on the database of `db`, as another process has."""
    storage = Storage(database_url)
    yield storage
    storage.dispose()


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    assert not _readers
    wait_until(lambda: wake_up_threads() == 0)


def claim(storage: Storage) -> Lease:
    generation = storage.run_step(lambda session: claim_generation(session, "w"))
    assert generation is not None
    assert generation.lease is not None
    return generation.lease


def complete(storage: Storage, lease: Lease) -> None:
    storage.run_step(lambda session: complete_generation(session, lease.generation_id, 18.5, 5_000, lease=lease))


def states(generation: Generation) -> tuple[Any, ...]:
    return generation.status, generation.progress, generation.current_step


class TestWaiting:
    def test_it_returns_the_result_when_the_job_ends(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        worker = threading.Timer(0.1, lambda: Worker(lambda job: Result(7), storage=other).run(until_empty=True))
        worker.start()
        generation = wait_for_generation(generation_id)
        worker.join()
        assert generation.is_complete
        assert generation.file_size_bytes == 7

    @pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
    def test_a_job_that_has_ended_before_is_returned_at_once(self, db: Storage, end: str) -> None:
        with db.session() as session:
            generation_id = a_generation(session).id
            if end == "completed":
                complete_generation(session, generation_id, 1.0, 5)
            elif end == "failed":
                fail_generation(session, generation_id, "no GPU")
            else:
                cancel_generation(session, generation_id)
        assert wait_for_generation(generation_id).status == end
        assert wake_up_threads() == 0

    def test_an_unknown_id_is_an_error(self, db: Storage) -> None:
        for call in (wait_for_generation, watch_generation):
            with pytest.raises(LookupError, match="there is no generation unknown"):
                call("unknown")

    def test_a_job_that_does_not_end_in_time_is_an_error(self, db: Storage) -> None:
        generation_id = create(db)
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError, match=generation_id):
                wait_for_generation(generation_id, timeout=timeout)

    @pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
    def test_a_bad_timeout_is_refused(self, db: Storage, timeout: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="timeout"):
            wait_for_generation(create(db), timeout=timeout)
        with pytest.raises((ValueError, TypeError), match="timeout"):
            asyncio.run(aio.wait_for_generation(create(db), timeout=timeout))

    def test_a_deleted_job_is_an_error(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        delete = threading.Timer(0.1, lambda: other.run_step(lambda session: delete_generation(session, generation_id)))
        delete.start()
        with pytest.raises(LookupError, match="was deleted"):
            wait_for_generation(generation_id)
        delete.join()

    def test_a_job_that_ends_while_the_watch_begins_is_not_missed(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After the first read and before the reader knows of the watch."""
        generation_id = create(db)
        subscribe = db.commit_wakeups.subscribe

        def cancel_first(call: Callable[[], None]) -> Any:
            other.run_step(lambda session: cancel_generation(session, generation_id))
            return subscribe(call)

        monkeypatch.setattr(db.commit_wakeups, "subscribe", cancel_first)
        assert wait_for_generation(generation_id).is_cancelled

    def test_control_c_ends_the_wait(self, db: Storage, database_url: str) -> None:
        generation_id = create(db)
        code = (
            "import sys; from services.storage import init_db, wait_for_generation; init_db(sys.argv[1])\n"
            "print('ready', flush=True); wait_for_generation(sys.argv[2])"
        )
        arguments = [sys.executable, "-c", code, database_url, generation_id]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.stderr.read().splitlines()[-1] == "KeyboardInterrupt"


class TestWatching:
    def test_every_change_is_seen_in_order(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        watch = watch_generation(generation_id)
        seen = [states(next(watch))]
        lease = claim(other)
        seen.append(states(next(watch)))
        for progress, step in ((0.5, "sampling"), (0.9, "encoding")):
            other.run_step(partial(heartbeat_generation, lease=lease, progress=progress, current_step=step))
            seen.append(states(next(watch)))
        complete(other, lease)
        last = next(watch)
        assert seen == [
            ("pending", None, None),
            ("processing", None, None),
            ("processing", 0.5, "sampling"),
            ("processing", 0.9, "encoding"),
        ]
        assert last.is_complete
        assert last.file_size_bytes == 5_000
        assert list(watch) == []

    def test_a_retry_is_a_change_and_not_the_end(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        watch = watch_generation(generation_id)
        next(watch)
        lease = claim(other)
        assert next(watch).is_processing
        other.run_step(lambda session: fail_generation(session, generation_id, "no GPU", lease=lease))
        retried = next(watch)
        assert (retried.status, retried.error_message) == ("pending", "no GPU")
        watch.close()

    def test_heartbeats_and_marks_are_no_changes(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        lease = claim(other)
        watch = watch_generation(generation_id)
        assert next(watch).is_processing
        other.run_step(partial(heartbeat_generation, lease=lease))
        other.run_step(lambda session: set_favorite(session, generation_id))
        complete(other, lease)
        assert next(watch).is_complete

    def test_deletion_ends_it(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        watch = watch_generation(generation_id)
        next(watch)
        other.run_step(lambda session: delete_generation(session, generation_id))
        assert list(watch) == []

    def test_states_are_detached_objects_of_their_own(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        watches = [watch_generation(generation_id) for _ in range(2)]
        for watch in watches:
            next(watch)
        ready = [threading.Event() for _ in watches]
        found: list[Generation] = []

        def take(number: int) -> None:
            ready[number].set()
            found.append(next(watches[number]))

        threads = [threading.Thread(target=take, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for one in ready:
            one.wait()
        claim(other)
        for thread in threads:
            thread.join()
        first, second = found
        assert first is not second
        assert first.to_dict() == second.to_dict()
        with db.session() as session:
            session.add(first)
            first.is_favorite = True
        for watch in watches:
            watch.close()

    def test_an_iterator_that_was_not_begun_leaves_nothing(self, db: Storage) -> None:
        watch_generation(create(db))
        assert wake_up_threads() == 0

    def test_errors_of_the_database_reach_the_watcher(
        self, db: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = watch_generation(create(db))
        next(watch)

        def fail(*arguments: Any, **options: Any) -> Any:
            raise StorageError("no disk")

        monkeypatch.setattr(db, "run_step", fail)
        with pytest.raises(StorageError, match="no disk"):
            next(watch)

    def test_a_storage_that_is_disposed_of_ends_its_watches(self, db: Storage) -> None:
        generation_id = create(db)
        watch = watch_generation(generation_id)
        next(watch)
        timer = threading.Timer(0.2, db.dispose)
        timer.start()
        with pytest.raises(StorageError, match="disposed of"):
            next(watch)
        timer.join()
        again = watch_generation(generation_id)
        assert next(again).is_pending
        again.close()

    def test_a_child_refuses_the_watch_of_its_parent_and_can_begin_one(self, db: Storage) -> None:
        generation_id = create(db)
        watch = watch_generation(generation_id)
        next(watch)
        begun = threading.Thread(target=lambda: seen.append(next(watch)))
        seen: list[Generation] = []
        begun.start()
        wait_until(lambda: _readers)

        def in_child(child: Child) -> None:
            with pytest.raises(ValueError, match="already executing"):
                next(watch)
            mine = watch_generation(generation_id)
            assert next(mine).is_pending
            db.run_step(lambda session: cancel_generation(session, generation_id))
            assert next(mine).is_cancelled

        Child(in_child).finish()
        begun.join()
        assert seen[0].is_cancelled

    def test_a_hundred_watchers_cost_the_reads_of_one(self, db: Storage, other: Storage) -> None:
        ids = [create(db) for _ in range(10)]
        watches = [watch_generation(ids[number % 10]) for number in range(100)]
        for watch in watches:
            next(watch)
        threads = [threading.Thread(target=lambda watch=watch: next(watch)) for watch in watches]
        for thread in threads:
            thread.start()
        (reader,) = _until(lambda: list(_readers.values()))
        wait_until(lambda: len(reader._watches) == 100)
        time.sleep(0.2)
        reads: list[str] = []
        event.listen(db.engine, "before_cursor_execute", lambda *arguments: reads.append(arguments[2]))
        with other.session() as session:
            for generation_id in ids:
                cancel_generation(session, generation_id)
        for thread in threads:
            thread.join()
        assert len(reads) <= 10, len(reads)
        for watch in watches:
            watch.close()


def _until(find: Callable[[], list[Any]]) -> list[Any]:
    wait_until(find)
    return find()


class TestAsync:
    def test_a_watch_sees_what_happens(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)

        async def watch() -> list[str]:
            seen = []
            async for generation in aio.watch_generation(generation_id):
                seen.append(generation.status)
                if generation.is_pending:
                    lease = await asyncio.to_thread(claim, other)
                elif generation.is_processing:
                    await asyncio.to_thread(complete, other, lease)
            return seen

        assert asyncio.run(watch()) == ["pending", "processing", "completed"]

    def test_a_wait_returns_the_result_or_raises(self, db: Storage, other: Storage) -> None:
        generation_id, slow, gone = create(db), create(db), create(db)

        async def wait() -> None:
            waiting = asyncio.create_task(aio.wait_for_generation(generation_id, timeout=60))
            deleted = asyncio.create_task(aio.wait_for_generation(gone))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(other.run_step, lambda session: cancel_generation(session, generation_id))
            await asyncio.to_thread(other.run_step, lambda session: delete_generation(session, gone))
            assert (await waiting).is_cancelled
            assert (await aio.wait_for_generation(generation_id)).is_cancelled
            with pytest.raises(LookupError, match="was deleted"):
                await deleted
            with pytest.raises(LookupError, match="there is no generation"):
                await aio.wait_for_generation("unknown")
            with pytest.raises(TimeoutError):
                await aio.wait_for_generation(slow, timeout=0.05)

        asyncio.run(wait())

    def test_a_transaction_is_committed_or_rolled_back(self, db: Storage) -> None:
        async def work() -> None:
            created = await aio.run_in_transaction(a_generation)
            assert created.is_pending
            assert await aio.run_in_transaction(count_generations, read_only=True, storage=db) == 1
            with pytest.raises(StorageError, match="read-only"):
                await aio.run_in_transaction(a_generation, read_only=True)
            with pytest.raises(ZeroDivisionError):
                await aio.run_in_transaction(lambda session: a_generation(session) and 1 // 0)
            assert await aio.run_in_transaction(count_generations) == 1

        asyncio.run(work())

    def test_a_cancelled_transaction_is_rolled_back_before_the_caller_continues(self, db: Storage) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def slow(session: Any) -> None:
            a_generation(session)
            begun.set()
            go_on.wait()

        async def work() -> None:
            task = asyncio.create_task(aio.run_in_transaction(slow))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert db.engine.pool.checkedout() == 0
            assert await aio.run_in_transaction(count_generations) == 0

        asyncio.run(work())

    def test_a_call_that_is_cancelled_before_its_turn_never_begins(self, db: Storage) -> None:
        go_on = threading.Event()
        begun: list[int] = []

        def wait(number: int, session: Any) -> None:
            begun.append(number)
            go_on.wait()

        async def work() -> None:
            running = [asyncio.create_task(aio.run_in_transaction(partial(wait, number))) for number in range(4)]
            await asyncio.to_thread(wait_until, lambda: len(begun) == 4)
            queued = asyncio.create_task(aio.run_in_transaction(partial(wait, 4)))
            await asyncio.sleep(0.01)
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued
            go_on.set()
            await asyncio.gather(*running)

        asyncio.run(work())
        assert sorted(begun) == [0, 1, 2, 3]

    def test_a_cancelled_watch_leaves_nothing(self, db: Storage) -> None:
        generation_id = create(db)

        async def work() -> None:
            tasks = [asyncio.create_task(aio.wait_for_generation(generation_id)) for _ in range(20)]
            while not _readers or len(next(iter(_readers.values()))._watches) < 20:
                await asyncio.sleep(0.01)
            threads = threading.active_count()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert not _readers
            assert threading.active_count() <= threads
            while db.engine.pool.checkedout():  # the reader ends the query that it has begun
                await asyncio.sleep(0.01)

        asyncio.run(work())

    def test_a_loop_that_ends_without_closing_its_watch_harms_nobody(self, db: Storage, other: Storage) -> None:
        generation_id = create(db)
        loop = asyncio.new_event_loop()
        watch = aio.watch_generation(generation_id)

        async def take() -> None:
            await anext(watch)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(anext(watch))), 0.2)

        loop.run_until_complete(take())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    def test_many_event_loops_one_after_the_other(self, db: Storage) -> None:
        for _ in range(3):
            assert asyncio.run(aio.run_in_transaction(count_generations)) == 0
        assert len(aio._limits) <= 1


def test_the_functions_for_async_callers_have_the_parameters_of_the_others() -> None:
    import inspect

    for name, function in (("wait_for_generation", wait_for_generation), ("watch_generation", watch_generation)):
        assert inspect.signature(getattr(aio, name)).parameters == inspect.signature(function).parameters
