"""The loop around a handler, with real databases, threads, processes and signals."""

import asyncio
import hashlib
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.storage import (
    DoNotRetry,
    Generation,
    Job,
    NotInitializedError,
    Result,
    RetryPolicy,
    Storage,
    Worker,
    cancel_generation,
    claim_generation,
    create_generations,
    get_attempts,
    get_generation,
    get_session,
    pause_queue,
    reclaim_generations,
)
from services.storage.worker import WorkerInterrupted
from tests.support.factories import a_generation, a_request
from tests.support.stored_times import ago, ahead, expire_lease


class Interruption(BaseException):
    """What a framework may raise through a handler."""


AT_ONCE = RetryPolicy(base_seconds=0, cap_seconds=0)


def submit(count: int = 1, **changes: Any) -> list[str]:
    with get_session() as session:
        return [row.id for row in create_generations(session, [a_request(**changes) for _ in range(count)])]


def stored(generation_id: str) -> Generation:
    with get_session() as session:
        generation = get_generation(session, generation_id)
        assert generation is not None
        return generation


def outcomes(generation_id: str) -> list[str]:
    with get_session() as session:
        return [attempt.outcome for attempt in get_attempts(session, generation_id)]


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait until `condition` holds; pytest's timeout limits the wait."""
    while not condition():
        time.sleep(0.01)


def work(handler: Callable[[Job], Result | None], **options: Any) -> int:
    """Run a worker until nothing is due."""
    return Worker(handler, retry_policy=AT_ONCE, **options).run(until_empty=True)


@pytest.mark.usefixtures("db")
class TestJobs:
    def test_every_due_generation_is_rendered_and_its_result_stored(self) -> None:
        ids = submit(3)
        later = submit(scheduled_at=ahead(hours=1))[0]
        seen = []

        def render(job: Job) -> Result:
            seen.append(job.generation.id)
            return Result(5_000_000, {"bpm": 140}, generation_time=18.5)

        assert work(render) == 3
        assert seen == ids
        for generation_id in ids:
            generation = stored(generation_id)
            assert generation.is_complete
            assert (generation.file_size_bytes, generation.generation_time_seconds) == (5_000_000, 18.5)
            assert generation.get_metadata() == {"bpm": 140}
        assert stored(later).is_pending

    def test_the_result_of_a_file_has_its_size_hash_and_format(self, tmp_path: Path) -> None:
        (generation_id,) = submit()
        path = tmp_path / "track.wav"
        path.write_bytes(b"RIFF\x24\0\0\0WAVEfmt " + bytes(1_000))
        assert work(lambda job: Result.from_file(path, metadata={"bpm": 84})) == 1
        generation = stored(generation_id)
        assert generation.file_size_bytes == path.stat().st_size
        assert generation.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert generation.file_format == "wav"
        assert generation.file_missing_since is None

    def test_without_a_result_the_time_is_measured_and_the_size_unknown(self) -> None:
        (generation_id,) = submit()
        assert work(lambda job: None) == 1
        generation = stored(generation_id)
        assert generation.is_complete
        assert generation.file_size_bytes is None
        assert generation.generation_time_seconds is not None

    def test_the_worker_stops_after_max_jobs(self) -> None:
        ids = submit(3)
        assert Worker(lambda job: None).run(max_jobs=2) == 2
        assert [stored(one).status for one in ids] == ["completed", "completed", "pending"]
        assert Worker(lambda job: None).run(max_jobs=0) == 0

    def test_a_job_has_its_lease_and_worker(self) -> None:
        submit()
        jobs: list[Job] = []

        def render(job: Job) -> None:
            jobs.append(job)
            assert stored(job.generation.id).lease == job.lease
            assert not job.cancelled

        work(render, worker_id="gpu-0")
        assert jobs[0].lease.worker_id == "gpu-0"

    def test_a_paused_queue_is_empty_for_a_worker(self) -> None:
        submit()
        with get_session() as session:
            pause_queue(session)
        assert work(lambda job: None) == 0

    def test_only_the_named_models_are_claimed_by_the_worker(self) -> None:
        large, small = submit(model_name="large")[0], submit(model_name="small")[0]
        assert work(lambda job: None, model_names=("small",)) == 1
        assert stored(large).is_pending
        assert stored(small).is_complete

    def test_the_model_of_the_last_job_is_preferred_with_prefer_warm(self) -> None:
        for model in ("a", "b", "a", "b"):
            submit(model_name=model)
        rendered: list[str] = []
        work(lambda job: rendered.append(job.generation.model_name), prefer_warm=True)
        assert rendered == ["a", "a", "b", "b"]

    def test_expired_leases_of_other_workers_are_reclaimed(self) -> None:
        (generation_id,) = submit()
        with get_session() as session:
            claim_generation(session, "dead")
        expire_lease(generation_id)
        assert work(lambda job: None) == 1
        assert outcomes(generation_id) == ["lost", "completed"]

    def test_a_database_without_tables_is_reported_at_once(self, tmp_path: Path) -> None:
        storage = Storage(f"sqlite:///{tmp_path / 'none.db'}")
        with pytest.raises(NotInitializedError):
            Worker(lambda job: None, storage=storage).run()

    @pytest.mark.parametrize(
        "options",
        [
            {"worker_id": ""},
            {"model_names": "one"},
            {"model_names": [1]},
            {"lease_seconds": 0},
            {"poll_seconds": -1},
            {"grace_seconds": "long"},
        ],
    )
    def test_a_bad_argument_is_named(self, options: dict[str, Any]) -> None:
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            Worker(lambda job: None, **options)
        with pytest.raises(TypeError, match="handler"):
            Worker(None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="max_jobs"):
            Worker(lambda job: None).run(max_jobs=-1)


