"""copy_database(): identical in both directions, complete or refused, and resumable after a kill."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, text

from services.storage import (
    Base,
    CopyError,
    SchemaOutdatedError,
    Storage,
    StorageError,
    copy_database,
    create_generation,
    get_generation,
    init_db,
    migrations,
    track_prompt_usage,
)
from services.storage.maintenance.row_scan import BATCH_ROWS
from tests.support.copy_process import contents, fill
from tests.support.factories import a_generation, a_request


@pytest.fixture
def source(sqlite_url: str) -> Iterator[Storage]:
    storage = Storage(sqlite_url)
    yield storage
    storage.dispose()


def rows_of(url: str) -> dict[str, object]:
    storage = Storage(url)
    try:
        return dict(contents(storage))
    finally:
        storage.dispose()


def test_a_copy_to_the_same_database_is_refused(source: Storage) -> None:
    with pytest.raises(CopyError, match="the same database: name another target"):
        copy_database(str(source.url), str(source.url))


@pytest.mark.drill
@pytest.mark.timeout(1_800)
def test_a_copy_to_postgresql_and_back_is_identical(
    source: Storage, postgresql_url: str, tmp_path: Path, scaled: Callable[[int], int]
) -> None:
    fill(source, scaled(50_000))
    with source.session() as session:
        session.execute(insert(Base.metadata.tables["queue_state"]), [{"id": 1, "reason": "moving house"}])
    back = f"sqlite:///{tmp_path / 'back.db'}"

    there = copy_database(str(source.url), postgresql_url)
    home = copy_database(postgresql_url, back)

    expected = contents(source)
    assert rows_of(postgresql_url) == expected
    assert rows_of(back) == expected
    assert there == home
    assert there.row_count == sum(map(len, expected.values()))
    assert not there.resumed
    storage = Storage(postgresql_url)
    with storage.session() as session:
        assert track_prompt_usage(session, "the first one after the move").id == max(expected["prompts"]) + 1
    storage.dispose()


@pytest.mark.drill
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("direction", ["to PostgreSQL", "to SQLite"])
def test_a_killed_copy_continues_where_it_stopped(
    source: Storage, postgresql_url: str, tmp_path: Path, scaled: Callable[[int], int], direction: str
) -> None:
    fill(source, scaled(50_000))
    urls = (str(source.url), postgresql_url)
    if direction == "to SQLite":
        copy_database(*urls)
        urls = (postgresql_url, f"sqlite:///{tmp_path / 'back.db'}")
    for step in ("copy prompts", "copy generations", "copy attempts", "copy generations.parent_id", "compare prompts"):
        kill_after(step, *urls)
    began = []
    report = copy_database(*urls, progress=lambda step, done, total: began.append((step, done)))
    assert report.resumed
    assert next(done for step, done in began if step == "copy generations") == len(contents(source)["generations"])
    assert rows_of(urls[1]) == contents(source)
    storage = Storage(urls[1])
    assert migrations.check(storage) == []
    with storage.session() as session, pytest.raises(StorageError):
        session.execute(text("SELECT * FROM copy_progress"))  # the progress table is dropped
    storage.dispose()


def kill_after(step: str, source_url: str, target_url: str) -> None:
    """Copy in another process, and kill it after it has copied a batch of `step`."""
    command = [sys.executable, "-m", "tests.support.copy_process", source_url, target_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.rpartition(" ")[0] == step
            if seen == 2:  # the first line is the start of the step
                process.kill()
                break
    assert seen == 2


def test_a_copy_creates_missing_tables(source: Storage, empty_database_url: str) -> None:
    with source.session() as session:
        a_generation(session)
    report = copy_database(str(source.url), empty_database_url)
    assert [table.row_count for table in report.tables if table.name == "generations"] == [1]
    assert rows_of(empty_database_url) == contents(source)


def test_bad_rows_are_reported_before_tables_are_created(source: Storage, empty_database_url: str) -> None:
    with source.session() as session:
        generation = a_generation(session)
    write_invalid(source, generation.id, "channels = 3")
    with pytest.raises(CopyError, match="channels_mono_or_stereo"):
        copy_database(str(source.url), empty_database_url)
    target = Storage(empty_database_url)
    assert target.read_revision() is None
    target.dispose()


def test_a_target_with_rows_is_refused_and_not_changed(source: Storage, empty_database_url: str) -> None:
    with source.session() as session:
        a_generation(session)
    target = Storage(empty_database_url)
    migrations.upgrade(target)
    with target.session() as session:
        track_prompt_usage(session, "somebody else's")
    before = contents(target)
    with pytest.raises(CopyError, match="rows in prompts"):
        copy_database(str(source.url), empty_database_url)
    assert contents(target) == before
    target.dispose()


def test_an_unfinished_copy_of_another_source_is_refused(source: Storage, postgresql_url: str) -> None:
    fill(source, 2 * BATCH_ROWS)
    kill_after("copy generations", str(source.url), postgresql_url)
    with source.session() as session:
        a_generation(session)
    with pytest.raises(CopyError, match="not part of a copy of this source as it is now"):
        copy_database(str(source.url), postgresql_url)
    target = Storage(postgresql_url)
    migrations.reset(target)
    assert not copy_database(str(source.url), postgresql_url).resumed
    assert contents(target) == contents(source)
    target.dispose()


def test_rows_inserted_into_the_target_during_the_copy_are_found_by_the_comparison(
    source: Storage, postgresql_url: str
) -> None:
    with source.session() as session:
        a_generation(session)
    target = Storage(postgresql_url)

    def interfere(step: str, done: int, total: int) -> None:
        if (step, done) == ("copy generations", 1):
            with target.session() as session:
                session.execute(text("UPDATE prompts SET used_count = used_count + 1"))

    with pytest.raises(CopyError, match="differs from the source in prompts"):
        copy_database(str(source.url), postgresql_url, progress=interfere)
    target.dispose()


BAD_ROWS = {
    "it violates ck_generations_status_known": "status = 'queued'",
    "it violates ck_generations_channels_mono_or_stereo": "channels = 3",
    "it violates ck_generations_progress_is_fraction": "progress = 7",
    "duration_seconds is not a number": "duration_seconds = 'long'",
    "prompt_id refers to a missing row": "prompt_id = 999",
    "parent_id refers to a missing row": "parent_id = 'nobody'",
    "created_at is missing or unreadable": "created_at = 'yesterday'",
    "started_at is unreadable": "started_at = 'noon'",
    "parameters is JSON that PostgreSQL cannot store": """parameters = '{"x": NaN}'""",
    "metadata is JSON that PostgreSQL cannot store": r"""metadata = '{"x": "\u0000"}'""",
    "file_path is not text that both databases can store": "file_path = 'a' || char(0) || 'b'",
    "priority is not a whole number within the range of the column": "priority = 3000000000",
    "worker_id is not text that both databases can store": "worker_id = x'00'",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_row_the_target_would_refuse_is_reported_before_anything_is_written(
    source: Storage, postgresql_url: str, reason: str
) -> None:
    with source.session() as session:
        a_generation(session)
        bad = a_generation(session, prompt="a secret prompt")
    write_invalid(source, bad.id, BAD_ROWS[reason])
    with pytest.raises(CopyError) as caught:
        copy_database(str(source.url), postgresql_url)
    assert [(row.table, row.key, row.reason) for row in caught.value.refused] == [("generations", bad.id, reason)]
    assert "secret" not in str(caught.value)
    assert not any(rows_of(postgresql_url).values())


def write_invalid(storage: Storage, generation_id: str, change: str) -> None:
    """Write values that the constraints forbid, with the constraints switched off."""
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql(f"UPDATE generations SET {change} WHERE id = ?", (generation_id,))
        connection.invalidate()


def test_metadata_that_is_not_json_is_kept_as_a_string(source: Storage, postgresql_url: str, tmp_path: Path) -> None:
    with source.session() as session:
        generation = a_generation(session)
    write_invalid(source, generation.id, "metadata = '{oops', parameters = '[1, 2]'")
    back = f"sqlite:///{tmp_path / 'back.db'}"
    copy_database(str(source.url), postgresql_url)
    copy_database(postgresql_url, back)
    assert rows_of(postgresql_url) == contents(source) == rows_of(back)
    init_db(postgresql_url)
    storage = Storage(postgresql_url)
    with storage.session() as session:
        stored = get_generation(session, generation.id)
        assert stored is not None
        assert stored.metadata == '"{oops"'
        assert stored.get_metadata() == {}
    storage.dispose()


def test_a_source_with_an_older_schema_is_refused(tmp_path: Path, postgresql_url: str) -> None:
    old = Storage(f"sqlite:///{tmp_path / 'old.db'}")
    migrations.upgrade(old, "001")
    with pytest.raises(SchemaOutdatedError):
        copy_database(str(old.url), postgresql_url)


def test_progress_counts_every_row_of_every_step(source: Storage, postgresql_url: str) -> None:
    with source.session() as session:
        parent = a_generation(session)
        create_generation(session, **a_request(), parent_id=parent.id)
    last: dict[str, tuple[int, int]] = {}
    copy_database(
        str(source.url), postgresql_url, progress=lambda step, done, total: last.update({step: (done, total)})
    )
    assert last["check generations"] == last["copy generations"] == last["compare generations"] == (2, 2)
    assert last["copy generations.parent_id"] == (1, 1)
    assert all(done == total for done, total in last.values())
