"""Pauses between the short transactions of long work, so that other writers take turns with it."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

# SQLite wakes no waiting writer: it tries again after 1, 2, 5, 10, 15, 20, 25 ms and so on. With pauses of twice the
# time that the lock was held, two of three tries find it free.
PAUSE_FACTOR: Final = 2.0
SHORTEST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.5
TARGET_SECONDS: Final = 0.02

Result = TypeVar("Result")


class Pace:
    """Executes short transactions with pauses between them, and chooses how many rows each of them may write."""

    def __init__(self, rows: int, *, most_rows: int) -> None:
        self.rows = rows
        self._most_rows = most_rows

    def run(self, write: Callable[[], Result]) -> Result:
        """Return the result of `write()` after a pause; make `rows` such that it takes about 20 ms the next time."""
        started = time.monotonic()
        result = write()
        seconds = time.monotonic() - started
        rows = int(self.rows * min(2.0, TARGET_SECONDS / max(seconds, 0.001)))
        self.rows = max(10, min(rows, self._most_rows))
        time.sleep(max(SHORTEST_PAUSE, min(seconds * PAUSE_FACTOR, LONGEST_PAUSE)))
        return result
