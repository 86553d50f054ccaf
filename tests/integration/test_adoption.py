"""Adoption of databases without a version, which the first implementation created and operators changed."""

from pathlib import Path

import pytest

from services.storage import (
    ConstraintError,
    ForeignDatabaseError,
    NotInitializedError,
    Storage,
    count_generations,
    create_generation,
    get_all_generations,
    get_all_prompts,
    get_generation,
    get_pending_generations,
    get_prompt_by_text,
    get_session,
    init_db,
    migrations,
)
from tests.support.databases import (
    ask,
    everything_in,
    is_sqlite,
    make_old_database,
    rows_of,
    run_script,
    schema_of,
    tables_of,
)
from tests.support.factories import a_request
from tests.support.sessions import opened

BASELINE = (
    "id prompt model_name model_version duration_seconds sample_rate channels file_path file_size_bytes "
    "status created_at completed_at generation_time_seconds error_message metadata"
).split()
CORRECTED = ("untimed-completed", "untimed-failed")


@pytest.fixture
def original_url(empty_database_url: str) -> str:
    """Return the URL of a database of the first implementation; the test runs once on each database system."""
    return make_old_database(empty_database_url, "original")


@pytest.fixture
def original_file(tmp_path: Path) -> str:
    return make_old_database(f"sqlite:///{tmp_path}/original.db", "original")


def drift(url: str) -> list[object]:
    with opened(url) as storage:
        return migrations.check(storage)


def test_every_row_is_kept_byte_for_byte(original_file: str) -> None:
    """The rows include unknown statuses, unreadable metadata, text in number columns, infinities, blobs and blanks."""
    before = rows_of(original_file, "generations", tuple(BASELINE))
    init_db(original_file)
    after = rows_of(original_file, "generations", tuple(BASELINE))
    assert len(after) == len(before) == 26
    completed_at, created_at = BASELINE.index("completed_at"), BASELINE.index("created_at")
    for old, new in zip(before, after, strict=True):
        if old[0].strip("'") in CORRECTED:
            assert old[completed_at] == "NULL"
            assert new[completed_at] == old[created_at]
            assert (*new[:completed_at], "NULL", *new[completed_at + 1 :]) == old
        else:
            assert new == old


def test_every_row_is_kept_on_postgresql_and_valid_json_stays_json(original_url: str) -> None:
    if is_sqlite(original_url):
        return  # above
    before = {row[0]: row for row in rows_of(original_url, "generations", tuple(BASELINE))}
    init_db(original_url)
    after = {row[0]: row for row in rows_of(original_url, "generations", tuple(BASELINE))}
    assert after.keys() == before.keys()
    for key, row in before.items():
        changed = {name: (old, new) for name, old, new in zip(BASELINE, row, after[key], strict=True) if old != new}
        for name in ("created_at", "completed_at"):
            old, new = changed.pop(name, (None, None))
            assert new == (f"{old}+00" if old else f"{row[BASELINE.index('created_at')]}+00" if new else None)
        assert changed.keys() <= {"metadata"}
        if changed:
            assert key.startswith("bad-metadata")
    kept = dict(ask(original_url, "SELECT id, metadata #>> '{}' FROM generations WHERE id LIKE 'bad-metadata%'"))
    assert kept == {
        "bad-metadata-cut": '{"bpm": 14',
        "bad-metadata-nan": '{"bpm": NaN}',
        "bad-metadata-nul": '{"key": "\\u0000"}',
        "bad-metadata-list": "[1, 2]",
        "bad-metadata-empty": "",
    }


def test_adopted_rows_are_readable_and_can_be_claimed(original_url: str) -> None:
    init_db(original_url)
    with get_session() as session:
        generations = get_all_generations(session)
        assert len(generations) == count_generations(session) == len(ask(original_url, "SELECT 1 FROM generations"))
        for generation in generations:
            assert generation.to_dict()["id"] == generation.id
            assert isinstance(generation.get_metadata(), dict)
            assert generation.attempt == 0
            assert generation.version == 1
        assert all(prompt.to_dict() for prompt in get_all_prompts(session))
        assert "good-pending" in {generation.id for generation in get_pending_generations(session)}
    with get_session() as session:
        generation = get_generation(session, "good-pending")
        assert generation is not None
        generation.mark_processing()
        generation.mark_completed(18.5)
        create_generation(session, **a_request())
    assert ask(original_url, "SELECT used_count FROM prompts WHERE id = 1") == [(3,)]


