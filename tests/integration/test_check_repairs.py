"""What check_database() reports beside the schema, what it repairs, and what it does if a repair fails."""

import json
import os
import subprocess
from typing import Any

import pytest
from sqlalchemy import make_url, text

from services.storage import (
    DatabaseReport,
    Finding,
    NotInitializedError,
    SchemaOutdatedError,
    Storage,
    check_database,
    claim_generation,
    get_generation,
    get_workers,
    migrations,
    register_worker,
    search_prompts,
)
from services.storage.backends.sqlite_wal import has_wal_reset_bug
from services.storage.maintenance import check
from services.storage.migrations import drift
from tests.support.command_line import run
from tests.support.databases import ask, is_sqlite, run_script
from tests.support.factories import a_generation
from tests.support.sessions import opened, path_of
from tests.support.sqlite_module import sqlite3


def found(report: DatabaseReport) -> dict[str, Finding]:
    return {finding.subject: finding for finding in report.findings}


def test_the_report_says_what_is_known_about_the_database(db: Storage, database_url: str) -> None:
    with db.session() as session:
        a_generation(session)
    report = check_database()
    assert report.is_sound
    assert report.database == db.display_url
    assert report.revision == db.read_revision()
    assert report.repair_sql == ""
    if is_sqlite(database_url):
        assert report.version == f"SQLite {sqlite3.sqlite_version}"
        assert bool(report.known_bugs) == has_wal_reset_bug(sqlite3.sqlite_version_info)
        assert report.journal_mode == "wal"
        assert report.wal_bytes == os.stat(f"{path_of(database_url)}-wal").st_size > 0
        assert report.disk_free_bytes is not None
        assert report.disk_free_bytes > 0
    else:
        assert report.version.startswith("PostgreSQL 1")
        assert (report.journal_mode, report.wal_bytes, report.disk_free_bytes) == (None, None, None)
    assert report.checkpoint_age_seconds is not None
    assert 0 <= report.checkpoint_age_seconds < 1e6
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["is_sound"] is True


def test_a_memory_database_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("sqlite:///:memory:")
    migrations.upgrade(storage)
    report = check_database(storage=storage)
    assert (report.is_sound, report.wal_bytes, report.known_bugs) == (True, None, ())
    storage.dispose()


def test_files_that_others_may_read_are_found_and_closed(sqlite_url: str) -> None:
    path = path_of(sqlite_url)
    path.chmod(0o644)
    path.parent.chmod(0o777)
    with opened(sqlite_url) as storage:
        findings = found(check_database(storage=storage))
        assert findings[str(path)].problem == "other users of this host may open the file: its mode is 0644"
        assert findings[str(path)].advice == f"chmod 600 {path}"
        assert findings[str(path.parent)].severity == "warning"
        findings = found(check_database(fix=True, storage=storage))
        assert findings[str(path)].fixed
        assert not findings[str(path.parent)].fixed  # somebody else may need the folder
        assert path.stat().st_mode & 0o777 == 0o600
        path.parent.chmod(0o700)
        assert check_database(storage=storage).is_sound


