"""A worker as a process of its own: `python -m tests.support.worker_process URL MODE FOLDER [OPTIONS as JSON]`.

It prints a line for each thing a test may wait for.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from services.storage import Job, Result, RetryPolicy, Worker, init_db


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def main(url: str, mode: str, folder: Path, options: dict[str, object]) -> None:
    init_db(url)

    def handler(job: Job) -> Result:
        say("began", job.generation.id, job.generation.attempt)
        if mode == "when told":
            wait_for(folder / "go")
        elif mode == "never":
            wait_for(folder / "no such file")
        elif mode == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        elif mode == "frozen":
            os.kill(os.getpid(), signal.SIGSTOP)
        return Result(1_000)

    until_empty = bool(options.pop("until_empty", False))
    jobs = Worker(handler, retry_policy=RetryPolicy(0, 1, 0), **options).run(until_empty=until_empty)  # type: ignore[arg-type]
    say("ended", jobs)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]) if len(sys.argv) > 4 else {})
