"""Delete old generations in short transactions, keep their numbers for get_usage(), and delete their files.

The dry run reads what the real run would delete, in the same order. See ADR 27.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Row, delete, func, literal, select, tuple_, type_coerce
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..conditions import still_has_status
from ..engine import Storage, get_storage
from ..errors import PruneError
from ..lifecycle import FINISHED, validate_status
from ..limits import ROWS_PER_STATEMENT
from ..models import Base, Generation, PrunedFile
from ..serialization import Report
from ..types import TimeText
from ..validation import validate_count, validate_flag, validate_moment
from .optimize import vacuum
from .output_folder import Outputs
from .pacing import Pace
from .row_scan import Progress

HOUR_MICROSECONDS: Final = 3_600_000_000
SUSPICIOUS_ROWS: Final = 1_000
TOTALS = Base.metadata.tables["usage_totals"]
FILES = Base.metadata.tables["pruned_files"]
FINISHED_AT = type_coerce(Generation.completed_at, TimeText()).label("finished_at")
ORDER = (Generation.completed_at, Generation.id)


class PrunedGeneration(NamedTuple):
    """A generation that a prune deletes, and the file it deletes with it, None if it deletes none."""

    id: str
    status: str
    completed_at: datetime | None
    file: str | None
    file_size_bytes: int


@dataclass(frozen=True)
class PruneReport(Report):
    """The deleted generations and files, the bytes of these files, and the files that could not be deleted.

    The next prune of the same folder tries these files again.
    """

    rows: int
    files: int
    bytes_freed: int
    undeleted_files: tuple[str, ...] = ()


def prune_generations(
    *,
    older_than: timedelta | datetime,
    statuses: Iterable[str] = FINISHED,
    keep_favorites: bool = True,
    keep_newest: int | None = None,
    delete_files_under: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    on_generation: Callable[[PrunedGeneration], None] | None = None,
    storage: Storage | None = None,
) -> PruneReport:
    """Delete the generations that finished before `older_than`, a time or how long ago, while others read and write.

    Favorites stay, and the newest `keep_newest` of these `statuses`; get_usage() still counts what was deleted. With
    `delete_files_under` their files below this folder are deleted too, unless another generation names the file or a
    symbolic link is on its path; a relative file_path is below this folder or, if it is not there, the current one.
    `progress(step, done, total)` is called after each batch, `on_generation` for each generation after its commit.

    May be interrupted and run again. Raises PruneError if more than 1,000 generations and more than half of all would
    be deleted, except with `force`; ValueError or TypeError for a bad argument.
    """
    storage = storage or get_storage()
    keep_favorites, dry_run = validate_flag("keep_favorites", keep_favorites), validate_flag("dry_run", dry_run)
    keep_newest = None if keep_newest is None else validate_count("keep_newest", keep_newest)
    older_than = _validate_age(older_than)
    conditions: list[ColumnElement[bool]] = [still_has_status(_validate_statuses(statuses))]
    outputs = None if delete_files_under is None else Outputs("delete_files_under", delete_files_under, storage)
    with storage.session(read_only=True) as session:
        conditions += _boundaries(session, older_than, keep_newest, conditions)
        if keep_favorites:
            conditions.append(~Generation.is_favorite)
        total = session.scalar(select(func.count()).select_from(Generation).where(*conditions)) or 0
        stored = session.scalar(select(func.count()).select_from(Generation)) or 0
    if not force and not dry_run:
        _refuse_suspicious(total, stored)
    if outputs is not None:
        outputs.read_names(storage)
    run = _Prune(storage, conditions, outputs, dry_run, on_generation or (lambda generation: None))
    for done in run.batches():
        if progress is not None:
            progress("prune", done, max(total, done))
    return run.finish()


class _Prune:
    """One run: its position, and what it has deleted so far."""

    def __init__(
        self,
        storage: Storage,
        conditions: Sequence[ColumnElement[bool]],
        outputs: Outputs | None,
        dry_run: bool,
        on_generation: Callable[[PrunedGeneration], None],
    ) -> None:
        self._storage = storage
        self._conditions = conditions
        self._outputs = outputs
        self._dry_run = dry_run
        self._on_generation = on_generation
        self._rows = self._files = self._bytes = 0
        self._undeleted: list[str] = []
        self._gone: list[str] = []  # files that are deleted, and still listed in pruned_files

    def batches(self) -> Iterator[int]:
        """Delete everything, batch by batch; yield the number of rows so far after each."""
        if self._outputs is not None and not self._dry_run:
            self._delete_left_files(self._outputs)
        pace, last = Pace(most_rows=ROWS_PER_STATEMENT), None
        while batch := self._read(pace.rows, last):
            last = batch[-1]
            if self._dry_run:
                self._report(batch, self._choose_files(batch))
            else:
                self._report(*self._delete(batch, pace))
            yield self._rows

    def finish(self) -> PruneReport:
        """Return unused space to the file system, and return the report."""
        if not self._dry_run:
            if self._gone:
                self._storage.run_in_transaction(self._forget_files)
            vacuum(self._storage)
        return PruneReport(self._rows, self._files, self._bytes, tuple(self._undeleted))

    def _read(self, limit: int, last: Row[Any] | None) -> Sequence[Row[Any]]:
        query = select(Generation.id, Generation.status, Generation.completed_at, Generation.file_path, FINISHED_AT)
        query = query.where(*self._conditions).order_by(*ORDER).limit(limit)
        if last is not None:
            position = tuple_(literal(last.finished_at, TimeText()), literal(last.id))
            query = query.where(tuple_(type_coerce(Generation.completed_at, TimeText()), Generation.id) > position)
        with self._storage.session(read_only=True) as session:
            return session.execute(query).all()

    def _delete(self, batch: Sequence[Row[Any]], pace: Pace) -> tuple[list[Any], list[str | None]]:
        """Delete the rows of a batch, those that still meet the conditions; return them and the file of each."""
        ids = [row.id for row in batch]

        def delete_rows(session: Session) -> tuple[list[Any], list[str | None]]:
            self._forget_files(session)
            microseconds = backend_for(session).epoch_microseconds
            removal = (
                delete(Generation)
                .where(Generation.id.in_(ids), *self._conditions)
                .returning(
                    Generation.id,
                    Generation.status,
                    Generation.completed_at,
                    Generation.file_path,
                    Generation.model_name,
                    microseconds(Generation.created_at).label("created"),
                    microseconds(Generation.completed_at).label("finished"),
                )
            )
            found = {row.id: row for row in session.execute(removal, execution_options={"synchronize_session": False})}
            rows = [found[id] for id in ids if id in found]
            _add_totals(session, rows)
            files = self._choose_files(rows)
            if listed := sorted({file for file in files if file is not None}):
                _list_files(session, listed)
            return rows, files

        rows, files = pace.run_in_transaction(self._storage, delete_rows)
        self._gone = []
        return rows, files

    def _choose_files(self, rows: Sequence[Any]) -> list[str | None]:
        """Return the file that is deleted with each row: the last row that names a file decides."""
        if self._outputs is None:
            return [None] * len(rows)
        return self._outputs.choose([row.file_path for row in rows])

    def _report(self, rows: Sequence[Any], files: Sequence[str | None]) -> None:
        """Delete the files of committed rows, or in a dry run only measure them, and report each row."""
        if self._outputs is not None:
            self._outputs.forget([row.file_path for row in rows])
        named = set() if self._outputs is None or self._dry_run else self._outputs.read_new_names(self._storage)
        for row, file in zip(rows, files, strict=True):
            size = None if file is None or file in named else self._remove(file)
            if file in named:
                self._gone.append(str(file))
            self._rows += 1
            self._files += size is not None
            self._bytes += size or 0
            self._on_generation(
                PrunedGeneration(row.id, row.status, row.completed_at, file if size is not None else None, size or 0)
            )

    def _remove(self, file: str) -> int | None:
        """Delete a file; return its size, or None if it could not be deleted or is not there any more."""
        assert self._outputs is not None
        try:
            size = self._outputs.measure(file) if self._dry_run else self._outputs.delete(file)
        except FileNotFoundError:
            self._gone.append(file)
            return None
        except OSError:
            self._undeleted.append(file)
            return None
        self._gone.append(file)
        return size

    def _delete_left_files(self, outputs: Outputs) -> None:
        """Delete the files of an earlier prune that was killed, those that no row names."""
        with self._storage.session(read_only=True) as session:
            left = session.scalars(select(PrunedFile.path).order_by(PrunedFile.path)).all()
        for file in left:
            if not outputs.contains(file):
                continue
            if outputs.is_named(file):
                self._gone.append(file)
            elif (size := self._remove(file)) is not None:
                self._files += 1
                self._bytes += size

    def _forget_files(self, session: Session) -> None:
        for start in range(0, len(self._gone), ROWS_PER_STATEMENT):
            paths = self._gone[start : start + ROWS_PER_STATEMENT]
            session.execute(delete(FILES).where(FILES.c.path.in_(paths)))


def _validate_statuses(statuses: Iterable[str]) -> list[str]:
    if isinstance(statuses, str):
        statuses = [statuses]
    known = sorted({validate_status(status) for status in statuses})
    if not known or not FINISHED.issuperset(known):
        raise ValueError("statuses must be finished ones: completed, failed, cancelled")
    return known


def _validate_age(older_than: timedelta | datetime) -> timedelta | datetime:
    if not isinstance(older_than, timedelta):
        return validate_moment("older_than", older_than)
    if older_than < timedelta(0):
        raise ValueError("older_than must not be negative")
    return older_than


def _refuse_suspicious(total: int, stored: int) -> None:
    if total > max(SUSPICIOUS_ROWS, stored // 2):
        raise PruneError(
            f"{total:,} of {stored:,} generations would be deleted, more than half: check older_than and the clock, "
            "look at a dry run, then pass force (--force)"
        )


def _boundaries(
    session: Session,
    older_than: timedelta | datetime,
    keep_newest: int | None,
    conditions: Sequence[ColumnElement[bool]],
) -> list[ColumnElement[bool]]:
    """Return the conditions for the rows that finished before `older_than` and are not among the newest ones."""
    if isinstance(older_than, timedelta):
        try:
            older_than = session.execute(select(backend_for(session).now())).scalar_one() - older_than
        except OverflowError:
            raise ValueError("older_than must be less than 2,000 years") from None
    bounds = [Generation.completed_at < older_than]
    if keep_newest is not None:
        newest = select(FINISHED_AT, Generation.id).where(Generation.completed_at.is_not(None), *conditions)
        newest = newest.order_by(*(column.desc() for column in ORDER)).offset(keep_newest).limit(1)
        first = session.execute(newest).one_or_none()
        if first is None:
            return [Generation.completed_at.is_(None), Generation.completed_at.is_not(None)]
        position = tuple_(literal(first.finished_at, TimeText()), literal(first.id))
        bounds.append(tuple_(type_coerce(Generation.completed_at, TimeText()), Generation.id) <= position)
    return bounds


def _add_totals(session: Session, rows: Sequence[Any]) -> None:
    """Add the rows of a batch to usage_totals."""
    counts: Counter[tuple[int, str, str]] = Counter()
    for row in rows:
        for moment, event in ((row.created, "created"), (row.finished, row.status)):
            if moment is not None:
                counts[moment // HOUR_MICROSECONDS, row.model_name, event] += 1
    if not counts:
        return
    # Sorted, because two prunes that lock the same totals in different orders would deadlock on PostgreSQL.
    values = [
        {"hour": hour, "model_name": model, "event": event, "count": count}
        for (hour, model, event), count in sorted(counts.items())
    ]
    add = backend_for(session).insert(TOTALS)
    total = TOTALS.c["count"] + add.excluded["count"]
    add = add.on_conflict_do_update(index_elements=list(TOTALS.primary_key), set_={"count": total})
    session.connection().execute(add, values)


def _list_files(session: Session, paths: Sequence[str]) -> None:
    add = backend_for(session).insert(FILES).on_conflict_do_nothing()
    session.connection().execute(add, [{"path": path} for path in paths])
