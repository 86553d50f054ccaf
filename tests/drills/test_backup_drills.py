"""Backups under writers and kills: each restores to one commit, and a kill leaves no bad file and no half state."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

import pytest
from sqlalchemy import text

from services.storage import Storage, backup_database, restore_database, verify_backup
from tests.support.copy_process import contents, fill
from tests.support.databases import ask, is_sqlite
from tests.support.processes import DrillProcess, drill_processes

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("client_programs")]
WRITERS = ("a", "b", "c", "d")


@contextmanager
def counting(url: str) -> Iterator[list[DrillProcess]]:
    """Run the writers as processes; each has committed at least once."""
    writers = [DrillProcess("count_up", url, name) for name in WRITERS]
    try:
        for writer in writers:
            assert writer.read_line().startswith("1 ")
        yield writers
    finally:
        for writer in writers:
            writer.close()


def numbers_in(url: str) -> dict[str, list[int]]:
    """Return the numbers that each writer has stored."""
    rows = ask(url, "SELECT batch_id, idempotency_key FROM generations WHERE batch_id IS NOT NULL")
    return {name: sorted(int(key.split()[1]) for batch, key in rows if batch == name) for name in WRITERS}


def test_every_backup_under_writers_restores_to_one_commit(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    made, fresh = [], []
    with counting(database_url):
        for _ in range(scaled(100)):
            fresh.append({name: max(found) for name, found in numbers_in(database_url).items()})
            made.append(backup_database(tmp_path / "backups"))
    for backup, acknowledged in zip(made, fresh, strict=True):
        assert restore_database(backup.path).checksum == backup.checksum
        used = dict(ask(database_url, "SELECT text, used_count FROM prompts"))
        for name, found in numbers_in(database_url).items():
            assert found == list(range(1, len(found) + 1))
            assert len(found) >= acknowledged[name]
            assert len(found) == used[f"prompt of {name}"]


def test_other_processes_go_on_through_restores(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    """What they commit after a restore is added to the rows of the backup."""
    patient = Storage(database_url, busy_timeout=60)  # four writers without a pause leave little time to others
    with counting(database_url) as writers:
        backup = backup_database(tmp_path / "backups")
        for _ in range(scaled(40)):
            restore_database(backup.path, storage=patient)
            restored_at = time.monotonic()
            for writer in writers:
                while float(writer.read_line().split()[1]) < restored_at:
                    pass
        last = {}
        for name, writer in zip(WRITERS, writers, strict=True):
            last[name] = [int(writer.read_line().split()[0]) for _ in range(20)]
    patient.dispose()
    stored = numbers_in(database_url)
    for name, numbers in last.items():
        assert set(numbers) <= set(stored[name])


def test_a_killed_backup_leaves_no_bad_file_under_a_final_name(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    fill(db, 300)
    folder = tmp_path / "backups"
    for seed in range(scaled(60)):
        with drill_processes(1, "back_up_until_killed", database_url, str(folder)) as (process,):
            assert process.read_line() == "ready"
            time.sleep(random.Random(seed).uniform(0, 0.3))
            process.kill()
    left = backup_database(folder)
    assert left.path in folder.iterdir()
    assert [path for path in folder.iterdir() if path.suffix == ".partial"] == []
    for path in folder.iterdir():
        assert verify_backup(path).checksum == left.checksum


def test_a_killed_restore_leaves_the_old_database_or_the_new_one(
    db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    suffix = db.backend.backups.suffix
    states = []
    for name in ("first", "second"):
        with db.session() as session:
            session.execute(text("DELETE FROM prompts"))
        fill(db, 300, seed=len(states))
        states.append((backup_database(tmp_path / f"{name}{suffix}").path, contents(db)))
    for seed in range(scaled(60)):
        with drill_processes(1, "restore_until_killed", database_url, *(str(path) for path, _ in states)) as (process,):
            assert process.read_line() == "ready"
            time.sleep(random.Random(seed).uniform(0, 0.5))
            process.kill()
        wait_for_orphans(database_url)
        assert contents(db) in [state for _, state in states]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_restore_killed_between_two_statements_changes_nothing(
    db: Storage, database_url: str, tmp_path: Path
) -> None:
    fill(db, 300)
    backup = backup_database(tmp_path / "copy.dump")
    with db.session() as session:
        session.execute(text("DELETE FROM generations"))
        session.execute(text("DELETE FROM prompts"))
    fill(db, 30, seed=2)
    before = contents(db)
    for part in (0.2, 0.5, 0.8, 0.999):
        with drill_processes(1, "restore_a_part", database_url, str(backup.path), str(part)) as (process,):
            assert process.read_line() == "ready"
            assert process.process.wait() == -SIGKILL
        wait_for_orphans(database_url)
        assert contents(db) == before


def wait_for_orphans(url: str) -> None:
    """Wait for a psql or pg_dump whose parent was killed: it commits or rolls back by itself."""
    running = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name IN ('psql', 'pg_dump')"
    )
    while not is_sqlite(url) and ask(url, running):
        time.sleep(0.02)
