"""Fifty readers of the admin page beside writers: no page is broken, and no writer waits for a reader."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from services.storage import (
    Job,
    Result,
    Storage,
    Worker,
    claim_generation,
    complete_generation,
    create_generations,
    get_attempts,
    list_generations,
)
from services.storage.admin import create_app
from tests.support.admin_server import served
from tests.support.factories import a_generation, a_request

pytestmark = pytest.mark.drill
READERS, WORKERS, JOBS = 50, 3, 2_000
PATHS = ("/", "/history", "/history?q=trap&status=completed", "/numbers?days=1")
PATIENCE_SECONDS = 120


def handle(job: Job) -> Result:
    job.progress(0.5, "half")
    return Result(1_000, metadata={"bpm": 140})


@contextmanager
def reading(storage: Storage) -> Iterator[tuple[Counter[int], list[BaseException]]]:
    """Let fifty readers ask for pages; yield the statuses of the answers and what failed."""
    answers: Counter[int] = Counter()
    failures: list[BaseException] = []
    done = threading.Event()

    def read(number: int) -> None:
        try:
            with httpx.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
                while not done.is_set():
                    page = client.get(PATHS[number % len(PATHS)])
                    answers[page.status_code] += 1
                    assert page.text.rstrip().endswith("</html>")
        except BaseException as error:
            failures.append(error)

    with served(create_app(storage)) as address:
        readers = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
        for thread in readers:
            thread.start()
        try:
            yield answers, failures
        finally:
            done.set()
            for thread in readers:
                thread.join()


def test_every_page_is_whole_and_every_job_is_done_once(db: Storage, scaled: Callable[[int], int]) -> None:
    with db.session() as session:
        ids = [row.id for row in create_generations(session, [a_request()] * scaled(JOBS))]
    with reading(db) as (answers, failures):

        def work() -> None:
            try:
                Worker(handle, storage=db).run(until_empty=True)
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
    assert not failures
    assert set(answers) == {200}
    with db.session(read_only=True) as session:
        assert {row.id for row in list_generations(session, status="completed", limit=10_000).items} == set(ids)
        for generation_id in ids:
            assert [attempt.outcome for attempt in get_attempts(session, generation_id)] == ["completed"]


def test_a_writer_that_waits_for_nobody_is_never_refused(
    db: Storage, database_url: str, scaled: Callable[[int], int]
) -> None:
    """A lock of a reader would raise BusyError at once on SQLite, and after a millisecond on PostgreSQL."""
    impatient = Storage(database_url, busy_timeout=0, lock_timeout=0.001)
    with reading(db) as (answers, failures):
        for _ in range(scaled(JOBS)):
            with impatient.session() as session:
                a_generation(session)
            with impatient.session() as session:
                claimed = claim_generation(session, "impatient")
                assert claimed is not None
            with impatient.session() as session:
                complete_generation(session, claimed.id, 1.0, 1, lease=claimed.lease)
    impatient.dispose()
    assert not failures
    assert set(answers) == {200}
    assert sum(answers.values()) >= len(PATHS)
