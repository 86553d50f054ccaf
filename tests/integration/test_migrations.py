"""The schema, however a database came to it, and what refuses to touch which database."""

import ast
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import event, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex

from services.storage import (
    ForeignDatabaseError,
    GenerationStatus,
    NotInitializedError,
    SchemaOutdatedError,
    SchemaTooNewError,
    Storage,
    StorageError,
    count_generations,
    get_all_generations,
    get_generation,
    get_schema_version,
    get_session,
    init_db,
    migrations,
    reset_database,
)
from services.storage.declarative import checks_of
from services.storage.models import Attempt, Base, QueueState
from services.storage.schema import REVISIONS
from tests.support.databases import (
    ask,
    columns_of,
    everything_in,
    file_of,
    is_sqlite,
    make_old_database,
    rows_of,
    run_script,
    schema_of,
    structure_of,
    tables_of,
)
from tests.support.factories import a_generation
from tests.support.sessions import opened

ROOT = Path(__file__).resolve().parents[2]

SONGS = "CREATE TABLE songs (id INTEGER); INSERT INTO songs VALUES (1);"
VERSION = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL); INSERT INTO alembic_version VALUES "
FOREIGN = {
    "tables of another program": SONGS,
    "another program's Alembic": f"{SONGS} {VERSION} ('8a1c0ffee')",
    "another program's Alembic at a revision named like ours": f"{SONGS} {VERSION} ('003')",
    "a version and nothing else": f"{VERSION} ('003')",
    "namesakes of our tables": "CREATE TABLE generations (id INTEGER); CREATE TABLE prompts (id INTEGER, text TEXT)",
    "a namesake of one of our tables": "CREATE TABLE prompts (id INTEGER, text TEXT)",
}


def fill(storage: Storage) -> None:
    """Store a row of every kind that the head schema knows."""
    with storage.session() as session:
        for status in GenerationStatus:
            generation = a_generation(session, prompt=f"a {status} track", batch_id="album", metadata={"bpm": 140})
            generation.status = status
        parent = a_generation(session, idempotency_key="once", parameters={"seed": 7}, priority=5)
        child = a_generation(session, parent_id=parent.id, prompt="日本語 100%")
        child.is_favorite = True
        child.status = "processing"
        child.worker_id, child.progress, child.current_step = "box:1", 0.5, "rendering"
        session.add(Attempt(generation_id=parent.id, number=1, worker_id="box:1", outcome="failed"))
        session.add(QueueState(reason="cleaning"))


def test_the_library_works_with_the_head_of_one_line_of_revisions() -> None:
    scripts = list(ScriptDirectory(migrations.script_location()).walk_revisions())
    assert tuple(script.revision for script in reversed(scripts)) == REVISIONS
    assert all(isinstance(script.down_revision, str | None) for script in scripts)
    assert get_schema_version() == REVISIONS[-1]


def test_revisions_import_nothing_that_may_change_under_them() -> None:
    for path in (ROOT / "alembic/versions").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("services") for name in names), path.name
            assert not (isinstance(node, ast.ImportFrom) and node.level), path.name


def test_the_folder_of_the_revisions_does_not_shadow_alembic() -> None:
    assert not (ROOT / "alembic/__init__.py").exists()


def test_an_upgraded_database_has_the_schema_of_a_new_one(empty_database_url: str, fresh_url: str) -> None:
    init_db(make_old_database(empty_database_url, "001"))
    assert schema_of(empty_database_url) == schema_of(fresh_url)


@pytest.mark.parametrize("name", ["001", "original"])
def test_an_upgraded_database_has_no_drift(name: str, empty_database_url: str) -> None:
    with opened(make_old_database(empty_database_url, name)) as storage:
        migrations.upgrade(storage)
        assert migrations.check(storage) == []


def test_a_new_database_has_no_drift(db: Storage) -> None:
    assert migrations.check(db) == []


def test_drift_is_reported(db: Storage) -> None:
    with db.session() as session:
        session.execute(text("DROP INDEX idx_generations_lease"))
        session.execute(text("ALTER TABLE attempts DROP COLUMN error_message"))
    assert [change[0] for change in migrations.check(db)] == ["add_column", "add_index"]


