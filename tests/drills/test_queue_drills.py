"""Many processes work on one queue and are killed: every job is completed and recorded exactly once."""

import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services.storage import (
    Attempt,
    Generation,
    Storage,
    claim_generation,
    complete_generation,
    count_generations,
    create_generations,
    get_generation,
    get_session,
    reclaim_generations,
)
from tests.support.factories import a_request

pytestmark = pytest.mark.drill
PROCESSES = 8
KILLS = 10
BATCH = 10
# A batch sends no heartbeats, so its lease has to last for all of its jobs.
LEASE_SECONDS = {"worker": 3.0, "batches": 10.0}

log = logging.getLogger(__name__)


def start(url: str, mode: str, errors: Path, lease_seconds: float) -> subprocess.Popen[str]:
    with errors.open("a") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.queue_process", url, mode, str(lease_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGTERM)  # SIGTERM came before the handler was installed
    return output


def submit(count: int) -> None:
    with get_session() as session:
        create_generations(session, [a_request(priority=number % 3, max_attempts=100) for number in range(count)])


def completed() -> int:
    with get_session(read_only=True) as session:
        return count_generations(session, "completed")


def attempts(outcome: str) -> list[Attempt]:
    with get_session(read_only=True) as session:
        return list(session.scalars(select(Attempt).where(Attempt.outcome == outcome)))


@pytest.mark.sampled
@pytest.mark.parametrize("kills", [0, KILLS])
@pytest.mark.parametrize("mode", ["worker", "batches"])
def test_eight_processes_complete_every_job_exactly_once(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int], mode: str, kills: int
) -> None:
    jobs = scaled(10_000)
    kills = min(kills, max(2, scaled(kills)))
    submit(jobs)
    errors = tmp_path / "errors"
    started = time.monotonic()
    processes = [start(database_url, mode, errors, LEASE_SECONDS[mode]) for _ in range(PROCESSES)]
    killed = 0
    generator = random.Random(7)
    while (done := completed()) < jobs:
        if killed < kills and done >= jobs * (killed + 1) // (kills + 2):
            victim = generator.randrange(PROCESSES)
            processes[victim].kill()
            processes[victim].communicate()
            processes[victim] = start(database_url, mode, errors, LEASE_SECONDS[mode])
            killed += 1
        time.sleep(0.02)
    seconds = time.monotonic() - started
    if mode == "worker":
        for process in processes:
            process.send_signal(signal.SIGTERM)
    output = "".join(finish(process) for process in processes)

    assert killed == kills
    assert output == "", "a process lost a lease that it still used"
    assert [line for line in errors.read_text().splitlines() if "Error" in line] == []
    with get_session(read_only=True) as session:
        assert count_generations(session, "completed") == jobs
        most_attempts = session.scalar(select(func.max(Generation.attempt))) or 0
    results = [attempt.generation_id for attempt in attempts("completed")]
    assert len(results) == len(set(results)) == jobs
    assert attempts("failed") == attempts("released") == []
    lost = attempts("lost")
    assert most_attempts <= 1 + kills
    assert len(lost) <= kills * (1 if mode == "worker" else BATCH)
    for attempt in lost:
        assert attempt.started_at is not None
        assert (attempt.finished_at - attempt.started_at).total_seconds() >= LEASE_SECONDS[mode]
    log.info("%s %s: %d jobs, %d attempts lost, %.0f jobs/s", db.backend.name, mode, jobs, len(lost), jobs / seconds)


def test_every_call_with_a_lost_lease_of_a_stopped_process_is_refused(
    db: Storage, database_url: str, tmp_path: Path
) -> None:
    submit(1)
    stale = start(database_url, "stale", tmp_path / "errors", lease_seconds=0.5)
    assert stale.stdout is not None
    assert stale.stdin is not None
    _, generation_id = stale.stdout.readline().split()
    stale.send_signal(signal.SIGSTOP)
    reclaimed: list[Generation] = []
    while not reclaimed:
        with get_session() as session:
            reclaimed = reclaim_generations(session)
    with get_session() as session:
        generation = claim_generation(session, "next worker")
        assert generation is not None
        assert generation.id == generation_id
        complete_generation(session, generation_id, 18.5, 5_000_000, {"by": "next worker"}, lease=generation.lease)
        result = generation.to_dict()
    stale.send_signal(signal.SIGCONT)
    output, _ = stale.communicate("\n")
    assert output.split("\n")[:4] == [f"{name} refused" for name in ("heartbeat", "complete", "fail", "release")]
    with get_session() as session:
        generation = get_generation(session, generation_id)
        assert generation is not None
        assert generation.to_dict() == result


def test_a_job_that_kills_its_worker_in_each_attempt_fails_with_its_history(
    db: Storage, database_url: str, tmp_path: Path
) -> None:
    """No stored time is changed: real leases expire, and the next worker reclaims the job."""
    with get_session() as session:
        generation_id = create_generations(session, [a_request(max_attempts=3)])[0].id
    for _ in range(3):
        arguments = [database_url, "kill", str(tmp_path), '{"lease_seconds": 0.5, "poll_seconds": 0.05}']
        process = subprocess.run([sys.executable, "-m", "tests.support.worker_process", *arguments], check=False)
        assert process.returncode == -signal.SIGKILL
    reclaimed: list[Generation] = []
    while not reclaimed:
        with get_session() as session:
            reclaimed = reclaim_generations(session)
    assert [(row.id, row.status) for row in reclaimed] == [(generation_id, "failed")]
    assert [attempt.number for attempt in attempts("lost")] == [1, 2, 3]
