"""The words of the schema: statuses, legal moves, limits, revisions. Knows no SQLAlchemy and no database."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class GenerationStatus(StrEnum):
    """The states of a generation; members are strings, so they compare, print and serialise as their word."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED: Final = frozenset({GenerationStatus.COMPLETED, GenerationStatus.FAILED, GenerationStatus.CANCELLED})

# Every move that changes a status. The same status again is a no-op, a new row may start anywhere,
# and a word this library does not know (written by others) may be mended into any known one.
LEGAL_MOVES: Final[Mapping[GenerationStatus, frozenset[GenerationStatus]]] = {
    GenerationStatus.PENDING: frozenset({GenerationStatus.PROCESSING, *FINISHED}),
    GenerationStatus.PROCESSING: frozenset({GenerationStatus.PENDING, *FINISHED}),
    GenerationStatus.COMPLETED: frozenset(),
    GenerationStatus.FAILED: frozenset({GenerationStatus.PENDING}),
    GenerationStatus.CANCELLED: frozenset({GenerationStatus.PENDING}),
}

ID_LIMIT: Final = 64
NAME_LIMIT: Final = 255
PATH_LIMIT: Final = 4_096
PROMPT_LIMIT: Final = 10_000
ERROR_LIMIT: Final = 8_192
JSON_BYTES_LIMIT: Final = 64 * 1024
JSON_DEPTH_LIMIT: Final = 32
INTEGER_LIMIT: Final = 2**31 - 1
BIG_INTEGER_LIMIT: Final = 2**63 - 1
SECONDS_LIMIT: Final = 365 * 24 * 3_600  # of a lease

# Oldest first. A literal, so that opening a database at head needs neither Alembic nor the scripts; a test compares it.
REVISIONS: Final = ("001", "002", "003", "004", "005", "006", "007")


def get_schema_version() -> str:
    """Return the revision id this library works with: the head of its migrations."""
    return REVISIONS[-1]


def validate_status(status: str) -> str:
    """Return `status` as a plain string.

    Raises ValueError when it is none of the words of `GenerationStatus`.
    """
    try:
        return GenerationStatus(status).value
    except ValueError:
        known = ", ".join(GenerationStatus)
        raise ValueError(f"status must be one of {known}, not {str(status)[:40]!r}") from None


def is_legal_move(current: str, target: str) -> bool:
    """Tell whether a stored row may go from status `current` to `target`."""
    if current == target or current not in list(GenerationStatus):
        return True
    return target in LEGAL_MOVES[GenerationStatus(current)]


SCHEMA_SQL: Final = ""
