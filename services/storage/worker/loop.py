"""The loop around a handler: claim, run the handler, store the result. Holds no SQL and renders nothing.

The handler runs in the thread that called run(); HeartbeatThread keeps the lease meanwhile. A result is stored only
while the lease is held. See ADR 18.
"""

import logging
import math
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final

from sqlalchemy.orm import Session

from ..engine import Storage, get_storage
from ..errors import LeaseLostError
from ..limits import GRACE_SECONDS, LEASE_SECONDS, POLL_SECONDS
from ..models import Generation, Lease
from ..queue import (
    claim_generation,
    complete_generation,
    fail_generation,
    has_due,
    new_worker_id,
    reclaim_generations,
    release_generation,
)
from ..retry import DEFAULT_RETRY_POLICY, RetryPolicy
from ..validation import validate_count, validate_name, validate_seconds
from .heartbeat import TRANSIENT_ERRORS, HeartbeatThread
from .job import DoNotRetry, Job, Result, WorkerInterrupted

HEARTBEATS_PER_LEASE: Final = 4
HEARTBEAT_SECONDS: Final = 15.0  # between two heartbeats, and between two looks for expired leases, at most
BACKOFF: Final = RetryPolicy(base_seconds=0.5, cap_seconds=30.0)

log = logging.getLogger(__name__)


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
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY,
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
        self.heartbeat_seconds = min(self.lease_seconds / HEARTBEATS_PER_LEASE, HEARTBEAT_SECONDS)
        self.poll_seconds = validate_seconds("poll_seconds", poll_seconds)
        self.grace_seconds = validate_seconds("grace_seconds", grace_seconds)
        self.retry_policy = retry_policy
        self._storage = storage
        self._warm_model: str | None = None
        self._stop_at: float | None = None
        self._heartbeat: HeartbeatThread | None = None
        self._may_interrupt = False
        # A SimpleQueue, because a signal handler may put into it whatever the thread it interrupts is doing.
        self._wakeup: SimpleQueue[None] = SimpleQueue()

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
        self._wakeup.put(None)
        if self._heartbeat is not None:
            self._heartbeat.set_deadline(self._stop_at)

    @contextmanager
    def _signals(self) -> Iterator[Callable[[], None] | None]:
        """Listen to SIGTERM and SIGINT meanwhile; yield what interrupts the handler, if this thread can be."""
        if threading.current_thread() is not threading.main_thread():
            yield None
            return
        main = threading.get_ident()
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield lambda: signal.pthread_kill(main, signal.SIGTERM)
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._stop_at is not None and self._may_interrupt:
            self._may_interrupt = False
            raise WorkerInterrupted
        self.stop()

    def _loop(self, storage: Storage, max_jobs: float, until_empty: bool, interrupt: Callable[[], None] | None) -> int:
        idle = RetryPolicy(base_seconds=self.poll_seconds / 4, cap_seconds=self.poll_seconds * 1.5)
        jobs = looks = failures = 0
        reclaim_at = -math.inf
        while self._stop_at is None and jobs < max_jobs:
            try:
                if monotonic() >= reclaim_at:
                    storage.run_in_transaction(reclaim_generations)
                    reclaim_at = monotonic() + self.heartbeat_seconds * random.uniform(0.5, 1.0)
                generation = storage.run_in_transaction(self._claim)
                if generation is None and until_empty and not storage.run_in_transaction(self._has_due, read_only=True):
                    break
            except TRANSIENT_ERRORS as error:
                failures += 1
                self._back_off(failures, "looking for work", error)
                continue
            failures = 0
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
        heartbeat = self._heartbeat = HeartbeatThread(
            storage,
            generation,
            generation.lease,
            lease_seconds=self.lease_seconds,
            interval=self.heartbeat_seconds,
            interrupt=interrupt,
        )
        if self._stop_at is not None:  # told to stop between the claim and here
            heartbeat.set_deadline(self._stop_at)
        heartbeat.start()
        try:
            self._finish(storage, heartbeat.job, self._handle(storage, heartbeat.job))
        finally:
            heartbeat.close()
            self._heartbeat = None
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
            with suppress(*TRANSIENT_ERRORS):
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
        failures, failed = 0, False
        while True:
            time_is_over = self._stop_at is not None and monotonic() >= self._stop_at
            try:
                storage.run_in_transaction(store)
                return
            except LeaseLostError:
                job.cancel()
                log.warning("generation %s: the lease was lost, its result is dropped", job.lease.generation_id)
                return
            except (ValueError, TypeError) as error:
                if failed:
                    raise
                failed = True
                log.warning("generation %s: its result cannot be stored", job.lease.generation_id)
                store = self._failing(job.lease, f"{type(error).__name__}: {error}", retry=True)
            except TRANSIENT_ERRORS as error:
                if time_is_over:
                    log.error("generation %s: not stored, its lease will expire", job.lease.generation_id)
                    return
                failures += 1
                self._back_off(failures, f"storing generation {job.lease.generation_id}", error)

    def _back_off(self, failures: int, what: str, error: BaseException) -> None:
        seconds = BACKOFF.delay(failures)
        if self._stop_at is not None:
            seconds = min(seconds, max(0.0, self._stop_at - monotonic()))
        log.warning("%s: %s in %.1f s again (%s)", self.worker_id, what, seconds, error)
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        """Wait, or until told to stop."""
        with suppress(Empty):
            self._wakeup.get(timeout=seconds)
