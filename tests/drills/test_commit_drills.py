"""COMMIT is answered by silence: a proxy loses commits and their answers at random, and every job still runs once."""

import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.storage import (
    Attempt,
    CommitUnknownError,
    Job,
    Storage,
    Worker,
    count_generations,
    create_generation,
    get_prompt_by_text,
)
from tests.support.factories import a_request
from tests.support.lost_answer_proxy import Fate, proxied

pytestmark = [pytest.mark.drill, pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)]
WORKERS = 3


def test_lost_commits_cost_no_attempt_and_repeat_nothing(db: Storage, scaled: Callable[[int], int]) -> None:
    jobs = scaled(300)
    choose = random.Random(1)

    def fate() -> Fate:
        return choose.choices(("pass", "lose the answer", "lose the commit"), (90, 5, 5))[0]

    rendered: Counter[str] = Counter()

    def render(job: Job) -> None:
        rendered[job.generation.id] += 1

    with proxied(db.url.render_as_string(hide_password=False), fate) as proxy:
        storages = [Storage(proxy.url) for _ in range(WORKERS + 1)]
        for number in range(jobs):
            submit(storages[0], f"job {number}")
        threads = [
            threading.Thread(
                target=Worker(render, poll_seconds=0.05, storage=storage).run, kwargs={"until_empty": True}
            )
            for storage in storages[1:]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for storage in storages:
            storage.dispose()

    with db.session() as session:
        assert count_generations(session, "completed") == count_generations(session) == jobs
        assert set(session.execute(select(Attempt.number, Attempt.outcome))) == {(1, "completed")}
        prompt = get_prompt_by_text(session, "shared")
        assert prompt is not None
        assert prompt.used_count == jobs
    assert set(rendered.values()) == {1}


def submit(storage: Storage, key: str) -> None:
    """Submit a job of one attempt, again if the answer is lost: the key makes that safe."""

    def create(session: Session) -> None:
        create_generation(session, **a_request(prompt="shared"), idempotency_key=key, max_attempts=1)

    while True:
        try:
            storage.run_in_transaction(create)
        except CommitUnknownError:
            continue
        return
