"""SQLite's SQL for the clock, claims, upserts, JSON members and exact times."""

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    Double,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    select,
    type_coerce,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.types import TypeDecorator

from ..claim_order import CLAIM_ORDER, distinct_priorities, first_due
from ..conditions import is_valid, literal_int
from ..json_members import JSONKind
from ..models import Generation, Prompt
from ..types import JSONText, UTCDateTime, load_json_object, utcnow
from ..validation import merge_metadata
from .base import StatementClock

JSON_KINDS: Final[dict[JSONKind, tuple[str, ...]]] = {
    "text": ("text",),
    "number": ("integer", "real"),
    "boolean": ("true", "false"),
    "any": ("text", "integer", "real", "true", "false", "object", "array"),
    "value": ("text", "integer", "real", "true", "false", "object", "array"),
}


# 1970-01-01 in the seconds of Julian days.
EPOCH_SECONDS: Final = 210_866_760_000


class _AfterNow(UTCDateTime):
    """The time of execution plus a timedelta, which is what is bound."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        write: Any = super().bind_processor(dialect)
        return lambda offset: write(utcnow() + offset)


class _BoundClock:
    """The clock of Python, bound as one parameter for each offset."""

    def __init__(self) -> None:
        self._offsets: dict[str, timedelta] = {}

    def __call__(self, offset: timedelta) -> ColumnElement[datetime]:
        name = f"now_{len(self._offsets)}"
        name = next((known for known, other in self._offsets.items() if other == offset), name)
        self._offsets[name] = offset
        return bindparam(name, type_=UTCDateTime())

    def parameters(self) -> dict[str, Any]:
        now = utcnow()
        return {name: now + offset for name, offset in self._offsets.items()}


def compare_json_number(document: str | None, key: str, value: str) -> int | None:
    """Return -1, 0 or 1 as the number under `key` of a JSON object is less than, equal to or greater than `value`.

    Returns None if there is no number. The library defines this function on its connections.
    """
    found = None if document is None else (load_json_object(document) or {}).get(key)
    if type(found) not in (int, float):
        return None
    return int(Decimal(repr(found)).compare(Decimal(value)))


class CollectNumbers:
    """The aggregate function collect_numbers(), of the library's connections: all values, as an array of doubles."""

    def __init__(self) -> None:
        self._numbers = array("d")

    def step(self, number: float) -> None:
        self._numbers.append(number)

    def finalize(self) -> bytes:
        return self._numbers.tobytes()


class _Numbers(TypeDecorator[Sequence[float]]):
    """What collect_numbers() returns."""

    impl = LargeBinary
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Sequence[float] | None:
        return None if value is None else array("d", value)


class SQLiteSQL:
    """The SQL dialect of SQLite; see SQLDialect."""

    has_writing_ctes = False
    has_own_clock = False
    merges_metadata = False  # json_patch() merges nested objects too

    def now(self, plus_seconds: float = 0.0) -> ColumnElement[datetime]:
        # Python's clock, because SQLite's has only milliseconds; all processes are on one host. `callable_` reads it at
        # each execution, so a statement can be built once and reused.
        offset = timedelta(seconds=plus_seconds)
        return bindparam(None, callable_=lambda: utcnow() + offset, type_=UTCDateTime())

    def now_after(self, parameter: str) -> ColumnElement[datetime]:
        return bindparam(parameter, type_=_AfterNow())

    def is_standby(self) -> ColumnElement[bool]:
        return false()

    def select_due(
        self, waiting: Sequence[ColumnElement[bool]], columns: Sequence[Any], limit: int, *, locked: bool = True
    ) -> Select[Any]:
        due = and_(Generation.scheduled_at <= self.now(), is_valid("sqlite"))
        if limit == 1:
            return select(*columns).where(Generation.id == first_due(waiting, due))
        levels = distinct_priorities(waiting, due, enough=limit)
        # SQLite reads the values of IN in the order of the index, so it does not sort. See ADR 15.
        first = select(*columns).where(*waiting, Generation.priority.in_(select(levels.c.priority)), due)
        return first.order_by(*CLAIM_ORDER).limit(literal_int(limit))

    def lock_pending(self, ids: Select[Any], limit: int) -> Select[Any]:
        return ids.limit(literal_int(limit))  # SQLite has one writer at a time, so no row locks are needed

    def insert(self, table: Any) -> Any:
        return sqlite_insert(table)

    def byte_order(self, text: Any) -> ColumnElement[str]:
        return text  # type: ignore[no-any-return]  # the order of SQLite

    def prompt_conflict_target(self) -> list[Any]:
        return [Prompt.text]

    def prompt_text_equals(self, text: Any) -> ColumnElement[bool]:
        return and_(Prompt.text == text)

    def statement_clock(self) -> StatementClock:
        return _BoundClock()

    def epoch_microseconds(self, time: Any) -> ColumnElement[int]:
        # julianday() and strftime('%f') round to milliseconds, but the stored text has six digits after the point. For
        # whole seconds julianday() is exact, and faster than strftime('%s').
        days = func.julianday(func.substr(time, 1, 19), type_=Double)
        seconds = cast(days * 86_400 + 0.5, Integer) - EPOCH_SECONDS
        fraction = cast(func.substr(type_coerce(time, String).concat("000000"), 21, 6), Integer)
        has_fraction = func.substr(time, 20, 1) == "."
        return type_coerce(seconds * 1_000_000 + case((has_fraction, fraction), else_=0), BigInteger)

    def merge_metadata(self, stored: Any) -> tuple[ColumnElement[str], ColumnElement[bool]]:
        return bindparam("merged", type_=JSONText()), stored.is_not_distinct_from(bindparam("stored"))

    def merge_parameters(self, stored: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {"stored": stored, "merged": merge_metadata(stored, changes)}

    def json_member(self, document: Any, key: Any, kind: JSONKind) -> ColumnElement[Any]:
        readable = case((func.json_valid(document) == 1, type_coerce(document, Text)))
        members = func.json_each(readable).table_valued("key", "value", "type", "id")
        value: ColumnElement[Any] = members.c.type if kind == "any" else members.c.value
        if kind == "value":
            value = case(
                (members.c.type == "text", func.json_quote(value)),
                (members.c.type.in_(JSON_KINDS["boolean"]), members.c.type),
                else_=value,
            )
        found = select(value).where(members.c.key == key, members.c.type.in_(JSON_KINDS[kind]))
        # As in Python, the last of several members with the same name counts.
        return found.order_by(members.c.id.desc()).limit(1).scalar_subquery()

    def compare_json_number(self, document: Any, key: Any, number: Any) -> ColumnElement[int]:
        # SQLite reads integers of more than 63 bits as floats, so that some are equal.
        return func.compare_json_number(document, key, number, type_=Integer)

    def collect(self, number: Any, condition: ColumnElement[bool]) -> Any:
        return func.collect_numbers(number, type_=_Numbers).filter(condition)

    def unnest(self, numbers: Sequence[int]) -> FromClause:
        return func.json_each(json.dumps(list(numbers))).table_valued("value")
