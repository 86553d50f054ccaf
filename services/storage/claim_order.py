"""The order in which generations are claimed: highest priority, then earliest due, then by id. Executes nothing.

Claims, queue positions, estimates and lists of pending generations all use it. See ADR 15.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    ScalarSelect,
    Text,
    and_,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)

from .models import Generation

CLAIM_ORDER: Final = (Generation.priority.desc(), Generation.scheduled_at, Generation.id)


def is_before(other: Any, job: Any) -> ColumnElement[bool]:
    """Return the condition that `other` precedes `job` in claim order."""
    is_older = tuple_(other.scheduled_at, other.id) < tuple_(job.scheduled_at, job.id)
    return or_(other.priority > job.priority, and_(other.priority == job.priority, is_older))


def distinct_priorities(
    waiting: Sequence[ColumnElement[bool]], due: ColumnElement[bool], enough: int | None = None
) -> CTE:
    """Return the distinct priorities of the rows that meet `waiting`: highest first, None last, one index seek each.

    A loose index scan (https://wiki.postgresql.org/wiki/Loose_indexscan): a recursive query that seeks the next lower
    priority. It stops after `enough` priorities with a row that is `due`, so its cost does not grow with the number of
    priorities. See ADR 15.
    """
    highest = func.max(Generation.priority).label("priority")
    seen = select(highest, literal_column("0", Integer).label("found")).where(*waiting).cte(recursive=True)
    lower = select(func.max(Generation.priority)).where(*waiting, Generation.priority < seen.c.priority)
    step = select(lower.scalar_subquery(), seen.c.found).where(seen.c.priority.is_not(None))
    if enough is not None:
        has_due = exists().where(*waiting, Generation.priority == seen.c.priority, due)
        step = select(lower.scalar_subquery(), seen.c.found + cast(has_due, Integer))
        step = step.where(seen.c.priority.is_not(None), seen.c.found < enough)
    return seen.union_all(step)


def first_due(waiting: Sequence[ColumnElement[bool]], due: ColumnElement[bool]) -> ScalarSelect[str]:
    """Return the id of the first row in claim order that meets `waiting` and is `due`; NULL if there is none.

    Seeks each priority as distinct_priorities() does, until one has such a row, and so evaluates `due` once for it.
    """
    highest = func.max(Generation.priority).label("priority")
    seen = select(highest, literal_column("NULL", Text).label("id")).where(*waiting).cte(recursive=True)
    lower = select(func.max(Generation.priority)).where(*waiting, Generation.priority < seen.c.priority)
    first = select(Generation.id).where(*waiting, Generation.priority == seen.c.priority, due)
    first = first.order_by(Generation.scheduled_at, Generation.id).limit(literal_column("1")).correlate(seen)
    step = select(lower.scalar_subquery(), first.scalar_subquery())
    found = seen.union_all(step.where(seen.c.priority.is_not(None), seen.c.id.is_(None)))
    return select(found.c.id).where(found.c.id.is_not(None)).scalar_subquery()
