"""Compare the rows with the files below a folder: find missing, unnamed and moved files. Deletes nothing."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, update
from sqlalchemy.orm import Session

from ..audio_files import describe_file
from ..backends import backend_for
from ..engine import Storage, get_storage
from ..lifecycle import GenerationStatus
from ..limits import ROWS_PER_STATEMENT
from ..models import Generation
from ..row_loading import GENERATIONS
from ..serialization import Report
from ..validation import validate_flag
from .output_folder import Outputs
from .pacing import Pace


@dataclass(frozen=True)
class MissingFile(Report):
    """A completed generation whose file is not at its path."""

    generation_id: str
    file_path: str


@dataclass(frozen=True)
class MovedFile(Report):
    """A completed generation whose file is now at another path, recognized by its size and SHA-256."""

    generation_id: str
    file_path: str
    found_path: str


@dataclass(frozen=True)
class FileReport(Report):
    """What differs between rows and files; each row and each file is in one list only. `relinked`: of `moved`."""

    missing: tuple[MissingFile, ...]
    orphaned: tuple[str, ...]
    moved: tuple[MovedFile, ...]
    relinked: int = 0


def find_files(
    outputs_dir: str | os.PathLike[str], *, relink: bool = False, storage: Storage | None = None
) -> FileReport:
    """Return the completed generations without a file, the files below `outputs_dir` without a row, and moved files.

    A moved file has the size and SHA-256 that the worker stored with its result; with `relink` its row gets the new
    path. Rows whose file is not at their path get `file_missing_since`, those whose file is back lose it. Deletes
    nothing. A relative file_path is below `outputs_dir` or, if it is not there, the current folder. Raises ValueError
    if `outputs_dir` is not a folder, OSError if a folder or file cannot be read.
    """
    storage = storage or get_storage()
    relink = validate_flag("relink", relink)
    outputs = Outputs("outputs_dir", outputs_dir, storage)
    missing, found_again = _read_rows(outputs, storage)
    unnamed = [(path, size) for path, size in outputs.walk() if not outputs.is_named(path)]
    if unnamed:
        new = outputs.read_new_names(storage)
        unnamed = [(path, size) for path, size in unnamed if path not in new]
    places = _recognize(missing, unnamed)
    moved = [(row, outputs.spell(places[row.id], row.file_path)) for row in missing if row.id in places]
    relinked = _relink(storage, moved) if relink else 0
    gone = [row.id for row in missing if row.file_missing_since is None and not (relink and row.id in places)]
    _mark(storage, gone, missing=True)
    _mark(storage, found_again, missing=False)
    taken = set(places.values())
    return FileReport(
        tuple(MissingFile(row.id, row.file_path) for row in missing if row.id not in places),
        tuple(sorted(path for path, _ in unnamed if path not in taken)),
        tuple(MovedFile(row.id, row.file_path, path) for row, path in moved),
        relinked,
    )


def _read_rows(outputs: Outputs, storage: Storage) -> tuple[list[Any], list[str]]:
    """Read all rows; return the completed ones without a file, and the ids of those whose file is back."""
    missing: list[Any] = []
    found_again: list[str] = []

    def visit(row: Any) -> None:
        if row.status != GenerationStatus.COMPLETED:
            return
        if outputs.find(row.file_path) is None:
            missing.append(row)
        elif row.file_missing_since is not None:
            found_again.append(row.id)

    outputs.read_names(storage, visit)
    return missing, found_again


def _recognize(missing: Sequence[Any], unnamed: Iterable[tuple[str, int]]) -> dict[str, str]:
    """Return the file of each row that was moved; reads only files of a size that a missing file had.

    Each file is given to one row only. If several are the same, a row gets the one with the name of its old file.
    """
    sizes = {row.file_size_bytes for row in missing if row.file_sha256 is not None}
    candidates: dict[tuple[int, str], list[str]] = defaultdict(list)
    for path, size in unnamed:
        if size in sizes:
            candidates[size, describe_file(path).sha256].append(path)
    places: dict[str, str] = {}
    for same_name in (True, False):
        for row in missing:
            paths = candidates.get((row.file_size_bytes, row.file_sha256), [])
            name = os.path.basename(row.file_path)
            found = next((path for path in paths if not same_name or os.path.basename(path) == name), None)
            if found is not None and row.id not in places:
                places[row.id] = found
                paths.remove(found)
    return places


def _relink(storage: Storage, moved: Sequence[tuple[Any, str]]) -> int:
    """Store the new paths, except for rows whose path changed meanwhile; return how many were stored."""
    link = (
        update(GENERATIONS)
        .where(GENERATIONS.c.id == bindparam("row_id"), GENERATIONS.c.file_path == bindparam("old_path"))
        .values(file_path=bindparam("new_path"), file_missing_since=None, version=GENERATIONS.c.version + 1)
    )
    pace, done = Pace(most_rows=ROWS_PER_STATEMENT), 0
    relinked = 0
    while batch := moved[done : done + pace.rows]:
        changes = [{"row_id": row.id, "old_path": row.file_path, "new_path": path} for row, path in batch]

        def store(session: Session, changes: list[dict[str, Any]] = changes) -> int:
            return sum(session.connection().execute(link, change).rowcount for change in changes)

        relinked += pace.run_in_transaction(storage, store)
        done += len(batch)
    return relinked


def _mark(storage: Storage, ids: Sequence[str], *, missing: bool) -> None:
    """Set or clear file_missing_since."""
    pace, done = Pace(most_rows=ROWS_PER_STATEMENT), 0
    while batch := ids[done : done + pace.rows]:

        def store(session: Session, batch: Sequence[str] = batch) -> None:
            since = backend_for(session).now() if missing else None
            unmarked = Generation.file_missing_since.is_(None)
            mark = update(Generation).where(Generation.id.in_(batch), unmarked if missing else ~unmarked)
            mark = mark.values(file_missing_since=since, version=Generation.version + 1)
            session.execute(mark, execution_options={"synchronize_session": False})

        pace.run_in_transaction(storage, store)
        done += len(batch)
