"""The lifecycle of a generation: its statuses, the legal moves, the other columns that a move changes, and the lease.

Does not use SQLAlchemy. Attributes and SQL statements take the values they set from here.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from .types import utcnow


class GenerationStatus(StrEnum):
    """The statuses of a generation. Members are strings: they compare, print and serialize as their value."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptOutcome(StrEnum):
    """How an attempt under a lease ended. Members are strings: they compare, print and serialize as their value."""

    COMPLETED = "completed"
    FAILED = "failed"
    LOST = "lost"
    RELEASED = "released"
    CANCELLED = "cancelled"


class WorkerState(StrEnum):
    """What a worker is doing; a stopping one claims nothing more. Members are strings, as those of AttemptOutcome."""

    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"


class Lease(NamedTuple):
    """A worker's right to finish an attempt at a generation; `attempt` fences off one that lost its lease (ADR 16)."""

    generation_id: str
    worker_id: str
    attempt: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return self._asdict()


FINISHED: Final = frozenset({GenerationStatus.COMPLETED, GenerationStatus.FAILED, GenerationStatus.CANCELLED})

# Every move that changes a status. Assigning the same status again does nothing, a new row may start in any status,
# and a status that this library does not know (written by another program) may change to any known one.
LEGAL_MOVES: Final[Mapping[GenerationStatus, frozenset[GenerationStatus]]] = {
    GenerationStatus.PENDING: frozenset({GenerationStatus.PROCESSING, *FINISHED}),
    GenerationStatus.PROCESSING: frozenset({GenerationStatus.PENDING, *FINISHED}),
    GenerationStatus.COMPLETED: frozenset(),
    GenerationStatus.FAILED: frozenset({GenerationStatus.PENDING}),
    GenerationStatus.CANCELLED: frozenset({GenerationStatus.PENDING}),
}


def validate_status(status: str) -> str:
    """Return `status` as a plain string.

    Raises ValueError if it is not a value of `GenerationStatus`.
    """
    try:
        return GenerationStatus(str.__str__(status)).value  # str.__str__ also accepts members of other str enums
    except (TypeError, ValueError):
        known = ", ".join(GenerationStatus)
        raise ValueError(f"status must be one of {known}, not {str(status)[:40]!r}") from None


def validate_outcome(outcome: str) -> str:
    """Return `outcome` as a plain string. Raises ValueError if it is not a value of `AttemptOutcome`."""
    try:
        return AttemptOutcome(outcome).value
    except ValueError:
        raise ValueError(f"outcome must be one of {', '.join(AttemptOutcome)}, not {str(outcome)[:40]!r}") from None


def validate_worker_state(state: str) -> str:
    """Return `state` as a plain string. Raises ValueError if it is not a value of `WorkerState`."""
    try:
        return WorkerState(state).value
    except ValueError:
        raise ValueError(f"state must be one of {', '.join(WorkerState)}, not {str(state)[:40]!r}") from None


def is_legal_move(current: str, target: str) -> bool:
    """Return whether the status of a stored row may change from `current` to `target`."""
    if current == target or current not in list(GenerationStatus):
        return True
    return target in LEGAL_MOVES[GenerationStatus(current)]


def transition_values(current: str | None, target: str) -> dict[str, Any]:
    """Return the new values of the other columns when a status changes from `current`, None for a new row, to `target`.

    A row that has a `completed_at` keeps it. See ADR 5.
    """
    values: dict[str, Any] = {}
    if target in FINISHED:
        values["completed_at"] = utcnow()
    elif current in FINISHED:
        values |= {"completed_at": None, "error_message": None}
    if current == GenerationStatus.PROCESSING:
        values |= {"worker_id": None, "lease_expires_at": None}
    if current is not None and target == GenerationStatus.PENDING:
        values |= {"started_at": None, "progress": None, "current_step": None, "cancel_requested_at": None}
    return values
