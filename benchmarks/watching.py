"""Watches and async calls: the delay of a change, what a hundred watchers read, and the lag of the event loop."""

import asyncio
import threading
import time
from statistics import quantiles

from sqlalchemy import event
from sqlalchemy.orm import Session

from services.storage import (
    Lease,
    Storage,
    aio,
    cancel_generation,
    claim_generation,
    complete_generation,
    count_generations,
    create_generation,
    heartbeat_generation,
    watch_generation,
)

from .scratch_databases import KINDS, scratch
from .timing import Report

SIZE = 60  # changes
WATCHERS = 100
CALLS = 50


def run(report: Report, *, size: int) -> None:
    for kind in KINDS:
        with scratch(kind) as place:
            url = place.url("FULL")
            storage, other = Storage(url, synchronous="FULL"), Storage(url, synchronous="FULL")
            measure_delays(report, kind, storage, other, size)
            measure_reads(report, kind, storage, other)
            asyncio.run(measure_lag(report, kind, storage))
            storage.dispose()
            other.dispose()


def submit(session: Session) -> str:
    return create_generation(session, "waltz", "musicgen-small", 16.0, 32_000, 2, "outputs/waltz.wav").id


def claim(session: Session) -> Lease:
    generation = claim_generation(session, "w")
    assert generation is not None
    assert generation.lease is not None
    return generation.lease


def measure_delays(report: Report, kind: str, storage: Storage, other: Storage, size: int) -> None:
    """Report the time from before a change is committed until a watch in another thread has it."""
    generation_id = storage.run_in_transaction(submit)
    lease = storage.run_step(claim)
    seen: dict[float | None, float] = {}

    def watch() -> None:
        for generation in watch_generation(generation_id, storage=storage):
            seen[generation.progress] = time.monotonic()

    thread = threading.Thread(target=watch)
    thread.start()
    time.sleep(1)
    changed: dict[float, float] = {}
    for number in range(1, size + 1):
        progress = number / size
        changed[progress] = time.monotonic()
        other.run_step(lambda session, progress=progress: heartbeat_generation(session, lease, progress=progress))  # type: ignore[misc]
        time.sleep(0.2)
    other.run_step(lambda session: complete_generation(session, generation_id, 1.0, 1, lease=lease))
    thread.join()
    # Two changes may arrive as one state.
    arrived = {change: min(at for shown, at in seen.items() if (shown or 0) >= change) for change in changed}
    delays = [1_000 * (arrived[change] - moment) for change, moment in changed.items()]
    cuts = quantiles(delays, n=100, method="inclusive")
    for name, value in (("p50", cuts[49]), ("p95", cuts[94]), ("p99", cuts[98])):
        report(f"{kind}: a change to its watcher, {name}", value, "ms")


def measure_reads(report: Report, kind: str, storage: Storage, other: Storage) -> None:
    """Report the statements that `count` watchers of one generation cost until they have seen it end."""
    for count in (1, WATCHERS):
        generation_id = storage.run_in_transaction(submit)
        watches = [watch_generation(generation_id, storage=storage) for _ in range(count)]
        threads = [threading.Thread(target=lambda watch=watch: list(watch)) for watch in watches]
        for thread in threads:
            thread.start()
        time.sleep(1)
        statements: list[str] = []

        def note(*arguments: object, statements: list[str] = statements) -> None:
            statements.append(str(arguments[2]))

        event.listen(storage.engine, "before_cursor_execute", note)
        began = time.process_time()
        other.run_in_transaction(lambda session: cancel_generation(session, generation_id))  # noqa: B023
        for thread in threads:
            thread.join()
        report(f"{kind}: {count} watchers, statements for a change", len(statements), "")
        report(f"{kind}: {count} watchers, CPU for a change", 1e6 * (time.process_time() - began), "us")
        event.remove(storage.engine, "before_cursor_execute", note)


async def measure_lag(report: Report, kind: str, storage: Storage) -> None:
    """Report how late the event loop is while many calls run, one after the other in each of 50 tasks."""
    lags: list[float] = []
    ends_at = time.monotonic() + 5

    async def call() -> None:
        while time.monotonic() < ends_at:
            await aio.run_in_transaction(count_generations, read_only=True, storage=storage)

    async def tick() -> None:
        while (now := time.monotonic()) < ends_at:
            await asyncio.sleep(0.01)
            lags.append(1_000 * (time.monotonic() - now - 0.01))

    await asyncio.gather(tick(), *(call() for _ in range(CALLS)))
    cuts = quantiles(lags, n=100, method="inclusive")
    report(f"{kind}: lag of the event loop at {CALLS} calls, p50", cuts[49], "ms")
    report(f"{kind}: lag of the event loop at {CALLS} calls, p99", cuts[98], "ms")
