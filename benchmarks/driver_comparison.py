"""Compare the library with the bare driver: the same operations, in fresh processes that take turns."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any, NamedTuple

from .library_operations import Library, WorkerSteps
from .raw_driver import RawPostgreSQL, RawSQLite
from .scratch_databases import Scratch, scratch
from .timing import Report

ROUNDS = 5
LIBRARY_SIDES = {"library": Library, "worker": WorkerSteps}
SETTINGS = (("sqlite", "NORMAL"), ("sqlite", "FULL"), ("postgresql", "FULL"))


class Cost(NamedTuple):
    """Microseconds an operation took: by the clock, and of this process's CPU."""

    wall: float
    cpu: float


def open_operations(side: str, url: str, synchronous: str) -> Any:
    """Return the operations of one side on the database at `url`."""
    if side != "raw":
        return LIBRARY_SIDES[side](url, synchronous)
    if url.startswith("postgresql"):
        return RawPostgreSQL(url, synchronous)
    return RawSQLite(url.removeprefix("sqlite:///"), synchronous)


def time_calls(call: Callable[[Any], Any], arguments: list[Any]) -> tuple[Cost, list[Any]]:
    """Return what a call costs on average, and the results."""
    # Otherwise one collection of all that was imported, 40 ms, would fall into any of the measurements: it made `get`
    # 16 instead of 12 times as slow as the driver.
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    results = [call(argument) for argument in arguments]
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    return Cost(*(1e6 * seconds / len(arguments) for seconds in cost)), results


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def databases() -> Iterator[tuple[str, Scratch, str]]:
    """Yield a title, a place for databases and how durable their commits are, for each setting."""
    for kind, synchronous in SETTINGS:
        with scratch(kind) as place:
            yield f"{kind} {synchronous}", place, synchronous


def compare_with_driver(
    report: Report,
    title: str,
    measure: Callable[[str, str, str], dict[str, Cost]],
    new_url: Callable[[], str],
    synchronous: str,
) -> None:
    """Run `measure(side, url, synchronous)` in turns and report the medians of wall and CPU time, and their ratios."""
    rounds: dict[str, list[dict[str, Cost]]] = {"raw": [], **{side: [] for side in LIBRARY_SIDES}}
    for number in range(ROUNDS):
        for side in list(rounds)[:: 1 if number % 2 == 0 else -1]:
            rounds[side].append(in_process(measure, side, new_url(), synchronous))
    for name in rounds["library"][0]:
        medians = {
            side: Cost(*(statistics.median(costs) for costs in zip(*(one[name] for one in costs), strict=True)))
            for side, costs in rounds.items()
        }
        for side, cost in medians.items():
            report(f"{title}: {name}, {side}", cost.wall, "us")
            report(f"{title}: {name}, {side}, CPU", cost.cpu, "us")
            if side != "raw":
                report(f"{title}: {name}, {side} / raw", cost.wall / medians["raw"].wall, "x")
