"""A process of the queue's drills: `python -m tests.support.queue_process URL MODE LEASE_SECONDS`.

MODE worker completes jobs, without rendering, until it is told to stop. MODE idle does so too, but does not poll. MODE
batches does so until no job is left. MODE stale uses a lease after it was lost. Errors end the process with a traceback
and an exit code other than 0.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from services.storage import (
    GenerationStatus,
    Lease,
    LeaseLostError,
    Result,
    Worker,
    claim_generation,
    claim_generations,
    complete_generation,
    fail_generation,
    get_session,
    get_storage,
    heartbeat_generation,
    init_db,
    reclaim_generations,
    release_generation,
    run_in_transaction,
)
from services.storage.database import count_generations

BATCH = 10
CALLS: dict[str, Callable[[Any, Lease], Any]] = {
    "heartbeat": heartbeat_generation,
    "complete": lambda session, lease: complete_generation(session, lease.generation_id, 1.0, 1, lease=lease),
    "fail": lambda session, lease: fail_generation(session, lease.generation_id, "x", lease=lease),
    "release": release_generation,
}


def print_line(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def work(lease_seconds: float) -> None:
    Worker(lambda job: Result(1), lease_seconds=lease_seconds, poll_seconds=0.1).run()


def work_when_woken(lease_seconds: float) -> None:
    Worker(lambda job: Result(1), lease_seconds=lease_seconds, poll_seconds=3_600).run()


def work_in_batches(lease_seconds: float) -> None:
    while True:
        run_in_transaction(reclaim_generations)
        batch = run_in_transaction(lambda session: claim_generations(session, BATCH, lease_seconds=lease_seconds))
        for generation in batch:
            assert generation.lease is not None
            try:
                run_in_transaction(lambda session, lease=generation.lease: CALLS["complete"](session, lease))
            except LeaseLostError:
                print_line("lost", generation.id)
        if not batch:
            if run_in_transaction(count_unfinished) == 0:
                return
            time.sleep(0.05)


def count_unfinished(session: Any) -> int:
    return sum(count_generations(session, status) for status in (GenerationStatus.PENDING, GenerationStatus.PROCESSING))


def use_lost_lease(lease_seconds: float) -> None:
    """Claim a job, wait for a line that is sent once the lease is lost, then try every call with the lease."""
    with get_session() as session:
        generation = claim_generation(session, "stale worker", lease_seconds=lease_seconds)
        assert generation is not None
        lease = generation.lease
        assert lease is not None
    print_line("claimed", generation.id)
    sys.stdin.readline()
    for name, call in CALLS.items():
        with get_session() as session:
            try:
                call(session, lease)
            except LeaseLostError:
                print_line(name, "refused")
            else:
                print_line(name, "accepted")


if __name__ == "__main__":
    init_db(sys.argv[1])
    modes = {"worker": work, "idle": work_when_woken, "batches": work_in_batches, "stale": use_lost_lease}
    modes[sys.argv[2]](float(sys.argv[3]))
    get_storage().dispose()
