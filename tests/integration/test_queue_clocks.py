"""Clocks: those of submitters do not matter, and the queue goes on when the database's clock is set."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    RetryPolicy,
    Storage,
    claim_generation,
    claim_generations,
    create_generation,
    create_generations,
    fail_generation,
    get_attempts,
    get_generation,
    heartbeat_generation,
    reclaim_generations,
    retry_generation,
)
from services.storage.types import utcnow
from tests.support.factories import a_generation, a_request
from tests.support.plans import statements_of
from tests.support.stored_times import ago, ahead, set_clock_back


def fail(session: Session) -> None:
    a_generation(session, generation_id="new").mark_processing()
    fail_generation(session, "new", "x", retry=True, retry_policy=RetryPolicy(0, cap_seconds=0))


def retry(session: Session) -> None:
    a_generation(session, generation_id="new").mark_failed("x")
    session.flush()
    retry_generation(session, "new")


SUBMITTED: dict[str, Callable[[Session], Any]] = {
    "create_generation": lambda session: create_generation(session, **a_request(generation_id="new")),
    "with a key": lambda session: create_generation(session, **a_request(generation_id="new", idempotency_key="k")),
    "create_generations": lambda session: create_generations(session, [a_request(generation_id="new"), a_request()]),
    "session.add": lambda session: session.add(Generation(**a_request(id="new"))),
    "fail_generation": fail,
    "retry_generation": retry,
}


@pytest.fixture
def set_my_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the clock of this process, which on PostgreSQL is not the database's."""

    def set_my_clock(**offset: float) -> None:
        from services.storage import lifecycle, models
        from services.storage.queue import enqueue

        def read() -> datetime:
            return datetime.now(UTC) + timedelta(**offset)

        for module in (lifecycle, models, enqueue):
            monkeypatch.setattr(module, "utcnow", read)
        created_at = Generation.__table__.c.created_at  # type: ignore[attr-defined]
        monkeypatch.setattr(created_at.default, "arg", lambda context: read())

    return set_my_clock


@pytest.mark.parametrize("minutes", [-10, 10])
@pytest.mark.parametrize("way", SUBMITTED)
def test_a_job_is_due_when_it_is_stored_by_the_clock_of_the_database(
    db: Storage, set_my_clock: Callable[..., None], way: str, minutes: int
) -> None:
    if db.backend.name == "sqlite":
        minutes = 0  # one host, one clock
    with db.session() as session:
        a_generation(session, generation_id="first")
    set_my_clock(minutes=minutes)
    with db.session() as session:
        SUBMITTED[way](session)
        stored = get_generation(session, "new")
        assert stored is not None
        assert abs(stored.scheduled_at - utcnow()) < timedelta(seconds=60)
    with db.session() as session:
        again = session.get_one(Generation, "new")
        assert (again.scheduled_at, again.created_at) == (stored.scheduled_at, stored.created_at)
        assert [row.id for row in claim_generations(session, 2)] == ["first", "new"]


@pytest.mark.parametrize("way", ["create", "add"])
def test_times_that_were_given_are_stored_as_given(db: Storage, way: str) -> None:
    later, before = ahead(hours=1), ago(days=9)
    with db.session() as session:
        if way == "create":
            create_generation(session, **a_request(generation_id="later", scheduled_at=later))
        else:
            session.add(Generation(**a_request(id="later", scheduled_at=later)))
        session.add(Generation(**a_request(id="old", created_at=before)))
    with db.session() as session:
        assert session.get_one(Generation, "later").scheduled_at == later
        old = session.get_one(Generation, "old")
        assert (old.created_at, old.scheduled_at) == (before, before)


class TestAClockSetBack:
    def test_the_backlog_is_due_as_before_and_in_order(self, db: Storage) -> None:
        with db.session() as session:
            ids = [row.id for row in create_generations(session, [a_request() for _ in range(5)])]
            create_generation(session, **a_request(generation_id="later", scheduled_at=ahead(hours=2)))
        set_clock_back(db, hours=1)
        with db.session() as session:
            assert claim_generation(session) is None
            reclaim_generations(session)
            assert [row.id for row in claim_generations(session, 9)] == ids
            assert session.get_one(Generation, "later").scheduled_at > ahead(hours=2)

    def test_a_retry_is_due(self, db: Storage) -> None:
        with db.session() as session:
            a_generation(session, generation_id="again")
        set_clock_back(db, hours=-2)  # it was created long before
        with db.session() as session:
            claimed = claim_generation(session)
            assert claimed is not None
            fail_generation(session, "again", "x", lease=claimed.lease)
        set_clock_back(db, hours=1)
        with db.session() as session:
            reclaim_generations(session)
            assert claim_generation(session) is not None

    def test_the_lease_of_a_dead_worker_ends_within_its_own_length(self, db: Storage) -> None:
        with db.session() as session:
            a_generation(session, generation_id="held")
            assert claim_generation(session, "dead", lease_seconds=60) is not None
        set_clock_back(db, days=1)
        with db.session() as session:
            assert reclaim_generations(session) == []
        with db.session() as session:
            held = session.get_one(Generation, "held")
            assert held.lease_expires_at is not None
            assert ahead(seconds=30) < held.lease_expires_at <= ahead(seconds=61)
            assert held.started_at is not None
            assert held.started_at <= utcnow()
        set_clock_back(db, seconds=-61)
        with db.session() as session:
            assert [row.id for row in reclaim_generations(session)] == ["held"]

    def test_a_live_worker_keeps_its_lease(self, db: Storage) -> None:
        with db.session() as session:
            a_generation(session, generation_id="held")
            claimed = claim_generation(session, lease_seconds=60)
            assert claimed is not None
            lease = claimed.lease
            assert lease is not None
        set_clock_back(db, days=1)
        with db.session() as session:
            assert reclaim_generations(session) == []
            beaten = heartbeat_generation(session, lease, lease_seconds=60)
            assert beaten.lease == lease
            assert reclaim_generations(session) == []
            assert get_attempts(session, "held") == []

    def test_a_right_clock_costs_one_query_and_changes_nothing(self, db: Storage) -> None:
        with db.session() as session:
            a_generation(session, generation_id="later", scheduled_at=ahead(hours=2))
            before = a_generation(session).scheduled_at
            with statements_of(session) as sent:
                reclaim_generations(session)
            assert len(sent) == 1  # the INSERT of lost attempts is no query
            session.expire_all()
            assert {row.scheduled_at for row in session.query(Generation)} >= {before}
