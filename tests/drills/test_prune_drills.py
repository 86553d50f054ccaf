"""kill -9 of a prune at any row: no row without its file, no file that is forgotten, and no number that changes."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from services.storage import Generation, Storage, get_session, get_usage, prune_generations
from services.storage.models import PrunedFile
from tests.support.factories import a_request
from tests.support.processes import drill_processes

pytestmark = pytest.mark.drill
ROWS = 250
NOW = datetime.now(UTC)


def store(folder: Path, days: int, names: list[str]) -> None:
    """Store completed generations, each with its file."""
    at = NOW - timedelta(days=days)
    with get_session() as session:
        for name in names:
            (folder / name).write_bytes(name.encode())
            request = a_request(file_path=str(folder / name))
            session.add(Generation(**request, status="completed", created_at=at, completed_at=at))


def usage() -> list[Any]:
    with get_session() as session:
        return get_usage(session, since=NOW - timedelta(days=10))[:10]


def test_a_killed_prune_forgets_no_file_and_can_be_run_again(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    store(folder, 0, ["new 1.wav", "new 2.wav"])
    killed_half_way = 0
    for number in range(scaled(60)):
        store(folder, 3, [f"{number} {row}.wav" for row in range(ROWS)])
        before = usage()
        with drill_processes(1, "prune_and_print", database_url, str(folder)) as (process,):
            assert process.read_line() == "ready"
            for _ in range(random.Random(number).randint(0, ROWS - 1)):
                process.read_line()
            process.kill()
        with get_session() as session:
            stored = {Path(path) for path in session.scalars(select(Generation.file_path))}
            listed = {Path(path) for path in session.scalars(select(PrunedFile.path))}
        left = set(folder.iterdir())
        assert stored <= left
        assert left - stored <= listed
        assert usage() == before
        killed_half_way += 2 < len(left) < ROWS + 2
    assert killed_half_way
    prune_generations(older_than=timedelta(days=1), delete_files_under=folder, force=True)
    assert {path.name for path in folder.iterdir()} == {"new 1.wav", "new 2.wav"}
    assert usage() == before
    with get_session() as session:
        assert session.scalars(select(PrunedFile.path)).all() == []
