"""The words of the schema."""

import enum
import json
from typing import Any

import pytest

from services.storage import GenerationStatus, get_schema_version, validate_status
from services.storage.schema import FINISHED, LEGAL_MOVES, REVISIONS, is_legal_move


class Word(str, enum.Enum):  # noqa: UP042 - the other way to write such a class is what is tested
    PENDING = "pending"


def test_the_statuses_of_the_specification_have_their_words() -> None:
    words = {name: GenerationStatus[name].value for name in ("PENDING", "PROCESSING", "COMPLETED", "FAILED")}
    assert words == {"PENDING": "pending", "PROCESSING": "processing", "COMPLETED": "completed", "FAILED": "failed"}


def test_a_status_is_its_word_wherever_text_goes() -> None:
    status = GenerationStatus.PENDING
    assert status == "pending"
    assert f"{status}" == str(status) == "pending"
    assert json.dumps({"status": status}) == '{"status": "pending"}'


@pytest.mark.parametrize("status", list(GenerationStatus))
def test_known_statuses_are_valid_and_come_back_as_plain_text(status: GenerationStatus) -> None:
    for given in (status, status.value):
        assert type(validate_status(given)) is str
        assert validate_status(given) == status


def test_a_word_of_another_enumeration_is_taken_for_its_value() -> None:
    assert validate_status(Word.PENDING) == "pending"


@pytest.mark.parametrize("status", ["", "done", "PENDING", "pending ", None, 1, True, [], {}, b"pending", object()])
def test_anything_else_is_refused_by_name(status: Any) -> None:
    with pytest.raises(ValueError, match="status must be one of pending"):
        validate_status(status)


def test_a_refusal_does_not_repeat_more_than_a_word_or_two() -> None:
    with pytest.raises(ValueError, match="status") as refusal:
        validate_status("x" * 10_000)
    assert len(str(refusal.value)) < 200


def test_every_status_has_its_moves_and_completed_has_none() -> None:
    assert LEGAL_MOVES.keys() == set(GenerationStatus)
    assert LEGAL_MOVES[GenerationStatus.COMPLETED] == frozenset()
    assert sorted(FINISHED) == ["cancelled", "completed", "failed"]


@pytest.mark.parametrize("status", list(GenerationStatus))
def test_staying_and_mending_an_unknown_word_are_always_legal(status: GenerationStatus) -> None:
    assert is_legal_move(status, status)
    assert is_legal_move("rendering", status)


def test_the_schema_version_is_the_newest_revision() -> None:
    assert get_schema_version() == REVISIONS[-1]
    assert list(REVISIONS) == sorted(REVISIONS)
