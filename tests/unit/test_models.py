"""The models without a database."""

import json
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import MetaData

from services.storage import Attempt, Base, Generation, GenerationStatus, Lease, Prompt
from services.storage.errors import IllegalTransitionError
from services.storage.models import QueueState
from services.storage.schema import FINISHED, LEGAL_MOVES
from tests.support.factories import a_request

STATUSES = list(GenerationStatus)
MOVES = [(current, target) for current, target in product(STATUSES, STATUSES) if current != target]
LEGAL = [(current, target) for current, target in MOVES if target in LEGAL_MOVES[current]]
ILLEGAL = [move for move in MOVES if move not in LEGAL]


def a_row(**changes: Any) -> Generation:
    return Generation(**a_request(**changes))


def a_leased_row() -> Generation:
    now = datetime.now(UTC)
    return a_row(
        status="processing",
        worker_id="host:1",
        attempt=2,
        max_attempts=2,
        started_at=now,
        lease_expires_at=now + timedelta(minutes=1),
        progress=0.5,
        current_step="sampling",
        cancel_requested_at=now,
    )


class TestNewObjects:
    def test_a_new_generation_has_its_defaults_before_the_flush(self) -> None:
        generation = a_row()
        assert len(generation.id) == 36
        assert generation.status == "pending"
        assert generation.created_at.tzinfo is UTC
        assert generation.scheduled_at == generation.created_at
        assert (generation.priority, generation.attempt, generation.max_attempts) == (0, 0, 3)
        assert generation.is_favorite is False
        assert generation.completed_at is generation.metadata is generation.lease is None

    def test_a_new_prompt_has_its_defaults_before_the_flush(self) -> None:
        prompt = Prompt(text="lo-fi rain")
        assert prompt.id is None
        assert prompt.used_count == 1
        assert prompt.first_used_at == prompt.last_used_at
        assert prompt.first_used_at.tzinfo is UTC

    def test_explicit_values_override_defaults(self) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        generation = a_row(id="abc-123", created_at=at, priority=5, metadata={"bpm": 140})
        assert (generation.id, generation.scheduled_at, generation.priority) == ("abc-123", at, 5)
        assert generation.get_metadata() == {"bpm": 140}
        assert Prompt(text="x", first_used_at=at).last_used_at == at

    def test_an_explicit_creation_time_is_kept(self) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        assert a_row(scheduled_at=at).scheduled_at == at

    def test_no_two_rows_share_an_id(self) -> None:
        assert len({a_row().id for _ in range(1_000)}) == 1_000

    def test_a_row_without_arguments_can_be_created_and_printed(self) -> None:
        generation = Generation()
        assert generation.status == "pending"
        assert "status=pending" in repr(generation)
        assert generation.to_dict()["prompt"] is None

    def test_an_unknown_argument_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="tempo"):
            a_row(tempo=140)

    def test_rows_are_hashable(self) -> None:
        first, second = a_row(), a_row()
        assert len({first, second, first}) == 2

    def test_attempts_and_queue_state_have_their_defaults(self) -> None:
        assert Attempt(generation_id="x", number=1, worker_id="w", outcome="failed").finished_at.tzinfo is UTC
        assert QueueState().id == 1


