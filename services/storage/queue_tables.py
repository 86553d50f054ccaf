"""The mapped classes of the queue beside Generation: the ended attempts, and whether claims are paused."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column, validates

from . import validation
from .constructor_arguments import AttemptFields
from .declarative import whole_number
from .lifecycle import validate_outcome
from .model_base import Row
from .types import time_form, utcnow


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
