"""Run the command line in this process, as a process or on a terminal, and read its database directly."""

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result

from services.storage import Storage, create_generation, get_database_stats
from services.storage.cli import commands
from services.storage.demo import MODEL_NAME

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, url: str = "", input: str | None = None) -> Result:
    return CliRunner(env={"DATABASE_URL": url}).invoke(commands, arguments, input=input)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.storage", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | variables


def process(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a process that creates its temporary files in `cwd`."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(TMPDIR=str(cwd)) | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def on_a_terminal(*arguments: str, typed: str = "", env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run the command line on a pseudo-terminal; return its exit code and its output."""
    master, terminal = pty.openpty()
    with subprocess.Popen(
        command(*arguments),
        env=environment(TERM="xterm") | dict(env or {}),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as running:
        os.close(terminal)
        os.write(master, typed.encode())
        screen = b""
        try:
            while chunk := os.read(master, 65_536):
                screen += chunk
        except OSError:  # raised on Linux when the process has closed the terminal
            pass
    os.close(master)
    return running.returncode, screen.decode()


def add(url: str, prompt: str, *, model: str = MODEL_NAME, file_path: str = "music.wav", seconds: float = 0.1) -> None:
    storage = Storage(url)
    with storage.session() as session:
        create_generation(session, prompt, model, seconds, 32_000, 2, file_path)
    storage.dispose()


def counts(url: str) -> dict[str, int]:
    storage = Storage(url)
    with storage.session(read_only=True) as session:
        stats = get_database_stats(session)
    storage.dispose()
    return stats
