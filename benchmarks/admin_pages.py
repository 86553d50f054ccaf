"""Pages of the admin on a long history that ends now, each answered inside this process: time on the server."""

import asyncio
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from services.storage import Storage, claim_generation, heartbeat_generation, list_generations, migrations
from services.storage.admin import create_app

from .example_history import build
from .scratch_databases import fill
from .search import main
from .timing import Report

SIZE = 1_000_000
ROUNDS = 100
APART_SECONDS = 18
PATHS = {
    "now": "/",
    "history": "/history",
    "history, failed": "/history?status=failed",
    "history, one model": "/history?model=model-1",
    "history, bpm 120 to 140": "/history?metadata=bpm%3D120..140",
    "history, a word of every prompt": "/history?q=take",
    "history, a rare word": "/history?q=waterphone",
    "history, two common words": "/history?q=piano+slow",
    "numbers": "/numbers",
}


def run(report: Report, *, size: int, url: str | None = None, prompts: str | None = None) -> None:
    """Report milliseconds; `url` names an empty database or one that an earlier run has filled."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(url or f"sqlite:///{Path(folder) / 'admin.db'}")
        migrations.upgrade(storage)
        with storage.session(read_only=True) as session:
            is_empty = not list_generations(session, limit=1).items
        if is_empty:
            report("build", build_history(storage, size, prompts), "s")
            with storage.session() as session:
                for number in range(3):
                    claimed = claim_generation(session, f"worker-{number}", lease_seconds=86_400)
                    assert claimed is not None
                    assert claimed.lease is not None
                    heartbeat_generation(session, claimed.lease, progress=0.5, lease_seconds=86_400)
        with storage.session(read_only=True) as session:
            names = {status: list_generations(session, status=status, limit=1).items[0].id for status in
                     ("completed", "failed", "processing", "pending")}  # fmt: skip
        paths = PATHS | {f"generation, {status}": f"/generation?id={name}" for status, name in names.items()}
        for name, path in paths.items():
            app = create_app(storage)
            for clock, times in asyncio.run(measure(app, path)).items():
                report(f"{name}, {clock}, first", times[0], "ms")
                report(f"{name}, {clock}, median", median(times), "ms")
                report(f"{name}, {clock}, p95", quantiles(times, n=20)[-1], "ms")
        storage.dispose()


def build_history(storage: Storage, size: int, prompts: str | None) -> float:
    """Fill an empty database with one generation every 18 seconds until now; return the seconds it took.

    The newest fifth has prompts of its own; the older ones are completed and have no prompt record, which is ten times
    faster to build and the same to all pages but the search.
    """
    newest = size // 5
    start = datetime.now(UTC) - timedelta(seconds=APART_SECONDS * (newest + 1))
    taken = build(storage, newest, prompts, start=start)
    started = time.perf_counter()
    days = f"-{size * APART_SECONDS / 86_400:.3f} days"
    fill(storage, size - newest, status="completed", when=days, seconds_apart=APART_SECONDS)
    return taken + time.perf_counter() - started


async def measure(app: Any, path: str) -> dict[str, list[float]]:
    """Return the milliseconds until each answer: by the wall clock, and of CPU time in this process."""
    times: dict[str, list[float]] = {"wall": [], "CPU": []}
    for _ in range(ROUNDS):
        times["wall"].append(-time.perf_counter())
        times["CPU"].append(-time.process_time())
        assert await ask(app, path, times) == 200
    return times


async def ask(app: Any, path: str, times: dict[str, list[float]]) -> int:
    """Send one request to an ASGI application; return the status of the answer."""
    path, _, query = path.partition("?")
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif not message.get("more_body"):
            for clock, now in (("wall", time.perf_counter()), ("CPU", time.process_time())):
                times[clock][-1] = 1_000 * (times[clock][-1] + now)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "root_path": "",
             "headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http"}  # fmt: skip
    await app(scope, receive, send)
    return int(statuses[0])


if __name__ == "__main__":
    main(run)
