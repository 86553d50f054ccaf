"""Pruning: what is deleted and what stays, the usage reports, the files, and running it again."""

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import select, text, update

from services.storage import (
    Generation,
    PrunedGeneration,
    PruneError,
    Storage,
    count_generations,
    create_generation,
    create_generations,
    get_session,
    get_usage,
    optimize_database,
    prune_generations,
)
from services.storage.backends.sqlite_space import SQLiteSpace
from services.storage.lifecycle import FINISHED, GenerationStatus
from services.storage.maintenance import output_folder, pacing, prune
from services.storage.models import PrunedFile, UsageTotal
from tests.support.databases import ask, is_sqlite, run_script
from tests.support.factories import a_request
from tests.support.plans import statements_on
from tests.support.sessions import path_of
from tests.support.sqlite_module import sqlite3

pytestmark = pytest.mark.usefixtures("db")
NOW = datetime.now(UTC)
DAYS_90 = timedelta(days=90)


def store(days: float, *, status: str = "completed", **changes: Any) -> str:
    """Store a generation that finished so many days ago."""
    finished_at = NOW - timedelta(days=days)
    with get_session() as session:
        generation = Generation(
            **a_request(**changes),
            status=status,
            created_at=finished_at - timedelta(hours=3),
            completed_at=finished_at if status in FINISHED else None,
        )
        session.add(generation)
    return generation.id


def store_file(path: Path, days: float, *, content: bytes = b"music", **changes: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return store(days, file_path=str(path), **changes)


def stored_ids() -> set[str]:
    with get_session() as session:
        return set(session.scalars(select(Generation.id)))


def fill(count: int, seed: int = 1) -> None:
    """Store many generations of all statuses, models and ages."""
    choose = random.Random(seed)
    with get_session() as session:
        for _ in range(count):
            status = choose.choice(list(GenerationStatus))
            created_at = NOW - timedelta(days=choose.uniform(0, 200))
            session.add(
                Generation(
                    **a_request(model_name=choose.choice(["small", "large", "モデル"])),
                    status=status,
                    created_at=created_at,
                    completed_at=created_at + timedelta(hours=choose.uniform(0, 40)) if status in FINISHED else None,
                    is_favorite=choose.random() < 0.1,
                )
            )


def test_what_finished_before_the_time_is_deleted_and_everything_else_stays() -> None:
    old = {store(91, status=status) for status in FINISHED}
    kept = {store(89), store(91, status="pending"), store(91, status="processing"), store(91, is_favorite=True)}
    report = prune_generations(older_than=DAYS_90)
    assert (report.rows, report.files, report.bytes_freed) == (3, 0, 0)
    assert stored_ids() == kept
    assert not old & kept


@pytest.mark.parametrize("older_than", [DAYS_90, NOW - DAYS_90, (NOW - DAYS_90).replace(tzinfo=None)])
def test_the_age_is_given_as_a_duration_or_a_time(older_than: Any) -> None:
    store(91)
    kept = store(89)
    assert prune_generations(older_than=older_than).rows == 1
    assert stored_ids() == {kept}


@pytest.mark.parametrize("statuses", ["failed", ["failed"], (GenerationStatus.FAILED,)])
def test_statuses_limit_what_is_deleted(statuses: Any) -> None:
    kept = {store(91), store(91, status="cancelled")}
    store(91, status="failed")
    assert prune_generations(older_than=DAYS_90, statuses=statuses).rows == 1
    assert stored_ids() == kept


def test_the_newest_are_kept() -> None:
    ids = [store(100 + age) for age in range(10)]
    assert prune_generations(older_than=DAYS_90, keep_newest=4).rows == 6
    assert stored_ids() == set(ids[:4])
    assert prune_generations(older_than=DAYS_90, keep_newest=4).rows == 0
    assert prune_generations(older_than=DAYS_90, keep_newest=100).rows == 0
    assert prune_generations(older_than=DAYS_90, keep_newest=0).rows == 4


def test_favorites_are_deleted_when_told_to() -> None:
    store(91, is_favorite=True)
    assert prune_generations(older_than=DAYS_90, keep_favorites=False).rows == 1


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"older_than": 90}, TypeError),
        ({"older_than": timedelta(days=-1)}, ValueError),
        ({"older_than": timedelta.max}, ValueError),
        ({"statuses": ["pending"]}, ValueError),
        ({"statuses": ["done"]}, ValueError),
        ({"statuses": []}, ValueError),
        ({"keep_newest": -1}, ValueError),
        ({"keep_newest": 1.5}, TypeError),
        ({"keep_favorites": "no"}, TypeError),
        ({"dry_run": 1}, TypeError),
        ({"delete_files_under": "no/such/folder"}, ValueError),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_deleted(bad: dict[str, Any], error: type[Exception]) -> None:
    store(91)
    with pytest.raises(error, match=next(iter(bad)).removesuffix("es")):
        prune_generations(**{"older_than": timedelta(0)} | bad)
    with get_session() as session:
        assert count_generations(session) == 1


