"""Backups: one moment, proven by opening, never under a final name half-written; and restoring them."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from sqlalchemy import text

from services.storage import (
    BackupError,
    NotInitializedError,
    SchemaOutdatedError,
    SchemaTooNewError,
    Storage,
    backup_database,
    check_database,
    count_generations,
    get_generation,
    get_session,
    migrations,
    restore_database,
    search_prompts,
    verify_backup,
)
from services.storage.schema import get_schema_version
from tests.support.copy_process import contents, fill
from tests.support.databases import run_script
from tests.support.factories import a_generation
from tests.support.sessions import opened, path_of
from tests.support.sqlite_module import sqlite3

pytestmark = pytest.mark.usefixtures("client_programs")


def test_a_backup_holds_everything_and_restores_it_exactly(db: Storage, tmp_path: Path) -> None:
    fill(db, 200)
    before = contents(db)
    backup = backup_database(tmp_path / f"copy{db.backend.backups.suffix}")
    assert backup.revision == get_schema_version()
    assert {name.rpartition(".")[2]: count for name, count in backup.row_counts.items()}["generations"] == 200
    assert backup.size_bytes == backup.path.stat().st_size
    assert verify_backup(backup.path) == backup
    with get_session() as session:
        session.execute(text("DELETE FROM generations"))
        a_generation(session, prompt="after the backup")
    assert restore_database(backup.path) == backup
    assert contents(db) == before
    assert {finding.problem for finding in check_database().findings} <= {"it is processing without a lease"}
    with get_session() as session:
        assert search_prompts(session, "trap")
        a_generation(session, prompt="after the restore")


def test_a_backup_is_private_and_leaves_nothing_else_in_its_folder(db: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "backups"
    backup = backup_database(folder)
    assert [path.name for path in folder.iterdir()] == [backup.path.name]
    assert stat.S_IMODE(backup.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_only_the_newest_backups_are_kept_and_no_file_of_others_is_deleted(db: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    others = [folder / name for name in ("notes.txt", "generations-old.db", ".hidden")]
    for other in others:
        other.write_text("not a backup")
    made = [backup_database(folder, keep=2) for _ in range(4)]
    assert set(folder.iterdir()) == {*others, made[2].path, made[3].path}
    assert [backup.deleted for backup in made] == [(), (), (made[0].path,), (made[1].path,)]


def test_what_exists_is_only_overwritten_when_told_to_and_when_it_is_a_backup(db: Storage, tmp_path: Path) -> None:
    path = tmp_path / f"copy{db.backend.backups.suffix}"
    backup_database(path)
    with get_session() as session:
        a_generation(session)
    with pytest.raises(BackupError, match="exists"):
        backup_database(path)
    assert backup_database(path, overwrite=True) == verify_backup(path)
    path.write_text("somebody's notes")
    with pytest.raises(BackupError, match="not a backup of this library"):
        backup_database(path, overwrite=True)
    assert path.read_text() == "somebody's notes"


def test_a_leftover_of_a_killed_backup_is_deleted(db: Storage, tmp_path: Path) -> None:
    killed = tmp_path / ".generations-x.db.999999999.partial"
    running = tmp_path / f".generations-x.db.{os.getppid()}.partial"
    killed.touch()
    running.touch()
    backup_database(tmp_path)
    assert not killed.exists()
    assert running.exists()


def test_a_database_without_tables_is_not_backed_up(empty_database_url: str, tmp_path: Path) -> None:
    with opened(empty_database_url) as storage, pytest.raises(NotInitializedError):
        backup_database(tmp_path / "backups", storage=storage)
    assert not (tmp_path / "backups").exists()
    assert not path_of(empty_database_url).exists()


def test_a_database_of_a_newer_release_is_not_backed_up(db: Storage, database_url: str, tmp_path: Path) -> None:
    run_script(database_url, "UPDATE alembic_version SET version_num = '999'")
    with pytest.raises(SchemaTooNewError):
        backup_database(tmp_path)
    assert list(tmp_path.glob("*generations-*")) == []


def test_an_older_revision_can_be_backed_up_restored_and_then_upgraded(db: Storage, tmp_path: Path) -> None:
    with get_session() as session:
        generation = a_generation(session)
    migrations.downgrade(db, "-1")
    backup = backup_database(tmp_path)
    assert backup.revision != get_schema_version()
    migrations.upgrade(db)
    restore_database(backup.path)
    with pytest.raises(SchemaOutdatedError), get_session():
        pass
    migrations.upgrade(db)
    with get_session() as session:
        assert get_generation(session, generation.id) is not None


@pytest.mark.parametrize("damage", ["truncated", "middle", "empty", "text", "foreign", "too new", "missing", "folder"])
def test_a_bad_backup_is_refused_and_the_database_stays_as_it_is(db: Storage, tmp_path: Path, damage: str) -> None:
    fill(db, 300)
    before = contents(db)
    path = backup_database(tmp_path / f"copy{db.backend.backups.suffix}").path
    write_invalid(path, damage)
    for use in (verify_backup, restore_database):
        with pytest.raises((BackupError, SchemaTooNewError), match=r"copy|SQLite|archive"):
            use(path)
    with pytest.raises((BackupError, SchemaTooNewError), match=r"[^.]\. Nothing was changed\.$"):
        restore_database(path)
    assert contents(db) == before


@pytest.mark.parametrize(
    ("damage", "advice"),
    [("truncated", "use another backup$"), ("text", "use another backup$"), ("folder", "name one of its files$")],
)
def test_a_bad_backup_is_refused_with_advice(sqlite_url: str, tmp_path: Path, damage: str, advice: str) -> None:
    with opened(sqlite_url) as storage:
        fill(storage, 300)
        path = backup_database(tmp_path / "copy.db", storage=storage).path
    write_invalid(path, damage)
    with pytest.raises(BackupError, match=advice):
        verify_backup(path)


def write_invalid(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "middle":
        path.write_bytes(data[: len(data) // 3] + b"\xff" * 9_000 + data[len(data) // 3 + 9_000 :])
    elif damage in ("foreign", "too new"):
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num)")
            connection.execute("INSERT INTO alembic_version VALUES ('999')")
            if damage == "too new":
                connection.execute("CREATE TABLE generations (id)")
                connection.execute("CREATE TABLE prompts (id)")
        connection.close()
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            path.write_text("" if damage == "empty" else "hello")


def test_the_backup_of_another_database_system_is_refused(
    sqlite_url: str, postgresql_server: str, tmp_path: Path
) -> None:
    with opened(sqlite_url) as storage:
        path = backup_database(tmp_path, storage=storage).path
    with opened(postgresql_server) as storage, pytest.raises(BackupError, match="another database system"):
        restore_database(path, storage=storage)


def test_missing_client_programs_are_named(
    postgresql_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "no_programs"
    with opened(postgresql_server) as storage:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BackupError, match="pg_dump was not found"):
            storage.backend.backups.write(storage.engine, tmp_path / name)


class TestSQLite:
    def test_the_database_itself_is_no_target_and_no_source(self, sqlite_url: str, tmp_path: Path) -> None:
        link = tmp_path / "link.db"
        link.symlink_to(path_of(sqlite_url))
        with opened(sqlite_url) as storage:
            with pytest.raises(BackupError, match="the database itself"):
                backup_database(link, overwrite=True, storage=storage)
            with pytest.raises(BackupError, match=r"the database itself|in use"):
                restore_database(path_of(sqlite_url), storage=storage)

    def test_other_connections_go_on_during_a_restore(self, sqlite_url: str, tmp_path: Path) -> None:
        with opened(sqlite_url) as storage, opened(sqlite_url) as other:
            with storage.session() as session:
                a_generation(session)
            backup = backup_database(tmp_path / "copy.db", storage=storage)
            with other.session() as session:
                a_generation(session)
            with other.session(read_only=True) as reader:
                assert count_generations(reader) == 2
                restore_database(backup.path, storage=storage)
                assert count_generations(reader) == 2
            with other.session() as session:
                assert count_generations(session) == 1
                a_generation(session)
            with storage.session() as session:
                assert count_generations(session) == 2

    def test_a_restore_over_a_crashed_database_gives_the_backup(self, sqlite_url: str, tmp_path: Path) -> None:
        with opened(sqlite_url) as storage:
            backup = backup_database(tmp_path / "copy.db", storage=storage)
            fill(storage, 100)
            crashed = tmp_path / "crashed.db"
            for suffix in ("", "-wal"):
                shutil.copy(f"{path_of(sqlite_url)}{suffix}", f"{crashed}{suffix}")
        assert Path(f"{crashed}-wal").stat().st_size > 0
        with opened(f"sqlite:///{crashed}") as storage:
            restore_database(backup.path, storage=storage)
            with storage.session() as session:
                assert count_generations(session) == 0
                assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
                assert session.execute(text("PRAGMA integrity_check")).scalar() == "ok"

    @pytest.mark.parametrize("damage", ["text", "truncated", "middle"])
    def test_a_database_too_damaged_to_open_is_moved_aside(self, sqlite_url: str, tmp_path: Path, damage: str) -> None:
        with opened(sqlite_url) as storage:
            fill(storage, 100)
            before = contents(storage)
            backup = backup_database(tmp_path / "copy.db", storage=storage)
        live = path_of(sqlite_url)
        write_invalid(live, damage)
        damaged = live.read_bytes()
        with opened(sqlite_url) as storage:
            restored = restore_database(backup.path, storage=storage)
            assert contents(storage) == before
            assert stat.S_IMODE(live.stat().st_mode) == 0o600
        if restored.moved_aside is not None:
            assert (restored.moved_aside / live.name).read_bytes() == damaged

    def test_a_restore_makes_a_database_where_there_is_none(self, sqlite_url: str, tmp_path: Path) -> None:
        with opened(sqlite_url) as storage:
            fill(storage, 20)
            backup = backup_database(tmp_path / "copy.db", storage=storage)
            before = contents(storage)
        target = tmp_path / "new" / "generations.db"
        with opened(f"sqlite:///{target}") as storage:
            restore_database(backup.path, storage=storage)
            assert contents(storage) == before
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
