"""What is wrong with a database: its file, its rows, its search index, its queue. Mends the search index only."""

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..engine import Storage, get_storage
from ..lifecycle import GenerationStatus
from ..models import Generation
from ..search import check_search_index, rebuild_search_index
from .rows import examine


@dataclass(frozen=True)
class Finding:
    """Something wrong: the problem in words, what it is with (a table and key; never what it holds), and if fixed."""

    problem: str
    subject: str
    fixed: bool = False


def check_database(
    *, outputs_dir: str | os.PathLike[str] | None = None, storage: Storage | None = None
) -> list[Finding]:
    """Return what is wrong with the database, [] when nothing is; reads every row, some 20 s for 100,000 generations.

    In this order: damage to the file (SQLite; nothing else is looked at then), a search index that is not what the
    prompts say, which is made anew, rows that break a rule, refer to nothing or cannot be read, and rows made
    processing outside the queue, which nobody will reclaim. With `outputs_dir`, where a relative file_path begins, also
    completed generations whose file is not there. Writers wait while an SQLite index is compared and rebuilt.
    """
    storage = storage or get_storage()
    if outputs_dir is not None and not Path(outputs_dir).is_dir():
        raise ValueError("outputs_dir must be a folder that exists")
    with storage.session(read_only=True) as session:
        damage = storage.backend.check_integrity(session)
    if damage:
        return [Finding(problem, "database") for problem in damage]
    found = storage.run_in_transaction(_mend_search_index)
    with storage.session(read_only=True) as session:
        _, refused = examine(session, lambda step, done, total: None)
        found += [Finding(row.reason, f"{row.table} {row.key}") for row in refused]
        found += _find_unleased(session)
        if outputs_dir is not None:
            found += _find_missing_files(session, Path(outputs_dir))
    return found


def _mend_search_index(session: Session) -> list[Finding]:
    if check_search_index(session):
        return []
    rebuild_search_index(session)
    return [Finding("it is not what the prompts say", "search index", fixed=True)]


def _find_unleased(session: Session) -> list[Finding]:
    processing = Generation.status == GenerationStatus.PROCESSING.value
    unleased = select(Generation.id).where(processing, Generation.lease_expires_at.is_(None)).order_by(Generation.id)
    return [Finding("it is processing without a lease", f"generations {id}") for id in session.scalars(unleased)]


def _find_missing_files(session: Session, outputs_dir: Path) -> list[Finding]:
    completed = Generation.status == GenerationStatus.COMPLETED.value
    files = select(Generation.id, Generation.file_path).where(completed).order_by(Generation.id)
    rows = session.execute(files.execution_options(yield_per=1_000))
    # Not Path.is_file(), which raises for a name that is too long.
    missing = [id for id, file_path in rows if not os.path.isfile(os.path.join(outputs_dir, file_path))]
    return [Finding("its file is missing", f"generations {id}") for id in missing]
