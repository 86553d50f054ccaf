"""Cursors: opaque, versioned, valid for one query only, and validated."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage import InvalidCursorError
from services.storage.pagination import PagePosition, decode_cursor, encode_cursor

QUERY = {"status": "failed", "metadata": {"bpm": (120, 140)}}
POSITION = PagePosition("2026-11-22 10:00:00.000000", "01a00000-0000-7000-8000-000000000001")


STORED = st.one_of(
    st.text(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(),
    st.none(),
)


@given(STORED, st.text())
def test_a_cursor_contains_the_stored_value_of_any_form(created_at: Any, generation_id: str) -> None:
    storable = not any("\ud800" <= c <= "\udfff" or c == "\0" for c in f"{created_at}{generation_id}")
    cursor = encode_cursor(PagePosition(created_at, generation_id), QUERY)
    if storable:
        assert decode_cursor(cursor, QUERY) == (created_at, generation_id)
    else:
        with pytest.raises(InvalidCursorError):
            decode_cursor(cursor, QUERY)


def test_no_cursor_means_the_first_page() -> None:
    assert decode_cursor(None, QUERY) is None


def test_a_cursor_needs_no_quoting_in_a_url() -> None:
    assert encode_cursor(POSITION, QUERY).replace("-", "").replace("_", "").isalnum()


def test_a_cursor_is_valid_only_for_its_query() -> None:
    cursor = encode_cursor(POSITION, QUERY)
    for other in ({}, {"status": "failed"}, QUERY | {"status": "completed"}, QUERY | {"metadata": {"bpm": (120, 141)}}):
        with pytest.raises(InvalidCursorError):
            decode_cursor(cursor, other)


def test_a_cursor_with_one_bit_changed_is_refused() -> None:
    raw = bytearray(base64.urlsafe_b64decode(encode_cursor(POSITION, QUERY) + "=="))
    for bit in range(8 * len(raw)):
        changed = raw.copy()
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidCursorError):
            decode_cursor(base64.urlsafe_b64encode(changed).decode(), QUERY)


@given(st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()), st.integers()))
def test_anything_else_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursorError):
        decode_cursor(cursor, QUERY)


def test_an_altered_cursor_is_refused() -> None:
    cursor = encode_cursor(POSITION, QUERY)
    for mangled in (cursor[:-1], cursor + "A", f" {cursor}", f"{cursor}\n", cursor[1:], ""):
        with pytest.raises(InvalidCursorError):
            decode_cursor(mangled, QUERY)
