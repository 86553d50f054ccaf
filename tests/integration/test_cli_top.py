"""top: a live view on a terminal, one moment in a pipe; it only reads, and ends at Ctrl-C."""

from pathlib import Path

import pytest

from services.storage import Storage, claim_generation, create_generations, fail_generation, heartbeat_generation
from tests.support.command_line import add, command, environment, process
from tests.support.copy_process import contents
from tests.support.factories import a_request
from tests.support.terminal import Terminal
from tests.support.verbs import make_scene

HOSTILE_ERROR = "out of memory\x1b[2J\r\u202ein [red]CUDA[/red] " + "x" * 200


@pytest.fixture
def busy(sqlite_url: str) -> Storage:
    """Return a database with a running job at 42 %, a failed one and two that wait; the model has been timed."""
    make_scene(Path(sqlite_url.removeprefix("sqlite:///")))
    storage = Storage(sqlite_url)
    with storage.session() as session:
        create_generations(session, [a_request(priority=priority) for priority in (9, 8, 0)])
        claimed = claim_generation(session, "worker-1")
        assert claimed is not None
        assert claimed.lease is not None
        fail_generation(session, claimed.id, HOSTILE_ERROR, lease=claimed.lease, retry=False)
        claimed = claim_generation(session, "worker-1")
        assert claimed is not None
        assert claimed.lease is not None
        heartbeat_generation(session, claimed.lease, progress=0.42, current_step="decoding")
    return storage


def test_in_a_pipe_it_prints_one_moment_and_ends(busy: Storage, tmp_path: Path) -> None:
    done = process("top", cwd=tmp_path, env={"DATABASE_URL": str(busy.url)})
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert ["backlog", "2"] in lines
    assert [line[3] for line in lines if line[0] == "running"].count("42%") == 1
    assert [line[1:3] for line in lines if line[0] == "worker"] == [["worker-1", "busy"]]
    assert any(line[0] == "failed" and line[2].startswith("out of memory [2J") for line in lines)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("columns", [40, 80])
def test_on_a_terminal_it_is_redrawn_until_ctrl_c_and_fits(busy: Storage, columns: int, tmp_path: Path) -> None:
    before = contents(busy)
    variables = environment(DATABASE_URL=str(busy.url), NO_COLOR="1")
    with Terminal(command("top", "--interval", "0.2"), columns=columns, cwd=tmp_path, env=variables) as terminal:
        terminal.wait_for(r"backlog 2")
        terminal.wait_for(r"42%")
        terminal.wait_for(r"busy")
        terminal.wait_for(r"out of")
        assert contents(busy) == before, "it only reads"
        add(str(busy.url), "another")
        terminal.wait_for(r"backlog 3")
        terminal.type("\x03")
        assert terminal.finish() == 130
    assert "Traceback" not in terminal.screen
    assert "\x1b[2J" not in terminal.screen
    assert max(len(line.removesuffix("^C")) for line in terminal.lines) <= columns  # the terminal echoes ^C


def test_it_shows_colors_unless_told_not_to(busy: Storage, tmp_path: Path) -> None:
    with Terminal(command("top"), cwd=tmp_path, env=environment(DATABASE_URL=str(busy.url))) as terminal:
        terminal.wait_for("out of memory")
        assert "\x1b[31m" in terminal.screen


def test_the_enter_key_reads_again_at_once(busy: Storage, tmp_path: Path) -> None:
    variables = environment(DATABASE_URL=str(busy.url))
    with Terminal(command("top", "--interval", "3600"), cwd=tmp_path, env=variables) as terminal:
        terminal.wait_for("backlog 2")
        add(str(busy.url), "another")
        terminal.type("\n")
        terminal.wait_for("backlog 3")
