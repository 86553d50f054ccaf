"""Wait until a generation is finished, or watch it change. These functions open their own sessions. See ADR 35.

A watch reports states, not events: whoever joins late gets the present state first, and changes that follow each other
within milliseconds may arrive as one. All watches of a storage share one reader.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, TypeAlias

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from .engine import Storage, get_storage
from .errors import StorageError
from .generations import get_generation
from .limits import ROWS_PER_STATEMENT
from .models import Generation
from .row_loading import GENERATIONS, connection_of, detached_generation
from .validation import validate_seconds

# A change in one of these is reported. Heartbeats and marks as favorite are not.
STATE: Final = (
    "status", "attempt", "scheduled_at", "started_at", "progress", "current_step", "cancel_requested_at",
    "completed_at", "error_message", "generation_time_seconds", "file_size_bytes",
)  # fmt: skip
SELECT_STATES: Final = select(GENERATIONS.c.id, *(GENERATIONS.c[name] for name in STATE))

# What a reader hands to a watch: a row of all columns, None when the generation was deleted, or an error.
Delivery: TypeAlias = Row[Any] | Exception | None


def wait_for_generation(
    generation_id: str, *, timeout: float | None = None, storage: Storage | None = None
) -> Generation:
    """Return the generation once it is finished: completed, failed for good, or cancelled.

    Raises LookupError for an unknown id and when the generation is deleted meanwhile, TimeoutError when it is not
    finished after `timeout` seconds, and the errors of sessions.
    """
    timeout = validate_timeout(timeout)
    ends_at = None if timeout is None else monotonic() + timeout
    storage = storage or get_storage()
    generation = read_generation(storage, generation_id)
    if generation.is_finished:
        return generation
    with closing(QueuedWatch(storage, generation)) as watch:
        while True:
            state = watch.get(None if ends_at is None else max(0.0, ends_at - monotonic()))
            if state is None:
                raise LookupError(f"the generation {generation_id} was deleted while it was waited for")
            if state.is_finished:
                return state


def watch_generation(generation_id: str, *, storage: Storage | None = None) -> Generator[Generation]:
    """Yield the generation as it is now, and again after each change of its status, progress, step or result.

    Ends after the state in which it is finished, or when it is deleted. Each state is a detached object of its own.
    Raises LookupError for an unknown id, at once; while iterating, the errors of sessions.
    """
    storage = storage or get_storage()
    return _follow(storage, read_generation(storage, generation_id))


def validate_timeout(timeout: float | None) -> float | None:
    """Return how long to wait: seconds, 0 for a single look, or None for ever. Raises ValueError or TypeError."""
    return timeout if timeout is None or timeout == 0 else validate_seconds("timeout", timeout)


def read_generation(storage: Storage, generation_id: str) -> Generation:
    """Return the generation, read from the primary. Raises LookupError for an unknown id."""
    generation = storage.run_step(lambda session: get_generation(session, generation_id))
    if generation is None:
        raise LookupError(f"there is no generation {generation_id}")
    return generation


def _follow(storage: Storage, generation: Generation) -> Generator[Generation]:
    yield generation
    if generation.is_finished:
        return
    with closing(QueuedWatch(storage, generation)) as watch:
        while (state := watch.get()) is not None:
            yield state
            if state.is_finished:
                return


class Watch:
    """The changes of one generation after the state of `generation`: calls `deliver` in the thread of the reader."""

    def __init__(self, storage: Storage, generation: Generation, deliver: Callable[[Delivery], None]) -> None:
        self.generation_id = generation.id
        self.seen = tuple(getattr(generation, name) for name in STATE)
        self.deliver = deliver
        self._reader = _join_reader(storage, self)

    @property
    def is_open(self) -> bool:
        """Whether there is a reader: not after the storage was disposed of, nor in a forked child."""
        return self._reader.is_open

    def close(self) -> None:
        """End the watch; with the last one, the reader ends too."""
        self._reader.leave(self)


class QueuedWatch(Watch):
    """A watch for a thread that waits for the changes."""

    def __init__(self, storage: Storage, generation: Generation) -> None:
        self._deliveries: SimpleQueue[Delivery] = SimpleQueue()
        super().__init__(storage, generation, self._deliveries.put)

    def get(self, timeout: float | None = None) -> Generation | None:
        """Wait for the next state and return it; None when the generation was deleted.

        Raises TimeoutError after `timeout` seconds, and the errors of sessions.
        """
        if self._deliveries.empty() and not self.is_open:
            raise disposed()
        try:
            return unpack(self._deliveries.get(timeout=timeout))
        except Empty:
            raise TimeoutError(f"the generation {self.generation_id} is not finished") from None


def unpack(delivery: Delivery) -> Generation | None:
    """Return what was delivered as an object of its own, None for a deleted generation. Raises a delivered error."""
    if isinstance(delivery, Exception):
        raise delivery
    return None if delivery is None else detached_generation(delivery)


def disposed() -> StorageError:
    """Return the error of a watch that has no reader any more."""
    return StorageError("The storage was disposed of, or this process was forked, while a generation was watched.")


class _Reader:
    """Reads the watched generations of a storage after each commit, with one query for all watches."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._watches: list[Watch] = []
        self._subscription = storage.commit_wakeups.subscribe(self._read)

    @property
    def is_open(self) -> bool:
        return self._subscription.is_open

    def join(self, watch: Watch) -> None:
        """Add a watch. The caller holds the lock."""
        self._watches.append(watch)
        self._subscription.request()  # the generation may have changed since the watch has seen it

    def leave(self, watch: Watch) -> None:
        with _lock:
            if watch in self._watches:
                self._watches.remove(watch)
            if not self._watches:
                self._close()

    def _close(self) -> None:
        if _readers.get(self._storage) is self:
            del _readers[self._storage]
        self._subscription.close()

    def _read(self) -> None:
        with _lock:
            watches = list(self._watches)
            is_open = self._subscription.is_open
            if not is_open:
                self._close()
        if not watches:
            return
        try:
            if not is_open:
                raise disposed()
            self._deliver(watches)
        except Exception as error:
            for watch in watches:
                watch.deliver(error)

    def _deliver(self, watches: Iterable[Watch]) -> None:
        by_id: dict[str, list[Watch]] = {}
        for watch in watches:
            by_id.setdefault(watch.generation_id, []).append(watch)
        states, rows = self._storage.run_step(partial(_read_changes, by_id=by_id))
        for generation_id, concerned in by_id.items():
            for watch in concerned:
                if generation_id not in states:
                    watch.deliver(None)
                elif generation_id in rows and (state := _state_of(rows[generation_id])) != watch.seen:
                    watch.seen = state
                    watch.deliver(rows[generation_id])


