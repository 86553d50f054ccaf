"""The worker processes of the demo: they render one batch, and one of them is killed. All results are in the database.

A worker process ends when its standard input closes: the demo closes it to stop the process, and the operating system
closes it when the demo itself dies.
"""

import json
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from select import select as wait_until_readable
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import IO

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..engine import Storage
from ..lifecycle import GenerationStatus, WorkerState
from ..models import Attempt, Generation, QueueState
from ..queue import get_workers
from ..worker import Job, Result, Worker, WorkerInterrupted
from ..worker.parent_process import stop_at_end_of
from . import MODEL_NAME, render_job
from .synthesis import read_style

WORKER_COUNT = 3
LEASE_SECONDS = 2.0  # instead of 60, so that the job of the killed worker is soon reclaimed
POLL_SECONDS = 0.1
STOP_SECONDS = 10.0  # a worker has this long to release its job before it is killed
KILL_STEP = "waiting for kill -9"
# The child gets this process's sys.path, so that it finds the package in a wheel, a checkout or a zip file.
CHILD_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from services.storage.demo.processes import run_worker_process; run_worker_process()"
)


class DemoError(Exception):
    """The demo cannot run to its end."""


@dataclass(frozen=True)
class Event:
    """Worker process number `worker` finished `generation`, or was killed while rendering it.

    `worker` is None when a worker outside the demo finished it.
    """

    worker: int | None
    generation: Generation
    is_kill: bool = False


@dataclass(frozen=True)
class LiveWorkers:
    """The workers of the demo that count as alive, by number, and what each is doing."""

    states: Mapping[int, WorkerState]


