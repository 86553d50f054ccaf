"""The demo: real worker processes, one of them killed, and no process or file left afterwards."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.storage import Attempt, Generation, GenerationStatus, Storage, pause_queue
from tests.support.command_line import add, command, counts, environment, on_a_terminal, process, run


def test_a_killed_workers_job_is_finished_by_another(tmp_path: Path) -> None:
    done = process("demo", "--seconds", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed = re.findall(r"^worker (\d) was killed \(kill -9\) while rendering: (.+)$", done.stderr, re.MULTILINE)
    finished = re.findall(r"^finished by worker (\d) on attempt (\d): (.+)$", done.stderr, re.MULTILINE)
    ((killed_worker, lost),) = killed
    alive = re.findall(r"^(\d) workers are alive: (.+)$", done.stderr, re.MULTILINE)
    assert [number for number, _ in alive] == ["3", "2"]
    assert f"worker {killed_worker}" in alive[0][1]
    assert f"worker {killed_worker}" not in alive[1][1]
    assert f"waiting for the lease of worker {killed_worker} to expire, 2 seconds" in done.stderr
    # On a busy machine other workers may lose a lease as well.
    assert [worker != killed_worker for worker, attempt, prompt in finished if prompt == lost and attempt >= "2"] == [
        True
    ]
    attempts = attempts_in(f"sqlite:///{next(tmp_path.glob('*/generations.db'))}")
    histories = {
        generation: [one for one in attempts if one.generation_id == generation]
        for generation in {attempt.generation_id for attempt in attempts if attempt.outcome == "lost"}
    }
    assert all(history[0].worker_id != history[-1].worker_id for history in histories.values())
    assert {history[-1].outcome for history in histories.values()} == {"completed"}
    assert not any(map(is_running, pids(attempts)))


def test_the_demo_kills_a_worker_even_with_one_prompt(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("jazz\n")
    done = process("demo", "--prompts", "one.txt", "--seconds", "0.05", "--discard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "was killed (kill -9) while rendering: jazz\n" in done.stderr
    assert re.search(r"^finished by worker \d on attempt \d: jazz$", done.stderr, re.MULTILINE)


def test_the_demo_ends_when_no_prompt_can_be_rendered(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("0 BPM\n")
    done = process("demo", "--prompts", "none.txt", "--discard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "failed_generations\t2\n" in done.stdout
    assert "killed" not in done.stderr


def test_the_workers_release_their_jobs_and_exit_when_the_demo_is_killed(sqlite_url: str, tmp_path: Path) -> None:
    with running_demo(sqlite_url, tmp_path) as (demo, workers):
        demo.kill()
    assert demo.returncode == -signal.SIGKILL
    wait_until_ended(workers)
    assert counts(sqlite_url)["processing_generations"] == 0


def test_an_interrupt_releases_the_jobs_and_leaves_no_process(sqlite_url: str, tmp_path: Path) -> None:
    with running_demo(sqlite_url, tmp_path) as (demo, workers):
        demo.send_signal(signal.SIGINT)
    assert demo.returncode == 130
    assert not any(map(is_running, workers))
    stats = counts(sqlite_url)
    assert stats["processing_generations"] == 0
    assert stats["pending_generations"] > 0
    assert {path.name for path in tmp_path.iterdir()} - {"music"} == {"generations.db"}


def test_the_demo_fails_when_every_worker_has_exited(sqlite_url: str, tmp_path: Path) -> None:
    with running_demo(sqlite_url, tmp_path) as (demo, _):
        for pid in children(demo.pid):
            os.kill(pid, signal.SIGKILL)
    assert demo.returncode == 1


def test_a_paused_queue_or_a_database_in_memory_is_refused_at_once(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.session() as session:
        pause_queue(session)
    storage.dispose()
    for url, reason in ((sqlite_url, "paused"), ("sqlite:///:memory:", "in memory")):
        result = run("demo", "--database-url", url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert reason in result.stderr


def test_the_demo_uses_a_scratch_database_instead_of_the_users(tmp_path: Path) -> None:
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
    assert f"The WAV files are in {folder}\n" in done.stderr
    assert "failed: cannot render a tempo of 0 BPM" in done.stderr


def test_the_scratch_database_is_kept_after_the_demo(tmp_path: Path) -> None:
    process("demo", "--seconds", "0.05", cwd=tmp_path)
    (database,) = tmp_path.glob("*/generations.db")
    assert counts(f"sqlite:///{database}")["total_prompts"] == 20


def test_the_demo_writes_files_to_outputs_and_discards_the_database(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text('id,caption\n1,"funk, 100 BPM"\n2,../../soul\n')
    done = process(
        "demo", "--prompts", "prompts.csv", "--outputs", "my music", "--seconds", "0.05", "--discard", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"my music", "prompts.csv"}
    assert {path.name for path in (tmp_path / "my music").iterdir()} == {"001-funk-100-bpm.wav", "003-soul.wav"}


def test_the_demo_with_discard_leaves_no_files(tmp_path: Path) -> None:
    assert process("demo", "--seconds", "0.05", "--discard", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before_the_verb", [True, False])
def test_the_demo_uses_a_database_named_on_the_command_line(
    sqlite_url: str, tmp_path: Path, before_the_verb: bool
) -> None:
    add(sqlite_url, "somebody else's", model="another model")
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


def test_the_demo_refuses_an_invalid_prompt_and_leaves_no_files(tmp_path: Path) -> None:
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
    assert re.search(r"completed\s+25\b", re.sub(r"\x1b\[[0-9;]*m", "", screen))


def test_an_interrupt_ends_the_demo_with_130_and_leaves_no_files(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        command("demo", "--seconds", "10"),
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stderr is not None
        demo.stderr.readline()
        demo.send_signal(signal.SIGINT)
        rest = demo.stderr.read()
    assert demo.returncode == 130
    assert rest.endswith("Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def running_demo(url: str, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", list[int]]]:
    """Start a long demo; yield its process and the process ids of its workers once all of them are rendering."""
    demo = subprocess.Popen(
        command("demo", "--seconds", "20", "--database-url", url, "--outputs", "music"),
        cwd=folder,
        env=environment(TMPDIR=str(folder)),
        stderr=subprocess.DEVNULL,
    )
    with demo:
        while len(workers := rendering_workers(url)) < 3:
            assert demo.poll() is None
            time.sleep(0.05)
        yield demo, workers


def rendering_workers(url: str) -> list[int]:
    storage = Storage(url)
    with storage.session(read_only=True) as session:
        rows = session.query(Generation).filter_by(status=GenerationStatus.PROCESSING.value).all()
    storage.dispose()
    return [int((row.worker_id or "").split(":")[1]) for row in rows]


def attempts_in(url: str) -> list[Attempt]:
    storage = Storage(url)
    with storage.session(read_only=True) as session:
        attempts = session.query(Attempt).order_by(Attempt.generation_id, Attempt.number).all()
    storage.dispose()
    return attempts


def pids(attempts: list[Attempt]) -> set[int]:
    return {int(attempt.worker_id.split(":")[1]) for attempt in attempts}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Return whether the process exists and has not exited (a process that its parent has not waited for has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(processes: list[int]) -> None:
    while any(map(is_running, processes)):
        time.sleep(0.05)
