"""Copy a whole database into another one; refuse, before anything is written, if it could not be complete. See ADR 19.

The source is read twice in one snapshot: first to find rows that the target would refuse, then to copy. Each batch is
one transaction, which also records the progress, so a copy that was killed resumes where it stopped. At the end the
target is read back and compared.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from ..errors import ConflictError, CopyError, NotInitializedError, StorageError
from ..serialization import Report
from .row_scan import (
    COPIED_TABLES,
    CopiedTable,
    Digest,
    Progress,
    RefusedRow,
    batches,
    key_columns,
    key_of,
    own_links,
    plain_table,
    scan_rows,
)

REFUSED_LIMIT = 100

# A table in the target while the copy is incomplete: the source, and the progress of each step.
PROGRESS_TABLE = Table(
    "copy_progress",
    MetaData(),
    Column("step", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("last_key", Text),
    Column("row_count", Integer, nullable=False),
)


@dataclass(frozen=True)
class CopyReport(Report):
    """The tables that were copied, and whether an earlier run of the copy was resumed."""

    tables: tuple[CopiedTable, ...]
    resumed: bool

    @property
    def row_count(self) -> int:
        """The number of copied rows in all tables, including those of earlier runs."""
        return sum(table.row_count for table in self.tables)


def copy_database(source_url: str, target_url: str, *, progress: Progress | None = None) -> CopyReport:
    """Copy every row into an empty database, in which tables are created if it has none, and compare both at the end.

    If it was killed, run it again to resume. Calls `progress(step, rows done, rows in total)` after each batch. Nothing
    else may write to either database during the copy; rows added to the source after the start are not copied. Raises
    CopyError before it writes anything for rows that the target would refuse (in `refused`) and for a target that is
    neither empty nor a partial copy of this source; and at the end if the databases differ.
    """
    with _naming("source"):
        source = Storage(source_url)
    with _naming("target"):
        target = Storage(target_url)
    if source.url == target.url and not source.is_memory:
        raise CopyError("The source and the target of the copy are the same database: name another target.")
    report_progress = progress or (lambda step, done, total: None)
    try:
        return _copy(source, target, report_progress)
    finally:
        source.dispose()
        target.dispose()


def _copy(source: Storage, target: Storage, progress: Progress) -> CopyReport:
    with _naming("source"):
        source.require_schema()
    with _naming("target"), suppress(NotInitializedError):
        target.require_schema()
    _require_empty(target)
    with source.session(read_only=True) as reader:
        contents, refused = scan_rows(reader, progress, tables=COPIED_TABLES)
        if refused:
            raise CopyError(_describe_refused(refused), refused=refused[:REFUSED_LIMIT])
        _create_tables(target)
        fingerprint = blake2b("".join(table.checksum for table in contents).encode(), digest_size=16).hexdigest()
        resumed = _start_or_resume(target, fingerprint)
        for table in COPIED_TABLES:
            _copy_table(reader, target, table, progress)
        for table in COPIED_TABLES:
            for column in own_links(table):
                _copy_links(reader, target, table, column, progress)
    _finish(target, contents, progress)
    return CopyReport(contents, resumed)


@contextmanager
def _naming(side: str) -> Iterator[None]:
    """Say in the message of an error which database it is about."""
    try:
        yield
    except StorageError as error:
        error.args = (f"The {side} of the copy: {error}",)
        raise


def _require_empty(target: Storage) -> None:
    """Raise CopyError for a target that has rows, before the long scan of the source."""
    try:
        with target.session(read_only=True) as session:
            if not inspect(session.connection()).has_table(PROGRESS_TABLE.name) and (
                table := _first_nonempty_table(session)
            ):
                raise CopyError(f"The target is not empty: it has rows in {table}. Copy into a new database.")
    except NotInitializedError:
        return


def _create_tables(target: Storage) -> None:
    try:
        target.require_schema()
    except NotInitializedError:
        from .. import migrations  # here, because Alembic doubles the import time of the package

        migrations.upgrade(target)


def _first_nonempty_table(session: Session) -> str | None:
    return next((table.name for table in COPIED_TABLES if session.scalar(select(exists().select_from(table)))), None)


def _describe_refused(refused: Sequence[RefusedRow]) -> str:
    first = refused[0]
    return (
        f"The target would refuse {len(refused):,} of the source's rows, the first one {first.table} {first.key}: "
        f"{first.reason}. Repair or delete them, then copy again. Nothing was copied."
    )


def _start_or_resume(target: Storage, fingerprint: str) -> bool:
    """Reserve the target for this source; return whether a copy of it is being resumed."""

    def begin(session: Session) -> bool:
        full, started = _first_nonempty_table(session), inspect(session.connection()).has_table(PROGRESS_TABLE.name)
        if full and (not started or set(session.scalars(select(PROGRESS_TABLE.c.source))) != {fingerprint}):
            raise CopyError(
                f"The target has rows in {full} that are not part of a copy of this source as it is now: "
                "reset the target, then copy again."
            )
        if full:
            return True
        if started:
            PROGRESS_TABLE.drop(session.connection())  # left by a copy that wrote no rows, or whose target was reset
        PROGRESS_TABLE.create(session.connection())
        steps = [table.name for table in COPIED_TABLES]
        steps += [f"{table.name}.{column.name}" for table in COPIED_TABLES for column in own_links(table)]
        records = [{"step": step, "source": fingerprint, "last_key": None, "row_count": 0} for step in steps]
        session.execute(insert(PROGRESS_TABLE), records)
        return False

    return target.run_in_transaction(begin)


def _copy_table(reader: Session, target: Storage, table: Table, progress: Progress) -> None:
    plain = plain_table(table)
    names = [column.name for column in plain.columns]
    links = dict.fromkeys((column.name for column in own_links(table)), None)
    _copy_step(
        reader,
        target,
        table,
        step=table.name,
        write=lambda session, rows: session.execute(
            insert(plain), [{name: row[name] for name in names} | links for row in rows]
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
    """Write the rows that the target lacks in batches; the transaction of each also records the progress."""
    record = select(PROGRESS_TABLE.c.last_key, PROGRESS_TABLE.c.row_count).where(PROGRESS_TABLE.c.step == step)
    with target.session() as session:
        last_key, done = session.execute(record).one()
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
            recorded = session.execute(record.with_for_update()).one().last_key
            if recorded == reached:
                return  # a retry: the connection was lost after the commit
            if recorded != expected:
                raise ConflictError("Another copy into the same target is running: let one of them finish.")
            write(session, rows)
            session.execute(
                update(PROGRESS_TABLE).where(PROGRESS_TABLE.c.step == step).values(last_key=reached, row_count=done)
            )

        target.run_in_transaction(write_batch)
        last_key = reached


def _finish(target: Storage, contents: tuple[CopiedTable, ...], progress: Progress) -> None:
    """Compare the target with the source, then drop the progress table."""

    def advance(session: Session) -> None:
        for table in COPIED_TABLES:
            target.backend.advance_sequences(session.connection(), table)

    target.run_in_transaction(advance)
    with target.session(read_only=True) as session:
        for table, expected in zip(COPIED_TABLES, contents, strict=True):
            digest = Digest(table)
            for rows in batches(session, table, progress=progress, step=f"compare {table.name}"):
                for row in rows:
                    digest.add(row)
            if digest.result() != expected:
                raise CopyError(
                    f"The copy differs from the source in {table.name}: {digest.count:,} rows instead of "
                    f"{expected.row_count:,}, or other values. Reset the target, stop all writers and copy again."
                )
    target.run_in_transaction(lambda session: PROGRESS_TABLE.drop(session.connection()))
