"""Whether the database can serve requests, for the health endpoint of an API. Never raises."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from time import perf_counter
from typing import Any, Final

from sqlalchemy import Row, Select, func, literal_column, select, true
from sqlalchemy.exc import SQLAlchemyError

from ..analytics.reports import seconds_between
from ..backends import Backend, StatementClock
from ..claim_order import distinct_priorities
from ..conditions import PENDING, literal_int
from ..engine import Storage, get_storage
from ..errors import StorageError
from ..models import Generation, QueueState
from ..queue.due import select_due_models
from ..queue.workers import count_workers, is_claimed, select_claiming_models
from ..row_loading import ALONE
from ..schema_check import REVISION_OF_HEAD, require_head
from ..serialization import Report

BACKLOG_LIMIT: Final = 10_000  # due generations that are counted, so that the check takes no longer with a million
NAMED_MODELS: Final = 5  # in a sentence


@dataclass(frozen=True)
class Health(Report):
    """Whether a database can serve requests, and what its queue looks like; None where that is unknown.

    `ok` is False if it cannot: it does not answer, its schema is not at this library's revision or lacks a table or
    column, or it cannot be written. `problems` are sentences that say why, and also that generations are due that no
    running worker claims. They contain no password and no prompt. `database` is its URL without the password. `latency`
    is how long it took to answer, in seconds. `backlog` counts the due generations, up to 10,000; `oldest_due` is how
    long the oldest of them has been due, in seconds. `workers` counts the live workers; `paused` says whether claims
    are stopped. `unclaimed_models` are the models of due generations that no live worker claims, among the first 100
    models of pending generations.
    """

    ok: bool
    database: str
    revision: str | None
    latency: float
    backlog: int | None
    oldest_due: float | None
    workers: int | None
    paused: bool | None
    unclaimed_models: tuple[str, ...] | None
    problems: tuple[str, ...]


def check_health(*, storage: Storage | None = None) -> Health:
    """Check the database; see Health. Never raises: what fails is a problem of the result.

    One statement on the primary, which takes no longer in a large database or with a long backlog.
    """
    began = perf_counter()
    database = "unknown"
    try:
        storage = storage or get_storage()
        database = storage.display_url
        return _check(storage, began)
    except Exception as error:
        problem = str(error) if isinstance(error, StorageError) else f"The check failed with {type(error).__name__}."
        return Health(False, database, None, perf_counter() - began, None, None, None, None, None, (problem,))


def _check(storage: Storage, began: float) -> Health:
    if not storage.backend.is_present(storage.url):
        storage.require_schema(refresh=True)  # raises; to connect would create the file
    statement, clock = _select_health(storage.backend)
    try:
        with storage.engine.connect() as connection:
            # One row for each model that has due ones.
            rows = connection.execute(statement, clock.parameters(), execution_options=ALONE).all()
    except (StorageError, SQLAlchemyError):
        storage.require_schema(refresh=True)  # the true reason, if a table or column is missing
        raise
    latency = perf_counter() - began
    row = rows[0]
    faults = _find_faults(storage, row)
    backlog = min(int(row.backlog or 0), BACKLOG_LIMIT)
    claiming = set() if row.claiming is None else set(row.claiming.split("\n"))
    due = sorted(each.due_model for each in rows if each.due_model is not None)
    unclaimed = tuple(model for model in due if not is_claimed(model, claiming))
    problems = list(faults)
    if backlog and not row.paused:
        problems += _find_unclaimed(backlog, row.workers, has_claiming=bool(claiming), models=unclaimed)
    return Health(
        not faults,
        storage.display_url,
        row.revision,
        latency,
        backlog,
        row.oldest_due,
        row.workers,
        row.paused > 0,
        unclaimed,
        tuple(problems),
    )


def _find_faults(storage: Storage, row: Row[Any]) -> list[str]:
    """Return why the database that has answered cannot serve requests."""
    faults = []
    try:
        require_head(row.revision, True, storage.display_url)
    except StorageError as error:
        faults.append(str(error))
    if row.is_standby:
        faults.append(f"The database {storage.display_url} is a standby, which refuses writes: name the primary.")
    elif reason := storage.backend.explain(storage.url):
        faults.append(reason)
    return faults


def _find_unclaimed(backlog: int, workers: int, *, has_claiming: bool, models: Sequence[str]) -> Iterator[str]:
    """Yield why due generations are not claimed, if no live worker claims them."""
    if not workers:
        yield f"{_say_backlog(backlog)} due, and no worker is running."
    elif not has_claiming:
        yield f"{_say_backlog(backlog)} due, and all running workers are stopping."
    elif models:
        names = ", ".join(models[:NAMED_MODELS])
        more = f" and {len(models) - NAMED_MODELS} more" if len(models) > NAMED_MODELS else ""
        yield (
            f"Generations of {'this model' if len(models) == 1 else 'these models'} are due, and no running worker "
            f"claims them: {names}{more}."
        )


def _say_backlog(count: int) -> str:
    many = f"{count:,}{' or more' if count == BACKLOG_LIMIT else ''} generations are"
    return "1 generation is" if count == 1 else many


@cache
def _select_health(backend: Backend) -> tuple[Select[Any], StatementClock]:
    clock = backend.statement_clock()
    now = clock(timedelta(0))
    # A seek in the index of the queue for each priority: rows that are not due yet are not read.
    levels = distinct_priorities([PENDING], true())
    due = select(Generation.scheduled_at).where(
        PENDING, Generation.priority == levels.c.priority, Generation.scheduled_at <= now
    )
    counted = due.limit(literal_int(BACKLOG_LIMIT)).correlate(levels).subquery()
    oldest = due.order_by(Generation.scheduled_at).limit(literal_int(1)).correlate(levels).scalar_subquery()
    count = select(func.count()).select_from(counted).correlate(levels).scalar_subquery()
    backlog = select(func.sum(count).label("backlog"), func.min(oldest).label("oldest")).select_from(levels).subquery()
    claiming, due_models = select_claiming_models(clock).subquery(), select_due_models(levels, now)
    statement = select(
        literal_column(f"({REVISION_OF_HEAD})").label("revision"),
        backlog.c.backlog,
        seconds_between(backend, now, backlog.c.oldest).label("oldest_due"),
        count_workers(clock).label("workers"),
        select(func.count()).where(QueueState.paused_at.is_not(None)).scalar_subquery().label("paused"),
        backend.is_standby().label("is_standby"),
        # One text, because each row is for a model; JSON has no line breaks.
        select(func.aggregate_strings(claiming.c.models, "\n")).scalar_subquery().label("claiming"),
        due_models.c.due_model,
    )
    return statement.select_from(backlog.outerjoin(due_models, true())), clock
