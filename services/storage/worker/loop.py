"""The worker's loop: claim a generation, run the handler, store the result. Contains no SQL.

The handler runs in the thread that called run(); HeartbeatThread extends the lease meanwhile. A result is stored only
while the lease is held. See ADR 17.
"""

import logging
import math
import random
import signal
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ..defaults import GRACE_SECONDS, LEASE_SECONDS, POLL_SECONDS
from ..engine import Storage, get_storage
from ..errors import CommitUnknownError, LeaseLostError
from ..models import Generation, Lease
from ..queue import (
    choose_model,
    claim_generation,
    complete_generation,
    fail_generation,
    new_worker_id,
    reclaim_generations,
    release_generation,
    resume_claim,
    seconds_until_due,
)
from ..retry_policy import DEFAULT_RETRY_POLICY, RetryPolicy
from ..validation import validate_count, validate_name, validate_seconds
from .heartbeat import HEARTBEAT_SECONDS, HEARTBEATS_PER_LEASE, HeartbeatThread
from .job import DoNotRetry, Job, Result, WorkerInterrupted
from .log_messages import describe_claim, describe_outcome
from .registration import TRANSIENT_ERRORS, Registration
from .waiting import Waiting

BACKOFF: Final = RetryPolicy(base_seconds=0.5, cap_seconds=30.0)

log = logging.getLogger(__name__)


