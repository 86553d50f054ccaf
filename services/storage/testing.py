"""Fixtures for the tests of code that uses this library: a temporary database, in a file or in memory.

Import them in `conftest.py`: `from services.storage.testing import storage, memory_storage`. Needs pytest.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import engine
from .database import init_db
from .engine import Storage, get_storage

__all__ = ["memory_storage", "storage"]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Make a new, empty database in a file the default one, also for processes that the test starts."""
    url = f"sqlite:///{tmp_path / 'generations.db'}"
    monkeypatch.setenv("DATABASE_URL", url)
    yield from _open(url, monkeypatch)


@pytest.fixture
def memory_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Make a new, empty database in memory the default one; all threads of the process share it."""
    yield from _open("sqlite:///:memory:", monkeypatch)


def _open(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setattr(engine, "_default", None)  # so that the default of before is neither closed nor lost
    init_db(url)
    opened = get_storage()
    yield opened
    opened.dispose()
