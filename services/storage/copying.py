"""Copying a whole database into another one: refused before it begins or done in full. Owns its transactions.

The source is read in one snapshot, twice: first to find what the target would refuse, then to copy. Each batch is one
transaction together with the note of how far it got, so a copy that was killed goes on where it stopped. At the end the
target is read back and compared.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
    bindparam,
    exists,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from .engine import Storage
from .errors import ConflictError, CopyError, NotInitializedError
from .models import Base
from .schema import BIG_INTEGER_LIMIT, INTEGER_LIMIT
from .types import JSONObject, JSONText, UTCDateTime
from .validation import is_storable

BATCH_ROWS = 500
REFUSALS_LIMIT = 100
CHECKSUM_BYTES = 16
TABLES: Sequence[Table] = Base.metadata.sorted_tables  # in the order of their foreign keys
Progress = Callable[[str, int, int], None]

# How far each step got, and from which source: in the target, as long as the copy is not complete.
NOTES = Table(
    "copy_progress",
    MetaData(),
    Column("step", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("last_key", Text),
    Column("row_count", Integer, nullable=False),
)


@dataclass(frozen=True)
class RefusedRow:
    """A row of the source that the target would not take as it is, and why; never what it holds."""

    table: str
    key: str
    reason: str


@dataclass(frozen=True)
class CopiedTable:
    """One table after the copy; the checksum is that of its rows, in whatever order."""

    name: str
    row_count: int
    checksum: str


@dataclass(frozen=True)
class CopyReport:
    """What the target holds now, row for row what the source held."""

    tables: tuple[CopiedTable, ...]
    resumed: bool

    @property
    def row_count(self) -> int:
        """How many rows were copied, in all tables and all runs."""
        return sum(table.row_count for table in self.tables)


def copy_database(source_url: str, target_url: str, *, progress: Progress | None = None) -> CopyReport:
    """Copy every row into an empty database, which is migrated when it has no tables, and compare both at the end.

    Killed and run again it goes on where it stopped. Calls `progress(step, rows done, rows in all)` after each batch.
    Nothing may write to either side meanwhile; what comes to the source after the start is not copied. Raises CopyError
    before anything is written for rows that the target would refuse (`refused`), a target that is neither empty nor a
    partial copy of this source, and at the end when both sides differ.
    """
    source, target = Storage(source_url), Storage(target_url)
    report = progress or (lambda step, done, total: None)
    try:
        return _copy(source, target, report)
    finally:
        source.dispose()
        target.dispose()


def _copy(source: Storage, target: Storage, progress: Progress) -> CopyReport:
    _require_room(target)
    with source.session(read_only=True) as reader:
        contents, refused = _examine(reader, progress)
        if refused:
            raise CopyError(_tell_refused(refused), refused=refused[:REFUSALS_LIMIT])
        fingerprint = _checksum(table.checksum for table in contents)
        resumed = _begin(target, fingerprint)
        for table in TABLES:
            _copy_table(reader, target, table, progress)
        for table in TABLES:
            for column in _own_links(table):
                _copy_links(reader, target, table, column, progress)
    _finish(target, contents, progress)
    return CopyReport(contents, resumed)


def _require_room(target: Storage) -> None:
    """Refuse a full target before the long look at the source; make the tables of one that has none."""
    try:
        target.require_schema()
    except NotInitializedError:
        from . import migrations  # Alembic doubles the import time of the package

        migrations.upgrade(target)
    with target.session(read_only=True) as session:
        if not inspect(session.connection()).has_table(NOTES.name):
            _require_empty(session)


def _require_empty(session: Session) -> None:
    for table in TABLES:
        if session.scalar(select(exists().select_from(table))):
            raise CopyError(f"The target is not empty: it has rows in {table.name}. Copy into a new database.")


def _examine(reader: Session, progress: Progress) -> tuple[tuple[CopiedTable, ...], list[RefusedRow]]:
    """Return what the source holds, and which of its rows no database of this schema would take."""
    contents, refused = [], []
    for table in TABLES:
        rules = {f"it breaks {check.name}": _breaks(check) for check in _checks(table)}
        rules |= {f"{column.name} points to nothing": _orphaned(column) for column in _links(table)}
        # A value that loads as nothing but is there: a time or JSON that others wrote and nobody can read.
        present = {f"{column.name} is there": column.is_not(None) for column in _plain(table).c if column.nullable}
        flags = [rule.label(reason) for reason, rule in (rules | present).items()]
        digest = _Digest(table)
        for rows in _batches(reader, table, extra=flags, progress=progress, step=f"check {table.name}"):
            for row in rows:
                digest.add(row)
                reason = _why_refused(table, row) or next((reason for reason in rules if row[reason]), None)
                if reason:
                    refused.append(RefusedRow(table.name, ", ".join(map(str, _key(table, row))), reason))
        contents.append(digest.result())
    return tuple(contents), refused


def _checks(table: Table) -> list[CheckConstraint]:
    return [constraint for constraint in table.constraints if isinstance(constraint, CheckConstraint)]


def _breaks(check: CheckConstraint) -> ColumnElement[Any]:
    return literal_column(f"NOT ({check.sqltext})", Boolean)


def _links(table: Table) -> list[Column[Any]]:
    return [column for column in table.columns if column.foreign_keys]


def _own_links(table: Table) -> list[Column[Any]]:
    """Return the columns that refer to rows of the same table: those may come later than the row itself."""
    return [column for column in _links(table) if any(key.column.table is table for key in column.foreign_keys)]


def _orphaned(column: Column[Any]) -> ColumnElement[bool]:
    key = next(iter(column.foreign_keys)).column
    parent = key.table.alias("parent")
    referring = _plain(column.table).c[column.name]
    return referring.is_not(None) & ~exists().where(parent.c[key.name] == referring)


def _why_refused(table: Table, row: RowMapping) -> str | None:
    """Return what is wrong with a value for its column's type on either database, or None."""
    for column in _plain(table).columns:
        value, kind = row[column.name], column.type
        if value is None:
            if not column.nullable or row[f"{column.name} is there"]:
                return f"{column.name} is {'unreadable' if column.nullable else 'missing or unreadable'}"
        elif isinstance(kind, JSONText):
            if not isinstance(value, str) or not _is_portable_json(value):
                return f"{column.name} holds JSON that not every database can"
        elif isinstance(kind, Text):
            if not isinstance(value, str) or not is_storable(column.name, value):
                return f"{column.name} is not text that every database can hold"
        elif isinstance(kind, Integer):
            limit = BIG_INTEGER_LIMIT if isinstance(kind, BigInteger) else INTEGER_LIMIT
            if type(value) is not int or not -limit - 1 <= value <= limit:
                return f"{column.name} is not a whole number that fits"
        elif isinstance(kind, Double) and not isinstance(value, (int, float)):
            return f"{column.name} is not a number"
    return None


