"""The mapped classes that pruning writes: the totals of pruned generations, and the files that it still has to delete.

See ADR 27.
"""

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .declarative import Base, whole_number
from .limits import BIG_INTEGER_LIMIT, INTEGER_LIMIT
from .types import BigInt


class UsageTotal(Base):
    """How many pruned generations of a model were created or finished in one hour; get_usage() adds them."""

    __tablename__ = "usage_totals"

    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model_name: Mapped[str] = mapped_column(primary_key=True)
    event: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInt)

    __table_args__ = (
        whole_number("hour", -INTEGER_LIMIT, name="hour_whole"),
        CheckConstraint("event IN ('created', 'completed', 'failed', 'cancelled')", name="event_known"),
        whole_number("count", 1, BIG_INTEGER_LIMIT, name="count_positive"),
    )


class PrunedFile(Base):
    """A file to delete: its generation is deleted already. A prune that was killed left it, the next one deletes it."""

    __tablename__ = "pruned_files"

    path: Mapped[str] = mapped_column(primary_key=True)
