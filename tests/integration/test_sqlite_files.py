"""The file of an SQLite database: private however it is created, never created by a reader, and opened in WAL mode."""

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from services.storage import (
    ForeignDatabaseError,
    NotInitializedError,
    ReadOnlyError,
    Storage,
    StorageError,
    UnreachableError,
    count_generations,
    get_session,
    init_db,
    migrations,
)
from services.storage.maintenance import copy_database
from tests.support.factories import a_generation
from tests.support.sessions import path_of
from tests.support.sqlite_module import sqlite3
from tests.support.unprivileged_user import as_nobody, give_to_nobody, public_folder


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestPermissions:
    @pytest.fixture(params=[0o000, 0o022], ids=oct)
    def umask(self, request: pytest.FixtureRequest) -> Iterator[None]:
        before = os.umask(request.param)
        yield
        os.umask(before)

    @pytest.fixture(params=["path", "folders", "link", "uri", "full uri", "relative uri"])
    def url(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """Return a URL of a file that does not exist, written in one of the ways."""
        monkeypatch.chdir(tmp_path)
        if request.param == "link":
            (tmp_path / "target").mkdir(mode=0o700)
            (tmp_path / "link.db").symlink_to(tmp_path / "target" / "real.db")
        return {
            "path": f"sqlite:///{tmp_path}/generations.db",
            "folders": f"sqlite:///{tmp_path}/a/b/c/generations.db",
            "link": f"sqlite:///{tmp_path}/link.db",
            "uri": f"sqlite:///file:{tmp_path}/a/b/generations.db?cache=private",
            "full uri": f"sqlite:///file://localhost{tmp_path}/a/100%2525/generations.db?mode=rwc",
            "relative uri": "sqlite:///file:a/b/generations.db",
        }[request.param]

    def check(self, folder: Path) -> None:
        made = [path for path in folder.rglob("*") if not path.is_symlink()]
        files = [path for path in made if path.is_file()]
        assert len(files) == 3
        assert {file.suffix for file in files} == {".db", ".db-wal", ".db-shm"}
        assert {mode_of(file) for file in files} == {0o600}
        assert {mode_of(path) for path in made if path.is_dir()} <= {0o700}

    @pytest.mark.usefixtures("umask")
    def test_the_files_and_folders_are_private(self, url: str, tmp_path: Path) -> None:
        init_db(url)
        with get_session() as session:
            a_generation(session)
            session.flush()
            self.check(tmp_path)

    @pytest.mark.usefixtures("umask")
    def test_the_target_of_a_copy_is_private(self, url: str, tmp_path: Path, sqlite_template: Path) -> None:
        copy_database(f"sqlite:///{sqlite_template}", url)
        with Storage(url).session() as session:
            count_generations(session)
            self.check(tmp_path)

    def test_the_full_and_the_relative_uri_name_the_same_file_as_their_path(self, tmp_path: Path) -> None:
        full = Storage(f"sqlite:///file://localhost{tmp_path}/100%2525.db")
        migrations.upgrade(full)
        full.dispose()
        assert (tmp_path / "100%.db").is_file()


class TestMissingFiles:
    URLS = ("sqlite:///{}/typo.db", "sqlite:///file:{}/typo.db", "sqlite:///{}/typo/typo.db", "sqlite:///{}/link.db")

    @pytest.mark.parametrize("url", [*URLS, "sqlite:///file:{}/typo.db?mode=rw", "sqlite:///file:{}/typo.db?mode=ro"])
    def test_reading_does_not_create_the_file(self, tmp_path: Path, url: str) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "gone.db")
        storage = Storage(url.format(tmp_path))
        for read_only in (False, True):
            with pytest.raises(NotInitializedError, match=r"does not exist: check DATABASE_URL.*init_db\(\)"):
                storage.run_in_transaction(count_generations, read_only=read_only)
        with pytest.raises(UnreachableError, match=r"there is no (file|folder) |is a link to .*, which does not exist"):
            storage.engine.connect()
        with pytest.raises(NotInitializedError):
            migrations.check(storage)
        assert [path.name for path in tmp_path.iterdir()] == ["link.db"]

    def test_a_uri_may_forbid_to_create_the_file(self, tmp_path: Path) -> None:
        for mode in ("ro", "rw"):
            with pytest.raises(UnreachableError, match="there is no file"):
                init_db(f"sqlite:///file:{tmp_path}/typo.db?mode={mode}")
        assert list(tmp_path.iterdir()) == []

    def test_a_link_into_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "disk" / "generations.db")
        with pytest.raises(UnreachableError, match=r"is a link to .*/disk/generations.db, whose folder is missing"):
            init_db(f"sqlite:///{tmp_path}/link.db")
        assert not (tmp_path / "disk").exists()

    def test_a_folder_is_no_database(self, tmp_path: Path) -> None:
        with pytest.raises(UnreachableError, match=f"{tmp_path} is a folder"):
            init_db(f"sqlite:///{tmp_path}")


