"""An idle worker: its share of a CPU core, and the delay until it starts a job submitted at a random moment."""

import random
import subprocess
import sys
import time

from services.storage import Result, Storage, Worker, create_generation, get_generation

from .databases import KINDS, scratch
from .timing import Report

SIZE = 60  # seconds
SUBMISSIONS = 20


def run(report: Report, *, size: int) -> None:
    for kind in KINDS:
        with scratch(kind) as place:
            storage = place.database()
            url = storage.url.render_as_string(hide_password=False)
            command = [sys.executable, "-m", "benchmarks.worker", url]
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert worker.stdout is not None
            worker.stdout.readline()
            before = cpu_seconds(worker.pid)
            time.sleep(size)
            used = 100 * (cpu_seconds(worker.pid) - before) / size
            report(f"{kind}: share of a core, idle for {size} s", used, "%")
            delays = sorted(started_after(storage) for _ in range(SUBMISSIONS))
            report(f"{kind}: until a submission starts, median of {SUBMISSIONS}", delays[SUBMISSIONS // 2], "s")
            report(f"{kind}: until a submission starts, the longest", delays[-1], "s")
            worker.terminate()
            worker.wait()


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / 100


def started_after(storage: Storage) -> float:
    """Submit at a random moment; return the seconds until a worker claimed it."""
    time.sleep(random.uniform(0.5, 3))
    with storage.session() as session:
        generation_id = create_generation(session, "waltz", "musicgen-small", 16.0, 32_000, 2, "outputs/waltz.wav").id
        session.commit()
        submitted = time.time()
    while True:
        with storage.session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            if generation.is_complete:
                assert generation.started_at is not None
                return max(0.0, generation.started_at.timestamp() - submitted)
        time.sleep(0.02)


if __name__ == "__main__":
    print("ready", flush=True)
    Worker(lambda job: Result(1), storage=Storage(sys.argv[1])).run()
