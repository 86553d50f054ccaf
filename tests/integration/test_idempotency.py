"""Idempotency keys: a repeated request creates one generation."""

from typing import Any

import pytest

from services.storage import (
    ConflictError,
    Storage,
    count_generations,
    create_generations,
    get_all_generations,
    get_prompt_by_text,
    get_session,
)
from tests.support.factories import a_generation, a_request
from tests.support.sessions import at_once, undone, used_count

DIFFERENT: dict[str, Any] = {
    "prompt": "another",
    "model_name": "another",
    "model_version": "another",
    "duration_seconds": 17.0,
    "sample_rate": 44_100,
    "channels": 1,
    "parameters": {"seed": 8},
}


def test_the_same_key_again_returns_the_first_row_and_counts_nothing(db: Storage) -> None:
    with get_session() as session:
        first = a_generation(session, idempotency_key="key", parameters={"seed": 7})
        assert a_generation(session, idempotency_key="key", parameters={"seed": 7}) is first
    with get_session() as session:
        again = a_generation(session, idempotency_key="key", parameters={"seed": 7})
        assert again.id == first.id
        assert count_generations(session) == 1
    assert used_count(first.prompt) == 1


@pytest.mark.parametrize("parameters", [None, {"guidance": 1e300, "top_p": 0.1, "steps": 2**53 + 1, "name": "é"}])
def test_values_that_the_database_normalized_are_the_same_request(db: Storage, parameters: Any) -> None:
    for _ in range(2):
        with get_session() as session:
            a_generation(session, idempotency_key="key", duration_seconds=16, parameters=parameters)
    with get_session() as session:
        assert count_generations(session) == 1


def test_another_path_batch_or_metadata_is_still_the_same_request(db: Storage) -> None:
    with get_session() as session:
        first = a_generation(session, idempotency_key="key")
        again = a_generation(
            session, idempotency_key="key", file_path="elsewhere.wav", batch_id="b", metadata={"x": 1}, priority=9
        )
        assert again is first
        assert again.file_path == a_request()["file_path"]


def test_a_different_request_is_a_conflict_that_names_the_field(db: Storage) -> None:
    with get_session() as session:
        a_generation(session, idempotency_key="key", parameters={"seed": 7})
        for field, value in DIFFERENT.items():
            request = {"parameters": {"seed": 7}, field: value}
            with pytest.raises(ConflictError, match=f"idempotency_key .* {field}"):
                a_generation(session, idempotency_key="key", **request)
        a_generation(session, idempotency_key="another key")
    with get_session() as session:
        assert count_generations(session) == 2
        assert get_prompt_by_text(session, "another") is None


def test_a_finished_generation_is_returned_as_it_is(db: Storage) -> None:
    with get_session() as session:
        a_generation(session, idempotency_key="key").mark_completed(1.0)
    with get_session() as session:
        assert a_generation(session, idempotency_key="key").is_complete


def test_a_key_is_free_again_once_its_session_rolled_back(db: Storage) -> None:
    with undone(get_session()) as session:
        a_generation(session, idempotency_key="key")
    with get_session() as session:
        a_generation(session, idempotency_key="key", prompt="another")
        assert count_generations(session) == 1


def test_requests_without_a_key_are_never_the_same(db: Storage) -> None:
    with get_session() as session:
        for _ in range(3):
            a_generation(session, idempotency_key=None)
        assert count_generations(session) == 3


def test_a_key_is_recognized_within_a_batch_and_across_batches(db: Storage) -> None:
    requests = [a_request(idempotency_key=key, prompt=f"prompt {key}") for key in ("a", "b", "a", None)]
    with get_session() as session:
        first = create_generations(session, requests)
        assert first[0] is first[2]
        assert len({generation.id for generation in first}) == 3
    with get_session() as session:
        again = create_generations(session, requests)
        assert [generation.id for generation in again[:3]] == [generation.id for generation in first[:3]]
        assert again[3].id != first[3].id
        assert count_generations(session) == 4
    assert used_count("prompt a") == 1


def test_a_conflict_within_a_batch_stores_none_of_it(db: Storage) -> None:
    with get_session() as session:
        with pytest.raises(ConflictError, match="idempotency_key"):
            create_generations(
                session, [a_request(idempotency_key="key"), a_request(idempotency_key="key", channels=1), a_request()]
            )
        assert count_generations(session) == 0
    assert used_count(a_request()["prompt"]) == 0


def test_threads_with_the_same_key_create_one_row(db: Storage) -> None:
    def work(number: int) -> None:
        for key in ("x", "y", "z"):
            with get_session() as session:
                a_generation(session, idempotency_key=key)

    at_once(4, work)
    with get_session() as session:
        assert sorted(generation.idempotency_key or "" for generation in get_all_generations(session)) == [
            "x",
            "y",
            "z",
        ]
    assert used_count(a_request()["prompt"]) == 3


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_key_stored_by_a_transaction_that_is_still_open_is_waited_for(db: Storage) -> None:
    """Two savepoints insert the same key: the second waits for the first, then finds its row."""
    with get_session() as first:
        stored = a_generation(first, idempotency_key="key")
        seen: list[str] = []

        def second(number: int) -> None:
            if number:
                with get_session() as session:
                    seen.append(a_generation(session, idempotency_key="key").id)
            else:
                wait_for_a_blocked_session(db)
                first.commit()

        at_once(2, second)
    assert seen == [stored.id]


def wait_for_a_blocked_session(db: Storage) -> None:
    with db.engine.connect() as connection:
        question = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not connection.exec_driver_sql(question).scalar():
            connection.rollback()