@dataclass(frozen=True)
class WorkerProcess:
    """A worker process of the demo, and the number that messages call it by."""

    number: int
    worker_id: str
    process: "Popen[bytes]"

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to the standard input of the process."""
        assert self.process.stdin is not None
        return self.process.stdin


def require_shareable(storage: Storage) -> None:
    """Raise DemoError if worker processes cannot use the database: it is in memory, or its queue is paused."""
    if "vfs" in storage.url.query:
        raise DemoError("several processes cannot share a database in memory: name a file")
    state = storage.run_in_transaction(lambda session: session.get(QueueState, 1), read_only=True)
    if state is not None and state.paused_at is not None:
        raise DemoError("the queue of this database is paused: call resume_queue() first")


def run_batch(storage: Storage, generations: Sequence[Generation], outputs: Path) -> Generator[Event | LiveWorkers]:
    """Render a batch into `outputs` in worker processes, and yield an Event for each kill and each finished generation.

    Kills the worker that renders the generation in the middle of the batch. Yields LiveWorkers when all workers are
    alive, and when the killed one no longer counts. No process is left afterwards, even after an exception. Raises
    DemoError when every worker has exited before the batch is finished.
    """
    batch_id, kill_id = generations[0].batch_id, _choose_kill_id(generations)
    finished: set[str] = set()
    with _start_workers(storage, min(WORKER_COUNT, len(generations) + 1), kill_id, outputs) as workers:
        numbers = {worker.worker_id: worker.number for worker in workers}
        has_news = True
        while len(finished) < len(generations) or has_news:
            running = {worker.number: worker.process for worker in workers if worker.process.poll() is None}
            alive = _find_alive(storage, numbers)
            if has_news and alive.states.keys() == running.keys():
                yield alive
                has_news = False
            if kill_id is not None and not has_news:
                killed = _kill_worker_of(storage, workers, kill_id)
                if killed is not None:
                    yield killed
                    kill_id, has_news = None, True
            for generation, worker_id in _find_finished(storage, batch_id, finished):
                finished.add(generation.id)
                yield Event(numbers.get(worker_id or ""), generation)
            if not running:
                if len(finished) < len(generations):
                    raise DemoError("every worker has exited before the batch was finished")
                return
            with suppress(TimeoutExpired):
                next(iter(running.values())).wait(POLL_SECONDS)


def run_worker_process() -> None:
    """Run a worker until standard input closes. The first line of standard input is its configuration, as JSON."""
    with open(0, "rb", buffering=0) as stdin:
        line = stdin.readline()
        if not line.endswith(b"\n"):
            return  # the demo was interrupted before it had sent the configuration
        config = json.loads(line)
        storage = Storage(config["database_url"])

        def handler(job: Job) -> Result | None:
            return render_job(job, Path(config["outputs"]), lambda fraction: at_step(job, fraction))

        def at_step(job: Job, fraction: float) -> None:
            is_killed_here = job.lease.attempt == 1 and job.lease.generation_id == config["kill_id"] and fraction >= 0.5
            if is_killed_here:
                # Wait for the kill: a short piece would be finished before the demo polls the database.
                job.progress(fraction, KILL_STEP)
            if wait_until_readable([stdin], [], [], None if is_killed_here else 0)[0]:
                worker.stop()
                raise WorkerInterrupted

        worker = Worker(
            handler,
            worker_id=config["worker_id"],
            model_names=[MODEL_NAME],
            lease_seconds=LEASE_SECONDS,
            poll_seconds=POLL_SECONDS,
            storage=storage,
        )
        stop_at_end_of(stdin, worker)
        worker.run()
        storage.dispose()


def _choose_kill_id(generations: Sequence[Generation]) -> str | None:
    """Return the id of the generation whose worker is killed; None if no prompt can be rendered.

    That is the one in the middle of the batch, or the nearest one after it (else before it) that can be rendered.
    """
    middle = len(generations) // 2
    order = [*generations[middle:], *reversed(generations[:middle])]
    return next((generation.id for generation in order if read_style(generation.prompt).bpm), None)


@contextmanager
def _start_workers(storage: Storage, count: int, kill_id: str | None, outputs: Path) -> Iterator[list[WorkerProcess]]:
    workers: list[WorkerProcess] = []
    command = [sys.executable, "-c", CHILD_CODE, json.dumps([str(Path(path).absolute()) for path in sys.path])]
    url = storage.url.render_as_string(hide_password=False)
    try:
        for number in range(1, count + 1):
            # In a session of its own: Ctrl-C reaches only the demo, which then stops the workers.
            process = Popen(command, stdin=PIPE, stdout=DEVNULL, start_new_session=True)
            worker = WorkerProcess(number, f"demo:{process.pid}:{token_hex(4)}", process)
            workers.append(worker)
            config = {"database_url": url, "worker_id": worker.worker_id, "kill_id": kill_id, "outputs": str(outputs)}
            with suppress(BrokenPipeError):  # the process has already exited; run_batch() notices that
                # Over the pipe, not as an argument: the URL may contain a password.
                worker.stdin.write(json.dumps(config).encode() + b"\n")
                worker.stdin.flush()
        yield workers
    finally:
        _stop_workers(workers)


def _stop_workers(workers: Sequence[WorkerProcess]) -> None:
    """Let the workers release their jobs and exit; kill those that do not exit in time."""
    try:
        for worker in workers:
            with suppress(OSError):
                worker.stdin.close()
        for worker in workers:
            with suppress(TimeoutExpired):
                worker.process.wait(STOP_SECONDS)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def _kill_worker_of(storage: Storage, workers: Sequence[WorkerProcess], generation_id: str) -> Event | None:
    """Kill the worker that waits for it while rendering the generation; return None if no worker waits yet."""
    generation = storage.run_in_transaction(lambda session: session.get(Generation, generation_id), read_only=True)
    if generation is None or generation.status != GenerationStatus.PROCESSING or generation.current_step != KILL_STEP:
        return None
    worker = next((worker for worker in workers if worker.worker_id == generation.worker_id), None)
    if worker is None:
        return None
    worker.process.kill()
    worker.process.wait()
    return Event(worker.number, generation, is_kill=True)


def _find_alive(storage: Storage, numbers: Mapping[str, int]) -> LiveWorkers:
    found = storage.run_in_transaction(get_workers, read_only=True)
    return LiveWorkers({numbers[worker.id]: worker.state for worker in found if worker.id in numbers})


def _find_finished(storage: Storage, batch_id: str | None, known: set[str]) -> list[tuple[Generation, str | None]]:
    """Return the finished generations of the batch that are not in `known`, first finished first, with their worker."""

    def find(session: Session) -> list[tuple[Generation, str | None]]:
        ids = select(Generation.id).where(Generation.batch_id == batch_id, Generation.completed_at.is_not(None))
        ids = ids.order_by(Generation.completed_at)
        found: list[tuple[Generation, str | None]] = []
        for generation_id in [new for new in session.scalars(ids) if new not in known]:
            generation = session.get(Generation, generation_id)
            if generation is not None:
                attempt = session.get(Attempt, (generation_id, generation.attempt))
                found.append((generation, None if attempt is None else attempt.worker_id))
        return found

    return storage.run_in_transaction(find, read_only=True)
