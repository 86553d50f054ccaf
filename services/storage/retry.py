"""How long to wait before the next attempt. Pure: knows no clock, no database and no thread."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter and a cap.

    The wait before retry n is drawn evenly from [(1 - jitter) · d, d] with d = min(cap, base · factor^(n - 1)), all in
    seconds; jitter 1.0 is the "full jitter" of Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    Raises ValueError for a negative time, a factor below 1 or a jitter outside 0 to 1.
    """

    base_seconds: float = 5.0
    factor: float = 2.0
    cap_seconds: float = 300.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.base_seconds <= self.cap_seconds < float("inf")):
            raise ValueError("base_seconds must lie between 0 and cap_seconds, and cap_seconds be finite")
        if not 1 <= self.factor < float("inf"):
            raise ValueError("factor must be at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter must be between 0 and 1")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt` (1 is the first) has failed."""
        # The exponent is bounded: 2.0 ** 1100 would raise OverflowError long after the cap was reached.
        longest = min(self.cap_seconds, self.base_seconds * self.factor ** min(attempt - 1, 64))
        return longest * (1 - self.jitter * random.random())


DEFAULT_RETRY_POLICY = RetryPolicy()
