"""check_database(): no findings for a correct database, and one finding for each problem."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.storage import (
    Storage,
    check_database,
    check_search_index,
    claim_generation,
    complete_generation,
    init_db,
    pause_queue,
    register_worker,
    resume_queue,
    search_prompts,
    unregister_worker,
    update_generation_status,
)
from tests.support.copy_process import fill
from tests.support.databases import ask, is_sqlite, make_old_database, run_script
from tests.support.factories import a_generation
from tests.support.sessions import opened, path_of
from tests.support.sqlite_module import sqlite3
from tests.support.stored_times import ago, ahead


def problems(**options: Any) -> list[tuple[str, str]]:
    return [(finding.problem, finding.subject) for finding in check_database(**options).findings]


def test_a_correct_database_has_no_findings(db: Storage) -> None:
    with db.session() as session:
        a_generation(session)
        assert claim_generation(session, "worker") is not None
        complete_generation(session, a_generation(session, prompt="jazz").id, 1.0, 1)
    assert check_database().findings == ()


def test_an_empty_database_has_no_findings(db: Storage) -> None:
    assert check_database(storage=db).findings == ()


def test_a_drifted_search_index_is_found_once_and_rebuilt(db: Storage, database_url: str) -> None:
    if is_sqlite(database_url):
        with db.session() as session:
            a_generation(session, prompt="lofi rain")
        run_script(database_url, "INSERT INTO prompts_fts (prompts_fts) VALUES ('delete-all')")
    else:
        # The column is generated, so it drifts only if the function that generates it changes.
        definition = ask(database_url, "SELECT pg_get_functiondef('prompt_words'::regproc)")[0][0]
        run_script(database_url, definition[: definition.rindex("RETURN ")] + "RETURN ''::tsvector")
        with db.session() as session:
            a_generation(session, prompt="lofi rain")
        run_script(database_url, definition)
    (finding,) = check_database().findings
    assert (finding.subject, finding.problem) == ("search index", "it does not match the prompts")
    assert not finding.fixed
    (finding,) = check_database(fix=True).findings
    assert (finding.subject, finding.fixed) == ("search index", True)
    assert check_database().findings == ()
    with db.session() as session:
        assert check_search_index(session)
        assert [match.prompt.text for match in search_prompts(session, "rain")] == ["lofi rain"]


def test_a_row_that_is_processing_without_a_lease_is_found(db: Storage) -> None:
    with db.session() as session:
        left = a_generation(session)
        update_generation_status(session, left.id, "processing")
        a_generation(session, prompt="claimed")
        claim_generation(session, "worker")
    assert problems() == [("it is processing without a lease", f"generations {left.id}")]


def test_adopted_rows_that_break_a_constraint_are_found(empty_database_url: str) -> None:
    init_db(make_old_database(empty_database_url, "original"))
    found = check_database().findings
    problems = {finding.problem for finding in found}
    assert any(problem.startswith("it violates ck_generations_") for problem in problems)
    assert not any(finding.fixed for finding in found)
    about_rows = [finding for finding in found if "mode" not in finding.problem]  # the asset's script made the file
    assert {finding.subject.split()[0] for finding in about_rows} <= {"generations", "prompts"}


def test_a_row_that_breaks_several_rules_is_named_with_the_first_one_and_a_command(sqlite_url: str) -> None:
    with opened(sqlite_url) as storage:
        with storage.session() as session:
            id = a_generation(session).id
        change = "UPDATE generations SET status = 'odd', channels = 9, sample_rate = -1, version = 0"
        run_script(sqlite_url, f"PRAGMA ignore_check_constraints = ON; {change}")
        (finding,) = check_database(storage=storage).findings
    assert finding.problem == "it violates ck_generations_channels_mono_or_stereo"
    assert finding.advice == f"correct it, or dgx-storage delete {id}"


def test_a_row_with_a_broken_foreign_key_is_found(db: Storage, database_url: str) -> None:
    with db.session() as session:
        lost = a_generation(session)
    parent = "UPDATE generations SET parent_id = 'gone'"
    if is_sqlite(database_url):
        run_script(database_url, parent)  # SQLite does not enforce foreign keys by default
    else:
        run_script(database_url, f"SET session_replication_role = replica; {parent}")
    assert problems() == [("parent_id refers to a missing row", f"generations {lost.id}")]
    run_script(database_url, check_database().repair_sql)
    assert problems() == []


def test_a_missing_file_is_searched_in_outputs_dir(
    db: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.session() as session:
        ids = [a_generation(session, file_path=path).id for path in ("there.wav", "gone.wav", "x" * 4_000, "later.wav")]
        for id in ids[:3]:
            complete_generation(session, id, 1.0, 1)
    (tmp_path / "there.wav").touch()
    expected = [("its file is missing", f"generations {id}") for id in sorted(ids[1:3])]
    assert problems(outputs_dir=tmp_path) == expected
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    assert problems(outputs_dir="outputs") == expected  # below the current folder, as find_files() has it
    assert check_database().findings == ()
    with pytest.raises(ValueError, match="outputs_dir"):
        check_database(outputs_dir=tmp_path / "nowhere")


def test_a_file_that_cannot_be_looked_for_is_named(
    db: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.session() as session:
        ids = [a_generation(session, file_path=name).id for name in ("a", "b")]
        for id in ids:
            complete_generation(session, id, 1.0, 1)
    (tmp_path / "b").touch()
    stat = os.stat

    def refuse(path: str, **arguments: Any) -> os.stat_result:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **arguments)

    monkeypatch.setattr(os, "stat", refuse)  # tests run as root, whom no permission stops
    expected = ("whether its file is there is unknown: Permission denied", f"generations {ids[0]}")
    assert problems(outputs_dir=tmp_path) == [expected]


def test_due_generations_that_no_running_worker_claims_are_found(db: Storage) -> None:
    with db.session() as session:
        for model in ("a", "a", "b"):
            a_generation(session, model_name=model, scheduled_at=ago(seconds=90))
        a_generation(session, model_name="new", scheduled_at=ago(seconds=30))
        a_generation(session, model_name="later", scheduled_at=ahead(seconds=30))
        register_worker(session, "gpu-0", model_names=["b"])
        register_worker(session, "gpu-1", state="stopping")
    expected = ("generations of the model a are due, and no running worker claims them", "queue")
    assert problems() == problems(quick=True) == [expected]
    with db.session() as session:
        pause_queue(session)
    assert problems() == []
    with db.session() as session:
        resume_queue(session)
        unregister_worker(session, "gpu-0")
    assert [problem for problem, _ in problems()] == [
        f"generations of the model {model} are due, and no running worker claims them" for model in "ab"
    ]
    assert not check_database().is_sound
    with db.session() as session:
        register_worker(session, "gpu-2")
    assert problems() == []


def test_a_damaged_file_is_found_and_not_changed(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    fill(storage, 300)
    storage.dispose()
    path = path_of(sqlite_url)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'idx_generations_model_name'"
        page = connection.execute(query).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    before = path.read_bytes()
    storage = Storage(sqlite_url)
    found = check_database(storage=storage).findings
    storage.dispose()
    assert found
    assert {finding.subject for finding in found} == {"database"}
    assert not any(finding.fixed for finding in found)
    assert path.read_bytes() == before


def test_an_index_that_lacks_rows_is_found(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.session() as session:
        a_generation(session)
    with storage.session() as session:
        session.execute(text("PRAGMA writable_schema = ON"))
        session.execute(
            text(
                "UPDATE sqlite_schema SET sql = replace(sql, 'model_name, created_at', 'created_at, id') "
                "WHERE name = 'idx_generations_model_name'"
            )
        )
    storage.dispose()
    storage = Storage(sqlite_url)
    found = check_database(storage=storage).findings
    storage.dispose()
    assert any("idx_generations_model_name" in finding.problem for finding in found)
