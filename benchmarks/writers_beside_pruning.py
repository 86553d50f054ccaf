"""How long other writers wait, and what is left on the disk, while many generations are pruned and cancelled."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from services.storage import (
    Storage,
    cancel_generations,
    create_generation,
    get_usage,
    optimize_database,
    prune_generations,
)

from .driver_comparison import databases, get_context, in_process
from .scratch_databases import fill
from .timing import Report

SIZE = 1_000_000  # pruned; as many as a tenth of them stay, and as many are cancelled
WRITERS = 2
PAUSE_SECONDS = 0.02  # between two transactions of a writer
ALONE_SECONDS = 10.0


def run(report: Report, *, size: int) -> None:
    for title, place, synchronous in databases():
        url = place.url(synchronous)
        storage = Storage(url, synchronous=synchronous, statement_timeout=0)
        fill(storage, size, status="completed", when="-200 days", seconds_apart=6.0)
        fill(storage, size // 10, first=1, status="completed", when="-2 days")
        fill(storage, size // 10, first=2, model_name="cancelled")
        optimize_database(full=True, storage=storage)
        with writers(url, synchronous) as stop:
            time.sleep(ALONE_SECONDS)
            report_waits(report, f"{title}: writers alone", stop())
        usage, filled = read_usage(storage), size_of(storage)
        measure(report, f"{title}: prune", prune, size, url, synchronous)
        assert read_usage(storage) == usage, "get_usage() has changed"
        pruned = size_of(storage)
        optimize_database(full=True, storage=storage)
        rebuilt = size_of(storage)
        for when, found in (("before the prune", filled), ("after it", pruned), ("when rebuilt", rebuilt)):
            report(f"{title}: size {when}", found / 1e6, "MB")
        report(f"{title}: size after the prune / when rebuilt", pruned / rebuilt, "x")
        measure(report, f"{title}: cancel", cancel, size // 10, url, synchronous)
        storage.dispose()


def measure(
    report: Report, title: str, work: Callable[[str, str], Any], expected: int, url: str, synchronous: str
) -> None:
    """Run `work` in a fresh process beside the writers; report its speed and memory, and the waits of the writers."""
    with writers(url, synchronous) as stop:
        count, seconds, added = in_process(work, url, synchronous)
        waits = stop()
    assert count == expected, f"{count:,} of {expected:,}"
    report(title, count / seconds, "rows/s")
    report(f"{title}, memory added", added, "MB")
    report_waits(report, f"{title}, writers", waits)


def prune(url: str, synchronous: str) -> tuple[int, float, float]:
    return timed(
        url,
        synchronous,
        lambda storage: prune_generations(older_than=timedelta(days=90), force=True, storage=storage).rows,
    )


def cancel(url: str, synchronous: str) -> tuple[int, float, float]:
    return timed(url, synchronous, lambda storage: cancel_generations(model_name="cancelled", storage=storage))


def timed(url: str, synchronous: str, work: Callable[[Storage], int]) -> tuple[int, float, float]:
    """Return the result of `work`, its seconds, and the megabytes by which the memory of this process grew."""
    storage = Storage(url, synchronous=synchronous)
    with storage.session(read_only=True) as session:
        get_usage(session)  # opens the database
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    count = work(storage)
    seconds = time.perf_counter() - started
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    storage.dispose()
    return count, seconds, added / 1024


@contextmanager
def writers(url: str, synchronous: str) -> Iterator[Callable[[], list[float]]]:
    """Let processes write during the block; the function it yields ends them and returns the time of each write."""
    context: Any = get_context("spawn")
    ready, ended, waits = context.Barrier(WRITERS + 1), context.Event(), context.Queue()
    processes = [
        context.Process(target=write, args=(url, synchronous, number, ready, ended, waits)) for number in range(WRITERS)
    ]
    for process in processes:
        process.start()
    ready.wait()

    def stop() -> list[float]:
        ended.set()
        return [wait for _ in processes for wait in waits.get()]

    try:
        yield stop
    finally:
        ended.set()
        for process in processes:
            process.join(10)
            process.kill()


def write(url: str, synchronous: str, number: int, ready: Any, ended: Any, waits: Any) -> None:
    """Create a generation every 20 ms, each in a session of its own, until the end."""
    storage = Storage(url, synchronous=synchronous)
    taken = []
    arguments = (f"prompt {number}", "written", 16.0, 32_000, 2, "outputs/a.wav")
    with storage.session() as session:
        create_generation(session, *arguments)
    ready.wait()
    while not ended.is_set():
        started = time.perf_counter()
        with storage.session() as session:
            create_generation(session, *arguments)
        taken.append(time.perf_counter() - started)
        time.sleep(PAUSE_SECONDS)
    waits.put(taken)
    storage.dispose()


def report_waits(report: Report, title: str, waits: list[float]) -> None:
    percentiles = quantiles(waits, n=1_000, method="inclusive")
    for name, seconds in (("p50", percentiles[499]), ("p99", percentiles[989]), ("longest", max(waits))):
        report(f"{title}, {name} of {len(waits):,}", seconds * 1e3, "ms")


def read_usage(storage: Storage) -> list[Any]:
    """Return the usage of all days but today, when the writers create generations."""
    with storage.session(read_only=True) as session:
        return get_usage(session, since=datetime.now(UTC) - timedelta(days=250))[:-1]


def size_of(storage: Storage) -> int:
    if storage.backend.name == "sqlite":
        return Path(str(storage.url.database)).stat().st_size
    with storage.engine.connect() as connection:
        return storage.backend.measure_space(connection)[0]