def test_the_indexes_and_checks_of_the_models_are_those_of_the_database(sqlite_url: str) -> None:
    """Alembic compares neither CHECKs nor what a partial index leaves out."""
    stored = dict(ask(sqlite_url, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    for table in Base.metadata.sorted_tables:
        checks = {f"{check.name} CHECK ({check.sqltext})" for check in checks_of(table, "sqlite")}
        sql = " ".join(stored[table.name].split())
        assert {check for check in checks if f"CONSTRAINT {check}" in sql} == checks
        assert sql.count("CHECK (") == len(checks)
        for index in table.indexes:
            created = str(CreateIndex(index).compile(dialect=sqlite.dialect()))
            where = index.info.get("where")
            if where and " WHERE " not in created:
                created += f" WHERE {where}"
            assert stored[str(index.name)] == created
    indexes = {str(index.name) for table in Base.metadata.tables.values() for index in table.indexes}
    assert {name for name, sql in stored.items() if " INDEX " in sql.splitlines()[0]} == indexes


def test_every_step_down_and_up_again_gives_that_revisions_schema_and_keeps_the_rows(empty_database_url: str) -> None:
    with opened(empty_database_url) as storage:
        schemas = {}
        for revision in REVISIONS:
            migrations.upgrade(storage, revision)
            schemas[revision] = structure_of(empty_database_url)
        fresh = schema_of(empty_database_url)
        fill(storage)
        head = {table: rows_of(empty_database_url, table) for table in tables_of(empty_database_url)}

        for revision in reversed(REVISIONS[:-1]):
            shared = {table: rows_of(empty_database_url, table) for table in ("prompts",)}
            before = dict(rows_of(empty_database_url, "generations", ("id", "status")))
            migrations.downgrade(storage, "-1")
            assert structure_of(empty_database_url) == schemas[revision], revision
            after = dict(rows_of(empty_database_url, "generations", ("id", "status")))
            if revision == "003":  # 004 told of losing this word
                before = {key: value.replace("cancelled", "failed") for key, value in before.items()}
            assert after == before
            assert {table: rows_of(empty_database_url, table) for table in ("prompts",)} == shared
            with opened(empty_database_url) as newcomer, pytest.raises(SchemaOutdatedError), newcomer.session():
                pass

        for revision in REVISIONS[1:]:
            migrations.upgrade(storage, revision)
            assert structure_of(empty_database_url) == schemas[revision], revision
        assert schema_of(empty_database_url) == fresh
        baseline = tuple("id prompt duration_seconds file_path created_at completed_at metadata prompt_id".split())
        columns = columns_of(empty_database_url, "generations")
        places = [columns.index(name) for name in baseline]
        kept = sorted((tuple(row[place] for place in places) for row in head["generations"]), key=repr)
        assert rows_of(empty_database_url, "generations", baseline) == kept
        assert rows_of(empty_database_url, "prompts") == head["prompts"]
        assert migrations.check(storage) == []


@pytest.mark.parametrize("revision", REVISIONS[4:-1])
def test_a_downgrade_loses_only_what_its_docstring_names(db: Storage, database_url: str, revision: str) -> None:
    fill(db)
    everything = {table: rows_of(database_url, table) for table in tables_of(database_url)}
    migrations.downgrade(db, revision)
    migrations.upgrade(db)
    assert {table: rows_of(database_url, table) for table in tables_of(database_url)} == everything


def test_a_revision_that_is_unknown_or_in_the_other_direction_is_refused_with_advice(db: Storage) -> None:
    for move in (migrations.upgrade, migrations.downgrade):
        with pytest.raises(ValueError, match=f"^there is no revision 999: the revisions are 001 to {REVISIONS[-1]}$"):
            move(db, "999")
    with pytest.raises(ValueError, match=rf"^003 is older than {REVISIONS[-1]}: use `dgx-storage rollback 003`$"):
        migrations.upgrade(db, "003")
    migrations.downgrade(db, "-1")
    with pytest.raises(ValueError, match=rf"^{REVISIONS[-1]} is newer than {REVISIONS[-2]}: use `dgx-storage migrate"):
        migrations.downgrade(db, REVISIONS[-1])
    migrations.downgrade(db, REVISIONS[-2])
    migrations.upgrade(db, REVISIONS[-1])
    migrations.upgrade(db, REVISIONS[-1])


def test_a_rebuild_keeps_the_children_of_every_row(db: Storage) -> None:
    """With foreign keys on, dropping the old table would delete them without a word."""
    fill(db)
    migrations.downgrade(db, "005")
    migrations.upgrade(db)
    with db.session() as session:
        assert session.scalar(text("SELECT count(*) FROM attempts")) == 1
        assert session.scalar(text("SELECT count(*) FROM generations WHERE parent_id IS NOT NULL")) == 1
        parent = next(row for row in get_all_generations(session) if row.idempotency_key == "once")
        session.delete(parent)
    with db.session() as session:  # and both foreign keys still do their work
        assert session.scalar(text("SELECT count(*) FROM attempts")) == 0
        assert session.scalar(text("SELECT count(*) FROM generations WHERE parent_id IS NOT NULL")) == 0


def test_downgrading_to_base_and_upgrading_gives_the_head_schema(db: Storage, database_url: str) -> None:
    schema = schema_of(database_url)
    migrations.downgrade(db, "base")
    assert tables_of(database_url) == {"alembic_version"}
    init_db(database_url)
    assert schema_of(database_url) == schema


def test_downgrading_a_database_without_a_version_is_refused(empty_database_url: str) -> None:
    with opened(make_old_database(empty_database_url, "original")) as storage:
        before = everything_in(empty_database_url)
        with pytest.raises(NotInitializedError):
            migrations.downgrade(storage, "-1")
    assert everything_in(empty_database_url)[: len(before)] == before or is_sqlite(empty_database_url)
    assert tables_of(empty_database_url) == {"generations", "prompts"}


def test_downgrading_a_missing_file_does_not_create_it(tmp_path: Path) -> None:
    for operation in (lambda storage: migrations.downgrade(storage, "-1"), migrations.check):
        with opened(f"sqlite:///{tmp_path}/missing.db") as storage, pytest.raises(NotInitializedError):
            operation(storage)
    assert not list(tmp_path.iterdir())


def test_an_unknown_revision_is_a_value_error_and_changes_nothing(db: Storage, database_url: str) -> None:
    schema = schema_of(database_url)
    for operation in (migrations.upgrade, migrations.downgrade):
        with pytest.raises(ValueError, match="999"):
            operation(db, "999")
    assert schema_of(database_url) == schema


def test_an_older_database_is_refused_by_sessions_and_upgraded_by_init_db(empty_database_url: str) -> None:
    old = opened(make_old_database(empty_database_url, "001"))
    with old as storage, pytest.raises(SchemaOutdatedError, match="db-migrate"), storage.session():
        pass
    init_db(empty_database_url)
    with get_session() as session:
        assert count_generations(session) == 4


def test_rows_of_an_old_database_can_be_used_after_the_upgrade(empty_database_url: str) -> None:
    init_db(make_old_database(empty_database_url, "001"))
    with get_session() as session:
        generation = get_generation(session, "0191a0d0-0000-7000-8000-000000000001")
        assert generation is not None
        assert generation.scheduled_at == generation.created_at
        generation.mark_processing()
        generation.mark_completed(18.5)
        a_generation(session, prompt='lo-fi "study" beat; with 100% rain')
    assert ask(empty_database_url, "SELECT used_count FROM prompts WHERE id = 2") == [(2,)]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_database_is_refused_and_not_changed(name: str, empty_database_url: str) -> None:
    run_script(empty_database_url, FOREIGN[name])
    before = everything_in(empty_database_url)
    with pytest.raises(ForeignDatabaseError, match="DATABASE_URL"):
        init_db(empty_database_url)
    with opened(empty_database_url) as storage:
        with pytest.raises(StorageError), storage.session():
            pass
        for operation in (migrations.upgrade, migrations.reset, lambda one: migrations.downgrade(one, "-1")):
            with pytest.raises(ForeignDatabaseError):
                operation(storage)
    assert everything_in(empty_database_url) == before
    if is_sqlite(empty_database_url):
        assert list(file_of(empty_database_url).parent.iterdir()) == [file_of(empty_database_url)]


def test_a_newer_database_is_refused_and_not_changed(db: Storage, database_url: str) -> None:
    fill(db)
    with db.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '999'"))
    db.dispose()
    before = everything_in(database_url)
    with pytest.raises(SchemaTooNewError):
        init_db(database_url)
    with opened(database_url) as storage:
        with pytest.raises(SchemaTooNewError), storage.session():
            pass
        for operation in (migrations.upgrade, lambda one: migrations.downgrade(one, "-1")):
            with pytest.raises(SchemaTooNewError):
                operation(storage)
    assert everything_in(database_url) == before


def test_a_failed_init_db_keeps_the_default_database(db: Storage, tmp_path: Path) -> None:
    run_script(f"sqlite:///{tmp_path}/foreign.db", "CREATE TABLE songs (id INTEGER)")
    with pytest.raises(ForeignDatabaseError):
        init_db(f"sqlite:///{tmp_path}/foreign.db")
    with get_session() as session:
        a_generation(session)
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE alembic_version SET version_num = '999'",
        "DROP TABLE alembic_version",
        "DROP TABLE attempts",
        "ALTER TABLE attempts DROP COLUMN outcome",
        "DROP INDEX idx_generations_due",
    ],
)
def test_reset_repairs_a_damaged_schema(damage: str, db: Storage, database_url: str) -> None:
    schema = schema_of(database_url)
    fill(db)
    if "outcome" in damage and is_sqlite(database_url):
        damage = "DROP TABLE queue_state"  # SQLite does not drop a column that a CHECK names
    with db.session() as session:
        session.execute(text(damage))
    reset_database()
    assert schema_of(database_url) == schema
    with get_session() as session:
        assert count_generations(session) == 0


def test_reset_keeps_tables_of_other_programs(db: Storage, database_url: str) -> None:
    run_script(database_url, "CREATE TABLE songs (id INTEGER); INSERT INTO songs VALUES (1)")
    reset_database()
    assert ask(database_url, "SELECT id FROM songs") == [(1,)]


def test_reset_creates_a_missing_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/new/generations.db")
    reset_database()
    with get_session() as session:
        assert count_generations(session) == 0


def test_init_db_at_head_sends_one_query(db: Storage, database_url: str) -> None:
    with opened(database_url) as storage:
        statements: list[str] = []
        event.listen(storage.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        storage.require_schema()
        storage.require_schema()
    assert len(statements) == 1


def test_a_file_that_cannot_use_wal_is_migrated(tmp_path: Path) -> None:
    """As on a network file system: the VFS with dot-files has no shared memory."""
    init_db(f"sqlite:///file:{tmp_path}/generations.db?vfs=unix-dotfile&uri=true")
    with get_session() as session:
        a_generation(session)
        assert session.scalar(text("PRAGMA journal_mode")) == "delete"
