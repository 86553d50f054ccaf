"""Read-only sessions on replicas: they see the process's own writes, and a failed replica causes no error."""

import re
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.orm import Session

from services.storage import (
    ReadOnlyError,
    Storage,
    check_health,
    count_generations,
    delete_generation,
    get_engine,
    get_generation,
    get_metrics,
    get_session,
    get_storage,
    init_db,
    migrations,
)
from tests.support.factories import a_generation
from tests.support.servers import Server, server_folder


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server, Server]]:
    """Start a primary with two standbys."""
    with server_folder() as folder:
        primary = Server.create(folder / "primary")
        migrations.upgrade(Storage(primary.url()))
        yield (
            primary,
            primary.create_standby(folder / "first", "first"),
            primary.create_standby(folder / "second", "second"),
        )


@pytest.fixture
def primary(servers: tuple[Server, Server, Server]) -> Server:
    return servers[0]


@pytest.fixture
def standby(servers: tuple[Server, Server, Server]) -> Iterator[Server]:
    yield servers[1]
    servers[1].query("SELECT pg_wal_replay_resume()")


@pytest.fixture
def storage(primary: Server, standby: Server) -> Iterator[Storage]:
    """Return a Storage with one replica that has caught up."""
    storage = Storage(primary.url(), replica_urls=[standby.url()])
    wait_for_replica(storage)
    yield storage
    storage.dispose()


def is_on_replica(session: Session) -> bool:
    return bool(session.scalar(text("SELECT pg_is_in_recovery()")))


def wait_for_replica(storage: Storage) -> None:
    """Commit, and read until the replica serves a read."""
    while True:
        with storage.session() as session:
            generation = a_generation(session)
        with storage.session(read_only=True) as session:
            assert get_generation(session, generation.id) is not None
            if is_on_replica(session):
                return


def test_read_only_sessions_go_to_the_replica_and_all_others_to_the_primary(storage: Storage) -> None:
    with storage.session(read_only=True) as session:
        assert is_on_replica(session)
        assert isinstance(session.get_bind(), Connection)
        assert session.scalar(text("SELECT current_setting('transaction_isolation')")) == "repeatable read"
    with storage.session() as session:
        assert not is_on_replica(session)


def test_a_write_in_a_read_only_session_is_refused_before_it_reaches_the_replica(storage: Storage) -> None:
    with storage.session(read_only=True) as session:
        assert is_on_replica(session)
        with pytest.raises(ReadOnlyError):
            a_generation(session)
        session.rollback()


def test_a_connection_to_a_server_that_became_a_standby_is_closed(standby: Server) -> None:
    storage = Storage(standby.url())
    backends = []
    for _ in range(2):
        with storage.session() as session:
            backends.append(session.scalar(text("SELECT pg_backend_pid()")))
            with pytest.raises(ReadOnlyError):
                a_generation(session)
            session.rollback()
    assert backends[0] != backends[1]
    storage.dispose()


def test_a_session_sees_its_own_earlier_writes_while_the_replica_lags(storage: Storage, standby: Server) -> None:
    standby.query("SELECT pg_wal_replay_pause()")
    for _ in range(20):
        with storage.session() as session:
            generation = a_generation(session)
        with storage.session(read_only=True) as session:
            assert get_generation(session, generation.id) is not None
            assert not is_on_replica(session)
    with storage.session() as session:
        delete_generation(session, generation.id)
    with storage.session(read_only=True) as session:
        assert get_generation(session, generation.id) is None
    standby.query("SELECT pg_wal_replay_resume()")
    wait_for_replica(storage)


def test_writes_on_a_connection_of_the_engine_are_seen(storage: Storage, standby: Server) -> None:
    standby.query("SELECT pg_wal_replay_pause()")
    with storage.session() as session:
        generation = a_generation(session)
    with storage.engine.connect() as connection:
        connection.execute(text("UPDATE generations SET priority = 7 WHERE id = :id"), {"id": generation.id})
        connection.commit()
        with storage.session(read_only=True) as session:
            stored = get_generation(session, generation.id)
            assert stored is not None
            assert stored.priority == 7


