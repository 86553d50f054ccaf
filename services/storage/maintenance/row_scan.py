"""Scan every row of a database: find the rows that another database would refuse, and compute checksums.

Only reads. Checksums are of the values that to_dict() returns, so equal rows on SQLite and PostgreSQL have equal ones.
See ADR 19.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import blake2b
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    Integer,
    MetaData,
    RowMapping,
    Table,
    Text,
    exists,
    func,
    literal,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..declarative import checks_of
from ..limits import BIG_INTEGER_LIMIT, INTEGER_LIMIT
from ..models import Base, RegisteredWorker
from ..serialization import Report
from ..types import JSONObject, JSONText, UTCDateTime
from ..validation import is_storable

BATCH_ROWS = 500
CHECKSUM_BYTES = 16
TABLES: Sequence[Table] = Base.metadata.sorted_tables  # in the order of their foreign keys
# Workers write their own rows again, into the database they work for.
COPIED_TABLES: Sequence[Table] = [table for table in TABLES if table is not RegisteredWorker.__table__]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RefusedRow(Report):
    """A row that the target would refuse, and the reason; contains no stored value."""

    table: str
    key: str
    reason: str


@dataclass(frozen=True)
class CopiedTable(Report):
    """A table and its contents; the checksum does not depend on the order of the rows."""

    name: str
    row_count: int
    checksum: str


def scan_rows(
    reader: Session, progress: Progress, *, tables: Sequence[Table] = TABLES
) -> tuple[tuple[CopiedTable, ...], list[RefusedRow]]:
    """Return the contents of each table, and the rows that a database with this schema would refuse.

    Times in another form that can be read are not refused: a copy converts them.
    """
    contents, refused = [], []
    for table in tables:
        digest = Digest(table)
        for row, reason in _check_rows(reader, table, progress, as_stored=False):
            digest.add(row)
            if reason:
                refused.append(RefusedRow(table.name, ", ".join(map(str, key_of(table, row))), reason))
        contents.append(digest.result())
    return tuple(contents), refused


def find_refused_rows(reader: Session, progress: Progress) -> Iterator[RefusedRow]:
    """Yield the rows that violate a rule of the schema, or that the other database system could not store."""
    for table in TABLES:
        for row, reason in _check_rows(reader, table, progress, as_stored=True):
            if reason:
                yield RefusedRow(table.name, ", ".join(map(str, key_of(table, row))), reason)


def _check_rows(
    reader: Session, table: Table, progress: Progress, *, as_stored: bool
) -> Iterator[tuple[RowMapping, str | None]]:
    """Yield each row of a table, and why a database with this schema would refuse it, or None."""
    rules = {
        f"it violates {check.name}": _violates(check)
        for check in sorted(checks_of(table, backend_for(reader).name), key=lambda check: str(check.name))
        if as_stored or not str(check.name).endswith("_form")
    }
    rules |= {f"{column.name} refers to a missing row": _orphaned(column) for column in _links(table)}
    # Invalid times and JSON load as None, so a flag tells them from NULL.
    present = {f"{column.name} is present": column.is_not(None) for column in plain_table(table).c if column.nullable}
    flags = [rule.label(reason) for reason, rule in (rules | present).items()]
    for rows in batches(reader, table, extra=flags, progress=progress, step=f"check {table.name}"):
        for row in rows:
            yield row, _refusal_reason(table, row) or next((reason for reason in rules if row[reason]), None)


def batches(
    session: Session,
    table: Table,
    *,
    step: str,
    progress: Progress,
    extra: Sequence[ColumnElement[Any]] = (),
    after: Sequence[Any] | None = None,
    done: int = 0,
    where: ColumnElement[bool] | None = None,
) -> Iterator[Sequence[RowMapping]]:
    """Yield a table's rows in batches, in key order by keyset pagination; report progress after each batch."""
    plain = plain_table(table)
    keys = [plain.c[column.name] for column in key_columns(table)]
    first_rows = select(*plain.columns, *extra).order_by(*keys).limit(BATCH_ROWS)
    count = select(func.count()).select_from(plain)
    if where is not None:
        first_rows, count = first_rows.where(where), count.where(where)
    total = session.scalar(count) or 0
    progress(step, done, total)
    while True:
        query = first_rows
        if after is not None:
            last = [literal(value, key.type) for key, value in zip(keys, after, strict=True)]
            query = query.where(tuple_(*keys) > tuple_(*last) if len(keys) > 1 else keys[0] > last[0])
        rows = session.execute(query).mappings().all()
        if not rows:
            return
        yield rows
        done += len(rows)
        progress(step, done, total)
        after = key_of(table, rows[-1])


def own_links(table: Table) -> list[Column[Any]]:
    """Return the columns that refer to the same table: the row they refer to may be copied later."""
    return [column for column in _links(table) if any(key.column.table is table for key in column.foreign_keys)]


