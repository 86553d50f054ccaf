"""The command line, as people and scripts meet it: what it prints where, and its exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.storage import Storage, __version__, create_generation, get_database_stats
from services.storage.cli import commands
from services.storage.schema import get_schema_version

ROOT = Path(__file__).resolve().parents[2]
HOSTILE_PROMPT = "lofi [red]rain[/b]\x1b[2J\r\u202eon a\ttrain\x07"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_verb(flag: str) -> None:
    result = run(flag)
    assert result.exit_code == 0
    assert all(f"\n  {verb} " in result.stdout for verb in ("demo", "init", "migrate", "reset", "stats"))


@pytest.mark.parametrize("verb", ["demo", "init", "migrate", "reset", "stats"])
def test_every_verb_has_help_that_touches_no_database(verb: str, tmp_path: Path) -> None:
    result = run(verb, "-h", url=f"sqlite:///{tmp_path / 'no.db'}")
    assert result.exit_code == 0
    assert not (tmp_path / "no.db").exists()


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"dgx-storage, version {__version__}\n"


def test_a_misspelt_verb_is_wrong_usage() -> None:
    result = run("statz")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'statz'" in result.stderr


def test_init_makes_the_database_twice_without_complaint(tmp_path: Path) -> None:
    for _ in range(2):
        done = process("init", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"Database ready: sqlite:///{tmp_path / 'data/generations.db'} at revision {HEAD}\n"


def test_an_empty_database_url_counts_as_unset(tmp_path: Path) -> None:
    assert process("--database-url", "", "init", cwd=tmp_path, env={"DATABASE_URL": ""}).returncode == 0
    assert (tmp_path / "data/generations.db").exists()


def test_the_option_wins_over_the_environment(tmp_path: Path) -> None:
    done = process(
        "--database-url", f"sqlite:///{tmp_path}/option.db", "init", cwd=tmp_path, env={"DATABASE_URL": "nonsense"}
    )
    assert done.returncode == 0
    assert [path.name for path in tmp_path.glob("**/*.db")] == ["option.db"]


def test_migrate_goes_to_a_revision_and_then_to_the_head(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'music.db'}"
    assert run("migrate", "001", url=url).stderr.endswith("at revision 001\n")
    assert run("migrate", url=url).stderr.endswith(f"at revision {HEAD}\n")


def test_migrate_to_an_unknown_revision_fails_with_a_message(sqlite_url: str) -> None:
    result = run("migrate", "999", url=sqlite_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "999" in result.stderr


def test_reset_without_a_terminal_refuses_and_changes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    add(sqlite_url, "keep me")
    before = (tmp_path / "generations.db").read_bytes()
    result = run("reset", url=sqlite_url, input="y\n")
    assert result.exit_code == 1
    assert "--yes" in result.stderr
    assert (tmp_path / "generations.db").read_bytes() == before


def test_reset_with_yes_empties_the_database(sqlite_url: str) -> None:
    add(sqlite_url, "drop me")
    assert run("reset", "--yes", url=sqlite_url).exit_code == 0
    assert counts(sqlite_url)["total_generations"] == 0


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 1), ("", 1, 1), ("y", 0, 0)])
def test_reset_on_a_terminal_asks_and_does_as_told(sqlite_url: str, answer: str, code: int, left: int) -> None:
    add(sqlite_url, "ask me")
    done, screen = on_a_terminal("--database-url", sqlite_url, "reset", typed=f"{answer}\n")
    assert done == code
    assert "Really reset it?" in screen
    assert counts(sqlite_url)["total_generations"] == left


def test_stats_are_tab_separated_when_piped(sqlite_url: str) -> None:
    for prompt in ("trap beat", "trap beat", "jazz"):
        add(sqlite_url, prompt)
    lines = run("stats", url=sqlite_url).stdout.splitlines()
    assert lines[0] == "total_generations\t3"
    assert lines[lines.index("") + 1 :] == ["2\ttrap beat", "1\tjazz"]


def test_stats_show_as_many_prompts_as_asked_for(sqlite_url: str) -> None:
    for prompt in ("a", "b", "c"):
        add(sqlite_url, prompt)
    assert len(run("stats", "--prompts", "2", url=sqlite_url).stdout.split("\n\n")[1].splitlines()) == 2
    assert "\n\n" not in run("stats", "--prompts", "0", url=sqlite_url).stdout
    assert run("stats", "--prompts", "-1", url=sqlite_url).exit_code == 2


def test_stats_as_json_are_one_object_with_exact_prompts(sqlite_url: str) -> None:
    add(sqlite_url, HOSTILE_PROMPT)
    result = run("stats", "--json", url=sqlite_url)
    assert result.stdout.count("\n") == 1
    stats = json.loads(result.stdout)
    assert stats["pending_generations"] == 1
    assert stats["most_used_prompts"][0]["text"] == HOSTILE_PROMPT


def test_a_prompt_cannot_break_the_lines_or_steer_the_terminal(sqlite_url: str) -> None:
    add(sqlite_url, HOSTILE_PROMPT)
    assert run("stats", url=sqlite_url).stdout.endswith("\n1\tlofi [red]rain[/b] [2J on a train \n")
    code, screen = on_a_terminal("--database-url", sqlite_url, "stats", env={"NO_COLOR": "1"})
    assert code == 0
    assert "lofi [red]rain[/b] [2J on a train" in screen


@pytest.mark.parametrize("verb", [["stats"], ["stats", "--json"]])
def test_a_missing_database_is_an_error_that_names_the_cure_and_makes_no_file(verb: list[str], tmp_path: Path) -> None:
    result = run(*verb, url=f"sqlite:///{tmp_path / 'no.db'}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "just db-init" in result.stderr
    assert not (tmp_path / "no.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@localhost/music",
        "not a url hunter2",
        "postgresql://me:hunter2@127.0.0.1:1/music",
        "postgresql://127.0.0.1:1/music?user=me&password=hunter2",
    ],
)
@pytest.mark.parametrize("verb", ["init", "stats"])
def test_a_wrong_url_is_a_message_without_password_or_traceback(url: str, verb: str) -> None:
    result = run("--database-url", url, verb)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert "hunter2" not in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_reader_that_closes_the_pipe_early_sees_no_complaint(sqlite_url: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command("--database-url", sqlite_url, "stats"),
        cwd=tmp_path,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.stderr == b""


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_the_command_line_says_how_to_install_it(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from services.storage.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"The command line needs {missing}: pip install 'dgx-music-storage[cli]'\n"


def test_the_demo_plays_in_a_scratch_database_and_leaves_the_users_own_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.db"
    done = process("demo", "--seconds", "0.05", cwd=tmp_path, env={"DATABASE_URL": f"sqlite:///{mine}"})
    assert done.returncode == 0, done.stderr
    totals = dict(line.split("\t") for line in done.stdout.split("\n\n")[0].splitlines())
    assert totals["completed_generations"] == "25"
    assert totals["failed_generations"] == "1"
    assert "\n4\thip hop beat at 140 BPM\n" in done.stdout
    assert not mine.exists()
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.wav"))) == 25
    assert f"The music is in {folder}\n" in done.stderr
    assert "failed: cannot play at 0 BPM" in done.stderr


def test_the_demos_scratch_database_can_be_looked_at_afterwards(tmp_path: Path) -> None:
    process("demo", "--seconds", "0.05", cwd=tmp_path)
    (database,) = tmp_path.glob("*/generations.db")
    assert counts(f"sqlite:///{database}")["total_prompts"] == 20


def test_the_demo_writes_where_told_and_discards_the_rest(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text('id,caption\n1,"funk, 100 BPM"\n2,../../soul\n')
    done = process(
        "demo", "--prompts", "prompts.csv", "--outputs", "my music", "--seconds", "0.05", "--discard", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"my music", "prompts.csv"}
    assert {path.name for path in (tmp_path / "my music").iterdir()} == {"001-funk-100-bpm.wav", "003-soul.wav"}


def test_the_demo_with_discard_leaves_nothing(tmp_path: Path) -> None:
    assert process("demo", "--seconds", "0.05", "--discard", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before_the_verb", [True, False])
def test_the_demo_plays_in_a_database_named_on_the_command_line(
    sqlite_url: str, tmp_path: Path, before_the_verb: bool
) -> None:
    add(sqlite_url, "somebody else's")
    option = ["--database-url", sqlite_url]
    arguments = [*option, "demo"] if before_the_verb else ["demo", *option]
    done = process(*arguments, "--seconds", "0.05", "--outputs", "music", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert counts(sqlite_url)["completed_generations"] == 25
    assert counts(sqlite_url)["pending_generations"] == 1


def test_the_demo_refuses_a_file_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("id,stars\n1,5\n")
    result = run("demo", "--prompts", str(tmp_path / "prompts.csv"))
    assert result.exit_code == 2
    assert "found none of" in result.stderr


def test_the_demo_refuses_a_prompt_that_may_not_be_stored_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("x" * 10_001)
    done = process("demo", "--prompts", "prompts.txt", cwd=tmp_path)
    assert done.returncode == 1
    assert "10,000 characters" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_the_demo_shows_a_bar_on_a_terminal(tmp_path: Path) -> None:
    code, screen = on_a_terminal("demo", "--seconds", "0.05", "--discard", env={"TMPDIR": str(tmp_path)})
    assert code == 0
    assert "26/26" in screen
    assert "━━━" in screen
    assert "completed generations   25" in screen


def test_an_interrupt_ends_the_demo_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    playing = subprocess.Popen(
        command("demo", "--seconds", "10"),
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with playing:
        assert playing.stderr is not None
        playing.stderr.readline()
        playing.send_signal(signal.SIGINT)
        rest = playing.stderr.read()
    assert playing.returncode == 130
    assert rest.endswith("Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


HEAD = get_schema_version()


def run(*arguments: str, url: str = "", input: str | None = None) -> Result:
    return CliRunner(env={"DATABASE_URL": url}).invoke(commands, arguments, input=input)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.storage", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | variables


def process(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a process whose temporary files are made in `cwd`."""
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
    """Run the command line on a terminal of its own; return its exit code and what the screen got."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*arguments), env=environment(TERM="xterm") | dict(env or {}), stdin=theirs, stdout=theirs, stderr=theirs
    ) as running:
        os.close(theirs)
        os.write(ours, typed.encode())
        screen = b""
        try:
            while chunk := os.read(ours, 65_536):
                screen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    return running.returncode, screen.decode()


def add(url: str, prompt: str) -> None:
    storage = Storage(url)
    with storage.session() as session:
        create_generation(session, prompt, "model", 1.0, 32_000, 2, "music.wav")
    storage.dispose()


def counts(url: str) -> dict[str, int]:
    storage = Storage(url)
    with storage.session(read_only=True) as session:
        stats = get_database_stats(session)
    storage.dispose()
    return stats
