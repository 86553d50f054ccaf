"""RetryPolicy: the delay before the next attempt. Does not sleep and does not use the database."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter and a cap.

    The delay in seconds before retry n is uniform over [(1 - jitter) · d, d] with d = min(cap, base · factor^(n - 1)).
    Jitter 1.0 is the "full jitter" of Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    Raises ValueError for a negative time, a factor below 1 or a jitter outside 0 to 1.
    """

    base_seconds: float = 5.0
    factor: float = 2.0
    cap_seconds: float = 300.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.base_seconds <= self.cap_seconds < float("inf")):
            raise ValueError("base_seconds must be between 0 and cap_seconds, and cap_seconds must be finite")
        if not 1 <= self.factor < float("inf"):
            raise ValueError("factor must be at least 1")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter must be between 0 and 1")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt`, counted from 1, has failed."""
        # The exponent is limited, because 2.0 ** 1100 raises OverflowError.
        longest = min(self.cap_seconds, self.base_seconds * self.factor ** min(attempt - 1, 64))
        return longest * (1 - self.jitter * random.random())


DEFAULT_RETRY_POLICY = RetryPolicy()
