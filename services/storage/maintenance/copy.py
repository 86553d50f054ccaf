"""Copying a whole database into another one: refused before it begins or done in full. Owns its transactions.

The source is read in one snapshot, twice: first to find what the target would refuse, then to copy. Each batch is one
transaction together with the note of how far it got, so a copy that was killed goes on where it stopped. At the end the
target is read back and compared.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    MetaData,
    RowMapping,
    Table,
    Text,
    bindparam,
    exists,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.orm import Session

from ..engine import Storage
from ..errors import ConflictError, CopyError, NotInitializedError
from .rows import (
    TABLES,
    CopiedTable,
    Digest,
    Progress,
    RefusedRow,
    batches,
    examine,
    key_columns,
    key_of,
    own_links,
    plain_table,
)

REFUSALS_LIMIT = 100

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
        contents, refused = examine(reader, progress)
        if refused:
            raise CopyError(_tell_refused(refused), refused=refused[:REFUSALS_LIMIT])
        _make_tables(target)
        fingerprint = blake2b("".join(table.checksum for table in contents).encode(), digest_size=16).hexdigest()
        resumed = _begin(target, fingerprint)
        for table in TABLES:
            _copy_table(reader, target, table, progress)
        for table in TABLES:
            for column in own_links(table):
                _copy_links(reader, target, table, column, progress)
    _finish(target, contents, progress)
    return CopyReport(contents, resumed)


def _require_room(target: Storage) -> None:
    """Refuse a full target before the long look at the source."""
    try:
        with target.session(read_only=True) as session:
            if not inspect(session.connection()).has_table(NOTES.name) and (table := _first_full_table(session)):
                raise CopyError(f"The target is not empty: it has rows in {table}. Copy into a new database.")
    except NotInitializedError:
        return


def _make_tables(target: Storage) -> None:
    try:
        target.require_schema()
    except NotInitializedError:
        from .. import migrations  # Alembic doubles the import time of the package

        migrations.upgrade(target)


def _first_full_table(session: Session) -> str | None:
    return next((table.name for table in TABLES if session.scalar(select(exists().select_from(table)))), None)


def _tell_refused(refused: Sequence[RefusedRow]) -> str:
    first = refused[0]
    return (
        f"The target would refuse {len(refused):,} of the source's rows, the first one {first.table} {first.key}: "
        f"{first.reason}. Mend or delete them, then copy again. Nothing was copied."
    )


def _begin(target: Storage, fingerprint: str) -> bool:
    """Claim the target for this source; tell whether a copy of it had begun before."""

    def begin(session: Session) -> bool:
        full, begun = _first_full_table(session), inspect(session.connection()).has_table(NOTES.name)
        if full and (not begun or set(session.scalars(select(NOTES.c.source))) != {fingerprint}):
            raise CopyError(
                f"The target has rows in {full} that are not part of a copy of this source as it is now: "
                "reset the target, then copy again."
            )
        if full:
            return True
        if begun:
            NOTES.drop(session.connection())  # of a copy that came to nothing, or was reset
        NOTES.create(session.connection())
        steps = [table.name for table in TABLES]
        steps += [f"{table.name}.{column.name}" for table in TABLES for column in own_links(table)]
        notes = [{"step": step, "source": fingerprint, "last_key": None, "row_count": 0} for step in steps]
        session.execute(insert(NOTES), notes)
        return False

    return target.run_in_transaction(begin)


def _copy_table(reader: Session, target: Storage, table: Table, progress: Progress) -> None:
    plain = plain_table(table)
    names = [column.name for column in plain.columns]
    later = dict.fromkeys((column.name for column in own_links(table)), None)
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
    plain = plain_table(table)
    key = plain.c[key_columns(table)[0].name]
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
    for rows in batches(reader, table, after=after, done=done, where=where, progress=progress, step=f"copy {step}"):
        expected, reached = last_key, json.dumps(key_of(table, rows[-1]))
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
            digest = Digest(table)
            for rows in batches(session, table, progress=progress, step=f"compare {table.name}"):
                for row in rows:
                    digest.add(row)
            if digest.result() != expected:
                raise CopyError(
                    f"The copy differs from the source in {table.name}: {digest.count:,} rows instead of "
                    f"{expected.row_count:,}, or other ones. Reset the target and copy again while nothing writes."
                )
    target.run_in_transaction(lambda session: NOTES.drop(session.connection()))
