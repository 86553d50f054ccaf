"""Databases in a state that nobody meant: each gets its true name, and one way out of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from services.storage import (
    CorruptError,
    ForeignDatabaseError,
    NotInitializedError,
    SchemaDamagedError,
    SchemaOutdatedError,
    Storage,
    StorageError,
    check_database,
    claim_generation,
    create_generation,
    delete_prompt,
    get_prompt_by_text,
    init_db,
    migrations,
    search_prompts,
)
from services.storage.models import Base
from services.storage.schema import REVISIONS
from tests.support.databases import ask, everything_in, is_sqlite, run_script, schema_of
from tests.support.factories import a_generation, a_request
from tests.support.sessions import opened
from tests.support.sqlite_module import sqlite3

HEAD_VERSION = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);"


def create_all(url: str) -> None:
    """Make the tables of the models past the migrations."""
    engine = create_engine(make_url(url).set(drivername="sqlite" if is_sqlite(url) else "postgresql+psycopg"))
    Base.metadata.create_all(engine)
    engine.dispose()


# --- lost objects

LOST = {
    "triggers": ("DROP TRIGGER prompts_fts_insert; DROP TRIGGER prompts_fts_delete", None),
    "a table that another tool rebuilt": (
        (
            "CREATE TABLE p AS SELECT * FROM prompts; DROP TABLE prompts;"
            "CREATE TABLE prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, used_count INTEGER NOT NULL, "
            "first_used_at DATETIME NOT NULL, last_used_at DATETIME NOT NULL); INSERT INTO prompts "
            "SELECT id, text, used_count, first_used_at, last_used_at FROM p; DROP TABLE p"
        ),
        None,
    ),
    "the search index": (
        "DROP TABLE prompts_fts",
        "DROP FUNCTION prompt_words(text) CASCADE",
    ),
    "the search column": (None, "ALTER TABLE prompts DROP COLUMN words"),
    "another function": (
        None,
        (
            "CREATE OR REPLACE FUNCTION prompt_words(prompt text) RETURNS tsvector LANGUAGE sql IMMUTABLE STRICT "
            "PARALLEL SAFE RETURN to_tsvector('simple'::regconfig, 'nothing')"
        ),
    ),
    "a trigger of another kind": (
        "DROP TRIGGER prompts_fts_insert; CREATE TRIGGER prompts_fts_insert INSERT ON prompts BEGIN SELECT 1; END",
        None,
    ),
    "indexes": (
        (
            "DROP INDEX idx_generations_due; DROP INDEX idx_generations_lease; "
            "CREATE INDEX idx_generations_lease ON generations (file_path)"
        ),
        (
            "DROP INDEX idx_generations_due; DROP INDEX idx_generations_lease; "
            "CREATE INDEX idx_generations_lease ON generations (file_path); DROP INDEX uq_prompts_text_md5; "
            "ALTER TABLE generations ALTER COLUMN status SET STATISTICS 100"
        ),
    ),
}


@pytest.mark.parametrize("lost", LOST)
def test_lost_objects_are_found_and_created_again(db: Storage, database_url: str, lost: str) -> None:
    script = LOST[lost][0 if is_sqlite(database_url) else 1]
    if script is None:
        return  # the other database system has these objects
    with db.session() as session:
        a_generation(session, prompt="lofi rain")
    schema = [line for line in schema_of(database_url) if "prompts(" not in line]
    db.dispose()
    run_script(database_url, script)
    if "another" not in lost and is_sqlite(database_url) and lost != "the search index":
        with db.session() as session:
            a_generation(session, prompt="unheard rain")
    findings = check_database(fix=True, storage=db).findings
    assert findings
    assert all(finding.fixed for finding in findings)
    assert check_database(storage=db).findings == ()
    assert set(schema) <= set(schema_of(database_url))
    with db.session() as session:
        a_generation(session, prompt="later rain")
        found = {match.prompt.text for match in search_prompts(session, "rain")}
        assert found >= {"lofi rain", "later rain"}
        prompt = get_prompt_by_text(session, "lofi rain")
        assert prompt is not None
        delete_prompt(session, prompt.id)
    with db.session() as session:
        assert "lofi rain" not in {match.prompt.text for match in search_prompts(session, "rain")}


def test_a_search_index_that_lacks_a_prompt_is_no_damage_to_the_file(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        with storage.session() as session:
            a_generation(session, prompt="lofi rain")
        run_script(sqlite_url, "INSERT INTO prompts_fts (prompts_fts) VALUES ('delete-all')")
        # pysqlite3 does not say whether the file or its search index is damaged, so the message names both.
        kind = CorruptError if sqlite3.__name__.startswith("pysqlite3") else SchemaDamagedError
        with pytest.raises(kind, match="dgx-storage check") as caught, storage.session() as session:
            delete_prompt(session, 1)
        assert type(caught.value) is kind
        (finding,) = check_database(fix=True, storage=storage).findings
        assert (finding.subject, finding.fixed) == ("search index", True)
        with storage.session() as session:
            assert delete_prompt(session, 1)


def test_a_missing_search_index_is_named_with_the_command_that_creates_it(db: Storage, database_url: str) -> None:
    run_script(database_url, LOST["the search index"][0 if is_sqlite(database_url) else 1])
    with pytest.raises(SchemaDamagedError, match="dgx-storage check"), db.session() as session:
        search_prompts(session, "rain")


def test_an_object_with_the_name_of_a_lost_one_is_named(sqlite_url: str) -> None:
    run_script(sqlite_url, "DROP TABLE prompts_fts; DROP TABLE queue_state; CREATE TABLE prompts_fts (x)")
    for fix in (False, True):
        with opened(sqlite_url) as storage:
            problems = {one.subject: one.problem for one in check_database(fix=fix, storage=storage).findings}
        assert "a table that is not this library's has its name" in problems["virtual table prompts_fts"]
    assert ask(sqlite_url, "SELECT * FROM prompts_fts") == []


# --- states that led in circles


def test_create_all_first_then_init_db(empty_database_url: str, fresh_url: str) -> None:
    create_all(empty_database_url)
    init_db(empty_database_url)
    with opened(empty_database_url) as storage:
        assert migrations.check(storage) == []
        assert migrations.find_differences(storage) == []
        with storage.session() as session:
            a_generation(session, prompt="日" * 9_999)
            a_generation(session, prompt="lofi rain")
            assert [match.prompt.text for match in search_prompts(session, "rain")] == ["lofi rain"]
            assert claim_generation(session) is not None
    if is_sqlite(empty_database_url):
        fresh = {line.lower() for line in schema_of(fresh_url)}
        assert {line.lower() for line in schema_of(empty_database_url) if "INDEX" in line} <= fresh


def test_drop_all_and_create_all_under_a_version_is_repaired_by_check(db: Storage, database_url: str) -> None:
    engine = create_engine(make_url(database_url).set(drivername=db.url.drivername))
    with engine.begin() as connection:
        if not is_sqlite(database_url):
            connection.execute(text("DROP FUNCTION prompt_words(text) CASCADE"))
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
    engine.dispose()
    db.dispose()
    assert check_database(fix=True, storage=db).findings
    assert check_database(storage=db).findings == ()
    with db.session() as session:
        a_generation(session, prompt="lofi rain")
        assert [match.prompt.text for match in search_prompts(session, "rain")] == ["lofi rain"]


def test_a_version_without_tables_is_named_by_sessions_and_by_init_db(empty_database_url: str) -> None:
    run_script(empty_database_url, f"{HEAD_VERSION} INSERT INTO alembic_version VALUES ('{REVISIONS[-1]}')")
    with pytest.raises(ForeignDatabaseError, match=r"no tables.*drop alembic_version and run `just db-init`"):
        init_db(empty_database_url)
    with opened(empty_database_url) as storage, pytest.raises(SchemaDamagedError), storage.session():
        pass
    run_script(empty_database_url, "DROP TABLE alembic_version")
    init_db(empty_database_url)


@pytest.mark.parametrize(
    ("damage", "named"),
    [("DROP TABLE attempts", "table attempts"), ("ALTER TABLE attempts DROP COLUMN worker_id", "attempts.worker_id")],
)
def test_a_table_or_column_that_is_lost_is_named(db: Storage, database_url: str, damage: str, named: str) -> None:
    db.dispose()
    run_script(database_url, damage)
    for work in (lambda: init_db(database_url), lambda: migrations.upgrade(db)):
        with pytest.raises(SchemaDamagedError, match=rf"{named} is missing: restore a backup"):
            work()
    with (
        opened(database_url) as storage,
        pytest.raises(SchemaDamagedError, match="restore a backup"),
        storage.session(),
    ):
        pass


def test_a_database_that_was_stamped_with_a_wrong_revision_can_be_stamped_with_the_right_one(
    empty_database_url: str,
) -> None:
    with opened(empty_database_url) as storage:
        migrations.upgrade(storage, "003")
        run_script(empty_database_url, f"UPDATE alembic_version SET version_num = '{REVISIONS[-1]}'")
        with pytest.raises(SchemaDamagedError, match="alembic stamp"):
            init_db(empty_database_url)
        with migrations.exclusive(storage, accept_damaged=True) as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '003'")
    init_db(empty_database_url)


def test_two_programs_in_one_version_table_are_named(db: Storage, database_url: str) -> None:
    db.dispose()
    run_script(database_url, "INSERT INTO alembic_version VALUES ('8a1c0ffee')")
    before = everything_in(database_url)
    with opened(database_url) as storage:
        for work in (
            lambda: init_db(database_url),
            lambda: migrations.upgrade(storage),
            lambda: migrations.downgrade(storage, "-1"),
            storage.require_schema,
        ):
            with pytest.raises(ForeignDatabaseError, match=r"'8a1c0ffee'.*another program keeps its revision"):
                work()
    assert everything_in(database_url) == before


def test_another_program_in_our_version_table_is_not_taken_for_a_newer_release(db: Storage, database_url: str) -> None:
    db.dispose()
    run_script(database_url, "UPDATE alembic_version SET version_num = '8a1c0ffee'")
    for work in (lambda: init_db(database_url), lambda: migrations.upgrade(db)):
        with pytest.raises(ForeignDatabaseError, match=r"'8a1c0ffee'.*another program"):
            work()
    with (
        opened(database_url) as storage,
        pytest.raises(ForeignDatabaseError, match="another program"),
        storage.session(),
    ):
        pass


def test_a_foreign_table_is_named(empty_database_url: str) -> None:
    run_script(empty_database_url, "CREATE TABLE songs (id INTEGER)")
    with pytest.raises(ForeignDatabaseError, match=r"the table songs .*DATABASE_URL.*Nothing was changed"):
        init_db(empty_database_url)


def test_a_file_with_only_the_tables_of_litestream_is_empty(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    run_script(url, "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq); CREATE TABLE _litestream_lock (id)")
    init_db(url)
    with opened(url) as storage, storage.session() as session:
        create_generation(session, **a_request())


def test_stamp_refuses_a_database_without_tables(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import command
    from alembic.config import CommandLine

    assert command.stamp
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    with opened(empty_database_url) as storage:
        storage.backend.create_database(storage.url)
    with pytest.raises(SystemExit):
        CommandLine().main(["-c", str(Path(__file__).parents[2] / "alembic.ini"), "stamp", "head"])
    init_db(empty_database_url)


# --- another process changes the schema of a database that is open


@pytest.fixture
def used(db: Storage) -> Iterator[Storage]:
    """Return a Storage whose schema check is done and whose pool has a connection."""
    with db.session() as session:
        a_generation(session)
    yield db
    db.dispose()


def test_a_table_of_somebody_else_that_is_missing_is_not_taken_for_ours(used: Storage) -> None:
    with pytest.raises(DBAPIError, match="songs"), used.session() as session:
        session.execute(text("SELECT * FROM songs"))
    with used.session() as session:
        a_generation(session)


@pytest.mark.parametrize("revision", ["003", "001"])
def test_a_downgrade_under_an_open_storage_is_told_by_its_name(used: Storage, database_url: str, revision: str) -> None:
    with opened(database_url) as other:
        migrations.downgrade(other, revision)
    for work in (a_generation, claim_generation, lambda session: search_prompts(session, "rain")):
        with pytest.raises(SchemaOutdatedError), used.session() as session:
            work(session)
    migrations.upgrade(used)
    with used.session() as session:
        a_generation(session)


def test_tables_that_go_under_an_open_storage_are_told_by_their_name(used: Storage, database_url: str) -> None:
    with opened(database_url) as other:
        migrations.downgrade(other, "base")
    with pytest.raises(NotInitializedError, match="init_db"), used.session() as session:
        a_generation(session)
    init_db(database_url)
    with used.session() as session:
        a_generation(session)


def test_a_reset_under_an_open_storage_is_an_empty_database(used: Storage, database_url: str) -> None:
    with opened(database_url) as other:
        migrations.reset(other)
    for _ in range(8):  # PostgreSQL prepares a statement that was executed five times
        try:
            with used.session() as session:
                a_generation(session, prompt="after the reset")
        except StorageError as error:
            pytest.fail(f"{type(error)}: {error}")
