"""Each verb runs in a process that has the database open while this and another process commit: no commit is lost.

Whatever else opens and closes the file in this process drops its POSIX locks (https://sqlite.org/howtocorrupt.html,
2.2): another process then deletes the -wal in which this one goes on to commit. See ADR 28.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.request import urlopen

import pytest

from services.storage.cli import commands
from tests.support.command_line import ROOT, run
from tests.support.prompt_writer import add_prompt, open_file
from tests.support.sessions import path_of
from tests.support.sqlite_module import sqlite3
from tests.support.verbs import ARGUMENTS, EXIT_CODES, REPLACERS, Scene, make_scene

# What an operator may type by mistake: the database where a verb expects another file.
MISTAKES = (
    "verify {database}",
    "restore {database} --yes",
    "backup {database} --force",
    "backup {database}",
    "copy {url} {url}",
    "export {database} --force",
    "import {database}",
    "demo --prompts {database}",
    "submit lofi --model m --seconds 1 --file {database}",
)


@pytest.fixture
def scene(sqlite_url: str) -> Scene:
    return make_scene(path_of(sqlite_url))


class Commits:
    """What two writers have committed: the text of each prompt, and when its transaction began."""

    def __init__(self) -> None:
        self.here: list[tuple[str, float]] = []
        self.there: list[tuple[str, float]] = []

    def wait_for_more(self, count: int) -> None:
        """Wait until both writers have committed `count` more, or one of them has ended."""
        goals = (len(self.here) + count, len(self.there) + count)
        deadline = time.monotonic() + 60
        while len(self.here) < goals[0] or len(self.there) < goals[1]:
            assert time.monotonic() < deadline, "a writer is stuck"
            time.sleep(0.001)

    def since(self, began: float) -> set[str]:
        return {text for text, when in (*self.here, *self.there) if when >= began}


@contextmanager
def committing(path: Path) -> Iterator[Commits]:
    """Let a thread of this process, on one connection, and another process commit; the other process ends first."""
    commits, ended = Commits(), Event()
    connection: Any = open_file(path)
    other = subprocess.Popen(
        [sys.executable, "-m", "tests.support.prompt_writer", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def write() -> None:
        while not ended.is_set():
            text = f"here {len(commits.here)}"
            commits.here.append((text, add_prompt(connection, text)))
            time.sleep(0.002)

    def listen() -> None:
        assert other.stdout is not None
        for line in other.stdout:
            text, began = line.split("\t")
            commits.there.append((text, float(began)))

    threads = [Thread(target=write), Thread(target=listen)]
    for thread in threads:
        thread.start()
    try:
        commits.wait_for_more(1)
        yield commits
        commits.wait_for_more(11)
    finally:
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait(60) == 0
        threads[1].join()
        ended.set()
        threads[0].join()
        connection.close()
        assert other.stdout is not None
        other.stdout.close()


def lost_commits(scene: Scene, work: Callable[[], Any], *, replaces: bool = False) -> set[str]:
    """Return what was committed and cannot be read; with `replaces` of what was committed after `work` only."""
    with committing(scene.database) as commits:
        work()
        began = time.monotonic() if replaces else 0.0
    script = "import sqlite3, sys; print(*(t for t, in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])), sep='\\n')"
    read = [sys.executable, "-c", script, str(scene.database), "SELECT text FROM prompts"]
    stored = set(subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines())
    assert len(commits.since(began)) >= 20
    return commits.since(began) - stored


def visit_and_interrupt(port: int) -> None:
    """Open the page in this process, then press Ctrl-C."""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/history") as page:
                assert page.status == 200
                return
            time.sleep(0.01)
    finally:
        os.kill(os.getpid(), signal.SIGINT)


def test_every_verb_has_arguments() -> None:
    assert set(ARGUMENTS) == set(commands.commands), "name the arguments of a new verb in tests/support/verbs.py"


@pytest.mark.parametrize("verb", sorted(commands.commands))
def test_a_verb_loses_no_commit(verb: str, scene: Scene) -> None:
    def work() -> None:
        if verb == "admin":
            Thread(target=visit_and_interrupt, args=(scene.port,)).start()
        result = run(*scene.arguments(verb), url=scene.url)
        assert result.exit_code in EXIT_CODES.get(verb, (0,)), result.output

    assert lost_commits(scene, work, replaces=verb in REPLACERS) == set()


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistaken_verb_loses_no_commit(line: str, scene: Scene) -> None:
    assert lost_commits(scene, lambda: run(*scene.arguments(line), url=scene.url)) == set()


def test_a_file_that_is_read_without_sqlite_loses_commits(scene: Scene) -> None:
    """So these tests would notice it; SQLite 3.51 notices it too (https://sqlite.org/releaselog/3_51_0.html)."""
    lost = lost_commits(scene, scene.database.read_bytes)
    assert bool(lost) == (sqlite3.sqlite_version_info < (3, 51))
