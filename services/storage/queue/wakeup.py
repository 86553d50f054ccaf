"""Wake-ups: a thread that calls those who wait, in this process, when the database may have changed. See ADR 35.

Wake-ups only save time: whoever waits must also look by itself from time to time. Besides the worker's, this is the
only module with a thread.
"""

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final

from sqlalchemy import URL, Select

from ..backends import Backend, ChangeSource
from ..retry_policy import RetryPolicy
from ..settings import EngineOptions

LOOK_SECONDS: Final = 0.5  # between two looks at the database when no event comes, in case one was lost
REOPEN: Final = RetryPolicy(base_seconds=1.0, cap_seconds=30.0)

# A reader may wait for a lock that the forking thread holds. Without its end, an SQLite file is refused in the child.
HOLD_SECONDS: Final = 10.0

# A change within ACTIVE_SECONDS of the last call is reported after a pause, which doubles from the first to the
# longest: the cost for those who wait has a limit, however often others commit.
ACTIVE_SECONDS: Final = 0.1
FIRST_PAUSE: Final = 0.005

# After so long without a call, a commit that is about to become visible lets subscribers look already. They find
# nothing, but what they do next is faster: after a second of idleness a claim takes 1.1 ms, after a look 0.7.
CALM_SECONDS: Final = 0.25

log = logging.getLogger(__name__)


class Subscription:
    """Calls a function in the thread of the wake-ups after each change, until it is closed. It must not block.

    With `only_if`, a query, it may skip the call while the query finds no row. That saves time: the thread queries with
    the driver, on a connection that is at hand. `look`, if given, is called instead when nothing is known to have
    changed: when the subscription begins, and shortly before a commit becomes visible.
    """

    def __init__(
        self,
        wakeups: "Wakeups",
        call: Callable[[], None],
        only_if: Select[Any] | None,
        look: Callable[[], None] | None,
    ) -> None:
        self._wakeups = wakeups
        self.call = call
        self.only_if = only_if
        self.look = look
        self.is_open = True
        self.is_paused = self.has_missed = False

    def pause(self) -> None:
        """Make no calls until resume()."""
        self.is_paused = True

    def resume(self) -> None:
        """Call again, also for what has changed in the meantime."""
        self.is_paused = False
        if self.has_missed:
            self.has_missed = False
            (self.look or self.call)()
        self._wakeups.nudge()

    def request(self) -> None:
        """Let the thread make a call soon, also without a change."""
        self._wakeups.request()

    def close(self) -> None:
        """End the subscription; with the last one, the thread ends too. Does not wait for a call that is running."""
        self._wakeups.remove(self)