class TestStatus:
    @pytest.mark.parametrize("status", STATUSES)
    def test_a_new_row_can_have_any_status(self, status: GenerationStatus) -> None:
        generation = a_row(status=status)
        assert generation.status == status
        assert type(generation.status) is str
        assert (generation.completed_at is not None) == (status in FINISHED)

    @pytest.mark.parametrize("status", sorted(FINISHED))
    @pytest.mark.parametrize("first", ["status", "completed_at"])
    def test_a_constructor_keeps_the_given_time_of_completion(self, status: str, first: str) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        values = {"status": status, "completed_at": at}
        ordered = {first: values[first]} | values
        assert a_row(**ordered).completed_at == at

    @pytest.mark.parametrize("status", STATUSES)
    def test_the_status_properties_follow_the_status(self, status: GenerationStatus) -> None:
        generation = a_row(status=status)
        assert generation.is_pending == (status == "pending")
        assert generation.is_processing == (status == "processing")
        assert generation.is_complete == (status == "completed")
        assert generation.is_failed == (status == "failed")
        assert generation.is_cancelled == (status == "cancelled")
        assert generation.is_finished == (status in FINISHED)

    @pytest.mark.parametrize(("current", "target"), LEGAL)
    def test_a_legal_move_sets_the_other_columns(self, current: str, target: str) -> None:
        generation = a_row(status=current, error_message="before")
        generation.status = target
        assert generation.status == target
        assert (generation.completed_at is not None) == (target in FINISHED)
        assert generation.error_message == (None if current in FINISHED else "before")
        assert generation.lease is None

    @pytest.mark.parametrize(("current", "target"), ILLEGAL)
    def test_an_illegal_move_is_refused_and_changes_nothing(self, current: str, target: str) -> None:
        generation = a_row(status=current)
        before = generation.to_dict()
        with pytest.raises(IllegalTransitionError, match=f"'{current}' to '{target}'") as refusal:
            generation.status = target
        assert (refusal.value.current, refusal.value.target) == (current, target)
        assert generation.to_dict() == before

    @pytest.mark.parametrize("status", STATUSES)
    def test_the_same_status_again_changes_nothing(self, status: GenerationStatus) -> None:
        generation = a_row(status=status, error_message="kept")
        before = generation.to_dict()
        generation.status = status
        assert generation.to_dict() == before

    @pytest.mark.parametrize("target", sorted(LEGAL_MOVES[GenerationStatus.PROCESSING]))
    def test_leaving_processing_clears_the_lease(self, target: str) -> None:
        generation = a_leased_row()
        assert generation.lease == Lease(generation.id, "host:1", 2)
        generation.status = target
        assert generation.to_dict().items() >= {"worker_id": None, "lease_expires_at": None}.items()
        assert not generation.lease
        assert generation.attempt == 2

    def test_going_back_to_pending_clears_the_attempt_and_grants_one_more(self) -> None:
        generation = a_leased_row()
        generation.status = "pending"
        assert (generation.started_at, generation.progress, generation.current_step) == (None, None, None)
        assert generation.cancel_requested_at is None
        assert (generation.attempt, generation.max_attempts) == (2, 3)

    def test_going_back_to_pending_never_lowers_the_attempts(self) -> None:
        generation = a_row(status="failed", attempt=1, max_attempts=5)
        generation.status = "pending"
        assert generation.max_attempts == 5

    def test_a_retried_generation_can_be_completed(self) -> None:
        generation = a_row(status="failed", error_message="out of memory")
        generation.status = "pending"
        assert (generation.completed_at, generation.error_message) == (None, None)
        generation.mark_processing()
        generation.mark_completed(3.0)
        assert generation.is_complete

    def test_finishing_keeps_an_existing_completed_at(self) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        generation = a_row()
        generation.completed_at = at
        generation.status = "completed"
        assert generation.completed_at == at


class TestMarks:
    def test_mark_processing_changes_the_status(self) -> None:
        generation = a_row()
        generation.mark_processing()
        assert generation.is_processing
        assert generation.lease is None

    @pytest.mark.parametrize("status", ["pending", "processing", "completed"])
    def test_mark_completed_works_from_each_unfinished_status(self, status: str) -> None:
        generation = a_row(status=status)
        generation.mark_completed(18.5)
        assert generation.is_complete
        assert generation.generation_time_seconds == 18.5
        assert generation.completed_at is not None

    @pytest.mark.parametrize("status", ["pending", "processing", "failed"])
    def test_mark_failed_works_from_each_unfinished_status(self, status: str) -> None:
        generation = a_row(status=status)
        generation.mark_failed("out of memory")
        assert generation.is_failed
        assert generation.error_message == "out of memory"
        assert generation.completed_at is not None

    def test_mark_failed_accepts_any_message(self) -> None:
        generation = a_row()
        generation.mark_failed(ValueError("a\0b" * 10_000))  # type: ignore[arg-type]
        assert generation.error_message is not None
        assert len(generation.error_message) <= 8_192

    @pytest.mark.parametrize("time", ["18", -1, float("nan"), True])
    def test_mark_completed_with_a_bad_time_changes_nothing(self, time: Any) -> None:
        generation = a_row()
        with pytest.raises((ValueError, TypeError), match="generation_time"):
            generation.mark_completed(time)
        assert generation.is_pending
        assert generation.completed_at is None

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    def test_a_failed_or_cancelled_generation_cannot_be_completed(self, status: str) -> None:
        generation = a_row(status=status)
        with pytest.raises(IllegalTransitionError):
            generation.mark_completed(1.0)
        assert generation.generation_time_seconds is None

    def test_a_completed_generation_cannot_fail(self) -> None:
        generation = a_row(status="completed")
        with pytest.raises(IllegalTransitionError):
            generation.mark_failed("too late")
        assert generation.error_message is None