class TestReasons:
    def test_a_folder_that_may_not_be_entered(self) -> None:
        with public_folder() as folder:
            (folder / "closed").mkdir()
            (folder / "closed").chmod(0)

            def work() -> None:
                url = f"sqlite:///{folder}/closed/generations.db"
                for attempt in (lambda: Storage(url).require_schema(), lambda: init_db(url)):
                    with pytest.raises(UnreachableError, match=f"this user may not enter the folder {folder}/closed"):
                        attempt()

            as_nobody(work)

    def test_a_folder_in_which_nothing_may_be_created(self) -> None:
        with public_folder() as folder:
            folder.chmod(0o555)

            def work() -> None:
                for name in ("generations.db", "folder/generations.db"):
                    with pytest.raises(UnreachableError, match=f"this user may not write in the folder {folder}:"):
                        init_db(f"sqlite:///{folder}/{name}")

            as_nobody(work)

    @pytest.mark.parametrize("closed", ["folder", "file", "both", "-wal"])
    def test_a_file_that_may_not_be_written(self, sqlite_template: Path, closed: str) -> None:
        with public_folder() as folder:
            path = folder / "generations.db"
            shutil.copy(sqlite_template, path)
            give_to_nobody(path)
            if closed == "-wal":
                path.with_name("generations.db-wal").touch(mode=0o000)
            if closed in ("file", "both"):
                path.chmod(0o444)
            if closed in ("folder", "both"):
                folder.chmod(0o555)
            reason = {
                "folder": f"may not write in the folder {folder}, where SQLite keeps its -wal and -shm",
                "both": f"may not write in the folder {folder}, where SQLite keeps its -wal and -shm",
                "file": f"may not write {path}:",
                "-wal": f"may not write {path}-wal",
            }[closed]

            def work() -> None:
                storage = Storage(f"sqlite:///{path}")
                with pytest.raises((UnreachableError, ReadOnlyError), match=reason):
                    storage.run_in_transaction(a_generation)

            as_nobody(work)

    def test_a_file_of_another_program_is_named(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "other.db") as other:
            other.execute("CREATE TABLE songs (id)")
        other.close()
        content = (tmp_path / "other.db").read_bytes()
        storage = Storage(f"sqlite:///{tmp_path}/other.db")
        with pytest.raises(ForeignDatabaseError, match="another program, such as songs"):
            storage.require_schema()
        storage.dispose()
        assert (tmp_path / "other.db").read_bytes() == content

    @pytest.mark.parametrize(
        ("side", "problem"),
        [
            ("source", "missing"),  # a missing target is created
            *((side, problem) for side in ("source", "target") for problem in ("folder", "no url", "outdated")),
        ],
    )
    def test_a_copy_says_which_of_its_databases_it_is(
        self, tmp_path: Path, sqlite_url: str, side: str, problem: str
    ) -> None:
        if problem == "outdated":
            shutil.copy(path_of(sqlite_url), tmp_path / "old.db")
            with sqlite3.connect(tmp_path / "old.db") as old:
                old.execute("UPDATE alembic_version SET version_num = '001'")
            old.close()
        bad = {
            "missing": f"sqlite:///{tmp_path}/typo.db",
            "folder": f"sqlite:///{tmp_path}",
            "no url": "nonsense",
            "outdated": f"sqlite:///{tmp_path}/old.db",
        }[problem]
        urls = (bad, sqlite_url) if side == "source" else (sqlite_url, bad)
        with pytest.raises(StorageError, match=f"^The {side} of the copy: "):
            copy_database(*urls)


class TestJournalMode:
    @pytest.fixture(params=["VACUUM INTO", "backup", "dump"])
    def copied(self, request: pytest.FixtureRequest, db: Storage, tmp_path: Path) -> Path:
        """Return a copy of a database, as other tools make it."""
        with get_session() as session:
            a_generation(session)
        path = tmp_path / "copy.db"
        source = sqlite3.connect(str(db.url.database))
        if request.param == "VACUUM INTO":
            source.execute("VACUUM INTO ?", (str(path),))
        else:
            target = sqlite3.connect(path)
            source.backup(target)
            if request.param == "dump":
                target.execute("PRAGMA journal_mode = DELETE")  # as any file that was written from SQL
            target.close()
        source.close()
        return path

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_copy_is_in_wal_mode_from_the_first_session_on(self, copied: Path, read_only: bool) -> None:
        storage = Storage(f"sqlite:///{copied}")
        with storage.session(read_only=read_only) as session:
            assert count_generations(session) == 1
            assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        storage.dispose()

    def test_a_file_that_others_use_is_opened_with_a_warning(
        self, sqlite_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = sqlite3.connect(path_of(sqlite_url), isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM generations")
        storage = Storage(sqlite_url, busy_timeout=0.05)
        with caplog.at_level(logging.WARNING), storage.session() as session:
            assert count_generations(session) == 0
        assert "the journal mode is delete" in caplog.text
        other.close()
        storage.dispose()

    def test_a_file_of_another_program_keeps_its_mode(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "other.db") as other:
            other.execute("CREATE TABLE songs (id)")
        other.close()
        with pytest.raises(ForeignDatabaseError):
            Storage(make_url(f"sqlite:///{tmp_path}/other.db").render_as_string()).require_schema()
        with sqlite3.connect(tmp_path / "other.db") as other:
            assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        other.close()
