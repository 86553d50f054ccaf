"""Prompts: each use is counted exactly once, through every function and under concurrency."""

from typing import Any

import pytest
from sqlalchemy import select

from services.storage import (
    Attempt,
    Prompt,
    Storage,
    count_generations,
    create_generations,
    delete_prompt,
    get_all_prompts,
    get_database_stats,
    get_generation,
    get_most_used_prompts,
    get_prompt,
    get_prompt_by_text,
    get_session,
    run_in_transaction,
    track_prompt_usage,
)
from tests.support.factories import a_generation, a_request
from tests.support.sessions import at_once, undone, used_count


def test_creating_counts_the_prompt_and_links_it(db: Storage) -> None:
    with get_session() as session:
        first, second = a_generation(session, prompt="lo-fi"), a_generation(session, prompt="lo-fi")
        prompt = get_prompt_by_text(session, "lo-fi")
        assert prompt is not None
        assert first.prompt_id == second.prompt_id == prompt.id
        assert prompt.used_count == 2
        assert prompt.first_used_at <= prompt.last_used_at
        assert get_prompt(session, prompt.id) is prompt


def test_a_count_in_the_session_is_the_one_in_the_database(db: Storage) -> None:
    with get_session() as session:
        prompt = track_prompt_usage(session, "lo-fi")
        assert prompt.used_count == 1
        a_generation(session, prompt="lo-fi")
        assert prompt.used_count == 2
        create_generations(session, [a_request(prompt="lo-fi")] * 3)
        assert prompt.used_count == 5
        assert track_prompt_usage(session, "lo-fi") is prompt
        assert prompt.used_count == 6
    assert used_count("lo-fi") == 6


def test_prompts_that_differ_in_one_character_are_different(db: Storage) -> None:
    texts = [
        "lo-fi",
        "Lo-fi",
        "lo-fi ",
        " lo-fi",
        "lo\u2010fi",
        "e\u0301",
        "\u00e9",
        "x" * 9_999,
        "x" * 10_000,
        "%",
        "_",
    ]
    with get_session() as session:
        ids = [track_prompt_usage(session, text).id for text in texts]
        assert len(set(ids)) == len(texts)
        for text, prompt_id in zip(texts, ids, strict=True):
            found = get_prompt_by_text(session, text)
            assert found is not None
            assert (found.id, found.text, found.used_count) == (prompt_id, text, 1)


def test_values_that_cannot_be_stored_are_not_found(db: Storage) -> None:
    with get_session() as session:
        for text in ("", "nobody wrote this", "a\0b", "\ud800", "x" * 100_000):
            assert get_prompt_by_text(session, text) is None
        for prompt_id in (0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1):
            assert get_prompt(session, prompt_id) is None
            assert delete_prompt(session, prompt_id) is False
        wrong_texts: list[Any] = [None, 5, b"lo-fi"]
        for bad in wrong_texts:
            with pytest.raises(TypeError, match="text"):
                get_prompt_by_text(session, bad)
        wrong_ids: list[Any] = [None, "1", 1.0, True]
        for bad in wrong_ids:
            with pytest.raises(TypeError, match="prompt_id"):
                get_prompt(session, bad)
            with pytest.raises(TypeError, match="prompt_id"):
                delete_prompt(session, bad)


def test_an_invalid_prompt_is_not_counted(db: Storage) -> None:
    bad_texts: list[Any] = ["", " ", None, 5, b"x", "x" * 10_001, "a\0b", "\ud800"]
    with get_session() as session:
        for bad in bad_texts:
            with pytest.raises((ValueError, TypeError), match="text"):
                track_prompt_usage(session, bad)
        assert get_all_prompts(session) == []


def test_the_most_used_prompts_come_first_and_ties_oldest_first(db: Storage) -> None:
    with get_session() as session:
        for text, count in {"a": 1, "b": 3, "c": 3, "d": 2}.items():
            for _ in range(count):
                track_prompt_usage(session, text)
        assert [prompt.text for prompt in get_all_prompts(session)] == ["b", "c", "d", "a"]
        assert [prompt.text for prompt in get_all_prompts(session, limit=2, offset=1)] == ["c", "d"]
        assert [prompt.text for prompt in get_most_used_prompts(session, limit=1)] == ["b"]
        assert get_most_used_prompts(session, limit=0) == []
        wrong_limits: list[Any] = [-1, "1", None, 1.5]
        for bad in wrong_limits:
            with pytest.raises((ValueError, TypeError), match="limit"):
                get_most_used_prompts(session, limit=bad)
            with pytest.raises((ValueError, TypeError), match="offset"):
                get_all_prompts(session, offset=bad)


def test_the_default_limit_of_most_used_prompts_is_ten(db: Storage) -> None:
    with get_session() as session:
        create_generations(session, [a_request(prompt=f"prompt {number}") for number in range(12)])
        assert len(get_most_used_prompts(session)) == 10


def test_a_rolled_back_use_is_not_counted(db: Storage) -> None:
    with undone(get_session()) as session:
        track_prompt_usage(session, "lo-fi")
    assert used_count("lo-fi") == 0


