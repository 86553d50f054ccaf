"""Change stored times instead of waiting."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.storage import Generation, Storage, get_session
from services.storage.models import Base, RegisteredWorker
from services.storage.types import UTCDateTime, utcnow


def ago(**amount: float) -> datetime:
    return utcnow() - timedelta(**amount)


def ahead(**amount: float) -> datetime:
    return utcnow() + timedelta(**amount)


def rewrite(generation_id: str, **values: Any) -> None:
    """Write columns with an UPDATE, without the rules of the model."""
    with get_session() as session:
        session.execute(update(Generation).where(Generation.id == generation_id).values(values))


def rewrite_worker(session: Session, worker_id: str, **values: Any) -> None:
    """Write columns of a registered worker."""
    session.execute(update(RegisteredWorker).where(RegisteredWorker.id == worker_id).values(values))


def expire_lease(generation_id: str) -> None:
    rewrite(generation_id, lease_expires_at=ago(seconds=1))


def make_due(generation_id: str) -> None:
    rewrite(generation_id, scheduled_at=ago(seconds=1))


def pass_time(**amount: float) -> None:
    """Do to the stored times of leases and workers what waiting does: they are then as much longer ago."""
    step = timedelta(**amount)
    with get_session() as session:
        for model, columns in (
            (Generation, ("created_at", "scheduled_at", "started_at", "lease_expires_at")),
            (RegisteredWorker, ("started_at", "last_seen_at", "expires_at")),
        ):
            times = [getattr(model, name) for name in columns]
            for row in session.execute(select(model.id, *times)).all():
                earlier = {time.key: value - step for time, value in zip(times, row[1:], strict=True) if value}
                session.execute(update(model).where(model.id == row.id).values(earlier))


def set_clock_back(storage: Storage, **amount: float) -> None:
    """Do to the stored times what a step of the clock does: those of the past are then as far in the future."""
    step = timedelta(**amount)
    with storage.engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            keys = list(table.primary_key.columns)
            times = [column for column in table.columns if isinstance(column.type, UTCDateTime)]
            for row in connection.execute(select(table)).mappings().all() if times else ():
                moved = {time.name: row[time.name] + step for time in times if row[time.name] is not None}
                if moved:
                    same = [key == row[key.name] for key in keys]
                    connection.execute(table.update().where(*same).values(moved))
