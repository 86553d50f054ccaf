"""Invalid values for each field: one table for all functions and attributes that accept the field."""

import math
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

from services.storage import Generation


class Index:
    """An integer type of another library, such as numpy.int64."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Fixed:
    """A float type of another library, such as numpy.float32."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)


class Deep:
    """Nested lists."""

    @staticmethod
    def levels(count: int) -> list[Any]:
        nested: list[Any] = []
        for _ in range(count - 1):
            nested = [nested]
        return nested


class Array:
    """An array type of another library: its __float__() raises."""

    def __float__(self) -> float:
        raise TypeError("only length-1 arrays can be converted")


NOT_STATUSES: list[Any] = [None, "", "done", "PENDING", 5, True, [], b"pending"]
NOT_TEXT = [None, 5, b"bytes", ["x"], True, object()]
NOT_STORABLE_TEXT = ["", "   ", "\n\t", "a\0b", "lone \ud800 surrogate"]
NOT_NUMBERS = ["16", "", True, False, b"16", bytearray(b"16"), 1j, [1], object(), Array()]
NOT_FINITE = [math.nan, math.inf, -math.inf, Decimal("NaN"), 10**400, Fraction(10**400), 1e301]
NOT_WHOLE = [1.0, 1.5, math.nan, Decimal(1), "1", b"1", True, False, [1], object()]
TOO_BIG = [2**31, 2**63, 10**30]
NOT_TIMES = ["2026-01-01", 0, 1.5, True, [], datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))]
NOT_JSON_OBJECTS = [
    5,
    True,
    [1],
    ("a", 1),
    {1, 2},
    b"{}",
    object(),
    "",
    "text",
    "[1]",
    "null",
    "{",
    '{"x": NaN}',
    '{"x": 1e999}',
    '{"x": "\\ud800"}',
    '{"x": "\\u0000"}',
    '{"x": ' + "[" * 100_000,
    {"x": math.nan},
    {"x": math.inf},
    {"x": Decimal("sNaN")},
    {"x": Fraction(10**400)},
    {"x": 2**64},
    {"x": -(2**63) - 1},
    {"x": 1j},
    {"x": {1}},
    {"x": b"b"},
    {"x": object()},
    {"x": Array()},
    {1: "x"},
    {None: "x"},
    {"x": {2: 3}},
    {"a\0b": 1},
    {"x": "a\0b"},
    {"\ud800": 1},
    {"x": ["\udfff"]},
    {"x": "x" * 65_536},
    '{"x": "' + "x" * 65_536 + '"}',
    {"x": Deep.levels(32)},
    {"x": [0] * 70_000},
]

# For the constructor, the attributes, create_generation and create_generations.
BAD_ARGUMENTS: list[tuple[str, Any]] = [
    *[("prompt", value) for value in [*NOT_TEXT, *NOT_STORABLE_TEXT, "x" * 10_001]],
    *[("model_name", value) for value in [*NOT_TEXT, *NOT_STORABLE_TEXT, "x" * 256]],
    *[("model_version", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 256]],
    *[("file_path", value) for value in [*NOT_TEXT, *NOT_STORABLE_TEXT, "x" * 4_097]],
    *[("duration_seconds", value) for value in [None, *NOT_NUMBERS, *NOT_FINITE, 0, 0.0, -0.0, -1]],
    *[("sample_rate", value) for value in [None, *NOT_WHOLE, *TOO_BIG, 0, -1]],
    *[("channels", value) for value in [None, *NOT_WHOLE, *TOO_BIG, 0, 3, -1, Index(6)]],
    *[("metadata", value) for value in NOT_JSON_OBJECTS],
    *[("parameters", value) for value in NOT_JSON_OBJECTS],
    *[("priority", value) for value in [*NOT_WHOLE, *TOO_BIG, -(2**31)]],
    *[("max_attempts", value) for value in [*NOT_WHOLE, *TOO_BIG, 0, -1]],
    *[("scheduled_at", value) for value in NOT_TIMES],
    *[("batch_id", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 256]],
    *[("parent_id", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 65]],
    *[("idempotency_key", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 256]],
]
BAD_IDS = [("generation_id", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 65]]

# For the constructor and the attributes.
BAD_FIELDS: list[tuple[str, Any]] = [
    *BAD_ARGUMENTS,
    *[("id", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 65]],  # None: the flush generates one
    *[(field, None) for field in ("scheduled_at", "priority", "max_attempts")],
    *[("status", value) for value in NOT_STATUSES],
    *[("file_size_bytes", value) for value in [*NOT_WHOLE, -1, 2**63]],
    *[
        ("file_sha256", value)
        for value in [5, b"0" * 64, True, "", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 63 + "\0"]
    ],
    *[("file_format", value) for value in [5, True, b"wav", "", "a\0b"]],
    *[("file_missing_since", value) for value in NOT_TIMES],
    *[("generation_time_seconds", value) for value in [*NOT_NUMBERS, *NOT_FINITE, -1, -0.001]],
    *[("progress", value) for value in [*NOT_NUMBERS, *NOT_FINITE, -0.1, 1.1]],
    *[("attempt", value) for value in [None, *NOT_WHOLE, *TOO_BIG, -1]],
    *[("prompt_id", value) for value in [*NOT_WHOLE, *TOO_BIG, -1]],
    *[("is_favorite", value) for value in [None, 0, 1, "yes", "", [], object()]],
    *[("created_at", value) for value in [None, *NOT_TIMES]],
    *[
        (f"{name}_at", value)
        for name in ("completed", "started", "lease_expires", "cancel_requested")
        for value in NOT_TIMES
    ],
    *[("worker_id", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 256]],
    *[("current_step", value) for value in [*NOT_TEXT[1:], *NOT_STORABLE_TEXT, "x" * 256]],
]


def fields_of(table: list[tuple[str, Any]]) -> list[str]:
    """Return each field of `table` once."""
    return list(dict(table))


def numbered(table: list[tuple[str, Any]]) -> list[str]:
    """Return a unique, short name for each case; the repr of a value may be long or repeated."""
    return [f"{field}-{number}" for number, (field, _) in enumerate(table)]


def values_for(table: list[tuple[str, Any]], field: str) -> list[Any]:
    return [value for name, value in table if name == field]


assert {field for field, _ in BAD_FIELDS} - {"metadata"} <= set(Generation.__mapper__.attrs.keys())
