"""Validation: one table of invalid values, for the constructor and for attributes."""

import enum
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage import Generation, Prompt
from services.storage.json_values import ReadOnlyDict
from services.storage.schema import GenerationStatus
from services.storage.validation import (
    GENERATION_RULES,
    PROMPT_RULES,
    clean_error_message,
    is_storable,
    merge_metadata,
    validate_count,
    validate_generation_field,
    validate_name,
    validate_prompt_field,
    validate_seconds,
)
from tests.support.bad_input import BAD_FIELDS, Deep, Fixed, Index, numbered
from tests.support.factories import a_request


class Model(str, enum.Enum):  # noqa: UP042 - the other way to write such a class is what is tested
    SMALL = "musicgen-small"


class Rate(enum.IntEnum):
    CD = 44_100


class Bool:
    """Looks like numpy.bool by its name."""

    def __bool__(self) -> bool:
        return True


Bool.__name__ = "bool_"


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=numbered(BAD_FIELDS))
def test_the_constructor_refuses_invalid_values_and_names_the_field(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=field):
        Generation(**a_request(**{field: value}))


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=numbered(BAD_FIELDS))
def test_an_attribute_refuses_invalid_values_and_keeps_its_value(field: str, value: Any) -> None:
    generation = Generation(**a_request())
    before = generation.to_dict()
    with pytest.raises((ValueError, TypeError), match=field):
        setattr(generation, field, value)
    assert generation.to_dict() == before


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=numbered(BAD_FIELDS))
def test_no_error_message_repeats_a_long_value(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as refusal:
        Generation(**a_request(**{field: value}))
    assert len(str(refusal.value)) < 300
    assert "xxxxxxxxxx" not in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", ""),
        ("text", " "),
        ("text", None),
        ("text", 5),
        ("text", b"x"),
        ("text", "x" * 10_001),
        ("text", "a\0b"),
        ("text", "\ud800"),
        ("used_count", 0),
        ("used_count", -1),
        ("used_count", 2**31),
        ("used_count", True),
        ("used_count", "1"),
        ("used_count", 1.0),
        ("first_used_at", "yesterday"),
        ("last_used_at", None),
    ],
)
def test_a_prompt_refuses_invalid_values_and_names_the_field(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=field):
        Prompt(**{"text": "fine", field: value})
    prompt = Prompt(text="fine")
    with pytest.raises((ValueError, TypeError), match=field):
        setattr(prompt, field, value)
    assert (prompt.text, prompt.used_count) == ("fine", 1)


GOOD = [
    ("duration_seconds", Fixed(16), 16.0),
    ("duration_seconds", Index(16), 16.0),
    ("duration_seconds", Decimal("1.5"), 1.5),
    ("duration_seconds", Fraction(1, 2), 0.5),
    ("duration_seconds", 5e-324, 5e-324),
    ("duration_seconds", 1e300, 1e300),
    ("sample_rate", Index(32_000), 32_000),
    ("sample_rate", Rate.CD, 44_100),
    ("sample_rate", 2**31 - 1, 2**31 - 1),
    ("channels", Index(1), 1),
    ("file_path", PurePosixPath("outputs/a.wav"), "outputs/a.wav"),
    ("file_path", "x" * 4_096, "x" * 4_096),
    ("file_size_bytes", 0, 0),
    ("file_size_bytes", 2**63 - 1, 2**63 - 1),
    ("file_size_bytes", None, None),
    ("generation_time_seconds", 0, 0.0),
    ("progress", 0, 0.0),
    ("progress", 1, 1.0),
    ("priority", -(2**31) + 1, -(2**31) + 1),
    ("prompt", "x" * 10_000, "x" * 10_000),
    ("prompt", "  kept as it is\n", "  kept as it is\n"),
    ("prompt", "🎹 d'oh; DROP TABLE prompts; --", "🎹 d'oh; DROP TABLE prompts; --"),
    ("model_name", Model.SMALL, "musicgen-small"),
    ("model_name", "x" * 255, "x" * 255),
    ("model_version", None, None),
    ("id", "x" * 64, "x" * 64),
    ("is_favorite", Bool(), True),
    ("status", GenerationStatus.FAILED, "failed"),
    ("parameters", {"seed": Index(7), "top": (1, 2)}, {"seed": 7, "top": [1, 2]}),
    ("parameters", MappingProxyType({"a": {"b": MappingProxyType({})}}), {"a": {"b": {}}}),
    ("parameters", '{"seed": 7}', {"seed": 7}),
    (
        "metadata_json",
        {"bpm": Fixed(1.5), "x": Bool(), "m": Model.SMALL},
        '{"bpm": 1.5, "x": true, "m": "musicgen-small"}',
    ),
    ("metadata_json", {Model.SMALL: 1}, '{"musicgen-small": 1}'),
    ("metadata_json", {}, "{}"),
    ("metadata_json", {"deep": Deep.levels(31)}, '{"deep": ' + "[" * 31 + "]" * 31 + "}"),
    ("metadata_json", {"x": 2**63 - 1, "y": -(2**63) + 1}, '{"x": 9223372036854775807, "y": -9223372036854775807}'),
]


@pytest.mark.parametrize(
    ("field", "value", "stored"), GOOD, ids=[f"{case[0]}-{number}" for number, case in enumerate(GOOD)]
)
def test_valid_values_are_converted(field: str, value: Any, stored: Any) -> None:
    generation = Generation(**a_request(**{field: value}))
    assert getattr(generation, field) == stored
    assert type(getattr(generation, field)) is (ReadOnlyDict if field == "parameters" else type(stored))


