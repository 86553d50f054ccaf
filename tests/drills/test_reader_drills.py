"""A reader stays open for minutes while processes write: no writer fails, and the log shrinks afterwards."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.storage import Storage, count_generations
from tests.support.factories import a_generation
from tests.support.processes import drill_processes, start_together

pytestmark = pytest.mark.drill
WRITERS = 3
LIMIT = 4 * 1024 * 1024


def test_an_open_reader_stops_no_writer(sqlite_url: str, scaled: Callable[[int], int]) -> None:
    seconds = scaled(180)
    storage = Storage(sqlite_url)
    log = Path(f"{storage.url.database}-wal")
    with drill_processes(WRITERS, "write_large_rows", sqlite_url, str(seconds)) as writers:
        with storage.session(read_only=True) as reader:
            assert count_generations(reader) == 0
            start_together(writers)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                assert count_generations(reader) == 0
                with storage.session(read_only=True) as other:
                    count_generations(other)
            lines = [writer.read_line().split() for writer in writers]
        largest = log.stat().st_size
        assert [errors for _, *errors in lines] == [[]] * WRITERS
        stored = sum(int(count) for count, *_ in lines)
        with storage.session() as session:
            assert count_generations(session) == stored
    assert largest > LIMIT  # the reader was in the way of the checkpoints
    for _ in range(2):  # the first one is followed by a checkpoint, the second one starts the log again
        with storage.session() as session:
            a_generation(session)
    assert log.stat().st_size <= LIMIT
    storage.dispose()