class Worker:
    """Claims generations and calls `handler(job)` to render each: `Worker(handler).run()`.

    The handler returns a Result, or None if it does not know the size of the file. An exception fails the attempt,
    which is retried as `retry_policy` says; DoNotRetry fails the job for good. With `model_names`, only generations of
    these models are claimed; with `prefer_warm`, generations of the last job's model are preferred, and for the first
    job those of a model that no other live worker has in memory, see claim_generation(). An idle worker starts a
    submitted job at once; if it misses one, within `poll_seconds`. A worker that is told to stop lets the running job
    finish within `grace_seconds` and then releases it. While it runs, get_workers() lists it, with the label `device`.
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
        device: str | None = None,
        storage: Storage | None = None,
    ) -> None:
        if not callable(handler):
            raise TypeError("handler must be callable: it is called with a Job")
        if isinstance(model_names, str):
            raise TypeError("model_names must be a list of names, not text: put a single name into a list")
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
        self._registration = Registration(self, None if device is None else validate_name("device", device))
        self._warm_model: str | None = None
        self._resume_until = -math.inf
        self._stop_at: float | None = None
        self._heartbeat: HeartbeatThread | None = None
        self._may_interrupt = False
        self._waiting = Waiting(self.poll_seconds, self.model_names)

    def run(self, *, max_jobs: int | None = None, until_empty: bool = False) -> int:
        """Work until told to stop, until `max_jobs` jobs are done or, with `until_empty`, until nothing is due.

        In the main thread SIGTERM and SIGINT stop the worker; a second signal interrupts the running job at once.
        Database errors are logged and retried with a backoff. Returns the number of jobs. Raises NotInitializedError,
        SchemaOutdatedError or SchemaTooNewError if the schema does not fit this version of the library.
        """
        if max_jobs is not None:
            max_jobs = validate_count("max_jobs", max_jobs)
        storage = self._storage or get_storage()
        storage.require_schema()
        with self._signals() as interrupt:
            try:
                return self._loop(storage, math.inf if max_jobs is None else max_jobs, until_empty, interrupt)
            finally:
                self._registration.end(storage)
                self._stop_at = None
                self._waiting.close()

    def stop(self) -> None:
        """Stop the worker as SIGTERM does: the running job may finish within `grace_seconds`. Safe in any thread."""
        if self._stop_at is None:
            self._stop_at = monotonic() + self.grace_seconds
        self._registration.stop()
        self._waiting.wake()
        if self._heartbeat is not None:
            self._heartbeat.set_deadline(self._stop_at)

    @contextmanager
    def _signals(self) -> Iterator[Callable[[], None] | None]:
        """Handle SIGTERM and SIGINT meanwhile; yield a function that interrupts the handler.

        Outside the main thread it handles no signals and yields None.
        """
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
        poll_seconds = min(self.poll_seconds, POLL_SECONDS)  # also when wake-ups make longer polls possible
        lost_race = RetryPolicy(base_seconds=poll_seconds / 4, cap_seconds=poll_seconds)
        jobs = lost_races = failures = 0
        looks_first, reclaim_at = False, -math.inf
        while self._stop_at is None and jobs < max_jobs:
            try:
                self._registration.renew_if_due(storage)
                if monotonic() >= reclaim_at:
                    storage.run_in_transaction(reclaim_generations)
                    reclaim_at = monotonic() + self.heartbeat_seconds * random.uniform(0.5, 1.0)
                generation, seconds = self._find_work(storage, looks_first, until_empty)
            except TRANSIENT_ERRORS as error:
                if isinstance(error, CommitUnknownError):
                    self._resume_until = monotonic() + self.lease_seconds
                failures += 1
                self._back_off(failures, "polling for work", error)
                continue
            failures = 0
            if generation is not None:
                looks_first, lost_races = False, 0
                with self._waiting.paused():
                    self._work(storage, generation, interrupt)
                jobs += 1
            elif seconds == 0:  # one is due, but another worker was faster or has locked it
                looks_first, lost_races = True, lost_races + 1
                self._waiting.wait(lost_race.delay(lost_races))
            elif until_empty:
                break
            else:
                lost_races = 0
                has_come = self._waiting.wait_for_work(storage, min(seconds, self._registration.seconds_until_due()))
                looks_first = not has_come or seconds < math.inf
        return jobs

    def _find_work(self, storage: Storage, looks_first: bool, until_empty: bool) -> tuple[Generation | None, float]:
        """Claim a generation if one is due; return it, or None and the seconds until one is, 0 if others hold it.

        A look is cheaper than a claim and takes no lock. But when nothing was pending and something has come, it is
        probably due, and a look before the claim would only delay it.
        """
        may_look = until_empty or monotonic() >= self._resume_until
        if looks_first and may_look and (seconds := storage.look(self._look)) > 0:
            return None, seconds
        generation = storage.run_step(self._claim)
        if generation is None and may_look and not looks_first:
            return None, storage.look(self._look)
        return generation, 0.0

    def _claim(self, session: Session) -> Generation | None:
        # The COMMIT of an earlier claim may have arrived without an answer, or arrive later.
        if monotonic() < self._resume_until and (
            claimed := resume_claim(session, self.worker_id, lease_seconds=self.lease_seconds)
        ):
            return claimed
        model = self._warm_model
        if self.prefer_warm and model is None:
            model = choose_model(session, self.worker_id, model_names=self.model_names)
        return claim_generation(
            session,
            self.worker_id,
            model_names=self.model_names,
            prefer_model=model,
            lease_seconds=self.lease_seconds,
        )

    def _look(self, connection: Connection) -> float:
        seconds = seconds_until_due(connection, self.model_names)
        return math.inf if seconds is None else seconds

    def _work(self, storage: Storage, generation: Generation, interrupt: Callable[[], None] | None) -> None:
        """Run the handler and store its outcome; heartbeats continue until the outcome is stored."""
        assert generation.lease is not None, "a claimed generation has a lease"
        heartbeat = self._heartbeat = HeartbeatThread(
            storage,
            generation,
            generation.lease,
            self._registration,
            lease_seconds=self.lease_seconds,
            interval=self.heartbeat_seconds,
            interrupt=interrupt,
        )
        if self._stop_at is not None:  # stop() was called after the claim
            heartbeat.set_deadline(self._stop_at)
        log.info(describe_claim(generation))
        self._registration.begin_job(generation)
        heartbeat.start()
        try:
            self._finish(storage, heartbeat.job, self._handle(storage, heartbeat.job))
        finally:
            heartbeat.close()
            self._registration.end_job()
            self._heartbeat = None
        if self.prefer_warm:
            self._warm_model = generation.model_name

    def _handle(self, storage: Storage, job: Job) -> Callable[[Session], Any]:
        """Run the handler and return the function that stores its outcome: whatever the handler does is one attempt."""
        lease, started = job.lease, monotonic()
        try:
            try:
                self._may_interrupt = True
                result = self.handler(job)
            finally:
                self._may_interrupt = False
        except DoNotRetry as error:
            message = _describe(error)
            log.info("generation %s: attempt %d failed for good: %s", lease.generation_id, lease.attempt, message)
            return self._failing(lease, message, retry=False)
        except Exception as error:
            log.warning("generation %s: attempt %d failed", lease.generation_id, lease.attempt, exc_info=error)
            return self._failing(lease, _describe(error), retry=True)
        except BaseException as error:
            outcome = self._interrupted(lease, error)
            if isinstance(error, (WorkerInterrupted, CancelledError)):
                return outcome
            with suppress(*TRANSIENT_ERRORS):
                storage.run_in_transaction(outcome)
            raise
        if result is None:
            result = Result(None)
        if not isinstance(result, Result):
            message = f"TypeError: a handler must return a Result or None, not {type(result).__name__}"
            log.warning("generation %s: %s", lease.generation_id, message)
            return self._failing(lease, message, retry=False)
        seconds = monotonic() - started if result.generation_time is None else result.generation_time
        return lambda session: complete_generation(
            session,
            lease.generation_id,
            seconds,
            result.file_size_bytes,
            result.metadata,
            lease=lease,
            file_sha256=result.file_sha256,
            file_format=result.file_format,
        )

    def _interrupted(self, lease: Lease, error: BaseException) -> Callable[[Session], Any]:
        """Return the function that stores an attempt ended by SystemExit, CancelledError or the like.

        A worker that was told to stop releases the generation. Otherwise it was the handler's doing, so the attempt
        counts: a job that ends its worker each time must not be repeated without end.
        """
        if self._stop_at is not None:
            return lambda session: release_generation(session, lease)
        log.warning("generation %s: attempt %d failed", lease.generation_id, lease.attempt, exc_info=error)
        return self._failing(lease, _describe(error), retry=True)

    def _failing(self, lease: Lease, message: str, *, retry: bool) -> Callable[[Session], Any]:
        return lambda session: fail_generation(
            session, lease.generation_id, message, lease=lease, retry=retry, retry_policy=self.retry_policy
        )

    def _finish(self, storage: Storage, job: Job, store: Callable[[Session], Any]) -> None:
        """Store the outcome of the job; retry database errors for as long as the lease is held.

        A stopping worker tries for the last time when its grace period is over. If that fails too, the lease expires
        and another worker repeats the job.
        """
        failures, is_refused = 0, False
        while True:
            is_last_try = self._stop_at is not None and monotonic() >= self._stop_at
            try:
                log.info(describe_outcome(storage.run_step(store)))
                return
            except LeaseLostError:
                job.cancel()
                log.warning("generation %s: the lease was lost, the result is dropped", job.lease.generation_id)
                return
            except (ValueError, TypeError, OverflowError) as error:
                log.warning("generation %s: the result cannot be stored (%s)", job.lease.generation_id, error)
                if is_refused:
                    return  # not even the failure can be stored: the lease will expire
                is_refused = True
                # No retry: the next attempt would take as long and have the same result.
                store = self._failing(job.lease, _describe(error), retry=False)
            except TRANSIENT_ERRORS as error:
                if is_last_try:
                    log.error("generation %s: the result is not stored, the lease will expire", job.lease.generation_id)
                    return
                failures += 1
                self._back_off(failures, f"storing generation {job.lease.generation_id}", error)

    def _back_off(self, failures: int, what: str, error: BaseException) -> None:
        seconds = BACKOFF.delay(failures)
        if self._stop_at is not None:
            seconds = min(seconds, max(0.0, self._stop_at - monotonic()))
        log.warning("%s: %s failed, next try in %.1f s (%s)", self.worker_id, what, seconds, error)
        until, stop_at = monotonic() + seconds, self._stop_at
        while self._stop_at == stop_at and monotonic() < until:
            self._waiting.wait(until - monotonic())


def _describe(error: BaseException) -> str:
    """Return the text to store for an error: "ValueError: text", and for DoNotRetry the text alone."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return f"{name} whose text cannot be read"
    return (text or str(error.__doc__)) if isinstance(error, DoNotRetry) else f"{name}: {text}"
