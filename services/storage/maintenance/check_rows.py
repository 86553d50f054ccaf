"""Find rows that break rules, that search cannot find, that no worker finishes, or whose file is missing."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import select, true
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..claim_order import distinct_priorities
from ..conditions import NOT_PAUSED, PENDING, PROCESSING
from ..engine import Storage
from ..lifecycle import GenerationStatus
from ..models import TABLES, Generation, RegisteredWorker
from ..queue import reclaim_generations
from ..queue.due import select_due_models
from ..queue.workers import is_claimed, remove_silent_workers, select_claiming_models
from .check_report import Finding, Found
from .output_folder import Outputs
from .row_scan import Progress, find_refused_rows

STUCK_SECONDS: Final = 60.0  # after the end of the lease: a running worker reclaims it within seconds
ROWS_AT_ONCE: Final = 500

# They link every generation to the prompt of its text, and add prompts that are missing. By the text, because a prompt
# that is added may get the id that another generation still names.
ADD_PROMPTS: Final = """\
INSERT INTO prompts (text, used_count, first_used_at, last_used_at)
SELECT prompt, count(*), min(created_at), max(created_at) FROM generations
WHERE NOT EXISTS (SELECT 1 FROM prompts WHERE prompts.text = generations.prompt) GROUP BY prompt"""
LINK_PROMPTS: Final = """\
UPDATE generations SET prompt_id = prompts.id, version = version + 1 FROM prompts
WHERE prompts.text = generations.prompt AND (prompt_id IS NULL OR prompt_id <> prompts.id)"""


def find_in_rows(session: Session, outputs: Outputs | None, progress: Progress, *, quick: bool) -> Iterator[Found]:
    """Yield the findings in the rows; `quick` reads only those that an index leads to."""
    if not quick:
        yield from _find_refused(session, progress)
    processing = select(Generation.id).where(PROCESSING).order_by(Generation.id)
    for id in session.scalars(processing.where(Generation.lease_expires_at.is_(None))):
        advice = f"complete or fail it, or update_generation_status(session, {id!r}, 'pending')"
        yield Found(Finding("it is processing without a lease", f"generations {id}", "warning", advice=advice))
    expired = Generation.lease_expires_at < select(backend_for(session).now(-STUCK_SECONDS)).scalar_subquery()
    for id, worker in session.execute(processing.where(expired).add_columns(Generation.worker_id)):
        problem = f"its lease has expired, its worker {worker} is gone, and no other has reclaimed it"
        finding = Finding(
            problem, f"generations {id}", "warning", advice="start a worker: dgx-storage worker MODULE:FUNCTION"
        )
        yield Found(finding, fix=_reclaim)
    dead = select(RegisteredWorker.id).where(
        RegisteredWorker.expires_at <= select(backend_for(session).now()).scalar_subquery()
    )
    for id in session.scalars(dead.order_by(RegisteredWorker.id)):
        finding = Finding("it has stopped without saying so", f"workers {id}", "notice", advice="start it again")
        yield Found(finding, fix=_remove_workers)
    yield from _find_unclaimed(session)
    unlinked = select(Generation.id).where(Generation.prompt_id.is_(None)).order_by(Generation.id)
    for id in session.scalars(unlinked):
        yield _unlinked("it has no prompt_id, so search does not find it", id)
    if outputs is not None:
        yield from _find_missing_files(session, outputs)


def _find_unclaimed(session: Session) -> Iterator[Found]:
    """Yield the models of generations that are due while the queue is not paused, and that no live worker claims."""
    clock = backend_for(session).statement_clock()
    claiming = set(session.execute(select_claiming_models(clock), clock.parameters()).scalars())
    due = select_due_models(distinct_priorities([PENDING], true()), clock(timedelta(seconds=-STUCK_SECONDS)))
    found = session.execute(select(due.c.due_model).where(NOT_PAUSED), clock.parameters())
    for model in sorted(found.scalars()):
        if not is_claimed(model, claiming):
            problem = f"generations of the model {model} are due, and no running worker claims them"
            advice = "start a worker that claims this model: dgx-storage worker MODULE:FUNCTION"
            yield Found(Finding(problem, "queue", "warning", advice=advice))


def _find_refused(session: Session, progress: Progress) -> Iterator[Found]:
    links = {
        (table.name, f"{column.name} refers to a missing row"): column
        for table in TABLES
        for column in table.columns
        if column.foreign_keys
    }
    for row in find_refused_rows(session, progress):
        column = links.get((row.table, row.reason))
        if column is None:
            is_generation = row.table == Generation.__tablename__
            advice = f"correct it, or dgx-storage delete {row.key}" if is_generation else "correct or delete the row"
            yield Found(Finding(row.reason, f"{row.table} {row.key}", "warning", advice=advice))
        elif column is Generation.__table__.c.prompt_id:
            yield _unlinked(row.reason, row.key)
        else:
            yield Found(Finding(row.reason, f"{row.table} {row.key}"), (_detach(column),))


def _detach(column: Any) -> str:
    """Return the statement that does with rows whose parent is missing what its deletion should have done."""
    (key,) = column.foreign_keys
    parent, table = key.column, column.table.name
    where = (
        f"WHERE {column.name} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {parent.table.name} AS parent "
        f"WHERE parent.{parent.name} = {table}.{column.name})"
    )
    change = f"UPDATE {table} SET {column.name} = NULL" if key.ondelete == "SET NULL" else f"DELETE FROM {table}"
    return f"{change} {where}"


def _unlinked(problem: str, id: str) -> Found:
    return Found(Finding(problem, f"generations {id}", "warning"), (ADD_PROMPTS, LINK_PROMPTS), fix=_link_prompts)


def _link_prompts(storage: Storage) -> None:
    with storage.session() as session:
        for statement in (ADD_PROMPTS, LINK_PROMPTS):
            session.connection().exec_driver_sql(statement)


def _reclaim(storage: Storage) -> None:
    while storage.run_in_transaction(lambda session: len(reclaim_generations(session, ROWS_AT_ONCE))) == ROWS_AT_ONCE:
        pass


def _remove_workers(storage: Storage) -> None:
    storage.run_in_transaction(remove_silent_workers)


def _find_missing_files(session: Session, outputs: Outputs) -> Iterator[Found]:
    completed = Generation.status == GenerationStatus.COMPLETED.value
    files = select(Generation.id, Generation.file_path).where(completed).order_by(Generation.id)
    for id, file_path in session.execute(files.execution_options(yield_per=1_000)):
        try:
            is_missing = outputs.find(file_path) is None
        except OSError as error:
            problem = f"whether its file is there is unknown: {error.strerror}"
            advice = "run the check as a user who may read the folders of the files"
            yield Found(Finding(problem, f"generations {id}", "warning", advice=advice))
            continue
        if is_missing:
            advice = f"dgx-storage files {outputs.given} --relink, or dgx-storage delete {id}"
            yield Found(Finding("its file is missing", f"generations {id}", "warning", advice=advice))
