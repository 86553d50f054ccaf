"""What is due, and when the next generation will be; and tell the idle workers. SQL only; never commits.

See ADR 35.
"""

from collections.abc import Iterable
from datetime import timedelta
from functools import cache, lru_cache
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Subquery,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy.orm import Session

from ..backends import Backend, backend_for
from ..claim_order import distinct_priorities
from ..conditions import NOT_PAUSED, PENDING, is_valid, literal_int
from ..models import Generation
from ..row_loading import connection_of
from ..types import UTCDateTime
from ..validation import validate_name

# Idle workers are also told of what is due soon: they wait until then, and in a minute every one of them has polled.
SOON: Final = timedelta(minutes=1)
MODEL_LIMIT: Final = 100


def seconds_until_due(session: Session | Connection, model_names: Iterable[str] | None = None) -> float | None:
    """Return the seconds until the next pending generation is due, 0 if one is; None without one or while paused.

    A generation that another transaction is claiming counts until that transaction commits.
    """
    models = validate_models(model_names)
    if not models:
        return None
    statement = _select_next(backend_for(session), models)
    connection = connection_of(session) if isinstance(session, Session) else session
    scheduled_at, now = connection.execute(statement).one_or_none() or (None, None)
    return None if scheduled_at is None else max(0.0, (scheduled_at - now).total_seconds())


def select_pending(model_names: Iterable[str] | None = None) -> Select[Any]:
    """Return a query that finds a row if any generation is pending, due or not, and the queue is not paused."""
    found = [exists().where(*waiting_for(model)) for model in validate_models(model_names)]
    return select(literal_column("1")).where(or_(false(), *found), NOT_PAUSED)


def announce_due(session: Session | Connection) -> None:
    """Let idle workers look for work when the transaction commits, on a database that does not tell them of commits."""
    connection = session.connection() if isinstance(session, Session) else session
    if is_announced(connection):
        connection.execute(_announcement(backend_for(session)))


def is_announced(connection: Connection) -> bool:
    """Return whether transactions of `connection` have to announce what has become due."""
    return bool(connection.get_execution_options().get("announces_due", False))


def validate_models(model_names: Iterable[str] | None) -> tuple[str | None, ...]:
    """Return the distinct names, sorted; (None,) means any model. Raises TypeError for text instead of a list."""
    if model_names is None:
        return (None,)
    if isinstance(model_names, str):
        raise TypeError("model_names must be a list of names, not text: put a single name into a list")
    return (*sorted({validate_name("model_names", name) for name in model_names}),)


def waiting_for(model: str | None) -> list[ColumnElement[bool]]:
    """Return the conditions of the pending generations of a model, or of any."""
    return [PENDING] if model is None else [PENDING, Generation.model_name == model]


def select_due_models(levels: CTE, moment: Any) -> Subquery:
    """Return the query for the models (`due_model`) of generations that were due at a moment.

    `levels` are the priorities of the pending generations. A seek in the index for each priority and each of the first
    hundred models of pending generations, so that neither a long backlog nor many models make it slow.
    """
    name = func.min(Generation.model_name)
    seen = select(name.label("name"), literal_column("1", Integer).label("number")).where(PENDING)
    models = seen.cte("models", recursive=True)
    following = select(name).where(PENDING, Generation.model_name > models.c.name).scalar_subquery()
    step = select(following, models.c.number + literal_int(1))
    models = models.union_all(step.where(models.c.name.is_not(None), models.c.number < literal_int(MODEL_LIMIT)))
    first = select(Generation.scheduled_at).where(
        PENDING, Generation.model_name == models.c.name, Generation.priority == levels.c.priority
    )
    first = first.order_by(Generation.scheduled_at).limit(literal_int(1)).correlate(models, levels)
    earliest = select(func.min(first.scalar_subquery())).select_from(levels).correlate(models).scalar_subquery()
    # Without the last name, which is NULL: PostgreSQL may look for that through the whole backlog.
    named = models.c.name.is_not(None)
    return select(models.c.name.label("due_model")).where(named, earliest <= moment).subquery()


@cache
def _announcement(backend: Backend) -> Select[Any]:
    return select(backend.announce_due())


@lru_cache(maxsize=128)
def _select_next(backend: Backend, models: tuple[str | None, ...]) -> Any:
    """Return the query for the earliest `scheduled_at` of the pending generations and for now, by index seeks alone."""
    firsts = []
    for model in models:
        waiting = waiting_for(model)
        levels = distinct_priorities(waiting, true())
        first = select(Generation.scheduled_at).where(
            *waiting, Generation.priority == levels.c.priority, is_valid(backend.name)
        )
        first = first.order_by(Generation.scheduled_at, Generation.id).limit(literal_int(1)).correlate(levels)
        firsts.append(select(first.scalar_subquery().label("scheduled_at")).select_from(levels))
    soonest = union_all(*firsts).subquery()
    now = type_coerce(backend.now(), UTCDateTime())
    return select(func.min(soonest.c.scheduled_at), now).where(NOT_PAUSED)
