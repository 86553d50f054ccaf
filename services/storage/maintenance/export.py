"""Export a database, or the generations that meet filters, as JSON Lines that import_database() reads. See ADR 37."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Unpack

from sqlalchemy import ColumnElement, Select, Table, Text, func, select
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..durable_files import new_file
from ..engine import Storage, get_storage
from ..errors import TransferError, UnreachableError
from ..filters import Filters, filter_conditions, validate_filters
from ..models import TABLES, Generation
from ..row_loading import GENERATIONS
from ..serialization import Report
from .export_format import Values, exported_columns, links_to_owner, new_header, parts_of, write_header, write_line
from .output_folder import is_database_file
from .row_scan import BATCH_ROWS, Progress

PROMPTS: Final = GENERATIONS.metadata.tables["prompts"]


@dataclass(frozen=True)
class ExportReport(Report):
    """The number of exported rows of each table."""

    row_counts: Mapping[str, int]


def export_database(
    file: str | os.PathLike[str] | IO[bytes],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    storage: Storage | None = None,
    **filters: Unpack[Filters],
) -> ExportReport:
    """Write every row, as it is at one moment, to `file` while others read and write; return how many.

    `file` is a path, or a file that is open for writing bytes. With filters, those of list_generations(), it is the
    generations that meet them, with their attempts and prompts, and no other table. A file at a path is private (mode
    0600), and complete and flushed to the disk before it gets its name. Calls `progress(table, rows done, rows in
    total)`. Raises TransferError for a path that exists (with `overwrite` only for the database itself),
    UnreachableError if it cannot be written, ValueError or TypeError for an invalid filter.
    """
    storage, wanted = storage or get_storage(), validate_filters(**filters)
    with storage.session(read_only=True) as session:
        conditions = filter_conditions(session, wanted)
        with open_target(file, storage, overwrite=overwrite) as target:
            return _write(session, target, conditions, progress or (lambda table, done, total: None))


@contextmanager
def open_target(file: str | os.PathLike[str] | IO[bytes], storage: Storage, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Yield the file to write: the given one, or a new one of mode 0600 that gets its name when it is complete."""
    if not isinstance(file, (str, os.PathLike)):
        yield file
        return
    target = Path(file)
    if is_database_file(target, storage):
        raise TransferError(f"{target} is the database itself: name another file")
    try:
        with new_file(target, overwrite=overwrite) as new:
            yield new
    except FileExistsError as error:
        message = f"{target} exists: name another file, or pass overwrite=True or --force to replace it"
        raise TransferError(message, orig=error) from error
    except OSError as error:
        raise UnreachableError(f"{target} cannot be written: {error.strerror}", orig=error) from error


def _write(
    session: Session, target: IO[bytes], conditions: Sequence[ColumnElement[bool]], progress: Progress
) -> ExportReport:
    wanted = {table.name: _condition_on(table, conditions) for table in _tables(is_filtered=bool(conditions))}
    counts = {
        table.name: session.scalar(select(func.count()).select_from(table).where(*wanted[table.name])) or 0
        for table in TABLES
        if table.name in wanted
    }
    target.write(write_header(new_header(counts)))
    for table in TABLES:
        if table.name not in wanted or links_to_owner(table) is not None:
            continue
        done, total = 0, counts[table.name]
        progress(table.name, done, total)
        for rows in _read(session, table, wanted[table.name]):
            parts = _read_parts(session, table, rows)
            for row in rows:
                key = row[table.primary_key.columns[0].name]
                target.write(write_line(table, row, {name: found.get(key, []) for name, found in parts.items()}))
            done += len(rows)
            progress(table.name, done, total)
    return ExportReport(counts)


def _tables(*, is_filtered: bool) -> Sequence[Table]:
    """Return the tables of an export; with filters, the generations and what they refer to and own."""
    return (PROMPTS, GENERATIONS, *parts_of(GENERATIONS)) if is_filtered else TABLES


def _condition_on(table: Table, conditions: Sequence[ColumnElement[bool]]) -> Sequence[ColumnElement[bool]]:
    """Return the condition that a row belongs to the export of the generations that meet `conditions`."""
    if not conditions or table is GENERATIONS:
        return conditions
    if table is PROMPTS:
        return [table.c.id.in_(select(Generation.prompt_id).where(*conditions))]
    link = links_to_owner(table)
    assert link is not None, "other tables are exported only as a whole"
    return [link.in_(select(Generation.id).where(*conditions))]


def _read(session: Session, table: Table, where: Sequence[ColumnElement[bool]]) -> Iterator[Sequence[Values]]:
    """Yield the rows in batches, in the same order on every database."""
    query = _ordered(session, table).where(*where).execution_options(yield_per=BATCH_ROWS)
    yield from session.connection().execute(query).mappings().partitions()


def _read_parts(session: Session, table: Table, owners: Sequence[Values]) -> dict[str, dict[Any, list[Values]]]:
    """Return the rows that belong to `owners`, by table and by the key of their owner."""
    parts: dict[str, dict[Any, list[Values]]] = {}
    keys = [row[table.primary_key.columns[0].name] for row in owners]
    for part in parts_of(table):
        link = links_to_owner(part)
        assert link is not None
        found = parts[part.name] = {}
        for row in session.connection().execute(_ordered(session, part).where(link.in_(keys))).mappings():
            found.setdefault(row[link.name], []).append(row)
    return parts


def _ordered(session: Session, table: Table) -> Select[Any]:
    backend = backend_for(session)
    keys = [backend.byte_order(key) if isinstance(key.type, Text) else key for key in table.primary_key]
    return select(*exported_columns(table)).order_by(*keys)
