"""Column types and default values, without a database."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from services.storage.types import JSONObject, JSONText, UTCDateTime, as_utc, dump_json, load_json_object, utcnow, uuid7


def test_now_is_aware_and_utc() -> None:
    assert utcnow().tzinfo is UTC


def test_a_naive_time_is_taken_as_utc_and_an_offset_is_normalised() -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert as_utc(datetime(2026, 1, 2, 12)) == noon  # noqa: DTZ001 - naive on purpose
    east = as_utc(datetime(2026, 1, 2, 17, tzinfo=timezone(timedelta(hours=5))))
    assert east == noon
    assert east.tzinfo is UTC


def test_ids_are_uuids_of_version_seven() -> None:
    made = uuid7()
    assert len(made) == 36
    assert uuid.UUID(made).version == 7
    assert uuid.UUID(made).variant == uuid.RFC_4122


def test_ids_are_ordered_by_the_time_they_were_made() -> None:
    before = utcnow()
    ids = [uuid7() for _ in range(1_000)]
    milliseconds = [uuid.UUID(made).int >> 80 for made in ids]
    assert milliseconds == sorted(milliseconds)
    assert abs(milliseconds[0] / 1000 - before.timestamp()) < 60
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01 00:00:00", 5, b"2026", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_cannot_be_read_loads_as_none(text: object) -> None:
    read = UTCDateTime().dialect_impl(sqlite.dialect()).result_processor(sqlite.dialect(), None)
    assert read is not None
    assert read(text) is None


@pytest.mark.parametrize(
    "text",
    ["2026-01-02 12:00:00", "2026-01-02 12:00:00.000000", "2026-01-02T12:00:00Z", "2026-01-02T17:00:00+05:00"],
)
def test_times_in_the_formats_of_other_programs_are_read(text: str) -> None:
    read = UTCDateTime().dialect_impl(sqlite.dialect()).result_processor(sqlite.dialect(), None)
    assert read is not None
    assert read(text) == datetime(2026, 1, 2, 12, tzinfo=UTC)


@given(
    st.one_of(
        st.datetimes().map(lambda time: time.isoformat(" ", "microseconds")),
        st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat(timespec="milliseconds")),
        st.from_regex(r"[0-9]{4}-?W?[0-9:-]{4,6}[ T+][0-9:,.+TWZ-]{5}:[0-9]{2}\.[0-9:,.+-]{6}", fullmatch=True),
    )
)
def test_a_time_of_the_stored_length_is_read_as_python_reads_it(text: str) -> None:
    """Times of that length have a shorter way, which must not accept more, nor give another time."""
    try:
        expected = as_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        expected = None
    read = UTCDateTime().result_processor(sqlite.dialect(), None)(text)
    assert read == expected
    assert read is None or read.tzinfo is UTC


@pytest.mark.parametrize("module", [sqlite, postgresql], ids=["sqlite", "postgresql"])
def test_none_stays_none(module: Any) -> None:
    for kind in (UTCDateTime(), JSONText(), JSONObject()):
        assert kind.process_bind_param(None, module.dialect()) is None
        processor = kind.result_processor(module.dialect(), None)
        assert processor is None or processor(None) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "1", '"a"', "[" * 100_000, b"\xff", '{"x": NaN}', '{"x": -Infinity}']
)
def test_anything_but_a_json_object_loads_as_none(text: str) -> None:
    assert load_json_object(text) is None


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_json_objects_are_read_back_from_text(value: dict[str, object]) -> None:
    assert load_json_object(dump_json(value)) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_values_that_json_cannot_represent_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"x": number})