def test_a_bad_row_can_be_corrected_after_adoption(original_url: str) -> None:
    init_db(original_url)
    with get_session() as session:
        generation = get_generation(session, "bad-status")
        assert generation is not None
        generation.status = "failed"
    with get_session() as session:
        corrected = get_generation(session, "bad-status")
        assert corrected is not None
        assert corrected.completed_at is not None


def test_missing_prompts_are_created_and_every_generation_is_linked(original_url: str) -> None:
    counted = rows_of(original_url, "prompts")
    init_db(original_url)
    assert set(counted) <= set(rows_of(original_url, "prompts")) or not is_sqlite(original_url)
    assert ask(original_url, "SELECT count(*) FROM generations WHERE prompt_id IS NULL") == [(0,)]
    unlinked = "SELECT count(*) FROM generations AS g JOIN prompts AS p ON p.id = g.prompt_id WHERE p.text <> g.prompt"
    assert ask(original_url, unlinked) == [(0,)]
    with get_session() as session:
        prompt = get_prompt_by_text(session, "a prompt nobody counted")
        assert prompt is not None
        assert prompt.used_count == 2
        assert (prompt.last_used_at - prompt.first_used_at).total_seconds() == 1
        idle = get_prompt_by_text(session, "a prompt whose generations were deleted")
        assert idle is not None
        assert idle.used_count == 5


def test_duplicate_prompts_are_merged(original_url: str) -> None:
    if is_sqlite(original_url):
        run_script(
            original_url,
            "CREATE TABLE twins AS SELECT * FROM prompts; DROP TABLE prompts; ALTER TABLE twins RENAME TO prompts;",
        )
        # CREATE TABLE AS makes no primary key, and SQLite generates numbers only for a primary key
        run_script(
            original_url,
            "CREATE TABLE p (id INTEGER PRIMARY KEY, text VARCHAR, used_count INTEGER, first_used_at DATETIME,"
            "last_used_at DATETIME); INSERT INTO p SELECT * FROM prompts; DROP TABLE prompts;"
            "ALTER TABLE p RENAME TO prompts;",
        )
    else:
        run_script(original_url, "ALTER TABLE prompts DROP CONSTRAINT prompts_text_key")
    run_script(
        original_url,
        "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) VALUES "
        "('trap beat 140 BPM', 3, '2025-11-01 00:00:00.000000', '2025-11-02 00:00:00.000000'),"
        "('trap beat 140 BPM', 4, '2025-11-07 10:00:01.000000', '2025-11-09 00:00:00.000000')",
    )
    init_db(original_url)
    with get_session() as session:
        prompt = get_prompt_by_text(session, "trap beat 140 BPM")
        assert prompt is not None
        assert (prompt.id, prompt.used_count) == (1, 9)
        assert prompt.first_used_at.isoformat() == "2025-11-01T00:00:00+00:00"
        assert prompt.last_used_at.isoformat() == "2025-11-09T00:00:00+00:00"
    assert drift(original_url) == []


def test_an_adopted_database_has_the_schema_of_a_new_one(original_url: str, fresh_url: str) -> None:
    """On PostgreSQL, constraints that stored rows break stay NOT VALID."""
    init_db(original_url)
    adopted = schema_of(original_url)
    assert [line.removesuffix(" NOT VALID") for line in adopted] == schema_of(fresh_url)
    broken = {line.split()[1].removeprefix("ck_generations_") for line in adopted if line.endswith(" NOT VALID")}
    expected = {
        "status_known", "finished_has_time", "duration_positive", "sample_rate_positive", "channels_mono_or_stereo",
        "file_size_not_negative", "generation_time_not_negative", "ck_prompts_used_count_positive",
    }  # fmt: skip
    assert broken == (set() if is_sqlite(original_url) else expected)


def test_long_prompts_can_be_stored_after_adoption(original_url: str) -> None:
    init_db(original_url)
    with get_session() as session:
        for position in range(2):
            create_generation(session, **a_request(prompt="日" * 9_999 + str(position)))


@pytest.mark.parametrize("index", ["UNIQUE INDEX ix_prompts_text", "INDEX ix_prompts_text"])
def test_a_unique_key_on_the_text_with_another_name_is_accepted(original_url: str, index: str) -> None:
    run_script(original_url, f"CREATE {index} ON prompts (text)")
    init_db(original_url)
    assert drift(original_url) == []
    with get_session() as session:
        create_generation(session, **a_request(prompt="日" * 9_999))


