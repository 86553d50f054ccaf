"""SCHEMA_SQL and database-schema.md, which scripts/db_docs.py writes, describe the schema of a real database."""

import re
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from services.storage import Storage, create_generation, get_session, init_db, schema
from services.storage.models import Base
from tests.support.databases import ask, run_script, schema_of
from tests.support.factories import a_generation, a_request

ROOT = Path(__file__).resolve().parents[2]
# Triggers and functions, which SQLAlchemy does not inspect.
OTHER_OBJECTS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}


def run_db_docs(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "scripts/db_docs.py", *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    for name in ("alembic", "services", "scripts"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "database-schema.md", path)
    return path


def test_schema_sql_creates_the_schema_of_a_new_database(tmp_path: Path, sqlite_url: str) -> None:
    url = f"sqlite:///{tmp_path}/by_hand.db"
    run_script(url, schema.SCHEMA_SQL)
    assert schema_of(url) == schema_of(sqlite_url)


def test_a_database_created_from_schema_sql_is_at_head(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/by_hand.db"
    run_script(url, schema.SCHEMA_SQL)
    assert ask(url, "SELECT version_num FROM alembic_version") == [(schema.get_schema_version(),)]
    init_db(url)
    with get_session() as session:
        create_generation(session, **a_request())


def test_the_documents_are_up_to_date() -> None:
    done = run_db_docs(ROOT, "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("database-schema.md", "prompts", "songs"), ("services/storage/schema.py", "idx_prompts_used_count", "idx_other")],
)
def test_a_stale_document_is_named_with_the_command_that_updates_it(
    checkout: Path, name: str, old: str, new: str
) -> None:
    path = checkout / name
    good = path.read_text("utf-8")
    path.write_text(good.replace(old, new), "utf-8")
    checked = run_db_docs(checkout, "--check")
    assert checked.returncode == 1
    assert checked.stderr == f"{name} is stale: run `just db-docs` and commit what it writes.\n"
    assert path.read_text("utf-8") != good
    assert run_db_docs(checkout).stdout == f"{name} written.\n"
    assert path.read_text("utf-8") == good
    assert run_db_docs(checkout, "--check").returncode == 0


def test_a_missing_document_is_stale(checkout: Path) -> None:
    (checkout / "database-schema.md").unlink()
    assert run_db_docs(checkout, "--check").returncode == 1
    run_db_docs(checkout)
    assert (checkout / "database-schema.md").read_bytes() == (ROOT / "database-schema.md").read_bytes()


def test_an_index_without_a_comment_is_refused(checkout: Path) -> None:
    models = checkout / "services/storage/models.py"
    source = models.read_text("utf-8")
    models.write_text(re.sub(r" +# get_most_used_prompts\n", "", source), "utf-8")
    assert "no comment says what idx_prompts_used_count serves" in run_db_docs(checkout, "--check").stderr


def test_the_document_names_every_table_column_constraint_and_index() -> None:
    document = (ROOT / "database-schema.md").read_text("utf-8")
    for table in Base.metadata.sorted_tables:
        assert f"\n## {table.name}\n" in document
        for column in table.columns:
            assert f"\n| {column.name} | " in document
        for constraint in [*table.constraints, *table.indexes]:
            assert str(constraint.name) in document
    assert all(f"\n| {revision} | " in document for revision in schema.REVISIONS)
    assert "erDiagram" in document
    assert "stateDiagram-v2" in document


def test_the_document_names_every_object_of_a_real_database(db: Storage) -> None:
    words = set(re.findall(r"\w+", (ROOT / "database-schema.md").read_text("utf-8")))
    inspector = inspect(db.engine)
    names = {*inspector.get_table_names()} - {"alembic_version"}
    for table in [*names]:
        names |= {column["name"] for column in inspector.get_columns(table)} if "_fts_" not in table else set()
        names |= {str(index["name"]) for index in inspector.get_indexes(table)}
    with db.engine.connect() as connection:
        names |= {*connection.execute(text(OTHER_OBJECTS[db.engine.dialect.name])).scalars()}
    assert names - words == set()


def test_the_document_says_how_to_compare_times(db: Storage) -> None:
    examples = re.findall(r"^```sql\n(SELECT .*)\n```$", (ROOT / "database-schema.md").read_text(), re.MULTILINE)
    example = dict(zip(OTHER_OBJECTS, examples, strict=True))[db.engine.dialect.name]
    now = datetime.now(UTC)
    with get_session() as session:
        for hours in (1, 23, 25):
            a_generation(session).created_at = now - timedelta(hours=hours)
    with get_session(read_only=True) as session:
        assert session.execute(text(example.rstrip(";"))).scalar_one() == 2


def test_schema_sql_is_valid_without_any_extension() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema.SCHEMA_SQL)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
