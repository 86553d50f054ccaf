"""Start the processes of the drills, and exchange lines with them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


class DrillProcess:
    """A process that runs one function of tests.support.drill_process."""

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

    def read_line(self) -> str:
        """Wait for the next line of output and return it; "" at the end of the output."""
        return self.output.readline().rstrip("\n")

    def send_line(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> list[str]:
        """Kill the process with SIGKILL; return the complete lines that were not read yet."""
        self.process.kill()
        rest = self.output.read()
        self.process.wait()
        return rest.split("\n")[:-1]

    def finish(self) -> list[str]:
        """Wait until the process exits with code 0; return the lines that were not read yet."""
        lines = self.output.read().splitlines()
        assert self.process.wait() == 0
        return lines

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def drill_processes(count: int, function: str, *arguments: str) -> Iterator[list[DrillProcess]]:
    """Start `count` processes; kill those that still run at the end of the block."""
    processes = [DrillProcess(function, *arguments) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def start_together(processes: list[DrillProcess]) -> None:
    """Wait until every process is ready, then let all of them start."""
    for process in processes:
        assert process.read_line() == "ready"
    for process in processes:
        process.send_line()
