"""PostgreSQL with settings and schemas of its operator: the same answers as on an untouched server."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, make_url, text

from services.storage import (
    BusyError,
    ForeignDatabaseError,
    Storage,
    check_database,
    count_generations,
    create_generation,
    get_usage,
    list_generations,
    migrations,
    search_prompts,
)
from tests.support.databases import ask, make_old_database, run_script, schema_of
from tests.support.factories import a_request

SETTINGS = {
    "DateStyle": ("German", "SQL, DMY", "Postgres, MDY"),
    "IntervalStyle": ("iso_8601",),
    "TimeZone": ("Asia/Kathmandu", "America/Los_Angeles"),
    "client_encoding": ("LATIN1", "EUC_JP"),
    "extra_float_digits": ("0", "-15"),
    "quote_all_identifiers": ("on",),
    "standard_conforming_strings": ("off",),
    "default_transaction_isolation": ("serializable", "repeatable read"),
}
MOMENTS = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1883, 11, 18, 12, tzinfo=UTC),  # before time zones, offsets have seconds
    datetime(2025, 3, 4, 23, 30, 0, 123456, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
]
VARIABLES = {
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Kathmandu",
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c extra_float_digits=0 -c DateStyle=SQL -c quote_all_identifiers=on",
}


@pytest.fixture
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of an empty PostgreSQL database."""
    from tests.conftest import administer, database_at

    server: str = request.getfixturevalue("postgresql_server")
    name = f"odd_{request.node.name.__hash__() & 0xFFFFFFFF:x}"
    administer(server, f"CREATE DATABASE {name}")
    yield database_at(server, name)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def expected(postgresql_server: str, url: str) -> list[Any]:
    """Return the answers of an untouched database."""
    storage = Storage(url)
    answers = answer(storage)
    storage.dispose()
    run_script(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return answers


def answer(storage: Storage) -> list[Any]:
    """Create the schema, store what could be read in two ways, and return everything as it is read."""
    migrations.upgrade(storage)
    with storage.session() as session:
        for number, moment in enumerate(MOMENTS):
            generation = create_generation(
                session,
                **a_request(
                    prompt=f"й 日本語 \\ {number}",
                    duration_seconds=0.1 + 0.2,
                    metadata={"bpm": 0.30000000000000004, "large": 1.2345678901234567e17},
                ),
                generation_id=f"fixed-{number}",
                scheduled_at=moment,
            )
            generation.created_at = moment
            generation.status = "completed"
            generation.completed_at = moment
            generation.generation_time_seconds = 1 / 3
    with storage.session(read_only=True) as session:
        page = list_generations(session, metadata={"bpm": 0.30000000000000004})
        rows = [generation.to_dict() for generation in page.items]
        usage = get_usage(session)
        found = [match.prompt.text for match in search_prompts(session, "日本語")]
    assert migrations.check(storage) == []
    assert check_database(storage=storage).findings == ()
    return [rows, usage, sorted(found)]


def pool_like_pgbouncer(storage: Storage) -> None:
    """Give every transaction another session, as PgBouncer does in transaction mode."""

    @event.listens_for(storage.engine, "checkin")
    def discard(connection: Any, record: Any) -> None:
        if connection is not None:
            connection.rollback()
            connection.autocommit = True
            connection.execute("RESET ALL")
            connection.autocommit = False


@pytest.mark.sampled
@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
@pytest.mark.parametrize(
    ("setting", "value"), [(setting, value) for setting, values in SETTINGS.items() for value in values]
)
def test_a_setting_of_the_database_changes_no_answer(
    expected: list[Any], url: str, setting: str, value: str, pgbouncer: bool
) -> None:
    run_script(url, f"ALTER DATABASE {make_url(url).database} SET {setting} = '{value}'")
    storage = Storage(url, pgbouncer=pgbouncer)
    if pgbouncer:
        pool_like_pgbouncer(storage)
    try:
        assert answer(storage) == expected
        with storage.session() as session:
            assert session.scalar(text("SHOW transaction_isolation")) == "read committed"
    finally:
        storage.dispose()


@pytest.mark.sampled
@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_of_the_environment_changes_no_answer(
    expected: list[Any], url: str, variable: str, pgbouncer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, VARIABLES[variable])
    storage = Storage(url, pgbouncer=pgbouncer)
    if pgbouncer:
        pool_like_pgbouncer(storage)
    try:
        assert answer(storage) == expected
    finally:
        storage.dispose()


def test_an_old_database_is_adopted_whatever_its_settings(url: str) -> None:
    make_old_database(url, "original")
    name = make_url(url).database
    run_script(
        url,
        f"ALTER DATABASE {name} SET quote_all_identifiers = on; ALTER DATABASE {name} SET DateStyle = German;"
        f"ALTER DATABASE {name} SET standard_conforming_strings = off;"
        f"ALTER DATABASE {name} SET TimeZone = 'Asia/Kathmandu'",
    )
    storage = Storage(url)
    migrations.upgrade(storage)
    assert migrations.check(storage) == []
    with storage.session() as session:
        assert count_generations(session) == 20
    migrations.downgrade(storage, "001")
    migrations.upgrade(storage)
    assert migrations.find_differences(storage) == []
    storage.dispose()


def test_a_schema_named_like_the_user_that_is_made_later_changes_nothing(url: str) -> None:
    storage = Storage(url)
    migrations.upgrade(storage, "001")
    run_script(url, "CREATE SCHEMA postgres; CREATE TABLE postgres.songs (id INTEGER)")
    migrations.upgrade(storage, "004")
    storage.dispose()
    migrations.upgrade(storage)
    with storage.session() as session:
        create_generation(session, **a_request())
    assert migrations.check(storage) == []
    assert check_database(storage=storage).findings == ()
    migrations.downgrade(storage, "001")
    migrations.upgrade(storage)
    with storage.session() as session:
        assert count_generations(session) == 1
    migrations.reset(storage)
    with storage.session() as session:
        assert count_generations(session) == 0
    assert ask(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'postgres'") == [("songs",)]
    storage.dispose()


@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
def test_other_tables_of_the_same_names_earlier_in_the_search_path_are_not_taken_for_ours(
    url: str, pgbouncer: bool
) -> None:
    storage = Storage(url, pgbouncer=pgbouncer)
    migrations.upgrade(storage)
    others = "CREATE TABLE postgres.generations (id INTEGER); CREATE TABLE postgres.prompts (id INTEGER, text TEXT);"
    others += "CREATE TABLE postgres.attempts (x TEXT); INSERT INTO postgres.generations VALUES (7);"
    others += (
        "CREATE TABLE postgres.alembic_version (version_num TEXT); INSERT INTO postgres.alembic_version VALUES ('a1')"
    )
    run_script(url, f"CREATE SCHEMA postgres; {others}")
    storage.dispose()
    migrations.downgrade(storage, "003")
    migrations.upgrade(storage)
    storage.require_schema(refresh=True)
    with storage.session() as session:
        create_generation(session, **a_request())
    assert check_database(storage=storage).findings == ()
    migrations.reset(storage)
    assert ask(url, "SELECT id FROM postgres.generations") == [(7,)]
    assert ask(url, "SELECT count(*) FROM public.generations") == [(0,)]
    assert ask(url, "SELECT version_num FROM postgres.alembic_version") == [("a1",)]
    storage.dispose()


def test_a_new_database_goes_into_the_first_schema_of_the_search_path_beside_other_programs(url: str) -> None:
    run_script(
        url,
        "CREATE SCHEMA music; CREATE TABLE songs (id INTEGER); CREATE TABLE attempts (id INTEGER);"
        "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('8a1c')",
    )
    run_script(url, f"ALTER DATABASE {make_url(url).database} SET search_path = music, public")
    public = schema_of(url)
    storage = Storage(url)
    from services.storage import init_db

    init_db(url)
    with storage.session() as session:
        create_generation(session, **a_request())
    assert migrations.check(storage) == []
    migrations.downgrade(storage, "003")
    migrations.reset(storage)
    assert schema_of(url) == public
    assert ask(url, "SELECT count(*) FROM music.generations") == [(0,)]
    storage.dispose()


def test_a_migration_has_no_time_limit_but_for_locks(url: str) -> None:
    for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
        run_script(url, f"ALTER DATABASE {make_url(url).database} SET {setting} = '10s'")
    storage = Storage(url, lock_timeout=7)
    with migrations.exclusive(storage) as connection:
        settings = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
        assert [connection.scalar(text(f"SHOW {setting}")) for setting in settings] == ["0", "0", "7s"]
    storage.dispose()


@pytest.mark.parametrize("work", ["upgrade", "downgrade", "reset"])
def test_a_migration_waits_for_a_reader_no_longer_than_the_lock_timeout(url: str, work: str) -> None:
    storage = Storage(url, lock_timeout=0.3)
    migrations.upgrade(storage, "006" if work == "upgrade" else "head")
    before = schema_of(url)
    with psycopg.connect(url) as reader:
        reader.execute("SELECT count(*) FROM generations, prompts")  # and it stays in its transaction
        with pytest.raises(BusyError, match=r"holds a lock.*Nothing was changed"):
            {
                "upgrade": migrations.upgrade,
                "downgrade": lambda storage: migrations.downgrade(storage, "001"),
                "reset": migrations.reset,
            }[work](storage)
    assert schema_of(url) == before
    storage.dispose()


@pytest.mark.parametrize("work", ["downgrade", "reset"])
def test_a_view_on_our_tables_is_named_by_downgrade_and_reset(url: str, work: str) -> None:
    storage = Storage(url)
    migrations.upgrade(storage)
    run_script(url, "CREATE VIEW busy AS SELECT id, worker_id FROM generations")
    before = schema_of(url)
    with pytest.raises(ForeignDatabaseError, match=r"view busy.*drop it.*Nothing was changed"):
        migrations.reset(storage) if work == "reset" else migrations.downgrade(storage, "001")
    assert schema_of(url) == before
    storage.dispose()
