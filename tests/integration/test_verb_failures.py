"""Each verb on a full disk, without permissions and on damaged files: one sentence, exit code 1, and nothing is lost.

The verbs run in a forked process of a user for whom permissions hold. Not demo, which uses a database of its own, and
not admin, see test_admin_unreadable_database.py.
"""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from services.storage.cli import commands
from tests.conftest import DRILL_SCALE
from tests.support.command_line import run
from tests.support.databases import ask
from tests.support.small_disk import fill_up, limit_file_size, limit_space
from tests.support.sqlite_module import sqlite3
from tests.support.unprivileged_user import NOBODY, as_nobody, public_folder
from tests.support.verbs import EXIT_CODES, READERS, Scene, make_scene

VERBS = sorted(commands.commands.keys() - {"admin", "demo"})
ROWS = "SELECT id, status, version, file_path FROM generations ORDER BY id"
DISK_MEGABYTES = 4
WORKER_SECONDS = 0.5


@dataclass(frozen=True)
class Cause:
    """What happens to the database file, what the message says, and the verbs that work nevertheless."""

    apply: Callable[[Path], Any]
    says: str
    works: frozenset[str] = frozenset({"verify"})
    on_small_disk: bool = False
    in_use: bool = False  # by another connection, so that SQLite's -wal and -shm are there


def damage(position: float, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = path.read_bytes()
        start = int(len(data) * position)
        path.write_bytes(data[:start] + content + data[start + len(content) :])

    return write


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fill_disk(path: Path) -> None:
    fill_up(path.parent)


UNCHANGED = READERS - {"export", "files", "zip"} | {"init", "migrate", "verify"}  # on a database at the newest revision
CREATED = frozenset({"init", "migrate", "reset", "restore", "verify"})
RESTORED = frozenset({"restore", "verify"})
CAUSES = {
    "full disk, in use": Cause(fill_disk, "full|No space", UNCHANGED | {"resume"}, on_small_disk=True, in_use=True),
    "full disk": Cause(fill_disk, "full|read or written", on_small_disk=True),
    "limit of the file size": Cause(lambda path: limit_file_size(4_096), "full|read or written|cannot be written",
                                    UNCHANGED | {"resume", "zip"}, in_use=True),
    "read-only file": Cause(lambda path: path.chmod(0o400), "may not write",
                            UNCHANGED | {"backup", "copy", "export", "zip"}),
    "read-only folder": Cause(lambda path: path.parent.chmod(0o500), "may not write"),
    "closed file": Cause(lambda path: path.chmod(0), "may not read"),
    "closed folder": Cause(lambda path: path.parent.chmod(0), "may not enter|not readable|Permission", frozenset()),
    "damaged pages": Cause(damage(0.02, b"\xff" * 20_000), "damaged", RESTORED),
    "damaged header": Cause(damage(0, b"\xff" * 100), "damaged", RESTORED),
    "truncated": Cause(lambda path: os.truncate(path, path.stat().st_size // 3), "damaged", RESTORED),
    "text": Cause(lambda path: path.write_text("hello\n" * 1_000), "not an SQLite database", RESTORED),
    "empty": Cause(lambda path: os.truncate(path, 0), "not initialized|no tables", CREATED),
    "missing": Cause(lambda path: path.unlink(), "does not exist|not initialized|no tables", CREATED),
    "folder": Cause(replace_by_folder, "is a folder"),
}  # fmt: skip


# A quarter of the pairs, in which each verb and each cause is, unless DRILL_SCALE=1.
PAIRS = [
    pytest.param(cause, verb, id=f"{name}-{verb}")
    for row, (name, cause) in enumerate(CAUSES.items())
    for column, verb in enumerate(VERBS)
    if DRILL_SCALE >= 1 or (row + column) % 4 == 0
]


@pytest.mark.drill
@pytest.mark.parametrize(("cause", "verb"), PAIRS)
def test_a_verb_says_what_is_wrong_and_works_once_it_is_not(cause: Cause, verb: str, sqlite_template: Path) -> None:
    template = sqlite_template.read_bytes()  # in a folder that nobody may not enter
    with public_folder() as folder:

        def prepare() -> None:
            if cause.on_small_disk:
                limit_space(folder, DISK_MEGABYTES, owner=NOBODY)

        def work() -> None:
            (folder / "generations.db").write_bytes(template)
            fail_and_recover(cause, verb, make_scene(folder / "generations.db"))

        as_nobody(work, prepare)


def fail_and_recover(cause: Cause, verb: str, scene: Scene) -> None:
    path, rows, content = scene.database, ask(scene.url, ROWS), scene.database.read_bytes()
    with_others = sqlite3.connect(path) if cause.in_use else None
    if with_others is not None:
        with_others.execute("SELECT count(*) FROM generations").fetchall()
    cause.apply(path)
    result = run_once(scene, verb)
    check(result, cause, verb)
    if verb in cause.works:
        return
    if with_others is not None:
        assert ask(scene.url, ROWS) == rows
    undo(path, content, changed=with_others is None)
    assert ask(scene.url, ROWS) == rows
    assert run_once(scene, verb).exit_code in EXIT_CODES.get(verb, (0,))


def run_once(scene: Scene, verb: str) -> Result:
    """Run a verb; interrupt the worker after a while, because it tries again until then."""
    if verb == "worker":
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, WORKER_SECONDS)
    result = run(*scene.arguments(verb), url=scene.url)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return result


def check(result: Result, cause: Cause, verb: str) -> None:
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    if verb in cause.works:
        assert result.exit_code in EXIT_CODES.get(verb, (0,)), result.output
        return
    if verb == "worker" and result.exit_code == 0:
        assert result.stderr == "" or "next try in" in result.stderr or "stopped after 0 jobs" in result.stderr
        return
    assert result.exit_code in (1, 2), result.output  # 2 for an option that names a closed folder
    if verb == "metrics":
        assert "dgx_storage_up 0" in result.output
        return
    assert re.search(cause.says, result.output), result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) <= 1
    assert errors == result.stderr.splitlines()[-1:]


def undo(path: Path, content: bytes, *, changed: bool) -> None:
    """Take the cause away; write the file as it was, unless a connection has it open."""
    path.parent.chmod(0o700)
    (path.parent / "filler").unlink(missing_ok=True)
    limit_file_size(-1)
    if path.is_dir():
        path.rmdir()
    if changed:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    for file in (path, *path.parent.glob("generations.db-*")):  # SQLite gives its files the mode of the database
        file.chmod(0o600)
