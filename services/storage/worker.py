"""The loop around a handler: claim, render, finish, again and again. No SQL, and no rendering of its own.

The handler runs in this process, in the thread that called run(). Heartbeats come from a thread with sessions of its
own, so a handler that computes for minutes keeps its lease; and its result is stored only while that lease is held.
"""

import logging
import math
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .engine import Storage, get_storage
from .errors import LeaseLostError, StorageError
from .leases import (
    RETRY,
    complete_generation,
    fail_generation,
    heartbeat_generation,
    reclaim_generations,
    release_generation,
)
from .models import Generation, Lease
from .queue import claim_generation, has_due, new_worker_id
from .retry import RetryPolicy
from .validation import validate_count, validate_generation_field, validate_name, validate_seconds

BEATS_PER_LEASE = 4
REPORT_SECONDS = 1.0  # between two heartbeats that only bring progress
BEAT_SECONDS = 15.0  # between two heartbeats, and between two looks for expired leases, at most
TROUBLE = (StorageError, SQLAlchemyError, OSError)
TROUBLE_WAIT = RetryPolicy(base_seconds=0.5, cap_seconds=30.0)

log = logging.getLogger(__name__)


class DoNotRetry(Exception):  # noqa: N818 - said by a handler, like StopIteration, not an error of ours
    """Another attempt would end the same way."""


class WorkerInterrupted(BaseException):
    """The worker stops and the time that its running job had is over."""


@dataclass(frozen=True)
class Result:
    """What a handler made: the size of the file, metadata to lay over what is stored, and its own measure of time."""

    file_size_bytes: int | None
    metadata: Mapping[str, Any] | None = None
    generation_time: float | None = None


