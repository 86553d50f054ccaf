"""What the admin page says while the database cannot be read, and that it comes back by itself."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from services.storage import Storage, init_db, migrations
from services.storage.engine import get_storage
from services.storage.schema import REVISIONS
from tests.integration.test_admin_pages import text_of
from tests.support.admin_server import admin_client
from tests.support.factories import a_generation
from tests.support.servers import Server, server_folder
from tests.support.sessions import path_of
from tests.support.sqlite_module import sqlite3

PATHS = ("/", "/history", "/numbers", "/generation?id=x")


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    """Return a database that gives up waiting soon, as the page's own does."""
    storage = Storage(database_url, busy_timeout=0.2, lock_timeout=0.2)
    with storage.session() as session:
        a_generation(session, prompt="still here")
    yield storage
    storage.dispose()


def assert_says(client: httpx.Client, *words: str) -> None:
    """Check that every page explains the trouble, also a second time, and that files are refused too."""
    for path in (*PATHS, *PATHS, "/audio?id=x"):
        page = client.get(path)
        assert page.status_code == 503, (path, page.text)
        assert page.headers["retry-after"] == "3"
        assert 'data-refresh="3"' in page.text
        for word in words:
            assert word in text_of(page), (path, text_of(page))


def assert_works(client: httpx.Client) -> None:
    assert "still here" in text_of(client.get("/"))
    assert "still here" in text_of(client.get("/history"))


def test_a_locked_database(storage: Storage, database_url: str) -> None:
    with admin_client(storage) as client:
        assert_works(client)
        storage.dispose()
        if database_url.startswith("sqlite"):
            locker = sqlite3.connect(path_of(database_url), isolation_level=None)
            locker.execute("PRAGMA locking_mode = EXCLUSIVE")
            locker.execute("BEGIN EXCLUSIVE")
            locker.execute("UPDATE prompts SET used_count = used_count")
            assert_says(client, "The database is locked")
            locker.execute("ROLLBACK")
            locker.close()
        else:
            engine = create_engine(storage.url)
            with engine.connect() as connection:
                connection.execute(text("LOCK TABLE generations IN ACCESS EXCLUSIVE MODE"))
                assert_says(client, "The database is locked")
            engine.dispose()
        assert_works(client)


@pytest.mark.parametrize("page_open", [True, False])
def test_a_database_that_is_gone(sqlite_url: str, page_open: bool, tmp_path: Path) -> None:
    path, away = Path(path_of(sqlite_url)), tmp_path / "away.db"
    storage = Storage(sqlite_url)
    with storage.session() as session:
        a_generation(session, prompt="still here")
    with admin_client(storage) as client:
        if page_open:
            assert_works(client)
        storage.dispose()
        path.rename(away)
        assert_says(client, "The database cannot be read", "does not exist")
        assert not path.exists()
        away.rename(path)
        assert_works(client)
    storage.dispose()


def test_a_database_file_that_is_replaced_between_two_pages(sqlite_url: str, tmp_path: Path) -> None:
    path, other = Path(path_of(sqlite_url)), tmp_path / "other.db"
    shutil.copy(path, other)
    storage = Storage(sqlite_url)
    with storage.session() as session:
        a_generation(session, prompt="still here")
    with admin_client(storage) as client:
        assert_works(client)
        other.rename(path)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        assert "There are no generations yet" in text_of(client.get("/history"))
    storage.dispose()


@pytest.mark.parametrize("damage", ["text", "zeros", "cut"])
def test_a_damaged_database(sqlite_url: str, damage: str, tmp_path: Path) -> None:
    path, good = Path(path_of(sqlite_url)), tmp_path / "good.db"
    storage = Storage(sqlite_url)
    with storage.session() as session:
        a_generation(session, prompt="still here")
    with admin_client(storage) as client:
        assert_works(client)
        storage.dispose()
        path.rename(good)
        whole = good.read_bytes()
        path.write_bytes({"text": b"no database" * 999, "zeros": bytes(8_192), "cut": whole[:6_000]}[damage])
        for page in PATHS[:3]:
            assert client.get(page).status_code == 503
        if damage != "zeros":
            assert_says(client, "The database is damaged", "restore a backup")
        storage.dispose()
        os.replace(good, path)
        assert_works(client)
    storage.dispose()


def test_an_older_and_a_newer_database(storage: Storage, database_url: str) -> None:
    owner = Storage(database_url)
    with admin_client(storage) as client:
        assert_works(client)
        migrations.downgrade(owner, REVISIONS[-2])
        assert_says(client, "The database has an older schema", "just db-migrate")
        migrations.upgrade(owner)
        assert_works(client)
        for revision in ("999", REVISIONS[-1]):
            with owner.engine.begin() as connection:
                connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
            if revision == "999":
                assert_says(client, "The database has a newer schema", "upgrade dgx-music-storage")
        assert_works(client)
    owner.dispose()


def test_a_database_without_tables(empty_database_url: str) -> None:
    storage = Storage(empty_database_url)
    with admin_client(storage) as client:
        assert_says(client, "The database cannot be read", "init_db()")
        init_db(empty_database_url)
        assert client.get("/").status_code == 200
    storage.dispose()


def test_the_default_database_is_the_one_of_the_moment(db: Storage, tmp_path: Path) -> None:
    with admin_client(None) as client:
        with db.session() as session:
            a_generation(session, prompt="still here")
        assert_works(client)
        init_db(f"sqlite:///{tmp_path / 'next.db'}")
        assert "There are no generations yet" in text_of(client.get("/history"))
        assert "next.db" in text_of(client.get("/"))
        get_storage().dispose()


def test_a_server_that_stops_and_starts_again() -> None:
    with server_folder() as folder:
        server = Server.create(folder / "primary")
        init_db(server.url())
        storage = Storage(server.url(), connect_timeout=2)
        with storage.session() as session:
            a_generation(session, prompt="still here")
        with admin_client(storage) as client:
            assert_works(client)
            server.kill()
            assert_says(client, "The database cannot be read")
            assert "p%40" not in client.get("/").text
            (folder / "primary" / "postmaster.pid").unlink(missing_ok=True)
            server.start()
            assert_works(client)
        storage.dispose()
