"""Sessions: transactions, concurrency, retries, opening a database, and the file on disk."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from services.storage import (
    ConflictError,
    NotInitializedError,
    RetryableError,
    SchemaOutdatedError,
    SchemaTooNewError,
    Storage,
    count_generations,
    get_all_generations,
    get_engine,
    get_generation,
    get_prompt_by_text,
    get_session,
    get_storage,
    init_db,
    run_in_transaction,
    track_prompt_usage,
)
from services.storage.backends import sqlite
from services.storage.errors import BusyError
from tests.support.factories import a_generation
from tests.support.sessions import at_once, path_of, undone, used_count
from tests.support.sqlite_module import sqlite3


@contextmanager
def statements(engine: Any = Engine) -> Iterator[list[str]]:
    """Collect every statement that reaches a driver."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


class TestTransactions:
    def test_a_session_commits_at_the_end_and_rolls_back_on_any_exception(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session)
        for kind in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
            with pytest.raises(kind), get_session() as session:  # noqa: PT012 - the last line is what raises
                a_generation(session)
                raise kind
        with get_session() as session:
            assert count_generations(session) == 1

    def test_savepoints_nest(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session, prompt="outer")
            with session.begin_nested():
                a_generation(session, prompt="kept")
                with undone(session.begin_nested()):
                    a_generation(session, prompt="dropped")
            with undone(session.begin_nested()), session.begin_nested():
                a_generation(session, prompt="dropped with its parent")
        with get_session() as session:
            assert {generation.prompt for generation in get_all_generations(session)} == {"outer", "kept"}
        assert used_count("dropped") == 0

    def test_a_savepoint_is_rolled_back_with_its_transaction(self, db: Storage) -> None:
        with undone(get_session()) as session, session.begin_nested():
            a_generation(session)
        with get_session() as session:
            assert count_generations(session) == 0

    def test_textual_sql_that_starts_with_a_cte_is_part_of_the_transaction(self, db: Storage) -> None:
        with get_session() as session:
            track_prompt_usage(session, "lo-fi")
        with undone(get_session()) as session:
            session.execute(text("WITH one AS (SELECT 1) UPDATE prompts SET used_count = 9"))
        assert used_count("lo-fi") == 1

    def test_connections_of_the_engine_follow_the_same_rules(self, db: Storage) -> None:
        with get_engine().begin() as connection:
            connection.execute(text("SELECT 1"))
            connection.execute(text("DELETE FROM prompts"))
        with undone(get_engine().begin()) as connection:
            connection.execute(text("INSERT INTO queue_state (id) VALUES (1)"))
        with get_engine().connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM queue_state")) == 0

    def test_autocommit_is_possible_and_leaves_no_trace_on_the_connection(self, db: Storage) -> None:
        for _ in range(3):
            with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM")
                connection.exec_driver_sql("DELETE FROM queue_state")
            with undone(get_session()) as session:
                a_generation(session)
        with get_session() as session:
            assert count_generations(session) == 0

    def test_two_storages_can_be_open_side_by_side(self, db: Storage, tmp_path: Path) -> None:
        init_db(f"sqlite:///{tmp_path}/other.db")
        with get_session() as session:
            a_generation(session)
        with db.session() as session:
            assert count_generations(session) == 0

    def test_sql_is_logged_on_request_without_values(self, sqlite_url: str) -> None:
        code = (
            "from services.storage import init_db, get_session\nfrom tests.support.factories import a_generation\n"
            f"init_db({sqlite_url!r}, echo=True)\n"
            "with get_session() as session: a_generation(session, prompt='a secret')"
        )
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "INSERT INTO generations" in run.stdout
        assert "secret" not in run.stdout + run.stderr


