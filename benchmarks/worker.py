"""An idle worker in a process of its own: from a submission to its claim, and its share of a core while it waits."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles

from services.storage import Job, Storage, Worker, create_generation, set_favorite

from .databases import Scratch, scratch
from .timing import Report

SIZE = 60  # submissions, and seconds of idleness
COMMITS_PER_SECOND = 50
# Title, database, and whether the worker is told of changes, has to look for them, or only polls.
SETTINGS = (
    ("sqlite FULL", "sqlite", "told"),
    ("sqlite FULL, without inotify", "sqlite", "looking"),
    ("sqlite FULL, only polling", "sqlite", "polling"),
    ("postgresql", "postgresql", "told"),
    ("postgresql, only polling", "postgresql", "polling"),
)


def run(report: Report, *, size: int) -> None:
    for title, kind, mode in SETTINGS:
        with scratch(kind) as place:
            measure(report, title, place, mode, size)


def measure(report: Report, title: str, place: Scratch, mode: str, size: int) -> None:
    url = place.url("FULL")
    storage = Storage(url, synchronous="FULL")
    with idle_worker(url, mode) as worker:
        delays = [1_000 * delay(storage, worker) for _ in range(size)]
        cuts = quantiles(delays, n=100)
        for name, value in (("p50", cuts[49]), ("p95", cuts[94]), ("p99", cuts[98]), ("longest", max(delays))):
            report(f"{title}: submission to claim, {name}", value, "ms")
        if mode == "told" or kind_of(storage) == "sqlite":
            report(f"{title}: share of a core, idle", idle_share(worker, size, lambda: time.sleep(0.02)), "%")
            report(
                f"{title}: share of a core, {COMMITS_PER_SECOND} commits a second by others",
                idle_share(worker, size, other_commit(storage)),
                "%",
            )
    storage.dispose()


def kind_of(storage: Storage) -> str:
    return storage.backend.name


@contextmanager
def idle_worker(url: str, mode: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.worker", url, mode]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    worker.stdout.readline()
    time.sleep(2)
    yield worker
    worker.terminate()
    worker.wait()
    worker.stdout.close()


def delay(storage: Storage, worker: "subprocess.Popen[str]") -> float:
    """Submit at a random moment; return the seconds from before the submission to the beginning of the handler."""
    time.sleep(random.uniform(0.5, 1.5))
    submitted = time.monotonic()  # the clock is the same in all processes
    with storage.session() as session:
        create_generation(session, "waltz", "musicgen-small", 16.0, 32_000, 2, "outputs/waltz.wav")
    assert worker.stdout is not None
    return float(worker.stdout.readline()) - submitted


def other_commit(storage: Storage):  # type: ignore[no-untyped-def]
    """Return a function that commits something that is no work."""
    with storage.session() as session:
        generation_id = create_generation(session, "waltz", "none", 16.0, 32_000, 2, "outputs/waltz.wav").id

    def commit() -> None:
        time.sleep(1 / COMMITS_PER_SECOND)
        with storage.session() as session:
            set_favorite(session, generation_id, True)

    return commit


def idle_share(worker: "subprocess.Popen[str]", seconds: float, meanwhile) -> float:  # type: ignore[no-untyped-def]
    began, before = time.monotonic(), cpu_seconds(worker.pid)
    while time.monotonic() < began + seconds:
        meanwhile()
    return 100 * (cpu_seconds(worker.pid) - before) / (time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process, in nanosecond resolution."""
    total = 0
    import os

    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as stat:
            total += int(stat.read().split()[0])
    return total / 1e9


def work(url: str, mode: str) -> None:
    if mode == "looking":
        from services.storage.backends import sqlite_changes

        sqlite_changes.IN_MODIFY = 0  # an empty mask, which inotify refuses

    def handle(job: Job) -> None:
        print(time.monotonic(), flush=True)

    print("ready", flush=True)
    Worker(handle, model_names=["musicgen-small"], storage=Storage(url, wakeup=mode != "polling")).run()


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2])
