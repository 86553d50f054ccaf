"""The 43 tests of the first implementation, rewritten.

https://github.com/raibid-labs/dgx-music. The first implementation ran on SQLite alone; these run on both databases.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    GenerationStatus,
    Prompt,
    Storage,
    complete_generation,
    count_generations,
    create_generation,
    delete_generation,
    get_all_generations,
    get_database_stats,
    get_generation,
    get_most_used_prompts,
    get_pending_generations,
    get_prompt_by_text,
    get_session,
    init_db,
    reset_database,
    track_prompt_usage,
    update_generation_status,
)
from tests.support.factories import REQUEST, a_generation
from tests.support.sessions import undone


@pytest.fixture
def session(db: Storage) -> Iterator[Session]:
    with get_session() as session:
        yield session


@pytest.fixture
def unsaved() -> Generation:
    return Generation(**REQUEST)


class TestGenerationModel:
    def test_a_new_generation_has_the_given_values(self, unsaved: Generation) -> None:
        assert {field: getattr(unsaved, field) for field in REQUEST} == REQUEST

    def test_a_new_generation_has_an_id(self, unsaved: Generation) -> None:
        assert isinstance(unsaved.id, str)
        assert len(unsaved.id) == 36

    def test_a_new_generation_is_pending(self, unsaved: Generation) -> None:
        assert unsaved.status == GenerationStatus.PENDING

    def test_a_new_generation_has_a_creation_time(self, unsaved: Generation) -> None:
        assert unsaved.created_at is not None
        assert unsaved.completed_at is None

    def test_is_pending(self) -> None:
        assert Generation(**REQUEST, status=GenerationStatus.PENDING).is_pending

    def test_is_processing(self) -> None:
        assert Generation(**REQUEST, status=GenerationStatus.PROCESSING).is_processing

    def test_is_complete(self) -> None:
        assert Generation(**REQUEST, status=GenerationStatus.COMPLETED).is_complete

    def test_is_failed(self) -> None:
        assert Generation(**REQUEST, status=GenerationStatus.FAILED).is_failed

    def test_is_finished(self) -> None:
        finished = [Generation(**REQUEST, status=status).is_finished for status in GenerationStatus]
        assert finished == [False, False, True, True, True]

    def test_metadata_given_as_a_dict_is_stored_as_text(self, unsaved: Generation) -> None:
        unsaved.set_metadata({"bpm": 140, "key": "Cm"})
        assert isinstance(unsaved.metadata, str)
        assert json.loads(unsaved.metadata) == {"bpm": 140, "key": "Cm"}

    def test_get_metadata_returns_a_dict(self, unsaved: Generation) -> None:
        unsaved.metadata = '{"bpm": 140}'
        assert unsaved.get_metadata() == {"bpm": 140}

    def test_no_metadata_is_an_empty_dict(self, unsaved: Generation) -> None:
        assert unsaved.metadata is None
        assert unsaved.get_metadata() == {}

    def test_mark_processing(self, unsaved: Generation) -> None:
        unsaved.mark_processing()
        assert unsaved.status == "processing"

    def test_mark_completed(self, unsaved: Generation) -> None:
        unsaved.mark_completed(18.5)
        assert unsaved.status == "completed"
        assert unsaved.generation_time_seconds == 18.5
        assert unsaved.completed_at is not None

    def test_mark_failed(self, unsaved: Generation) -> None:
        unsaved.mark_failed("CUDA out of memory")
        assert unsaved.status == "failed"
        assert unsaved.error_message == "CUDA out of memory"
        assert unsaved.completed_at is not None

    def test_to_dict(self, unsaved: Generation) -> None:
        unsaved.set_metadata({"bpm": 140})
        shown = unsaved.to_dict()
        assert shown["id"] == unsaved.id
        assert shown["prompt"] == REQUEST["prompt"]
        assert shown["status"] == "pending"
        assert shown["metadata"] == {"bpm": 140}
        assert isinstance(shown["created_at"], str)

    def test_repr(self, unsaved: Generation) -> None:
        assert "Generation" in repr(unsaved)
        assert unsaved.id in repr(unsaved)


class TestPromptModel:
    def test_a_new_prompt_was_used_once(self) -> None:
        prompt = Prompt(text="lo-fi")
        assert (prompt.text, prompt.used_count) == ("lo-fi", 1)
        assert prompt.first_used_at == prompt.last_used_at

    def test_increment_usage(self) -> None:
        prompt = Prompt(text="lo-fi")
        prompt.increment_usage()
        assert prompt.used_count == 2

    def test_increments_add_up_and_move_the_last_use(self) -> None:
        prompt = Prompt(text="lo-fi")
        for _ in range(5):
            prompt.increment_usage()
        assert prompt.used_count == 6
        assert prompt.last_used_at >= prompt.first_used_at

    def test_to_dict(self) -> None:
        shown = Prompt(text="lo-fi").to_dict()
        assert shown["text"] == "lo-fi"
        assert shown["used_count"] == 1
        assert isinstance(shown["first_used_at"], str)

    def test_repr(self) -> None:
        assert "Prompt" in repr(Prompt(text="lo-fi"))
        assert "lo-fi" in repr(Prompt(text="lo-fi"))


class TestDatabase:
    def test_init_db_creates_the_file(self, tmp_path: Path) -> None:
        init_db(f"sqlite:///{tmp_path}/new/generations.db")
        assert (tmp_path / "new" / "generations.db").is_file()

    def test_a_session_commits_at_its_end(self, db: Storage) -> None:
        with get_session() as session:
            generation_id = a_generation(session).id
        with get_session() as session:
            assert get_generation(session, generation_id) is not None

    def test_a_session_rolls_back_when_its_block_raises(self, db: Storage) -> None:
        with undone(get_session()) as session:
            a_generation(session)
        with get_session() as session:
            assert count_generations(session) == 0

    def test_reset_leaves_empty_tables(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session)
        reset_database()
        with get_session() as session:
            assert get_database_stats(session)["total_generations"] == 0
            assert get_database_stats(session)["total_prompts"] == 0

    def test_create(self, session: Session) -> None:
        generation = create_generation(session=session, **REQUEST, model_version="1.0", metadata={"bpm": 140})
        session.commit()
        assert generation.id
        assert generation.status == GenerationStatus.PENDING
        assert generation.model_version == "1.0"
        assert generation.get_metadata() == {"bpm": 140}

    def test_get_by_id(self, session: Session) -> None:
        generation_id = a_generation(session).id
        session.commit()
        found = get_generation(session, generation_id)
        assert found is not None
        assert found.prompt == REQUEST["prompt"]

    def test_get_an_unknown_id(self, session: Session) -> None:
        assert get_generation(session, "no-such-id") is None

    def test_get_all(self, session: Session) -> None:
        for number in range(5):
            a_generation(session, prompt=f"prompt {number}")
        session.commit()
        assert len(get_all_generations(session)) == 5

    def test_get_all_of_a_status(self, session: Session) -> None:
        first, _ = a_generation(session), a_generation(session)
        first.mark_processing()
        session.commit()
        found = get_all_generations(session, status=GenerationStatus.PROCESSING)
        assert [generation.id for generation in found] == [first.id]

    def test_get_all_in_pages(self, session: Session) -> None:
        for _ in range(10):
            a_generation(session)
        session.commit()
        pages = [get_all_generations(session, limit=4, offset=offset) for offset in (0, 4, 8)]
        assert [len(page) for page in pages] == [4, 4, 2]
        assert len({generation.id for page in pages for generation in page}) == 10

    def test_update_status(self, session: Session) -> None:
        generation_id = a_generation(session).id
        update_generation_status(session, generation_id, GenerationStatus.PROCESSING)
        session.commit()
        found = get_generation(session, generation_id)
        assert found is not None
        assert found.is_processing

    def test_update_status_with_an_error(self, session: Session) -> None:
        generation_id = a_generation(session).id
        update_generation_status(session, generation_id, GenerationStatus.FAILED, error_message="boom")
        session.commit()
        found = get_generation(session, generation_id)
        assert found is not None
        assert (found.is_failed, found.error_message) == (True, "boom")

    def test_complete_a_pending_one_directly(self, session: Session) -> None:
        generation_id = a_generation(session, metadata={"genre": "trap"}).id
        session.commit()
        complete_generation(
            session, generation_id, generation_time=18.5, file_size_bytes=5_000_000, metadata={"bpm": 140}
        )
        session.commit()
        found = get_generation(session, generation_id)
        assert found is not None
        assert found.is_complete
        assert (found.generation_time_seconds, found.file_size_bytes) == (18.5, 5_000_000)
        assert found.get_metadata() == {"genre": "trap", "bpm": 140}

    def test_delete(self, session: Session) -> None:
        generation_id = a_generation(session).id
        session.commit()
        assert delete_generation(session, generation_id) is True
        session.commit()
        assert get_generation(session, generation_id) is None

    def test_delete_an_unknown_id(self, session: Session) -> None:
        assert delete_generation(session, "no-such-id") is False

    def test_get_pending(self, session: Session) -> None:
        generations = [a_generation(session) for _ in range(3)]
        generations[0].mark_processing()
        session.commit()
        assert {generation.id for generation in get_pending_generations(session)} == {
            generation.id for generation in generations[1:]
        }

    def test_count(self, session: Session) -> None:
        for _ in range(3):
            a_generation(session)
        session.commit()
        assert count_generations(session) == 3
        assert count_generations(session, status=GenerationStatus.PENDING) == 3
        assert count_generations(session, status=GenerationStatus.COMPLETED) == 0

    def test_track_a_new_prompt(self, session: Session) -> None:
        prompt = track_prompt_usage(session, "ambient pad")
        session.commit()
        assert (prompt.text, prompt.used_count) == ("ambient pad", 1)

    def test_track_a_known_prompt(self, session: Session) -> None:
        first = track_prompt_usage(session, "ambient pad")
        session.commit()
        again = track_prompt_usage(session, "ambient pad")
        session.commit()
        assert again.id == first.id
        assert again.used_count == 2
        found = get_prompt_by_text(session, "ambient pad")
        assert found is not None
        assert found.used_count == 2

    def test_most_used_prompts(self, session: Session) -> None:
        for text, uses in {"rare": 1, "popular": 3, "known": 2}.items():
            for _ in range(uses):
                track_prompt_usage(session, text)
        session.commit()
        assert [prompt.text for prompt in get_most_used_prompts(session, limit=2)] == ["popular", "known"]

    def test_statistics(self, session: Session) -> None:
        generations = [a_generation(session, prompt=f"prompt {number}") for number in range(4)]
        generations[0].mark_processing()
        generations[1].mark_completed(1.0)
        generations[2].mark_failed("boom")
        session.commit()
        stats = get_database_stats(session)
        assert stats["total_generations"] == 4
        for status in ("pending", "processing", "completed", "failed"):
            assert stats[f"{status}_generations"] == 1
        assert stats["total_prompts"] == 4
