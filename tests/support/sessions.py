"""Sessions for tests: rolled back on purpose, in many threads, or on a separate Storage."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Barrier, Thread
from typing import TypeVar

import pytest
from sqlalchemy import make_url

from services.storage import Storage, get_prompt_by_text, get_session

Opened = TypeVar("Opened")


@contextmanager
def opened(url: str) -> Iterator[Storage]:
    """Open a Storage for the database at `url` and dispose of it at the end."""
    storage = Storage(url)
    try:
        yield storage
    finally:
        storage.dispose()


@contextmanager
def undone(block: AbstractContextManager[Opened]) -> Iterator[Opened]:
    """Run the body inside `block`, a session or a savepoint, and raise at its end so that it is rolled back."""
    with pytest.raises(LookupError), block as opened:  # noqa: PT012 - the body is the caller's
        yield opened
        raise LookupError


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in `count` threads that start together; raise their exceptions as a group."""
    start = Barrier(count)
    errors: list[Exception] = []

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise ExceptionGroup("at once", errors)


def used_count(text: str) -> int:
    """Return the used_count of a prompt, read in a new session; 0 for an unknown prompt."""
    with get_session() as session:
        prompt = get_prompt_by_text(session, text)
    return 0 if prompt is None else prompt.used_count


def path_of(url: str) -> Path:
    """Return the file of an SQLite URL."""
    return Path(str(make_url(url).database))