class Job:
    """One attempt at a generation, as its handler sees it."""

    def __init__(self, generation: Generation, lease: Lease, report: Callable[[float, str | None], None]) -> None:
        self.generation = generation
        self.lease = lease
        self._report = report
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more, because of a user or a lost lease; then the handler may return."""
        return self._cancelled

    def progress(self, fraction: float, step: str | None = None) -> None:
        """Say how far the work is (a fraction of 1) and at what step; it is written once a second at most.

        Raises ValueError or TypeError for a bad value.
        """
        fraction = validate_generation_field("progress", fraction)
        self._report(fraction, validate_generation_field("current_step", step))


class Worker:
    """Claims generations and has `handler(job)` render them: `Worker(handler).run()`.

    The handler returns a Result, or None when it does not know the size; raising fails the attempt, which is tried
    again as `retry_policy` says, and raising DoNotRetry ends the job. Only `model_names` are claimed when given, and
    with `prefer_warm` the model of the last job goes ahead, see claim_generation(). An idle worker looks for work every
    `poll_seconds` or so. Told to stop, it gives a running job `grace_seconds` to finish and then releases it.
    Raises ValueError or TypeError for a bad argument.
    """

    def __init__(
        self,
        handler: Callable[[Job], Result | None],
        *,
        worker_id: str | None = None,
        model_names: Iterable[str] | None = None,
        prefer_warm: bool = False,
        lease_seconds: float = 60.0,
        poll_seconds: float = 0.5,
        grace_seconds: float = 30.0,
        retry_policy: RetryPolicy = RETRY,
        storage: Storage | None = None,
    ) -> None:
        if not callable(handler):
            raise TypeError("handler must be a function of a Job")
        if isinstance(model_names, str):
            raise TypeError("model_names must be several names, not text: put the one name into a list")
        self.handler = handler
        self.worker_id = new_worker_id() if worker_id is None else validate_name("worker_id", worker_id)
        self.model_names = None if model_names is None else [validate_name("model_names", name) for name in model_names]
        self.prefer_warm = prefer_warm
        self.lease_seconds = validate_seconds("lease_seconds", lease_seconds)
        self.beat_seconds = min(self.lease_seconds / BEATS_PER_LEASE, BEAT_SECONDS)
        self.poll_seconds = validate_seconds("poll_seconds", poll_seconds)
        self.grace_seconds = validate_seconds("grace_seconds", grace_seconds)
        self.retry_policy = retry_policy
        self._storage = storage
        self._warm_model: str | None = None
        self._stop_at: float | None = None
        self._heart: _Heart | None = None
        self._may_interrupt = False
        # A SimpleQueue, because a signal handler may put into it whatever the thread it interrupts is doing.
        self._alarm: SimpleQueue[None] = SimpleQueue()

    def run(self, *, max_jobs: int | None = None, until_empty: bool = False) -> int:
        """Work until told to stop, until `max_jobs` jobs are done, or `until_empty` until nothing is due.

        In the main thread SIGTERM and SIGINT tell it to stop; a second one interrupts the running job at once. Trouble
        with the database is logged and waited out. Returns the number of jobs. Raises NotInitializedError,
        SchemaOutdatedError or SchemaTooNewError when the schema is not this library's.
        """
        if max_jobs is not None:
            max_jobs = validate_count("max_jobs", max_jobs)
        storage = self._storage or get_storage()
        storage.require_schema()
        with self._signals() as interrupt:
            try:
                return self._loop(storage, math.inf if max_jobs is None else max_jobs, until_empty, interrupt)
            finally:
                self._stop_at = None

    def stop(self) -> None:
        """Tell the worker to stop, as SIGTERM does: the running job has `grace_seconds` to finish. From any thread."""
        if self._stop_at is None:
            self._stop_at = monotonic() + self.grace_seconds
        self._alarm.put(None)
        if self._heart is not None:
            self._heart.wake()

    @contextmanager
    def _signals(self) -> Iterator[Callable[[], None] | None]:
        """Listen to SIGTERM and SIGINT meanwhile; yield what interrupts the handler, if this thread can be."""
        if threading.current_thread() is not threading.main_thread():
            yield None
            return
        main = threading.get_ident()
        previous = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield lambda: signal.pthread_kill(main, signal.SIGTERM)
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: Any) -> None:
        if self._stop_at is not None and self._may_interrupt:
            self._may_interrupt = False
            raise WorkerInterrupted
        self.stop()

    def _loop(self, storage: Storage, max_jobs: float, until_empty: bool, interrupt: Callable[[], None] | None) -> int:
        idle = RetryPolicy(base_seconds=self.poll_seconds / 4, cap_seconds=self.poll_seconds * 1.5)
        jobs = looks = troubles = 0
        reclaim_at = -math.inf
        while self._stop_at is None and jobs < max_jobs:
            try:
                if monotonic() >= reclaim_at:
                    storage.run_in_transaction(reclaim_generations)
                    reclaim_at = monotonic() + self.beat_seconds * random.uniform(0.5, 1.0)
                generation = storage.run_in_transaction(self._claim)
                if generation is None and until_empty and not storage.run_in_transaction(self._has_due, read_only=True):
                    break
            except TROUBLE as error:
                troubles += 1
                self._sit_out(troubles, "looking for work", error)
                continue
            troubles = 0
            if generation is None:
                looks += 1
                self._wait(idle.delay(looks))
                continue
            looks = 0
            self._work(storage, generation, interrupt)
            jobs += 1
        return jobs

    def _claim(self, session: Session) -> Generation | None:
        return claim_generation(
            session,
            self.worker_id,
            model_names=self.model_names,
            prefer_model=self._warm_model,
            lease_seconds=self.lease_seconds,
        )

    def _has_due(self, session: Session) -> bool:
        return has_due(session, self.model_names)

    def _work(self, storage: Storage, generation: Generation, interrupt: Callable[[], None] | None) -> None:
        """Run the handler and store how it ended, with the heart beating until that is stored."""
        assert generation.lease is not None, "a claim gives a lease"
        self._heart = _Heart(self, storage, generation, generation.lease, interrupt)
        self._heart.start()
        try:
            self._finish(storage, self._heart.job, self._handle(storage, self._heart.job))
        finally:
            self._heart.close()
            self._heart = None
        if self.prefer_warm:
            self._warm_model = generation.model_name

    def _handle(self, storage: Storage, job: Job) -> Callable[[Session], Any]:
        """Run the handler and return what is to be stored of it."""
        lease, began = job.lease, monotonic()
        try:
            try:
                self._may_interrupt = True
                result = self.handler(job)
            finally:
                self._may_interrupt = False
            if result is None:
                result = Result(None)
            elif not isinstance(result, Result):
                raise TypeError(f"a handler must return a Result or None, not {type(result).__name__}")
        except DoNotRetry as error:
            return self._failing(lease, str(error) or str(error.__doc__), retry=False)
        except Exception as error:
            log.warning("generation %s: attempt %d failed", lease.generation_id, lease.attempt, exc_info=error)
            return self._failing(lease, f"{type(error).__name__}: {error}", retry=True)
        except WorkerInterrupted:
            return lambda session: release_generation(session, lease)
        except BaseException:
            with suppress(*TROUBLE):
                storage.run_in_transaction(lambda session: release_generation(session, lease))
            raise
        made = result
        seconds = monotonic() - began if made.generation_time is None else made.generation_time
        return lambda session: complete_generation(
            session, lease.generation_id, seconds, made.file_size_bytes, made.metadata, lease=lease
        )

    def _failing(self, lease: Lease, message: str, *, retry: bool) -> Callable[[Session], Any]:
        return lambda session: fail_generation(
            session, lease.generation_id, message, lease=lease, retry=retry, retry_policy=self.retry_policy
        )

    def _finish(self, storage: Storage, job: Job, store: Callable[[Session], Any]) -> None:
        """Store how the job ended, however long the database is in trouble, as long as the lease is held.

        Asked to stop, it tries once more when its time is over; what it cannot store then, another worker does again.
        """
        troubles, failed = 0, False
        while True:
            time_is_over = self._stop_at is not None and monotonic() >= self._stop_at
            try:
                storage.run_in_transaction(store)
                return
            except LeaseLostError:
                job._cancelled = True
                log.warning("generation %s: the lease was lost, its result is dropped", job.lease.generation_id)
                return
            except (ValueError, TypeError) as error:
                if failed:
                    raise
                failed = True
                log.warning("generation %s: its result cannot be stored", job.lease.generation_id)
                store = self._failing(job.lease, f"{type(error).__name__}: {error}", retry=True)
            except TROUBLE as error:
                if time_is_over:
                    log.error("generation %s: not stored, its lease will expire", job.lease.generation_id)
                    return
                troubles += 1
                self._sit_out(troubles, f"storing generation {job.lease.generation_id}", error)

    def _sit_out(self, troubles: int, what: str, error: BaseException) -> None:
        seconds = TROUBLE_WAIT.delay(troubles)
        if self._stop_at is not None:
            seconds = min(seconds, max(0.0, self._stop_at - monotonic()))
        log.warning("%s: %s in %.1f s again (%s)", self.worker_id, what, seconds, error)
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        """Wait, or until told to stop."""
        with suppress(Empty):
            self._alarm.get(timeout=seconds)


class _Heart(threading.Thread):
    """Holds a job's lease from a thread of its own, until closed; ends the job's time when the worker has to stop."""

    def __init__(
        self,
        worker: Worker,
        storage: Storage,
        generation: Generation,
        lease: Lease,
        interrupt: Callable[[], None] | None,
    ) -> None:
        super().__init__(name=f"heart of {lease.generation_id}", daemon=True)
        self.job = Job(generation, lease, self.report)
        self._worker = worker
        self._database = storage
        self._interrupt = interrupt
        self._interval = worker.beat_seconds
        self._beat_at = monotonic() + self._interval
        self._report_at = monotonic() + REPORT_SECONDS
        self._reported: tuple[float, str | None] | None = None
        self._closed = False
        self._alarm: SimpleQueue[None] = SimpleQueue()

    def report(self, fraction: float, step: str | None) -> None:
        first = self._reported is None
        self._reported = (fraction, step)
        if first:
            self.wake()

    def wake(self) -> None:
        self._alarm.put(None)

    def close(self) -> None:
        self._closed = True
        self.wake()
        self.join()

    def run(self) -> None:
        while not self._closed:
            ends_at = math.inf if self._worker._stop_at is None else self._worker._stop_at
            beats_at = self._beat_at if self._reported is None else min(self._beat_at, self._report_at)
            with suppress(Empty):
                self._alarm.get(timeout=max(0.0, min(ends_at, beats_at, monotonic() + self._interval) - monotonic()))
                continue
            if monotonic() >= ends_at:
                self._end()
                return
            if monotonic() >= beats_at:
                self._beat()

    def _beat(self) -> None:
        reported, self._reported = self._reported, None
        fraction, step = reported or (None, None)
        now = monotonic()
        self._report_at = now + REPORT_SECONDS
        try:
            generation = self._database.run_in_transaction(
                lambda session: heartbeat_generation(
                    session,
                    self.job.lease,
                    progress=fraction,
                    current_step=step,
                    lease_seconds=self._worker.lease_seconds,
                ),
                attempts=1,
            )
        except LeaseLostError:
            self.job._cancelled = True
            self._beat_at = self._report_at = math.inf
        except TROUBLE as error:
            log.warning("generation %s: no heartbeat (%s)", self.job.lease.generation_id, error)
            self._reported = self._reported or reported
            self._beat_at = now + min(self._interval, REPORT_SECONDS)
        else:
            self._beat_at = now + self._interval
            if generation.cancel_requested_at is not None:
                self.job._cancelled = True

    def _end(self) -> None:
        """Release the job while its handler still runs, so that others may have it at once; then interrupt it."""
        with suppress(*TROUBLE):
            self._database.run_in_transaction(lambda session: release_generation(session, self.job.lease), attempts=1)
        self.job._cancelled = True
        if self._interrupt is not None and not self._closed:
            self._interrupt()
