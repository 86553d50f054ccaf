"""Completion of verbs, options and values in the shells that are installed; CI installs all three."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, environment
from tests.support.terminal import Terminal

PAGE = ROOT / "docs" / "how-to" / "complete-commands.md"
SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]
CASES = [
    ("dgx-storage expo", "export"),
    ("dgx-storage export all.jsonl --favor", "--favorites"),
    ("dgx-storage list --status canc", "cancelled"),
]


def line_for(shell: str) -> str:
    """Return the line that the page tells users of a shell to add to their configuration."""
    (line,) = [line for line in PAGE.read_text().splitlines() if f"={shell}_source" in line]
    return line.strip()


def in_path(folder: Path) -> dict[str, str]:
    return environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        HOME=str(folder),
        XDG_CONFIG_HOME=str(folder),
        PS1="$ ",
    )


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell != "fish"])
@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_the_tab_key_completes(shell: str, typed: str, completed: str, tmp_path: Path) -> None:
    options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    with Terminal([shell, *options], cwd=tmp_path, env=in_path(tmp_path), columns=200) as terminal:
        if shell == "zsh":
            terminal.type("autoload -Uz compinit && compinit -u\n")
        terminal.type(f"{line_for(shell)}\n")
        terminal.type("echo re''ady\n")
        terminal.wait_for(r"\nready")
        terminal.type(f"{typed}\t")
        before = typed.rpartition(" ")[0]
        terminal.wait_for(rf"{before} {completed}")


@pytest.mark.parametrize(("typed", "completed"), CASES if "fish" in SHELLS else [])
def test_fish_lists_what_completes(typed: str, completed: str, tmp_path: Path) -> None:
    script = f"{line_for('fish')}; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=tmp_path,
        env=in_path(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed in [line.split("\t")[0] for line in done.stdout.splitlines()]


def test_bash_is_tested() -> None:
    assert "bash" in SHELLS


def test_completing_opens_no_database(tmp_path: Path) -> None:
    variables = {"_DGX_STORAGE_COMPLETE": "bash_complete", "COMP_WORDS": "dgx-storage li", "COMP_CWORD": "1"}
    done = subprocess.run(
        ["dgx-storage"], cwd=tmp_path, env=in_path(tmp_path) | variables, capture_output=True, text=True, check=True
    )
    assert done.stdout == "plain,list\n"
    assert list(tmp_path.iterdir()) == []
