"""The thread that runs beside a handler: it extends the lease, stores progress, and ends the job at the deadline.

It uses its own sessions, so a handler that computes for minutes keeps its lease. See ADR 17.
"""

import logging
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final

from ..engine import Storage
from ..errors import LeaseLostError
from ..models import Generation, Lease
from ..queue import heartbeat_generation, release_generation
from .job import Job
from .registration import TRANSIENT_ERRORS, Registration

HEARTBEATS_PER_LEASE: Final = 4
HEARTBEAT_SECONDS: Final = 15.0  # at most, between two heartbeats and between two searches for expired leases
REPORT_SECONDS: Final = 1.0  # between two heartbeats that only store progress

log = logging.getLogger(__name__)


class HeartbeatThread(threading.Thread):
    """Extends the lease of one job until closed; at the deadline it releases the job and interrupts the handler.

    Each heartbeat extends the lease to `lease_seconds` from then; heartbeats are `interval` seconds apart.
    """

    def __init__(
        self,
        storage: Storage,
        generation: Generation,
        lease: Lease,
        registration: Registration,
        *,
        lease_seconds: float,
        interval: float,
        interrupt: Callable[[], None] | None,
    ) -> None:
        super().__init__(name=f"heartbeat of {lease.generation_id}", daemon=True)
        self.job = Job(generation, lease, self.report)
        self._storage = storage
        self._registration = registration
        self._lease_seconds = lease_seconds
        self._interval = interval
        self._interrupt = interrupt
        self._deadline = math.inf
        self._beat_at = monotonic() + self._interval
        self._report_at = monotonic() + REPORT_SECONDS
        self._reported: tuple[float, str | None] | None = None
        self._closed = False
        self._wakeup: SimpleQueue[None] = SimpleQueue()

    def set_deadline(self, deadline: float) -> None:
        """End the job at `deadline`, a time of the monotonic clock. Safe in any thread and in signal handlers."""
        self._deadline = deadline
        self._wake()

    def report(self, fraction: float, step: str | None) -> None:
        """Store the progress with the next heartbeat; the first report sends a heartbeat at once."""
        first = self._reported is None
        self._reported = (fraction, step)
        if first:
            self._wake()

    def close(self) -> None:
        """Stop the heartbeats and wait for the thread to end."""
        self._closed = True
        self._wake()
        self.join()

    def run(self) -> None:
        """Send heartbeats until closed or past the deadline."""
        while not self._closed:
            beats_at = self._beat_at if self._reported is None else min(self._beat_at, self._report_at)
            now = monotonic()
            wake_at = min(self._deadline, beats_at, now + self._registration.seconds_until_due(), now + self._interval)
            with suppress(Empty):
                self._wakeup.get(timeout=max(0.0, wake_at - now))
                continue
            if monotonic() >= self._deadline:
                self._end()
                return
            if monotonic() >= beats_at:
                self._beat()
            self._renew_registration()

    def _beat(self) -> None:
        reported, self._reported = self._reported, None
        fraction, step = reported or (None, None)
        now = monotonic()
        self._report_at = now + REPORT_SECONDS
        try:
            generation = self._storage.run_step(
                lambda session: heartbeat_generation(
                    session,
                    self.job.lease,
                    progress=fraction,
                    current_step=step,
                    lease_seconds=self._lease_seconds,
                ),
                attempts=1,
            )
        except LeaseLostError:
            self.job.cancel()
            self._beat_at = self._report_at = math.inf
        except TRANSIENT_ERRORS as error:
            log.warning("generation %s: heartbeat failed (%s)", self.job.lease.generation_id, error)
            self._reported = self._reported or reported
            self._beat_at = now + min(self._interval, REPORT_SECONDS)
        else:
            self._beat_at = now + self._interval
            if generation.cancel_requested_at is not None:
                self.job.cancel()

    def _renew_registration(self) -> None:
        try:
            self._registration.renew_if_due(self._storage)
        except TRANSIENT_ERRORS as error:
            log.warning("generation %s: renewing the registration failed (%s)", self.job.lease.generation_id, error)

    def _end(self) -> None:
        """Release the job while its handler still runs, so that others can claim it at once; then interrupt it."""
        with suppress(*TRANSIENT_ERRORS):
            self._storage.run_in_transaction(lambda session: release_generation(session, self.job.lease), attempts=1)
        self.job.cancel()
        if self._interrupt is not None and not self._closed:
            self._interrupt()

    def _wake(self) -> None:
        self._wakeup.put(None)
