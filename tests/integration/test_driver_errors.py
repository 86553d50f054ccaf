"""Errors of the drivers become errors of this library, with a hint and without prompts and passwords."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    Prompt,
    Storage,
    StorageError,
    complete_generation,
    count_generations,
    get_all_generations,
    get_generation,
    get_session,
    get_storage,
    init_db,
    track_prompt_usage,
)
from services.storage.errors import (
    BusyError,
    ConflictError,
    ConstraintError,
    CorruptError,
    DatabaseURLError,
    DisconnectedError,
    FullError,
    PoolTimeoutError,
    ReadOnlyError,
    SerializationError,
    StatementTimeoutError,
    UnreachableError,
)
from tests.conftest import administer
from tests.support.factories import a_generation, a_request
from tests.support.rows_that_break_checks import break_row
from tests.support.sessions import at_once, path_of
from tests.support.sqlite_module import sqlite3

SECRET = "a secret prompt"
POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def all_text(error: BaseException) -> str:
    """Return everything that a log would contain: message, original error, chain and traceback."""
    return "".join(traceback.format_exception(error)) + str(getattr(error, "orig", ""))


def refused(kind: type[BaseException], work: Callable[[Session], Any]) -> BaseException:
    """Run `work` in a session that fails; return its error, after a check that it contains no secret."""
    with pytest.raises(kind) as refusal, get_session() as session:
        work(session)
    assert "a secret" not in all_text(refusal.value)
    return refusal.value


class TestURLs:
    @pytest.mark.parametrize(
        "url",
        [
            "generations.db",
            "sqlite:/generations.db",
            "sqlite://secret@host/generations.db",
            "sqlite:///generations.db?timeout=secret",
            "sqlite:///secret\0.db",
            "postgresql://user:secret@host:port/db",
            "mysql://user:secret@host/db",
            "oracle+cx://user:secret@host/db",
            "nonsense://user:secret@host/db",
            " ",
            "://",
        ],
        ids=repr,
    )
    def test_an_invalid_url_gives_an_error_with_the_right_form(self, url: str) -> None:
        with pytest.raises(DatabaseURLError, match=r"sqlite:///path/to/file\.db or postgresql://") as error:
            init_db(url)
        assert "secret" not in str(error.value)
        assert error.value.__context__ is None

    @pytest.mark.parametrize(
        "url",
        [
            *(
                "postgresql://user:pa@ssecret@host/db",
                "postgres://user:pa@ssecret@host:5432/db",
                "postgresql://u:@secret@h",
            ),
            *(
                "postgresql://user:pa@secret@one:1,two:2/db",
                "postgresql://us/er:secret@host/db",
                "postgresql://u:p@se cret/x",
            ),
            *("postgresql://user@host/db?host=u:p@secret", "postgresql://us/er:1,2secret@host/db"),
        ],
    )
    def test_a_password_that_would_be_read_as_a_host_is_not_shown(self, url: str) -> None:
        for replicas in (False, True):
            with pytest.raises(DatabaseURLError) as error:
                Storage("postgresql://host/db", replica_urls=[url]) if replicas else Storage(url)
            assert "cret" not in str(error.value) + repr(error.value.__context__)

    @pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {} ", '"{}"', "'{}'\n", "\ufeff{}", "\t{}", '" {}"'])
    def test_what_files_of_variables_leave_around_a_url_is_no_part_of_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DATABASE_URL", around.format("sqlite:///g.db"))
        init_db()
        assert {path.name for path in tmp_path.iterdir()} <= {"g.db", "g.db-wal", "g.db-shm"}
        replica = Storage("postgresql://u@h/n", replica_urls=[around.format("postgresql://a,b:p,w@host/db")])
        assert replica.replicas is not None
        assert (replica.replicas.urls[0].username, replica.replicas.urls[0].password) == ("a,b", "p,w")

    @pytest.mark.parametrize(
        "url", ["sqlite:///g.db\nx", "sqlite:///g.db'", '"sqlite:///g.db', "sqlite:///g\r.db", "\n"]
    )
    def test_a_url_with_a_line_end_or_a_single_quote_is_refused(self, url: str) -> None:
        with pytest.raises(DatabaseURLError):
            Storage(url)

    @pytest.mark.parametrize("userinfo", ["us,er:secret", "user:sec,ret", "a,b:c,d", "user:p%40s,s"])
    @pytest.mark.parametrize("hosts", ["host", "host:5432", "one:1,two:2", "one,two"])
    def test_a_comma_in_a_user_name_or_password_is_part_of_it(self, userinfo: str, hosts: str) -> None:
        name, password = userinfo.split(":")
        url = Storage(f"postgresql://{userinfo}@{hosts}/db").url
        assert (url.username, url.password, url.database) == (name, password.replace("%40", "@"), "db")

    def test_no_text_of_an_engine_shows_a_secret(self) -> None:
        storage = Storage(
            "postgresql://u:hunter1@h/db?password=hunter2&sslpassword=hunter3",
            replica_urls=["postgresql://r:hunter4@h/db"],
        )
        assert storage.replicas is not None
        for engine in (*storage.engines, storage.backend.create_migration_engine(storage.url, storage.options)):
            shown = f"{engine!r} {engine} {engine.url} {engine.url!r} {engine.pool!r} {storage!r} {storage.url}"
            assert "hunter" not in shown
            assert "***" in repr(engine)
        _, arguments = storage.engine.dialect.create_connect_args(storage.engine.url)
        assert (arguments["password"], arguments["sslpassword"]) == ("hunter2", "hunter3")
        assert "hunter1" in storage.url.render_as_string(hide_password=False)

    def test_a_url_with_an_ignored_part_gives_an_error_with_the_right_form(self, sqlite_url: str) -> None:
        with pytest.raises(
            DatabaseURLError, match=r"To set mode, write the database URL as sqlite:///file:PATH\?mode="
        ):
            Storage(f"{sqlite_url}?mode=ro")
        storage = Storage(f"{sqlite_url.replace('sqlite:///', 'sqlite:///file:')}?mode=ro")
        with storage.session() as session, pytest.raises(ReadOnlyError):
            track_prompt_usage(session, "lofi")
        storage.dispose()

    def test_a_url_that_is_not_text_is_refused(self) -> None:
        with pytest.raises(DatabaseURLError, match="database_url must be text"):
            init_db(5)  # type: ignore[arg-type]

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
    def test_every_postgresql_scheme_uses_psycopg(self, scheme: str) -> None:
        assert Storage(f"{scheme}://user@host/db").url.drivername == "postgresql+psycopg"

    @pytest.mark.parametrize(
        "url", ["postgresql://u:secret@127.0.0.1:1/db", "postgresql://u@127.0.0.1:1/db?password=secret"]
    )
    def test_a_missing_server_is_unreachable(self, url: str) -> None:
        with pytest.raises(UnreachableError, match=r"check DATABASE_URL.*127\.0\.0\.1:1/db") as error:
            init_db(url)
        assert "secret" not in str(error.value) + str(error.value.orig)
        with pytest.raises(UnreachableError), Storage(url).session():
            pass

    def test_a_missing_database_or_role_is_unreachable(self, postgresql_server: str) -> None:
        for url in (
            make_url(postgresql_server).set(database="nobody_made_this"),
            make_url(postgresql_server).set(username="nobody", password="secret"),
        ):
            with pytest.raises(UnreachableError, match="check DATABASE_URL") as error:
                init_db(url.render_as_string(hide_password=False))
            assert "secret" not in str(error.value) + str(error.value.orig)


class TestFiles:
    def test_a_file_that_is_not_a_database_is_reported(self, tmp_path: Path) -> None:
        path = tmp_path / "random.db"
        path.write_bytes(os.urandom(20_000))
        content = path.read_bytes()
        with pytest.raises(CorruptError, match="restore a backup"):
            init_db(f"sqlite:///{path}")
        assert path.read_bytes() == content

    def test_a_damaged_file_is_reported(self, sqlite_url: str) -> None:
        init_db(sqlite_url)
        with get_session() as session:
            for number in range(50):
                a_generation(session, prompt=f"prompt {number}")
        get_storage().dispose()
        path = path_of(sqlite_url)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'generations'").fetchone()[0]
        connection.close()
        with path.open("r+b") as file:
            file.seek((page - 1) * 4_096)
            file.write(b"\xaa" * 4_096)
        with pytest.raises(CorruptError, match="restore a backup"), get_session() as session:
            get_all_generations(session)

    def test_a_folder_in_place_of_the_file_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(UnreachableError, match="check DATABASE_URL"):
            init_db(f"sqlite:///{tmp_path}")

    @pytest.mark.parametrize("name", ["file.txt/generations.db", "x" * 300 + ".db"])
    def test_a_file_that_cannot_be_created_is_reported(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file.txt").touch()
        with pytest.raises(UnreachableError, match="cannot be created"):
            init_db(f"sqlite:///{tmp_path}/{name}")

    def test_a_full_disk_is_reported_and_later_writes_work(self, sqlite_url: str) -> None:
        init_db(sqlite_url)
        with get_session() as session:
            a_generation(session, prompt="before")

        def fill(session: Session) -> None:
            pages = session.scalar(text("PRAGMA page_count"))
            session.execute(text(f"PRAGMA max_page_count = {pages}"))
            for number in range(100):
                a_generation(session, prompt=f"{SECRET} {number} " * 500)

        error = refused(FullError, fill)
        assert "nothing was half-written" in str(error)
        with get_session() as session:
            session.execute(text("PRAGMA max_page_count = 1000000"))
            assert count_generations(session) == 1
            a_generation(session, prompt="after")
        with get_session() as session:
            assert {generation.prompt for generation in get_all_generations(session)} == {"before", "after"}

    def test_stored_text_that_is_not_utf_8_is_read_with_replacement_characters(self, sqlite_url: str) -> None:
        init_db(sqlite_url)
        with get_session() as session:
            generation_id = a_generation(session).id
            session.execute(text("UPDATE generations SET error_message = CAST(x'626fff6d' AS TEXT)"))
        with get_session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            assert generation.error_message == "bo\ufffdm"

    @pytest.mark.parametrize("unreadable", ["yesterday", "2026-13-01", "", 5, b"\xff"], ids=repr)
    def test_an_unreadable_stored_time_is_none_and_is_kept(self, sqlite_url: str, unreadable: Any) -> None:
        init_db(sqlite_url)
        with get_session() as session:
            generation_id = a_generation(session).id
        break_row(get_storage(), generation_id, created_at=unreadable)
        with get_session() as session:
            generation = get_all_generations(session)[0]
            assert generation.created_at is None
            assert generation.to_dict()["created_at"] is None
            generation.mark_processing()
        with get_session() as session:
            stored = session.execute(text("SELECT created_at, status FROM generations")).one()
            assert tuple(stored) == (unreadable, "processing")
            assert get_generation(session, generation_id) is not None

    @pytest.mark.parametrize("unreadable", ["not JSON", "", "{", b"\xff"], ids=repr)
    def test_unreadable_stored_metadata_is_kept(self, sqlite_url: str, unreadable: Any) -> None:
        init_db(sqlite_url)
        with get_session() as session:
            generation_id = a_generation(session).id
            change = text("UPDATE generations SET metadata = :value, parameters = :value")
            session.execute(change, {"value": unreadable})
        with get_session() as session:
            generation = get_generation(session, generation_id)
            assert generation is not None
            assert generation.metadata == unreadable
            assert generation.get_metadata() == {}
            assert generation.parameters is None
            with pytest.raises(ValueError, match="metadata"):
                complete_generation(session, generation_id, 1.0, 1, {"bpm": 140})
            complete_generation(session, generation_id, 1.0, 1)
        with get_session() as session:
            stored = session.execute(text("SELECT metadata, parameters, status FROM generations")).one()
            assert tuple(stored) == (unreadable, unreadable, "completed")


class TestConstraints:
    """The constraints of the database, which also hold for SQL written by hand."""

    @pytest.mark.parametrize(
        "change",
        [
            "channels = 3",
            "sample_rate = 0",
            "duration_seconds = -1",
            "duration_seconds = 1e301",
            "status = 'done'",
            "status = 'completed'",
            "completed_at = created_at",
            "progress = 1.5",
            "attempt = -1",
            "max_attempts = 0",
            "file_size_bytes = -1",
            "generation_time_seconds = -1",
            "lease_expires_at = created_at",
            "prompt = NULL",
            "prompt_id = 12345",
        ],
    )
    def test_a_row_that_breaks_a_constraint_is_refused_without_quoting_it(
        self, constrained: Storage, change: str
    ) -> None:
        with constrained.session() as session:
            with pytest.raises(ConstraintError) as refusal:
                session.execute(text(f"UPDATE generations SET {change}"))
            session.rollback()
        assert "a secret" not in all_text(refusal.value)
        assert "(" in str(refusal.value) or "prompt_id" in change  # names the constraint or the column

    @pytest.fixture
    def constrained(self, db: Storage) -> Storage:
        with db.session() as session:
            a_generation(session, prompt=SECRET)
        return db

    def test_an_object_that_breaks_a_constraint_is_refused_at_the_flush(self, db: Storage) -> None:
        def incomplete(session: Session) -> None:
            session.add(Generation(prompt=SECRET))

        def unfinished(session: Session) -> None:
            generation = a_generation(session, prompt=SECRET)
            generation.mark_completed(1.0)
            generation.completed_at = None

        for work in (incomplete, unfinished):
            assert isinstance(refused(ConstraintError, work), ValueError)

    def test_a_duplicate_prompt_or_id_is_a_conflict(self, db: Storage) -> None:
        def prompts(session: Session) -> None:
            session.add_all([Prompt(text=SECRET), Prompt(text=SECRET)])

        def ids(session: Session) -> None:
            for _ in range(2):
                session.add(Generation(**a_request(prompt=SECRET), id="same"))
                session.flush()
                session.expunge_all()

        for work in (prompts, ids):
            refused(ConflictError, work)

    def test_a_count_above_the_range_of_its_column_is_refused(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session, prompt=SECRET)
            session.execute(text("UPDATE prompts SET used_count = 2147483647"))
        refused(ConstraintError, lambda session: a_generation(session, prompt=SECRET))

    def test_invalid_sql_gives_the_error_of_sqlalchemy_without_parameters(self, db: Storage) -> None:
        from sqlalchemy.exc import DBAPIError

        with pytest.raises(DBAPIError) as error, get_session() as session:
            session.execute(text("SELEKT :value"), {"value": SECRET})
        assert "a secret" not in all_text(error.value)


@POSTGRESQL
class TestPostgreSQL:
    @pytest.fixture
    def open_with(self, db: Storage) -> Iterator[Callable[..., Storage]]:
        """Return a function that opens the same database with other options."""
        opened: list[Storage] = []

        def open_with(**options: float) -> Storage:
            opened.append(Storage(db.url.render_as_string(hide_password=False), **options))  # type: ignore[arg-type]
            return opened[-1]

        yield open_with
        for storage in opened:
            storage.dispose()

    def test_a_statement_timeout_is_reported(self, open_with: Callable[..., Storage]) -> None:
        quick = open_with(statement_timeout=0.3)
        with pytest.raises(StatementTimeoutError), quick.session() as session:
            session.execute(text("SELECT pg_sleep(30)"))
        with quick.session() as session:
            a_generation(session)

    def test_a_lock_timeout_is_reported(self, open_with: Callable[..., Storage], db: Storage) -> None:
        quick = open_with(lock_timeout=0.1)
        with db.session() as other:
            other.execute(text("LOCK TABLE prompts"))
            with pytest.raises(BusyError) as error, quick.session() as session:
                a_generation(session, prompt=SECRET)
        assert "a secret" not in all_text(error.value)
        with quick.session() as session:
            assert count_generations(session) == 0

    def test_an_idle_transaction_timeout_is_reported(self, open_with: Callable[..., Storage]) -> None:
        quick = open_with(idle_transaction_timeout=0.2)
        with quick.session() as session:
            a_generation(session)
            wait_until_gone(session.scalar(text("SELECT pg_backend_pid()")) or 0)
            with pytest.raises(DisconnectedError):
                count_generations(session)
            session.rollback()
        with quick.session() as session:
            assert count_generations(session) == 0

    def test_a_pool_timeout_is_reported_and_the_next_session_works(self, open_with: Callable[..., Storage]) -> None:
        quick = open_with(pool_size=1, max_overflow=0, pool_timeout=0.1)
        with quick.engine.connect(), pytest.raises(PoolTimeoutError, match="pool_size"), quick.session():
            pass  # the check of the schema needs a connection too
        with quick.session() as session:
            count_generations(session)
            with pytest.raises(PoolTimeoutError, match="pool_size"), quick.session() as second:
                count_generations(second)
        with quick.session() as session:
            assert count_generations(session) == 0

    def test_a_connection_lost_while_idle_is_replaced_unnoticed(self, db: Storage, postgresql_server: str) -> None:
        with get_session() as session:
            a_generation(session)
        hang_up(db, postgresql_server)
        with get_session() as session:
            assert count_generations(session) == 1

    def test_a_connection_lost_in_use_rolls_back_the_transaction(self, db: Storage, postgresql_server: str) -> None:
        def work(session: Session) -> None:
            a_generation(session, prompt=SECRET)
            hang_up(db, postgresql_server)
            count_generations(session)

        refused(DisconnectedError, work)
        with get_session() as session:
            assert count_generations(session) == 0

    def test_a_lost_connection_is_retried(self, db: Storage, postgresql_server: str) -> None:
        tries: list[int] = []

        def work(session: Session) -> None:
            a_generation(session)
            tries.append(1)
            if len(tries) == 1:
                hang_up(db, postgresql_server)
                count_generations(session)

        db.run_in_transaction(work)
        with get_session() as session:
            assert count_generations(session) == 1

    def test_a_deadlock_is_reported(self, db: Storage) -> None:
        with get_session() as session:
            for name in ("first", "second"):
                a_generation(session, prompt=name)
        from threading import Barrier

        both, errors = Barrier(2), []

        def work(number: int) -> None:
            names = ("first", "second") if number else ("second", "first")
            try:
                with get_session() as session:
                    lock = text("SELECT 1 FROM prompts WHERE text = :text FOR UPDATE")
                    session.execute(lock, {"text": names[0]})
                    both.wait()
                    session.execute(lock, {"text": names[1]})
            except SerializationError as error:
                errors.append(error)

        at_once(2, work)
        assert len(errors) == 1

    def test_a_write_inside_a_query_of_a_read_only_session_is_refused(self, db: Storage) -> None:
        with pytest.raises(ReadOnlyError), get_session(read_only=True) as session:
            session.execute(text("SELECT nextval('prompts_id_seq')"))

    @pytest.mark.parametrize("query", ["SELECT CAST(prompt AS integer) FROM generations", "SELECT :value::jsonb"])
    def test_a_value_that_does_not_fit_is_not_quoted(self, db: Storage, query: str) -> None:
        with get_session() as session:
            a_generation(session, prompt=SECRET)
        query = query.replace(":value::jsonb", "CAST(:value AS jsonb)")
        values = {"value": "{" + SECRET} if "value" in query else {}
        refused(ConstraintError, lambda session: session.execute(text(query), values))

    @pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC", "20000-01-01"])
    def test_a_time_outside_the_range_of_python_is_none(self, db: Storage, time: str) -> None:
        with get_session() as session:
            generation_id = a_generation(session).id
        break_row(db, generation_id, created_at=time)
        with get_session() as session:
            assert [generation.created_at for generation in get_all_generations(session)] == [None]

    def test_options_in_the_url_override_those_of_the_library(self, db: Storage, postgresql_server: str) -> None:
        url = db.url.update_query_dict({"options": "-c statement_timeout=4321"})
        storage = Storage(url.render_as_string(hide_password=False))
        with storage.session() as session:
            assert session.scalar(text("SHOW statement_timeout")) == "4321ms"
            assert session.scalar(text("SHOW lock_timeout")) == "10s"
        storage.dispose()


def hang_up(db: Storage, server: str) -> None:
    """Close every connection to the database from the server's side."""
    administer(
        server, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{db.url.database}'"
    )


def wait_until_gone(pid: int) -> None:
    with get_storage().engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        question = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
        while connection.scalar(question, {"pid": pid}):
            pass


def test_without_psycopg_the_error_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['psycopg'] = None\nfrom services.storage import Storage, DriverMissingError\n"
        "try: Storage('postgresql://u:secret@host/db')\nexcept DriverMissingError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'dgx-music-storage[postgres]'" in run.stdout
    assert "secret" not in run.stdout + run.stderr


def test_every_driver_error_is_a_storage_error(sqlite_url: str) -> None:
    init_db(sqlite_url, busy_timeout=0.01)
    other = sqlite3.connect(path_of(sqlite_url), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused(StorageError, lambda session: a_generation(session, prompt=SECRET))
    other.close()
