"""Conditions, orders and small expressions on generations that several modules use. Executes nothing."""

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    and_,
    literal_column,
    select,
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


def still_has_status(statuses: Iterable[str]) -> ColumnElement[bool]:
    """Return the condition for these statuses, for rows that a statement finds by id or by another index.

    `status || ''` stops the planner of SQLite from using an index on the status: it expects 10 rows of a status, fewer
    than for a list of ids, and would read every row of these statuses for each batch.
    """
    return Generation.status.concat("").in_(statuses)


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


def literal_int(number: int) -> ColumnElement[int]:
    """Return `number` as part of the SQL text, not bound, because planners ignore a bound LIMIT (ADR 23)."""
    return literal_column(str(int(number)), Integer)