def test_a_second_init_db_changes_nothing(original_url: str) -> None:
    init_db(original_url)
    rows = {table: rows_of(original_url, table) for table in tables_of(original_url)}
    schema = schema_of(original_url)
    init_db(original_url)
    with opened(original_url) as storage:
        migrations.upgrade(storage)
    assert {table: rows_of(original_url, table) for table in tables_of(original_url)} == rows
    assert schema_of(original_url) == schema


def test_a_session_before_adoption_raises_and_changes_nothing(original_url: str) -> None:
    before = everything_in(original_url)
    with opened(original_url) as storage, pytest.raises(NotInitializedError, match="init_db"), storage.session():
        pass
    assert everything_in(original_url) == before


def test_an_empty_version_table_counts_as_no_version(original_url: str) -> None:
    run_script(original_url, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    init_db(original_url)
    assert drift(original_url) == []
    with get_session() as session:
        assert get_generation(session, "good-completed") is not None


def test_the_001_of_the_original_is_upgraded(original_url: str) -> None:
    run_script(
        original_url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);"
        "INSERT INTO alembic_version VALUES ('001')",
    )
    init_db(original_url)
    assert drift(original_url) == []
    assert ask(original_url, "SELECT count(*) FROM generations WHERE prompt_id IS NULL") == [(0,)]


def test_an_empty_original_is_adopted(original_url: str) -> None:
    run_script(original_url, "DELETE FROM generations; DELETE FROM prompts")
    init_db(original_url)
    assert drift(original_url) == []
    with get_session() as session:
        create_generation(session, **a_request())


def test_objects_that_an_operator_added_are_kept(original_url: str) -> None:
    run_script(
        original_url,
        """
        CREATE TABLE playlists (id INTEGER PRIMARY KEY, generation_id VARCHAR(36) REFERENCES generations (id));
        INSERT INTO playlists VALUES (1, 'good-completed');
        ALTER TABLE generations ADD COLUMN stars INTEGER DEFAULT 3 NOT NULL CHECK (stars <= 5);
        ALTER TABLE generations ADD COLUMN "odd, name" VARCHAR(10) DEFAULT 'a,b)';
        ALTER TABLE prompts ADD COLUMN language TEXT;
        UPDATE generations SET stars = 5 WHERE id = 'good-completed';
        UPDATE prompts SET language = 'en' WHERE id = 1;
        CREATE INDEX mine ON generations (stars DESC) WHERE stars > 3;
        CREATE UNIQUE INDEX mine_too ON prompts (language);
        """,
    )
    if is_sqlite(original_url):
        run_script(original_url, "CREATE VIEW best AS SELECT id, stars FROM generations WHERE stars > 3")
    others = [line for line in schema_of(original_url) if "playlists" in line or "mine" in line]
    init_db(original_url)
    assert [line for line in schema_of(original_url) if "playlists" in line or "mine" in line] == others
    best = "best" if is_sqlite(original_url) else "generations WHERE stars > 3"
    assert ask(original_url, f"SELECT id, stars FROM {best}") == [("good-completed", 5)]
    assert ask(original_url, "SELECT language FROM prompts WHERE id = 1") == [("en",)]
    assert rows_of(original_url, "playlists") != []
    assert drift(original_url) == []
    with get_session() as session:
        generation_id = create_generation(session, **a_request()).id
    added = ask(original_url, f"SELECT stars, \"odd, name\" FROM generations WHERE id = '{generation_id}'")
    assert added == [(3, "a,b)")]
    with pytest.raises(Exception, match=r"(?i)check"):
        run_script(original_url, "UPDATE generations SET stars = 6 WHERE id = 'good-completed'")


