"""SQLite through another module: chosen explicitly, and never two of them on one file in one process."""

import importlib
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from services.storage import (
    CorruptError,
    FullError,
    ReadOnlyError,
    Storage,
    UnsafeOpenError,
    count_generations,
    migrations,
)
from services.storage.backends.sqlite_errors import translate
from tests.support.factories import a_generation
from tests.support.processes import ROOT

pysqlite3 = pytest.importorskip("pysqlite3.dbapi2", reason="pysqlite3 has wheels for Linux on x86-64 only")
MODULES = {"sqlite3": "pysqlite3", "pysqlite3": "sqlite3"}


def version_of(storage: Storage) -> str:
    with storage.session() as session:
        a_generation(session)
        return str(session.scalar(text("SELECT sqlite_version()")))


@pytest.mark.parametrize("name", ["generations.db", ":memory:"])
def test_the_module_is_chosen_by_an_option_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    url = f"sqlite:///{name}" if name == ":memory:" else f"sqlite:///{tmp_path}/{name}"
    storage = Storage(url, sqlite_module="pysqlite3")
    migrations.upgrade(storage)
    assert version_of(storage) == pysqlite3.sqlite_version
    storage.dispose()
    monkeypatch.setenv("DATABASE_SQLITE_MODULE", "pysqlite3")
    storage = Storage(url)
    migrations.upgrade(storage)
    assert version_of(storage) == pysqlite3.sqlite_version
    storage.dispose()
    with pytest.raises(ValueError, match="sqlite_module must be sqlite3 or pysqlite3"):
        Storage(url, sqlite_module="apsw")


@pytest.mark.parametrize("first", MODULES)
@pytest.mark.parametrize("kind", ["path", "uri", "link", "hard link"])
def test_two_modules_do_not_open_one_file_at_once(sqlite_url: str, tmp_path: Path, first: str, kind: str) -> None:
    path = sqlite_url.removeprefix("sqlite:///")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard link").hardlink_to(path)
    url = {"path": path, "uri": f"file:{path}"}.get(kind, f"{tmp_path}/{kind}")
    one = Storage(sqlite_url, sqlite_module=first)
    one.require_schema()
    other = Storage(f"sqlite:///{url}", sqlite_module=MODULES[first])
    for attempt in (other.require_schema, lambda: migrations.upgrade(other)):
        with pytest.raises(UnsafeOpenError, match=f"open in this process through {first}, .* than {MODULES[first]}"):
            attempt()
    one.dispose()
    other.run_in_transaction(a_generation)
    other.dispose()
    assert one.run_in_transaction(count_generations) == 1
    one.dispose()


def test_a_module_that_is_not_installed_is_named() -> None:
    code = (
        "import sys\nsys.modules['pysqlite3'] = None\nfrom services.storage import Storage, DriverMissingError\n"
        "try: Storage('sqlite:///x.db', sqlite_module='pysqlite3')\nexcept DriverMissingError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "pip install 'dgx-music-storage[sqlite]'" in run.stdout


@pytest.mark.parametrize("module", MODULES)
def test_the_errors_of_a_copy_are_recognized_with_either_module(module: str, tmp_path: Path) -> None:
    """Those of pysqlite3's Connection.backup() have no error names."""
    driver = importlib.import_module(f"{module}.dbapi2")
    (tmp_path / "text").write_text("not a database\n" * 100)
    with closing(driver.connect(tmp_path / "target")) as target, closing(driver.connect(tmp_path / "text")) as source:
        with pytest.raises(driver.Error) as refused:
            source.backup(target)
        assert type(translate(refused.value)) is CorruptError
    kinds = {"database or disk is full": FullError, "attempt to write a readonly database": ReadOnlyError}
    for message, kind in kinds.items():
        assert type(translate(driver.OperationalError(message))) is kind
