"""How a backend tells that other connections have committed: the protocols, and the source for those that cannot."""

import selectors
import socket
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Protocol

from sqlalchemy import URL, Select

from ..settings import EngineOptions

NEVER_SECONDS: Final = 86_400.0  # the interval of a Ticker that is not to tick


class ChangeSource(Protocol):
    """Tells one thread when others may have committed. Only interrupt() may be called in another thread."""

    @property
    def pauses(self) -> Sequence[float]:
        """After wait() and not has_changed(): the pauses in seconds before each further has_changed()."""

    def wait(self, seconds: float, idle_seconds: float) -> bool:
        """Wait until others may have committed, or are about to; False after so many seconds, or when interrupted.

        A source that must look may look less often the longer, `idle_seconds`, nothing has come for those who wait.
        """

    def has_changed(self) -> bool:
        """Return whether others have committed since the last call, or since the source was opened."""

    def has_row(self, query: Select[Any]) -> bool:
        """Return whether the query finds a row; True if this source executes no queries."""

    def pause(self) -> None:
        """Let the database send nothing until resume()."""

    def resume(self) -> bool:
        """Continue after pause(); return whether has_changed() will say nothing of what has changed in the meantime."""

    def interrupt(self) -> None:
        """End the wait() of the other thread, or its next one."""

    def close(self) -> None:
        """Close the connection and the descriptors."""


class WakeupDialect(Protocol):
    """The sources of changes of a database system."""

    def open_due_source(self, url: URL, options: EngineOptions) -> ChangeSource:
        """Return a source that tells when generations may have become due: submitted, retried, released, resumed.

        Raises an error of the driver or a StorageError if the database cannot be reached or refuses.
        """

    def open_commit_source(self, url: URL, options: EngineOptions) -> ChangeSource:
        """Return a source that tells when anything may have been committed; raises what open_due_source() raises."""

    def announce_due(self) -> Any:
        """Return the expression that notifies the sources of other processes on commit, or None if they notice."""


class Interruptible:
    """Waits for descriptors; another thread can end the wait, in which case none of them counts as ready."""

    def __init__(self, *descriptors: int) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.is_interrupted = False  # whether the last wait was
        self._selector = selectors.DefaultSelector()  # unlike select.select(), takes descriptors above 1,023
        self._selector.register(self._reader, selectors.EVENT_READ)
        for descriptor in descriptors:
            self._selector.register(descriptor, selectors.EVENT_READ)

    def wait_for_descriptors(self, seconds: float) -> bool:
        """Return whether one of the descriptors became ready."""
        ready = [key.fileobj for key, _ in self._selector.select(seconds)]
        self.is_interrupted = self._reader in ready
        if self.is_interrupted:
            with suppress(BlockingIOError):
                self._reader.recv(4_096)
            return False
        return bool(ready)

    def pause(self) -> None:
        return None

    def resume(self) -> bool:
        return False

    def interrupt(self) -> None:
        with suppress(OSError):  # full, so the wait ends anyway; or closed
            self._writer.send(b"!")

    def close_descriptors(self) -> None:
        """Close what this object has opened; the descriptors given to it stay open."""
        self._selector.close()
        self._reader.close()
        self._writer.close()


class Ticker(Interruptible):
    """The source where nothing tells of commits: assumes one in every interval of so many seconds."""

    pauses: Final = ()

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._ticks_at = monotonic() + seconds

    def wait(self, seconds: float, idle_seconds: float) -> bool:
        self.wait_for_descriptors(min(seconds, max(0.0, self._ticks_at - monotonic())))
        return monotonic() >= self._ticks_at

    def has_changed(self) -> bool:
        now = monotonic()
        if now < self._ticks_at:
            return False
        self._ticks_at = now + self._seconds
        return True

    def has_row(self, query: Select[Any]) -> bool:
        return True

    def close(self) -> None:
        self.close_descriptors()
