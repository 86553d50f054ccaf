"""The answer to COMMIT is lost: nothing that may have been committed is repeated, and a worker keeps its claim."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from services.storage import (
    CommitUnknownError,
    DisconnectedError,
    Job,
    RetryableError,
    Storage,
    Worker,
    count_generations,
    create_generation,
    get_attempts,
    get_generation,
    get_session,
    track_prompt_usage,
)
from tests.support.factories import a_generation, a_request
from tests.support.lost_answer_proxy import Fate, proxied
from tests.support.sessions import used_count

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
Through = Callable[..., Storage]


@pytest.fixture
def through(db: Storage) -> Iterator[Through]:
    """Return a function that opens the database through a proxy; its COMMITs meet `fates`, later ones pass."""
    opened: list[Storage] = []
    fates: Iterator[Fate] = repeat("pass")

    def open_through(*given: Fate) -> Storage:
        nonlocal fates
        opened.append(Storage(proxy.url))
        opened[-1].require_schema()
        fates = chain(given, repeat("pass"))
        return opened[-1]

    with proxied(
        db.url.set(drivername="postgresql").render_as_string(hide_password=False), lambda: next(fates)
    ) as proxy:
        yield open_through
        for storage in opened:
            storage.dispose()


class TestTransactions:
    @pytest.mark.parametrize(("fate", "count"), [("lose the answer", 1), ("lose the commit", 0)])
    def test_what_may_have_been_committed_is_not_repeated(self, through: Through, fate: Fate, count: int) -> None:
        storage = through(fate)
        with pytest.raises(CommitUnknownError, match="check whether") as error:
            storage.run_in_transaction(lambda session: track_prompt_usage(session, "lo-fi"))
        assert not isinstance(error.value, RetryableError)
        assert error.value.orig is not None
        assert used_count("lo-fi") == count

        storage = through(fate)
        with pytest.raises(CommitUnknownError):
            storage.run_in_transaction(a_generation)
        with get_session() as session:
            assert count_generations(session) == count

    def test_a_key_makes_it_safe_to_repeat(self, through: Through) -> None:
        storage = through("lose the answer")

        def create(session: Session) -> str:
            return create_generation(session, **a_request(), idempotency_key="one").id

        with pytest.raises(CommitUnknownError):
            storage.run_in_transaction(create)
        storage.run_in_transaction(create)
        with get_session() as session:
            assert count_generations(session) == 1

    def test_a_connection_lost_before_the_commit_is_repeated(self, through: Through, db: Storage) -> None:
        storage, tries = through(), []

        def work(session: Session) -> None:
            tries.append(a_generation(session).id)
            if len(tries) == 1:
                hang_up(db, session)
                count_generations(session)

        storage.run_in_transaction(work)
        assert len(tries) == 2
        with get_session() as session:
            assert count_generations(session) == 1

    def test_a_reader_is_repeated_whatever_was_lost(self, through: Through) -> None:
        storage = through("lose the answer", "lose the commit")
        assert storage.run_in_transaction(count_generations, read_only=True) == 0

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_function_that_has_committed_itself_is_not_repeated(self, db: Storage, nested: bool) -> None:
        """A savepoint is no commit."""
        tries: list[int] = []

        def work(session: Session) -> None:
            tries.append(1)
            with session.begin_nested() if nested else session.begin():
                a_generation(session)
            a_generation(session)
            if len(tries) == 1:
                raise DisconnectedError

        if nested:
            db.run_in_transaction(work)
        else:
            with pytest.raises(DisconnectedError):
                db.run_in_transaction(work)
        with get_session() as session:
            assert count_generations(session) == (2 if nested else 1)


class TestWorker:
    def test_it_goes_on_with_the_claim_that_stands(self, through: Through) -> None:
        """The reclaim commits first; the claim of the only attempt is the second commit."""
        with get_session() as session:
            generation_id = a_generation(session, max_attempts=1).id
        seen: list[int] = []

        def render(job: Job) -> None:
            seen.append(job.generation.attempt)

        worker = Worker(render, poll_seconds=0.01, storage=through("pass", "lose the answer"))
        assert worker.run(max_jobs=1) == 1
        assert seen == [1]
        with get_session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            assert generation.is_complete
            assert [attempt.outcome for attempt in get_attempts(session, generation_id)] == ["completed"]

    def test_a_claim_that_was_rolled_back_is_made_again(self, through: Through) -> None:
        with get_session() as session:
            generation_id = a_generation(session, max_attempts=1).id
        worker = Worker(lambda job: None, poll_seconds=0.01, storage=through("pass", "lose the commit"))
        assert worker.run(max_jobs=1) == 1
        with get_session() as session:
            assert [attempt.number for attempt in get_attempts(session, generation_id)] == [1]

    @pytest.mark.parametrize("fate", ["lose the answer", "lose the commit"])
    def test_a_result_is_stored_once(self, through: Through, fate: Fate) -> None:
        with get_session() as session:
            generation_id = a_generation(session, max_attempts=1).id
        worker = Worker(lambda job: None, storage=through("pass", "pass", fate))
        assert worker.run(until_empty=True) == 1
        with get_session() as session:
            assert [attempt.outcome for attempt in get_attempts(session, generation_id)] == ["completed"]

    def test_it_leaves_the_claims_of_others_alone(self, through: Through) -> None:
        with get_session() as session:
            ids = {a_generation(session, prompt=name).id for name in ("ours", "theirs")}
        other = Worker(lambda job: inner.run(max_jobs=1) and None, storage=through(), worker_id="other")
        rendered: list[str] = []
        inner = Worker(
            lambda job: rendered.append(job.generation.id),
            poll_seconds=0.01,
            storage=through("pass", "pass", "pass", "lose the answer"),
            worker_id="inner",
        )
        assert other.run(max_jobs=1) == 1
        assert len(rendered) == 1
        with get_session() as session:
            attempts = [attempt for one in ids for attempt in get_attempts(session, one)]
        assert sorted(attempt.worker_id for attempt in attempts) == ["inner", "other"]
        assert {attempt.outcome for attempt in attempts} == {"completed"}


def hang_up(db: Storage, session: Session) -> None:
    """End the connection of `session`, as a restart of the server would."""
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    with db.session() as other:
        assert other.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