@pytest.mark.sampled
@pytest.mark.parametrize("bucket", ["hour", "day", "week"])
def test_the_usage_report_is_the_same_before_and_after(bucket: Any) -> None:
    fill(1_500)
    since = NOW - timedelta(days=250)
    with get_session() as session:
        before = [get_usage(session, bucket=bucket), get_usage(session, since=since, bucket=bucket)]
    for older_than in (timedelta(days=150), timedelta(days=20), timedelta(0)):
        assert prune_generations(older_than=older_than).rows > 50
        with get_session() as session:
            after = [get_usage(session, bucket=bucket), get_usage(session, since=since, bucket=bucket)]
        assert [report[:-1] for report in after] == [report[:-1] for report in before]


def test_a_dry_run_is_the_real_run_row_for_row(tmp_path: Path) -> None:
    fill(300)
    choose = random.Random(2)
    for number in range(120):  # some files have two or three rows, of all ages; some do not exist
        path = tmp_path / "out" / str(number % 7) / f"{choose.randint(1, 60)}.wav"
        if choose.random() < 0.8:
            store_file(path, choose.uniform(0, 200), content=bytes(choose.randint(0, 9)))
        else:
            store(choose.uniform(0, 200), file_path=str(path))
    before = stored_ids()
    runs: list[list[PrunedGeneration]] = [[], []]
    options: dict[str, Any] = {"older_than": DAYS_90, "keep_newest": 20, "delete_files_under": tmp_path / "out"}
    planned = prune_generations(**options, dry_run=True, on_generation=runs[0].append)
    assert stored_ids() == before
    done = prune_generations(**options, on_generation=runs[1].append)
    assert runs[0] == runs[1]
    assert planned == done
    assert before - stored_ids() == {row.id for row in runs[1]}
    assert done.files == len({row.file for row in runs[1]} - {None}) > 10
    assert not [row.file for row in runs[1] if row.file is not None and os.path.exists(row.file)]
    with get_session() as session:
        for path in session.scalars(select(Generation.file_path).where(Generation.status == "completed")):
            assert os.path.exists(path) == (path not in {row.file for row in runs[1]} and os.path.exists(path))


