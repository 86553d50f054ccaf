"""The status checks of a generation, such as is_pending: a bool on a row, an SQL condition on the class."""

from typing import Any

from sqlalchemy import ColumnElement, literal_column
from sqlalchemy.ext.hybrid import hybrid_property

from .lifecycle import FINISHED, GenerationStatus


def _status_is(*statuses: GenerationStatus) -> hybrid_property[bool]:
    # Literals, because neither database uses a partial index, such as that of the queue, for a bound value.
    literals: list[ColumnElement[str]] = [literal_column(f"'{status.value}'") for status in sorted(statuses)]

    def check(row: Any) -> bool:
        return row.status in statuses

    def condition(model: Any) -> ColumnElement[bool]:
        condition: ColumnElement[bool] = model.status.in_(literals) if literals[1:] else model.status == literals[0]
        return condition

    check.__doc__ = f"Whether the status is {' or '.join(sorted(statuses))}."
    return hybrid_property(check, expr=condition)


class StatusPredicates:
    """A mixin for a model with the column `status`."""

    is_pending = _status_is(GenerationStatus.PENDING)
    is_processing = _status_is(GenerationStatus.PROCESSING)
    is_complete = _status_is(GenerationStatus.COMPLETED)
    is_failed = _status_is(GenerationStatus.FAILED)
    is_cancelled = _status_is(GenerationStatus.CANCELLED)
    is_finished = _status_is(*FINISHED)
