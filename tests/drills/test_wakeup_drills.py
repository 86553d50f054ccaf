"""Jobs are submitted one by one to idle workers that never poll, while others commit and workers are killed."""

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import quantiles

import pytest
from sqlalchemy import select

from services.storage import Attempt, Generation, Storage, WorkerStatus, get_session, get_workers, set_favorite
from tests.drills.test_queue_drills import attempts, completed, finish, start
from tests.support.factories import a_generation
from tests.support.stored_times import ahead

pytestmark = pytest.mark.drill
PROCESSES = 4
KILLS = 10
LEASE_SECONDS = 2.0

log = logging.getLogger(__name__)


@contextmanager
def other_commits(storage: Storage) -> Iterator[None]:
    """Commit 50 times a second what is no work."""
    ended = threading.Event()
    with storage.session() as session:
        generation_id = a_generation(session, scheduled_at=ahead(days=1)).id

    def commit() -> None:
        while not ended.wait(0.02):
            with storage.session() as session:
                set_favorite(session, generation_id)

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.sampled
@pytest.mark.parametrize("is_busy", [False, True], ids=["quiet", "busy"])
@pytest.mark.parametrize("kills", [0, KILLS])
def test_every_submission_wakes_a_worker(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int], kills: int, is_busy: bool
) -> None:
    jobs = scaled(1_000)
    kills = min(kills, max(1, scaled(kills)))
    errors = tmp_path / "errors"
    generator = random.Random(11)
    processes = [start(database_url, "idle", errors, LEASE_SECONDS) for _ in range(PROCESSES)]
    while len(live_workers()) < PROCESSES:
        time.sleep(0.02)
    killed = 0
    with other_commits(db) if is_busy else nullcontext():
        for number in range(jobs):
            with get_session() as session:
                a_generation(session)
            time.sleep(generator.uniform(0, 0.05))
            if killed < kills and number >= jobs * (killed + 1) // (kills + 2):
                victim = generator.randrange(PROCESSES)
                processes[victim].kill()
                processes[victim].communicate()
                processes[victim] = start(database_url, "idle", errors, LEASE_SECONDS)
                killed += 1
        while completed() < jobs:  # if all wake-ups for a job were lost, it would wait for an hour
            time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    output = "".join(finish(process) for process in processes)

    assert killed == kills
    assert output == ""
    assert [line for line in errors.read_text().splitlines() if "Error" in line] == []
    results = [attempt.generation_id for attempt in attempts("completed")]
    assert len(results) == len(set(results)) == jobs
    assert attempts("failed") == []
    waits = sorted(
        (attempt.started_at - generation.scheduled_at).total_seconds()
        for attempt, generation in started(db)
        if attempt.started_at is not None
    )
    middle, latest = quantiles(waits, n=100)[49], waits[-1]
    log.info("%s: %d jobs, waited %.1f ms, at most %.0f ms", db.backend.name, jobs, 1e3 * middle, 1e3 * latest)


def live_workers() -> list[WorkerStatus]:
    with get_session(read_only=True) as session:
        return get_workers(session)


def started(storage: Storage) -> list[tuple[Attempt, Generation]]:
    """Return the attempts of the generations that were completed at once, with these."""
    with storage.session() as session:
        found = select(Attempt, Generation).join(Generation, Attempt.generation_id == Generation.id)
        return [(row[0], row[1]) for row in session.execute(found.where(Generation.attempt == 1))]
