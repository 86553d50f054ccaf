"""Create, read, update and delete; the result is read back in another session."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.storage import (
    Attempt,
    ConflictError,
    Generation,
    GenerationStatus,
    Storage,
    claim_generation,
    clone_generation,
    complete_generation,
    count_generations,
    create_generation,
    create_generations,
    delete_generation,
    get_all_generations,
    get_database_stats,
    get_generation,
    get_generations_by_status,
    get_pending_generations,
    get_prompt_by_text,
    get_session,
    set_favorite,
    update_generation_status,
)
from services.storage.errors import ConstraintError, IllegalTransitionError
from services.storage.schema import LEGAL_MOVES
from tests.support.bad_input import BAD_ARGUMENTS, BAD_IDS, Fixed, Index, fields_of, values_for
from tests.support.factories import a_generation, a_request
from tests.support.sessions import undone

STATUSES = list(GenerationStatus)
PER_DATABASE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def stored(**changes: Any) -> str:
    """Store a generation in a new session; return its id."""
    with get_session() as session:
        return a_generation(session, **changes).id


def read(generation_id: str) -> Generation:
    """Return the row, read in a new session."""
    with get_session() as session:
        generation = get_generation(session, generation_id)
    assert generation is not None
    return generation


def write_invalid(generation_id: str, **columns: Any) -> None:
    """Write invalid values, without the checks of the library and of the database."""
    with get_session() as session:
        connection = session.connection()
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        else:
            for name in connection.scalars(text("SELECT conname FROM pg_constraint WHERE conname LIKE 'ck_gen%'")):
                connection.exec_driver_sql(f"ALTER TABLE generations DROP CONSTRAINT {name}")
        for column, value in columns.items():
            change = text(f"UPDATE generations SET {column} = :value WHERE id = :id")
            connection.execute(change, {"value": value, "id": generation_id})
        session.commit()
        if connection.dialect.name == "sqlite":
            session.connection().exec_driver_sql("PRAGMA ignore_check_constraints = OFF")


class TestCreate:
    def test_all_given_values_are_stored(self, db: Storage) -> None:
        parent = stored()
        scheduled = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
        request = a_request(
            prompt="  Straße 🎵 \n'; DROP TABLE generations; --",
            model_version="1.2",
            metadata={"bpm": 140, "tags": ["a", None, True]},
            generation_id="abc-123",
            priority=-7,
            scheduled_at=scheduled,
            max_attempts=5,
            batch_id="batch",
            parent_id=parent,
            idempotency_key="key",
            parameters={"seed": 7, "top_p": 0.9},
        )
        assert stored(**request) == "abc-123"
        found = read("abc-123")
        assert found.get_metadata() == request.pop("metadata")
        assert found.id == request.pop("generation_id")
        assert {field: getattr(found, field) for field in request} == request
        assert found.scheduled_at == datetime(2030, 1, 1, 7, tzinfo=UTC)
        assert found.scheduled_at.tzinfo is UTC
        assert found.version == 1

    def test_the_returned_object_equals_the_stored_row(self, db: Storage) -> None:
        with get_session() as session:
            created = a_generation(session, metadata={"b": 1, "a": 2.5}, parameters={"seed": 7})
            before = created.to_dict()
        assert before == read(created.id).to_dict()

    def test_objects_stay_readable_after_the_session(self, db: Storage) -> None:
        with get_session() as session:
            created = a_generation(session)
            prompt = get_prompt_by_text(session, created.prompt)
        assert created.to_dict()["status"] == "pending"
        assert created.id in repr(created)
        assert prompt is not None
        assert prompt.to_dict()["used_count"] == 1

    def test_objects_stay_readable_after_a_session_that_failed(self, db: Storage) -> None:
        known = stored()
        with undone(get_session()) as session:
            created, found = a_generation(session), get_generation(session, known)
        assert created.id in repr(created)
        assert found is not None
        assert found.id == known

    def test_a_rolled_back_savepoint_removes_its_generation(self, db: Storage) -> None:
        with get_session() as session:
            kept = a_generation(session)
            with undone(session.begin_nested()):
                dropped = a_generation(session, prompt="never mind")
            assert get_generation(session, dropped.id) is None
            assert dropped.prompt == "never mind"
            assert [generation.id for generation in get_all_generations(session)] == [kept.id]
        with get_session() as session:
            assert get_prompt_by_text(session, "never mind") is None
            assert count_generations(session) == 1

    def test_a_rolled_back_session_removes_its_generation(self, db: Storage) -> None:
        with get_session() as session:
            dropped = a_generation(session)
            session.rollback()
            assert get_generation(session, dropped.id) is None
            assert dropped.prompt == a_request()["prompt"]
        assert dropped.id in repr(dropped)

    def test_a_released_savepoint_keeps_its_generation(self, db: Storage) -> None:
        with get_session() as session:
            with session.begin_nested(), session.begin_nested():
                kept = a_generation(session)
            assert get_generation(session, kept.id) is kept
        assert read(kept.id).id == kept.id

    def test_a_session_can_continue_after_a_commit_inside_the_block(self, db: Storage) -> None:
        with get_session() as session:
            first = a_generation(session)
            session.commit()
            first.mark_processing()
            session.commit()
            second = a_generation(session)
            assert count_generations(session) == 2
        assert read(first.id).is_processing
        assert read(second.id).is_pending

    def test_an_object_added_with_session_add_is_stored(self, db: Storage) -> None:
        generation = Generation(**a_request(metadata={"bpm": 1}), status="completed")
        with get_session() as session:
            session.add(generation)
        assert read(generation.id).to_dict() == generation.to_dict()

    def test_numbers_and_paths_of_other_libraries_are_accepted(self, db: Storage) -> None:
        generation_id = stored(
            duration_seconds=Fixed(16), sample_rate=Index(48_000), channels=Index(1), file_path=Path("outputs/x.wav")
        )
        found = read(generation_id)
        assert (found.duration_seconds, found.sample_rate, found.channels) == (16.0, 48_000, 1)
        assert found.file_path == "outputs/x.wav"

    def test_an_unknown_parent_is_refused_and_the_session_stays_usable(self, db: Storage) -> None:
        with get_session() as session:
            with pytest.raises(ConstraintError, match="parent_id"):
                a_generation(session, parent_id="nobody")
            kept = a_generation(session)
        assert read(kept.id).prompt == kept.prompt
        with get_session() as session:
            assert count_generations(session) == 1
            prompt = get_prompt_by_text(session, kept.prompt)
        assert prompt is not None
        assert prompt.used_count == 1

    def test_a_stored_id_is_a_conflict_and_the_session_stays_usable(self, db: Storage) -> None:
        stored(generation_id="abc-123")
        with get_session() as session:
            with pytest.raises(ConflictError, match="generation_id"):
                a_generation(session, generation_id="abc-123")
            a_generation(session)
        with get_session() as session:
            assert count_generations(session) == 2

    def test_a_missing_or_unknown_argument_of_a_request_is_named(self, db: Storage) -> None:
        with get_session() as session:
            with pytest.raises(TypeError, match="prompt"):
                create_generation(session)  # type: ignore[call-arg]
            with pytest.raises(TypeError, match="tempo"):
                create_generation(session, **a_request(tempo=140))


class TestBadInput:
    @pytest.mark.parametrize("field", fields_of(BAD_ARGUMENTS + BAD_IDS))
    def test_bad_input_is_named_and_not_stored_and_the_session_stays_usable(self, db: Storage, field: str) -> None:
        with get_session() as session:
            for value in values_for(BAD_ARGUMENTS + BAD_IDS, field):
                with pytest.raises((ValueError, TypeError), match=field):
                    a_generation(session, **{field: value})
                with pytest.raises((ValueError, TypeError), match=field):
                    create_generations(session, [a_request(), a_request(**{field: value})])
            assert count_generations(session) == 0
            a_generation(session, prompt="afterwards")
        with get_session() as session:
            stats = get_database_stats(session)
            assert (stats["total_generations"], stats["total_prompts"]) == (1, 1)
            assert get_prompt_by_text(session, "afterwards") is not None

    @pytest.mark.parametrize("field", ["prompt", "file_path", "channels", "duration_seconds", "metadata", "status"])
    def test_a_stored_row_is_not_changed_by_bad_input(self, db: Storage, field: str) -> None:
        generation_id = stored(metadata={"bpm": 140})
        with get_session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            before = generation.to_dict()
            for value in [*values_for(BAD_ARGUMENTS, field), object()]:
                with pytest.raises((ValueError, TypeError), match=field):
                    setattr(generation, field, value)
        assert read(generation_id).to_dict() == before

    def test_limits_must_be_whole_numbers(self, db: Storage) -> None:
        with get_session() as session:
            for value in (-1, 1.5, "10", True, 2**63, None):
                for list_some in (get_all_generations, get_pending_generations):
                    with pytest.raises((ValueError, TypeError), match="limit"):
                        list_some(session, limit=value)  # type: ignore[arg-type]
                with pytest.raises((ValueError, TypeError), match="limit"):
                    get_generations_by_status(session, "failed", limit=value)  # type: ignore[arg-type]
                with pytest.raises((ValueError, TypeError), match="offset"):
                    get_all_generations(session, offset=value)  # type: ignore[arg-type]

    def test_unknown_statuses_are_refused_wherever_they_are_given(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as session:
            for ask in (
                lambda: get_all_generations(session, status="done"),
                lambda: get_generations_by_status(session, "done"),
                lambda: count_generations(session, status="done"),
                lambda: update_generation_status(session, generation_id, "done"),
            ):
                with pytest.raises(ValueError, match="status"):
                    ask()
        assert read(generation_id).is_pending

    def test_values_that_cannot_be_stored_are_not_found(self, db: Storage) -> None:
        for nowhere in ("", "a\0b", "\ud800", "x" * 1_000):
            with get_session() as session:
                assert get_generation(session, nowhere) is None
                assert delete_generation(session, nowhere) is False
                assert set_favorite(session, nowhere) is None
                assert complete_generation(session, nowhere, 1.0, 1) is None
                assert update_generation_status(session, nowhere, "failed") is None
                assert clone_generation(session, nowhere, file_path="x.wav") is None

    def test_an_id_must_be_text(self, db: Storage) -> None:
        uses: list[Any] = [get_generation, delete_generation, set_favorite]
        with get_session() as session:
            for use, generation_id in product(uses, (None, 5, b"abc")):
                with pytest.raises(TypeError, match="generation_id"):
                    use(session, generation_id)


class TestRoundTrips:
    @PER_DATABASE
    @given(prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300))
    def test_any_valid_text_is_returned_exactly(self, db: Storage, prompt: str) -> None:
        with get_session() as session:
            if not prompt.strip():
                with pytest.raises(ValueError, match="prompt"):
                    a_generation(session, prompt=prompt)
                return
            created = a_generation(session, prompt=prompt, file_path=prompt, model_version=prompt[:255] + "1")
            session.commit()
            session.expire_all()
            assert (created.prompt, created.file_path, created.model_version) == (prompt, prompt, prompt[:255] + "1")
            found = get_prompt_by_text(session, prompt)
            assert found is not None
            assert found.id == created.prompt_id

    @PER_DATABASE
    @given(
        value=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers(-(2**63) + 1, 2**63 - 1)
                | st.floats(-1e15, 1e15)
                | st.floats(1e19, 1.7e308)
                | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("key"), inner, max_size=1),
                max_leaves=8,
            ),
            max_size=4,
        )
    )
    def test_any_json_object_is_returned_equal_and_can_be_merged(self, db: Storage, value: dict[str, Any]) -> None:
        with get_session() as session:
            created = a_generation(session, metadata=value, parameters=value)
            session.commit()
            session.expire_all()
            assert created.get_metadata() == value
            assert created.parameters == value
            complete_generation(session, created.id, 1.0, 1, metadata={"key of ours": 1})
            session.commit()
            session.expire_all()
            assert created.get_metadata() == value | {"key of ours": 1}

    @PER_DATABASE
    @given(
        at=st.datetimes(
            min_value=datetime(2, 1, 1),  # noqa: DTZ001 - hypothesis wants naive bounds
            max_value=datetime(9998, 12, 31),  # noqa: DTZ001
            timezones=st.sampled_from([None, UTC, *(timezone(timedelta(hours=hours)) for hours in (-12, 5, 14))]),
        )
    )
    def test_any_time_is_returned_in_utc(self, db: Storage, at: datetime) -> None:
        expected = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        with get_session() as session:
            created = a_generation(session, scheduled_at=at)
            session.commit()
            session.expire_all()
            assert created.scheduled_at == expected
            assert created.scheduled_at.tzinfo is UTC

    def test_times_can_be_compared_in_queries_whatever_their_offset(self, db: Storage) -> None:
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        generation_id = stored(scheduled_at=noon)
        with get_session() as session:
            for same in (noon, noon.replace(tzinfo=None), noon.astimezone(timezone(timedelta(hours=9)))):
                assert session.scalars(select(Generation.id).where(Generation.scheduled_at == same)).all() == [
                    generation_id
                ]


class TestStatus:
    @pytest.mark.parametrize("current", STATUSES)
    def test_a_stored_row_makes_the_legal_moves_and_no_other(self, db: Storage, current: GenerationStatus) -> None:
        for target in STATUSES:
            row = Generation(**a_request(), status=current)
            with get_session() as session:
                session.add(row)
            before = read(row.id).to_dict()
            legal = current == target or target in LEGAL_MOVES[current]
            with get_session() as session:
                if legal:
                    assert update_generation_status(session, row.id, target) is not None
                else:
                    with pytest.raises(IllegalTransitionError):
                        update_generation_status(session, row.id, target)
            after = read(row.id)
            assert after.status == (target if legal else current)
            if not legal or current == target:
                assert after.to_dict() == before

    def test_an_error_message_needs_a_failed_or_cancelled_status(self, db: Storage) -> None:
        generation_id = stored()
        for status in ("pending", "processing", "completed"):
            with get_session() as session, pytest.raises(ValueError, match="error_message"):
                update_generation_status(session, generation_id, status, error_message="boom")
        assert read(generation_id).is_pending

    def test_a_cancelled_generation_can_have_an_error_message(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as session:
            update_generation_status(session, generation_id, "cancelled", error_message="changed my mind")
        assert read(generation_id).error_message == "changed my mind"

    def test_a_status_set_in_a_query_loop_is_stored_with_its_other_columns(self, db: Storage) -> None:
        for _ in range(3):
            stored()
        with get_session() as session:
            for generation in get_pending_generations(session):
                generation.status = "completed"
                count_generations(session)  # the query flushes the change
        with get_session() as session:
            assert all(generation.completed_at for generation in get_all_generations(session))

    def test_complete_returns_the_row_and_merges_metadata(self, db: Storage) -> None:
        generation_id = stored(metadata={"bpm": 140, "deep": {"a": 1}})
        with get_session() as session:
            done = complete_generation(session, generation_id, 18.5, 5_000_000, {"bpm": 141, "deep": {"b": 2}})
            assert done is not None
            assert done.is_complete
        found = read(generation_id)
        assert found.get_metadata() == {"bpm": 141, "deep": {"b": 2}}
        assert (found.generation_time_seconds, found.file_size_bytes) == (18.5, 5_000_000)

    @pytest.mark.parametrize("leased", [False, True])
    def test_complete_stores_what_is_known_about_the_file(self, db: Storage, leased: bool) -> None:
        with get_session() as session:
            generation = a_generation(session)
            lease = None
            if leased:
                claimed = claim_generation(session, "worker")
                assert claimed is not None
                lease = claimed.lease
            complete_generation(session, generation.id, 18.5, 5, lease=lease, file_sha256="0a" * 32, file_format="wav")
        with get_session() as session:
            stored = get_generation(session, generation.id)
            assert stored is not None
            assert (stored.file_size_bytes, stored.file_sha256, stored.file_format) == (5, "0a" * 32, "wav")

    @pytest.mark.parametrize("leased", [False, True])
    def test_complete_refuses_a_hash_that_is_none(self, db: Storage, leased: bool) -> None:
        with get_session() as session:
            generation = a_generation(session)
            claimed = claim_generation(session, "worker") if leased else None
            lease = None if claimed is None else claimed.lease
            with pytest.raises(ValueError, match="file_sha256"):
                complete_generation(session, generation.id, 18.5, 5, lease=lease, file_sha256="no hash")
            assert not generation.is_finished

    def test_a_finished_generation_cannot_be_completed_again(self, db: Storage) -> None:
        for status in ("completed", "failed", "cancelled"):
            generation_id = stored()
            with get_session() as session:
                if status == "completed":
                    complete_generation(session, generation_id, 18.5, 5)
                else:
                    update_generation_status(session, generation_id, status)
            before = read(generation_id).to_dict()
            with get_session() as session, pytest.raises(IllegalTransitionError):
                complete_generation(session, generation_id, 1.0, 1)
            assert read(generation_id).to_dict() == before

    def test_a_bad_result_completes_nothing(self, db: Storage) -> None:
        generation_id = stored(metadata={"bpm": 140})
        before = read(generation_id).to_dict()
        good: dict[str, Any] = {"generation_time": 1.0, "file_size_bytes": 1}
        for name, value in [
            ("generation_time", -1),
            ("generation_time", "fast"),
            ("file_size_bytes", -1),
            ("file_size_bytes", 1.5),
            ("metadata", []),
            ("metadata", "text"),
            ("metadata", {"x": float("nan")}),
        ]:
            with get_session() as session:
                with pytest.raises((ValueError, TypeError), match=name):
                    complete_generation(session, generation_id, **good | {name: value})
                session.commit()  # would store a partial change
            assert read(generation_id).to_dict() == before

    def test_numbers_of_other_libraries_are_accepted_as_results(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as session:
            complete_generation(session, generation_id, Fixed(1.5), Index(7), {"bpm": Fixed(140.5)})  # type: ignore[arg-type]
        found = read(generation_id)
        assert (found.generation_time_seconds, found.file_size_bytes) == (1.5, 7)
        assert found.get_metadata() == {"bpm": 140.5}

    def test_the_second_of_two_sessions_that_change_one_row_gets_a_conflict(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as first:
            mine = get_generation(first, generation_id)
            assert mine is not None
            with get_session() as second:
                theirs = get_generation(second, generation_id)
                assert theirs is not None
                theirs.mark_processing()
            mine.mark_completed(1.0)
            with pytest.raises(ConflictError) as conflict:
                first.flush()
            assert conflict.value.orig is not None
            first.rollback()
            assert mine.is_processing  # refreshed after the rollback
            mine.mark_completed(2.0)
        assert read(generation_id).generation_time_seconds == 2.0

    def test_a_change_of_a_row_deleted_meanwhile_is_a_conflict(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as first:
            mine = get_generation(first, generation_id)
            assert mine is not None
            with get_session() as second:
                assert delete_generation(second, generation_id)
            mine.mark_processing()
            with pytest.raises(ConflictError):
                first.commit()
            first.rollback()
        with get_session() as session:
            assert get_generation(session, generation_id) is None

    def test_the_prompt_of_a_stored_row_cannot_be_changed(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            with pytest.raises(ValueError, match="prompt"):
                generation.prompt = "another"
            generation.prompt = generation.prompt
        assert read(generation_id).prompt == a_request()["prompt"]


class TestLists:
    def create_at_the_same_time(self, session: Session, count: int, **changes: Any) -> list[str]:
        """Store `count` generations with the same created_at, so that only the id orders them."""
        at = datetime(2026, 1, 1, tzinfo=UTC)
        rows = [Generation(**a_request(**changes), id=f"id-{number}", created_at=at) for number in range(count)]
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]

    def test_pending_generations_are_returned_in_claim_order(self, db: Storage) -> None:
        now = datetime.now(UTC)
        with get_session() as session:
            late = a_generation(session, scheduled_at=now + timedelta(days=1)).id
            first, second = a_generation(session).id, a_generation(session).id
            urgent = a_generation(session, priority=5).id
            a_generation(session).mark_processing()
            expected = [urgent, first, second, late]
            assert [generation.id for generation in get_pending_generations(session)] == expected
            assert [generation.id for generation in get_all_generations(session, status="pending")] == expected
            assert [generation.id for generation in get_generations_by_status(session, "pending")] == expected
            assert [generation.id for generation in get_pending_generations(session, limit=2)] == expected[:2]

    def test_pending_generations_of_the_same_time_are_ordered_by_id(self, db: Storage) -> None:
        with get_session() as session:
            ids = self.create_at_the_same_time(session, 5)
            assert [generation.id for generation in get_pending_generations(session)] == ids

    @pytest.mark.parametrize("status", [None, "completed", "failed"])
    def test_histories_are_ordered_newest_first_and_by_id_within_the_same_time(
        self, db: Storage, status: str | None
    ) -> None:
        with get_session() as session:
            ids = self.create_at_the_same_time(session, 5, status=status or "failed")
            newest = a_generation(session)
            if status is not None:
                newest.status = status
            listed = [generation.id for generation in get_all_generations(session, status=status)]
            assert listed == [newest.id, *reversed(ids)]

    @pytest.mark.parametrize("status", [None, "pending", "completed"])
    def test_offset_and_limit_are_slices_of_the_same_list(self, db: Storage, status: str | None) -> None:
        with get_session() as session:
            self.create_at_the_same_time(session, 7, status=status or "pending")
            everything = [generation.id for generation in get_all_generations(session, status=status)]
            for limit, offset in product((0, 1, 3, 100), (0, 2, 6, 7, 100)):
                page = get_all_generations(session, limit=limit, offset=offset, status=status)
                assert [generation.id for generation in page] == everything[offset : offset + limit]

    def test_the_largest_offset_and_limit_are_accepted(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as session:
            assert [row.id for row in get_all_generations(session, limit=2**63 - 1)] == [generation_id]
            assert get_all_generations(session, offset=2**63 - 1) == []

    def test_the_default_limit_is_a_hundred(self, db: Storage) -> None:
        with get_session() as session:
            create_generations(session, [a_request()] * 101)
            assert len(get_all_generations(session)) == len(get_pending_generations(session)) == 100

    def test_statistics_count_unknown_statuses_in_the_total(self, db: Storage) -> None:
        ids = [stored(prompt=f"prompt {number}") for number in range(7)]
        for generation_id, status in zip(ids, [*STATUSES[1:], "rendering"], strict=False):
            if status == "rendering":
                write_invalid(generation_id, status=status)
                continue
            with get_session() as session:
                update_generation_status(session, generation_id, status)
        with get_session() as session:
            assert get_database_stats(session) == {
                "total_generations": 7,
                "pending_generations": 2,
                "processing_generations": 1,
                "completed_generations": 1,
                "failed_generations": 1,
                "cancelled_generations": 1,
                "total_prompts": 7,
            }
            assert count_generations(session) == 7
            assert count_generations(session, "pending") == 2

    def test_statistics_of_an_empty_database_are_zeros(self, db: Storage) -> None:
        with get_session() as session:
            assert set(get_database_stats(session).values()) == {0}


class TestDeleteFavoriteClone:
    def test_deleting_a_generation_deletes_its_attempts_and_keeps_the_count_of_its_prompt(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            session.add(Attempt(generation_id=generation.id, number=1, worker_id="w", outcome="failed"))
        with get_session() as session:
            assert delete_generation(session, generation.id) is True
            assert delete_generation(session, generation.id) is False
        with get_session() as session:
            assert session.scalars(select(Attempt)).all() == []
            prompt = get_prompt_by_text(session, generation.prompt)
            assert prompt is not None
            assert prompt.used_count == 1

    def test_a_generation_can_be_deleted_in_the_session_that_loaded_it(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation.mark_processing()
            assert delete_generation(session, generation.id)
            assert get_generation(session, generation.id) is None
            assert get_all_generations(session) == []

    def test_deleting_a_parent_keeps_its_variations(self, db: Storage) -> None:
        parent = stored()
        child = stored(parent_id=parent)
        with get_session() as session:
            assert delete_generation(session, parent)
        assert read(child).parent_id is None

    def test_set_favorite_marks_and_unmarks(self, db: Storage) -> None:
        generation_id = stored()
        with get_session() as session:
            marked = set_favorite(session, generation_id)
            assert marked is not None
            assert marked.is_favorite
        assert read(generation_id).is_favorite
        with get_session() as session:
            set_favorite(session, generation_id, False)
        assert not read(generation_id).is_favorite
        with get_session() as session, pytest.raises(TypeError, match="is_favorite"):
            set_favorite(session, generation_id, "yes")  # type: ignore[arg-type]

    def test_marking_a_favorite_keeps_changes_of_the_object_in_the_session(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            generation.current_step = "mixing"
            set_favorite(session, generation.id)
            assert generation.is_favorite
            generation.mark_processing()
        found = read(generation.id)
        assert (found.is_favorite, found.current_step, found.status) == (True, "mixing", "processing")

    def test_a_clone_copies_the_request_and_not_the_result(self, db: Storage) -> None:
        source = stored(priority=3, max_attempts=5, parameters={"seed": 7}, model_version="1", batch_id="b")
        with get_session() as session:
            complete_generation(session, source, 1.0, 1, {"bpm": 1})
            set_favorite(session, source)
            clone = clone_generation(session, source, file_path="outputs/again.wav")
            assert clone is not None
        found, original = read(clone.id), read(source)
        for field in ("prompt", "model_name", "model_version", "duration_seconds", "sample_rate", "channels"):
            assert getattr(found, field) == getattr(original, field)
        assert (found.priority, found.max_attempts, found.parameters) == (3, 5, {"seed": 7})
        assert (found.status, found.parent_id, found.file_path) == ("pending", source, "outputs/again.wav")
        assert (found.metadata, found.batch_id, found.completed_at, found.file_size_bytes) == (None,) * 4
        assert found.is_favorite is False
        with get_session() as session:
            prompt = get_prompt_by_text(session, found.prompt)
            assert prompt is not None
            assert prompt.used_count == 2

    def test_a_clone_can_change_fields(self, db: Storage) -> None:
        source = stored(parameters={"seed": 7})
        with get_session() as session:
            clone = clone_generation(session, source, file_path="x.wav", parameters={"seed": 8}, prompt="slower")
            assert clone is not None
            with pytest.raises(TypeError, match="tempo"):
                clone_generation(session, source, file_path="x.wav", tempo=1)
            with pytest.raises(ValueError, match="channels"):
                clone_generation(session, source, file_path="x.wav", channels=3)
        found = read(clone.id)
        assert (found.prompt, found.parameters, found.parent_id) == ("slower", {"seed": 8}, source)


class TestInvalidStoredRows:
    def test_an_unknown_status_loads_and_can_be_corrected(self, db: Storage) -> None:
        generation_id = stored()
        write_invalid(generation_id, status="rendering")
        found = read(generation_id)
        assert found.status == "rendering"
        assert not any((found.is_pending, found.is_processing, found.is_finished))
        with get_session() as session:
            update_generation_status(session, generation_id, "failed", error_message="status was lost")
        assert read(generation_id).is_failed

    @pytest.mark.parametrize("broken", ["[1, 2]", '"text"', "7"])
    def test_metadata_that_is_not_an_object_is_kept_and_cannot_be_merged(self, db: Storage, broken: str) -> None:
        generation_id = stored()
        write_invalid(generation_id, metadata=broken)
        found = read(generation_id)
        assert found.metadata == broken
        assert found.get_metadata() == {}
        assert found.to_dict()["metadata"] is None
        with get_session() as session:
            with pytest.raises(ValueError, match="metadata"):
                complete_generation(session, generation_id, 1.0, 1, metadata={"bpm": 140})
            session.commit()
        assert (read(generation_id).metadata, read(generation_id).status) == (broken, "pending")
        with get_session() as session:
            complete_generation(session, generation_id, 1.0, 1)
        assert read(generation_id).metadata == broken
        with get_session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            generation.set_metadata({"bpm": 140})
        assert read(generation_id).get_metadata() == {"bpm": 140}

    def test_numbers_above_the_limits_load(self, db: Storage) -> None:
        generation_id = stored()
        write_invalid(generation_id, metadata='{"x": 1' + "0" * 5_000 + ', "y": 1e400, "z": 12345678901234567890}')
        assert isinstance(read(generation_id).get_metadata(), dict)
