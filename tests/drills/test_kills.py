"""kill -9 after every statement of a migration and at any point of a write: no acknowledged row is lost."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.storage import Storage, migrations
from tests.support.databases import ask, file_of, is_sqlite, make_old_database, rows_of, schema_of, tables_of
from tests.support.factories import a_generation
from tests.support.processes import DrillProcess, drill_processes

pytestmark = pytest.mark.drill


def contents(url: str) -> Any:
    """Return the schema and the rows; a missing SQLite file counts as an empty database."""
    if is_sqlite(url) and not file_of(url).exists():
        return ([], {})
    return schema_of(url), {table: rows_of(url, table) for table in tables_of(url)}


def kill_after_every_statement(url: str, work: str, scaled: Callable[[int], int]) -> int:
    """Run `work` and kill it after statement 1, 2, … until it completes; return the number of statements then.

    After each kill the database must be unchanged, so each round also tests the run after the previous kill; or it is
    complete, if the kill came after the commit. A drill at small scale skips some numbers of statements.
    """
    before = contents(url)
    stride = max(1, 20 // scaled(20))
    with drill_processes(1, "fork_and_kill") as (server,):
        statements = 1 - stride
        while True:
            statements += stride
            request = {"url": url, "work": work, "statements": statements}
            server.send_line(json.dumps(request))
            exit_code = server.read_line()
            if exit_code == "0":
                return statements
            assert exit_code == "-9"
            found = contents(url)
            if found != before:  # killed after its commit: what it has stored is complete
                server.send_line(json.dumps(request | {"statements": sys.maxsize}))
                assert server.read_line() == "0"
                assert contents(url) == found, f"killed after statement {statements}"
                return statements
            if is_sqlite(url):
                assert ask(url, "PRAGMA integrity_check")[0][0] in ("ok", *BAD_ROWS)


BAD_ROWS = ("CHECK constraint failed in generations", "CHECK constraint failed in prompts")


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["nothing", "001", "original"])
def test_a_migration_killed_after_any_statement_can_be_run_again(
    name: str, empty_database_url: str, scaled: Callable[[int], int]
) -> None:
    if name != "nothing":
        make_old_database(empty_database_url, name)
    assert kill_after_every_statement(empty_database_url, "upgrade", scaled) > 100
    storage = Storage(empty_database_url)
    assert migrations.check(storage) == []
    storage.dispose()


def test_a_reset_killed_after_any_statement_keeps_the_old_rows(
    db: Storage, database_url: str, scaled: Callable[[int], int]
) -> None:
    with db.session() as session:
        for number in range(20):
            a_generation(session, prompt=f"prompt {number % 5}")
    db.dispose()
    schema = schema_of(database_url)
    assert kill_after_every_statement(database_url, "reset", scaled) > 100
    assert schema_of(database_url) == schema
    assert ask(database_url, "SELECT count(*) FROM generations") == [(0,)]


def test_rows_acknowledged_before_a_kill_are_stored(database_url: str, scaled: Callable[[int], int]) -> None:
    acknowledged: dict[str, str] = {}
    for number in range(scaled(50)):
        generator = random.Random(number)
        writers = [DrillProcess("write_until_killed", database_url, f"{number}.{position}") for position in range(2)]
        try:
            for _ in range(generator.randint(2, 40)):
                note(acknowledged, generator.choice(writers).read_line())
            # At a random point: between two statements, in a write, in a commit, in a checkpoint.
            for writer in writers:
                for line in writer.kill():
                    note(acknowledged, line)
        finally:
            for writer in writers:
                writer.close()
        stored = dict(ask(database_url, "SELECT id, status FROM generations"))
        lost = {key for key, status in acknowledged.items() if stored.get(key) not in (status, "completed")}
        assert not lost, f"round {number}"
        if is_sqlite(database_url):
            assert ask(database_url, "PRAGMA integrity_check") == [("ok",)]
            assert ask(database_url, "PRAGMA foreign_key_check") == []
        counts = "SELECT count(*) FROM generations UNION ALL SELECT coalesce(sum(used_count), 0) FROM prompts"
        rows, uses = (count for (count,) in ask(database_url, counts))
        assert rows == uses, "a generation was stored without counting the use of its prompt, or the reverse"


def note(acknowledged: dict[str, str], line: str) -> None:
    status, *ids = line.split()
    acknowledged |= dict.fromkeys(ids, status)


def test_a_killed_first_start_leaves_a_private_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/generations.db"
    with drill_processes(1, "fork_and_kill") as (server,):
        server.send_line(json.dumps({"url": url, "work": "upgrade", "statements": 1}))
        assert server.read_line() == "-9"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o600}