class TestIncrement:
    def test_the_count_can_be_read_before_and_after_the_flush_and_the_session(self, db: Storage) -> None:
        with get_session() as session:
            prompt = track_prompt_usage(session, "lo-fi")
            prompt.increment_usage()
            prompt.increment_usage()
            assert prompt.used_count == 3
            assert prompt.to_dict()["used_count"] == 3
            session.flush()
            assert prompt.used_count == 3
            prompt.increment_usage()
        assert prompt.used_count == 4
        assert used_count("lo-fi") == 4

    def test_increments_of_two_sessions_are_both_counted(self, db: Storage) -> None:
        with get_session() as session:
            track_prompt_usage(session, "lo-fi")
        with get_session() as first:
            mine = get_prompt_by_text(first, "lo-fi")
            assert mine is not None
            with get_session() as second:
                theirs = get_prompt_by_text(second, "lo-fi")
                assert theirs is not None
                theirs.increment_usage()
                theirs.increment_usage()
            mine.increment_usage()
            first.flush()
            assert mine.used_count == 4  # the sum in the database, not 2
        assert used_count("lo-fi") == 4

    def test_an_increment_that_was_rolled_back_is_not_counted(self, db: Storage) -> None:
        with get_session() as session:
            prompt = track_prompt_usage(session, "lo-fi")
            session.commit()
            prompt.increment_usage()
            session.rollback()
            prompt.increment_usage()
        assert used_count("lo-fi") == 2

    def test_used_count_can_be_assigned(self, db: Storage) -> None:
        with get_session() as session:
            prompt = track_prompt_usage(session, "lo-fi")
            prompt.increment_usage()
            prompt.used_count = 7
        assert used_count("lo-fi") == 7

    def test_used_count_can_be_an_sql_expression(self, db: Storage) -> None:
        with get_session() as session:
            prompt = track_prompt_usage(session, "lo-fi")
            prompt.used_count = Prompt.used_count + 5
        assert prompt.used_count == 6

    def test_a_new_prompt_is_counted_before_it_is_stored(self, db: Storage) -> None:
        prompt = Prompt(text="lo-fi")
        prompt.increment_usage()
        with get_session() as session:
            session.add(prompt)
        assert used_count("lo-fi") == 2


class TestDelete:
    def test_deleting_a_prompt_deletes_its_generations_and_their_attempts(self, db: Storage) -> None:
        with get_session() as session:
            gone, kept = a_generation(session, prompt="gone"), a_generation(session, prompt="kept")
            child = a_generation(session, prompt="kept", parent_id=gone.id)
            for generation in (gone, kept):
                session.add(Attempt(generation_id=generation.id, number=1, worker_id="w", outcome="failed"))
            session.flush()
            prompt_id = gone.prompt_id
            assert prompt_id is not None
            assert delete_prompt(session, prompt_id) is True
            assert get_generation(session, gone.id) is None
            assert delete_prompt(session, prompt_id) is False
        with get_session() as session:
            assert get_prompt_by_text(session, "gone") is None
            assert count_generations(session) == 2
            assert [attempt.generation_id for attempt in session.scalars(select(Attempt))] == [kept.id]
            orphan = get_generation(session, child.id)
            assert orphan is not None
            assert orphan.parent_id is None

    def test_a_prompt_with_unflushed_changes_can_be_deleted(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            assert generation.prompt_id is not None
            generation.mark_processing()
            prompt = get_prompt(session, generation.prompt_id)
            assert prompt is not None
            prompt.increment_usage()
            assert delete_prompt(session, generation.prompt_id)
            a_generation(session, prompt="afterwards")
        with get_session() as session:
            assert get_database_stats(session)["total_generations"] == 1

    def test_a_prompt_with_expired_objects_can_be_deleted(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation_id, prompt_id = generation.id, generation.prompt_id
            assert prompt_id is not None
            session.commit()
            session.expire_all()
            assert delete_prompt(session, prompt_id)
            assert get_generation(session, generation_id) is None

    def test_a_text_deleted_and_used_again_starts_at_one(self, db: Storage) -> None:
        with get_session() as session:
            prompt_id = a_generation(session).prompt_id
            assert prompt_id is not None
            delete_prompt(session, prompt_id)
            again = a_generation(session)
            assert get_generation(session, again.id) is again
        assert used_count(again.prompt) == 1


class TestAtOnce:
    def test_uses_in_many_threads_are_all_counted(self, db: Storage) -> None:
        def work(number: int) -> None:
            for _ in range(10):
                run_in_transaction(lambda session: track_prompt_usage(session, "lo-fi"))

        at_once(4, work)
        assert used_count("lo-fi") == 40

    def test_threads_that_create_overlapping_batches_count_all_uses_without_a_deadlock(self, db: Storage) -> None:
        texts = [f"prompt {number}" for number in range(20)]

        def work(number: int) -> None:
            mine = texts if number % 2 else texts[::-1]  # opposite orders would deadlock
            for _ in range(3):
                with get_session() as session:
                    create_generations(session, [a_request(prompt=text) for text in mine])

        at_once(4, work)
        with get_session() as session:
            assert [prompt.used_count for prompt in get_all_prompts(session)] == [12] * 20
            assert count_generations(session) == 240