def test_numbers_become_plain_int_and_float() -> None:
    generation = Generation(**a_request(sample_rate=Rate.CD, parameters={"rate": Rate.CD}))
    assert type(generation.sample_rate) is int
    assert generation.parameters is not None
    assert type(generation.parameters["rate"]) is int


def test_a_time_is_converted_to_utc() -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    for given_time in (noon, noon.replace(tzinfo=None), noon.astimezone(timezone(timedelta(hours=-7)))):
        generation = Generation(**a_request(scheduled_at=given_time))
        assert generation.scheduled_at == noon
        assert generation.scheduled_at.tzinfo is UTC


def test_given_objects_are_copied() -> None:
    inner: list[int] = [1]
    parameters: dict[str, Any] = {"list": inner}
    generation = Generation(**a_request(parameters=parameters))
    inner.append(2)
    parameters["more"] = 1
    assert generation.parameters == {"list": [1]}


def test_a_mapping_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(ValueError, match="metadata must be at most 32 levels deep"):
        validate_generation_field("metadata_json", loop)


def test_nested_shared_lists_are_refused_quickly() -> None:
    web: list[Any] = []
    for _ in range(30):
        web = [web, web, web]
    with pytest.raises(ValueError, match="metadata must be at most 64 KiB"):
        validate_generation_field("metadata_json", {"web": web})


@pytest.mark.parametrize("size", [65_536, 65_537])
def test_the_limit_of_metadata_is_in_bytes_of_its_json(size: int) -> None:
    empty = len('{"x": ""}')
    value = {"x": "é" * ((size - empty) // 2) + "x" * ((size - empty) % 2)}
    if size <= 65_536:
        assert len(validate_generation_field("metadata_json", value).encode()) == size
    else:
        with pytest.raises(ValueError, match="metadata must be at most 64 KiB"):
            validate_generation_field("metadata_json", value)


@given(st.text(max_size=200))
def test_text_is_either_kept_exactly_or_refused_with_its_field(text: str) -> None:
    try:
        stored = validate_prompt_field("text", text)
    except ValueError as refusal:
        assert "text" in refusal.args[0]  # noqa: PT017 - hypothesis decides which text is refused
        assert not text.strip() or "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)
    else:
        assert stored == text


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())))
def test_each_rule_returns_a_value_or_names_its_field_for_any_input(value: Any) -> None:
    for rules in (GENERATION_RULES, PROMPT_RULES):
        for field, rule in rules.items():
            try:
                rule(field, value)
            except (TypeError, ValueError) as refusal:
                assert field.removesuffix("_json") in str(refusal)  # noqa: PT017 - some are refused, some not


@given(st.text(alphabet=st.characters(), max_size=50) | st.binary() | st.integers() | st.none())
def test_an_error_message_can_always_be_stored(message: Any) -> None:
    stored = clean_error_message(message)
    assert is_storable("error_message", stored)
    assert clean_error_message(stored) == stored


def test_an_error_message_is_cut_and_cleaned_even_if_it_cannot_be_printed() -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert len(clean_error_message("x" * 100_000)) == 8_192
    assert clean_error_message("a\0b\ud800c") == "ab?c"
    assert clean_error_message(ValueError("boom")) == "boom"
    assert "UnprintableError" in clean_error_message(UnprintableError())


@pytest.mark.parametrize("value", [-1, 1.5, "10", None, True, 2**63, float("nan")])
def test_a_limit_must_be_a_whole_number_of_at_least_0(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="limit"):
        validate_count("limit", value)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "60", None, True, b"6", bytearray(b"6")])
def test_a_number_of_seconds_must_be_positive_and_finite(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lease_seconds"):
        validate_seconds("lease_seconds", value)
    assert validate_seconds("lease_seconds", Index(60)) == 60.0


def test_a_worker_id_must_not_be_blank() -> None:
    assert validate_name("worker_id", "host:1") == "host:1"
    with pytest.raises(ValueError, match="worker_id"):
        validate_name("worker_id", " ")


@pytest.mark.parametrize("value", [5, None, b"x", ["x"]])
def test_an_id_that_is_not_text_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="generation_id must be text"):
        is_storable("generation_id", value)


def test_text_that_cannot_be_stored_is_not_storable() -> None:
    assert is_storable("text", "fine")
    assert not is_storable("text", "a\0b")
    assert not is_storable("text", "\udfff")


def test_merging_replaces_top_level_keys() -> None:
    assert merge_metadata('{"a": {"x": 1}, "b": 2}', {"a": {"y": 2}}) == '{"a": {"y": 2}, "b": 2}'
    assert merge_metadata(None, {"a": 1}) == '{"a": 1}'


@pytest.mark.parametrize("current", [None, '{"a": 1}', "not JSON", "[1]"])
@pytest.mark.parametrize("changes", [None, {}])
def test_merging_nothing_changes_nothing(current: str | None, changes: Mapping[str, Any] | None) -> None:
    assert merge_metadata(current, changes) == current


@pytest.mark.parametrize("current", ["not JSON", "[1]", "", "null", '{"a": '])
def test_merging_into_unreadable_metadata_is_refused(current: str) -> None:
    with pytest.raises(ValueError, match="metadata of the stored row is not a readable JSON object"):
        merge_metadata(current, {"a": 1})


def test_a_merge_that_would_grow_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="metadata must be at most 64 KiB"):
        merge_metadata('{"a": "' + "x" * 40_000 + '"}', {"b": "x" * 40_000})


def test_a_path_of_bytes_is_refused() -> None:
    class BytesPath(os.PathLike[bytes]):
        def __fspath__(self) -> bytes:
            return b"outputs/a.wav"

    with pytest.raises(TypeError, match="file_path must be text or a path, not bytes"):
        Generation(**a_request(file_path=BytesPath()))