def key_columns(table: Table) -> list[Column[Any]]:
    """Return the columns of the primary key."""
    return list(table.primary_key.columns)


def key_of(table: Table, row: RowMapping) -> list[Any]:
    """Return the values of the primary key of a row, in the order of key_columns()."""
    return [row[column.name] for column in key_columns(table)]


def plain_table(table: Table) -> Table:
    """Return `table` without the defaults and the version counter of its model, and with JSON columns as text."""
    return _without_defaults(Base.metadata.tables[table.name])


class Digest:
    """The checksum of a table's rows, by the values that to_dict() returns; independent of the order of the rows."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.count = 0
        self._columns = [(column.name, column.type) for column in plain_table(table).columns]
        self._sum = 0

    def add(self, row: RowMapping) -> None:
        values = [_comparable(row[name], kind) for name, kind in self._columns]
        document = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        self._sum += int.from_bytes(blake2b(document, digest_size=CHECKSUM_BYTES).digest(), "big")
        self.count += 1

    def result(self) -> CopiedTable:
        total = self._sum % (1 << CHECKSUM_BYTES * 8)
        return CopiedTable(self.table.name, self.count, total.to_bytes(CHECKSUM_BYTES, "big").hex())


def _violates(check: CheckConstraint) -> ColumnElement[Any]:
    return literal_column(f"NOT ({check.sqltext})", Boolean)


def _links(table: Table) -> list[Column[Any]]:
    return [column for column in table.columns if column.foreign_keys]


def _orphaned(column: Column[Any]) -> ColumnElement[bool]:
    key = next(iter(column.foreign_keys)).column
    parent = key.table.alias("parent")
    referring = plain_table(column.table).c[column.name]
    return referring.is_not(None) & ~exists().where(parent.c[key.name] == referring)


def find_problem(column: Column[Any], value: Any) -> str | None:
    """Return why a value, JSON as text, does not fit its column on one of the databases, or None if it fits."""
    kind, problem = column.type, None
    if isinstance(kind, JSONText):
        if not isinstance(value, str) or not is_portable_json(value):
            problem = "is JSON that PostgreSQL cannot store"
    elif isinstance(kind, Text):
        if not isinstance(value, str) or not is_storable(column.name, value):
            problem = "is not text that both databases can store"
    elif isinstance(kind, Integer):
        limit = BIG_INTEGER_LIMIT if isinstance(kind, BigInteger) else INTEGER_LIMIT
        if type(value) is not int or not -limit - 1 <= value <= limit:
            problem = "is not a whole number within the range of the column"
    elif isinstance(kind, Double):
        if type(value) not in (int, float):
            problem = "is not a number"
    elif isinstance(kind, Boolean):
        if type(value) is not bool:
            problem = "is neither true nor false"
    elif isinstance(kind, UTCDateTime) and not isinstance(value, datetime):
        problem = "is not a time"
    return problem and f"{column.name} {problem}"


def is_portable_json(text: str) -> bool:
    """Return whether JSONB accepts a text: it refuses NaN, infinities, and strings with NUL or lone surrogates."""
    value = load_document(text)
    if isinstance(value, str):  # also text that is not JSON, which is stored as a JSON string
        return is_storable("", value)
    try:
        strings = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return is_storable("", strings) and ("\\u0000" not in strings or all(map(_has_no_nul, _strings(value))))


def load_document(text: str) -> Any:
    """Return the value of JSON text; text that is not JSON as itself, because JSONB stores it as a JSON string."""
    try:
        return json.loads(text, parse_float=portable_float)
    except (TypeError, ValueError, RecursionError):
        return text


def portable_float(value: Any) -> float:
    """Return a float as both databases store it: JSONB and SQLite have no -0.0."""
    return float(value) or 0.0


def _refusal_reason(table: Table, row: RowMapping) -> str | None:
    """Return why a value does not fit its column on one of the databases, or None if all values fit."""
    for column in plain_table(table).columns:
        value = row[column.name]
        if value is None:
            if not column.nullable or row[f"{column.name} is present"]:
                return f"{column.name} is {'unreadable' if column.nullable else 'missing or unreadable'}"
        elif problem := find_problem(column, value):
            return problem
    return None


def _has_no_nul(text: str) -> bool:
    return "\0" not in text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _comparable(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, JSONText):
        return load_document(value)
    if isinstance(kind, UTCDateTime):
        return value.isoformat() if isinstance(value, datetime) else value
    return portable_float(value) if isinstance(value, float) else value


@cache
def _without_defaults(table: Table) -> Table:
    columns = [
        Column(
            column.name,
            JSONText() if isinstance(column.type, JSONObject) else column.type,
            primary_key=column.primary_key,
            autoincrement=False,
            nullable=column.nullable,
        )
        for column in table.columns
        if column.computed is None
    ]
    return Table(table.name, MetaData(), *columns)
