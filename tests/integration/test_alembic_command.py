"""The alembic command in a checkout, with the database of DATABASE_URL."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from alembic.config import main

from services.storage import Storage, init_db, migrations
from services.storage.schema import REVISIONS
from tests.conftest import administer, database_at
from tests.support.databases import ask, everything_in, file_of, is_sqlite, make_old_database, run_script, schema_of

ROOT = Path(__file__).resolve().parents[2]
HEAD = REVISIONS[-1]


class Alembic:
    """Run the command in the checkout: in this process, which is a second faster, or in a new process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, url: str, *arguments: str) -> tuple[int, str]:
        """Return the exit status and what was printed."""
        self.monkeypatch.chdir(ROOT)
        self.monkeypatch.setenv("DATABASE_URL", url)
        status = 0
        self.capsys.readouterr()
        try:
            main(list(arguments), prog="alembic")
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, "".join(self.capsys.readouterr())

    def succeed(self, url: str, *arguments: str) -> str:
        status, printed = self(url, *arguments)
        assert status == 0, printed
        return printed


@pytest.fixture
def alembic(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Alembic:
    return Alembic(capsys, monkeypatch)


def run_alembic(url: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=cwd,
        env=os.environ | {"DATABASE_URL": url, "PYTHONPATH": str(cwd)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def copy_checkout(path: Path) -> Path:
    for name in ("alembic", "services"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "alembic.ini", path)
    return path


def test_the_commands_of_the_manual_work_in_a_shell(sqlite_url: str) -> None:
    for command in ("current", "downgrade -1", "upgrade head"):
        done = run_alembic(sqlite_url, *command.split())
        assert done.returncode == 0, done.stderr
        assert (f"{HEAD} (head)" in done.stdout) == (command == "current")


def test_upgrade_current_downgrade_and_check(alembic: Alembic, empty_database_url: str) -> None:
    url = empty_database_url
    alembic.succeed(url, "upgrade", "head")
    alembic.succeed(url, "current")
    alembic.succeed(url, "check")
    alembic.succeed(url, "downgrade", "-1")
    assert ask(url, "SELECT version_num FROM alembic_version") == [(REVISIONS[-2],)]
    status, printed = alembic(url, "check")
    assert status != 0
    assert "not up to date" in printed
    alembic.succeed(url, "upgrade", "head")
    alembic.succeed(url, "upgrade", "head")


def test_the_command_creates_the_same_schema_as_init_db(
    alembic: Alembic, empty_database_url: str, fresh_url: str
) -> None:
    alembic.succeed(empty_database_url, "upgrade", "head")
    assert schema_of(empty_database_url) == schema_of(fresh_url)
    if is_sqlite(empty_database_url):
        assert file_of(empty_database_url).stat().st_mode & 0o777 == 0o600
        assert ask(empty_database_url, "PRAGMA journal_mode") == [("wal",)]


def test_the_command_adopts_a_database_of_the_original(alembic: Alembic, empty_database_url: str) -> None:
    make_old_database(empty_database_url, "original")
    rows = ask(empty_database_url, "SELECT count(*) FROM generations")
    alembic.succeed(empty_database_url, "upgrade", "head")
    alembic.succeed(empty_database_url, "check")
    assert ask(empty_database_url, "SELECT count(*) FROM generations") == rows
    assert ask(empty_database_url, "SELECT count(*) FROM generations WHERE prompt_id IS NULL") == [(0,)]
    init_db(empty_database_url)


def test_upgrading_step_by_step_from_a_database_without_version(alembic: Alembic, empty_database_url: str) -> None:
    url = make_old_database(empty_database_url, "original")
    for revision in ("001", "+1", "head"):
        alembic.succeed(url, "upgrade", revision)
    assert ask(url, "SELECT version_num FROM alembic_version") == [(HEAD,)]


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE songs (id INTEGER)",
        "CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('8a1c0ffee')",
    ],
    ids=["without version", "with a version"],
)
def test_no_command_changes_a_foreign_database(alembic: Alembic, script: str, empty_database_url: str) -> None:
    url = empty_database_url
    run_script(url, script)
    before = everything_in(url)
    for command in ("upgrade head", "downgrade base", "downgrade -1", "stamp head", "stamp --purge head"):
        status, printed = alembic(url, *command.split())
        assert status != 0
        assert "DATABASE_URL" in printed
        assert everything_in(url) == before, command
    for command in ("check", "current"):
        alembic(url, *command.split())
        assert everything_in(url) == before, command
    if is_sqlite(url):
        assert list(file_of(url).parent.iterdir()) == [file_of(url)]


def test_a_newer_database_is_refused_with_a_hint(alembic: Alembic, database_url: str) -> None:
    run_script(database_url, "UPDATE alembic_version SET version_num = '999'")
    before = everything_in(database_url)
    status, printed = alembic(database_url, "upgrade", "head")
    assert status != 0
    assert "upgrade dgx-music-storage" in printed
    assert everything_in(database_url) == before


def test_only_upgrade_creates_a_file(alembic: Alembic, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/folder/missing.db"
    for command in ("current", "check", "downgrade -1", "stamp head"):
        status, printed = alembic(url, *command.split())
        assert status != 0
        assert "just db-init" in printed
        assert not list(tmp_path.iterdir()), command
    alembic.succeed(url, "history")
    assert not list(tmp_path.iterdir())
    alembic.succeed(url, "upgrade", "head")
    assert [path.name for path in tmp_path.rglob("*.db")] == ["missing.db"]


def test_history_lists_every_revision_in_words(tmp_path: Path) -> None:
    history = run_alembic(f"sqlite:///{tmp_path}/missing.db", "history").stdout
    assert all(f"-> {revision}" in history for revision in REVISIONS)


def test_sqlite_has_no_upgrade_script(alembic: Alembic, tmp_path: Path) -> None:
    status, printed = alembic(f"sqlite:///{tmp_path}/missing.db", "upgrade", "head", "--sql")
    assert status != 0
    assert "--sql works for PostgreSQL only" in printed
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize("start", [None, "001"])
def test_the_upgrade_script_of_postgresql_makes_the_same_schema(
    alembic: Alembic, postgresql_server: str, postgresql_template: str, start: str | None
) -> None:
    name = f"test_{uuid4().hex}"
    administer(postgresql_server, f"CREATE DATABASE {name}")
    url = database_at(postgresql_server, name)
    if start:
        make_old_database(url, start)
    script = alembic.succeed(url, "upgrade", f"{start}:head" if start else "head", "--sql")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script[script.index("BEGIN;") :])
    assert schema_of(url) == schema_of(database_at(postgresql_server, postgresql_template))
    init_db(url)
    assert migrations.check(Storage(url)) == []


def test_the_x_argument_overrides_the_environment(alembic: Alembic, tmp_path: Path) -> None:
    alembic.succeed(f"sqlite:///{tmp_path}/a.db", "-x", f"url=sqlite:///{tmp_path}/b.db", "upgrade", "head")
    assert [path.name for path in tmp_path.iterdir()] == ["b.db"]


def test_paths_and_urls_can_contain_percent_signs(alembic: Alembic, tmp_path: Path) -> None:
    """Alembic's configuration interpolates percent signs; only the path of alembic.ini must not contain one."""
    url = f"sqlite:///{tmp_path}/50% off %s.db"
    alembic.succeed(url, "upgrade", "head")
    alembic.succeed(url, "check")
    assert (tmp_path / "50% off %s.db").exists()
    checkout = copy_checkout(tmp_path / "50% off %(here)s")
    init = "from services.storage import *; init_db('sqlite:///data/%d.db')"
    subprocess.run([sys.executable, "-c", init], cwd=checkout, check=True, env=os.environ | {"PYTHONPATH": "."})
    assert (checkout / "data/%d.db").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://somebody:p%40ss%25word@127.0.0.1:1/music?connect_timeout=2", "cannot be opened"),
        ("postgresql://somebody@127.0.0.1:1/music?connect_timeout=2&password=p%40ss%25word", "cannot be opened"),
        ("postgresql://somebody:p%40ss%25word@host:port/music", "database URL cannot be read"),
    ],
)
def test_an_unreachable_url_is_a_clear_error_without_the_password(url: str, message: str) -> None:
    done = run_alembic(url, "upgrade", "head")
    assert done.returncode != 0
    assert message in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in ("p%40ss", "p@ss", "Traceback"))