class TestConcurrency:
    def test_a_session_that_only_reads_blocks_no_writer(self, database_url: str) -> None:
        init_db(database_url, busy_timeout=0.1)
        with get_session() as reader:
            assert count_generations(reader) == 0
            for number in range(3):
                with get_session() as writer:
                    a_generation(writer)
                assert count_generations(reader) == number + 1

    def test_a_session_that_works_between_read_and_write_blocks_no_writer(self, database_url: str) -> None:
        init_db(database_url, busy_timeout=0.1)
        with get_session() as session:
            generation_id = a_generation(session).id
        with get_session() as worker:
            generation = get_generation(worker, generation_id)
            assert generation is not None
            generation.mark_processing()  # not flushed yet, so nothing is locked

            def write(number: int) -> None:
                with get_session() as session:
                    a_generation(session)

            at_once(1, write)
        with get_session() as session:
            assert count_generations(session) == 2
            assert count_generations(session, "processing") == 1

    def test_reading_before_writing_in_interleaved_sessions_never_fails(self, database_url: str) -> None:
        init_db(database_url, busy_timeout=0.1)
        for _ in range(5):
            with get_session() as first, get_session() as second:
                count_generations(first)
                count_generations(second)
                a_generation(first)
                first.commit()
                a_generation(second)  # with a plain BEGIN this raised SQLITE_BUSY_SNAPSHOT
        with get_session() as session:
            assert count_generations(session) == 10

    def test_threads_that_read_then_write_all_succeed(self, db: Storage) -> None:
        def work(number: int) -> None:
            for _ in range(10):
                with get_session() as session:
                    count_generations(session)
                    a_generation(session)

        at_once(4, work)
        with get_session() as session:
            assert count_generations(session) == 40
        assert used_count("trap beat 140 BPM") == 40

    def test_a_writer_waits_for_another_writer(self, sqlite_url: str) -> None:
        init_db(sqlite_url, busy_timeout=30)
        other = sqlite3.connect(path_of(sqlite_url), isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")

        def work(number: int) -> None:
            if number:
                other.execute("COMMIT")
            else:
                with get_session() as session:
                    a_generation(session)

        at_once(2, work)
        other.close()
        with get_session() as session:
            assert count_generations(session) == 1

    def test_a_writer_that_waits_too_long_gets_an_error_and_later_writes_work(self, sqlite_url: str) -> None:
        init_db(sqlite_url, busy_timeout=0.05)
        other = sqlite3.connect(path_of(sqlite_url), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with get_session() as session:
            count_generations(session)
            with pytest.raises(BusyError) as busy:
                a_generation(session, prompt="a secret prompt")
            session.rollback()
        assert busy.value.orig is not None
        assert "secret" not in f"{busy.value}{busy.value.orig}"
        other.execute("ROLLBACK")
        other.close()
        with get_session() as session:
            a_generation(session)
            assert count_generations(session) == 1


class TestRunInTransaction:
    def test_run_in_transaction_commits_and_returns_the_result(self, db: Storage) -> None:
        generation = run_in_transaction(a_generation)
        with get_session() as session:
            assert get_generation(session, generation.id) is not None

    def test_run_in_transaction_repeats_after_a_transient_error(self, db: Storage) -> None:
        tries: list[int] = []

        def work(session: Session) -> str:
            a_generation(session)
            tries.append(1)
            if len(tries) < 3:
                raise RetryableError
            return "done"

        assert run_in_transaction(work) == "done"
        with get_session() as session:
            assert count_generations(session) == 1

    def test_run_in_transaction_raises_after_its_attempts(self, db: Storage) -> None:
        tries: list[int] = []

        def work(session: Session) -> None:
            tries.append(1)
            raise BusyError

        with pytest.raises(BusyError):
            run_in_transaction(work, attempts=3)
        assert len(tries) == 3
        with pytest.raises(ValueError, match="attempts"):
            run_in_transaction(work, attempts=0)

    def test_run_in_transaction_does_not_repeat_permanent_errors(self, db: Storage) -> None:
        for error in (ValueError, ConflictError):
            tries: list[int] = []

            def work(session: Session, error: type[Exception] = error, tries: list[int] = tries) -> None:
                tries.append(1)
                raise error

            with pytest.raises(error):
                run_in_transaction(work)
            assert len(tries) == 1


class TestOpening:
    def test_the_default_database_is_in_the_data_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        init_db()
        assert (tmp_path / "data" / "generations.db").is_file()
        monkeypatch.setenv("DATABASE_URL", "")
        init_db()
        assert get_storage().url.database == str(tmp_path / "data" / "generations.db")

    def test_the_environment_is_read_when_a_session_is_opened(
        self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", sqlite_url)
        with get_session() as session:
            assert count_generations(session) == 0
        assert get_storage().url.database == str(path_of(sqlite_url))

    def test_the_file_and_its_folders_are_created_for_the_owner_alone(self, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            init_db(f"sqlite:///{tmp_path}/a folder/of its own/generations.db")
            with get_session() as session:
                a_generation(session)
                names = ("generations.db", "generations.db-wal", "generations.db-shm")
                folder = tmp_path / "a folder" / "of its own"
                assert [stat.S_IMODE((folder / name).stat().st_mode) for name in names] == [0o600] * 3
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        finally:
            os.umask(before)

    def test_the_file_keeps_the_permissions_it_has(self, sqlite_url: str) -> None:
        path_of(sqlite_url).chmod(0o640)
        init_db(sqlite_url)
        assert stat.S_IMODE(path_of(sqlite_url).stat().st_mode) == 0o640

    def test_connections_have_the_documented_settings(self, sqlite_url: str) -> None:
        for name, number in {"FULL": 2, "NORMAL": 1}.items():
            init_db(sqlite_url, synchronous=name)
            with get_session() as session:
                values = {
                    pragma: session.scalar(text(f"PRAGMA {pragma}"))
                    for pragma in ("journal_mode", "synchronous", "foreign_keys")
                }
            assert values == {"journal_mode": "wal", "synchronous": number, "foreign_keys": 1}
        with pytest.raises(ValueError, match="synchronous"):
            init_db(sqlite_url, synchronous="OFF")

    def test_a_change_of_folder_does_not_change_the_database(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        init_db("sqlite:///here.db")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        get_engine().dispose()
        with get_session() as session:
            a_generation(session)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_opening_a_database_at_head_sends_one_query(self, database_url: str) -> None:
        with statements() as seen:
            init_db(database_url)
        own = [statement for statement in seen if statement.startswith(("SELECT version_num", "PRAGMA"))]
        assert len(own) == 1
        assert own[0].startswith("SELECT version_num FROM alembic_version")
        if database_url.startswith("sqlite"):
            assert seen == own  # on PostgreSQL, SQLAlchemy sends queries of its own
        with statements() as seen:
            init_db(database_url)
        assert seen == own

    def test_init_db_with_the_same_url_keeps_the_storage_and_with_another_replaces_it(self, database_url: str) -> None:
        init_db(database_url)
        first = get_storage()
        init_db(database_url)
        assert get_storage() is first
        init_db(database_url, busy_timeout=1)
        assert get_storage() is not first

    def test_sessions_of_the_previous_storage_can_still_commit(self, database_url: str, tmp_path: Path) -> None:
        init_db(database_url)
        first = get_storage()
        with get_session() as session:
            a_generation(session)
            init_db(f"sqlite:///{tmp_path}/other.db")
        with first.session() as session:
            assert count_generations(session) == 1

    def test_a_session_does_not_create_a_missing_database(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/folder/missing.db"
        with pytest.raises(NotInitializedError, match=r"init_db\(\)") as missing, Storage(url).session():
            pass
        assert "just db-init" in str(missing.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_database_without_tables_is_not_initialized(self, empty_database_url: str) -> None:
        with pytest.raises(NotInitializedError, match="just db-init"), Storage(empty_database_url).session():
            pass

    @pytest.mark.parametrize(("revision", "error"), [("001", SchemaOutdatedError), ("999", SchemaTooNewError)])
    def test_a_database_with_another_schema_is_refused(
        self, database_url: str, revision: str, error: type[Exception]
    ) -> None:
        storage = Storage(database_url)
        with storage.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        with pytest.raises(error), storage.session():
            pass

    def test_the_schema_is_checked_once(self, db: Storage) -> None:
        with statements(db.engine) as seen:
            for _ in range(3):
                with get_session() as session:
                    count_generations(session)
        assert not [statement for statement in seen if "alembic_version" in statement]

    def test_a_missing_table_at_head_is_reported(self, db: Storage) -> None:
        with get_session() as session:
            session.execute(text("DROP TABLE attempts"))
            session.commit()
            with pytest.raises(NotInitializedError):
                session.execute(text("SELECT * FROM attempts"))
            session.rollback()


class TestWriteAheadLog:
    AFFECTED = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 49, 2), (3, 50, 6), (3, 51, 0), (3, 51, 2)]
    SOUND = [(3, 6, 23), (3, 44, 6), (3, 44, 7), (3, 50, 7), (3, 50, 9), (3, 51, 3), (3, 52, 0), (4, 0, 0)]

    @pytest.mark.parametrize(
        ("version", "affected"), [*((version, True) for version in AFFECTED), *((version, False) for version in SOUND)]
    )
    def test_the_versions_of_sqlite_with_the_wal_reset_bug_are_known(
        self, version: tuple[int, ...], affected: bool
    ) -> None:
        assert sqlite.has_wal_reset_bug(version) is affected

    @pytest.fixture(params=["affected", "sound"])
    def version(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """Simulate a version of SQLite with the bug, and one without."""
        monkeypatch.setattr(sqlite, "has_wal_reset_bug", lambda version: request.param == "affected")
        return str(request.param)

    def name(self, kind: str, path: Path) -> str:
        if kind == "link":
            link = path.parent / "link.db"
            link.symlink_to(path)
            return f"sqlite:///{link}"
        return f"sqlite:///file:{path}?uri=true" if kind == "uri" else f"sqlite:///{path}"

    @pytest.mark.parametrize("kind", ["path", "link", "uri"])
    def test_the_wal_stays_small_however_much_is_written(self, sqlite_url: str, version: str, kind: str) -> None:
        path = path_of(sqlite_url)
        init_db(self.name(kind, path), synchronous="NORMAL")
        with get_session() as session:
            automatic = session.scalar(text("PRAGMA wal_autocheckpoint"))
        assert automatic == (0 if version == "affected" else 1_000)
        log, largest = Path(f"{path}-wal"), 0
        for number in range(60):
            with get_session() as session:
                track_prompt_usage(session, f"{number} {'🎵' * 9_000}")
                a_generation(session, metadata={"x": "x" * 60_000}, parameters={"x": "x" * 60_000})
                session.execute(text("UPDATE generations SET current_step = 'x'"))
            largest = max(largest, log.stat().st_size)
        assert largest < 16 * 1024 * 1024
        with get_session() as session:
            assert count_generations(session) == 60

    def test_a_long_reader_delays_the_checkpoint_and_no_writer(self, sqlite_url: str, version: str) -> None:
        init_db(sqlite_url, synchronous="NORMAL", busy_timeout=0.05)
        with get_session(read_only=True) as reader:
            assert count_generations(reader) == 0
            for _ in range(50):
                with get_session() as session:
                    a_generation(session, metadata={"x": "x" * 60_000}, parameters={"x": "x" * 60_000})
            assert count_generations(reader) == 0
        for _ in range(20):
            with get_session() as session:
                a_generation(session, metadata={"x": "x" * 60_000}, parameters={"x": "x" * 60_000})
        with get_session() as session:
            assert session.scalar(text("PRAGMA busy_timeout")) == 50
            assert count_generations(session) == 70


def test_the_repr_of_a_storage_contains_no_password() -> None:
    shown: Callable[[str], str] = lambda url: repr(Storage(url))  # noqa: E731
    assert shown("postgresql://user:secret@host/db") == "<Storage postgresql+psycopg://user:***@host/db>"
    for name in ("password", "sslpassword", "PassWord", "api_key", "token", "pwd"):
        assert "secret" not in shown(f"postgresql://user@host/db?{name}=secret&application_name=box")
        assert "application_name=box" in shown(f"postgresql://user@host/db?{name}=secret&application_name=box")


def test_a_prompt_read_by_its_text_uses_the_unique_index(db: Storage) -> None:
    with get_session() as session:
        for number in range(200):
            track_prompt_usage(session, f"prompt {number}")
        with statements(db.engine) as seen:
            get_prompt_by_text(session, "prompt 7")
        explain = "EXPLAIN QUERY PLAN " if db.engine.dialect.name == "sqlite" else "EXPLAIN "
        if explain == "EXPLAIN ":
            session.execute(text("SET enable_seqscan = off"))  # a full scan is faster for so few rows
        connection = session.connection()
        values = ("prompt 7",) if "?" in seen[-1] else {"text": "prompt 7"}
        plan = " ".join(str(row) for row in connection.exec_driver_sql(explain + seen[-1], values))
        assert "uq_prompts_text_md5" in plan or "sqlite_autoindex_prompts_1" in plan
