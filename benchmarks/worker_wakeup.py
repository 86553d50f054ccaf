"""An idle worker in a process of its own: from submission to claim, its share of a core, and what creates cost."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from statistics import median, quantiles
from typing import Any

from services.storage import Job, Storage, Worker, create_generation, set_favorite

from .driver_comparison import open_operations
from .scratch_databases import Scratch, scratch
from .timing import Report

SIZE = 60  # submissions, and seconds of idleness
COMMITS_PER_SECOND = 50
CREATES = 1_500  # of each kind, in turns
# Title, database, and whether the worker is told of changes, looks for them, or only polls.
SETTINGS = (
    ("sqlite FULL", "sqlite", "told"),
    ("sqlite FULL, without inotify", "sqlite", "looking"),
    ("sqlite FULL, only polling", "sqlite", "polling"),
    ("postgresql", "postgresql", "told"),
    ("postgresql, only polling", "postgresql", "polling"),
)

WorkerProcess = subprocess.Popen[str]


def run(report: Report, *, size: int) -> None:
    for title, kind, mode in SETTINGS:
        with scratch(kind) as place:
            measure(report, title, place, mode, size)
    for kind in ("sqlite", "postgresql"):
        with scratch(kind) as place:
            for has_listener in (False, True):
                compare_creates(report, kind, place, has_listener)


def measure(report: Report, title: str, place: Scratch, mode: str, size: int) -> None:
    url = place.url("FULL")
    storage = Storage(url, synchronous="FULL")
    raw = open_operations("raw", place.url("FULL"), "FULL")
    with idle_worker(url, mode) as worker:
        delays: dict[str, list[float]] = {"submission to claim": [], "bare driver, create and claim": []}
        for _ in range(size):
            delays["submission to claim"].append(delay(storage, worker))
            delays["bare driver, create and claim"].append(bare_delay(raw))
        for what, seconds in delays.items():
            cuts = quantiles(seconds, n=100, method="inclusive")
            for name, value in (("p50", cuts[49]), ("p95", cuts[94]), ("p99", cuts[98])):
                report(f"{title}: {what}, {name}", 1_000 * value, "ms")
        report(f"{title}: share of a core, idle", share(worker, size, lambda: time.sleep(0.1)), "%")
        commits = f"{COMMITS_PER_SECOND} commits a second by others"
        report(f"{title}: share of a core, {commits}", share(worker, size, other_commit(storage)), "%")
    storage.dispose()
    raw.close()


@contextmanager
def idle_worker(url: str, mode: str) -> Iterator[WorkerProcess]:
    command = [sys.executable, "-m", "benchmarks.worker_wakeup", url, mode]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    worker.stdout.readline()
    time.sleep(2)
    yield worker
    worker.terminate()
    worker.wait()
    worker.stdout.close()


def delay(storage: Storage, worker: WorkerProcess) -> float:
    """Submit at a random moment; return the seconds from before the submission to the beginning of the handler."""
    time.sleep(random.uniform(0.3, 1.3))
    submitted = time.monotonic()  # the clock is the same in all processes
    submit(storage)
    assert worker.stdout is not None
    return float(worker.stdout.readline()) - submitted


def bare_delay(raw: Any) -> float:
    """Return the seconds that a create and a claim take in one process without the library: the least possible."""
    time.sleep(random.uniform(0.1, 0.2))
    began = time.monotonic()
    raw.create("waltz")
    assert raw.claim()
    return time.monotonic() - began


def submit(storage: Storage, model_name: str = "musicgen-small") -> str:
    with storage.session() as session:
        return create_generation(session, "waltz", model_name, 16.0, 32_000, 2, "outputs/waltz.wav").id


def other_commit(storage: Storage) -> Callable[[], None]:
    """Return a function that waits, and then commits something that is no work."""
    generation_id = submit(storage, "of another worker")

    def commit() -> None:
        time.sleep(1 / COMMITS_PER_SECOND)
        with storage.session() as session:
            set_favorite(session, generation_id, True)

    return commit


def share(worker: WorkerProcess, seconds: float, meanwhile: Callable[[], None]) -> float:
    """Return the share of a core, in percent, that the worker uses while `meanwhile` is repeated."""
    began, before = time.monotonic(), cpu_seconds(worker.pid)
    while time.monotonic() < began + seconds:
        meanwhile()
    return 100 * (cpu_seconds(worker.pid) - before) / (time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, of all its threads that still run, in nanosecond resolution."""
    used = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError), open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as statistics:
            used += int(statistics.read().split()[0])
    return used / 1e9


def compare_creates(report: Report, kind: str, place: Scratch, has_listener: bool) -> None:
    """Report what a create costs with wake-ups and without, in turns: by the clock, and CPU time with the server's.

    The listener is an idle worker of another model, so that its claims are not measured.
    """
    url = place.url("FULL")
    storages = {wakeup: Storage(url, wakeup=wakeup) for wakeup in (False, True)}
    walls: dict[bool, list[float]] = {False: [], True: []}
    cpus = {False: 0.0, True: 0.0}
    with idle_worker(url, "told") if has_listener else nullcontext():
        for storage in storages.values():
            submit(storage, "of another worker")  # connects
        pids = {wakeup: servers(storage) for wakeup, storage in storages.items()}
        before = {wakeup: sum(map(cpu_seconds, pids[wakeup])) for wakeup in storages}
        for number in range(CREATES):
            for wakeup in (False, True) if number % 2 else (True, False):
                began, cpu = time.perf_counter(), time.process_time()
                submit(storages[wakeup], "of another worker")
                walls[wakeup].append(time.perf_counter() - began)
                cpus[wakeup] += time.process_time() - cpu
        for wakeup in storages:
            cpus[wakeup] += sum(map(cpu_seconds, pids[wakeup])) - before[wakeup]
    title = f"{kind}, {'an idle worker listens' if has_listener else 'nobody listens'}"
    clock = {wakeup: 1e6 * median(walls[wakeup]) for wakeup in storages}
    cpu_time = {wakeup: 1e6 * cpus[wakeup] / CREATES for wakeup in storages}
    for what, costs in (("create", clock), ("create, CPU", cpu_time)):
        report(f"{title}: {what}, without wake-ups", costs[False], "us")
        report(f"{title}: {what}, with wake-ups", costs[True], "us")
        report("  / without", costs[True] / costs[False], "x")
    for storage in storages.values():
        storage.dispose()


def servers(storage: Storage) -> list[int]:
    """Return the process of the server that serves the pooled connection."""
    if storage.backend.name != "postgresql":
        return []
    with storage.engine.connect() as connection:
        return [connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()]


def work(url: str, mode: str) -> None:
    if mode == "looking":
        from services.storage.backends import sqlite_wakeup

        sqlite_wakeup.IN_MODIFY = 0  # type: ignore[misc]  # an empty mask, which inotify refuses

    def handle(job: Job) -> None:
        print(time.monotonic(), flush=True)

    storage = Storage(url, wakeup=mode != "polling")
    print("ready", flush=True)
    Worker(handle, model_names=["musicgen-small"], storage=storage).run()


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2])
