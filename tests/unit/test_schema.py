"""The statuses and the version of the schema."""

import enum
import json
from typing import Any

import pytest

from services.storage import GenerationStatus, get_schema_version, validate_status
from services.storage.schema import FINISHED, LEGAL_MOVES, REVISIONS, is_legal_move


class Word(str, enum.Enum):  # noqa: UP042 - the other way to write such a class is what is tested
    PENDING = "pending"


def test_the_statuses_of_the_specification_have_their_values() -> None:
    words = {name: GenerationStatus[name].value for name in ("PENDING", "PROCESSING", "COMPLETED", "FAILED")}
    assert words == {"PENDING": "pending", "PROCESSING": "processing", "COMPLETED": "completed", "FAILED": "failed"}


def test_a_status_can_be_used_as_text() -> None:
    status = GenerationStatus.PENDING
    assert status == "pending"
    assert f"{status}" == str(status) == "pending"
    assert json.dumps({"status": status}) == '{"status": "pending"}'


@pytest.mark.parametrize("status", list(GenerationStatus))
def test_known_statuses_are_valid_and_returned_as_plain_text(status: GenerationStatus) -> None:
    for given in (status, status.value):
        assert type(validate_status(given)) is str
        assert validate_status(given) == status


def test_a_member_of_another_string_enumeration_is_accepted_by_its_value() -> None:
    assert validate_status(Word.PENDING) == "pending"


@pytest.mark.parametrize("status", ["", "done", "PENDING", "pending ", None, 1, True, [], {}, b"pending", object()])
def test_anything_else_is_refused_by_name(status: Any) -> None:
    with pytest.raises(ValueError, match="status must be one of pending"):
        validate_status(status)


def test_the_error_quotes_at_most_40_characters() -> None:
    with pytest.raises(ValueError, match="status") as refusal:
        validate_status("x" * 10_000)
    assert len(str(refusal.value)) < 200


def test_every_status_except_completed_has_legal_moves() -> None:
    assert LEGAL_MOVES.keys() == set(GenerationStatus)
    assert LEGAL_MOVES[GenerationStatus.COMPLETED] == frozenset()
    assert sorted(FINISHED) == ["cancelled", "completed", "failed"]


@pytest.mark.parametrize("status", list(GenerationStatus))
def test_keeping_a_status_and_leaving_an_unknown_one_are_legal(status: GenerationStatus) -> None:
    assert is_legal_move(status, status)
    assert is_legal_move("rendering", status)


def test_the_schema_version_is_the_newest_revision() -> None:
    assert get_schema_version() == REVISIONS[-1]
    assert list(REVISIONS) == sorted(REVISIONS)
