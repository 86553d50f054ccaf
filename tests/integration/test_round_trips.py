"""How many statements an operation executes, and what happens where one step is not enough."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    Job,
    Lease,
    LeaseLostError,
    Prompt,
    Result,
    RetryableError,
    Storage,
    Worker,
    cancel_generation,
    claim_generation,
    complete_generation,
    fail_generation,
    get_all_generations,
    get_attempts,
    get_generation,
    get_most_used_prompts,
    get_prompt_by_text,
    heartbeat_generation,
    list_generations,
    release_generation,
    set_favorite,
)
from services.storage.row_loading import find, is_observed
from tests.support.factories import a_generation, a_request

LONG = "x" * 60_000


@contextmanager
def executed(db: Storage) -> Iterator[list[str]]:
    """Yield the statements executed in the block, BEGIN and COMMIT of the driver not among them."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


def claimed(db: Storage, **request: Any) -> Lease:
    with db.session() as session:
        a_generation(session, **request)
        generation = claim_generation(session, "w")
        assert generation is not None
        assert generation.lease is not None
        return generation.lease


def complete(session: Session, lease: Lease, metadata: dict[str, Any] | None = None) -> Generation | None:
    return complete_generation(session, lease.generation_id, 1.0, 5, metadata, lease=lease)


class TestStatements:
    @pytest.mark.parametrize(
        ("work", "sqlite", "postgresql"),
        [
            (lambda session, lease: a_generation(session), 2, 1),
            (lambda session, lease: get_generation(session, lease.generation_id), 1, 1),
            (lambda session, lease: claim_generation(session), 1, 1),
            (lambda session, lease: heartbeat_generation(session, lease, progress=0.5), 1, 1),
            (complete, 2, 1),
            (lambda session, lease: complete(session, lease, {"bpm": 140}), 3, 1),
            (lambda session, lease: fail_generation(session, lease.generation_id, "no", lease=lease), 2, 1),
            (lambda session, lease: fail_generation(session, lease.generation_id, "n", lease=lease, retry=False), 2, 1),
        ],
        ids="create get claim heartbeat complete merge fail end".split(),
    )
    def test_an_operation_takes_one_statement_for_each_table_or_one_for_all(
        self, db: Storage, work: Callable[[Session, Lease], Any], sqlite: int, postgresql: int
    ) -> None:
        lease = claimed(db, metadata={"key": "Cm"})
        with db.session() as session:
            a_generation(session)
        with db.session() as session, executed(db) as statements:
            assert work(session, lease) is not None
        assert len(statements) == (sqlite if db.backend.name == "sqlite" else postgresql), statements

    def test_a_worker_sends_two_statements_for_a_job(self, db: Storage) -> None:
        with db.session() as session:
            a_generation(session)
        worker = Worker(lambda job: Result(5, {"bpm": 140}), storage=db)
        with executed(db) as statements:
            assert worker.run(max_jobs=1) == 1
        # Once for many jobs: is the clock right, which leases have expired, and which workers are there?
        reclaims = [sql for sql in statements if "started_at >" in sql or "lease_expires_at <" in sql]
        registry = [sql for sql in statements if "INTO workers" in sql or "FROM workers" in sql]
        assert (len(reclaims), len(registry)) == (2, 4)
        assert len(statements) - 6 == (4 if db.backend.name == "sqlite" else 2), statements


