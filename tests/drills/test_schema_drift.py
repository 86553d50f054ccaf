"""Every object of the schema, dropped or changed in turn, is named, and the SQL that is printed repairs it."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import pytest

from services.storage import (
    Storage,
    check_database,
    claim_generation,
    complete_generation,
    fail_generation,
    pause_queue,
    register_worker,
)
from tests.conftest import DRILL_SCALE, administer, database_at
from tests.support.databases import ask, run_script, tables_of
from tests.support.factories import a_generation
from tests.support.schema_changes import Change, changes_of_postgresql, changes_of_sqlite
from tests.support.sessions import opened, path_of

ALIVE_SECONDS = 100_000.0
PARTS = 4
ROWS = """
INSERT INTO usage_totals (hour, model_name, event, count) VALUES (1, 'm', 'created', 2);
INSERT INTO pruned_files (path) VALUES ('a.wav'), ('b.wav')
"""


def fill_every_table(url: str) -> dict[str, int]:
    """Add rows to each table; return how many rows each has."""
    with opened(url) as storage:
        fill(storage)
    run_script(url, ROWS)
    counts = row_counts(url)
    assert all(counts.values()), counts
    return counts


def fill(storage: Storage) -> None:
    with storage.session() as session:
        first = a_generation(session, prompt="lofi rain")
        a_generation(session, prompt="jazz", parent_id=first.id, idempotency_key="once")
        a_generation(session, prompt="trap")
    for end in ("completed", "failed"):
        with storage.session() as session:
            claimed = claim_generation(session, "worker")
            assert claimed is not None
            if end == "completed":
                complete_generation(session, claimed.id, 1.0, 1, lease=claimed.lease)
            else:
                fail_generation(session, claimed.id, "no", lease=claimed.lease, retry=False)
    with storage.session() as session:
        pause_queue(session, "a reason")
        register_worker(session, "worker", alive_seconds=ALIVE_SECONDS)


def row_counts(url: str) -> dict[str, int]:
    return {table: ask(url, f"SELECT count(*) FROM {table}")[0][0] for table in tables_of(url)}


def must_be_named_and_repaired(url: str, change: Change, counts: dict[str, int], repair: str) -> None:
    run_script(url, change.script)
    with opened(url) as storage:
        report = check_database(storage=storage)
        named = {finding.subject: finding for finding in report.findings}
        assert change.subject in named, (change.name, list(named))
        # What others added is kept, and its SQL is printed with the finding only.
        if repair == "script" or report.is_sound:
            run_script(url, report.repair_sql or named[change.subject].repair_sql)
        else:
            fixed = {one.subject: one.fixed for one in check_database(fix=True, storage=storage).findings}
            assert fixed[change.subject], (change.name, fixed)
        expected = counts if not change.lost_table else counts | {change.lost_table: 0}
        present = row_counts(url)
        if repair == "fix":  # which also adds lost prompts, and removes a worker whose times are lost
            expected = expected | {table: present[table] for table in ("prompts", "workers")}
        assert present == expected, change.name
        left = {finding.subject: finding.problem for finding in check_database(storage=storage).findings}
        assert not [subject for subject in left if is_of_schema(subject)], (change.name, left)
        assert not left or is_lossy(change), (change.name, left)


def is_of_schema(subject: str) -> bool:
    return not subject.startswith(("generations ", "prompts ", "attempts ", "usage_totals ", "workers "))


def is_lossy(change: Change) -> bool:
    """Return whether rows may break rules afterwards, because what they held or referred to is gone."""
    return change.name.startswith("drop") and change.subject.startswith(("column ", "table "))


def sample(changes: Iterable[Change], part: int) -> list[Change]:
    """Return a part of the changes: of all in a drill at full size, else of every nineteenth.

    Not of every twentieth: four changes of each column follow each other, so all would be of one kind.
    """
    return list(changes)[:: max(1, round(0.95 / DRILL_SCALE))][part::PARTS]


@pytest.mark.sampled
@pytest.mark.drill
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("repair", ["script", "fix"])
def test_every_change_of_an_sqlite_schema(sqlite_url: str, tmp_path: Path, repair: str, part: int) -> None:
    counts = fill_every_table(sqlite_url)
    for number, change in enumerate(sample(changes_of_sqlite(sqlite_url), part)):
        path = tmp_path / f"{number}.db"
        shutil.copy(path_of(sqlite_url), path)
        must_be_named_and_repaired(f"sqlite:///{path}", change, counts, repair)
        path.unlink()


@pytest.mark.sampled
@pytest.mark.drill
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("repair", ["script", "fix"])
def test_every_change_of_a_postgresql_schema(
    postgresql_server: str, postgresql_template: str, repair: str, part: int
) -> None:
    name = f"drift_{uuid4().hex}"
    administer(postgresql_server, f"CREATE DATABASE {name} TEMPLATE {postgresql_template}")
    url = database_at(postgresql_server, name)
    counts = fill_every_table(url)
    for change in sample(changes_of_postgresql(url), part):
        must_be_named_and_repaired(url, change, counts, repair)
        if is_lossy(change):  # start again with whole rows; a copy of the database for each change would take too long
            run_script(url, f"TRUNCATE {', '.join(tables_of(url) - {'alembic_version'})} CASCADE")
            assert fill_every_table(url) == counts
    administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")
