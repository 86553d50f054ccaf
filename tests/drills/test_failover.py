"""The primary is killed while threads write, and the standby is promoted: no acknowledged row is lost."""

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection

from services.storage import Storage, StorageError, count_generations, get_generation, migrations
from tests.support.factories import a_generation
from tests.support.servers import Server, both_hosts, server_folder

WRITERS = 4

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """Start a primary with a synchronous standby."""
    with server_folder() as folder:
        primary = Server.create(folder / "primary")
        standby = primary.create_standby(folder / "standby", "standby")
        primary.query("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.query("SELECT pg_reload_conf()")
        while primary.query("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != 1:
            pass
        yield primary, standby


class Writers:
    """Threads that store generations and record the acknowledged ids and the errors."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.acknowledged: list[list[str]] = [[] for _ in range(WRITERS)]
        self.missed_own_write: list[str] = []
        self.errors: list[list[StorageError]] = [[] for _ in range(WRITERS)]
        self.stop = threading.Event()
        self.stored = threading.Condition()
        self.threads = [threading.Thread(target=self.write, args=(number,)) for number in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def write(self, number: int) -> None:
        while not self.stop.is_set():
            try:
                with self.storage.session() as session:
                    generation = a_generation(session, prompt=f"writer {number}")
                with self.stored:
                    self.acknowledged[number].append(generation.id)
                    self.stored.notify_all()
                with self.storage.session(read_only=True) as session:
                    if get_generation(session, generation.id) is None:
                        self.missed_own_write.append(generation.id)
            except StorageError as error:
                self.errors[number].append(error)

    def wait_for(self, more: int) -> None:
        """Wait until every writer has stored `more` further generations."""
        goals = [len(ids) + more for ids in self.acknowledged]
        with self.stored:
            self.stored.wait_for(
                lambda: all(len(ids) >= goal for ids, goal in zip(self.acknowledged, goals, strict=True))
            )

    def finish(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_writers_continue_after_a_failover_and_lose_no_acknowledged_row(
    servers: tuple[Server, Server], scaled: Callable[[int], int]
) -> None:
    primary, standby = servers
    url = both_hosts(primary, standby)
    storage = Storage(url, replica_urls=[standby.url()])
    migrations.upgrade(storage)
    writers = Writers(storage)
    writers.wait_for(scaled(500))

    primary.kill()
    standby.promote()
    writers.wait_for(1)
    failed_until_promotion = [len(errors) for errors in writers.errors]
    writers.wait_for(scaled(500))
    writers.finish()

    assert [len(errors) for errors in writers.errors] == failed_until_promotion  # no errors after the promotion
    assert writers.missed_own_write == []
    stored = [generation_id for ids in writers.acknowledged for generation_id in ids]
    with storage.session() as session:
        assert [generation_id for generation_id in stored if get_generation(session, generation_id) is None] == []
        in_flight = count_generations(session) - len(stored)
    assert 0 <= in_flight <= WRITERS  # committed, but killed before it was acknowledged
    storage.dispose()


def test_read_only_sessions_use_the_replica_while_there_is_no_primary(servers: tuple[Server, Server]) -> None:
    primary, standby = servers
    storage = Storage(both_hosts(primary, standby), replica_urls=[standby.url()])
    migrations.upgrade(storage)
    with storage.session() as session:
        a_generation(session)
    bind = None
    while not isinstance(bind, Connection):  # until the replica has replayed the write
        with storage.session(read_only=True) as session:
            bind = session.get_bind()
    primary.kill()
    with storage.session(read_only=True) as session:
        assert count_generations(session) == 1
    standby.promote()
    with storage.session() as session:
        a_generation(session)
    with storage.session(read_only=True) as session:
        assert count_generations(session) == 2
    storage.dispose()
