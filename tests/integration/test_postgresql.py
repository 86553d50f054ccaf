"""Only on PostgreSQL: settings, pool, timeouts, restarts, forks and large values."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from sqlalchemy import make_url, text

from services.storage import (
    AccessDeniedError,
    BusyError,
    DisconnectedError,
    PoolTimeoutError,
    StatementTimeoutError,
    Storage,
    UnreachableError,
    count_generations,
    get_generation,
    get_prompt_by_text,
    migrations,
)
from services.storage.backends import postgresql
from services.storage.backends.postgresql import dump_jsonb
from tests.support.factories import a_generation
from tests.support.servers import PASSWORD, Server, both_hosts, server_folder


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_folder() as folder:
        server = Server.create(folder / "primary", "max_prepared_transactions = 0")
        migrations.upgrade(Storage(server.url()))
        yield server


@pytest.fixture
def storage(server: Server) -> Iterator[Storage]:
    storage = Storage(server.url())
    yield storage
    storage.dispose()


def show(storage: Storage, setting: str) -> str | None:
    with storage.session() as session:
        return session.scalar(text("SELECT current_setting(:name)"), {"name": setting})


# --- addresses


def test_a_password_can_contain_characters_that_need_quoting(server: Server) -> None:
    assert {"%", "@", ":", "/", "?"} <= set(PASSWORD)
    storage = Storage(server.url())
    with storage.session() as session:
        assert session.scalar(text("SELECT 1")) == 1
    assert PASSWORD not in repr(storage)
    storage.dispose()


def test_the_postgres_scheme_is_accepted(server: Server) -> None:
    storage = Storage(server.url().replace("postgresql://", "postgres://"))
    assert storage.read_revision() is not None
    storage.dispose()


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://u:p%40@one:5433,two/name",
        "postgresql://u:p%40@/name?host=one:5433&host=two:5432",
        "postgres://u:p%40@one:5433,two:5432/name?target_session_attrs=read-write",
    ],
)
def test_several_hosts_can_be_named_in_every_form_and_the_primary_is_found(given: str) -> None:
    storage = Storage(given)
    _, arguments = storage.engine.dialect.create_connect_args(storage.url)
    assert arguments["host"] == "one,two"
    assert arguments["port"] == "5433,5432"
    assert arguments["password"] == "p@"
    assert arguments["target_session_attrs"] == "read-write"


def test_a_wrong_password_is_not_in_the_error_message(server: Server) -> None:
    storage = Storage(f"postgresql://dgx:hunter2@127.0.0.1:{server.port}/postgres")
    with pytest.raises(UnreachableError) as caught:
        storage.read_revision()
    assert "hunter2" not in str(caught.value)


def test_a_missing_privilege_gives_an_error_that_names_the_grant(server: Server) -> None:
    server.query("CREATE ROLE guest LOGIN PASSWORD 'hunter2'")
    storage = Storage(f"postgresql://guest:hunter2@127.0.0.1:{server.port}/postgres")
    with pytest.raises(AccessDeniedError, match="GRANT"), storage.session():
        pass
    storage.dispose()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_prompt_is_refused(server: Server, encoding: str) -> None:
    server.query(f"CREATE DATABASE {encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    storage = Storage(server.url().replace("/postgres", f"/{encoding.lower()}"))
    with pytest.raises(UnreachableError, match="--encoding=UTF8"):
        migrations.upgrade(storage)
    with pytest.raises(UnreachableError, match="--encoding=UTF8"):
        storage.read_revision()
    storage.dispose()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "refused the user or the password"),
        ({"username": "nobody"}, "refused the user or the password"),
        ({"database": "nothing"}, "no database of that name"),
        ({"host": "no-such-host.invalid"}, "host is unknown"),
        ({"port": 1}, "no server answers there"),
    ],
)
def test_what_keeps_it_from_being_opened_is_named(server: Server, change: dict[str, str | int], message: str) -> None:
    url = make_url(server.url()).set(**change)  # type: ignore[arg-type]
    storage = Storage(url.render_as_string(hide_password=False))
    with pytest.raises(UnreachableError, match=rf"{message}.*check DATABASE_URL.*\({re.escape(storage.display_url)}\)"):
        storage.require_schema()
    storage.dispose()


@contextmanager
def all_connections_taken(server: Server) -> Iterator[Callable[[], None]]:
    """Use up the server's connections; yield a function that closes one of them."""
    taken: list[psycopg.Connection] = []
    try:
        with suppress(psycopg.OperationalError):
            while True:
                taken.append(psycopg.connect(server.url()))
        yield lambda: taken.pop().close()
    finally:
        for connection in taken:
            connection.close()


