"""Column types with their variants for each database, and the functions that give a new row its time and id."""

import json
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, DateTime, Dialect, Integer, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from .json_members import ExactComparison, MemberAccess
from .json_values import freeze
from .limits import BIG_INTEGER_LIMIT

# SQLite's INTEGER holds 64 bits; BIGINT would not make a primary key an alias of the rowid.
BigInt = BigInteger().with_variant(Integer(), "sqlite")

# The times that load as a datetime and sort as they are stored. "+0 days" refuses the 31st of February; the space keeps
# the text 'now' from meaning the present, which SQLite does not allow in a CHECK. Not ltrim(), which is a function of
# Python on the connections of the library (ADR 26): 13 µs for each claim.
TIME_FORMS = {
    "sqlite": (
        "datetime(substr({0}, 1, 19) || ' ', '+0 days') IS substr({0}, 1, 19) AND substr({0}, 1, 4) > '0000' "
        "AND (length({0}) = 19 OR substr({0}, 20) GLOB '.[0-9]*' AND rtrim(substr({0}, 21), '0123456789') = '')"
    ),
    "postgresql": "{0} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
}


def utcnow() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def as_utc(value: datetime) -> datetime:
    """Return `value` in UTC; a naive time is taken to be in UTC."""
    if value.tzinfo is UTC:  # as psycopg gives it; astimezone() would take 0.6 µs
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def uuid7() -> str:
    """Return a time-ordered UUID as 36 characters.

    Version 7 of RFC 9562 with the sub-millisecond fraction in rand_a (section 6.2, method 3). Inserts append to the
    primary key's index, 1.7 times faster than with random ids at 200,000 rows. See ADR 6.
    """
    return uuid7s(1)[0]


def uuid7s(count: int) -> list[str]:
    """Return so many UUIDs of the same moment, in ascending order; see uuid7()."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    moment = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{fraction:03x}"
    # The variant, which is the bits 10, and 62 random bits.
    randoms = sorted(0b10 << 62 | number >> 2 for (number,) in struct.iter_unpack(">Q", os.urandom(8 * count)))
    return [f"{moment}-{random >> 48:04x}-{random & 0xFFFF_FFFF_FFFF:012x}" for random in randoms]


class _TextTime(UserDefinedType[datetime]):
    """A time on SQLite: text in UTC without an offset, so that text order is time order.

    UTCDateTime reads it: any ISO 8601 text that another program wrote; invalid text loads as None, where SQLAlchemy's
    type would raise. See ADR 11.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "DATETIME"

    def literal_processor(self, dialect: Dialect) -> Callable[[datetime], str]:
        return lambda value: f"'{value.isoformat(' ', 'microseconds')[:26]}'"


class UTCDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC. Naive input is taken to be in UTC, and loading never raises."""

    impl = DateTime(timezone=True)
    cache_ok = True
    python_type = datetime  # for tools that ask: a TypeDecorator does not know it

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(_TextTime())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else as_utc(value)

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        # One function for what SQLAlchemy does in three; a page of 100 rows calls that of the results 700 times.
        return _write_text_time if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        return _read_text_time if dialect.name == "sqlite" else _read_time


def _write_text_time(value: datetime | None) -> str | None:
    # Without the offset, +00:00. A naive copy, by replace(tzinfo=None), takes twice as long.
    return None if value is None else as_utc(value).isoformat(" ", "microseconds")[:26]


def _read_time(value: Any) -> datetime | None:
    """Return a time that the driver has read in UTC; None for one whose offset leads out of the calendar."""
    if value is None:
        return None
    try:
        return as_utc(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _read_text_time(text: Any) -> datetime | None:
    """Return a time of SQLite in UTC; None for anything that is no time."""
    if text is None:
        return None
    try:
        if text[16:20:3] == ":." and len(text) == 26:
            # As _TextTime writes it, unless there is an offset. The parser makes it aware; replace() takes 0.7 µs more.
            return datetime.fromisoformat(text + "+00:00")
    except (TypeError, ValueError):
        pass
    try:
        return _read_time(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return None


class TimeText(TypeDecorator[Any]):
    """A time as text: on SQLite exactly the stored text, in whatever form; on PostgreSQL ISO 8601.

    For cursors: their positions must compare as the stored values do.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "sqlite" else as_utc(datetime.fromisoformat(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value.isoformat() if isinstance(value, datetime) else value


def time_form(*columns: str) -> list[CheckConstraint]:
    """Return the CHECKs, one for each column and database system, that a time can be read and sorts by time."""
    return [
        CheckConstraint(rule.format(column), name=f"{column}_form", info={"only_on": system}).ddl_if(dialect=system)
        for column in columns
        for system, rule in TIME_FORMS.items()
    ]


class JSONText(TypeDecorator[str]):
    """A JSON document whose Python value is its text: TEXT on SQLite, JSONB on PostgreSQL.

    Text, because a row with invalid JSON from another program must still load on SQLite, and keep its text. See ADR 11.
    """

    impl = Text
    cache_ok = True
    python_type = str
    comparator_factory = MemberAccess

    def member_type(self) -> TypeEngine[Any]:
        """Return the type of a member of the document in a query."""
        return JSONValue()

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import JSONB  # imported here, because it takes 20 ms

            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if isinstance(value, Mapping):  # in a Core statement: attributes are validated and converted on assignment
            value = dump_json(value)
        elif not (value is None or isinstance(value, (str, bytes))):  # bytes: a BLOB of a copied SQLite row
            raise TypeError(f"metadata must be a JSON object (a dict) or its text, not {type(value).__name__}")
        if value is None or dialect.name != "postgresql":
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # invalid JSON from a copied SQLite row is stored as a JSON string

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        # Not dump_json(), which refuses infinities: another program may have stored 1e400.
        try:
            return None if value is None else json.dumps(value, ensure_ascii=False)
        except RecursionError:
            return None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None] | None:
        return None if dialect.name == "sqlite" else super().result_processor(dialect, coltype)


class JSONObject(TypeDecorator[Mapping[str, Any]]):
    """A JSON object whose Python value is a read-only dict. Invalid JSON loads as None.

    `impl` is what tools that make forms and schemas look at; what is stored is JSONText.
    """

    impl = JSON
    cache_ok = True
    python_type = dict
    comparator_factory = MemberAccess

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return JSONText()

    def member_type(self) -> TypeEngine[Any]:
        """Return the type of a member of the object in a query."""
        return JSONValue()

    def process_bind_param(self, value: Mapping[str, Any] | None, dialect: Dialect) -> str | None:
        if not (value is None or isinstance(value, Mapping)):
            raise TypeError(f"parameters must be a JSON object (a dict), not {type(value).__name__}")
        return None if value is None else dump_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Mapping[str, Any] | None:
        return None if value is None else load_read_only(value)


class JSONValue(TypeDecorator[Any]):
    """Any JSON value, of which SQLite returns a number as such and everything else as JSON text."""

    impl = JSONText
    cache_ok = True

    def number_type(self, *, is_whole: bool = False) -> TypeEngine[Any]:
        """Return the type of the value as a number."""
        return JSONNumber(is_whole)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return load_json(value) if isinstance(value, str) else value


class JSONNumber(TypeDecorator[Any]):
    """A number in JSON: a float, or an int if it `is_whole`; SQLite returns integers of more than 63 bits as floats."""

    impl = Integer
    cache_ok = True
    comparator_factory = ExactComparison

    def __init__(self, is_whole: bool) -> None:
        super().__init__()
        self.is_whole = is_whole

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Numeric() if dialect.name == "postgresql" else Integer())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        # From its decimal text: JSONB stores 0.1 as the numeric 0.1, not as the nearest double.
        return Decimal(repr(value)) if dialect.name == "postgresql" and value is not None else value

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        is_exact = isinstance(value, (int, Decimal)) or (isinstance(value, float) and abs(value) < BIG_INTEGER_LIMIT)
        if self.is_whole and is_exact and value == value // 1:
            return int(value)
        return None if value is None else float(value)


class JSONNames(TypeDecorator[list[str]]):
    """A JSON array of names whose Python value is a list; assign a new list to change it. Other JSON loads as None."""

    impl = JSONText
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else dump_json(list(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> list[str] | None:
        return None if value is None else load_json_names(value)


def load_json_names(text: str) -> list[str] | None:
    """Return the names in the text of a JSON array, or None if it is anything else."""
    try:
        value = load_json(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def dump_json(value: Any) -> str:
    """Return `value` as JSON text in the stored format. Raises ValueError for NaN and infinities."""
    return _ENCODER.encode(value)


def load_json(text: str | bytes) -> Any:
    """Return the value of JSON text as what dump_json() takes again. Raises ValueError for text that is not JSON.

    NaN and Infinity, which json.loads() accepts, are not JSON. A number beyond the range of floats, or an integer of
    over 4,000 digits, which Python refuses to read, becomes the largest float.
    """
    return _DECODER.decode(text.decode() if isinstance(text, bytes) else text)


def load_json_object(text: str, load: Callable[[str], Any] = load_json) -> dict[str, Any] | None:
    """Return the JSON object in `text` as a dict, or None if it is anything else.

    json.loads() as `load` keeps NaN and infinities, so that validation can refuse them by name.
    """
    try:
        value = load(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def load_read_only(text: str) -> Mapping[str, Any] | None:
    """Return the JSON object in `text` as a read-only dict, or None if it is anything else or too deep for Python."""
    try:
        frozen: Mapping[str, Any] | None = freeze(load_json_object(text))
    except RecursionError:
        return None
    return frozen


def _finite_float(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= 4_000 else _finite_float(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
_DECODER = json.JSONDecoder(parse_float=_finite_float, parse_int=_integer, parse_constant=_refuse_constant)