def _read_changes(
    session: Session, by_id: dict[str, list[Watch]]
) -> tuple[dict[str, tuple[Any, ...]], dict[str, Row[Any]]]:
    """Return the state of each generation that exists, and the row of each that a watch has not seen like that."""
    states: dict[str, tuple[Any, ...]] = {
        row[0]: tuple(row[1:]) for row in _select_by_id(session, SELECT_STATES, list(by_id))
    }
    changed = [key for key, state in states.items() if any(watch.seen != state for watch in by_id[key])]
    return states, {row.id: row for row in _select_by_id(session, select(GENERATIONS), changed)}


def _select_by_id(session: Session, query: Any, ids: Sequence[str]) -> list[Row[Any]]:
    rows: list[Row[Any]] = []
    for start in range(0, len(ids), ROWS_PER_STATEMENT):
        some = query.where(GENERATIONS.c.id.in_(ids[start : start + ROWS_PER_STATEMENT]))
        rows += connection_of(session).execute(some).all()
    return rows


def _state_of(row: Row[Any]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in STATE)


def _join_reader(storage: Storage, watch: Watch) -> _Reader:
    with _lock:
        reader = _readers.get(storage)
        if reader is None or not reader.is_open:
            reader = _readers[storage] = _Reader(storage)
        reader.join(watch)
        return reader


def _forget_readers() -> None:
    """Start without readers in a forked child: the threads of the parent do not run in it."""
    global _lock
    _lock = threading.Lock()
    _readers.clear()


_readers: dict[Storage, _Reader] = {}  # those with at least one watch
_lock = threading.Lock()  # guards _readers and their watches
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_readers)