def test_a_server_without_a_free_connection_is_busy(server: Server) -> None:
    storage = Storage(server.url())
    with all_connections_taken(server) as close_one:
        with pytest.raises(BusyError, match=r"no more connections now.*max_connections"):
            storage.require_schema()
        close_one()
        storage.require_schema()
        storage.dispose()
        close_one()
    storage.dispose()


def test_a_transaction_waits_for_a_free_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(server.url())
    storage.require_schema()
    storage.dispose()
    with all_connections_taken(server) as close_one:
        monkeypatch.setattr("services.storage.engine.time.sleep", lambda seconds: close_one())
        assert storage.run_in_transaction(lambda session: session.scalar(text("SELECT 1"))) == 1
    storage.dispose()


# --- settings


def test_settings_come_from_arguments_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "7")
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT", "1.5")
    monkeypatch.setenv("DATABASE_PGBOUNCER", "on")
    options = Storage("postgresql://u@h/d").options
    assert (options.pool_size, options.statement_timeout, options.pgbouncer) == (7, 1.5, True)
    options = Storage("postgresql://u@h/d", pool_size=3, statement_timeout=0, pgbouncer=False).options
    assert (options.pool_size, options.statement_timeout, options.pgbouncer) == (3, 0, False)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DATABASE_POOL_SIZE", "many"), ("DATABASE_LOCK_TIMEOUT", "soon"), ("DATABASE_PGBOUNCER", "maybe")],
)
def test_a_bad_setting_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable):
        Storage("postgresql://u@h/d")


