"""export_database() and import_database(): identical across databases, all or nothing, twice the same as once."""

import io
import json
import random
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, text

from services.storage import (
    Base,
    SchemaTooNewError,
    Storage,
    TransferError,
    UnreachableError,
    claim_generation,
    clone_generation,
    complete_generation,
    create_generation,
    export_database,
    get_generation,
    get_most_used_prompts,
    import_database,
    init_db,
    list_generations,
    set_favorite,
    track_prompt_usage,
)
from services.storage.engine import get_storage
from services.storage.maintenance.export_format import read_line, write_line
from services.storage.maintenance.row_scan import BATCH_ROWS
from services.storage.models import TABLES
from tests.support.copy_process import contents, fill
from tests.support.factories import a_generation, a_request
from tests.support.hostile_rows import DOCUMENTS, TEXTS, fill_with_hostile_rows
from tests.support.processes import drill_processes

GENERATIONS = Base.metadata.tables["generations"]


def exported(storage: Storage | None = None, **filters: Any) -> bytes:
    file = io.BytesIO()
    export_database(file, storage=storage, **filters)
    return file.getvalue()


def lines_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def rows_in(content: bytes, table: str) -> list[dict[str, Any]]:
    return [line["row"] for line in lines_of(content)[1:] if line["table"] == table]


def imported(content: bytes, storage: Storage | None = None) -> Any:
    return import_database(io.BytesIO(content), storage=storage)


def empty(storage: Storage) -> None:
    with storage.session() as session:
        for table in reversed(TABLES):
            session.execute(table.delete())


@pytest.fixture
def source(tmp_path: Path, sqlite_template: Path) -> Iterator[Storage]:
    """Return the Storage of another, empty database than that of `db`."""
    storage = Storage(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'source.db')}")
    yield storage
    storage.dispose()


@pytest.mark.drill
@pytest.mark.timeout(1_800)
def test_an_export_is_the_same_after_each_import_from_sqlite_to_postgresql_and_back(
    source: Storage, postgresql_url: str, tmp_path: Path, sqlite_template: Path, scaled: Callable[[int], int]
) -> None:
    there, back = Storage(postgresql_url), Storage(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'back.db')}")
    for seed in range(scaled(40)):
        for storage in (source, there, back):
            empty(storage)
        fill_with_hostile_rows(source, 400, seed)
        first = exported(source)
        for origin, target in ((source, there), (there, back)):
            imported(exported(origin), target)
            assert exported(target).split(b"\n") == first.split(b"\n"), seed
        empty(there)
        imported(exported(back), there)
        assert exported(there) == first, seed
    there.dispose()
    back.dispose()


def test_every_row_of_every_table_is_exported_and_imported(source: Storage, db: Storage) -> None:
    fill(source, 1_200)
    with source.session() as session:
        session.execute(insert(Base.metadata.tables["queue_state"]), [{"id": 1, "reason": "new driver"}])
    report = imported(exported(source), db)
    assert contents(db) == contents(source)
    assert report.stored == {name: len(rows) for name, rows in contents(source).items()}
    assert not any(report.existing.values())
    with db.session() as session:
        new = track_prompt_usage(session, "the first one afterwards")
        assert new.id == max(contents(source)["prompts"]) + 1


def test_every_column_of_every_table_is_in_the_lines(db: Storage) -> None:
    fill_with_hostile_rows(db, 20, seed=1)
    content = exported()
    header, *lines = lines_of(content)
    assert header["counts"].keys() == {table.name for table in TABLES}
    seen = {line["table"] for line in lines}
    for table in TABLES:
        columns = {column.name for column in table.columns if column.computed is None}
        if table.name == "attempts":
            rows = [attempt for row in rows_in(content, "generations") for attempt in row["attempts"]]
            columns -= {"generation_id"}
        else:
            rows = rows_in(content, table.name)
            columns |= {"attempts"} if table.name == "generations" else set()
        assert all(row.keys() == columns for row in rows)
        assert (header["counts"][table.name], bool(rows)) == (len(rows), table.name in seen | {"attempts"})


def test_an_import_twice_is_the_same_as_once(source: Storage, db: Storage) -> None:
    fill_with_hostile_rows(source, 300, seed=2)
    content = exported(source)
    imported(content, db)
    again = imported(content, db)
    assert exported(db) == content
    assert not any(again.stored.values())
    assert again.existing["generations"] == 300


