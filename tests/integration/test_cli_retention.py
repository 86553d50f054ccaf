"""The verbs prune and optimize, as people and scripts meet them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.storage import Generation, Storage
from tests.support.command_line import counts, on_a_terminal, run
from tests.support.factories import a_request


def store_old(url: str, **changes: Any) -> str:
    storage = Storage(url)
    at = datetime.now(UTC) - timedelta(days=100)
    with storage.session() as session:
        generation = Generation(**a_request(**changes), status="completed", created_at=at, completed_at=at)
        session.add(generation)
    storage.dispose()
    return generation.id


def test_a_dry_run_prints_a_line_for_each_and_deletes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / "a.wav"
    path.parent.mkdir()
    path.write_bytes(b"12345")
    ids = [store_old(sqlite_url, file_path=str(path)), store_old(sqlite_url, file_path="b\tc.wav")]
    arguments = ["prune", "--older-than", "90d", "--delete-files-under", str(path.parent), "--dry-run"]
    result = run(*arguments, url=sqlite_url)
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [(line[0], line[1], line[3]) for line in lines] == [
        (ids[0], "completed", str(path)),
        (ids[1], "completed", ""),
    ]
    assert "2 generations and 1 file" in result.stderr
    assert [json.loads(line)["id"] for line in run(*arguments, "--json", url=sqlite_url).stdout.splitlines()] == ids
    assert counts(sqlite_url)["total_generations"] == 2
    assert path.exists()


def test_prune_deletes_and_prints_the_numbers(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"12345")
    store_old(sqlite_url, file_path=str(path))
    result = run("prune", "--older-than", "90d", "--delete-files-under", str(tmp_path), "--yes", url=sqlite_url)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["rows\t1", "files\t1", "bytes_freed\t5"]
    assert not path.exists()
    assert counts(sqlite_url)["total_generations"] == 0
    assert json.loads(run("prune", "--older-than", "1h", "--yes", "--json", url=sqlite_url).stdout)["rows"] == 0


def test_prune_without_a_terminal_refuses_and_says_how_many(sqlite_url: str) -> None:
    store_old(sqlite_url)
    result = run("prune", "--older-than", "90d", url=sqlite_url)
    assert result.exit_code == 1
    assert "1 generation" in result.stderr
    assert "--yes" in result.stderr
    assert counts(sqlite_url)["total_generations"] == 1


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_prune_on_a_terminal_asks(sqlite_url: str, answer: str, left: int) -> None:
    store_old(sqlite_url)
    _, screen = on_a_terminal("--database-url", sqlite_url, "prune", "--older-than", "90d", typed=f"{answer}\n")
    assert "Delete 1 generation in" in screen
    assert counts(sqlite_url)["total_generations"] == left


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--older-than", "soon"],
        ["--older-than", "90d", "--status", "pending"],
        ["--older-than", "9d", "--delete-files-under", "no/such"],
    ],
)
def test_wrong_usage_is_exit_code_2(sqlite_url: str, arguments: list[str]) -> None:
    assert run("prune", *arguments, url=sqlite_url).exit_code == 2


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_optimize_prints_the_sizes(sqlite_url: str, full: list[str]) -> None:
    result = run("optimize", *full, url=sqlite_url)
    assert result.exit_code == 0
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        "size_before_bytes",
        "size_bytes",
        "unused_bytes",
    ]
    assert json.loads(run("optimize", *full, "--json", url=sqlite_url).stdout)["unused_bytes"] == 0
