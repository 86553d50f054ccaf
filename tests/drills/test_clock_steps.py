"""The database's clock is set back and forth by hours while jobs are stored, claimed, lost and finished."""

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from services.storage import (
    Generation,
    Lease,
    LeaseLostError,
    Storage,
    claim_generation,
    complete_generation,
    create_generations,
    get_attempts,
    heartbeat_generation,
    reclaim_generations,
)
from services.storage.types import utcnow
from tests.support.factories import a_request
from tests.support.stored_times import set_clock_back

LEASE_SECONDS = 60.0
STEPS = (3, 30, 3_600, 86_400)  # seconds; a step of less than one is waited for


@pytest.mark.sampled
@pytest.mark.drill
@pytest.mark.parametrize("seed", range(3))
def test_every_job_is_done_once_and_no_step_hides_it(db: Storage, scaled: Callable[[int], int], seed: int) -> None:
    chance = random.Random(seed)
    held: list[Lease] = []
    stored = finished = 0
    for _ in range(scaled(200) + 10):
        with db.session() as session:
            stored += len(create_generations(session, [a_request(max_attempts=10_000) for _ in range(2)]))
        step = chance.choice(STEPS) * chance.choice((-1, 1, 1))
        set_clock_back(db, seconds=step)
        with db.session() as session:
            reclaim_generations(session)
            longest = utcnow() + timedelta(seconds=LEASE_SECONDS + 86_400)
            for row in session.query(Generation).filter_by(status="processing"):
                assert row.lease_expires_at is not None
                assert row.lease_expires_at <= longest
            # The job is due whatever the clock says: it was stored a moment ago.
            claimed = claim_generation(session, lease_seconds=LEASE_SECONDS)
            assert claimed is not None
            assert claimed.lease is not None
        held.append(claimed.lease)
        lease = held.pop(chance.randrange(len(held)))
        if chance.random() < 0.3:
            continue  # its worker dies
        with suppress(LeaseLostError), db.session() as session:
            heartbeat_generation(session, lease, lease_seconds=LEASE_SECONDS)
            complete_generation(session, lease.generation_id, 1.0, 1, lease=lease)
            finished += 1
    while True:  # the workers that are left are dead; their leases end within their own length
        set_clock_back(db, seconds=-LEASE_SECONDS - 1)
        with db.session() as session:
            reclaim_generations(session)
            claimed = claim_generation(session, lease_seconds=LEASE_SECONDS)
            if claimed is None:
                left = session.query(Generation).filter(Generation.completed_at.is_(None)).count()
                if not left:
                    break
                continue
            complete_generation(session, claimed.id, 1.0, 1, lease=claimed.lease)
            finished += 1
    assert finished == stored
    with db.session() as session:
        for row in session.query(Generation):
            outcomes = [attempt.outcome for attempt in get_attempts(session, row.id)]
            assert outcomes.count("completed") == 1
            assert set(outcomes) <= {"completed", "lost"}