@pytest.mark.usefixtures("db")
class TestFailures:
    def test_a_job_that_raises_is_retried_until_no_attempt_is_left(self) -> None:
        (generation_id,) = submit(max_attempts=3)

        def render(job: Job) -> None:
            raise RuntimeError("CUDA out of memory")

        assert work(render) == 3
        generation = stored(generation_id)
        assert generation.is_failed
        assert generation.error_message == "RuntimeError: CUDA out of memory"
        assert outcomes(generation_id) == ["failed"] * 3

    def test_a_job_that_succeeds_after_a_retry_is_completed(self) -> None:
        (generation_id,) = submit()

        def render(job: Job) -> None:
            if job.generation.attempt == 1:
                raise RuntimeError("once")

        assert work(render) == 2
        assert stored(generation_id).is_complete
        assert outcomes(generation_id) == ["failed", "completed"]

    def test_the_retry_waits_for_the_delay_of_its_policy(self) -> None:
        (generation_id,) = submit()

        def render(job: Job) -> None:
            raise RuntimeError

        assert Worker(render, retry_policy=RetryPolicy(600, cap_seconds=600)).run(until_empty=True) == 1
        assert stored(generation_id).scheduled_at > ahead(minutes=4)

    def test_do_not_retry_ends_the_job(self) -> None:
        first, second = submit(2)

        def render(job: Job) -> None:
            raise DoNotRetry("unknown model") if job.generation.id == first else DoNotRetry

        assert work(render) == 2
        assert stored(first).error_message == "unknown model"
        assert stored(second).error_message == "Another attempt would end the same way."
        assert outcomes(second) == ["failed"]

    @pytest.mark.parametrize(
        "result", ["a path", Result(-1), Result(1, {"bpm": float("nan")}), Result(1, generation_time=-1.0)]
    )
    def test_a_result_that_cannot_be_stored_fails_the_attempt(self, result: Any) -> None:
        (generation_id,) = submit(max_attempts=3)
        assert work(lambda job: result) == 1
        generation = stored(generation_id)
        assert generation.is_failed
        assert "Error: " in str(generation.error_message)
        assert outcomes(generation_id) == ["failed"]  # rendered once: the next attempt would end alike

    @pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, GeneratorExit, Interruption])
    def test_a_job_that_ends_its_worker_each_time_fails_and_the_next_one_runs(self, ending: type[Exception]) -> None:
        (bad,), (good,) = submit(max_attempts=2, priority=1), submit()

        def render(job: Job) -> None:
            if job.generation.id == bad:
                raise ending

        for _ in range(2):
            with pytest.raises(ending):
                work(render)
        assert work(render) == 1
        assert stored(bad).is_failed
        assert str(stored(bad).error_message).startswith(ending.__name__)
        assert outcomes(bad) == ["failed", "failed"]
        assert stored(good).is_complete

    @pytest.mark.parametrize("ending", [asyncio.CancelledError, WorkerInterrupted])
    def test_an_interruption_that_nobody_asked_for_fails_the_attempt(self, ending: type[BaseException]) -> None:
        bad, good = submit(2, max_attempts=2)

        def render(job: Job) -> None:
            if job.generation.id == bad:
                raise ending

        assert work(render) == 3
        assert stored(bad).is_failed
        assert outcomes(bad) == ["failed", "failed"]
        assert stored(good).is_complete

    @pytest.mark.parametrize("ending", [asyncio.CancelledError, SystemExit, WorkerInterrupted])
    def test_an_interruption_of_a_stopping_worker_releases_its_job(self, ending: type[BaseException]) -> None:
        (generation_id,) = submit()

        def render(job: Job) -> None:
            worker.stop()
            raise ending

        worker = Worker(render)
        with pytest.raises(SystemExit) if ending is SystemExit else nullcontext():
            worker.run()
        assert stored(generation_id).is_pending
        assert outcomes(generation_id) == ["released"]

    @pytest.mark.parametrize("base", [RuntimeError, DoNotRetry, SystemExit, asyncio.CancelledError, OSError])
    def test_an_error_whose_text_cannot_be_read_is_an_error_like_others(self, base: type[BaseException]) -> None:
        class Wordless(base):  # type: ignore[misc, valid-type]
            def __str__(self) -> str:
                raise RecursionError

            __repr__ = __str__

        bad, good = submit(2, max_attempts=1)

        def render(job: Job) -> None:
            if job.generation.id == bad:
                raise Wordless

        with pytest.raises(Wordless) if base is SystemExit else nullcontext():
            work(render)
        work(render)
        assert stored(bad).error_message == "Wordless whose text cannot be read"
        assert stored(good).is_complete


