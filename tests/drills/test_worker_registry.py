"""kill -9 of all workers: once their promise is over, no function and no verb counts them."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from services.storage import (
    Storage,
    check_health,
    create_generations,
    estimate_completion,
    explain_wait,
    get_metrics,
    get_queue_stats,
    get_session,
    get_workers,
)
from services.storage.types import utcnow
from tests.support.command_line import run
from tests.support.factories import a_generation, a_request

pytestmark = pytest.mark.drill
LEASE_SECONDS = 2.0  # more for many workers: while they start, one that has a job must not lose its lease


@contextmanager
def worker_processes(
    url: str, count: int, folder: Path, lease_seconds: float
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start workers that never finish a job of the model `slow`; kill those that are left at the end."""
    options = json.dumps({"lease_seconds": lease_seconds, "poll_seconds": 0.05, "model_names": ["slow"]})
    command = [sys.executable, "-m", "tests.support.worker_process", url, "never", str(folder), options]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_killed_workers_count_nowhere_after_their_lease(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    count = max(4, scaled(20))
    lease_seconds = max(LEASE_SECONDS, count / 2)
    with get_session() as session:
        for _ in range(10):
            a_generation(session, model_name="slow").mark_completed(18.0)
        running = [row.id for row in create_generations(session, [a_request(model_name="slow")] * (count // 2))]
        other = a_generation(session, model_name="another").id
    with worker_processes(database_url, count, tmp_path, lease_seconds) as processes:
        wait_until(lambda: sorted(states()) == ["busy"] * (count // 2) + ["idle"] * (count - count // 2))
        with get_session() as session:
            waiting = a_generation(session, model_name="slow", scheduled_at=utcnow() + timedelta(days=1)).id
            assert reason(other) == "no_worker_for_model"
        for line in run("workers", url=database_url).stdout.splitlines():
            assert int(line.split("\t")[6]) in {process.pid for process in processes}
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    dead_at = utcnow()
    with get_session(read_only=True) as session:
        promised = max((worker.expires_at for worker in get_workers(session)), default=dead_at)
    assert promised <= dead_at + timedelta(seconds=lease_seconds)
    wait_until(lambda: utcnow() > promised + timedelta(seconds=0.1))

    with get_session(read_only=True) as session:
        assert get_workers(session) == []
        assert get_queue_stats(session).workers == 0
        assert estimate_completion(session, waiting) is None
    assert reason(other) == "no_workers"
    assert {reason(generation_id) for generation_id in running} == {"expired"}
    health = check_health()
    assert (health.ok, health.workers) == (True, 0)
    assert health.problems == ("1 generation is due, and no worker is running.",)
    assert {value for _, value in re.findall(r"^dgx_storage_workers(\{.*\}) (.*)$", get_metrics(), re.MULTILINE)} == {
        "0"
    }
    assert run("workers", url=database_url).stdout == ""
    assert "workers\t0" in run("stats", url=database_url).stdout.splitlines()
    assert json.loads(run("stats", "--json", url=database_url).stdout)["queue"]["workers"] == 0
    assert json.loads(run("why", other, "--json", url=database_url).stdout)["reason"] == "no_workers"
    assert run("health", url=database_url).exit_code == 1


def states() -> list[str]:
    with get_session(read_only=True) as session:
        return [worker.state for worker in get_workers(session)]


def reason(generation_id: str) -> str:
    with get_session(read_only=True) as session:
        wait = explain_wait(session, generation_id)
    assert wait is not None
    return wait.reason


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; pytest's timeout limits the wait."""
    while not condition():
        time.sleep(0.05)
