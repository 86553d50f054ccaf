"""A process of the queue's drills: `python -m tests.support.queue_process URL MODE LEASE_SECONDS`.

It renders nothing, as fast as it can, until it is told to stop (MODE worker), until no job is left (MODE batches), or
tries what it must not (MODE zombie). Errors end it with a traceback and a code that is not 0.
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
TRIES: dict[str, Callable[[Any, Lease], Any]] = {
    "heartbeat": heartbeat_generation,
    "complete": lambda session, lease: complete_generation(session, lease.generation_id, 1.0, 1, lease=lease),
    "fail": lambda session, lease: fail_generation(session, lease.generation_id, "x", lease=lease),
    "release": release_generation,
}


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def work(lease_seconds: float) -> None:
    Worker(lambda job: Result(1), lease_seconds=lease_seconds, poll_seconds=0.1).run()


def work_in_batches(lease_seconds: float) -> None:
    while True:
        run_in_transaction(reclaim_generations)
        batch = run_in_transaction(lambda session: claim_generations(session, BATCH, lease_seconds=lease_seconds))
        for generation in batch:
            assert generation.lease is not None
            try:
                run_in_transaction(lambda session, lease=generation.lease: TRIES["complete"](session, lease))
            except LeaseLostError:
                say("lost", generation.id)
        if not batch:
            if run_in_transaction(count_unfinished) == 0:
                return
            time.sleep(0.05)


def count_unfinished(session: Any) -> int:
    return sum(count_generations(session, status) for status in (GenerationStatus.PENDING, GenerationStatus.PROCESSING))


def rise_again(lease_seconds: float) -> None:
    """Claim, wait for a line from whoever took the job over meanwhile, and try to finish it all the same."""
    with get_session() as session:
        generation = claim_generation(session, "zombie", lease_seconds=lease_seconds)
        assert generation is not None
        lease = generation.lease
        assert lease is not None
    say("claimed", generation.id)
    sys.stdin.readline()
    for name, call in TRIES.items():
        with get_session() as session:
            try:
                call(session, lease)
            except LeaseLostError:
                say(name, "refused")
            else:
                say(name, "accepted")


if __name__ == "__main__":
    init_db(sys.argv[1])
    {"worker": work, "batches": work_in_batches, "zombie": rise_again}[sys.argv[2]](float(sys.argv[3]))
    get_storage().dispose()
