"""Search on a long history: rare and common words in each order, and the cost of the index for writers."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.storage import Storage, create_generation, search_generations, search_prompts

from .example_history import build, median_ms
from .timing import Report

QUERIES = {
    "rare": "waterphone",
    "common": "guitar",
    "every": "take",
    "two": "guitar piano",
    "phrase": '"140 BPM"',
    "prefix": "gui*",
    "nothing": "xylophonist",
}
SIZE = 1_000_000


def run(report: Report, *, size: int, url: str | None = None, prompts: str | None = None) -> None:
    """Report milliseconds; `url` names an empty database or one that an earlier run has filled."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(url or f"sqlite:///{Path(folder) / 'search.db'}")
        if storage.read_revision() is None:
            report("build", build(storage, size, prompts), "s")
        with storage.session(read_only=True) as session:
            for name, query in QUERIES.items():
                for order in ("newest", "used", "relevance"):
                    taken = median_ms(lambda query=query, order=order: search_prompts(session, query, order_by=order))
                    report(f"prompts, {name} word, {order}", taken, "ms")
                taken = median_ms(lambda query=query: search_generations(session, query))
                report(f"generations, {name} word, newest", taken, "ms")
        if storage.backend.name == "sqlite":
            measure_reuse(report, storage, folder)
        storage.dispose()


def measure_reuse(report: Report, storage: Storage, folder: str) -> None:
    """Report the time to use a stored prompt again with the index, divided by the time without; run in turns."""
    plain = Storage(f"sqlite:///{Path(folder) / 'plain.db'}", synchronous="NORMAL")
    indexed = Storage(f"sqlite:///{Path(folder) / 'indexed.db'}", synchronous="NORMAL")
    for storage in (plain, indexed):
        build(storage, 20_000)
    with plain.engine.begin() as connection:
        for event in ("insert", "delete", "update"):
            connection.exec_driver_sql(f"DROP TRIGGER prompts_fts_{event}")
    with plain.session() as session:
        texts = [prompt.prompt.text for prompt in search_prompts(session, "take", 500, order_by="newest")]
    timings: dict[str, list[float]] = {"indexed": [], "plain": []}
    for _ in range(6):
        for name, storage in (("plain", plain), ("indexed", indexed)):
            for text in texts:
                started = time.perf_counter()
                with storage.session() as session:
                    create_generation(session, text, "m", 16.0, 32_000, 2, "o.wav")
                timings[name].append(time.perf_counter() - started)
    medians = {name: sorted(values)[len(values) // 2] for name, values in timings.items()}
    report("re-use of a prompt with the index / without", medians["indexed"] / medians["plain"], "x")
    plain.dispose()
    indexed.dispose()


def main(run: Callable[..., Any]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--prompts", help="a .csv of captions or a .json of prompts")
    parser.add_argument("--url", help="an empty database, or one that an earlier run has filled")
    options = parser.parse_args()
    run(lambda name, value, unit: print(f"{name:50} {value:12.3f} {unit}"), **vars(options))


if __name__ == "__main__":
    main(run)