class TestMetadata:
    def test_metadata_of_the_class_is_that_of_sqlalchemy(self) -> None:
        assert isinstance(Generation.metadata, MetaData)
        assert Generation.metadata is Base.metadata

    @pytest.mark.parametrize("given", [{"bpm": 140}, '{"bpm": 140}', '{ "bpm":140 }'])
    def test_metadata_of_a_row_is_text_in_whatever_form_it_was_given(self, given: Any) -> None:
        generation = a_row(metadata=given)
        assert isinstance(generation.metadata, str)
        assert json.loads(generation.metadata) == {"bpm": 140}
        assert generation.get_metadata() == {"bpm": 140}
        assert generation.metadata_json == generation.metadata

    def test_metadata_can_be_replaced_by_a_dict_text_or_none(self) -> None:
        generation = a_row()
        generation.metadata = {"key": "Cm"}
        assert generation.get_metadata() == {"key": "Cm"}
        generation.metadata = '{"key": "Dm"}'
        assert generation.get_metadata() == {"key": "Dm"}
        generation.set_metadata({"key": "Em"})
        assert generation.get_metadata() == {"key": "Em"}
        generation.set_metadata(None)
        assert generation.metadata is None
        assert generation.get_metadata() == {}

    def test_get_metadata_returns_a_copy(self) -> None:
        generation = a_row(metadata={"tags": ["a"]})
        generation.get_metadata()["tags"].append("b")
        assert generation.get_metadata() == {"tags": ["a"]}

    def test_non_ascii_text_is_not_escaped(self) -> None:
        assert a_row(metadata={"título": "日本 🎵"}).metadata == '{"título": "日本 🎵"}'

    def test_a_refused_value_keeps_the_metadata(self) -> None:
        generation = a_row(metadata={"bpm": 140})
        refused: list[Any] = ["not JSON", [1], {"x": float("nan")}]
        for bad in refused:
            with pytest.raises((ValueError, TypeError), match="metadata"):
                generation.metadata = bad
            with pytest.raises((ValueError, TypeError), match="metadata"):
                generation.set_metadata(bad)
        assert generation.get_metadata() == {"bpm": 140}


class TestToDictAndRepr:
    def test_a_dict_has_every_column_under_its_own_name(self) -> None:
        generation = a_row(metadata={"bpm": 140}, parameters={"seed": 7})
        shown = generation.to_dict()
        assert shown.keys() == set(Generation.__table__.columns.keys())
        assert shown["metadata"] == {"bpm": 140}
        assert shown["parameters"] == {"seed": 7}
        assert shown["created_at"] == generation.created_at.isoformat()
        assert shown["created_at"].endswith("+00:00")
        assert json.loads(json.dumps(shown)) == shown

    def test_the_dict_of_every_other_model_has_every_column(self) -> None:
        for row in (Prompt(text="x"), Attempt(generation_id="x", number=1, worker_id="w", outcome="lost")):
            shown = row.to_dict()
            assert shown.keys() == set(type(row).__table__.columns.keys())
            json.dumps(shown)

    def test_a_repr_is_one_short_line(self) -> None:
        generation = a_row(prompt="an endless prompt " * 100)
        assert generation.id in repr(generation)
        assert "status=pending" in repr(generation)
        assert len(repr(generation)) < 150
        assert "used_count=1" in repr(Prompt(text="lo-fi"))
        assert "lo-fi" in repr(Prompt(text="lo-fi"))
        assert "outcome=lost" in repr(Attempt(generation_id="x", number=1, worker_id="w", outcome="lost"))


class TestUsage:
    def test_an_unsaved_prompt_counts_by_plain_arithmetic(self) -> None:
        prompt = Prompt(text="x")
        before = prompt.last_used_at
        prompt.increment_usage()
        prompt.increment_usage()
        assert prompt.used_count == 3
        assert type(prompt.used_count) is int
        assert prompt.last_used_at >= before
        assert prompt.first_used_at == before

    def test_used_count_does_not_exceed_its_limit(self) -> None:
        prompt = Prompt(text="x", used_count=2**31 - 1)
        with pytest.raises(ValueError, match="used_count"):
            prompt.increment_usage()
