"""Correct times that a step of the database's clock has put into the future. SQL only; never commits. See ADR 31.

A clock that is set back by an hour would hide the backlog for an hour and keep the leases of dead workers for as long.
What was stored says so: a row cannot have been created, nor an attempt have ended, later than now.
"""

from datetime import timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import exists, or_, select, type_coerce, update
from sqlalchemy.orm import Session

from ..backends import Backend, backend_for
from ..conditions import PENDING, PROCESSING, is_valid
from ..models import Attempt, Generation
from ..types import UTCDateTime

TOLERANCE_SECONDS: Final = 1.0  # corrections by NTP are smaller, and nobody notices so short a wait
ROWS_AT_ONCE: Final = 10_000  # 0.2 s of SQLite's write lock; the next call corrects more
NO_SYNC: Final = {"synchronize_session": False}


def correct_times(session: Session) -> None:
    """Make due what was due before the clock was set back, and let leases end within their own length from now.

    One query while the clock is right.
    """
    backend = backend_for(session)
    leases, rows = session.execute(_find_steps(backend)).one()
    if leases:
        _shorten_leases(session, backend)
    if rows:
        session.execute(_make_due(backend), execution_options=NO_SYNC)


@cache
def _find_steps(backend: Backend) -> Any:
    future = select(backend.now(TOLERANCE_SECONDS)).scalar_subquery()
    leases = exists().where(PROCESSING, Generation.started_at > future)
    rows = or_(exists().where(Generation.created_at > future), exists().where(Attempt.finished_at > future))
    return select(leases, rows)


def _shorten_leases(session: Session, backend: Backend) -> None:
    """Move the leases given after now, so that each starts now. A live worker's next heartbeat extends its lease."""
    now = type_coerce(backend.now(), UTCDateTime())
    future = select(backend.now(TOLERANCE_SECONDS)).scalar_subquery()
    columns = (Generation.id, Generation.started_at, Generation.lease_expires_at, now.label("now"))
    found = select(*columns).where(
        PROCESSING, Generation.started_at > future, Generation.lease_expires_at.is_not(None), is_valid(backend.name)
    )
    for generation_id, started_at, lease_expires_at, moment in session.execute(found).all():
        assert started_at is not None, "the condition of the query"
        assert lease_expires_at is not None, "the condition of the query"
        length = max(lease_expires_at - started_at, timedelta(0))
        move = update(Generation).where(Generation.id == generation_id, PROCESSING)
        move = move.where(Generation.lease_expires_at == lease_expires_at)
        # The version stays, as with a heartbeat: no function without a lease writes these columns.
        session.execute(move.values(started_at=moment, lease_expires_at=moment + length), execution_options=NO_SYNC)


@cache
def _make_due(backend: Backend) -> Any:
    """Return the UPDATE of pending rows that were due when they were stored, or that wait for a retry."""
    future = select(backend.now(TOLERANCE_SECONDS)).scalar_subquery()
    last_attempt = exists().where(
        Attempt.generation_id == Generation.id, Attempt.number == Generation.attempt, Attempt.finished_at > future
    )
    was_due = or_(Generation.scheduled_at <= Generation.created_at, last_attempt)
    hidden = select(Generation.id).where(PENDING, Generation.scheduled_at > future, was_due, is_valid(backend.name))
    return (
        update(Generation)
        .where(Generation.id.in_(hidden.limit(ROWS_AT_ONCE)))
        .values(scheduled_at=select(backend.now()).scalar_subquery(), version=Generation.version + 1)
    )
