"""Fifty readers of the admin page beside three workers: every page is whole, and every job is done once."""

import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic

import httpx
import pytest

from services.storage import Job, Result, Storage, Worker, create_generations, get_attempts, list_generations
from services.storage.admin import create_app
from tests.support.admin_server import served
from tests.support.factories import a_request

pytestmark = pytest.mark.drill
READERS, WORKERS, JOBS = 50, 3, 2_000
PATHS = ("/", "/history", "/history?q=trap&status=completed", "/numbers?days=1")
PATIENCE_SECONDS = 120


def handle(job: Job) -> Result:
    job.progress(0.5, "half")
    return Result(1_000, metadata={"bpm": 140})


def test_readers_of_the_page_disturb_no_worker(db: Storage, scaled: Callable[[int], int]) -> None:
    with db.session() as session:
        ids = [row.id for row in create_generations(session, [a_request()] * scaled(JOBS))]
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

    def work() -> None:
        try:
            Worker(handle, storage=db).run(until_empty=True)
        except BaseException as error:
            failures.append(error)

    with served(create_app(db)) as address:
        readers = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        until = monotonic() + PATIENCE_SECONDS + scaled(JOBS)
        for thread in (*readers, *workers):
            thread.start()
        for thread in workers:
            thread.join(until - monotonic())
        done.set()
        for thread in readers:
            thread.join()
    assert not failures
    assert set(answers) == {200}
    with db.session(read_only=True) as session:
        assert {row.id for row in list_generations(session, status="completed", limit=10_000).items} == set(ids)
        for generation_id in ids:
            assert [attempt.outcome for attempt in get_attempts(session, generation_id)] == ["completed"]
