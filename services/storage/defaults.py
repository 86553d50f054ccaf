"""The defaults of the public functions, of the worker and of the settings."""

from typing import Final

PAGE_SIZE: Final = 100
MAX_ATTEMPTS: Final = 3
LEASE_SECONDS: Final = 60.0
ALIVE_SECONDS: Final = 45.0  # how long a worker counts after it was last seen, unless its lease is shorter
POLL_SECONDS: Final = 0.5
GRACE_SECONDS: Final = 30.0
BUSY_TIMEOUT_SECONDS: Final = 5.0
TRANSACTION_ATTEMPTS: Final = 5
