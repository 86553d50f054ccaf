"""Single queries about the queue and the prompts, each in a session of its own, on SQLite: CPU time."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from services.storage import (
    claim_generation,
    complete_generation,
    create_generation,
    estimate_completion,
    explain_wait,
    get_database_stats,
    get_generation,
    get_most_used_prompts,
    get_pending_generations,
    get_prompt_by_text,
    get_queue_position,
    get_queue_stats,
)

from .scratch_databases import scratch
from .timing import Report

SIZE = 1_000
ROUNDS, CALLS = 15, 20
PROMPT = "slow waltz in D minor, take {}"


def run(report: Report, *, size: int) -> None:
    with scratch("sqlite") as place:
        storage = place.database()
        with storage.session() as session:
            for number in range(size):
                create_generation(session, PROMPT.format(number % 10), "m", 16.0, 32_000, 2, "o.wav")
            for _ in range(30):
                claimed = claim_generation(session, "benchmark")
                assert claimed is not None
                complete_generation(session, claimed.id, 18.5, 5_242_880, lease=claimed.lease)
            claim_generation(session, "benchmark")
            job = get_pending_generations(session, size)[size // 2].id
        queries: dict[str, Callable[[Session], Any]] = {
            "select 1": lambda session: session.execute(text("select 1")),
            "get by id": lambda session: get_generation(session, job),
            "position, estimate and reason": lambda session: (
                get_queue_position(session, job),
                estimate_completion(session, job),
                explain_wait(session, job),
            ),
            "get_database_stats": get_database_stats,
            "get_queue_stats": get_queue_stats,
            "10 popular prompts": get_most_used_prompts,
            "prompt by text": lambda session: get_prompt_by_text(session, PROMPT.format(1)),
        }
        costs: dict[str, list[float]] = {name: [] for name in queries}
        for _ in range(ROUNDS + 1):  # the first round fills caches
            for name, query in queries.items():
                started = time.process_time()
                for _ in range(CALLS):
                    with storage.session() as session:
                        query(session)
                costs[name].append(1e6 * (time.process_time() - started) / CALLS)
        floor = median(costs["select 1"][1:])
        for name, taken in costs.items():
            report(f"{name}, CPU", median(taken[1:]), "us")
            report(f"{name} / select 1", median(taken[1:]) / floor, "x")
