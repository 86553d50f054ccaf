"""Worker processes for one batch, one of which is killed while it renders. The database alone says what is done.

A worker lives as long as its standard input: that closes when the crew is dismissed, and when whoever started it dies.
"""

import json
import sys
from collections.abc import Generator, Iterator, Sequence
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
from ..lifecycle import GenerationStatus
from ..models import Attempt, Generation, QueueState
from ..worker import Job, Result, Worker, WorkerInterrupted
from . import MODEL_NAME, render_job
from .synthesis import read_style

WORKERS = 3
LEASE_SECONDS = 2.0  # so the job of the killed worker is another's within seconds; usually 60
LOOK_SECONDS = 0.1  # between two looks at the database
LEAVE_SECONDS = 10.0  # for a worker to give its job back, before it is killed
DOOMED_STEP = "about to be killed"
# The paths come along, so that an installed wheel, a checkout and a zip file all find this package again.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from services.storage.demo.processes import serve; serve()"
)


class DemoError(Exception):
    """The crew cannot do its work."""


@dataclass(frozen=True)
class Event:
    """Worker number `worker` finished `generation`, or was killed rendering it; None for one outside the crew."""

    worker: int | None
    generation: Generation
    is_kill: bool = False


@dataclass(frozen=True)
class Member:
    """One worker process."""

    number: int
    worker_id: str
    process: "Popen[bytes]"

    @property
    def orders(self) -> IO[bytes]:
        """The pipe to its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin


def require_shareable(storage: Storage) -> None:
    """Raise DemoError for a database that worker processes could not work in: in memory, or with a paused queue."""
    if "vfs" in storage.url.query:
        raise DemoError("several processes cannot share a database in memory: name a file")
    state = storage.run_in_transaction(lambda session: session.get(QueueState, 1), read_only=True)
    if state is not None and state.paused_at is not None:
        raise DemoError("the queue of this database is paused: resume_queue() it first")


def play(storage: Storage, generations: Sequence[Generation]) -> Generator[Event]:
    """Have worker processes render a batch, and yield what happens until all of it is finished.

    Half way the one that renders just then is killed. No process is left when this ends, however it ends. Raises
    DemoError when every worker has ended before.
    """
    batch_id, doomed = generations[0].batch_id, _choose_doomed(generations)
    finished: set[str] = set()
    with _start_workers(storage, min(WORKERS, len(generations) + 1), doomed) as crew:
        numbers = {member.worker_id: member.number for member in crew}
        while len(finished) < len(generations):
            if doomed is not None:
                killed = _kill_doomed(storage, crew, doomed)
                if killed is not None:
                    yield killed
                    doomed = None
            for generation, worker_id in _look(storage, batch_id, finished):
                finished.add(generation.id)
                yield Event(numbers.get(worker_id or ""), generation)
            alive = [member.process for member in crew if member.process.poll() is None]
            if not alive and len(finished) < len(generations):
                raise DemoError("every worker has ended before the work was done")
            with suppress(TimeoutExpired):
                alive[0].wait(LOOK_SECONDS)


def serve() -> None:
    """Be a worker process: orders come as one line of JSON on standard input, and its end is the end."""
    with open(0, "rb", buffering=0) as orders:
        told = json.loads(orders.readline())
        storage = Storage(told["database_url"])

        def handler(job: Job) -> Result | None:
            return render_job(job, at_step=lambda fraction: at_step(job, fraction))

        def at_step(job: Job, fraction: float) -> None:
            is_doomed = job.lease.attempt == 1 and job.lease.generation_id == told["doomed"] and fraction >= 0.5
            if is_doomed:
                # A short piece would be over before the crew could look: wait for the kill right here.
                job.progress(fraction, DOOMED_STEP)
            if wait_until_readable([orders], [], [], None if is_doomed else 0)[0]:
                worker.stop()
                raise WorkerInterrupted

        worker = Worker(
            handler,
            worker_id=told["worker_id"],
            model_names=[MODEL_NAME],
            lease_seconds=LEASE_SECONDS,
            poll_seconds=LOOK_SECONDS,
            storage=storage,
        )
        while not wait_until_readable([orders], [], [], LOOK_SECONDS)[0]:
            worker.run(until_empty=True)
        storage.dispose()


def _choose_doomed(generations: Sequence[Generation]) -> str | None:
    """Return the id of the one in the middle, or of the next one that can be played at all."""
    middle = len(generations) // 2
    order = [*generations[middle:], *reversed(generations[:middle])]
    return next((one.id for one in order if read_style(one.prompt).bpm), None)


@contextmanager
def _start_workers(storage: Storage, size: int, doomed: str | None) -> Iterator[list[Member]]:
    crew: list[Member] = []
    command = [sys.executable, "-c", START, json.dumps([str(Path(path).absolute()) for path in sys.path])]
    url = storage.url.render_as_string(hide_password=False)
    try:
        for number in range(1, size + 1):
            # A session of its own: Ctrl-C is for whoever watches, who then dismisses the crew.
            process = Popen(command, stdin=PIPE, stdout=DEVNULL, start_new_session=True)
            member = Member(number, f"demo:{process.pid}:{token_hex(4)}", process)
            crew.append(member)
            told = {"database_url": url, "worker_id": member.worker_id, "doomed": doomed}
            with suppress(BrokenPipeError):  # it has ended already, as play() is going to notice
                member.orders.write(json.dumps(told).encode() + b"\n")  # not as arguments: a URL may hold a password
                member.orders.flush()
        yield crew
    finally:
        _dismiss(crew)


def _dismiss(crew: Sequence[Member]) -> None:
    """Let the workers give back what they have, and end; then make sure that they did."""
    try:
        for member in crew:
            with suppress(OSError):
                member.orders.close()
        for member in crew:
            with suppress(TimeoutExpired):
                member.process.wait(LEAVE_SECONDS)
    finally:
        for member in crew:
            member.process.kill()
            member.process.wait()


def _kill_doomed(storage: Storage, crew: Sequence[Member], doomed: str) -> Event | None:
    """Kill the member that holds the doomed generation, once it does."""
    generation = storage.run_in_transaction(lambda session: session.get(Generation, doomed), read_only=True)
    if generation is None or generation.status != GenerationStatus.PROCESSING or generation.current_step != DOOMED_STEP:
        return None
    member = next((member for member in crew if member.worker_id == generation.worker_id), None)
    if member is None:
        return None
    member.process.kill()
    member.process.wait()
    return Event(member.number, generation, is_kill=True)


def _look(storage: Storage, batch_id: str | None, known: set[str]) -> list[tuple[Generation, str | None]]:
    """Return what of the batch is finished and not yet `known`, the oldest first, each with who finished it."""

    def look(session: Session) -> list[tuple[Generation, str | None]]:
        ids = select(Generation.id).where(Generation.batch_id == batch_id, Generation.completed_at.is_not(None))
        ids = ids.order_by(Generation.completed_at)
        found: list[tuple[Generation, str | None]] = []
        for generation_id in [new for new in session.scalars(ids) if new not in known]:
            generation = session.get(Generation, generation_id)
            if generation is not None:
                attempt = session.get(Attempt, (generation_id, generation.attempt))
                found.append((generation, None if attempt is None else attempt.worker_id))
        return found

    return storage.run_in_transaction(look, read_only=True)