def test_objects_that_only_sqlite_has_are_kept(original_file: str) -> None:
    """Generated columns, collations, comments and triggers, also after a downgrade, which rebuilds the table."""
    run_script(
        original_file,
        """
        ALTER TABLE generations ADD COLUMN words GENERATED ALWAYS AS (
            length(prompt) - length(replace(prompt, ' ', '')) + 1  -- a comment, with a comma (and a bracket
        ) VIRTUAL;
        ALTER TABLE generations ADD COLUMN [Title] TEXT COLLATE NOCASE /* another, */;
        CREATE INDEX by_words ON generations (words) WHERE words > 1;
        CREATE TABLE log (id TEXT, old TEXT, new TEXT);
        CREATE TRIGGER logged AFTER UPDATE OF status ON generations WHEN new.status <> old.status
        BEGIN INSERT INTO log VALUES (new.id, old.status, new.status); END;
        CREATE TRIGGER counted AFTER INSERT ON prompts BEGIN INSERT INTO log VALUES (new.text, '', 'new'); END;
        UPDATE generations SET Title = 'Rain' WHERE id = 'good-completed';
        """,
    )
    init_db(original_file)
    for _ in range(2):
        assert ask(original_file, "SELECT words, Title FROM generations WHERE Title = 'RAIN'") == [(4, "Rain")]
        assert drift(original_file) == []
        names = {name for (name,) in ask(original_file, "SELECT name FROM sqlite_master")}
        assert names >= {"by_words", "log", "logged", "counted"}
        with opened(original_file) as storage:
            migrations.downgrade(storage, "005")
            migrations.upgrade(storage)
    with get_session() as session:
        generation = get_generation(session, "good-pending")
        assert generation is not None
        generation.mark_processing()
        create_generation(session, **a_request(prompt="brand new"))
    logged = ask(original_file, "SELECT * FROM log ORDER BY rowid DESC LIMIT 2")
    assert logged == [("brand new", "", "new"), ("good-pending", "pending", "processing")]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("ALTER TABLE generations ADD COLUMN priority TEXT", "the column generations.priority"),
        ("CREATE TABLE attempts (id INTEGER)", "the (table|relation) attempts"),
    ],
)
def test_a_name_conflict_is_reported_before_anything_changes(original_url: str, script: str, name: str) -> None:
    run_script(original_url, script)
    before = schema_of(original_url), {table: rows_of(original_url, table) for table in tables_of(original_url)}
    with pytest.raises(ForeignDatabaseError, match=rf"already has {name}: rename"):
        init_db(original_url)
    after = schema_of(original_url), {table: rows_of(original_url, table) for table in tables_of(original_url)}
    assert after == before


def test_a_database_without_a_column_of_001_is_foreign(original_url: str) -> None:
    run_script(original_url, "ALTER TABLE generations DROP COLUMN error_message")
    before = everything_in(original_url)
    with pytest.raises(ForeignDatabaseError):
        init_db(original_url)
    assert everything_in(original_url) == before


def test_a_null_in_a_required_column_is_named_and_nothing_changes(tmp_path: Path) -> None:
    url = make_old_database(f"sqlite:///{tmp_path}/old.db", "original")
    run_script(
        url,
        "PRAGMA writable_schema = ON;"
        "UPDATE sqlite_master SET sql = replace(sql, 'created_at DATETIME NOT NULL', 'created_at DATETIME');"
        "PRAGMA writable_schema = OFF",
    )
    run_script(url, "UPDATE generations SET created_at = NULL WHERE id = 'good-pending'")
    before = schema_of(url), rows_of(url, "generations")
    with pytest.raises(ConstraintError, match=r"created_at|scheduled_at"):
        init_db(url)
    assert (schema_of(url), rows_of(url, "generations")) == before


def test_nullable_columns_of_001_become_not_null(original_url: str) -> None:
    if not is_sqlite(original_url):
        columns = "ALTER COLUMN created_at DROP NOT NULL, ALTER COLUMN status DROP NOT NULL"
        run_script(original_url, f"ALTER TABLE generations {columns}")
    init_db(original_url)
    assert drift(original_url) == []


def test_a_view_that_blocks_the_upgrade_on_postgresql_is_named(original_url: str) -> None:
    """PostgreSQL cannot change the type of a column that a view uses."""
    run_script(original_url, "CREATE VIEW best AS SELECT id FROM generations")
    if is_sqlite(original_url):
        init_db(original_url)
        return
    before = everything_in(original_url)
    with pytest.raises(ForeignDatabaseError, match=r"view best.*drop it.*Nothing was changed"):
        init_db(original_url)
    assert everything_in(original_url) == before
    run_script(original_url, "DROP VIEW best")
    init_db(original_url)


def test_a_database_that_lost_its_version_gets_it_back(db: Storage, database_url: str) -> None:
    with db.session() as session:
        create_generation(session, **a_request())
    schema = schema_of(database_url)
    run_script(database_url, "DROP TABLE alembic_version")
    init_db(database_url)
    assert schema_of(database_url) == schema
    with get_session() as session:
        assert count_generations(session) == 1


@pytest.mark.parametrize("revision", ["002", "005"])
def test_an_older_database_that_lost_its_version_is_told_how_to_get_it_back(
    empty_database_url: str, revision: str
) -> None:
    make_old_database(empty_database_url, "001")
    with opened(empty_database_url) as storage:
        migrations.upgrade(storage, revision)
    run_script(empty_database_url, "DROP TABLE alembic_version")
    with pytest.raises(ForeignDatabaseError, match=r"no version.*prompt_id.*alembic stamp"):
        init_db(empty_database_url)