def _is_portable_json(text: str) -> bool:
    """Tell whether JSONB takes a text: it refuses NaN and infinities, and NUL and lone surrogates inside strings."""
    value = _load(text)
    if isinstance(value, str):  # also what is no JSON at all: it is kept as a JSON string
        return is_storable("", value)
    try:
        strings = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return False
    return is_storable("", strings) and ("\\u0000" not in strings or all(map(_has_no_nul, _strings(value))))


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


def _tell_refused(refused: Sequence[RefusedRow]) -> str:
    first = refused[0]
    return (
        f"The target would refuse {len(refused):,} of the source's rows, the first one {first.table} {first.key}: "
        f"{first.reason}. Mend or delete them, then copy again. Nothing was copied."
    )


def _begin(target: Storage, fingerprint: str) -> bool:
    """Claim the target for this source; tell whether a copy of it had begun before."""

    def begin(session: Session) -> bool:
        if inspect(session.connection()).has_table(NOTES.name):
            if set(session.scalars(select(NOTES.c.source))) != {fingerprint}:
                raise CopyError(
                    "The target holds part of a copy of something else, or the source has changed since: "
                    "reset the target, then copy again."
                )
            return True
        _require_empty(session)
        NOTES.create(session.connection())
        steps = [table.name for table in TABLES]
        steps += [f"{table.name}.{column.name}" for table in TABLES for column in _own_links(table)]
        notes = [{"step": step, "source": fingerprint, "last_key": None, "row_count": 0} for step in steps]
        session.execute(insert(NOTES), notes)
        return False

    return target.run_in_transaction(begin)


def _copy_table(reader: Session, target: Storage, table: Table, progress: Progress) -> None:
    plain = _plain(table)
    names = [column.name for column in plain.columns]
    later = dict.fromkeys((column.name for column in _own_links(table)), None)
    _copy_step(
        reader,
        target,
        table,
        step=table.name,
        write=lambda session, rows: session.execute(
            insert(plain), [{name: row[name] for name in names} | later for row in rows]
        ),
        progress=progress,
    )


def _copy_links(reader: Session, target: Storage, table: Table, column: Column[Any], progress: Progress) -> None:
    plain = _plain(table)
    key = plain.c[_key_columns(table)[0].name]
    link = update(plain).where(key == bindparam("row_key")).values({column.name: bindparam("row_link")})
    _copy_step(
        reader,
        target,
        table,
        step=f"{table.name}.{column.name}",
        write=lambda session, rows: session.connection().execute(
            link, [{"row_key": row[key.name], "row_link": row[column.name]} for row in rows]
        ),
        progress=progress,
        where=plain.c[column.name].is_not(None),
    )


