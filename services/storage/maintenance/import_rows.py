"""Import what export_database() wrote: all of it or nothing, in one transaction. Rows that exist stay. See ADR 37."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import IO, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Table, Text, bindparam, case, exists, func, select, tuple_, update
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..declarative import checks_of
from ..engine import Storage, get_storage
from ..errors import ConflictError, ConstraintError, StorageError, TransferError, UnreachableError
from ..file_reading import open_file
from ..models import TABLES, Base
from ..row_loading import GENERATIONS
from ..serialization import Report
from .export import PROMPTS
from .export_format import LINE_BYTES_LIMIT, Header, parts_of, read_header, read_line
from .output_folder import is_database_file
from .row_scan import BATCH_ROWS, Progress, own_links, plain_table

MEMORY_BYTES: Final = 1 << 20  # the links between generations take more than this in a temporary file
TOTALS: Final = Base.metadata.tables["usage_totals"]


class Line(NamedTuple):
    """A line of the file: its number, its table, the values of the row, and of the rows that belong to it."""

    number: int
    table: Table
    row: dict[str, Any]
    parts: Mapping[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class ImportReport(Report):
    """The number of rows of each table that were stored, and that existed already.

    `missing_parents` counts the generations whose parent is neither in the file nor in the database.
    """

    stored: Mapping[str, int]
    existing: Mapping[str, int]
    missing_parents: int = 0


def import_database(
    file: str | os.PathLike[str] | IO[bytes], *, progress: Progress | None = None, storage: Storage | None = None
) -> ImportReport:
    """Store the rows of an export that the database lacks; return how many. All or nothing, in one transaction.

    Generations that exist stay as they are, with their attempts; of the counts and times of a prompt that exists, and
    of the totals of pruned generations, the larger count and the wider interval stay. So importing a file twice is the
    same as once. Every value is checked as create_generation() checks it. Calls `progress("import", rows done, rows in
    total)`. Raises TransferError, with `line` and `field`, for a line that is refused, SchemaTooNewError for a file of
    a newer release, UnreachableError if the file cannot be read.
    """
    storage = storage or get_storage()
    with _open_source(file, storage) as source:
        header = read_header(source.readline(LINE_BYTES_LIMIT + 1))
        run = partial(_import, source=source, header=header, progress=progress or (lambda step, done, total: None))
        return storage.run_in_transaction(run)


@contextmanager
def _open_source(file: str | os.PathLike[str] | IO[bytes], storage: Storage) -> Iterator[IO[bytes]]:
    """Yield the file at its beginning; a pipe is copied to a temporary file, because a transaction may be repeated."""
    if isinstance(file, (str, os.PathLike)):
        path = Path(file)
        if is_database_file(path, storage):
            raise TransferError(f"{path} is the database itself: name an export")
        try:
            source = open_file(path)
        except OSError as error:
            raise UnreachableError(f"{path} cannot be read: {error.strerror}", orig=error) from error
        with source:
            try:
                yield source
            except TransferError as error:
                error.args = (f"{path}: {error}",)
                raise
        return
    with TemporaryFile() as copy:
        copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def _import(session: Session, source: IO[bytes], header: Header, progress: Progress) -> ImportReport:
    source.seek(0)
    source.readline()
    total = sum(header.counts.values())
    progress("import", 0, total)
    read: Counter[str] = Counter()
    with SpooledTemporaryFile(max_size=MEMORY_BYTES) as links:
        run = _Run(session, links)
        for table, lines in _batches(source):
            run.store(table, lines)
            read[table.name] += len(lines)
            for line in lines:
                read.update({part: len(rows) for part, rows in line.parts.items()})
            progress("import", sum(read.values()), total)
        for name in sorted({*header.counts, *read}):
            if (count := header.counts.get(name, 0)) != read[name]:
                message = f"line 1: counts says {count:,} rows of {name}, but the file has {read[name]:,}: it was cut"
                raise TransferError(message, line=1, field="counts")
        return run.finish(read)


def _batches(source: IO[bytes]) -> Iterator[tuple[Table, list[Line]]]:
    """Yield the lines after the header in batches of one table."""
    for table, lines in groupby(_lines(source), key=lambda line: line.table):
        batch: list[Line] = []
        for line in lines:
            batch.append(line)
            if len(batch) == BATCH_ROWS:
                yield table, batch
                batch = []
        if batch:
            yield table, batch


def _lines(source: IO[bytes]) -> Iterator[Line]:
    number = 1
    while text := source.readline(LINE_BYTES_LIMIT + 1):
        number += 1
        try:
            yield Line(number, *read_line(text))
        except (ValueError, TypeError) as error:
            message = str(error)
            raise TransferError(
                f"line {number}: {message}", line=number, field=message.split(maxsplit=1)[0], orig=error
            ) from error


class _Run:
    """One import in one transaction."""

    def __init__(self, session: Session, links: IO[bytes]) -> None:
        self._session = session
        self._links = links  # the parents of generations, as lines: a parent may come later in the file
        self._backend = backend_for(session)
        # With an empty table the ids of prompts stay the same; otherwise they may belong to other prompts.
        self._keeps_prompt_ids = not session.scalar(select(exists().select_from(PROMPTS)))
        self._prompts_before = self._count(PROMPTS)
        self._stored: Counter[str] = Counter()

    def store(self, table: Table, lines: Sequence[Line]) -> None:
        """Store the rows of a batch of lines that the database lacks."""
        if table is PROMPTS:
            self._store_prompts(lines)
            return
        new = self._without_existing(table, lines)
        if table is TOTALS:
            self._store_totals(lines)
        else:
            if table is GENERATIONS:
                self._link(new)
            self._insert(table, new)
        self._stored[table.name] += len(new)

    def finish(self, read: Mapping[str, int]) -> ImportReport:
        """Link generations to their parents, and return the report."""
        missing_parents = self._link_parents()
        for table in TABLES if self._keeps_prompt_ids else ():
            self._backend.advance_sequences(self._session.connection(), table)
        self._stored[PROMPTS.name] = self._count(PROMPTS) - self._prompts_before
        stored = {table.name: self._stored[table.name] for table in TABLES if table.name in read}
        return ImportReport(stored, {name: read[name] - count for name, count in stored.items()}, missing_parents)

    def _without_existing(self, table: Table, lines: Sequence[Line]) -> list[Line]:
        columns = list(table.primary_key.columns)
        keys = [tuple(line.row[column.name] for column in columns) for line in lines]
        some = columns[0].in_([key[0] for key in keys]) if len(columns) == 1 else tuple_(*columns).in_(keys)
        known = {tuple(row) for row in self._session.connection().execute(select(*columns).where(some))}
        new = []
        for key, line in zip(keys, lines, strict=True):
            if key not in known:
                known.add(key)
                new.append(line)
        return new

    def _store_prompts(self, lines: Sequence[Line]) -> None:
        upsert = self._backend.insert(PROMPTS)
        new, stored = upsert.excluded, PROMPTS.c
        changes = {
            "used_count": _larger(new.used_count, stored.used_count),
            "first_used_at": _larger(stored.first_used_at, new.first_used_at, then=new.first_used_at),
            "last_used_at": _larger(new.last_used_at, stored.last_used_at),
        }
        upsert = upsert.on_conflict_do_update(index_elements=self._backend.prompt_conflict_target(), set_=changes)
        left_out = () if self._keeps_prompt_ids else ("id",)
        self._execute(PROMPTS, upsert, lines, left_out=left_out)

    def _store_totals(self, lines: Sequence[Line]) -> None:
        upsert = self._backend.insert(TOTALS)
        changes = {"count": _larger(upsert.excluded["count"], TOTALS.c["count"])}
        upsert = upsert.on_conflict_do_update(index_elements=list(TOTALS.primary_key), set_=changes)
        self._execute(TOTALS, upsert, lines)

    def _insert(self, table: Table, lines: Sequence[Line]) -> None:
        """Insert rows without their links to rows of the same table, which may come later, and what belongs to them."""
        for column in own_links(table):
            for line in lines:
                if line.row[column.name] is not None:
                    link = [line.row["id"], line.row[column.name]]
                    self._links.write(json.dumps(link).encode() + b"\n")
                    line.row[column.name] = None
        self._execute(table, self._insert_missing(table), lines)
        for part in parts_of(table):
            rows = [Line(line.number, part, row, {}) for line in lines for row in line.parts[part.name]]
            self._execute(part, self._insert_missing(part), rows)
            self._stored[part.name] += len(rows)

    def _insert_missing(self, table: Table) -> Any:
        """Return the INSERT that leaves out rows that another process has stored meanwhile."""
        keys = [column.name for column in table.primary_key]
        return self._backend.insert(plain_table(table)).on_conflict_do_nothing(index_elements=keys)

    def _link(self, lines: Sequence[Line]) -> None:
        """Set the prompt_id of generations: the database may have their prompts under other ids than the file."""
        connection = self._session.connection()
        ids = {line.row["prompt_id"] for line in lines} - {None}
        known = connection.execute(select(PROMPTS.c.text, PROMPTS.c.id).where(PROMPTS.c.id.in_(ids)))
        found: dict[str, int | None] = {row.text: row.id for row in known}
        text = bindparam("prompt_text", type_=Text())
        by_text = select(PROMPTS.c.id).where(self._backend.prompt_text_equals(text))
        for line in lines:
            prompt = line.row["prompt"]
            if line.row["prompt_id"] is None:
                continue
            if prompt not in found:
                found[prompt] = connection.scalar(by_text, {"prompt_text": prompt})
            if found[prompt] is None:
                raise _refuse(line, "prompt_id", "prompt_id must be that of a prompt with the text of the generation")
            line.row["prompt_id"] = found[prompt]

    def _link_parents(self) -> int:
        """Link the generations to their parents, and return how many parents there are not."""
        self._links.seek(0)
        table, parent = plain_table(GENERATIONS), GENERATIONS.alias("parent")
        is_there = exists(select(parent.c.id).where(parent.c.id == bindparam("parent")))
        link = update(table).where(table.c.id == bindparam("child"), is_there).values(parent_id=bindparam("parent"))
        missing = 0
        while lines := list(islice(self._links, BATCH_ROWS)):
            links = [dict(zip(("child", "parent"), json.loads(line), strict=True)) for line in lines]
            missing += len(links) - self._session.connection().execute(link, links).rowcount
        return missing

    def _execute(self, table: Table, statement: Any, lines: Sequence[Line], *, left_out: Sequence[str] = ()) -> None:
        """Execute an INSERT for each line. Raises TransferError for the first line that the database refuses.

        Line by line, none may be refused: another import has stored the same rows meanwhile, and now they are found.
        """
        if not lines:
            return
        rows = [{name: value for name, value in line.row.items() if name not in left_out} for line in lines]
        try:
            with self._session.begin_nested():
                self._session.connection().execute(statement, rows)
        except (ConflictError, ConstraintError):
            for line, row in zip(lines, rows, strict=True):
                try:
                    with self._session.begin_nested():
                        self._session.connection().execute(statement, row)
                except (ConflictError, ConstraintError) as error:
                    raise self._explain(line, table, error) from error

    def _explain(self, line: Line, table: Table, error: StorageError) -> TransferError:
        """Return the error that says what the database refused: the rule, and a column that is in it."""
        checks, subject = checks_of(table, self._backend.name), str(error)
        broken = next((check for check in checks if str(check.name) in subject), None)
        rule = subject if broken is None else str(broken.sqltext)
        field = max((column.name for column in table.columns if column.name in rule), key=len, default=table.name)
        return _refuse(line, field, subject if broken is None else f"{field} violates {broken.name}: {rule}")

    def _count(self, table: Table) -> int:
        return self._session.scalar(select(func.count()).select_from(table)) or 0


def _larger(one: Any, other: Any, *, then: Any = None) -> ColumnElement[Any]:
    """Return SQL for the larger of two values; with `then`, for that if the first is larger, else for the first."""
    return case((one > other, one), else_=other) if then is None else case((one > other, then), else_=one)


def _refuse(line: Line, field: str, message: str) -> TransferError:
    return TransferError(f"line {line.number}: {message}", line=line.number, field=field)
