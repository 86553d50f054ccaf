"""The command line: its output on stdout and stderr, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.storage import __version__
from services.storage.schema import get_schema_version
from tests.support.command_line import add, command, counts, environment, on_a_terminal, process, run
from tests.support.sessions import path_of
from tests.support.sqlite_module import sqlite3

HEAD = get_schema_version()
VERBS = ("check", "copy", "demo", "init", "list", "migrate", "reset", "search", "stats", "worker")
HOSTILE_PROMPT = "lofi [red]rain[/b]\x1b[2J\r\u202eon a\ttrain\x07"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_verb(flag: str) -> None:
    result = run(flag)
    assert result.exit_code == 0
    assert all(f"\n  {verb} " in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_opens_no_database(verb: str, tmp_path: Path) -> None:
    result = run(verb, "-h", url=f"sqlite:///{tmp_path / 'no.db'}")
    assert result.exit_code == 0
    assert not (tmp_path / "no.db").exists()


def test_the_version_option_prints_the_version_of_the_package() -> None:
    assert run("--version").stdout == f"dgx-storage, version {__version__}\n"


def test_a_misspelt_verb_is_wrong_usage() -> None:
    result = run("statz")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'statz'" in result.stderr


def test_init_can_be_repeated(tmp_path: Path) -> None:
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
def test_reset_on_a_terminal_asks_for_confirmation(sqlite_url: str, answer: str, code: int, left: int) -> None:
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


def test_stats_show_the_requested_number_of_prompts(sqlite_url: str) -> None:
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


def test_a_prompt_cannot_break_lines_or_control_the_terminal(sqlite_url: str) -> None:
    add(sqlite_url, HOSTILE_PROMPT)
    assert run("stats", url=sqlite_url).stdout.endswith("\n1\tlofi [red]rain[/b] [2J on a train \n")
    code, screen = on_a_terminal("--database-url", sqlite_url, "stats", env={"NO_COLOR": "1"})
    assert code == 0
    assert "lofi [red]rain[/b] [2J on a train" in screen


@pytest.mark.parametrize("verb", [["stats"], ["stats", "--json"]])
def test_a_missing_database_is_an_error_that_names_the_command_to_run_and_creates_no_file(
    verb: list[str], tmp_path: Path
) -> None:
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
def test_an_invalid_url_gives_a_message_without_password_or_traceback(url: str, verb: str) -> None:
    result = run("--database-url", url, verb)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert "hunter2" not in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_reader_that_closes_the_pipe_early_causes_no_error(sqlite_url: str, tmp_path: Path) -> None:
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
def test_without_click_or_rich_the_command_line_says_how_to_install_them(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from services.storage.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"The command line needs {missing}: pip install 'dgx-music-storage[cli]'\n"


def test_the_worker_renders_pending_generations_to_their_file_paths(sqlite_url: str, tmp_path: Path) -> None:
    add(sqlite_url, "lofi rain", file_path="new folder/rain.wav")
    add(sqlite_url, HOSTILE_PROMPT, file_path=str(tmp_path / "my music" / "absolute.wav"))
    add(sqlite_url, "silence at 0 BPM")
    add(sqlite_url, "techno", file_path="my music/from here.wav")
    add(sqlite_url, "of a real model", model="musicgen-small")
    done = process("--database-url", sqlite_url, "worker", "--until-empty", "--outputs", "my music", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 11  # start, four jobs claimed and ended, the reason of a failure, end
    assert "attempt 1 failed for good: cannot render a tempo of 0 BPM: name one above 0" in done.stderr
    assert "lofi" not in done.stderr, "logs contain no prompts"
    assert "\x1b" not in done.stderr
    assert done.stderr.endswith("stopped after 4 jobs\n")
    expected = {"completed_generations": 3, "failed_generations": 1, "pending_generations": 1}
    assert counts(sqlite_url) | expected == counts(sqlite_url)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav")} == {
        "my music/new folder/rain.wav",
        "my music/from here.wav",
        "my music/absolute.wav",
    }


@pytest.mark.parametrize("file_path", ["../outside.wav", "{tmp}/outside.wav", "link/outside.wav", "taken.wav"])
def test_the_worker_writes_only_new_files_below_its_outputs(sqlite_url: str, tmp_path: Path, file_path: str) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "link").symlink_to(tmp_path)
    (outputs / "taken.wav").write_text("precious")
    add(sqlite_url, "jazz", file_path=file_path.format(tmp=tmp_path))
    done = process("--database-url", sqlite_url, "worker", "--until-empty", "--outputs", "outputs", cwd=tmp_path)
    assert done.returncode == 0
    assert "outside the folder" in done.stderr or "it is not replaced" in done.stderr
    assert counts(sqlite_url)["failed_generations"] == 1
    assert (outputs / "taken.wav").read_text() == "precious"
    assert not (tmp_path / "outside.wav").exists()


def test_the_worker_runs_a_handler_of_ones_own_for_every_model(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from services.storage import Result\n"
        "def render(job):\n    print('rendering', job.generation.model_name)\n    return Result(5)\n"
        "number = 1\n"
    )
    for model in ("a", "b"):
        add(sqlite_url, "jazz", model=model)
    worker = ("--database-url", sqlite_url, "worker", "--until-empty")
    done = process(*worker, "mine:render", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "rendering a\nrendering b\n")
    assert counts(sqlite_url)["completed_generations"] == 2
    for wrong in ("mine", "mine:missing", "missing:render", "mine:number", ":"):
        assert process(*worker, wrong, cwd=tmp_path).returncode == 2


def test_the_worker_obeys_model_and_max_jobs(sqlite_url: str, tmp_path: Path) -> None:
    for model in ("a", "b", "b", "b"):
        add(sqlite_url, "jazz", model=model, file_path="jazz.wav")
    worker = ("--database-url", sqlite_url, "worker", "--model", "b")
    assert process(*worker, "--max-jobs", "1", cwd=tmp_path).returncode == 0
    assert counts(sqlite_url)["pending_generations"] == 3
    assert process(*worker, "--until-empty", cwd=tmp_path).returncode == 0
    assert counts(sqlite_url)["pending_generations"] == 1
    assert run("worker", "--model", "", url=sqlite_url).exit_code == 2
    assert run("worker", "--max-jobs", "0", url=sqlite_url).exit_code == 2


def test_a_file_that_cannot_be_written_prints_one_line_and_is_retried(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("not a folder")
    add(sqlite_url, "jazz", file_path=str(tmp_path / "full" / "jazz.wav"))
    done = process("--database-url", sqlite_url, "worker", "--max-jobs", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert "attempt 1 failed: [Errno " in done.stderr
    assert "Traceback" not in done.stderr
    assert counts(sqlite_url)["pending_generations"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_stopped_finishes_its_job_and_exits_with_0(
    sqlite_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    working = subprocess.Popen(
        command("--database-url", sqlite_url, "worker"),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with working:
        assert working.stderr is not None
        working.stderr.readline()
        for _ in range(3):
            add(sqlite_url, "jazz", file_path="jazz.wav", seconds=5.0)
        assert "claimed" in working.stderr.readline()
        assert "finished" in working.stderr.readline()
        working.send_signal(number)
        rest = working.stderr.read()
    assert working.returncode == 0
    assert " stopped after " in rest
    assert counts(sqlite_url)["processing_generations"] == 0
    assert counts(sqlite_url)["completed_generations"] >= 1


def test_the_worker_without_a_database_names_the_command_to_run(tmp_path: Path) -> None:
    result = run("worker", url=f"sqlite:///{tmp_path / 'no.db'}")
    assert result.exit_code == 1
    assert "just db-init" in result.stderr


def test_copy_prints_counts_and_checksums_that_are_equal_for_equal_databases(sqlite_url: str, tmp_path: Path) -> None:
    for prompt in ("trap beat", "trap beat", "jazz"):
        add(sqlite_url, prompt)
    there, home = (f"sqlite:///{tmp_path / name}" for name in ("there.db", "home.db"))
    first, second = run("copy", sqlite_url, there), run("copy", there, home)
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout
    rows = [line.split("\t") for line in first.stdout.splitlines()]
    assert {name: int(count) for name, count, _ in rows} == {
        "prompts": 2,
        "generations": 3,
        "attempts": 0,
        "queue_state": 0,
        "pruned_files": 0,
        "usage_totals": 0,
    }
    assert "copy generations: 3 rows\n" in first.stderr
    assert first.stderr.endswith("Copied 5 rows; both databases have the same contents.\n")


@pytest.mark.parametrize("given", [0, 1])
def test_copy_takes_urls_from_the_environment_where_nobody_reads_their_passwords(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    add(sqlite_url, "lofi")
    there = f"sqlite:///{tmp_path / 'there.db'}"
    monkeypatch.setenv("DATABASE_SOURCE_URL", sqlite_url)
    monkeypatch.setenv("DATABASE_TARGET_URL", there)
    result = run("copy", *[sqlite_url][:given])
    assert (result.exit_code, result.stderr[-30:]) == (0, run("copy", sqlite_url, f"{there}2").stderr[-30:])


def test_copy_shows_a_bar_and_a_table_on_a_terminal(sqlite_url: str, tmp_path: Path) -> None:
    add(sqlite_url, "jazz")
    code, screen = on_a_terminal("copy", sqlite_url, f"sqlite:///{tmp_path / 'there.db'}")
    assert code == 0
    assert "━━━" in screen
    assert "checksum" in screen


def test_copy_lists_the_rows_that_the_target_would_refuse_and_writes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    add(sqlite_url, "a secret prompt")
    with sqlite3.connect(path_of(sqlite_url)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE generations SET channels = 3")
    connection.close()
    result = run("copy", sqlite_url, f"sqlite:///{tmp_path / 'there.db'}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "channels_mono_or_stereo\n" in result.stderr
    assert "Nothing was copied." in result.stderr
    assert "secret" not in result.stderr


def test_copy_into_a_database_with_rows_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    assert run("init", url=other).exit_code == 0
    for url in (sqlite_url, other):
        add(url, "jazz")
    for target, words in ((other, "not empty"), (sqlite_url, "are the same database")):
        result = run("copy", sqlite_url, target)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr
    assert run("copy", sqlite_url).exit_code == 2
