"""The mapped classes of the queue beside Generation: ended attempts, whether claims are paused, and live workers."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Unpack

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column, validates

from . import validation
from .constructor_arguments import AttemptFields, RegisteredWorkerFields
from .declarative import whole_number
from .lifecycle import WorkerState, validate_outcome, validate_worker_state
from .model_base import Row, SameAs
from .types import JSONNames, time_form, utcnow


class Attempt(Row):
    """One finished attempt at a generation under a lease: by whom, from when to when, and how it ended."""

    __tablename__ = "attempts"

    generation_id: Mapped[str] = mapped_column(ForeignKey("generations.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[str]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime] = mapped_column(default=utcnow)
    outcome: Mapped[str]
    error_message: Mapped[str | None]

    __table_args__ = (
        # get_queue_stats, estimate_completion, explain_wait: active workers
        Index("idx_attempts_finished_at", finished_at),
        CheckConstraint(
            "outcome IN ('completed', 'failed', 'lost', 'released', 'cancelled')",
            name="outcome_known",
        ),
        whole_number("number", 0, name="number_not_negative"),
        *time_form("started_at", "finished_at"),
    )

    @validates("generation_id", "number", "worker_id", "started_at", "finished_at", "outcome", "error_message")
    def _validate(self, field: str, value: Any) -> Any:
        if field == "outcome":
            return validate_outcome(value)
        same = {"generation_id": "id", "number": "attempt", "finished_at": "created_at"}
        return validation.GENERATION_RULES[same.get(field, field)](field, value)

    if TYPE_CHECKING:

        def __init__(self, **values: Unpack[AttemptFields]) -> None: ...

    def __repr__(self) -> str:
        of = self._get_for_repr
        return f"<Attempt {of('number')} of {of('generation_id')} outcome={of('outcome')}>"


class QueueState(Row):
    """The single row that stores whether claims are paused; without it they are not."""

    __tablename__ = "queue_state"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False, default=1)
    paused_at: Mapped[datetime | None]
    reason: Mapped[str | None]

    __table_args__ = (CheckConstraint("id = 1", name="single_row"), *time_form("paused_at"))


def validate_names(field: str, value: Iterable[str] | None) -> list[str] | None:
    """Return the distinct names, sorted; None, which means any model, as it is. Raises ValueError or TypeError."""
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"{field} must be a list of names, not text: put a single name into a list")
    return sorted({validation.validate_name(field, name) for name in value})


def _optional_name(field: str, value: Any) -> str | None:
    return None if value is None else validation.validate_name(field, value)


WORKER_RULES: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "id": validation.validate_name,
    "host": validation.validate_name,
    "pid": validation.validate_count,
    "model_names": validate_names,
    "warm_model": _optional_name,
    "device": _optional_name,
    "version": _optional_name,
    "state": lambda field, value: validate_worker_state(value),
    "generation_id": validation.GENERATION_RULES["parent_id"],
    "started_at": validation.validate_moment,
    "last_seen_at": validation.validate_moment,
    "expires_at": validation.validate_moment,
}


class RegisteredWorker(Row):
    """A worker that has said it is alive. It counts until `expires_at`, and writes the row again before. See ADR 32."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    model_names: Mapped[list[str] | None] = mapped_column(JSONNames)
    warm_model: Mapped[str | None]
    device: Mapped[str | None]
    version: Mapped[str | None]
    state: Mapped[str] = mapped_column(default=WorkerState.IDLE.value)
    generation_id: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(default=utcnow)
    last_seen_at: Mapped[datetime] = mapped_column(default=SameAs("started_at", utcnow))
    expires_at: Mapped[datetime] = mapped_column(default=SameAs("last_seen_at", utcnow))

    __table_args__ = (
        CheckConstraint("state IN ('idle', 'busy', 'stopping')", name="state_known"),
        whole_number("pid", 0, name="pid_not_negative"),
        *time_form("started_at", "last_seen_at", "expires_at"),
    )

    @validates(*WORKER_RULES)
    def _validate(self, field: str, value: Any) -> Any:
        return WORKER_RULES[field](field, value)

    if TYPE_CHECKING:

        def __init__(self, **values: Unpack[RegisteredWorkerFields]) -> None: ...

    def __repr__(self) -> str:
        of = self._get_for_repr
        return f"<RegisteredWorker {of('id')} state={of('state')}>"