class Wakeups:
    """The wake-ups of one database, from the source that `open_source` returns. The thread runs while anybody waits.

    The first change is reported at once, those of a busy database together, after up to `longest_pause` seconds. Calls
    are at most `at_least_every` seconds apart, also without a change. While the source cannot be opened, there are only
    these calls.
    """

    def __init__(
        self, open_source: Callable[[], ChangeSource], *, longest_pause: float, at_least_every: float = math.inf
    ) -> None:
        self._open_source = open_source
        self._longest_pause = longest_pause
        self._at_least_every = at_least_every
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._state = threading.Condition()  # reentrant; guards all that follows
        self._subscriptions: list[Subscription] = []
        self._thread: threading.Thread | None = None
        self._source: ChangeSource | None = None
        self._is_requested = False
        self._active_at = -math.inf  # when a subscriber was last called because of a change, or began to wait
        self._holds = 0

    def subscribe(
        self,
        call: Callable[[], None],
        *,
        only_if: Select[Any] | None = None,
        look: Callable[[], None] | None = None,
    ) -> Subscription:
        """Return an open subscription; the first call comes soon, so that no change before it is lost."""
        subscription = Subscription(self, call, only_if, look)
        with self._state:
            self._subscriptions.append(subscription)
            self._start()
            self.request()
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """End a subscription; see Subscription.close()."""
        subscription.is_open = False
        with self._state:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            if not self._subscriptions:
                self.nudge()

    def request(self) -> None:
        """Let the thread call all subscribers soon, also without a change."""
        with self._state:
            self._is_requested = True
            self.nudge()

    def nudge(self) -> None:
        """Let the thread look at the subscriptions again."""
        self._active_at = monotonic()
        with self._state:
            self._state.notify_all()
            if self._source is not None:
                self._source.interrupt()

    def close(self) -> None:
        """End all subscriptions, with a last call for each, and wait until the connection is closed."""
        with self._state:
            ended, self._subscriptions = self._subscriptions, []
        for subscription in ended:
            subscription.is_open = False
        self._join()
        for subscription in ended:
            subscription.call()

    def hold(self) -> None:
        """End the thread before a fork: a child that inherits its connection could not use the database."""
        with self._state:
            self._holds += 1
        self._join(HOLD_SECONDS)

    def release(self) -> None:
        """Continue after hold()."""
        with self._state:
            self._holds = max(0, self._holds - 1)  # another thread may have opened the storage since hold()
            self._start()

    def forget(self) -> None:
        """End the subscriptions in a forked child: they belong to threads of the parent."""
        for subscription in self._subscriptions:
            subscription.is_open = False
        self._reset()

    def _start(self) -> None:
        with self._state:
            if self._thread is None and self._is_needed():
                self._thread = threading.Thread(target=self._run, name="wake-ups", daemon=True)
                self._thread.start()

    def _join(self, timeout: float | None = None) -> None:
        self.nudge()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _is_needed(self) -> bool:
        return bool(self._subscriptions) and not self._holds

    def _are_all_paused(self) -> bool:
        return all(subscription.is_paused for subscription in self._subscriptions)

    def _run(self) -> None:
        failures, failed_at = 0, -math.inf
        while self._goes_on():
            try:
                self._follow()
            except Exception as error:
                failures = failures + 1 if monotonic() - failed_at < 2 * REOPEN.cap_seconds else 1
                failed_at = monotonic()
                log.info("changes of the database cannot be watched (%s), so waits are longer", type(error).__name__)
                self._call_all(None, has_changed=False)
                with self._state:
                    self._state.wait_for(
                        lambda: not self._is_needed(), min(REOPEN.delay(failures), self._at_least_every)
                    )

    def _goes_on(self) -> bool:
        """Return whether anybody is waiting; if not, the thread must end."""
        with self._state:
            self._state.wait_for(lambda: not self._is_needed() or not self._are_all_paused())
            if not self._is_needed():
                self._thread = None
                return False
            return True

    def _follow(self) -> None:
        """Open the source, and call the subscribers after each change while there are any."""
        source = self._open_source()
        try:
            with self._state:
                self._source = source
            self._call_all(source, has_changed=False)
            called_at, pause = monotonic(), 0.0
            while self._is_watching(source):
                has_event = source.wait(min(LOOK_SECONDS, self._at_least_every), monotonic() - self._active_at)
                seconds = monotonic() - called_at
                pause = min(max(2 * pause, FIRST_PAUSE), self._longest_pause) if seconds < ACTIVE_SECONDS else 0.0
                if pause:
                    has_changed = self._skip(source, pause) if has_event else self._look(source, [pause])
                else:
                    has_changed = source.has_changed() or (has_event and self._expect(source, seconds))
                if has_changed or seconds >= self._at_least_every or self._is_requested:
                    has_called = self._call_all(source, has_changed)
                    called_at = monotonic()
                    if has_called and has_changed:
                        self._active_at = called_at
        finally:
            with self._state:
                self._source = None
            source.close()

    def _is_watching(self, source: ChangeSource) -> bool:
        """Return whether anybody is waiting. While all subscriptions are paused, waits and pauses the source."""
        if self._is_needed() and self._are_all_paused():
            source.pause()
            with self._state:
                self._state.wait_for(lambda: not self._is_needed() or not self._are_all_paused())
            if self._is_needed() and source.resume():
                self._call_all(source, has_changed=False)
        return self._is_needed()

    def _skip(self, source: ChangeSource, seconds: float) -> bool:
        """Pause the source for some time; return whether it may have changed until then."""
        source.pause()
        has_changed = self._look(source, [seconds])
        return source.resume() or has_changed

    def _expect(self, source: ChangeSource, seconds: float) -> bool:
        """Return whether the source changes after the event that it has had, `seconds` after the last call."""
        if source.pauses and seconds >= CALM_SECONDS:
            for subscription in list(self._subscriptions):
                if subscription.look is not None and not subscription.is_paused:
                    subscription.look()
        return self._look(source, source.pauses)

    def _look(self, source: ChangeSource, pauses: Sequence[float]) -> bool:
        """Return whether the source has changed, after one of the pauses."""
        for pause in pauses:
            time.sleep(pause)
            if source.has_changed():
                return True
            if not self._subscriptions:
                break
        return False

    def _call_all(self, source: ChangeSource | None, has_changed: bool) -> bool:
        """Call the subscribers that have to be; return whether there were any."""
        self._is_requested = has_called = False
        for subscription in list(self._subscriptions):
            if subscription.is_paused:
                subscription.has_missed = True
            elif source is None or subscription.only_if is None or source.has_row(subscription.only_if):
                call = subscription.call if has_changed or subscription.look is None else subscription.look
                call()
                has_called = True
        return has_called


def open_wakeups(owner: object, backend: Backend, url: URL, options: EngineOptions) -> tuple[Wakeups, Wakeups]:
    """Return the wake-ups for what may be due, and those for all commits; they end with `owner`, the storage."""
    due = Wakeups(partial(backend.open_due_source, url, options), longest_pause=0.1)
    commits = Wakeups(partial(backend.open_commit_source, url, options), longest_pause=0.02, at_least_every=1.0)
    for wakeups in (due, commits):
        weakref.finalize(owner, wakeups.close)
    return due, commits


def hold_all() -> None:
    """Call hold() of all wake-ups of this process."""
    for wakeups in list(_all):
        wakeups.hold()


def release_all() -> None:
    """Call release() of all wake-ups of this process."""
    for wakeups in list(_all):
        wakeups.release()


def forget_all() -> None:
    """Call forget() of all wake-ups that a forked child has inherited."""
    for wakeups in list(_all):
        wakeups.forget()


_all: weakref.WeakSet[Wakeups] = weakref.WeakSet()
