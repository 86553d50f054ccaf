"""Many processes use one database at the same time."""

from collections.abc import Callable

import pytest

from services.storage import (
    Storage,
    count_generations,
    create_generation,
    get_generation,
    get_prompt_by_text,
    migrations,
)
from tests.support.databases import ask, make_old_database
from tests.support.factories import a_generation, a_request
from tests.support.processes import drill_processes, start_together

pytestmark = pytest.mark.drill
PROCESSES = 6


def test_many_processes_initialize_a_new_database_and_read_then_write(
    empty_database_url: str, scaled: Callable[[int], int]
) -> None:
    rounds = scaled(150)
    with drill_processes(PROCESSES, "read_then_write", empty_database_url, str(rounds)) as workers:
        start_together(workers)
        assert [worker.finish() for worker in workers] == [["done"]] * PROCESSES
    storage = Storage(empty_database_url)
    with storage.session() as session:
        shared = get_prompt_by_text(session, "shared")
        assert shared is not None
        assert shared.used_count == PROCESSES * rounds
        assert count_generations(session) == 2 * PROCESSES * rounds
    storage.dispose()


def test_many_processes_adopt_the_same_database_concurrently(empty_database_url: str) -> None:
    make_old_database(empty_database_url, "original")
    rows = ask(empty_database_url, "SELECT count(*) FROM generations")
    with drill_processes(PROCESSES, "initialize", empty_database_url) as workers:
        start_together(workers)
        assert [worker.finish() for worker in workers] == [["done"]] * PROCESSES
    storage = Storage(empty_database_url)
    assert migrations.check(storage) == []
    storage.dispose()
    assert ask(empty_database_url, "SELECT count(*) FROM generations") == rows


def test_the_batch_loop_of_many_processes_takes_every_job_once(
    db: Storage, database_url: str, scaled: Callable[[int], int]
) -> None:
    """Two processes may read the same rows; the second writer gets a ConflictError and reads again."""
    with db.session() as session:
        ids = [create_generation(session, **a_request()).id for _ in range(scaled(1_200))]
    with drill_processes(PROCESSES, "take_batches", database_url) as workers:
        start_together(workers)
        taken = [generation_id for worker in workers for line in worker.finish() for generation_id in line.split()]
    assert sorted(taken) == sorted(ids)
    assert ask(database_url, "SELECT DISTINCT status, version FROM generations") == [("processing", 2)]


def test_a_session_that_works_after_marking_delays_no_other_writer(db: Storage, database_url: str) -> None:
    """The order of events shows it: the other sessions commit while that session is still open."""
    with db.session() as session:
        marked = a_generation(session).id
    with drill_processes(1, "sleep_after_marking", database_url, marked) as (sleeper,):
        assert sleeper.read_line() == "ready"
        for _ in range(3):
            with db.session() as session:
                other = a_generation(session, prompt="meanwhile")
            with db.session() as session:
                found = get_generation(session, other.id)
                assert found is not None
                found.mark_processing()
        with db.session() as session:
            waiting = get_generation(session, marked)
            assert waiting is not None
            assert waiting.is_pending
        sleeper.send_line()
        assert sleeper.finish() == ["committed"]
    with db.session() as session:
        done = get_generation(session, marked)
        assert done is not None
        assert done.is_processing