def test_autogenerate_finds_nothing_at_head_and_finds_a_new_column(
    alembic: Alembic, empty_database_url: str, tmp_path: Path
) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    alembic.succeed(empty_database_url, "upgrade", "head")
    run_alembic(
        empty_database_url, "revision", "--autogenerate", "-m", "Nothing", "--rev-id", "900", cwd=checkout
    ).check_returncode()
    assert bodies(checkout / "alembic/versions/900_nothing.py") == ["pass", "pass"]
    (checkout / "alembic/versions/900_nothing.py").unlink()

    models = checkout / "services/storage/models.py"
    place = "    current_step: Mapped"
    models.write_text(models.read_text("utf-8").replace(place, f"    mood: Mapped[str | None]\n{place}"), "utf-8")
    run_alembic(
        empty_database_url, "revision", "--autogenerate", "-m", "Mood", "--rev-id", "901", cwd=checkout
    ).check_returncode()
    up, down = bodies(checkout / "alembic/versions/901_mood.py")
    assert "add_column" in up
    assert "mood" in up
    assert "drop_column" in down


def bodies(revision: Path) -> list[str]:
    """Return the bodies of upgrade() and downgrade(), without comments."""
    code = re.sub(r"#.*", "", revision.read_text("utf-8"))
    return [" ".join(part.split("\ndef ")[0].split()) for part in code.split("-> None:\n")[1:]]


def test_the_command_and_init_db_can_run_concurrently(empty_database_url: str) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": empty_database_url},
        stderr=subprocess.DEVNULL,
    )
    init_db(empty_database_url)
    assert command.wait() == 0
    storage = Storage(empty_database_url)
    assert migrations.check(storage) == []
    storage.dispose()


def test_a_folder_in_place_of_the_file_is_a_clear_error(alembic: Alembic, tmp_path: Path) -> None:
    status, printed = alembic(f"sqlite:///{tmp_path}", "upgrade", "head")
    assert status != 0
    assert "check DATABASE_URL" in printed


def test_a_file_that_is_not_a_database_is_a_clear_error(alembic: Alembic, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 1_000)
    before = path.read_bytes()
    status, printed = alembic(f"sqlite:///{path}", "upgrade", "head")
    assert status != 0
    assert "not an SQLite database" in printed
    assert path.read_bytes() == before