class TestSteps:
    """run_step() has to give up a step that needs a transaction, with nothing written, and then do it in one."""

    @pytest.mark.parametrize(
        ("prepare", "outcome", "metadata"),
        [
            ({}, "completed", {"bpm": 140, "key": "Cm"}),
            ({"cancel": True}, "cancelled", {"key": "Cm"}),
            ({"repeat": True}, "completed", {"bpm": 140, "key": "Cm"}),
        ],
    )
    def test_a_result_is_stored_as_in_a_transaction(
        self, db: Storage, prepare: dict[str, bool], outcome: str, metadata: dict[str, Any]
    ) -> None:
        lease = claimed(db, metadata={"key": "Cm"})
        if prepare.get("cancel"):
            db.run_in_transaction(lambda session: cancel_generation(session, lease.generation_id))
        for _ in range(2 if prepare.get("repeat") else 1):
            generation = db.run_step(lambda session: complete(session, lease, {"bpm": 140}))
        assert generation is not None
        with db.session() as session:
            stored = get_generation(session, lease.generation_id)
            assert stored is not None
            assert (stored.status, stored.get_metadata()) == (outcome, metadata)
            assert stored.to_dict() == generation.to_dict()
            assert [attempt.outcome for attempt in get_attempts(session, lease.generation_id)] == [outcome]

    @pytest.mark.parametrize(
        "end", [complete, lambda s, lease: fail_generation(s, lease.generation_id, "", lease=lease)]
    )
    def test_a_lost_lease_is_an_error_and_writes_nothing(self, db: Storage, end: Callable[..., Any]) -> None:
        lease = claimed(db)._replace(attempt=7)
        with pytest.raises(LeaseLostError):
            db.run_step(lambda session: end(session, lease))
        with db.session() as session:
            assert get_attempts(session, lease.generation_id) == []

    def test_metadata_that_grows_too_large_is_refused_and_the_lease_stays(self, db: Storage) -> None:
        lease = claimed(db, metadata={"a": LONG})
        with pytest.raises(ValueError, match="64 KiB"):
            db.run_step(lambda session: complete(session, lease, {"b": LONG}))
        with db.session() as session:
            stored = get_generation(session, lease.generation_id)
            assert stored is not None
            assert stored.lease == lease
            assert get_attempts(session, lease.generation_id) == []

    def test_metadata_that_may_be_too_large_and_is_not_is_merged(self, db: Storage) -> None:
        """PostgreSQL only knows the sum of both lengths before it has merged."""
        lease = claimed(db, metadata={"a": LONG})
        generation = db.run_step(lambda session: complete(session, lease, {"a": LONG}))
        assert generation is not None
        assert generation.get_metadata() == {"a": LONG}

    def test_a_released_job_is_pending_again(self, db: Storage) -> None:
        lease = claimed(db)
        assert db.run_step(lambda session: release_generation(session, lease)).is_pending

    @pytest.mark.parametrize("max_attempts", [1, 2])
    def test_a_failure_waits_for_a_retry_or_is_final(self, db: Storage, max_attempts: int) -> None:
        lease = claimed(db, max_attempts=max_attempts)
        failed = db.run_step(lambda session: fail_generation(session, lease.generation_id, "no GPU", lease=lease))
        assert failed is not None
        assert failed.status == ("failed" if max_attempts == 1 else "pending")
        assert failed.error_message == "no GPU"
        assert (failed.lease, failed.worker_id, failed.version) == (None, None, 3)
        assert (failed.scheduled_at > failed.created_at) == (max_attempts == 2)
        assert (failed.completed_at is None) == (failed.started_at is None) == (max_attempts == 2)


class TestSessions:
    def test_objects_that_a_session_holds_are_refreshed(self, db: Storage) -> None:
        with db.session() as session:
            generation = a_generation(session)
            claimed_one = claim_generation(session, "w")
            assert claimed_one is generation
            assert generation.lease is not None
            assert complete(session, generation.lease, {"bpm": 140}) is generation
            assert generation.get_metadata() == {"bpm": 140}
            assert generation not in session.dirty

    def test_unsaved_changes_are_flushed_before_a_step(self, db: Storage) -> None:
        with db.session() as session:
            generation = a_generation(session)
            generation.priority = 9
            found = claim_generation(session, "w")
            assert found is generation
            assert found.priority == 9

    def test_a_loaded_object_is_as_one_of_the_orm(self, db: Storage) -> None:
        lease = claimed(db, **a_request(metadata={"key": "Cm"}, parameters={"seed": 1}))
        with db.session() as session:
            adopted = get_generation(session, lease.generation_id)
            assert adopted is session.get(Generation, lease.generation_id)
            assert adopted is not None
            values = adopted.to_dict()
            session.expire(adopted)
            assert adopted.to_dict() == values
            adopted.is_favorite = True
        with db.session() as session:
            stored = session.get(Generation, lease.generation_id)
            assert stored is not None
            assert stored.is_favorite
            assert stored.version == 3


