"""check_health() and get_metrics() beside SELECT 1, in a database with a backlog of 5 %: CPU time of this process."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from services.storage import Storage, check_health, get_metrics, register_worker

from .scratch_databases import KINDS, fill, scratch
from .timing import Report

SIZE = 1_000_000
ROUNDS, CALLS = 15, 20


def run(report: Report, *, size: int) -> None:
    for kind in KINDS:
        with scratch(kind) as place:
            storage = place.database()
            fill(storage, size * 9 // 10, status="completed", when="-30 days")
            fill(storage, size // 20, first=1, priority=1)
            fill(storage, size // 20, first=2, when="+1 day")
            for number in range(10):
                storage.run_in_transaction(lambda session, number=number: register_worker(session, f"w{number}"))
            with storage.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                connection.exec_driver_sql("ANALYZE")
            _compare(report, kind, storage)


def _compare(report: Report, kind: str, storage: Storage) -> None:
    def select_1() -> None:
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1").all()

    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "SELECT 1": (select_1, CALLS),
        "check_health": (lambda: check_health(storage=storage), CALLS),
        "get_metrics": (lambda: get_metrics(storage=storage), 1),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    waited: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):  # the first round fills caches
        for name, (call, times) in calls.items():
            began, clock = time.process_time(), time.perf_counter()
            for _ in range(times):
                call()
            taken[name].append(1e3 * (time.process_time() - began) / times)
            waited[name].append(1e3 * (time.perf_counter() - clock) / times)
    for name in calls:
        report(f"{kind}, {name}, CPU", median(taken[name][1:]), "ms")
        report(f"{kind}, {name}, elapsed", median(waited[name][1:]), "ms")