class TestFiles:
    def test_files_of_deleted_rows_are_deleted_and_others_stay(self, tmp_path: Path) -> None:
        store_file(tmp_path / "out/a/old.wav", 91, content=b"12345")
        store_file(tmp_path / "out/young.wav", 1)
        store_file(tmp_path / "elsewhere/old.wav", 91)
        (tmp_path / "out/unnamed.wav").write_bytes(b"1")
        report = prune_generations(older_than=DAYS_90, delete_files_under=tmp_path / "out")
        assert (report.rows, report.files, report.bytes_freed) == (2, 1, 5)
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav")}
        assert left == {"out/young.wav", "out/unnamed.wav", "elsewhere/old.wav"}
        with get_session() as session:
            assert session.scalars(select(PrunedFile.path)).all() == []

    def test_without_a_folder_no_file_is_deleted(self, tmp_path: Path) -> None:
        store_file(tmp_path / "old.wav", 91)
        assert prune_generations(older_than=DAYS_90).files == 0
        assert (tmp_path / "old.wav").exists()

    @pytest.mark.parametrize("status", ["completed", "pending", "failed"])
    @pytest.mark.parametrize("spelling", ["{0}/out/a.wav", "{0}/out/./b/../a.wav", "{0}//out/a.wav", "{0}/link/a.wav"])
    def test_a_file_that_another_row_names_in_any_way_stays(self, spelling: str, status: str, tmp_path: Path) -> None:
        (tmp_path / "out/b").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "out")
        store_file(tmp_path / "out/a.wav", 91)
        store(1, status=status, file_path=spelling.format(tmp_path))
        report = prune_generations(older_than=DAYS_90, delete_files_under=tmp_path / "out")
        assert (report.rows, report.files) == (1, 0)
        assert (tmp_path / "out/a.wav").exists()

    def test_a_file_of_several_old_rows_is_deleted_with_the_last_one(self, tmp_path: Path) -> None:
        for days in (91, 93, 92):
            store_file(tmp_path / "a.wav", days)
        rows: list[PrunedGeneration] = []
        report = prune_generations(older_than=DAYS_90, delete_files_under=tmp_path, on_generation=rows.append)
        assert (report.rows, report.files) == (3, 1)
        assert [row.file for row in rows] == [None, None, str(tmp_path / "a.wav")]

    def test_no_file_is_deleted_through_a_symbolic_link(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.mkdir()
        for name in ("a.wav", "b.wav"):
            (secret / name).write_bytes(b"1")
        root = tmp_path / "out"
        root.mkdir()
        (root / "folder").symlink_to(secret)
        (root / "b.wav").symlink_to(secret / "b.wav")
        inside = root / "real"
        inside.mkdir()
        (inside / "c.wav").write_bytes(b"1")
        (root / "alias").symlink_to(inside)
        for path in ("folder/a.wav", "b.wav", "../secret/a.wav", "real/../../secret/a.wav", "alias/c.wav", ".", "real"):
            store(91, file_path=f"{root}/{path}")
        report = prune_generations(older_than=DAYS_90, delete_files_under=root)
        assert (report.rows, report.files) == (7, 0)
        assert len(list(tmp_path.rglob("*.wav"))) == 4
        assert (root / "b.wav").is_symlink()

    def test_a_link_that_appears_before_the_deletion_is_not_followed(self, tmp_path: Path, db: Storage) -> None:
        path = tmp_path / "out/folder/a.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"1")
        folder = output_folder.Outputs("folder", tmp_path / "out", db)
        (tmp_path / "out/folder").rename(tmp_path / "moved")
        (tmp_path / "out/folder").symlink_to(tmp_path / "moved")
        with pytest.raises(OSError, match=r"folder"):
            folder.delete(str(path))
        assert (tmp_path / "moved/a.wav").exists()

    @pytest.mark.parametrize("current", [".", "out"])
    def test_a_relative_path_is_below_the_folder_or_the_current_one(
        self, current: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a.wav").write_bytes(b"1")
        monkeypatch.chdir(tmp_path / current)
        store(91, file_path="out/a.wav" if current == "." else "a.wav")
        assert prune_generations(older_than=DAYS_90, delete_files_under=tmp_path / "out").files == 1

    def test_a_row_that_is_stored_meanwhile_keeps_its_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_file(tmp_path / "a.wav", 92)
        store_file(tmp_path / "b.wav", 91)

        def clone(step: str, done: int, total: int) -> None:
            with get_session() as session:
                create_generation(session, **a_request(file_path=str(tmp_path / "b.wav")))

        monkeypatch.setattr(pacing, "FEWEST_ROWS", 1)
        report = prune_generations(older_than=DAYS_90, delete_files_under=tmp_path, progress=clone)
        assert report.rows == 2
        assert not (tmp_path / "a.wav").exists()

    def test_files_that_a_killed_prune_left_are_deleted_by_the_next(self, tmp_path: Path) -> None:
        for name in ("left.wav", "named.wav"):
            (tmp_path / name).write_bytes(b"123")
        store(1, file_path=str(tmp_path / "named.wav"))
        with get_session() as session:
            session.add_all(PrunedFile(path=str(tmp_path / name)) for name in ("left.wav", "named.wav", "gone.wav"))
            session.add(PrunedFile(path="/elsewhere/a.wav"))
        report = prune_generations(older_than=DAYS_90, delete_files_under=tmp_path)
        assert (report.rows, report.files, report.bytes_freed) == (0, 1, 3)
        assert [path.name for path in tmp_path.glob("*.wav")] == ["named.wav"]
        with get_session() as session:
            assert session.scalars(select(PrunedFile.path)).all() == ["/elsewhere/a.wav"]

    def test_a_file_that_cannot_be_deleted_is_reported_and_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_file(tmp_path / "a.wav", 91)

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as refused:  # tests run as root, whom no permission stops
            refused.setattr(os, "unlink", refuse)
            report = prune_generations(older_than=DAYS_90, delete_files_under=tmp_path)
        assert (report.rows, report.files, report.undeleted_files) == (1, 0, (str(tmp_path / "a.wav"),))
        assert prune_generations(older_than=DAYS_90, delete_files_under=tmp_path).files == 1

    def test_the_database_is_not_deleted_although_a_row_names_it(self, tmp_path: Path, database_url: str) -> None:
        for name in ("generations.db", "generations.db-wal"):
            store(91, file_path=str(tmp_path / name))
        prune_generations(older_than=DAYS_90, delete_files_under=tmp_path)
        if is_sqlite(database_url):
            assert (tmp_path / "generations.db").exists()
        with get_session() as session:
            assert count_generations(session) == 0


def test_more_than_half_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "SUSPICIOUS_ROWS", 5)
    fill(20)
    assert prune_generations(older_than=timedelta(0), keep_favorites=False, dry_run=True).rows > 10
    with pytest.raises(PruneError, match="force"):
        prune_generations(older_than=timedelta(0), keep_favorites=False)
    with get_session() as session:
        assert count_generations(session) == 20
    assert prune_generations(older_than=timedelta(0), keep_favorites=False, force=True).rows > 10


def test_attempts_go_and_variations_stay(db: Storage) -> None:
    parent = store(91)
    child = store(1, parent_id=parent)
    prune_generations(older_than=DAYS_90)
    with get_session() as session:
        assert session.get_one(Generation, child).parent_id is None


def test_progress_is_reported_up_to_the_total() -> None:
    for _ in range(3):
        store(91)
    seen: list[tuple[str, int, int]] = []
    prune_generations(older_than=DAYS_90, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("prune", 3, 3)


def test_times_in_another_form_are_counted_in_the_same_hour(db: Storage, database_url: str) -> None:
    if not is_sqlite(database_url):
        return
    ids = [store(91) for _ in range(3)]
    forms = ["2026-01-01 10:59:59", "2026-01-01T10:00:00.5", "2026-01-01 10:30:00.123"]
    script = "".join(
        f"UPDATE generations SET created_at = '{form}', completed_at = '{form}' WHERE id = '{id}';"
        for id, form in zip(ids, forms, strict=True)
    )
    run_script(database_url, "PRAGMA ignore_check_constraints = ON;" + script)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    with get_session() as session:
        before = get_usage(session, since=since, bucket="hour")
    assert prune_generations(older_than=timedelta(0)).rows == 3
    with get_session() as session:
        assert get_usage(session, since=since, bucket="hour") == before
        assert {total.event for total in session.scalars(select(UsageTotal))} == {"created", "completed"}


def test_a_batch_reads_only_its_rows(db: Storage) -> None:
    """SQLite would take the index on the status, and read all rows of these statuses for each batch."""
    fill(400)
    with statements_on(db.engine, "SELECT generations.id", "DELETE FROM generations") as sent:
        prune_generations(older_than=DAYS_90)
    assert len(sent) > 4
    for statement, parameters in sent:
        with db.engine.connect() as connection:
            word = "EXPLAIN QUERY PLAN" if is_sqlite(str(db.url)) else "EXPLAIN"
            plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{word} {statement}", parameters))
        assert "idx_generations_status" not in plan
        if is_sqlite(str(db.url)):
            assert "(id=?)" in plan or "idx_generations_completed_at (completed_at" in plan, plan


class TestSpace:
    def test_pruning_returns_the_space(self, db: Storage, database_url: str) -> None:
        with get_session() as session:
            create_generations(session, [a_request(prompt=f"prompt {number} " * 30) for number in range(3_000)])
            session.execute(update(Generation).values(status="failed", completed_at=NOW - timedelta(days=91)))
        with db.engine.connect() as connection:
            before, _ = db.backend.measure_space(connection)
        assert prune_generations(older_than=DAYS_90, force=True).rows == 3_000
        with db.engine.connect() as connection:
            after, unused = db.backend.measure_space(connection)
        assert unused == 0
        assert not is_sqlite(database_url) or after < before * 0.7

    @pytest.mark.parametrize("full", [False, True])
    def test_optimizing_keeps_every_row(self, db: Storage, database_url: str, full: bool) -> None:
        fill(200)
        before = stored_ids()
        done = optimize_database(full=full)
        assert done.size_bytes > 0
        assert done.unused_bytes == 0
        assert stored_ids() == before

    def test_an_older_file_shrinks_only_when_it_is_rebuilt(self, db: Storage, database_url: str) -> None:
        if not is_sqlite(database_url):
            return
        run_script(database_url, "PRAGMA auto_vacuum = NONE; VACUUM")
        fill(2_000)
        with get_session() as session:
            session.execute(text("DELETE FROM generations"))
        done = optimize_database()
        assert done.unused_bytes > 0
        rebuilt = optimize_database(full=True)
        assert rebuilt.unused_bytes == 0
        assert rebuilt.size_bytes < done.size_bytes
        assert ask(database_url, "PRAGMA auto_vacuum") == [(2,)]

    def test_the_file_gets_smaller_although_another_connection_writes_at_the_end(
        self, db: Storage, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkpoint beside a commit does not cut the file, and may damage it: see ADR 3."""
        if not is_sqlite(database_url):
            return
        path, sizes = path_of(database_url), []
        with get_session() as session:
            create_generations(session, [a_request(prompt=f"prompt {number} " * 30) for number in range(2_000)])
            session.execute(text("DELETE FROM generations"))
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

        def commit() -> None:
            sizes.append(path.stat().st_size)
            other.execute("COMMIT")

        write_log = SQLiteSpace.write_log

        def interrupted(self: Any, connection: Any) -> bool:
            if not sizes:
                sizes.append(path.stat().st_size)
                other.execute("BEGIN IMMEDIATE")
                other.execute("UPDATE queue_state SET reason = NULL")
                Timer(0.2, commit).start()
            return write_log(self, connection)

        monkeypatch.setattr(SQLiteSpace, "write_log", interrupted)
        done = optimize_database()
        other.close()
        before, while_locked = sizes
        assert before == while_locked
        assert path.stat().st_size == done.size_bytes < before
