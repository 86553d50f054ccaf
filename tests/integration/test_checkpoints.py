"""Checkpoints of SQLite's write-ahead log: they keep it small, wait for nobody, and cost readers nothing."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.storage import Storage, count_generations, optimize_database
from services.storage.backends import sqlite, sqlite_wal
from tests.support.factories import a_generation
from tests.support.processes import ROOT
from tests.support.sessions import path_of
from tests.support.sqlite_module import sqlite3

MEGABYTE = 1024 * 1024


@pytest.fixture(params=["affected", "sound"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Simulate a version of SQLite with the WAL-reset bug, and one without."""
    monkeypatch.setattr(sqlite, "has_wal_reset_bug", lambda version: request.param == "affected")
    return str(request.param)


@pytest.fixture
def storage(sqlite_url: str, version: str) -> Iterator[Storage]:
    storage = Storage(sqlite_url, synchronous="NORMAL", busy_timeout=60)
    storage.require_schema()
    yield storage
    storage.dispose()


def write(storage: Storage, megabytes: float) -> None:
    """Write about as much in transactions of 120 kB."""
    for _ in range(round(megabytes * 8)):
        with storage.session() as session:
            a_generation(session, metadata={"x": "x" * 60_000}, parameters={"x": "x" * 60_000})


def size_of_wal(storage: Storage) -> int:
    return Path(f"{path_of(str(storage.url))}-wal").stat().st_size


@contextmanager
def reader(storage: Storage) -> Iterator[Any]:
    """Open a read transaction of another program, which keeps the log from becoming smaller."""
    other = sqlite3.connect(path_of(str(storage.url)), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM generations").fetchone()
    try:
        yield other
    finally:
        other.close()


def test_a_checkpoint_never_holds_the_write_lock_while_it_waits_for_a_reader(storage: Storage) -> None:
    with reader(storage) as other:
        writer = threading.Thread(target=write, args=(storage, 24))
        writer.start()
        probe = sqlite3.connect(path_of(str(storage.url)), isolation_level=None, timeout=10)
        try:
            while writer.is_alive():
                probe.execute("BEGIN IMMEDIATE")  # raises when the writer holds the lock for ten seconds
                probe.execute("ROLLBACK")
        finally:
            probe.close()
            other.close()
            writer.join()
    write(storage, 5)
    write(storage, 0.2)
    assert size_of_wal(storage) <= 6 * MEGABYTE


def test_optimizing_cuts_a_log_that_a_reader_made_long(storage: Storage) -> None:
    with reader(storage):
        write(storage, 12)
        optimize_database(storage=storage)
        assert size_of_wal(storage) > 8 * MEGABYTE
    optimize_database(storage=storage)
    assert size_of_wal(storage) <= 4 * MEGABYTE


@pytest.mark.parametrize("version", ["affected"], indirect=True)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_session_that_only_reads_runs_no_checkpoint(storage: Storage, read_only: bool) -> None:
    other = sqlite3.connect(path_of(str(storage.url)))
    other.execute("PRAGMA wal_autocheckpoint = 0")
    other.execute("CREATE TABLE blobs (content)")
    other.execute("INSERT INTO blobs VALUES (zeroblob(?))", (20 * MEGABYTE,))
    other.commit()
    size = size_of_wal(storage)
    assert size > 16 * MEGABYTE
    for _ in range(3):
        with storage.session(read_only=read_only) as session:
            count_generations(session)
    assert size_of_wal(storage) == size
    assert path_of(str(storage.url)).stat().st_size < 16 * MEGABYTE
    write(storage, 0.4)
    assert size_of_wal(storage) <= 4 * MEGABYTE
    assert path_of(str(storage.url)).stat().st_size > 16 * MEGABYTE
    other.close()


@pytest.mark.parametrize("version", ["affected"], indirect=True)
def test_a_refused_checkpoint_is_tried_again_after_as_much_was_written_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    open_connection = sqlite_wal.open_connection

    def count(*arguments: Any) -> Any:
        sizes.append(size_of_wal(storage))
        return open_connection(*arguments)

    monkeypatch.setattr(sqlite_wal, "open_connection", count)
    monkeypatch.setattr(sqlite_wal, "RETRY_SECONDS", float("inf"))
    with reader(storage):
        write(storage, 14)
    assert 2 <= len(sizes) <= 4
    assert all(after - before >= 4 * MEGABYTE for before, after in pairwise(sizes))


@pytest.mark.parametrize("version", ["affected"], indirect=True)
def test_the_checkpoint_does_not_wait_for_another_writer(storage: Storage) -> None:
    """The log is over the limit, and the other writer takes its lock between the commit and the return to the pool."""
    write(storage, 3)
    other = sqlite3.connect(path_of(str(storage.url)), isolation_level=None)
    with storage.engine.connect() as connection:
        connection.execute(text("CREATE TABLE blobs (content)"))
        connection.execute(text("INSERT INTO blobs VALUES (zeroblob(4000000))"))
        connection.commit()
        other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()
    write(storage, 0.4)
    assert size_of_wal(storage) <= 4 * MEGABYTE


FULL_DISK = """
import resource, sys
from sqlalchemy import text
from services.storage import Storage
from services.storage.backends import sqlite
from tests.integration.test_checkpoints import size_of_wal, write

sqlite.has_wal_reset_bug = lambda version: True
storage = Storage(sys.argv[1], synchronous="NORMAL", busy_timeout=7)
write(storage, 12)  # the file is now too large for the limit, and the log is not
with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, 8_000_000))
write(storage, 5)
assert size_of_wal(storage) > 4_194_304
with storage.session() as session:
    print(session.scalar(text("PRAGMA busy_timeout")))
"""


def test_a_checkpoint_that_fails_leaves_the_connection_its_busy_timeout(sqlite_url: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, sqlite_url], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert run.stdout == "7000\n", run.stderr
