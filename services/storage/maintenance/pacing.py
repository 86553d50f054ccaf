"""Pauses between the short transactions of long work, so that other writers take turns with it."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy.orm import Session

from ..engine import Storage

# SQLite wakes no waiting writer: it tries again after 1, 2, 5, 10, 15, 20, 25 ms and so on. With pauses of twice the
# time that the lock was held, two of three tries find it free.
PAUSE_FACTOR: Final = 2.0
SHORTEST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.5
TARGET_SECONDS: Final = 0.02
# Fewer would not be faster for others, because a commit costs more than so many rows; the work itself would be slower.
FEWEST_ROWS: Final = 100

Result = TypeVar("Result")


class Pace:
    """Executes short transactions with pauses between them, and chooses how many rows each of them may write."""

    def __init__(self, *, most_rows: int) -> None:
        self.rows = FEWEST_ROWS
        self._most_rows = most_rows

    def run_in_transaction(self, storage: Storage, write: Callable[[Session], Result]) -> Result:
        """Return the result of `write(session)` after its commit and a pause.

        Makes `rows` such that others are kept waiting for about 20 ms the next time.
        """
        locked_at = 0.0

        def write_locked(session: Session) -> Result:
            nonlocal locked_at
            # The savepoint takes the write lock of SQLite: how long that takes depends on others, not on `rows`.
            with session.begin_nested():
                locked_at = time.monotonic()
                return write(session)

        result = storage.run_in_transaction(write_locked)
        seconds = time.monotonic() - locked_at
        rows = int(self.rows * min(2.0, TARGET_SECONDS / max(seconds, 0.001)))
        self.rows = max(FEWEST_ROWS, min(rows, self._most_rows))
        _pause(max(SHORTEST_PAUSE, min(seconds * PAUSE_FACTOR, LONGEST_PAUSE)))
        return result


def try_again(seconds: float, attempt: Callable[[], bool]) -> bool:
    """Call `attempt` until it returns True, with pauses, for at most about so many seconds; return its last result."""
    deadline = time.monotonic() + seconds
    while not (done := attempt()) and time.monotonic() < deadline:
        _pause(TARGET_SECONDS)
    return done


def _pause(seconds: float) -> None:
    time.sleep(seconds)
