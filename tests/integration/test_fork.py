"""A fork after the database was used: parent and child can both continue, and no row is lost."""

import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from services.storage import (
    Storage,
    UnsafeOpenError,
    count_generations,
    get_engine,
    get_session,
    init_db,
    track_prompt_usage,
)
from tests.support.factories import a_generation


class Child:
    """A forked process that runs `work`, with a pipe in each direction for signals."""

    def __init__(self, work: Callable[["Child"], None]) -> None:
        from_parent, self.to_child = os.pipe()
        from_child, self.to_parent = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: pytest may have threads
            self.pid = os.fork()
        if self.pid:
            self.reader, self.writer = from_child, self.to_child
            return
        self.reader, self.writer = from_parent, self.to_parent
        try:
            work(self)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)

    def signal(self) -> None:
        os.write(self.writer, b"!")

    def wait(self) -> None:
        assert os.read(self.reader, 1) == b"!"

    def finish(self) -> None:
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0


def write(count: int) -> None:
    for _ in range(count):
        with get_session() as session:
            count_generations(session)
            a_generation(session)


def count() -> int:
    with get_session() as session:
        return count_generations(session)


def test_parent_and_children_write_concurrently(db: Storage) -> None:
    write(1)
    children = [Child(lambda child: write(10)) for _ in range(3)]
    write(10)
    for child in children:
        child.finish()
    assert count() == 41


def test_rows_of_a_child_are_kept_when_the_parent_closes_its_connections(db: Storage) -> None:
    """On SQLite the last connection to close deletes the WAL, to which a child with inherited locks would write."""
    write(1)

    def work(child: Child) -> None:
        write(1)
        child.signal()
        child.wait()
        write(5)

    child = Child(work)
    child.wait()
    get_engine().dispose()
    child.signal()
    child.finish()
    assert count() == 7


def test_a_child_opens_its_own_connections(db: Storage) -> None:
    write(1)
    name = str(make_url(str(db.url)).database)

    def work(child: Child) -> None:
        inherited = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        assert not [path for path in inherited if path.startswith(name)]
        write(1)

    Child(work).finish()
    assert count() == 2


def test_a_session_that_is_open_during_the_fork_can_commit_in_the_parent(db: Storage) -> None:
    with get_session() as session:
        a_generation(session)
        child = Child(lambda child: None)
        child.finish()
        a_generation(session)
    assert count() == 2


def test_a_child_has_a_copy_of_a_memory_database() -> None:
    init_db("sqlite:///:memory:")
    write(2)

    def work(child: Child) -> None:
        assert count() == 2
        write(3)
        assert count() == 5

    Child(work).finish()
    assert count() == 2
    with get_session() as session:
        assert track_prompt_usage(session, "lo-fi").used_count == 1


SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextmanager
def open_in_another_thread(work: Callable[[Session], Any]) -> Iterator[None]:
    """Keep a session open in another thread, after `work` in it."""
    is_open, may_close = threading.Event(), threading.Event()

    def hold() -> None:
        with get_session() as session:
            work(session)
            is_open.set()
            may_close.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_open.wait()
    try:
        yield
    finally:
        may_close.set()
        thread.join()


@SQLITE
@pytest.mark.parametrize("work", [count_generations, a_generation], ids=["reading", "writing"])
def test_a_child_forked_beside_an_open_session_refuses_the_file(db: Storage, work: Callable[[Session], Any]) -> None:
    """SQLite in the child would take the parent's locks for its own: it would wait for ever or read without a lock."""

    def in_child(child: Child) -> None:
        for url in (db.url.render_as_string(), str(db.url).replace("sqlite:///", "sqlite:///file:")):
            for open_session in (get_session, Storage(url).session, lambda: get_session(read_only=True)):
                with pytest.raises(UnsafeOpenError, match="before a fork"), open_session() as session:
                    count_generations(session)

    write(1)
    with open_in_another_thread(work):
        Child(in_child).finish()
    write(1)
    assert count() == 3 if work is a_generation else 2
    Child(lambda child: write(1)).finish()  # a fork without open sessions works as before


@SQLITE
def test_a_child_may_use_another_database(db: Storage, tmp_path: Path) -> None:
    def in_child(child: Child) -> None:
        init_db(f"sqlite:///{tmp_path}/other.db")
        write(2)
        assert count() == 2

    write(1)
    with open_in_another_thread(count_generations):
        Child(in_child).finish()


@SQLITE
def test_a_session_that_the_child_inherits_raises_in_the_child(db: Storage) -> None:
    with get_session() as session:
        a_generation(session)

        def in_child(child: Child) -> None:
            with pytest.raises(UnsafeOpenError):
                count_generations(session)

        Child(in_child).finish()
        a_generation(session)
    assert count() == 2


def test_a_child_forked_beside_an_open_session_of_a_memory_database_refuses_it() -> None:
    init_db("sqlite:///:memory:")
    write(1)

    def in_child(child: Child) -> None:
        with pytest.raises(UnsafeOpenError):
            count()

    with open_in_another_thread(a_generation):
        Child(in_child).finish()