def test_writes_of_another_thread_are_seen(storage: Storage, standby: Server) -> None:
    standby.query("SELECT pg_wal_replay_pause()")
    ids: list[str] = []

    def write() -> None:
        with storage.session() as session:
            ids.append(a_generation(session).id)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    with storage.session(read_only=True) as session:
        assert get_generation(session, ids[0]) is not None


def test_threads_that_write_and_read_concurrently_see_their_own_writes(storage: Storage) -> None:
    missed: list[str] = []
    replica_answered: list[bool] = []

    def write_and_read() -> None:
        for _ in range(40):
            with storage.session() as session:
                generation = a_generation(session)
            with storage.session(read_only=True) as session:
                if get_generation(session, generation.id) is None:
                    missed.append(generation.id)
                replica_answered.append(is_on_replica(session))

    threads = [threading.Thread(target=write_and_read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missed == []
    assert len(replica_answered) == 160


def test_a_process_without_writes_reads_from_a_slightly_older_replica(
    storage: Storage, primary: Server, standby: Server
) -> None:
    standby.query("SELECT pg_wal_replay_pause()")
    other = Storage(primary.url())
    with other.session() as session:
        a_generation(session)
        count = count_generations(session)
    with storage.session(read_only=True) as session:
        assert is_on_replica(session)
        assert count_generations(session) == count - 1
    other.dispose()


def test_a_replica_that_lags_too_far_is_skipped(primary: Server, standby: Server) -> None:
    storage = Storage(primary.url(), replica_urls=[standby.url()], replica_max_lag=0)
    other = Storage(primary.url())
    wait_for_replica(storage)
    standby.query("SELECT pg_wal_replay_pause()")
    with other.session() as session:
        generation = a_generation(session)
    with storage.session(read_only=True) as session:
        assert get_generation(session, generation.id) is not None
        assert not is_on_replica(session)
    for each in (storage, other):
        each.dispose()


def test_a_replica_of_an_idle_primary_does_not_count_as_lagging(storage: Storage) -> None:
    # Without writes the age of the last replayed transaction grows, but its position stays that of the primary.
    assert storage.replicas is not None
    storage.replicas._sample = None
    with storage.session(read_only=True) as session:
        assert is_on_replica(session)


def test_replicas_take_turns(servers: tuple[Server, Server, Server]) -> None:
    primary, first, second = servers
    storage = Storage(primary.url(), replica_urls=[first.url(), second.url()])
    seen = set()
    while seen != {first.port, second.port}:
        with storage.session(read_only=True) as session:
            if is_on_replica(session):
                seen.add(session.scalar(text("SELECT current_setting('port')::int")))
    storage.dispose()


def test_a_dead_replica_causes_no_error(primary: Server, standby: Server) -> None:
    nobody = Server(primary.folder.parent / "nobody")
    storage = Storage(primary.url(), replica_urls=[nobody.url()])
    for _ in range(3):
        with storage.session(read_only=True) as session:
            assert not is_on_replica(session)
    storage.dispose()
    storage = Storage(primary.url(), replica_urls=[nobody.url(), standby.url()])
    wait_for_replica(storage)
    storage.dispose()


def test_a_replica_killed_under_an_idle_pool_causes_no_error_and_is_used_again_after_its_restart(
    servers: tuple[Server, Server, Server],
) -> None:
    primary, _, standby = servers
    storage = Storage(primary.url(), replica_urls=[standby.url()])
    wait_for_replica(storage)
    standby.kill()
    with storage.session(read_only=True) as session:
        assert not is_on_replica(session)
    standby.start()
    assert storage.replicas is not None
    storage.replicas._skip_until = [0.0]  # instead of waiting
    wait_for_replica(storage)
    standby.stop()
    standby.start()  # a restart between two uses
    wait_for_replica(storage)
    storage.dispose()


def test_a_server_that_is_not_a_replica_of_the_primary_is_never_used(
    primary: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with server_folder() as folder:
        stranger = Server.create(folder / "stranger")
        migrations.upgrade(Storage(stranger.url()))
        storage = Storage(primary.url(), replica_urls=[stranger.url()])
        with storage.session(read_only=True) as session:
            assert session.scalar(text("SELECT current_setting('port')::int")) == primary.port
        assert "not a replica of this primary" in caplog.text
        storage.dispose()


def lag_of(storage: Storage) -> list[int | None]:
    """Return the lag of each replica as the metrics say it; None for one that is down."""
    found = get_metrics(storage=storage)
    up = re.findall(r'^dgx_storage_replica_up\{replica="(\d+)"\} (\d)$', found, re.MULTILINE)
    lag = dict(re.findall(r'^dgx_storage_replica_lag_bytes\{replica="(\d+)"\} (\d+)$', found, re.MULTILINE))
    assert {number for number, answers in up if answers == "1"} == lag.keys()
    return [int(lag[number]) if number in lag else None for number, _ in up]


def test_the_metrics_say_how_far_each_replica_is_behind(primary: Server, standby: Server, storage: Storage) -> None:
    nobody = Server(primary.folder.parent / "nobody")
    watched = Storage(primary.url(), replica_urls=[standby.url(), nobody.url(), primary.url()])
    while lag_of(watched) != [0, None, 0]:
        pass
    standby.query("SELECT pg_wal_replay_pause()")
    while standby.query("SELECT pg_get_wal_replay_pause_state()") != "paused":
        pass
    with storage.session() as session:
        a_generation(session)
    behind = lag_of(watched)
    assert behind[0] is not None
    assert behind[0] > 0
    watched.dispose()


def test_a_standby_is_not_healthy_as_a_primary(standby: Server) -> None:
    storage = Storage(standby.url())
    health = check_health(storage=storage)
    assert not health.ok
    assert "standby" in health.problems[0]
    storage.dispose()


def test_the_primary_can_be_listed_as_a_replica(primary: Server) -> None:
    storage = Storage(primary.url(), replica_urls=[primary.url()])
    with storage.session(read_only=True) as session:
        assert not isinstance(session.get_bind(), Connection)
    storage.dispose()


def test_an_ordinary_role_can_query_the_position_of_a_replica(primary: Server, standby: Server) -> None:
    primary.query("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    primary.query("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO plain")
    primary.query("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO plain")
    urls = [f"postgresql://plain:plain@127.0.0.1:{server.port}/postgres" for server in (primary, standby)]
    storage = Storage(urls[0], replica_urls=urls[1:])
    wait_for_replica(storage)
    storage.dispose()


def test_a_commit_without_replicas_sends_no_extra_statement(primary: Server, storage: Storage) -> None:
    alone = Storage(primary.url())
    counts = []
    for each in (alone, storage):
        statements: list[str] = []
        with each.session() as session:
            session.connection()
            a_generation(session)
        event.listen(each.engine, "before_cursor_execute", lambda *given, seen=statements: seen.append(given[2]))
        with each.session() as session:
            a_generation(session)
        counts.append(len(statements))
    assert counts == [1, 1]
    alone.dispose()


def test_replicas_come_from_the_environment_with_the_database_url_only(
    primary: Server, standby: Server, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", primary.url())
    monkeypatch.setenv("DATABASE_REPLICA_URLS", f"{standby.url()}, postgresql://u@one:1,two:2/d?connect_timeout=2")
    init_db()
    replicas = get_storage().replicas
    assert replicas is not None
    assert [url.port for url in replicas.urls] == [standby.port, None]
    wait_for_replica(get_storage())
    with get_session(read_only=True) as session:
        assert count_generations(session) > 0
    assert get_engine() is get_storage().engine
    assert Storage(sqlite_url).replicas is None
    assert Storage(primary.url()).replicas is None


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_sqlite_has_no_replicas(how: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("DATABASE_URL", sqlite_url)
        monkeypatch.setenv("DATABASE_REPLICA_URLS", sqlite_url)
    with pytest.raises(ValueError, match="replica_urls must be empty with sqlite"):
        init_db() if how == "environment" else init_db(sqlite_url, replica_urls=[sqlite_url])


def test_replica_urls_are_a_list_of_the_same_database_system(primary: Server) -> None:
    with pytest.raises(TypeError, match="replica_urls"):
        Storage(primary.url(), replica_urls=primary.url())
    with pytest.raises(ValueError, match="same database system"):
        Storage(primary.url(), replica_urls=["sqlite://"])