def _copy_step(
    reader: Session,
    target: Storage,
    table: Table,
    *,
    step: str,
    write: Callable[[Session, Sequence[RowMapping]], Any],
    progress: Progress,
    where: ColumnElement[bool] | None = None,
) -> None:
    """Write what the target lacks, batch by batch, each in one transaction with the note that it is there."""
    note = select(NOTES.c.last_key, NOTES.c.row_count).where(NOTES.c.step == step)
    with target.session() as session:
        last_key, done = session.execute(note).one()
    after = None if last_key is None else json.loads(last_key)
    for rows in _batches(reader, table, after=after, done=done, where=where, progress=progress, step=f"copy {step}"):
        expected, reached = last_key, json.dumps(_key(table, rows[-1]))
        done += len(rows)

        def write_batch(
            session: Session,
            expected: str | None = expected,
            reached: str = reached,
            done: int = done,
            rows: Sequence[RowMapping] = rows,
        ) -> None:
            found = session.execute(note.with_for_update()).one().last_key
            if found == reached:
                return  # the connection was lost after the commit, so this is the second time
            if found != expected:
                raise ConflictError("Another copy into the same target is running: let one of them finish.")
            write(session, rows)
            session.execute(update(NOTES).where(NOTES.c.step == step).values(last_key=reached, row_count=done))

        target.run_in_transaction(write_batch)
        last_key = reached


def _finish(target: Storage, contents: tuple[CopiedTable, ...], progress: Progress) -> None:
    """Compare the target with what the source held, and forget the notes."""

    def advance(session: Session) -> None:
        for table in TABLES:
            target.backend.advance_sequences(session.connection(), table)

    target.run_in_transaction(advance)
    with target.session(read_only=True) as session:
        for table, expected in zip(TABLES, contents, strict=True):
            digest = _Digest(table)
            for rows in _batches(session, table, progress=progress, step=f"compare {table.name}"):
                for row in rows:
                    digest.add(row)
            if digest.result() != expected:
                raise CopyError(
                    f"The copy differs from the source in {table.name}: {digest.count:,} rows instead of "
                    f"{expected.row_count:,}, or other ones. Reset the target and copy again while nothing writes."
                )
    target.run_in_transaction(lambda session: NOTES.drop(session.connection()))


def _batches(
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
    """Read a table in the order of its key, seeking and not skipping; report each batch once it has been dealt with."""
    plain = _plain(table)
    keys = [plain.c[column.name] for column in _key_columns(table)]
    rows_of = select(*plain.columns, *extra).order_by(*keys).limit(BATCH_ROWS)
    count = select(func.count()).select_from(plain)
    if where is not None:
        rows_of, count = rows_of.where(where), count.where(where)
    total = session.scalar(count) or 0
    progress(step, done, total)
    while True:
        query = rows_of
        if after is not None:
            last = [literal(value, key.type) for key, value in zip(keys, after, strict=True)]
            query = query.where(tuple_(*keys) > tuple_(*last) if len(keys) > 1 else keys[0] > last[0])
        rows = session.execute(query).mappings().all()
        if not rows:
            return
        yield rows
        done += len(rows)
        progress(step, done, total)
        after = _key(table, rows[-1])


def _key_columns(table: Table) -> list[Column[Any]]:
    return list(table.primary_key.columns)


def _key(table: Table, row: RowMapping) -> list[Any]:
    return [row[column.name] for column in _key_columns(table)]


def _plain_table(table: Table) -> Table:
    """Return `table` without what the models add: defaults, versions, and JSON as anything but its text."""
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


_PLAIN: Mapping[str, Table] = {table.name: _plain_table(table) for table in TABLES}


def _plain(table: Table) -> Table:
    return _PLAIN[table.name]


class _Digest:
    """The checksum of a table's rows as to_dict() gives them, the same in whatever order they come."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.count = 0
        self._columns = [(column.name, column.type) for column in _plain(table).columns]
        self._sum = 0

    def add(self, row: RowMapping) -> None:
        values = [_comparable(row[name], kind) for name, kind in self._columns]
        document = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        self._sum += int.from_bytes(blake2b(document, digest_size=CHECKSUM_BYTES).digest(), "big")
        self.count += 1

    def result(self) -> CopiedTable:
        total = self._sum % (1 << CHECKSUM_BYTES * 8)
        return CopiedTable(self.table.name, self.count, total.to_bytes(CHECKSUM_BYTES, "big").hex())


def _checksum(parts: Iterable[str]) -> str:
    return blake2b("".join(parts).encode(), digest_size=CHECKSUM_BYTES).hexdigest()


def _comparable(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, JSONText):
        return _load(value)
    if isinstance(kind, UTCDateTime):
        return value.isoformat() if isinstance(value, datetime) else value
    return _float(value) if isinstance(value, float) else value


def _load(text: str) -> Any:
    """Return what a JSON text means, and text that is none as itself: that is what JSONB keeps it as."""
    try:
        return json.loads(text, parse_float=_float)
    except (TypeError, ValueError, RecursionError):
        return text


def _float(value: Any) -> float:
    number = float(value)
    return 0.0 if number == 0 else number if not math.isnan(number) else math.nan  # JSONB knows no -0.0
