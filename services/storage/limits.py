"""Every limit: the longest texts, the greatest numbers, the most rows of a statement."""

from typing import Final

# Maximum length of texts, in characters.
ID_LIMIT: Final = 64
SHORTEST_ID_PREFIX: Final = 6  # that finds an id
SHORT_ID_LENGTH: Final = 13  # at least, when ids are shown: the whole milliseconds of a UUID of version 7
NAME_LIMIT: Final = 255
PATH_LIMIT: Final = 4_096
PROMPT_LIMIT: Final = 10_000
ERROR_LIMIT: Final = 8_192

# Metadata and parameters.
JSON_BYTES_LIMIT: Final = 64 * 1024
JSON_DEPTH_LIMIT: Final = 32
JSON_INTEGER_LIMIT: Final = 2**64 - 1  # seeds are unsigned 64-bit integers

# Search queries.
QUERY_LIMIT: Final = 10_000  # characters
QUERY_TERMS_LIMIT: Final = 32
TERM_WORDS_LIMIT: Final = 32
WORD_LIMIT: Final = 255  # PostgreSQL does not index words over 2,046 bytes

# Numbers.
INTEGER_LIMIT: Final = 2**31 - 1
BIG_INTEGER_LIMIT: Final = 2**63 - 1
FLOAT_LIMIT: Final = 1e300  # CHECK constraints have the same limit, to refuse infinities
SECONDS_LIMIT: Final = 365 * 24 * 3_600  # of a lease, a poll interval, a grace period

# Maximum number of rows that one statement reads by id or writes.
ROWS_PER_STATEMENT: Final = 1_000
