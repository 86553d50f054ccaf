"""The limits and defaults of the library."""

from typing import Final

# Maximum length of texts, in characters.
ID_LIMIT: Final = 64
SHORTEST_ID_PREFIX: Final = 6  # when an id is shortened
NAME_LIMIT: Final = 255
PATH_LIMIT: Final = 4_096
PROMPT_LIMIT: Final = 10_000
ERROR_LIMIT: Final = 8_192

# Metadata and parameters.
JSON_BYTES_LIMIT: Final = 64 * 1024
JSON_DEPTH_LIMIT: Final = 32
JSON_INTEGER_LIMIT: Final = 2**64 - 1  # seeds are unsigned 64-bit integers

# Numbers.
INTEGER_LIMIT: Final = 2**31 - 1
BIG_INTEGER_LIMIT: Final = 2**63 - 1
FLOAT_LIMIT: Final = 1e300  # CHECK constraints have the same limit, to refuse infinities
SECONDS_LIMIT: Final = 365 * 24 * 3_600  # of a lease, a poll interval, a grace period

# Defaults of the public functions.
PAGE_SIZE: Final = 100
MAX_ATTEMPTS: Final = 3
LEASE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.5
GRACE_SECONDS: Final = 30.0
BUSY_TIMEOUT_SECONDS: Final = 5.0
TRANSACTION_ATTEMPTS: Final = 5

# Maximum number of rows that one statement reads by id or writes.
ROWS_PER_STATEMENT: Final = 1_000