class TestQueriesAlone:
    """A query that comes first needs no transaction: PostgreSQL answers it in one round trip."""

    READS: tuple[Callable[[Session], Any], ...] = (
        lambda session: get_generation(session, "unknown"),
        get_all_generations,
        list_generations,
        get_most_used_prompts,
        lambda session: get_prompt_by_text(session, "unknown"),
    )

    def is_in_transaction(self, session: Session) -> bool:
        driver: Any = session.connection().connection.dbapi_connection
        return bool(driver.in_transaction if hasattr(driver, "in_transaction") else driver.info.transaction_status)

    @pytest.mark.parametrize("read", READS, ids="get all page prompts text".split())
    def test_it_begins_no_transaction_and_the_next_write_does(
        self, db: Storage, read: Callable[[Session], Any]
    ) -> None:
        with db.session() as session:
            read(session)
            assert not self.is_in_transaction(session)
            a_generation(session)
            assert self.is_in_transaction(session)
            read(session)
            assert self.is_in_transaction(session)
            session.rollback()
            assert get_all_generations(session) == []

    @pytest.mark.parametrize("read", READS, ids="get all page prompts text".split())
    def test_a_read_only_session_reads_it_in_its_snapshot(self, db: Storage, read: Callable[[Session], Any]) -> None:
        with db.session(read_only=True) as session:
            read(session)
            if not db.is_memory:
                assert self.is_in_transaction(session)

    def test_a_transaction_with_an_isolation_level_of_its_own_begins_with_it(self, db: Storage) -> None:
        if db.backend.name == "sqlite":
            return  # it has one level, and no transaction before the first write
        with db.session() as session:
            session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            get_all_generations(session)
            assert self.is_in_transaction(session)

    def test_a_refused_query_leaves_the_session_usable(self, db: Storage) -> None:
        with db.session() as session:
            with pytest.raises(SQLAlchemyError):
                find(session, Generation, select(Generation).where(text("there_is_no_such_column = 1")))
            session.rollback()
            a_generation(session)
            session.rollback()
            assert get_all_generations(session) == []

    def test_a_connection_lost_in_a_query_is_replaced_by_one_with_transactions(self, db: Storage) -> None:
        if db.backend.name == "sqlite":
            return  # it has no server
        kills_itself = select(Generation).where(text("pg_terminate_backend(pg_backend_pid())"))
        with db.session() as session:
            a_generation(session)
        with pytest.raises(RetryableError), db.session() as session:
            find(session, Generation, kills_itself)
        with db.session() as session:
            get_all_generations(session)
            a_generation(session)
            session.rollback()
        with db.session() as session:
            assert len(get_all_generations(session)) == 1


class TestLists:
    """A list in a session without objects and listeners is read without the ORM's loader."""

    def pages(self, session: Session) -> list[Generation]:
        return [*get_all_generations(session), *list_generations(session, limit=2).items]

    def test_the_objects_are_as_those_of_the_orm(self, db: Storage) -> None:
        lease = claimed(db, **a_request(metadata={"key": "Cm"}, parameters={"seed": 1}))
        with db.session() as session:
            a_generation(session)
        with db.session() as session:
            listed = get_all_generations(session)
            for generation in listed:
                assert generation is session.get(Generation, generation.id)
                assert inspect(generation).persistent
                assert inspect(generation).unmodified
                values = generation.to_dict()
                session.expire(generation)
                assert generation.to_dict() == values
                assert generation.attempts == []
                generation.is_favorite = True
        with db.session() as session:
            stored = session.get(Generation, lease.generation_id)
            assert stored is not None
            assert (stored.is_favorite, stored.version) == (True, 3)

    def test_unsaved_changes_are_kept(self, db: Storage) -> None:
        with db.session() as session:
            generation = a_generation(session)
            with session.no_autoflush:
                generation.priority = 7
                assert [listed.priority for listed in self.pages(session)] == [7, 7]

    def test_changes_of_others_do_not_replace_what_the_session_has_read(self, db: Storage) -> None:
        with db.session() as session:
            generation_id = a_generation(session).id
        with db.session() as session:
            (generation,) = get_all_generations(session)
            with db.session() as other:
                set_favorite(other, generation_id)
            assert all(listed is generation for listed in self.pages(session))
            assert not generation.is_favorite

    def test_the_library_itself_listens_to_no_loads(self, db: Storage) -> None:
        with db.session() as session:
            assert not is_observed(session, Generation)
            assert not is_observed(session, Prompt)

    @pytest.mark.parametrize(
        ("target", "name", "listings"),
        [
            (Session, "do_orm_execute", (get_all_generations, list_generations, get_most_used_prompts)),
            (Session, "loaded_as_persistent", (get_all_generations, list_generations, get_most_used_prompts)),
            (Generation, "load", (get_all_generations, list_generations)),
            (Prompt, "load", (get_most_used_prompts,)),
        ],
    )
    def test_listeners_to_loads_and_queries_are_called(
        self, db: Storage, target: Any, name: str, listings: tuple[Callable[[Session], Any], ...]
    ) -> None:
        with db.session() as session:
            a_generation(session)
        seen: list[Any] = []

        def listen(*arguments: Any) -> None:
            seen.append(arguments)

        event.listen(target, name, listen)
        try:
            for number, listing in enumerate(listings, start=1):
                with db.session() as session:
                    listing(session)
                assert len(seen) == number
        finally:
            event.remove(target, name, listen)


def test_a_job_gets_the_generation_as_it_was_claimed(db: Storage) -> None:
    with db.session() as session:
        a_generation(session, metadata={"key": "Cm"})
    seen: list[Job] = []
    Worker(seen.append, storage=db).run(max_jobs=1)
    assert seen[0].generation.get_metadata() == {"key": "Cm"}
