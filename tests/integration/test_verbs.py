"""Each verb as the real program: in a pipe, on terminals of 40 and 80 columns, interrupted, and into a closed pipe.

The verbs are those of the command line, so a new verb is tested too. `just drill` tries each verb in each way.
"""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.storage.cli import commands
from services.storage.cli.app import Verb
from tests.support.command_line import ROOT, command, environment
from tests.support.sessions import path_of
from tests.support.terminal import Terminal
from tests.support.verbs import EXIT_CODES, Scene, make_scene

VERBS = sorted(commands.commands)
ENDLESS = frozenset({"admin", "top"})  # until Ctrl-C; in a pipe, top ends by itself
TABLES = frozenset({"list", "search", "stats", "workers"})  # fit the width; other lines are wrapped by the terminal
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
COMPLAINTS = ("Traceback", "BrokenPipe", "Broken pipe", "Exception ignored", "Warning")
# The program as it is, but it says when its own code begins: before that, Python itself handles Ctrl-C.
ANNOUNCED = "from services.storage.__main__ import main; print('begins', flush=True); main()"


@pytest.fixture
def scene(sqlite_url: str) -> Scene:
    return make_scene(path_of(sqlite_url))


def variables(scene: Scene, **more: str) -> dict[str, str]:
    return environment(DATABASE_URL=scene.url, TMPDIR=str(scene.folder), **more)


def codes(verb: str) -> tuple[int, ...]:
    return EXIT_CODES.get(verb, (0,))


def is_quiet(output: str) -> bool:
    return not any(complaint in output for complaint in COMPLAINTS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "admin"])
def test_in_a_pipe_it_prints_no_control_characters(verb: str, scene: Scene) -> None:
    done = subprocess.run(
        command(*scene.arguments(verb)),
        cwd=scene.folder,
        env=variables(scene),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in codes(verb), done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert is_quiet(done.stderr), done.stderr


@pytest.mark.parametrize("verb", sorted(TABLES))
@pytest.mark.parametrize("columns", [40, 80])
def test_its_tables_fit_the_terminal(verb: str, columns: int, scene: Scene) -> None:
    lines = print_on_terminal(verb, scene, columns)
    assert max(map(len, lines)) <= columns, lines


@pytest.mark.sampled
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ENDLESS])
@pytest.mark.parametrize(("columns", "no_color"), [(40, "1"), (80, "")])
def test_on_a_terminal_it_complains_of_nothing_and_no_color_has_none(
    verb: str, columns: int, no_color: str, scene: Scene
) -> None:
    lines = print_on_terminal(verb, scene, columns, **({"NO_COLOR": no_color} if no_color else {}))
    if verb in TABLES:
        assert max(map(len, lines)) <= columns, lines


def print_on_terminal(verb: str, scene: Scene, columns: int, **more: str) -> list[str]:
    """Run the verb and return the lines that it prints; without complaints, and with NO_COLOR without colors."""
    arguments = command(*(["list"] if verb == "list" else scene.arguments(verb)))  # not --json
    with Terminal(arguments, columns=columns, cwd=scene.folder, env=variables(scene, **more)) as terminal:
        assert terminal.finish() in codes(verb), terminal.screen
        assert is_quiet(terminal.screen), terminal.screen
        if "NO_COLOR" in more:
            assert not COLOR.search(terminal.screen)
        return terminal.lines


@pytest.mark.sampled
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_ends_it_without_a_traceback(verb: str, scene: Scene, scaled: Callable[[int], int]) -> None:
    for seed in range(scaled(20)):
        arguments = [sys.executable, "-c", ANNOUNCED, *scene.arguments(verb)]
        with Terminal(arguments, cwd=scene.folder, env=variables(scene)) as terminal:
            terminal.wait_for("begins")
            time.sleep(random.Random(f"{verb} {seed}").uniform(0, 1))  # at any moment, also while it imports
            with suppress(OSError):  # it may have ended
                terminal.type("\x03")
            # SIGINT while the interpreter shuts down ends the process; a shell says 130 then too.
            assert terminal.finish() in (*codes(verb), 130, -signal.SIGINT), terminal.screen
            assert is_quiet(terminal.screen), terminal.screen
        for name in ("new.jsonl", "copy.db"):
            (scene.folder / name).unlink(missing_ok=True)


@pytest.mark.sampled
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "admin"])
def test_when_the_reader_of_its_output_has_gone_it_says_nothing(verb: str, scene: Scene) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command(*scene.arguments(verb)),
        cwd=scene.folder,
        env=variables(scene),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode in (0, 1), done.stderr
    assert is_quiet(done.stderr), done.stderr


@pytest.mark.parametrize("line", ["list --json -n 100000", "export -", "prune --older-than 1s --dry-run"])
def test_a_long_output_into_head_is_silent(line: str, scene: Scene) -> None:
    from services.storage import Storage
    from tests.support.copy_process import fill

    storage = Storage(scene.url)
    fill(storage, 600)
    storage.dispose()
    program = shlex.join(command())
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{program} {line} | head -n 1"],
        cwd=ROOT,
        env=variables(scene),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert is_quiet(done.stderr), done.stderr


def test_the_sections_of_the_help_name_every_verb() -> None:
    done = subprocess.run(command("--help"), env=environment(), capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", done.stdout, re.MULTILINE)
    assert "Other:" not in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_in_the_help_are_valid_arguments(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    one = commands.commands[verb]
    assert isinstance(one, Verb)
    for example in one.examples:
        with one.make_context(verb, shlex.split(example)) as context:
            assert f"  dgx-storage {verb} {example}".rstrip() + "\n" in one.get_help(context) + "\n"
