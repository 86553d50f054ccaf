"""SQLite's SQL for the clock, claims, upserts, JSON members and exact times."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
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
        # strftime('%f') rounds to milliseconds, but the stored text has six digits after the decimal point.
        seconds = cast(func.strftime("%s", func.substr(time, 1, 19)), Integer)
        point = func.substr(time, 20, 7, type_=String)
        fraction = cast(func.substr(point.concat("000000"), 2, 6), Integer)
        return type_coerce(seconds * 1_000_000 + case((point.startswith("."), fraction), else_=0), BigInteger)

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

    def unnest(self, numbers: Sequence[int]) -> FromClause:
        return func.json_each(json.dumps(list(numbers))).table_valued("value")
