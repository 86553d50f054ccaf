"""The worker's own row in the registry: written at the start, renewed while it works or is idle, removed at the end."""

import logging
import math
from contextlib import suppress
from time import monotonic
from typing import Final, Protocol

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ..defaults import ALIVE_SECONDS
from ..engine import Storage
from ..errors import StorageError
from ..lifecycle import WorkerState
from ..models import Generation
from ..queue import register_worker, unregister_worker
from ..version import __version__

RETRY_SECONDS: Final = 1.0
TRANSIENT_ERRORS: Final = (StorageError, SQLAlchemyError, OSError)  # the database may be back soon: try again

log = logging.getLogger(__name__)


class Registrant(Protocol):
    """What the registry needs to know of a Worker."""

    worker_id: str
    model_names: list[str] | None
    lease_seconds: float
    heartbeat_seconds: float


class Registration:
    """Says that a worker is alive with each heartbeat, also between jobs.

    The worker then counts for its lease, or for 45 s if that is shorter. Its main thread calls renew_if_due() between
    jobs, the heartbeat thread during a job.
    """

    def __init__(self, worker: Registrant, device: str | None) -> None:
        self._worker = worker
        self._device = device
        self._job: Generation | None = None
        self._warm_model: str | None = None
        self._is_stopping = False
        self._is_registered = False
        self._due_at = -math.inf  # of the monotonic clock

    def begin_job(self, generation: Generation) -> None:
        """Note what the worker is working on; the next renewal writes it."""
        self._job, self._warm_model = generation, generation.model_name

    def end_job(self) -> None:
        """Note that the worker is idle; the next renewal writes it."""
        self._job = None

    def stop(self) -> None:
        """Make a renewal due that says the worker is stopping. Safe in any thread and in signal handlers."""
        self._is_stopping = True
        self._due_at = -math.inf  # after the flag: a renewal that has not seen the flag leaves this one due

    def seconds_until_due(self) -> float:
        """Return how long the next renewal can wait."""
        return max(0.0, self._due_at - monotonic())

    def renew_if_due(self, storage: Storage) -> None:
        """Say that the worker is alive, if that is due. Raises the errors of the database; the next try is soon due."""
        now, was_stopping = monotonic(), self._is_stopping
        if now < self._due_at:
            return
        interval = self._worker.heartbeat_seconds
        self._due_at = now + min(interval, RETRY_SECONDS)
        if self._is_registered:
            storage.run_step(self._register, attempts=1)
        else:
            storage.run_in_transaction(self._replace, attempts=1)
            self._is_registered = True
        self._due_at = now + interval if self._is_stopping == was_stopping else now

    def end(self, storage: Storage) -> None:
        """Remove the worker from the registry. If that fails, it counts for as long as it has promised."""
        if self._is_registered:
            with suppress(*TRANSIENT_ERRORS):
                storage.run_in_transaction(lambda session: unregister_worker(session, self._worker.worker_id))
        self._is_registered = self._is_stopping = False
        self._due_at = -math.inf

    def _replace(self, session: Session) -> None:
        unregister_worker(session, self._worker.worker_id)  # of an earlier process with this id, which started earlier
        self._register(session)

    def _register(self, session: Session) -> None:
        worker, job = self._worker, self._job
        state = WorkerState.IDLE if job is None else WorkerState.BUSY
        register_worker(
            session,
            worker.worker_id,
            model_names=worker.model_names,
            warm_model=self._warm_model,
            device=self._device,
            version=__version__,
            state=WorkerState.STOPPING if self._is_stopping else state,
            generation_id=None if job is None else job.id,
            alive_seconds=min(worker.lease_seconds, ALIVE_SECONDS),
        )
