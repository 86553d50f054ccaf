"""Conditions, orders and small expressions on generations that several modules use. Executes nothing."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    and_,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)

from .declarative import checks_of
from .lifecycle import GenerationStatus
from .limits import INTEGER_LIMIT
from .models import Generation, QueueState

# Literals, because neither database uses a partial index (of the queue, of the leases) for a bound value.
PENDING: Final = Generation.status == literal_column("'pending'")
PROCESSING: Final = Generation.status == literal_column("'processing'")
HAS_ATTEMPTS_LEFT: Final = Generation.attempt < Generation.max_attempts
NOT_PAUSED: Final = select(QueueState.paused_at).scalar_subquery().is_(None)
CLAIM_ORDER: Final = (Generation.priority.desc(), Generation.scheduled_at, Generation.id)

# Options for UPDATE … RETURNING through a session: the returned rows refresh the objects in the session, so SQLAlchemy
# need not determine which objects the statement changes.
REFRESH: Final = {"populate_existing": True, "synchronize_session": False}


def newest_first(model: Any = Generation) -> tuple[Any, Any]:
    """Return the ORDER BY of lists: newest first, then by id. Neither column changes once a row is stored."""
    return model.created_at.desc(), model.id.desc()


def of_status(status: str, model: Any = Generation) -> ColumnElement[bool]:
    """Return the condition for one status, written so that newest_first() needs no sort on either database.

    Most rows are completed, so a scan of idx_generations_created_at finds a page of them quickly: `status || ''` stops
    the planner from using idx_generations_status, after which it would sort. For the other statuses, the second
    condition lets it use the partial index idx_generations_status_created_at.
    """
    if status == GenerationStatus.COMPLETED:
        return and_(model.status.concat("") == status)
    return and_(model.status == status, model.status != literal_column("'completed'"))


def is_before(other: Any, job: Any) -> ColumnElement[bool]:
    """Return the condition that `other` precedes `job` in claim order."""
    is_older = tuple_(other.scheduled_at, other.id) < tuple_(job.scheduled_at, job.id)
    return or_(other.priority > job.priority, and_(other.priority == job.priority, is_older))


@cache
def is_valid(dialect: str) -> ColumnElement[bool]:
    """Return the condition that a generation meets every CHECK, and that its numbers can count one more claim.

    Rows of older databases may violate a CHECK; an UPDATE of such a row fails, and with it the claim of every worker.
    """
    table: Any = Generation.__table__
    rules = [str(check.sqltext) for check in checks_of(table, dialect)]
    rules += [f"{column} < {INTEGER_LIMIT}" for column in ("attempt", "version")]
    # PostgreSQL expects 99.5 % of the rows to meet "<> 1"; it would multiply the selectivities of the rules and expect
    # none, and choose plans for that.
    rule = " AND ".join(f"({one})" for one in rules)
    return literal_column(f"CASE WHEN ({rule}) IS FALSE THEN 1 ELSE 0 END", Integer) != literal_column("1")


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


def literal_int(number: int) -> ColumnElement[int]:
    """Return `number` as part of the SQL text, not bound, because planners ignore a bound LIMIT (ADR 23)."""
    return literal_column(str(int(number)), Integer)
