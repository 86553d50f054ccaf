"""Pages of the history: their contents and order, also during writes."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

from benchmarks.example_history import build
from services.storage import (
    Generation,
    InvalidCursorError,
    Storage,
    create_generations,
    delete_generation,
    get_database_stats,
    get_generation,
    get_most_used_prompts,
    get_session,
    list_generations,
    search_generations,
    search_prompts,
)
from services.storage.pagination import encode_cursor
from tests.support.databases import is_sqlite, run_script
from tests.support.factories import a_generation, a_request
from tests.support.plans import explain
from tests.support.rows_that_break_checks import break_row

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
FILTERS = ("status", "model_name", "prompt", "batch_id", "favorite", "created_after", "created_before", "metadata")


def test_the_newest_come_first_and_ties_are_broken_by_id(db: Storage) -> None:
    with get_session() as session:
        for number in (3, 1, 2):
            a_generation(session, generation_id=f"tie-{number}").created_at = NOW
        a_generation(session, generation_id="older").created_at = NOW - timedelta(microseconds=1)
    with get_session() as session:
        assert [g.id for g in list_generations(session).items] == ["tie-3", "tie-2", "tie-1", "older"]


def test_pages_together_are_the_whole_history_and_the_last_has_no_cursor(db: Storage) -> None:
    with get_session() as session:
        create_generations(session, [a_request() for _ in range(25)])
        whole = [g.id for g in list_generations(session).items]
        pages = list(pages_of(session, limit=10))
        assert [len(page) for page in pages] == [10, 10, 5]
        assert [one for page in pages for one in page] == whole
        assert [len(page) for page in pages_of(session, limit=25)] == [25]


def test_an_empty_history_has_one_empty_page(db: Storage) -> None:
    with get_session() as session:
        page = list_generations(session)
        assert (page.items, page.next) == ([], None)


def test_every_condition_filters_the_history(db: Storage) -> None:
    with get_session() as session:
        one = a_generation(
            session, prompt="a", model_name="m1", batch_id="b1", metadata={"bpm": 128, "genre": "trap", "loop": True}
        )
        two = a_generation(session, prompt="b", model_name="m2", metadata={"bpm": 90.5, "genre": None, "loop": False})
        three = a_generation(session, prompt="a", model_name="m2")
        for hours, generation in enumerate((one, two, three)):
            generation.created_at = NOW + timedelta(hours=hours)
        two.mark_failed("no")
        three.is_favorite = True
    with get_session() as session:

        def ids(**conditions: Any) -> list[str]:
            return [g.id for g in list_generations(session, **conditions).items]

        assert ids(status="failed") == [two.id]
        assert ids(status="pending") == [three.id, one.id]
        assert ids(status="completed") == []
        assert ids(model_name="m2") == [three.id, two.id]
        assert ids(prompt="a") == [three.id, one.id]
        assert ids(prompt="unknown") == ids(prompt="\0") == ids(model_name="\ud800") == []
        assert ids(batch_id="b1") == [one.id]
        assert ids(favorite=True) == [three.id]
        assert ids(favorite=False) == [two.id, one.id]
        assert ids(created_after=NOW + timedelta(hours=1)) == [three.id, two.id]
        assert ids(created_before=(NOW + timedelta(hours=1)).replace(tzinfo=None)) == [one.id]
        assert ids(metadata={"bpm": (120, 140)}) == ids(metadata={"bpm": (128, 128)}) == [one.id]
        assert ids(metadata={"bpm": (None, 100)}) == ids(metadata={"bpm": 90.5}) == [two.id]
        assert ids(metadata={"bpm": (1, None)}) == [two.id, one.id]
        assert ids(metadata={"bpm": 128}) == ids(metadata={"bpm": 128.0}) == [one.id]
        assert ids(metadata={"bpm": "128"}) == ids(metadata={"bpm": True}) == []
        assert ids(metadata={"genre": "trap"}) == [one.id]
        assert ids(metadata={"genre": None}) == [three.id, two.id]
        assert ids(metadata={"loop": True}) == [one.id]
        assert ids(metadata={"loop": False}) == [two.id]
        assert ids(metadata={"loop": 1}) == ids(metadata={"loop": (0, 1)}) == []
        assert ids(metadata={"bpm": (120, 140), "genre": "trap"}, prompt="a", status="pending") == [one.id]
        assert ids(metadata={"\0": 1}) == ids(metadata={"genre": "\ud800"}) == []


@pytest.mark.parametrize("key", ['"', "a.b", "$", "[0]", "a'b", "ключ", "", "%s", ":x", "a\\b", 'x"y"z'])
def test_any_text_can_be_a_key_of_a_metadata_condition(db: Storage, key: str) -> None:
    with get_session() as session:
        one = a_generation(session, metadata={key: 7})
        a_generation(session, metadata={"other": 7})
        assert [g.id for g in list_generations(session, metadata={key: 7}).items] == [one.id]
        assert [g.id for g in list_generations(session, metadata={key: (6, 8)}).items] == [one.id]


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_number_in_metadata_can_be_found(db: Storage, real: float, whole: int) -> None:
    with get_session() as session:
        one = a_generation(session, metadata={"real": real, "whole": whole})
        session.flush()
        for conditions in ({"real": real}, {"whole": whole}, {"real": (real, real)}, {"whole": (whole, whole)}):
            assert one.id in [g.id for g in list_generations(session, metadata=conditions).items], conditions
        session.rollback()


def test_seeds_of_64_bits_are_stored_and_told_apart_exactly(db: Storage) -> None:
    seeds = [2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    with get_session() as session:
        rows = create_generations(
            session, [a_request(parameters={"seed": seed}, metadata={"seed": seed}) for seed in seeds]
        )
        ids_by_seed = {seed: row.id for seed, row in zip(seeds, rows, strict=True)}
    with get_session() as session:
        for seed in seeds:
            stored = get_generation(session, ids_by_seed[seed])
            assert stored is not None
            assert stored.parameters == stored.get_metadata() == {"seed": seed}

            def found(wanted: Any) -> set[str]:
                return {g.id for g in list_generations(session, metadata={"seed": wanted}).items}

            assert found(seed) == {ids_by_seed[seed]}
            assert found((seed, None)) == {ids_by_seed[other] for other in seeds if other >= seed}
            assert found((None, seed)) == {ids_by_seed[other] for other in seeds if other <= seed}
        a_generation(session, metadata={"seed": "text"})
        a_generation(session)
        assert found((None, 2**64 - 1)) == set(ids_by_seed.values())


@pytest.mark.parametrize(
    ("stored", "bound", "matches"),
    [
        ('{"x": NaN}', 0, False),
        ('{"x": Infinity, "y": 1}', 0, False),
        ('{"x": 1e400}', 0, True),
        ('{"x": [-1e999]}', 0, False),
        ('{"x": ' + "9" * 4_500 + "}", 0, True),
    ],
    ids=["nan", "infinity", "1e400", "nested", "digits"],
)
def test_numbers_that_json_or_python_cannot_represent_leave_strict_json(
    db: Storage, database_url: str, stored: str, bound: int, matches: bool
) -> None:
    is_json = "N" not in stored and "I" not in stored
    if not is_json and not is_sqlite(database_url):
        return  # JSONB refuses them
    with get_session() as session:
        generation_id = a_generation(session).id
    run_script(database_url, f"UPDATE generations SET metadata = '{stored}', parameters = '{stored}'")
    with get_session() as session:
        row = get_generation(session, generation_id)
        assert row is not None
        json.dumps(row.to_dict(), allow_nan=False)
        assert ("x" in row.get_metadata()) is is_json
        found = list_generations(session, metadata={"x": (bound, None)}).items
        assert (row in found) is matches
        assert (list_generations(session, metadata={"x": None}).items == []) is is_json


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"status": "done"}, ValueError, "status must be one of"),
        ({"limit": 0}, ValueError, "limit must be between 1"),
        ({"limit": True}, TypeError, "limit must be a whole number"),
        ({"favorite": 1}, TypeError, "^favorite must be True or False"),
        ({"created_after": "yesterday"}, TypeError, "created_after must be a datetime"),
        ({"model_name": 5}, TypeError, "model_name must be text"),
        ({"metadata": "bpm"}, TypeError, "metadata must be a mapping"),
        ({"metadata": {1: 2}}, TypeError, "metadata must have only text as keys"),
        ({"metadata": {"bpm": [120, 140]}}, TypeError, r"metadata\['bpm'\] must contain only JSON types"),
        ({"metadata": {"bpm": (120,)}}, ValueError, r"metadata\['bpm'\] must be a range of two numbers"),
        ({"metadata": {"bpm": ("a", "b")}}, TypeError, r"metadata\['bpm'\] must have numbers as bounds, not text"),
        ({"metadata": {"bpm": float("nan")}}, ValueError, r"metadata\['bpm'\] must not contain NaN"),
    ],
)
def test_an_invalid_condition_is_named(
    db: Storage, conditions: dict[str, Any], error: type[Exception], message: str
) -> None:
    with get_session() as session, pytest.raises(error, match=message):
        list_generations(session, **conditions)


def test_a_cursor_of_another_query_is_refused_and_the_session_stays_usable(db: Storage) -> None:
    with get_session() as session:
        create_generations(session, [a_request() for _ in range(3)])
        cursor = list_generations(session, limit=1).next
        for conditions in ({"status": "pending"}, {"metadata": {"bpm": 1}}, {"model_name": "m"}):
            with pytest.raises(InvalidCursorError):
                list_generations(session, after=cursor, **conditions)
        with pytest.raises(InvalidCursorError):
            search_generations(session, "trap", after=cursor)
        assert len(list_generations(session, after=cursor, limit=7).items) == 2


def test_a_cursor_of_the_other_database_system_is_refused_or_valid(db: Storage) -> None:
    from services.storage.pagination import PagePosition, encode_cursor

    asked = dict.fromkeys(
        ("status", "model_name", "prompt", "batch_id", "favorite", "created_after", "created_before", "metadata")
    )
    with get_session() as session:
        a_generation(session)
        for created_at in ("2026-11-22 10:00:00.5", "2026-11-22T10:00:00+00:00", "nonsense", "", 12, -1.5):
            try:
                list_generations(session, after=encode_cursor(PagePosition(created_at, "x"), asked))
            except InvalidCursorError:
                session.rollback()


def test_paging_continues_when_the_row_of_the_cursor_is_deleted(db: Storage) -> None:
    with get_session() as session:
        rows = [g.id for g in create_generations(session, [a_request() for _ in range(6)])][::-1]
        page = list_generations(session, limit=3)
        for row in rows[1:3]:
            delete_generation(session, row)
        assert [g.id for g in list_generations(session, limit=3, after=page.next).items] == rows[3:]


@given(st.lists(st.tuples(st.sampled_from(["add", "add old", "delete"]), st.integers(0, 99)), max_size=30), st.data())
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_paging_during_writes_repeats_no_row_and_skips_no_row_that_existed_throughout(
    db: Storage, changes: list[tuple[str, int]], data: st.DataObject
) -> None:
    with get_session() as session:
        session.execute(delete(Generation))
        rows = create_generations(session, [a_request() for _ in range(20)])
        for number, row in enumerate(rows):
            row.created_at = NOW + timedelta(seconds=number // 3)  # ties
        session.flush()
        throughout = {row.id for row in rows}
        seen: list[str] = []
        cursor = None
        changes = list(changes)
        while True:
            page = list_generations(session, limit=data.draw(st.integers(1, 6)), after=cursor)
            seen += [row.id for row in page.items]
            for change, number in changes[:5]:
                if change == "delete":
                    victim = rows[number % len(rows)].id
                    throughout.discard(victim)
                    delete_generation(session, victim)
                else:
                    added = a_generation(session)
                    age = timedelta(seconds=number - 50) if change == "add old" else timedelta(seconds=50)
                    session.execute(
                        update(Generation).where(Generation.id == added.id).values(created_at=NOW + age),
                        execution_options={"synchronize_session": False},
                    )
            changes = changes[5:]
            cursor = page.next
            if cursor is None:
                break
        assert len(seen) == len(set(seen))
        assert throughout <= set(seen)
        session.rollback()


def test_rows_with_times_in_other_formats_are_paged_once_each(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    forms = ["2026-11-22 10:00:00", "2026-11-22T10:00:00Z", "2026-11-22 10:00:00.5", "nonsense", "", "2026-11-22"] * 3
    with storage.session() as session:
        for number in range(len(forms)):
            a_generation(session, generation_id=f"id-{number:02}")
    for number, form in enumerate(forms):
        break_row(storage, f"id-{number:02}", created_at=form)
    with storage.session() as session:
        seen = [one for page in pages_of(session, limit=1) for one in page]
        assert sorted(seen) == [f"id-{number:02}" for number in range(len(forms))]
    storage.dispose()


def test_unreadable_metadata_matches_no_condition_and_hides_no_row(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.session() as session:
        for number, stored in enumerate(['{"bpm": 1', "[1, 2]", "nonsense", '{"bpm": 1, "bpm": 128}', "null"]):
            a_generation(session, generation_id=f"id-{number}")
            session.execute(
                text("UPDATE generations SET metadata = :it WHERE id = :id"), {"it": stored, "id": f"id-{number}"}
            )
    with storage.session() as session:
        assert [g.id for g in list_generations(session, metadata={"bpm": (1, 200)}).items] == ["id-3"]
        assert [g.id for g in list_generations(session, metadata={"bpm": 128}).items] == ["id-3"]
        assert len(list_generations(session, metadata={"bpm": None}).items) == 4
        assert len(list_generations(session).items) == 5
    storage.dispose()


FORGED: list[Any] = [
    *(2**63, -(2**63) - 1, 10**400, 0, 1.5, float("inf"), float("nan"), True, None, [], {}, {"hex": "zz"}, {"hex": 1}),
    *("", "now", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "infinity", "\0", "\ud800", "x" * 9_000),
]


@pytest.mark.parametrize("position", [*([value, "id"] for value in FORGED), ["2026-11-22", 5], [1], {"a": 1, "b": "x"}])
def test_a_forged_cursor_is_a_position_or_invalid(db: Storage, position: Any) -> None:
    with db.session() as session:
        a_generation(session)
    with db.session(read_only=True) as session:
        genuine = list_generations(session, limit=1).items[0]
        forged = encode_cursor(position, dict.fromkeys(FILTERS))
        with suppress(InvalidCursorError):
            assert {row.id for row in list_generations(session, after=forged).items} <= {genuine.id}


@pytest.mark.drill
def test_any_text_is_a_valid_cursor_or_an_invalid_cursor_error(db: Storage, scaled: Callable[[int], int]) -> None:
    import random

    generator = random.Random(5)
    with get_session() as session:
        create_generations(session, [a_request() for _ in range(5)])
        valid = list_generations(session, limit=2).next
        assert valid is not None
        for _ in range(scaled(10_000)):
            cursor = list(valid)
            for _ in range(generator.randint(1, 3)):
                character = generator.choice([generator.randint(0, 127), generator.randint(0, 0x10FFFF)])
                cursor[generator.randrange(len(cursor))] = chr(character)

            joined = "".join(cursor)
            try:
                assert list_generations(session, limit=2, after=joined).items or joined
            except InvalidCursorError:
                continue
            assert joined.rstrip("=") == valid, "a changed cursor was accepted"


def test_histories_are_read_from_an_index_without_a_full_sort(db: Storage) -> None:
    build(db, 20_000)
    with db.session() as session:
        cursor = list_generations(session, limit=5).next
        for conditions in (
            {},
            {"after": cursor},
            {"status": "completed"},
            {"status": "failed"},
            {"status": "pending"},
            {"model_name": "model-1"},
            {"favorite": True},
            {"batch_id": "b"},
            {"prompt": "p"},
            {"created_after": NOW - timedelta(days=380)},
            {"created_before": NOW},
        ):
            plans = explain(session, lambda conditions=conditions: list_generations(session, limit=20, **conditions))
            assert not [plan for plan in plans if "TEMP B-TREE" in plan or "Sort" in plan], (conditions, plans)
            assert "idx_generations_" in " ".join(plans), (conditions, plans)
        [plan] = explain(session, lambda: list_generations(session, limit=20, metadata={"bpm": (120, 140)}))
        # Rows come in the order of the index; SQLite sorts only the members of one JSON document.
        assert re.match("SCAN generations USING INDEX idx_generations_created_at|Limit", plan), plan
        assert "Sort" not in plan, plan


def test_searches_use_their_index(db: Storage) -> None:
    build(db, 20_000)
    name = {"sqlite": "VIRTUAL TABLE INDEX", "postgresql": "idx_prompts_words"}[db.backend.name]
    with db.session() as session:
        for query in (
            "waterphone",
            "waterphone piano",
            '"bpm waterphone"',
            "waterph*",
            "waterphone -piano",
            "夜の音楽",
        ):
            for order in ("newest", "used", "relevance"):
                plans = explain(session, lambda q=query, o=order: search_prompts(session, q, order_by=o))
                assert any(name in plan for plan in plans), (query, order, plans)
                assert not any("SCAN prompts\n" in plan or "Seq Scan on prompts" in plan for plan in plans), plans
            plans = explain(session, lambda q=query: search_generations(session, q))
            assert any(name in plan for plan in plans), (query, plans)
            assert not any("Seq Scan on generations" in plan or "SCAN generations\n" in plan for plan in plans), plans
        common = explain(session, lambda: search_generations(session, "take"))
        assert any("idx_generations_created_at" in plan for plan in common), common
        assert not any("TEMP B-TREE" in plan or "Sort" in plan for plan in common), common


def test_a_search_queries_its_words_once_and_not_for_every_row(db: Storage) -> None:
    build(db, 20_000)
    with db.session() as session:
        for query in ("waterphone", "take", '"take 7"', "tak*", "take -piano"):
            for order in ("newest", "used", "relevance"):
                plans = explain(session, lambda q=query, o=order: search_prompts(session, q, order_by=o))
                assert not re.search("(Filter|Cond): .*tsquery", "".join(plans)), (query, order, plans)
                assert not re.search("SCAN prompts\n|Seq Scan on prompts", "".join(plans)), (query, order, plans)
            plans = explain(session, lambda q=query: search_generations(session, q))
            assert not re.search("(Filter|Cond): .*tsquery", "".join(plans)), (query, plans)


def test_most_used_prompts_and_counts_are_read_from_an_index(db: Storage) -> None:
    build(db, 20_000)
    with db.session() as session:
        [popular] = explain(session, lambda: get_most_used_prompts(session))
        assert "idx_prompts_used_count" in popular
        assert not re.search("TEMP B-TREE|Sort", popular)
        [counts] = explain(session, lambda: get_database_stats(session))
        assert re.search("(COVERING INDEX|Index Only Scan using) idx_generations_status", counts), counts
        assert not re.search("TEMP B-TREE|Sort|Seq Scan on generations", counts), counts


def pages_of(session: Session, limit: int) -> Iterator[list[str]]:
    cursor = None
    while True:
        page = list_generations(session, limit=limit, after=cursor)
        yield [row.id for row in page.items]
        if (cursor := page.next) is None:
            return


def test_a_page_returns_the_stored_metadata(db: Storage) -> None:
    with get_session() as session:
        a_generation(session, metadata={"bpm": 128})
    with get_session(read_only=True) as session:
        [row] = list_generations(session, metadata={"bpm": (127, 129)}).items
        assert json.loads(str(row.metadata)) == {"bpm": 128}
