"""A program on a pseudo-terminal of a given width: type, wait for what it prints, interrupt it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][0-9A-Za-z]|[=>78M])")  # ECMA-48, and xterm's title
REDRAWN = re.compile(r"\x1b\[\d*[AK]")  # the cursor goes up, or the line is erased


class Terminal:
    """A running program; `screen` is all that it has printed so far."""

    def __init__(
        self, arguments: Sequence[str], *, columns: int = 80, cwd: Path | None = None, env: Mapping[str, str]
    ) -> None:
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.screen = ""
        self._bytes = b""
        self._running = subprocess.Popen(
            arguments,
            cwd=cwd,
            env={"TERM": "xterm-256color"} | {name: value for name, value in env.items() if name != "COLUMNS"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - no thread of these tests holds a lock that it needs
        )
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.kill()
        self._running.wait()
        os.close(self._master)

    @property
    def lines(self) -> list[str]:
        """The lines that were printed, without control sequences; one that was drawn again counts again."""
        return CONTROL.sub("", REDRAWN.sub("\n", self.screen)).replace("\r", "\n").split("\n")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, *, seconds: float = 60) -> None:
        """Wait until what was printed, without control sequences, contains a regular expression."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, "\n".join(self.lines)):
            assert self._read(deadline), f"the program has ended without {pattern!r}: {self.screen}"
            assert time.monotonic() < deadline, f"{pattern!r} was not printed: {self.screen}"

    def finish(self, *, seconds: float = 60) -> int:
        """Wait until the program ends; return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            assert time.monotonic() < deadline, f"the program does not end: {self.screen}"
        return self._running.wait(timeout=seconds)

    def _read(self, deadline: float) -> bool:
        """Read what has been printed, or wait for it; return False at the end."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return True
        try:
            chunk = os.read(self._master, 65_536)
        except OSError:  # raised on Linux when the program has closed the terminal
            return False
        self._bytes += chunk
        self.screen = self._bytes.decode(errors="replace")
        return bool(chunk)


def _take_terminal() -> None:
    """Make standard input the controlling terminal of the new session, so that Ctrl-C reaches the program."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
