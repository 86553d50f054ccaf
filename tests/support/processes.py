"""Worker processes of the drills, and how to wait for what they say."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """One process that runs a function of tests.support.drill_process."""

    def __init__(self, function: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.drill_process", function, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def hear(self) -> str:
        """Return the next line; "" when there will be none."""
        return self.output.readline().rstrip("\n")

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> list[str]:
        """Kill it with signal 9; return the whole lines it had still said."""
        self.process.kill()
        rest = self.output.read()
        self.process.wait()
        return rest.split("\n")[:-1]

    def finish(self) -> list[str]:
        """Wait for its end, which must be a good one; return what it said until then."""
        said = self.output.read().splitlines()
        assert self.process.wait() == 0
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def started(count: int, function: str, *arguments: str) -> Iterator[list[Worker]]:
    """Start as many workers, and wait for none of them."""
    workers = [Worker(function, *arguments) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def start_at_once(workers: list[Worker]) -> None:
    """Let all of them go when the last one is ready."""
    for worker in workers:
        assert worker.hear() == "ready"
    for worker in workers:
        worker.tell()
