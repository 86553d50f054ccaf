"""Check a database: its structure, rows, search index and queue. Repairs only the search index."""

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..conditions import PROCESSING
from ..engine import Storage, get_storage
from ..errors import AccessDeniedError
from ..lifecycle import GenerationStatus
from ..models import Generation
from ..search import check_search_index, rebuild_search_index
from ..serialization import Report
from .row_checks import scan_rows


@dataclass(frozen=True)
class Finding(Report):
    """A problem, its subject (a table and key, never a stored value), and whether the check has fixed it."""

    problem: str
    subject: str
    fixed: bool = False


def check_database(
    *, outputs_dir: str | os.PathLike[str] | None = None, storage: Storage | None = None
) -> list[Finding]:
    """Return the problems of the database, [] if there are none. Reads every row: 20 s for 100,000 generations.

    In this order: damage to the file (SQLite only; then nothing else is checked); indexes, triggers and functions that
    are missing or differ, which are created again (on PostgreSQL only if the user may create a schema); a search index
    that does not match the prompts, which is rebuilt; rows that violate a constraint, refer to a missing row or have an
    unreadable value; rows that are processing without a lease, which no worker will reclaim; generations that search
    cannot find, because they have no prompt_id. With `outputs_dir`, the folder of relative file_paths, also completed
    generations whose file is missing. On SQLite, writers wait while the search index is compared and rebuilt. Raises
    ValueError if `outputs_dir` is not a folder.
    """
    storage = storage or get_storage()
    if outputs_dir is not None and not Path(outputs_dir).is_dir():
        raise ValueError("outputs_dir must be an existing folder")
    with storage.session(read_only=True) as session:
        damage = storage.backend.check_integrity(session)
    if damage:
        return [Finding(problem, "database") for problem in damage]
    findings = _repair_objects(storage)
    findings += storage.run_in_transaction(_repair_search_index)
    with storage.session(read_only=True) as session:
        _, refused = scan_rows(session, lambda step, done, total: None, as_stored=True)
        findings += [Finding(row.reason, f"{row.table} {row.key}") for row in refused]
        findings += _find_unleased(session)
        findings += _find_unlinked(session)
        if outputs_dir is not None:
            findings += _find_missing_files(session, Path(outputs_dir))
    return findings


def _repair_objects(storage: Storage) -> list[Finding]:
    """Create indexes, triggers and functions again that are missing or differ from what the revisions create."""
    from .. import migrations  # Alembic doubles the import time of the package

    try:
        return [Finding(words, "schema", fixed=True) for words in migrations.repair(storage)]
    except AccessDeniedError:
        return []  # the user may not create the schema in which the revisions create them for the comparison


def _repair_search_index(session: Session) -> list[Finding]:
    if check_search_index(session):
        return []
    rebuild_search_index(session)
    return [Finding("it does not match the prompts", "search index", fixed=True)]


def _find_unleased(session: Session) -> list[Finding]:
    unleased = select(Generation.id).where(PROCESSING, Generation.lease_expires_at.is_(None)).order_by(Generation.id)
    return [Finding("it is processing without a lease", f"generations {id}") for id in session.scalars(unleased)]


def _find_unlinked(session: Session) -> list[Finding]:
    # A bulk insert that is not ours counts no prompt, and search finds generations through their prompts.
    unlinked = select(Generation.id).where(Generation.prompt_id.is_(None)).order_by(Generation.id)
    return [
        Finding("it has no prompt_id, so search does not find it", f"generations {id}")
        for id in session.scalars(unlinked)
    ]


def _find_missing_files(session: Session, outputs_dir: Path) -> list[Finding]:
    completed = Generation.status == GenerationStatus.COMPLETED.value
    files = select(Generation.id, Generation.file_path).where(completed).order_by(Generation.id)
    rows = session.execute(files.execution_options(yield_per=1_000))
    # Not Path.is_file(), which raises OSError if the name is too long.
    missing = [id for id, file_path in rows if not os.path.isfile(os.path.join(outputs_dir, file_path))]
    return [Finding("its file is missing", f"generations {id}") for id in missing]