@pytest.mark.parametrize(
    "options",
    [{"pool_size": 0}, {"max_overflow": -1}, {"lock_timeout": -1}, {"pool_timeout": float("inf")}, {"pool_size": 2.5}],
)
def test_a_bad_setting_is_named(options: dict[str, float]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        Storage("sqlite://", **options)  # type: ignore[arg-type]


def test_connections_carry_the_timeouts_and_a_name(storage: Storage) -> None:
    assert show(storage, "statement_timeout") == "1min"
    assert show(storage, "lock_timeout") == "10s"
    assert show(storage, "idle_in_transaction_session_timeout") == "5min"
    assert show(storage, "application_name") == "dgx-storage"


def test_options_in_the_url_override_the_defaults(server: Server) -> None:
    storage = Storage(server.url() + "?options=-c%20statement_timeout%3D7s&application_name=api")
    assert show(storage, "statement_timeout") == "7s"
    assert show(storage, "lock_timeout") == "10s"
    assert show(storage, "application_name") == "api"
    storage.dispose()


def test_behind_pgbouncer_no_statement_is_prepared_and_no_startup_option_is_sent(server: Server) -> None:
    storage = Storage(server.url(), pgbouncer=True)
    with storage.session() as session:
        for _ in range(10):
            a_generation(session)
        assert session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
    assert show(storage, "statement_timeout") == "0"
    storage.dispose()


# --- timeouts


def test_a_statement_that_runs_for_too_long_is_cancelled_and_the_next_one_works(server: Server) -> None:
    # The lock timeout is rounded up, because 0 would disable it.
    storage = Storage(server.url(), statement_timeout=0.5, lock_timeout=0.0004)
    assert show(storage, "lock_timeout") == "1ms"
    with pytest.raises(StatementTimeoutError), storage.session() as session:
        session.execute(text("SELECT pg_sleep(60)"))
    with storage.session() as session:
        assert session.scalar(text("SELECT 1")) == 1
    storage.dispose()


def test_a_row_lock_is_waited_for_no_longer_than_the_lock_timeout(server: Server, storage: Storage) -> None:
    hasty = Storage(server.url(), lock_timeout=0.05)
    with storage.session() as holder:
        generation = a_generation(holder)
        holder.commit()
        lock = text("SELECT 1 FROM generations WHERE id = :id FOR UPDATE")
        holder.execute(lock, {"id": generation.id})
        with pytest.raises(BusyError), hasty.session() as session:
            session.execute(lock, {"id": generation.id})
    with hasty.session() as session:
        session.execute(lock, {"id": generation.id})
    hasty.dispose()


def test_a_transaction_that_idles_for_too_long_is_ended_and_the_next_session_works(server: Server) -> None:
    storage = Storage(server.url(), idle_transaction_timeout=0.05)
    with pytest.raises(DisconnectedError), storage.session() as session:  # noqa: PT012
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        while server.query(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {backend}"):
            pass
        session.scalar(text("SELECT 1"))
    with storage.session() as session:
        assert session.scalar(text("SELECT 1")) == 1
    storage.dispose()


# --- pool


def test_a_pool_without_a_free_connection_is_a_typed_error_wherever_it_is_needed(server: Server) -> None:
    storage = Storage(server.url(), pool_size=1, max_overflow=0, pool_timeout=0.05)
    storage.require_schema()
    with storage.session() as first, storage.session() as second:
        first.scalar(text("SELECT 1"))
        with pytest.raises(PoolTimeoutError, match="pool_size"):
            second.scalar(text("SELECT 1"))
        with pytest.raises(PoolTimeoutError), storage.engine.connect():
            pass
        first.rollback()
        assert second.scalar(text("SELECT 1")) == 1
    storage.dispose()


def test_twenty_threads_on_a_small_pool_get_a_typed_timeout_and_recover(server: Server) -> None:
    storage = Storage(server.url(), pool_size=2, max_overflow=0, pool_timeout=0.05)
    storage.require_schema()
    taken = threading.Barrier(3)
    done = threading.Event()
    timeouts: list[Exception] = []
    stored: list[str] = []

    def hold() -> None:
        with storage.session() as session:
            session.scalar(text("SELECT 1"))
            taken.wait()
            done.wait()

    def use() -> None:
        try:
            with storage.session() as session:
                session.scalar(text("SELECT 1"))
        except PoolTimeoutError as error:
            timeouts.append(error)

    def recover() -> None:
        patient.run_in_transaction(lambda session: stored.append(a_generation(session).id))

    run(hold, 2, lambda: (taken.wait(), run(use, 18), done.set()))
    assert len(timeouts) == 18
    assert isinstance(timeouts[0], TimeoutError)
    patient = Storage(server.url(), pool_size=2, max_overflow=0)
    run(recover, 20)
    assert len(stored) == 20
    use()
    assert len(timeouts) == 18
    for each in (storage, patient):
        each.dispose()


def run(work: object, count: int, meanwhile: object = None) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    if callable(meanwhile):
        meanwhile()
    for thread in threads:
        thread.join()


def test_a_connection_is_pinged_only_after_it_was_idle(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect, pings = storage.engine.dialect, []
    ping = dialect.do_ping
    monkeypatch.setattr(dialect, "do_ping", lambda connection: pings.append(connection) or ping(connection))
    for seconds, expected in ((5.0, 0), (0.0, 1)):
        monkeypatch.setattr(postgresql, "PING_SECONDS", seconds)
        for _ in range(2):
            with storage.session() as session:
                session.scalar(text("SELECT 1"))
        assert len(pings) == 2 * expected


def test_an_idle_pool_does_not_notice_a_restart_of_the_server(server: Server, storage: Storage) -> None:
    def use() -> None:
        with storage.session() as session:
            a_generation(session)

    run(use, 4)
    server.stop()
    server.start()
    for _ in range(6):
        use()
    server.kill()
    server.start()
    for read_only in (True, False):
        with storage.session(read_only=read_only) as session:
            assert count_generations(session) > 0


def test_a_transaction_whose_connection_is_lost_is_run_again(server: Server, storage: Storage) -> None:
    runs = []

    def store(session: object) -> str:
        generation = a_generation(session)  # type: ignore[arg-type]
        runs.append(generation.id)
        if len(runs) == 1:
            server.query(f"SELECT pg_terminate_backend({session.scalar(text('SELECT pg_backend_pid()'))}, 10000)")  # type: ignore[attr-defined]
        session.flush()  # type: ignore[attr-defined]
        session.scalar(text("SELECT 1"))  # type: ignore[attr-defined]
        return generation.id

    last = storage.run_in_transaction(store)
    assert len(runs) == 2
    with storage.session() as session:
        assert get_generation(session, runs[0]) is None
        assert get_generation(session, last) is not None


def test_after_a_fork_children_and_parent_can_use_the_database(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fork_process", server.url(), "4", "25"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["125"]


# --- values


@pytest.mark.parametrize("letter", ["a", "音", "\U0001f3b5"])
def test_prompts_of_ten_thousand_characters_are_stored_and_found(storage: Storage, letter: str) -> None:
    prompt = letter * 9_999 + "!"
    with storage.session() as session:
        generation = a_generation(session, prompt=prompt)
        again = a_generation(session, prompt=prompt)
        assert again.prompt_id == generation.prompt_id
    with storage.session(read_only=True) as session:
        found = get_prompt_by_text(session, prompt)
        assert found is not None
        assert found.used_count == 2
        assert get_prompt_by_text(session, prompt[:-1]) is None


def test_a_file_size_of_five_gibibytes_can_be_stored(storage: Storage) -> None:
    with storage.session() as session:
        generation = a_generation(session)
        generation.file_size_bytes = 5 * 2**30
    with storage.session(read_only=True) as session:
        stored = get_generation(session, generation.id)
        assert stored is not None
        assert stored.file_size_bytes == 5 * 2**30


def test_numbers_in_metadata_are_returned_with_their_type(db: Storage) -> None:
    metadata = {
        "large": [1e16, 1.2345678901234567e17, -1e23, 1.7976931348623157e308],
        "small": [1e-7, 5e-324, 0.1, 1.0],
        "whole": [1, 2**63 - 1, -(2**53) - 1],
        "text": ["1e+16", 'a "1e+16" b', "\\", "1e+16\\"],
        "1e+20": 1e20,
    }
    with db.session() as session:
        generation = a_generation(session, metadata=metadata, parameters=metadata)
    with db.session() as session:
        stored = get_generation(session, generation.id)
        assert stored is not None
        for found in (stored.get_metadata(), stored.parameters or {}):
            assert found == metadata
            assert [type(value) for value in found["large"]] == [float] * 4
            assert [type(value) for value in found["whole"]] == [int] * 3


def test_json_for_postgresql_keeps_strings_that_look_like_numbers() -> None:
    assert dump_jsonb({"a": "1e+16", "b": 1e16}) == '{"a": "1e+16", "b": 10000000000000000.0}'


def test_a_dead_first_host_is_skipped(server: Server) -> None:
    nobody = Server(server.folder.parent / "nobody")
    storage = Storage(both_hosts(nobody, server))
    assert storage.read_revision() is not None
    storage.dispose()