def test_a_full_disk_and_a_large_log_are_warnings(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LOW_DISK_BYTES", 1 << 62)
    monkeypatch.setattr(check, "LARGE_WAL_BYTES", 0)
    with opened(sqlite_url) as storage:
        with storage.session() as session:
            a_generation(session)
        findings = found(check_database(storage=storage))
    assert {subject: finding.severity for subject, finding in findings.items()} == {
        "disk": "warning",
        "write-ahead log": "warning",
    }


def test_an_expired_lease_is_found_and_reclaimed(db: Storage) -> None:
    with db.session() as session:
        a_generation(session)
        claimed = claim_generation(session, "gone", lease_seconds=1)
        assert claimed is not None
        session.execute(text("UPDATE generations SET lease_expires_at = '2020-01-01 00:00:00'"))
    (finding,) = check_database().findings
    assert finding.subject == f"generations {claimed.id}"
    assert "its worker gone is gone" in finding.problem
    assert all(finding.fixed for finding in check_database(fix=True).findings)
    assert check_database().findings == ()
    with db.session() as session:
        assert get_generation(session, claimed.id).is_pending  # type: ignore[union-attr]


def test_a_worker_that_stopped_without_saying_so_is_a_notice(db: Storage) -> None:
    with db.session() as session:
        register_worker(session, "silent")
        session.execute(text("UPDATE workers SET last_seen_at = '2020-01-01 00:00:00'"))
        session.execute(text("UPDATE workers SET expires_at = '2020-01-01 00:01:00'"))
    report = check_database()
    assert [(one.subject, one.severity) for one in report.findings] == [("workers silent", "notice")]
    assert report.is_sound
    assert check_database(fix=True).findings[0].fixed
    assert check_database().findings == ()
    with db.session() as session:
        assert get_workers(session) == []


def test_generations_without_a_prompt_are_linked(db: Storage, database_url: str) -> None:
    with db.session() as session:
        a_generation(session, prompt="lofi rain")
        a_generation(session, prompt="jazz")
    run_script(database_url, "UPDATE generations SET prompt_id = NULL; DELETE FROM prompts WHERE text = 'jazz'")
    report = check_database()
    assert {one.problem for one in report.findings} == {"it has no prompt_id, so search does not find it"}
    assert len(report.findings) == 2
    assert report.repair_sql.count("UPDATE generations") == 1
    assert all(finding.fixed for finding in check_database(fix=True).findings)
    assert check_database().findings == ()
    with db.session() as session:
        assert [match.prompt.text for match in search_prompts(session, "jazz")] == ["jazz"]


def test_a_sequence_that_is_behind_its_table_is_found_and_advanced(db: Storage, database_url: str) -> None:
    if is_sqlite(database_url):
        return  # SQLite takes the highest key plus one
    with db.session() as session:
        a_generation(session, prompt="jazz")
    run_script(database_url, "SELECT setval('prompts_id_seq', 1, false)")
    report = check_database()
    assert [one.subject for one in report.findings] == ["sequence prompts_id_seq"]
    assert "setval('prompts_id_seq'" in report.repair_sql
    assert check_database(fix=True).is_sound
    assert check_database().findings == ()
    with db.session() as session:
        a_generation(session, prompt="another")


def test_a_quick_check_reads_no_rows(db: Storage, database_url: str) -> None:
    with db.session() as session:
        a_generation(session)
    steps: list[str] = []
    run_script(database_url, "DROP INDEX idx_generations_due")
    report = check_database(quick=True, progress=lambda step, done, total: steps.append(step))
    assert (steps, [one.subject for one in report.findings]) == ([], ["index idx_generations_due"])
    check_database(progress=lambda step, done, total: steps.append(step))
    assert "check generations" in steps


def test_a_repair_that_fails_is_named_and_the_others_are_made(db: Storage, database_url: str) -> None:
    with db.session() as session:
        for key in ("a", "b"):
            a_generation(session, idempotency_key=key)
    run_script(
        database_url,
        "DROP INDEX uq_generations_idempotency_key; DROP INDEX idx_generations_due;"
        "UPDATE generations SET idempotency_key = 'same'",
    )
    findings = found(check_database(fix=True))
    assert findings["index idx_generations_due"].fixed
    broken = findings["index uq_generations_idempotency_key"]
    assert not broken.fixed
    assert "the repair failed: " in broken.problem
    assert not check_database().is_sound


def test_what_others_added_to_a_column_is_a_notice_and_stays(db: Storage, database_url: str) -> None:
    if is_sqlite(database_url):
        run_script(
            database_url,
            "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = "
            "replace(sql, 'model_version TEXT', 'model_version TEXT DEFAULT ''v1'' COLLATE NOCASE')",
        )
    else:
        run_script(database_url, "ALTER TABLE generations ALTER COLUMN model_version SET DEFAULT 'v1'")
    run_script(database_url, "ALTER TABLE generations ADD COLUMN mood TEXT DEFAULT 'calm'")
    before = check_database()
    assert before.is_sound
    assert {one.severity for one in before.findings} == {"notice"}
    assert "DEFAULT 'v1'" in " ".join(one.problem for one in before.findings)
    run_script(database_url, "DROP TABLE queue_state")
    assert check_database(fix=True).is_sound
    assert len(check_database().findings) == len(before.findings)
    with db.session() as session:
        a_generation(session)
    assert ask(database_url, "SELECT mood FROM generations") == [("calm",)]


@pytest.mark.parametrize("has_default", [False, True])
def test_a_column_of_others_that_lets_every_insert_fail_is_an_error(
    db: Storage, database_url: str, has_default: bool
) -> None:
    if is_sqlite(database_url):
        kind = "TEXT CONSTRAINT here NOT NULL COLLATE NOCASE" + (" DEFAULT ''calm''" if has_default else "")
        changed = f"replace(sql, 'model_version TEXT', 'mood {kind}, model_version TEXT')"
        edit = f"UPDATE sqlite_schema SET sql = {changed} WHERE name = 'generations'"
        run_script(database_url, f"PRAGMA writable_schema = ON; {edit}")
    else:
        default = "DEFAULT 'calm'" if has_default else ""
        run_script(database_url, f"ALTER TABLE generations ADD COLUMN mood TEXT NOT NULL {default}")
    db.dispose()  # an open connection to SQLite would not read the edited schema
    report = check_database()
    assert report.is_sound is has_default
    if not has_default:
        (finding,) = report.findings
        assert (finding.subject, finding.severity) == ("column generations.mood", "error")
        assert "so every insert fails" in finding.problem
        assert check_database(fix=True).findings[0].fixed
    assert check_database().findings == ()
    with db.session() as session:
        a_generation(session)
    assert ask(database_url, "SELECT mood FROM generations") == [("calm" if has_default else None,)]


def test_a_trigger_of_others_may_give_their_column_its_value(postgresql_url: str) -> None:
    run_script(
        postgresql_url,
        "ALTER TABLE generations ADD COLUMN mood TEXT NOT NULL;"
        "CREATE FUNCTION set_mood() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN new.mood := 'calm'; RETURN new; END $$;"
        "CREATE TRIGGER moody BEFORE INSERT ON generations FOR EACH ROW EXECUTE FUNCTION set_mood()",
    )
    with opened(postgresql_url) as storage:
        assert check_database(storage=storage).findings == ()


def test_a_renamed_column_is_created_again_and_its_values_are_said_to_be_lost(db: Storage, database_url: str) -> None:
    with db.session() as session:
        a_generation(session)
    db.dispose()
    run_script(database_url, "ALTER TABLE generations RENAME COLUMN channels TO chan")
    found_by = run("check", url=database_url)
    assert "restore a backup" not in found_by.stdout
    assert "left to repair: dgx-storage backup, then dgx-storage check --fix" in found_by.stderr
    fixed = run("check", "--fix", url=database_url)
    assert fixed.exit_code == 0
    lost = "it was missing, and was created again with 1 in every row; a backup has its values\n"
    assert f"error: column generations.channels: {lost}" in fixed.stdout
    assert "All problems" not in fixed.stderr
    assert "the lost values are only in a backup" in fixed.stderr
    assert check_database().findings == ()
    with db.session() as session:
        a_generation(session)
    assert ask(database_url, "SELECT count(chan), min(channels) FROM generations")[0][0] == 1


def test_a_rebuilt_table_keeps_what_others_added(sqlite_url: str) -> None:
    added = (
        "ALTER TABLE generations ADD COLUMN mood TEXT DEFAULT 'calm' CHECK (mood <> 'no');"
        "CREATE INDEX mine ON generations (mood); CREATE TABLE log (id);"
        "CREATE TRIGGER logged AFTER INSERT ON generations BEGIN INSERT INTO log VALUES (new.rowid); END;"
        "CREATE VIEW best AS SELECT id, mood FROM generations"
    )
    with opened(sqlite_url) as storage:
        with storage.session() as session:
            a_generation(session)
        run_script(sqlite_url, added)
        changed = "replace(sql, 'CHECK (channels IN (1, 2))', 'CHECK (channels IN (1, 2, 3))')"
        run_script(sqlite_url, f"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = {changed}")
        report = check_database(storage=storage)
        assert [one.subject for one in report.findings] == ["check generations.ck_generations_channels_mono_or_stereo"]
        run_script(sqlite_url, report.repair_sql)
        assert check_database(storage=storage).findings == ()
        with storage.session() as session:
            a_generation(session)
    assert ask(sqlite_url, "SELECT mood FROM best") == [("calm",), ("calm",)]
    assert ask(sqlite_url, "SELECT id FROM log") == [(2,)]
    assert ask(sqlite_url, "SELECT count(*) FROM sqlite_schema WHERE name = 'mine'") == [(1,)]
    with pytest.raises(sqlite3.IntegrityError):
        run_script(sqlite_url, "UPDATE generations SET mood = 'no'")


TAKEN = {
    "table queue_state": "DROP TABLE queue_state; CREATE VIEW queue_state AS SELECT 1 AS id",
    "index idx_generations_due": (
        "DROP INDEX idx_generations_due; CREATE TABLE songs (id INTEGER);CREATE INDEX idx_generations_due ON songs (id)"
    ),
}


@pytest.mark.parametrize("subject", TAKEN)
def test_an_object_of_others_with_a_name_of_ours_stays(db: Storage, database_url: str, subject: str) -> None:
    db.dispose()
    run_script(database_url, f"DROP INDEX idx_attempts_finished_at; {TAKEN[subject]}")
    for fix in (False, True):
        with opened(database_url) as storage:
            findings = found(check_database(fix=fix, storage=storage))
        assert "that is not this library's has its name: rename that" in findings[subject].problem
        assert (findings[subject].fixed, findings[subject].repair_sql) == (False, "")
        assert findings["index idx_attempts_finished_at"].fixed == fix


def test_a_damaged_index_is_rebuilt_from_its_table(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage, storage.session() as session:
        for number in range(20):
            a_generation(session, prompt=f"prompt {number}")
    name = "idx_generations_model_name"
    ((sql,),) = ask(sqlite_url, f"SELECT sql FROM sqlite_schema WHERE name = '{name}'")
    # While SQLite takes the index for a partial one, it does not keep it up to date.
    for definition in (f"{sql} WHERE model_name = 'none'", sql):
        change = definition.replace("'", "''")
        run_script(
            sqlite_url,
            f"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = '{change}' WHERE name = '{name}'",
        )
        if definition != sql:
            run_script(sqlite_url, "UPDATE generations SET model_name = 'other'")
    with opened(sqlite_url) as storage:
        report = check_database(storage=storage)
        assert {one.subject for one in report.findings} == {"database"}
        assert f'REINDEX "{name}";' in report.repair_sql
        assert check_database(fix=True, storage=storage).is_sound
        assert check_database(storage=storage).findings == ()


def test_a_user_who_may_not_create_a_schema_is_told(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_sqlite(database_url):
        return  # SQLite compares in memory
    run_script(
        database_url,
        "DO $$ BEGIN CREATE ROLE visitor LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO visitor",
    )
    monkeypatch.setattr(drift, "_expected", {})
    url = make_url(database_url).set(username="visitor").render_as_string(hide_password=False)
    with opened(url) as storage:
        report = check_database(storage=storage)
    run_script(database_url, "DROP OWNED BY visitor")
    (finding,) = report.findings
    assert (finding.subject, finding.severity) == ("schema", "notice")
    assert "may not create a schema" in finding.problem


def test_a_database_without_its_version_is_repaired(db: Storage, database_url: str) -> None:
    db.dispose()
    run_script(database_url, "DELETE FROM alembic_version")
    with opened(database_url) as storage:
        report = check_database(storage=storage)
        assert [one.subject for one in report.findings] == ["table alembic_version", "rows"]
        run_script(database_url, report.repair_sql)
        assert check_database(storage=storage).findings == ()


@pytest.mark.parametrize("revision", ["base", "003"])
def test_a_database_at_another_revision_is_refused(database_url: str, revision: str) -> None:
    with opened(database_url) as storage:
        migrations.downgrade(storage, revision)
        kind = NotInitializedError if revision == "base" else SchemaOutdatedError
        with pytest.raises(kind):
            check_database(storage=storage)


def test_the_command_prints_a_script_that_repairs(db: Storage, database_url: str) -> None:
    run_script(database_url, "DROP INDEX idx_generations_due; DROP TABLE queue_state")
    printed = run("check", url=database_url)
    assert printed.exit_code == 1
    assert "error: table queue_state: it is missing, and its rows with it" in printed.stdout
    report: Any = json.loads(run("check", "--json", url=database_url).stdout)
    assert (report["is_sound"], len(report["findings"])) == (False, 3)
    script = run("check", "--sql", url=database_url).stdout
    assert script == report["repair_sql"]
    run_script(database_url, script)
    again = run("check", url=database_url)
    assert (again.exit_code, again.stdout) == (0, "")


@pytest.mark.usefixtures("client_programs")
def test_the_script_works_in_the_shell_of_the_database(db: Storage, database_url: str) -> None:
    with db.session() as session:
        a_generation(session, prompt="lofi rain")
    if is_sqlite(database_url):
        run_script(database_url, "DROP TRIGGER prompts_fts_insert; ALTER TABLE generations DROP COLUMN current_step")
        shell = ["sqlite3", "-bail", str(path_of(database_url))]
    else:
        run_script(database_url, "DROP FUNCTION prompt_words(text) CASCADE")
        shell = ["psql", "--quiet", "--set=ON_ERROR_STOP=1", database_url]
    script = check_database().repair_sql
    done = subprocess.run(shell, input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert check_database().findings == ()
    with db.session() as session:
        assert [match.prompt.text for match in search_prompts(session, "rain")] == ["lofi rain"]
