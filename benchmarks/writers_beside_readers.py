"""Three writers beside fifty readers of the admin page: how long a transaction takes, by the wall clock.

Readers take processor time from the writers on a small machine, whatever they read. So the writers also run beside
readers of another database: what differs between the two is the waiting for each other. SQLite, synchronous=FULL.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median, quantiles
from typing import Any

from services.storage import Storage, claim_generation, complete_generation
from services.storage.cli.admin import NICENESS

from .scratch_databases import fill, scratch
from .timing import Report

SIZE = 20_000
READERS, WRITERS, ROUNDS = 50, 3, 3
SECONDS = 5.0
PATHS = ("/", "/history", "/history?status=completed", "/numbers?days=1")


def run(report: Report, *, size: int) -> None:
    with scratch("sqlite") as place:
        urls = {name: place.url("FULL") for name in ("own", "other")}
        for url in urls.values():
            storage = Storage(url)
            fill(storage, size, status="completed", when="-1 day", seconds_apart=1)
            fill(storage, size, first=1)
            storage.dispose()
        times: dict[str, list[float]] = {"alone": [], "readers of another database": [], "readers": []}
        pages: dict[str, int] = dict.fromkeys(times, 0)
        for _ in range(ROUNDS):
            times["alone"] += write(urls["own"])
            for name, read in (("readers of another database", "other"), ("readers", "own")):
                with reading(urls[read]) as count:
                    times[name] += write(urls["own"])
                pages[name] += count()
        for name, taken in times.items():
            report(f"{name}: transactions", len(taken) / ROUNDS / SECONDS, "1/s")
            report(f"{name}: median", median(taken), "ms")
            report(f"{name}: p99", quantiles(taken, n=100)[-1], "ms")
            report(f"{name}: maximum", max(taken), "ms")
            report(f"{name}: pages", pages[name] / ROUNDS / SECONDS, "1/s")


def write(url: str) -> list[float]:
    """Return the milliseconds of every transaction of all writers."""
    context: Any = get_context("spawn")
    barrier, results = context.Barrier(WRITERS), context.Queue()
    writers = [context.Process(target=work, args=(url, barrier, results)) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    times = [taken for _ in writers for taken in results.get()]
    for writer in writers:
        writer.join()
    return times


def work(url: str, barrier: Any, results: Any) -> None:
    storage, times = Storage(url, busy_timeout=60), []  # a long wait is a figure, not an error
    barrier.wait()
    until = time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < until:
        with storage.session() as session:
            claimed = claim_generation(session, "writer")
        assert claimed is not None
        between = time.perf_counter()
        with storage.session() as session:
            complete_generation(session, claimed.id, 1.0, 1, lease=claimed.lease)
        times += [1_000 * (between - started), 1_000 * (time.perf_counter() - between)]
    results.put(times)
    storage.dispose()


@contextmanager
def reading(url: str) -> Iterator[Any]:
    """Serve the page of a database to fifty readers; yield a function that returns the number of pages they got."""
    command = [sys.executable, "-m", "services.storage", "admin", "--database-url", url, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert re.match("http://", address)
        context: Any = get_context("spawn")
        pages, stop = context.Value("i", 0), context.Event()
        readers = context.Process(target=read_pages, args=(address, pages, stop))
        readers.start()
        try:
            yield lambda: pages.value
        finally:
            stop.set()
            readers.join()
            server.terminate()


def read_pages(address: str, pages: Any, stop: Any) -> None:
    import httpx

    os.nice(NICENESS)  # browsers are on other computers

    def read(number: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not stop.is_set():
                assert client.get(PATHS[number % len(PATHS)]).status_code == 200
                with pages.get_lock():
                    pages.value += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
