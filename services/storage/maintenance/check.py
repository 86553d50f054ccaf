"""Check a database: its file, schema, search index, rows and queue; say how to repair each finding, or repair it."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from ..backends.schema_dialect import EngineDiagnostics, FileMode
from ..engine import Storage, get_storage
from ..errors import AccessDeniedError, ReadOnlyError, StorageError
from ..schema import get_schema_version
from ..search import check_search_index, rebuild_search_index
from .check_report import DatabaseReport, Finding, Found, Severity, fix_all
from .check_rows import find_in_rows
from .output_folder import Outputs

Progress = Callable[[str, int, int], None]
FIX: Final = "dgx-storage check --fix"
# What SQLite says of an index that does not agree with its table, which alone is damaged then.
DAMAGED_INDEX: Final = r"(?:missing from|wrong # of entries in|non-unique entry in) index (.+)"
LOW_DISK_BYTES: Final = 256 * 1024 * 1024
LARGE_WAL_BYTES: Final = 64 * 1024 * 1024  # 16 times the size at which the library empties it
SEVERITIES: Final = ("error", "warning", "notice")


def check_database(
    *,
    fix: bool = False,
    quick: bool = False,
    outputs_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    storage: Storage | None = None,
) -> DatabaseReport:
    """Return a report on the database; its `findings` are empty if nothing is wrong. Changes nothing without `fix`.

    Finds damage to the file (SQLite; then nothing else is checked), every object of the schema that is missing or
    differs from what the revisions create, a search index that does not match the prompts, rows that violate a rule or
    refer to a missing row, generations without a prompt_id, generations that are processing without a lease or whose
    lease nobody reclaims, models of due generations that no running worker claims, a full disk, a large log, and files
    that other users may read. With `outputs_dir`, also completed generations whose file is missing: a relative
    file_path is below it or, if not there, the current folder.

    `fix` repairs the schema and the search index, links generations to prompts, reclaims expired leases, and takes
    others' access to the files. It never drops what others added. `quick` leaves out what reads every row: the
    integrity of the file, the search index and the rules. `progress(step, done, total)` is called after each batch.
    Raises NotInitializedError, SchemaOutdatedError and the like for a database that is not at the head, and ValueError
    if `outputs_dir` is not a folder.
    """
    storage = storage or get_storage()
    outputs = None if outputs_dir is None else Outputs("outputs_dir", outputs_dir, storage)
    revision = _read_revision(storage)
    with storage.backend.read_only(storage.engine).connect() as connection, Session(connection) as session:
        diagnostics = storage.backend.read_diagnostics(connection)
        damage = [] if quick else storage.backend.check_integrity(session)
    found = [_describe_damage(storage, message) for message in damage]
    if all(one.statements for one in found):
        found += _check_schema(storage, fix=fix)
        found += _check_contents(storage, outputs, progress or (lambda step, done, total: None), quick=quick)
    found += _check_host(diagnostics, storage)
    if fix:
        fix_all(storage, found)
        revision = _read_revision(storage)
    return _report(storage, revision, diagnostics, found)


def _read_revision(storage: Storage) -> str | None:
    """Return the revision, or None if it is lost. Raises an error if the database is at another one than the head."""
    revision = None
    with suppress(OperationalError, ProgrammingError):  # alembic_version lacks its column
        revision = storage.read_revision()
    if revision == get_schema_version():
        return revision
    if revision is None:
        from .. import migrations

        if storage.backend.is_present(storage.url) and migrations.is_head_without_version(storage):
            return None
    storage.require_schema()
    return revision


def _describe_damage(storage: Storage, message: str) -> Found:
    """Return the finding for a message of the database; damage to an index alone can be repaired from its table."""
    name = re.search(DAMAGED_INDEX, message)
    if name is None:
        return Found(Finding(message, "database", advice="restore a backup: dgx-storage restore PATH"))
    statement = f'REINDEX "{name[1]}"'
    return Found(Finding(message, "database"), (statement,), fix=partial(_execute, statement=statement))


def _execute(storage: Storage, *, statement: str) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def _check_schema(storage: Storage, *, fix: bool) -> Iterator[Found]:
    from .. import migrations  # Alembic doubles the import time of the package

    try:
        outcomes = migrations.repair(storage) if fix else {}
        repairs = migrations.find_drift(storage)
    except (AccessDeniedError, ReadOnlyError):
        problem = "it cannot be compared, because this user may not create a schema in which to run the revisions"
        advice = "check as the owner of the database, or GRANT CREATE ON DATABASE … TO this user"
        yield Found(Finding(problem, "schema", "notice", advice=advice))
        return
    for difference, error in outcomes.items():
        if error is None:
            problem = f"it {difference.loss or difference.problem}"
            yield Found(Finding(problem, difference.subject, fixed=True, values_lost=bool(difference.loss)))
    for repair in repairs:
        for difference in repair.differences:
            failure = outcomes.get(difference)
            problem = f"it {difference.problem}" + (f"; the repair failed: {failure}" if failure else "")
            severity: Severity = "notice" if difference.is_kept else "error"
            yield Found(Finding(problem, difference.subject, severity), repair.statements)


def _check_contents(storage: Storage, outputs: Outputs | None, progress: Progress, *, quick: bool) -> Iterator[Found]:
    storage.forget_schema()
    try:
        storage.require_schema()
    except (DBAPIError, StorageError):
        yield Found(Finding("they are not checked before the schema is repaired", "rows", advice=FIX))
        return
    if not quick:
        yield from _check_search_index(storage)
    with storage.session(read_only=True) as session:
        for low in storage.backend.find_low_sequences(session.connection()):
            finding = Finding("its next key is in the table already, so inserts fail", f"sequence {low.name}")
            yield Found(finding, (low.statement,), fix=partial(_execute, statement=low.statement))
        yield from list(find_in_rows(session, outputs, progress, quick=quick))


def _check_search_index(storage: Storage) -> Iterator[Found]:
    try:
        is_current = storage.run_in_transaction(check_search_index)
    except ReadOnlyError:
        return  # SQLite compares it with a statement that writes
    except (DBAPIError, StorageError):
        is_current = False  # what it consists of is not as it should be
    if not is_current:
        finding = Finding("it does not match the prompts", "search index", advice=FIX)
        yield Found(finding, fix=lambda storage: storage.run_in_transaction(rebuild_search_index))


def _check_host(diagnostics: EngineDiagnostics, storage: Storage) -> Iterator[Found]:
    for mode in storage.backend.find_open_files(storage.url):
        what = "write in the folder" if mode.is_folder else "open the file"
        problem = f"other users of this host may {what}: its mode is {mode.mode:04o}"
        finding = Finding(problem, str(mode.path), "warning", advice=f"chmod {mode.wanted:o} {mode.path}")
        yield Found(finding, fix=None if mode.is_folder else partial(_change_mode, mode=mode))
    if diagnostics.disk_free_bytes is not None and diagnostics.disk_free_bytes < LOW_DISK_BYTES:
        problem = f"only {diagnostics.disk_free_bytes / 1e6:,.0f} MB of disk are free"
        yield Found(Finding(problem, "disk", "warning", advice="free some space, or dgx-storage prune"))
    if diagnostics.wal_bytes is not None and diagnostics.wal_bytes > LARGE_WAL_BYTES:
        problem = (
            f"it has grown to {diagnostics.wal_bytes / 1e6:,.0f} MB: "
            "a reader or another program keeps it from shrinking"
        )
        yield Found(
            Finding(problem, "write-ahead log", "warning", advice="end long readers, then dgx-storage optimize")
        )


def _change_mode(storage: Storage, *, mode: FileMode) -> None:
    mode.path.chmod(mode.wanted)


def _report(
    storage: Storage, revision: str | None, diagnostics: EngineDiagnostics, found: list[Found]
) -> DatabaseReport:
    """Return the findings, most important first, each with the script that repairs it."""
    with storage.engine.connect() as connection:
        schema = storage.backend.own_schema(connection)

    def write_script(repairs: Iterable[Sequence[str]]) -> str:
        # Each repair once: the rebuild of a table repairs all that differs in it.
        statements = [statement for repair in dict.fromkeys(map(tuple, repairs)) for statement in repair]
        return storage.backend.write_script(statements, schema) if statements else ""

    left = [one for one in found if one.is_left]
    ordered = sorted(found, key=lambda one: SEVERITIES.index(one.finding.severity))
    findings = tuple(
        one.finding if one.finding.fixed else replace(one.finding, repair_sql=write_script([one.statements]))
        for one in ordered
    )
    repair_sql = write_script(one.statements for one in left)
    return DatabaseReport(
        not left, storage.display_url, revision, *diagnostics, findings=findings, repair_sql=repair_sql
    )