def test_two_imports_at_the_same_time_are_the_same_as_one(
    source: Storage, db: Storage, database_url: str, tmp_path: Path
) -> None:
    fill(source, 300)
    content = exported(source)
    (tmp_path / "export.jsonl").write_bytes(content)
    with drill_processes(2, "import_one_file", database_url, str(tmp_path / "export.jsonl")) as processes:
        for process in processes:
            assert process.read_line() == "ready"
        for process in processes:
            process.send_line()
        for process in processes:
            process.finish()
    assert exported(db) == content


def test_generations_that_exist_stay_and_prompts_get_the_larger_count(source: Storage, db: Storage) -> None:
    with db.session() as session:
        track_prompt_usage(session, "takes the id of another")
        for _ in range(3):
            track_prompt_usage(session, "known to both")
        mine = create_generation(session, **a_request(prompt="known to both", generation_id="same"))
        mine.priority = 7
    with source.session() as session:
        create_generation(session, **a_request(prompt="only in the file"))
        create_generation(session, **a_request(prompt="known to both", generation_id="same"))
        create_generation(session, **a_request(prompt="known to both", generation_id="other"))
    for _ in range(2):
        imported(exported(source), db)
        with db.session() as session:
            same, other = get_generation(session, "same"), get_generation(session, "other")
            assert same is not None
            assert other is not None
            assert (same.priority, same.prompt_id) == (7, other.prompt_id)
            counts = {prompt.text: prompt.used_count for prompt in get_most_used_prompts(session)}
            assert counts == {"known to both": 4, "takes the id of another": 1, "only in the file": 1}
            for row in list_generations(session).items:
                assert row.prompt_record is not None
                assert row.prompt_record.text == row.prompt


def test_deleted_generations_come_back_with_their_attempts_and_parents(db: Storage) -> None:
    with db.session() as session:
        parent = a_generation(session, generation_id="z parent")
        child = clone_generation(session, parent.id, file_path="outputs/variation.wav")
        claimed = claim_generation(session)
        assert claimed is not None
        assert child is not None
        complete_generation(session, claimed.id, 18.5, 1, lease=claimed.lease)
    content = exported()
    with db.session() as session:
        session.execute(text("DELETE FROM generations"))
    report = imported(content)
    assert exported() == content
    assert (report.stored["generations"], report.stored["attempts"], report.missing_parents) == (2, 1, 0)


class TestFilters:
    def test_they_are_those_of_list_generations(self, source: Storage, db: Storage) -> None:
        fill(source, 400)
        for filters in ({"status": "failed"}, {"favorite": True, "metadata": {"bpm": (100, None)}}, {"search": "trap"}):
            with source.session() as session:
                wanted = {row.id for row in list_generations(session, limit=1_000, **filters).items}
            content = exported(source, **filters)
            assert {row["id"] for row in rows_in(content, "generations")} == wanted
            prompts = {row["text"] for row in rows_in(content, "prompts")}
            assert prompts == {row["prompt"] for row in rows_in(content, "generations")}
            imported(content, db)

    def test_a_parent_that_is_left_out_is_counted(self, source: Storage, db: Storage) -> None:
        with source.session() as session:
            parent = a_generation(session)
            child = clone_generation(session, parent.id, file_path="outputs/variation.wav")
            assert child is not None
            set_favorite(session, child.id)
        assert imported(exported(source, favorite=True), db).missing_parents == 1
        with db.session() as session:
            stored = get_generation(session, child.id)
            assert stored is not None
            assert stored.parent_id is None

    @pytest.mark.parametrize("filters", [{"status": "done"}, {"colour": "red"}, {"created_after": "today"}])
    def test_an_invalid_filter_writes_nothing(self, db: Storage, tmp_path: Path, filters: dict[str, Any]) -> None:
        with pytest.raises((ValueError, TypeError)):
            export_database(tmp_path / "export.jsonl", **filters)
        assert list(tmp_path.glob("*export*")) == []


