"""PostgreSQL's SQL for the clock, claims, upserts, JSON members and exact times."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Numeric,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    collate,
    extract,
    func,
    literal,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as postgresql_insert

from ..claim_order import CLAIM_ORDER, distinct_priorities
from ..conditions import PENDING, is_valid, literal_int
from ..json_members import JSONKind
from ..limits import JSON_BYTES_LIMIT
from ..models import Generation, Prompt
from ..types import JSONText, UTCDateTime
from ..validation import merge_metadata
from .base import StatementClock


class _ServerClock:
    """The clock of the server."""

    def __call__(self, offset: timedelta) -> ColumnElement[datetime]:
        # Not clock_timestamp(): it is volatile, so PostgreSQL would not use an index for the comparison.
        return type_coerce(func.statement_timestamp() + offset, UTCDateTime())

    def parameters(self) -> dict[str, Any]:
        return {}


class PostgreSQLSQL:
    """The SQL dialect of PostgreSQL; see SQLDialect."""

    has_writing_ctes = True
    has_own_clock = True
    merges_metadata = True

    def now(self, plus_seconds: float = 0.0) -> ColumnElement[datetime]:
        clock: ColumnElement[datetime] = func.clock_timestamp()
        return clock + literal(timedelta(seconds=plus_seconds)) if plus_seconds else clock

    def now_after(self, parameter: str) -> ColumnElement[datetime]:
        return func.clock_timestamp() + bindparam(parameter, type_=Interval())

    def is_standby(self) -> ColumnElement[bool]:
        return func.pg_is_in_recovery(type_=Boolean())

    def select_due(
        self, waiting: Sequence[ColumnElement[bool]], columns: Sequence[Any], limit: int, *, locked: bool = True
    ) -> Select[Any]:
        # A subquery is evaluated once and can bound an index scan; the volatile function alone filters row by row.
        due = Generation.scheduled_at <= select(self.now()).scalar_subquery()
        levels = distinct_priorities(waiting, due)
        rows = select(*columns).where(*waiting, Generation.priority == levels.c.priority, due, is_valid("postgresql"))
        rows = rows.order_by(*CLAIM_ORDER[1:]).limit(literal_int(limit))
        first = (rows.with_for_update(skip_locked=True) if locked else rows).lateral()
        # LATERAL without an outer ORDER BY: the nested loop reads the next priority, and locks a row, only until LIMIT
        # is reached (https://www.postgresql.org/docs/current/queries-with.html, on LIMIT). See ADR 15.
        return select(first).select_from(levels.join(first, true())).limit(literal_int(limit))

    def lock_pending(self, ids: Select[Any], limit: int) -> Select[Any]:
        wanted = ids.subquery()
        row = select(Generation.id).where(Generation.id == wanted.c.id, PENDING).limit(literal_int(1))
        locked = row.with_for_update(skip_locked=True).lateral()
        return select(locked).select_from(wanted.join(locked, true())).limit(literal_int(limit))

    def insert(self, table: Any) -> Any:
        return postgresql_insert(table)

    def byte_order(self, text: Any) -> ColumnElement[str]:
        return collate(text, "C")

    def prompt_conflict_target(self) -> list[Any]:
        return [text("md5(text)")]

    def prompt_text_equals(self, text: Any) -> ColumnElement[bool]:
        return and_(func.md5(Prompt.text) == func.md5(text), Prompt.text == text)

    def statement_clock(self) -> StatementClock:
        return _ServerClock()

    def epoch_microseconds(self, time: Any) -> ColumnElement[int]:
        # Infinity and the years outside Python's calendar do not fit, and no other program can read them.
        first = literal_column("'0001-01-01 00:00:00+00'::timestamptz", UTCDateTime())
        last = literal_column("'9999-12-31 23:59:59.999999+00'::timestamptz", UTCDateTime())
        return case((time.between(first, last), cast(extract("epoch", time) * 1_000_000, BigInteger)))

    def merge_metadata(self, stored: Any) -> tuple[ColumnElement[str], ColumnElement[bool]]:
        document = func.coalesce(stored, literal_column("'{}'::jsonb", JSONText))
        merged = document.op("||", return_type=JSONText())(bindparam("changes", type_=JSONText()))
        # The sum of both lengths is the longest that the result can be.
        size = func.octet_length(cast(document, Text)) + bindparam("changes_size", type_=Integer())
        return merged, and_(func.jsonb_typeof(document) == "object", size <= JSON_BYTES_LIMIT)

    def merge_parameters(self, stored: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        text = merge_metadata(None, changes) or "{}"
        return {"changes": text, "changes_size": len(text.encode())}

    def json_member(self, document: Any, key: Any, kind: JSONKind) -> ColumnElement[Any]:
        value = type_coerce(document, JSONB)[key]
        json_type = func.jsonb_typeof(value)
        if kind == "any":
            return func.nullif(json_type, "null")
        if kind == "value":
            return value
        result = cast(value.astext, Numeric) if kind == "number" else value.astext
        if kind == "boolean":
            result = case((value.astext == literal_column("'true'"), literal_int(1)), else_=literal_int(0))
        # Literals, so that the member in GROUP BY is the same expression.
        return case((json_type == literal_column("'string'" if kind == "text" else f"'{kind}'"), result))

    def collect(self, number: Any, condition: ColumnElement[bool]) -> Any:
        return func.array_agg(number).filter(condition)

    def compare_json_number(self, document: Any, key: Any, number: Any) -> ColumnElement[int]:
        return func.sign(self.json_member(document, key, "number") - cast(number, Numeric))

    def unnest(self, numbers: Sequence[int]) -> FromClause:
        return func.unnest(literal(list(numbers), ARRAY(Integer))).table_valued("value").render_derived()