@pytest.mark.usefixtures("db")
class TestHeartbeatThread:
    def test_the_lease_of_a_long_job_is_extended(self) -> None:
        (generation_id,) = submit()
        expiries = set()

        def render(job: Job) -> None:
            wait_until(lambda: expiries.add(stored(generation_id).lease_expires_at) or len(expiries) == 4)

        assert work(render, lease_seconds=0.4) == 1
        assert stored(generation_id).is_complete
        assert outcomes(generation_id) == ["completed"]

    def test_the_first_progress_is_stored_at_once(self) -> None:
        (generation_id,) = submit()

        def render(job: Job) -> None:
            for percent in range(50):
                job.progress(percent / 100, "sampling")
            wait_until(lambda: stored(generation_id).progress == 0.49)
            assert stored(generation_id).current_step == "sampling"
            with pytest.raises(ValueError, match="progress"):
                job.progress(1.1)

        assert work(render) == 1
        assert stored(generation_id).is_complete

    def test_a_cancelled_job_is_told_and_its_result_is_dropped(self) -> None:
        (generation_id,) = submit()

        def render(job: Job) -> Result:
            with get_session() as session:
                cancel_generation(session, generation_id)
            wait_until(lambda: job.cancelled)
            return Result(1)

        assert work(render, lease_seconds=0.4) == 1
        assert stored(generation_id).is_cancelled
        assert stored(generation_id).file_size_bytes is None
        assert outcomes(generation_id) == ["cancelled"]

    @pytest.mark.parametrize("raises", [False, True])
    def test_a_lost_lease_drops_the_result_and_the_worker_continues(self, raises: bool) -> None:
        (lost,) = submit(priority=1)
        (next_one,) = submit()

        def render(job: Job) -> Result:
            if job.generation.id == lost and job.generation.attempt == 1:
                with get_session() as session:
                    held = session.get_one(Generation, lost)
                    held.lease_expires_at = ago(seconds=1)
                    session.flush()
                    assert [row.id for row in reclaim_generations(session)] == [lost]
                    assert claim_generation(session, "other", lease_seconds=600) is held
                wait_until(lambda: job.cancelled)
                if raises:
                    raise RuntimeError("interrupted by itself")
            return Result(1)

        assert work(render, lease_seconds=0.4) == 2
        assert stored(next_one).is_complete
        generation = stored(lost)
        assert generation.is_processing
        assert generation.worker_id == "other"
        assert outcomes(lost) == ["lost"]