BAD_VALUES: list[tuple[str, str, Any]] = [
    ("generations", "status", "queued"),
    ("generations", "channels", 3),
    ("generations", "channels", "2"),
    ("generations", "channels", True),
    ("generations", "duration_seconds", -1),
    ("generations", "duration_seconds", "Infinity"),
    ("generations", "duration_seconds", None),
    ("generations", "sample_rate", 2**40),
    ("generations", "prompt", " "),
    ("generations", "prompt", "x" * 10_001),
    ("generations", "prompt", "a\0b"),
    ("generations", "model_name", "\ud800"),
    ("generations", "created_at", "yesterday"),
    ("generations", "created_at", 5),
    ("generations", "completed_at", "2026-01-01T00:00:00+00:00"),
    ("generations", "metadata", {"bpm": float("nan")}),
    ("generations", "metadata", [1]),
    ("generations", "metadata", "a\0b"),
    ("generations", "parameters", {"seed": 2**64}),
    ("generations", "is_favorite", 1),
    ("generations", "error_message", ["x"]),
    ("generations", "id", None),
    ("generations", "prompt_id", 10**6),
    ("generations", "tempo", 140),
    ("generations", "attempts", {}),
    ("generations", "attempts", [{"number": 0}]),
    ("prompts", "text", None),
    ("prompts", "used_count", 0),
    ("prompts", "id", "1"),
    ("usage_totals", "event", "lost"),
    ("usage_totals", "count", 1.5),
    ("queue_state", "id", 2),
    ("queue_state", "paused_at", "now"),
]


