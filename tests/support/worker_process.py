"""A worker in its own process: `python -m tests.support.worker_process URL MODE FOLDER [OPTIONS as JSON]`.

MODE is how its handler ends: when the file FOLDER/go exists, never, or by a SIGKILL or SIGSTOP to its own process. The
process prints a line for each event that a test waits for.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from services.storage import Job, Result, RetryPolicy, Worker, init_db


def print_line(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def main(url: str, mode: str, folder: Path, options: dict[str, object]) -> None:
    init_db(url)

    def handler(job: Job) -> Result:
        print_line("started", job.generation.id, job.generation.attempt)
        if mode == "go file":
            wait_for(folder / "go")
        elif mode == "never":
            wait_for(folder / "no such file")
        elif mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif mode == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return Result(1_000)

    until_empty = bool(options.pop("until_empty", False))
    jobs = Worker(handler, retry_policy=RetryPolicy(0, 1, 0), **options).run(until_empty=until_empty)  # type: ignore[arg-type]
    print_line("ended", jobs)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