class _OnWarning(logging.Handler):
    """Calls a function when a warning contains a text."""

    def __init__(self, word: str, then: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self.word, self.then = word, then

    def emit(self, record: logging.LogRecord) -> None:
        if self.word in record.getMessage():
            self.then()


@pytest.fixture
def short_timeouts(database_url: str) -> Iterator[Storage]:
    """Return a database whose sessions do not wait for locks."""
    storage = Storage(database_url, busy_timeout=0.01, lock_timeout=0.01)
    with storage.session() as session:
        a_generation(session, generation_id="one")
    yield storage
    storage.dispose()


class TestDatabaseErrors:
    @pytest.mark.parametrize("when", ["storing", "polling for work", "heartbeat failed"])
    def test_the_worker_retries_while_the_database_is_locked(self, short_timeouts: Storage, when: str) -> None:
        blocker = short_timeouts.engine.connect()
        unlocked = threading.Event()

        def lock() -> None:
            blocker.execute(text("UPDATE generations SET file_path = file_path"))

        def unlock() -> None:
            blocker.rollback()
            unlocked.set()

        def render(job: Job) -> Result:
            if when != "polling for work":
                lock()
            if when == "heartbeat failed":
                assert unlocked.wait()
            return Result(1)

        warning = _OnWarning(when, unlock)
        logging.getLogger("services.storage.worker").addHandler(warning)
        try:
            if when == "polling for work":
                if short_timeouts.backend.name == "postgresql":
                    # Claims skip locked rows on PostgreSQL, so lock the table.
                    blocker.execute(text("LOCK TABLE generations"))
                lock()
            assert Worker(render, storage=short_timeouts, lease_seconds=0.8).run(max_jobs=1) == 1
        finally:
            logging.getLogger("services.storage.worker").removeHandler(warning)
            blocker.close()
        assert unlocked.is_set()
        with short_timeouts.session() as session:
            assert session.get_one(Generation, "one").is_complete
            assert [attempt.outcome for attempt in get_attempts(session, "one")] == ["completed"]


class Process:
    """A worker process and the lines it prints."""

    def __init__(self, url: str, mode: str, folder: Path, **options: Any) -> None:
        arguments = [sys.executable, "-m", "tests.support.worker_process", url, mode, str(folder), json.dumps(options)]
        self.popen = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    def line(self) -> list[str]:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().split()

    def close(self) -> int:
        assert self.popen.stdout is not None
        code = self.popen.wait()
        self.popen.stdout.close()
        return code


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_running_job_can_finish_after_a_signal(
        self, db: Storage, database_url: str, tmp_path: Path, number: int
    ) -> None:
        first, second = submit(2)
        process = Process(database_url, "go file", tmp_path)
        assert process.line() == ["started", first, "1"]
        process.popen.send_signal(number)
        (tmp_path / "go").touch()
        assert process.line() == ["ended", "1"]
        assert process.close() == 0
        assert stored(first).is_complete
        assert stored(second).is_pending

    def test_a_job_that_exceeds_the_grace_period_is_released(
        self, db: Storage, database_url: str, tmp_path: Path
    ) -> None:
        (generation_id,) = submit(max_attempts=1)
        process = Process(database_url, "never", tmp_path, grace_seconds=0.2)
        assert process.line() == ["started", generation_id, "1"]
        process.popen.send_signal(signal.SIGTERM)
        assert process.line() == ["ended", "1"]
        assert process.close() == 0
        assert stored(generation_id).is_pending
        assert stored(generation_id).max_attempts == 2
        assert outcomes(generation_id) == ["released"]

    def test_a_second_signal_releases_the_job_at_once(self, db: Storage, database_url: str, tmp_path: Path) -> None:
        (generation_id,) = submit()
        process = Process(database_url, "never", tmp_path, grace_seconds=600)
        assert process.line() == ["started", generation_id, "1"]
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGINT)  # another signal, because two equal ones may be delivered as one
        assert process.line() == ["ended", "1"]
        assert process.close() == 0
        assert outcomes(generation_id) == ["released"]

    def test_an_idle_worker_exits_after_a_signal(self, db: Storage, database_url: str, tmp_path: Path) -> None:
        (generation_id,) = submit()
        process = Process(database_url, "at once", tmp_path, poll_seconds=600)
        assert process.line() == ["started", generation_id, "1"]
        wait_until(lambda: stored(generation_id).is_complete)
        process.popen.send_signal(signal.SIGTERM)
        assert process.line() == ["ended", "1"]
        assert process.close() == 0

    @pytest.mark.usefixtures("db")
    def test_the_previous_signal_handlers_are_restored(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.getsignal(number) for number in numbers]
        submit()
        during = []
        work(lambda job: during.extend(signal.getsignal(number) for number in numbers))
        assert [signal.getsignal(number) for number in numbers] == before
        assert during != before

    @pytest.mark.usefixtures("db")
    def test_a_worker_in_another_thread_is_stopped_by_stop(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        (generation_id,) = submit()
        began = threading.Event()

        def render(job: Job) -> Result:
            began.set()
            wait_until(lambda: job.cancelled)
            return Result(1)

        worker = Worker(render, grace_seconds=0.1)
        thread = threading.Thread(target=worker.run)
        thread.start()
        began.wait()
        assert signal.getsignal(signal.SIGTERM) == before
        worker.stop()
        thread.join()
        assert stored(generation_id).is_pending
        assert outcomes(generation_id) == ["released"]


class TestCrashes:
    def test_a_job_that_kills_its_worker_in_each_attempt_fails(
        self, db: Storage, database_url: str, tmp_path: Path
    ) -> None:
        (generation_id,) = submit(max_attempts=3)
        for attempt in (1, 2, 3):
            process = Process(database_url, "kill", tmp_path)
            assert process.line() == ["started", generation_id, str(attempt)]
            assert process.close() == -signal.SIGKILL
            expire_lease(generation_id)
        assert work(lambda job: None) == 0
        generation = stored(generation_id)
        assert generation.is_failed
        assert generation.error_message == "worker lost in attempt 3 of 3"
        with get_session() as session:
            attempts = get_attempts(session, generation_id)
        assert [(row.number, row.outcome) for row in attempts] == [(1, "lost"), (2, "lost"), (3, "lost")]
        assert len({row.worker_id for row in attempts}) == 3

    def test_a_worker_that_continues_after_its_lease_expired_cannot_overwrite_the_result(
        self, db: Storage, database_url: str, tmp_path: Path
    ) -> None:
        (generation_id,) = submit()
        process = Process(database_url, "stop", tmp_path, until_empty=True)
        assert process.line() == ["started", generation_id, "1"]
        wait_until(lambda: Path(f"/proc/{process.popen.pid}/stat").read_text().split()[2] == "T")
        expire_lease(generation_id)
        assert work(lambda job: Result(2_000)) == 1
        result = stored(generation_id).to_dict()
        process.popen.send_signal(signal.SIGCONT)
        assert process.line() == ["ended", "1"]
        assert process.close() == 0
        assert stored(generation_id).to_dict() == result
        assert outcomes(generation_id) == ["lost", "completed"]


class TestLog:
    """What the logger services.storage.worker says at INFO about each job; never the prompt."""

    SECRET = "a prompt that must not be logged"

    @pytest.fixture
    def messages(self, db: Storage, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
        def run(handler: Any, *, count: int = 1, **options: Any) -> list[str]:
            (generation_id,) = submit(prompt=self.SECRET, max_attempts=2)
            with caplog.at_level(logging.INFO, logger="services.storage.worker"):
                Worker(handler, **options).run(max_jobs=count)
            assert self.SECRET not in caplog.text
            return [
                record.message.replace(generation_id, "ID") for record in caplog.records if record.levelname == "INFO"
            ]

        return run

    def test_a_job_is_claimed_and_finished_in_seconds(self, messages: Callable[..., list[str]]) -> None:
        assert messages(lambda job: Result(1, generation_time=18.54)) == [
            "generation ID: claimed, attempt 1 of 2, model musicgen-small",
            "generation ID: finished in 18.5 s",
        ]

    def test_a_failed_attempt_says_when_the_next_is_due_and_the_last_one_that_none_is_left(
        self, messages: Callable[..., list[str]]
    ) -> None:
        def fail(job: Job) -> None:
            raise RuntimeError("out of memory")

        said = messages(fail, count=2, retry_policy=AT_ONCE)
        assert said[0::2] == [f"generation ID: claimed, attempt {n} of 2, model musicgen-small" for n in (1, 2)]
        assert re.fullmatch(r"generation ID: pending again, due at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", said[1])
        assert said[3] == "generation ID: failed after attempt 2, and is not tried again"

    def test_a_job_that_must_not_be_retried_failed_after_its_first_attempt(
        self, messages: Callable[..., list[str]]
    ) -> None:
        def refuse(job: Job) -> None:
            raise DoNotRetry("unusable prompt")

        assert messages(refuse)[-1] == "generation ID: failed after attempt 1, and is not tried again"

    def test_a_cancelled_job_is_said_to_be_cancelled(self, messages: Callable[..., list[str]]) -> None:
        def cancel(job: Job) -> Result:
            with get_session() as session:
                cancel_generation(session, job.lease.generation_id)
            return Result(1)

        assert messages(cancel)[-1] == "generation ID: cancelled"