class TestBadFiles:
    @pytest.fixture
    def lines(self, source: Storage) -> list[dict[str, Any]]:
        """Return the lines of an export with some rows of each table; the first rows are good."""
        with source.session() as session:
            for number in range(3):
                a_generation(session, prompt=f"prompt {number}")
            session.execute(insert(Base.metadata.tables["queue_state"]), [{"id": 1}])
            total = {"hour": 1, "model_name": "m", "event": "created", "count": 1}
            session.execute(insert(Base.metadata.tables["usage_totals"]), [total])
        return lines_of(exported(source))

    @pytest.mark.sampled
    @pytest.mark.parametrize(("table", "field", "value"), BAD_VALUES)
    def test_a_bad_value_is_refused_by_line_and_field_and_nothing_is_stored(
        self, db: Storage, lines: list[dict[str, Any]], table: str, field: str, value: Any
    ) -> None:
        before = exported()
        number, line = [(number, line) for number, line in enumerate(lines, start=1) if line.get("table") == table][-1]
        line["row"][field] = value
        if field == "prompt_id":
            line["row"]["prompt"] = "a prompt that is not in the file"
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with pytest.raises(TransferError, match=rf"^line {number}: ") as caught:
            imported(content)
        named = {"attempts": {"attempts", "worker_id"}, "completed_at": {"status", "completed_at"}}.get(field, {field})
        assert (caught.value.line, caught.value.field in named) == (number, True), str(caught.value)
        assert str(caught.value.field) in str(caught.value)
        assert exported() == before

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (b"", "line 1: it is not the header"),
            (b"{}\n", "line 1: it is not the header"),
            (b"\x00\xff\n", "line 1: it is not the header"),
            (b'[{"format": "dgx-music-storage export"}]\n', "line 1: it is not the header"),
            (
                b'{"format": "dgx-music-storage export", "version": 1, "revision": "001", "counts": 3}\n',
                "line 1: counts",
            ),
        ],
    )
    def test_what_is_no_export_is_refused(self, db: Storage, broken: bytes, message: str) -> None:
        with pytest.raises(TransferError, match=message):
            imported(broken)

    def test_a_file_that_is_no_export_is_named_with_advice(self, db: Storage, tmp_path: Path) -> None:
        file = tmp_path / "README.md"
        file.write_text("# Not an export")
        with pytest.raises(TransferError) as caught:
            import_database(file)
        advice = "it is not the header of an export: name a file that `dgx-storage export` wrote"
        assert (str(caught.value), caught.value.line) == (f"{file}: line 1: {advice}", 1)

    @pytest.mark.parametrize(
        ("added", "message"),
        [
            (b"not JSON\n", "line is not JSON"),
            (b"[]\n", "line must be a JSON object"),
            (b"[" * 100_000 + b"\n", "line is not JSON"),
            (b'{"table": "songs", "row": {}}\n', "table must be"),
            (b'{"table": "attempts", "row": {}}\n', "table must be"),
            (b'{"table": "prompts", "row": []}\n', "row must be a JSON object"),
            (b'{"table": "prompts", "row": {"id": 1}', "line is incomplete"),
            (b"\n", "line is not JSON"),
            (b"\xff\n", "line is not JSON"),
        ],
    )
    def test_a_bad_line_is_refused_by_number(
        self, db: Storage, lines: list[dict[str, Any]], added: bytes, message: str
    ) -> None:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with pytest.raises(TransferError, match=rf"^line {len(lines) + 1}: {message}"):
            imported(content + added)

    def test_a_file_that_was_cut_anywhere_is_refused(self, db: Storage, lines: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        before = exported()
        for length in [*range(0, len(content), 101), len(content) - 1]:
            with pytest.raises(TransferError):
                imported(content[:length])
        assert exported() == before

    def test_the_file_of_a_newer_release_is_refused(self, db: Storage, lines: list[dict[str, Any]]) -> None:
        for change in ({"revision": "999"}, {"version": 2}):
            with pytest.raises(SchemaTooNewError):
                imported((json.dumps(lines[0] | change) + "\n").encode())

    def test_columns_that_an_older_release_lacked_get_their_defaults(
        self, db: Storage, lines: list[dict[str, Any]]
    ) -> None:
        for line in lines[1:]:
            if line["table"] == "generations":
                for name in ("priority", "scheduled_at", "attempt", "version", "file_sha256", "attempts"):
                    del line["row"][name]
        imported("".join(json.dumps(line) + "\n" for line in lines).encode())
        with db.session() as session:
            for row in list_generations(session).items:
                assert (row.priority, row.attempt, row.version, row.scheduled_at) == (0, 0, 1, row.created_at)

    def test_the_idempotency_key_of_another_generation_is_refused(self, source: Storage, db: Storage) -> None:
        for storage in (source, db):
            with storage.session() as session:
                a_generation(session, idempotency_key="key")
        with pytest.raises(TransferError, match=r"line 3: .*idempotency_key") as caught:
            imported(exported(source), db)
        assert caught.value.field == "idempotency_key"


class TestFiles:
    def test_the_file_is_private_and_not_overwritten(self, db: Storage, tmp_path: Path) -> None:
        file = tmp_path / "export.jsonl"
        export_database(file)
        assert file.stat().st_mode & 0o777 == 0o600
        before = file.read_bytes()
        with db.session() as session:
            a_generation(session)
        with pytest.raises(TransferError, match="exists"):
            export_database(file)
        assert file.read_bytes() == before
        export_database(file, overwrite=True)
        assert file.read_bytes() == exported()
        assert list(tmp_path.glob(".*.partial")) == []

    def test_the_database_itself_is_neither_overwritten_nor_read(self, sqlite_url: str) -> None:
        init_db(sqlite_url)
        path = Path(str(get_storage().url.database))
        with get_storage().session() as session:
            a_generation(session)
            for name in (path, Path(f"{path}-wal")):
                with pytest.raises(TransferError, match="is the database itself"):
                    export_database(name, overwrite=True)
                with pytest.raises(TransferError, match="is the database itself"):
                    import_database(name)

    def test_a_folder_that_is_not_there_is_named(self, db: Storage, tmp_path: Path) -> None:
        with pytest.raises(UnreachableError, match="nowhere"):
            export_database(tmp_path / "nowhere" / "export.jsonl")
        with pytest.raises(UnreachableError, match="nowhere"):
            import_database(tmp_path / "nowhere")
        with pytest.raises(UnreachableError, match="directory"):
            import_database(tmp_path)


COPIES = """
    WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :count)
    INSERT INTO {table} ({columns}) SELECT {values} FROM {table}, n WHERE {key} = :first
"""


def multiply(storage: Storage, count: int) -> None:
    """Store `count` generations of as many prompts, with an attempt each, in an SQLite database."""
    empty(storage)
    with storage.session() as session:
        generation = a_generation(session, generation_id="first", prompt="prompt", metadata={"bpm": 140})
        claimed = claim_generation(session)
        assert claimed is not None
        complete_generation(session, claimed.id, 18.5, 1, lease=claimed.lease)
        changes = {
            "prompts": {"id": ":first + n", "text": "'prompt ' || n"},
            "generations": {"id": "'copy ' || n", "prompt": "'prompt ' || n", "prompt_id": "prompt_id + n"},
            "attempts": {"generation_id": "'copy ' || n"},
        }
        for name, changed in changes.items():
            columns = [column.name for column in Base.metadata.tables[name].columns]
            values = ", ".join(changed.get(column, column) for column in columns)
            key = "generation_id" if name == "attempts" else "id"
            statement = COPIES.format(table=name, columns=", ".join(columns), values=values, key=key)
            first = generation.prompt_id if name == "prompts" else "first"
            session.execute(text(statement), {"count": count, "first": first})


class TestMemory:
    def test_neither_an_export_nor_an_import_needs_more_of_it_for_more_rows(
        self, source: Storage, db: Storage, tmp_path: Path
    ) -> None:
        peaks = []
        for count in (1_000, 3_000):  # a line takes about 1,000 bytes, and its values several times that
            multiply(source, count)
            with db.session() as session:
                session.execute(text("DELETE FROM prompts"))
            file = tmp_path / f"{count}.jsonl"
            peaks.append((peak(export_database, file, storage=source), peak(import_database, file, storage=db)))
            assert exported(db) == file.read_bytes()
        for fewer, more in zip(*peaks, strict=True):
            assert more < fewer + 400_000


def peak(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Return the most memory in bytes that Python had allocated while a function ran."""
    tracemalloc.start()
    try:
        function(*arguments, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestKills:
    @pytest.mark.drill
    @pytest.mark.timeout(1_800)
    def test_an_import_killed_after_any_statement_stores_nothing_and_can_be_run_again(
        self,
        source: Storage,
        db: Storage,
        database_url: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        scaled: Callable[[int], int],
    ) -> None:
        fill(source, BATCH_ROWS + 100)
        content, before = exported(source), exported(db)
        (tmp_path / "export.jsonl").write_bytes(content)
        monkeypatch.setenv("EXPORT", str(tmp_path / "export.jsonl"))
        db.dispose()
        stride = max(1, 4 // scaled(20))
        statements, exit_code = 0, "-9"
        with drill_processes(1, "fork_and_kill") as (server,):
            while exit_code == "-9":
                statements += stride
                server.send_line(json.dumps({"url": database_url, "work": "import", "statements": statements}))
                exit_code = server.read_line()
                if exit_code == "-9":
                    assert exported(db) == before, f"killed after statement {statements}"
        assert exit_code == "0"
        assert statements > 20
        assert exported(db) == content

    def test_a_killed_export_leaves_no_incomplete_file(
        self, db: Storage, database_url: str, tmp_path: Path, scaled: Callable[[int], int]
    ) -> None:
        fill(db, 500)
        file, whole = tmp_path / "exports" / "export.jsonl", exported()
        file.parent.mkdir()
        for seed in range(scaled(100)):
            with drill_processes(1, "export_until_killed", database_url, str(file)) as (process,):
                assert process.read_line() == "ready"
                time.sleep(random.Random(seed).uniform(0, 0.4))
                process.kill()
            assert not file.exists() or file.read_bytes() == whole
        export_database(file, overwrite=True)
        assert [path.name for path in file.parent.iterdir()] == ["export.jsonl"]


def line_of(**values: Any) -> bytes:
    row = {column.name: None for column in GENERATIONS.columns} | {
        "id": "x", "prompt": "p", "model_name": "m", "duration_seconds": 1.0, "sample_rate": 1, "channels": 1,
        "file_path": "f", "status": "pending", "created_at": "2026-01-01 00:00:00", "priority": 0, "attempt": 0,
        "scheduled_at": "2026-01-01 00:00:00", "max_attempts": 1, "is_favorite": False, "version": 1,
    }  # fmt: skip
    return write_line(GENERATIONS, row | values, {})


class TestLines:
    """What is read from a line and stored is written as the same line; without a database, so thousands of values."""

    TREES = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )

    @given(st.sampled_from(DOCUMENTS) | TREES.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_text_in_a_json_column(self, document: str) -> None:
        self.check(metadata=document, parameters=document)

    @given(
        st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    )
    def test_any_text(self, value: str) -> None:
        self.check(error_message=value, **({"prompt": value} if value.strip() else {}))

    @given(st.datetimes(), st.floats(min_value=1e-300, max_value=1e300), st.integers(0, 2**63 - 1))
    def test_any_number_and_time(self, moment: datetime, number: float, size: int) -> None:
        self.check(created_at=moment.isoformat(" "), duration_seconds=number, file_size_bytes=size)

    def check(self, **values: Any) -> None:
        line = line_of(**values)
        assert line.count(b"\n") == 1
        try:
            table, row, parts = read_line(line)
        except ValueError:
            assert any("\0" in str(value) for value in values.values())  # PostgreSQL cannot store it
            return
        assert (table, parts) == (GENERATIONS, {"attempts": []})
        stored = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        assert write_line(table, stored, {}) == line
        # PostgreSQL stores the value of JSON, and text that is not JSON as a JSON string.
        as_values = {name: json.dumps(load(stored[name])) for name in ("metadata", "parameters") if stored[name]}
        assert write_line(table, stored | as_values, {}) == line


def load(document: str) -> Any:
    try:
        return json.loads(document)
    except ValueError:
        return document
