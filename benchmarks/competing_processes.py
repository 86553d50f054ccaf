"""Four processes that compete: claim and complete until the queue is empty, beside the bare driver."""

import time
from statistics import median
from typing import Any

from services.storage import Storage

from .driver_comparison import ROUNDS, databases, get_context, open_operations
from .scratch_databases import fill
from .timing import Report

SIZE = 4_000
PROCESSES = 4


def run(report: Report, *, size: int) -> None:
    for title, place, synchronous in databases():
        rates: dict[str, list[float]] = {"raw": [], "library": []}
        for number in range(ROUNDS):
            for side in ("raw", "library") if number % 2 == 0 else ("library", "raw"):
                rates[side].append(race(side, place.url(synchronous), synchronous, size))
        raw, library = (median(rates[side]) for side in ("raw", "library"))
        report(f"{title}: raw", raw, "jobs/s")
        report(f"{title}: library", library, "jobs/s")
        report(f"{title}: library / raw", library / raw, "x")


def race(side: str, url: str, synchronous: str, size: int) -> float:
    """Return the jobs done in a second. Raises AssertionError when one was done twice or not at all."""
    storage = Storage(url)
    fill(storage, size)
    with storage.engine.connect() as connection:
        if storage.backend.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")
    context: Any = get_context("spawn")
    barrier, finished = context.Barrier(PROCESSES + 1), context.Queue()
    workers = [context.Process(target=work, args=(side, url, synchronous, barrier, finished)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    done = sum(finished.get() for _ in workers)
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    with storage.engine.connect() as connection:
        ended = connection.exec_driver_sql("SELECT count(*), count(DISTINCT generation_id) FROM attempts").one()
    assert (done, *ended) == (size, size, size), f"{done} done, {ended} ended of {size}"
    storage.dispose()
    return size / seconds


def work(side: str, url: str, synchronous: str, barrier: Any, finished: Any) -> None:
    operations = open_operations(side, url, synchronous)
    operations.page()  # connects
    barrier.wait()
    done = 0
    while lease := operations.claim():
        operations.complete(lease)
        done += 1
    finished.put(done)
    operations.close()
