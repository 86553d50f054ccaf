"""The size of the database file: new files can shrink, whoever creates them."""

from pathlib import Path

import pytest

from services.storage import init_db, reset_database
from tests.support.databases import ask, run_script

INCREMENTAL = 2  # https://sqlite.org/pragma.html#pragma_auto_vacuum


def test_a_new_file_can_give_unused_pages_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/generations.db"
    init_db(url)
    assert ask(url, "PRAGMA auto_vacuum") == [(INCREMENTAL,)]
    assert ask(url, "PRAGMA journal_mode") == [("wal",)]


def test_a_file_without_tables_can_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/empty.db"
    (tmp_path / "empty.db").touch()
    init_db(url)
    assert ask(url, "PRAGMA auto_vacuum") == [(INCREMENTAL,)]


def test_a_reset_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/generations.db"
    monkeypatch.setenv("DATABASE_URL", url)
    init_db(url)
    reset_database()
    assert ask(url, "PRAGMA auto_vacuum") == [(INCREMENTAL,)]


def test_an_adopted_file_stays_as_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    run_script(url, Path("tests/assets/original.sql").read_text("utf-8"))
    init_db(url)
    assert ask(url, "PRAGMA auto_vacuum") == [(0,)]
