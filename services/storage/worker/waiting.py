"""How a worker waits: until it is told to stop, until a generation may have become due, or for some time."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue

from ..engine import Storage
from ..queue.due import select_pending
from ..queue.wakeup import Subscription


class Waiting:
    """The waits of one worker, which last at most about `poll_seconds` while it looks for work."""

    def __init__(self, poll_seconds: float, model_names: Iterable[str] | None) -> None:
        self._poll_seconds = poll_seconds
        self._pending = select_pending(model_names)
        self._subscription: Subscription | None = None
        # A SimpleQueue because its put() is reentrant: a signal handler may interrupt any code and still call it.
        self._wakes: SimpleQueue[bool] = SimpleQueue()  # True: something has become pending

    def wake(self) -> None:
        """End the wait, or the next one. Safe in any thread and in signal handlers."""
        self._wakes.put(False)

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or until woken; return whether that was because something has become pending."""
        has_come = False
        with suppress(Empty):
            has_come = self._wakes.get(timeout=seconds)
            while True:  # several wakes are one
                has_come |= self._wakes.get_nowait()
        return has_come

    def wait_for_work(self, storage: Storage, seconds: float) -> bool:
        """Wait for `seconds`, until the next poll, or until a generation may have become due; return whether it has.

        Also ends when another process is committing: a look costs nothing then, and makes the claim that may follow
        faster. The first wait is short: whoever subscribes is called soon, so that nothing submitted before is missed.
        """
        if self._subscription is None or not self._subscription.is_open:
            self._subscription = storage.due_wakeups.subscribe(
                partial(self._wakes.put, True), only_if=self._pending, look=self.wake
            )
        # Not all workers at the same time, but none later than poll_seconds.
        return self.wait(min(seconds, self._poll_seconds * random.uniform(0.8, 1.0)))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let nothing but wake() end waits in the block: a worker that has a job need not know of others."""
        if self._subscription is None:
            yield
            return
        self._subscription.pause()
        try:
            yield
        finally:
            self._subscription.resume()

    def close(self) -> None:
        """Stop watching the database."""
        if self._subscription is not None:
            self._subscription.close()
