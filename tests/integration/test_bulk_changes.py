"""Many generations cancelled, retried, deleted or marked at once: in batches, by ids or by the filters of a list."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from sqlalchemy import insert

from services.storage import (
    Generation,
    GenerationStatus,
    Storage,
    cancel_generations,
    claim_generation,
    count_generations,
    create_generations,
    delete_generations,
    find_generation_ids,
    get_generation,
    get_session,
    list_generations,
    retry_generations,
    set_favorites,
    shorten_ids,
)
from services.storage.maintenance import bulk_changes, pacing
from services.storage.types import utcnow
from tests.support.databases import is_sqlite
from tests.support.factories import a_generation, a_request
from tests.support.plans import explain, statements_on

STATUSES = tuple(GenerationStatus)


def stored_statuses(ids: list[str]) -> list[str]:
    with get_session() as session:
        found = [get_generation(session, generation_id) for generation_id in ids]
    return [generation.status for generation in found if generation is not None]


@pytest.fixture
def one_of_each(db: Storage) -> list[str]:
    """Store a generation of every status; return their ids in the order of STATUSES."""
    with get_session() as session:
        rows = create_generations(session, [a_request(prompt=f"in {status}") for status in STATUSES])
        for row, status in zip(rows, STATUSES, strict=True):
            row.status = status
    return [row.id for row in rows]


@pytest.mark.parametrize(
    ("change", "count", "expected"),
    [
        (cancel_generations, 2, ["cancelled", "processing", "completed", "failed", "cancelled"]),
        (retry_generations, 2, ["pending", "processing", "completed", "pending", "pending"]),
        (delete_generations, 5, []),
        (set_favorites, 5, [status.value for status in STATUSES]),
    ],
)
@pytest.mark.parametrize("by", ["ids", "filters"])
def test_a_change_applies_to_the_statuses_it_is_for(
    one_of_each: list[str], change: Callable[..., int], count: int, expected: list[str], by: str
) -> None:
    with get_session() as session:
        model = session.get_one(Generation, one_of_each[0]).model_name
        others = a_generation(session, model_name="another")
    selected: dict[str, Any] = {"ids": [*one_of_each, "unknown", "\0"]} if by == "ids" else {"model_name": model}
    assert change(dry_run=True, **selected) == count
    assert stored_statuses(one_of_each) == [status.value for status in STATUSES]
    assert change(**selected) == count
    assert change(**selected) == 0
    assert stored_statuses(one_of_each) == expected
    assert stored_statuses([others.id]) == ["pending"]


def test_a_processing_generation_is_asked_to_stop(db: Storage) -> None:
    with get_session() as session:
        a_generation(session)
        claimed = claim_generation(session)
    assert claimed is not None
    assert cancel_generations(ids=[claimed.id]) == 1
    with get_session() as session:
        found = get_generation(session, claimed.id)
    assert found is not None
    assert (found.status, found.cancel_requested_at is not None) == ("processing", True)


def test_batches_report_their_progress_and_reach_every_row(db: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "FEWEST_ROWS", 7)
    monkeypatch.setattr(bulk_changes, "MOST_ROWS", 7)
    with get_session() as session:
        create_generations(session, [a_request() for _ in range(30)], batch_id="a")
        create_generations(session, [a_request() for _ in range(5)], batch_id="b")
    seen: list[int] = []
    assert cancel_generations(batch_id="a", progress=seen.append) == 30
    assert seen == [7, 14, 21, 28, 30]
    with get_session() as session:
        assert count_generations(session, "cancelled") == 30
        assert count_generations(session, "pending") == 5


@pytest.mark.parametrize("change", [cancel_generations, retry_generations, delete_generations, set_favorites])
def test_a_batch_finds_its_rows_by_their_ids(db: Storage, change: Callable[..., int]) -> None:
    """Not by their status: SQLite would read all rows of it for each batch, with the write lock held."""
    with get_session() as session:
        ids = [row.id for row in create_generations(session, [a_request() for _ in range(200)])]
    with statements_on(db.engine, "UPDATE", "DELETE") as sent:
        change(ids=ids)
    assert len(sent) == 2
    for statement, parameters in sent:
        with db.engine.connect() as connection:
            word = "EXPLAIN QUERY PLAN" if is_sqlite(str(db.url)) else "EXPLAIN"
            plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{word} {statement}", parameters))
        assert "idx_generations_status" not in plan
        assert "(id=?)" in plan or not is_sqlite(str(db.url)), plan


def test_a_search_selects_by_the_words_of_prompts(db: Storage) -> None:
    with get_session() as session:
        for prompt in ("lofi piano", "trap beat", "warm lofi"):
            a_generation(session, prompt=prompt)
        found = list_generations(session, search="lofi")
        assert [row.prompt for row in found.items] == ["warm lofi", "lofi piano"]
        assert list_generations(session, search="lofi -warm", status="pending").items == [found.items[1]]
        assert list_generations(session, search="?!").items == []
    assert delete_generations(search="lofi") == 2
    with get_session() as session:
        assert count_generations(session) == 1


def test_ids_and_filters_cannot_be_combined(db: Storage) -> None:
    with pytest.raises(ValueError, match="ids and status cannot be combined"):
        cancel_generations(ids=["x"], status="pending")


class TestShortenedIds:
    @pytest.fixture(autouse=True)
    def ids(self, db: Storage) -> None:
        with get_session() as session:
            for generation_id in ("abcdef", "abcdef-1", "abcdef-2", "%_%_%_%", "ABCDEFG"):
                a_generation(session, generation_id=generation_id)

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("abcdef", ["abcdef"]),
            ("abcdef-", ["abcdef-1", "abcdef-2"]),
            ("abcdef-2", ["abcdef-2"]),
            ("%_%_%_", ["%_%_%_%"]),
            ("______", []),
            ("ABCDEF", ["ABCDEFG"]),
            ("unknown", []),
            ("\0\0\0\0\0\0", []),
        ],
    )
    def test_a_prefix_finds_the_ids_that_begin_with_it(self, prefix: str, expected: list[str]) -> None:
        with get_session() as session:
            assert find_generation_ids(session, prefix) == expected

    def test_a_short_prefix_is_refused(self) -> None:
        with get_session() as session, pytest.raises(ValueError, match="at least 6 characters"):
            find_generation_ids(session, "abc")

    def test_ids_that_are_not_stored_stay_whole(self) -> None:
        with get_session() as session:
            assert shorten_ids(session, ["unknown" * 5, "\0", "abcdef"]) == {
                "unknown" * 5: "unknown" * 5,
                "\0": "\0",
                "abcdef": "abcdef",
            }


def test_short_ids_of_a_bulk_insert_find_their_generations(db: Storage) -> None:
    with get_session() as session:
        rows = create_generations(session, [a_request(prompt=f"prompt {number}") for number in range(1_000)])
    ids = [row.id for row in rows]
    assert len({id[:18] for id in ids}) == 1
    with get_session(read_only=True) as session:
        for page in (ids[:1], ids[::50], ids[400:500]):
            with statements_on(db.engine, "SELECT") as sent:
                short = shorten_ids(session, page)
            assert len(sent) == 1
            assert list(short) == page
            assert max(map(len, short.values())) < 30
            for id in page[:20]:
                assert find_generation_ids(session, short[id]) == [id]


@pytest.mark.parametrize("seed", range(3))
def test_short_ids_are_unique_however_much_the_ids_share(db: Storage, seed: int) -> None:
    random = Random(seed)
    ids = {"".join(random.choices("ab", [9, 1], k=random.randint(1, 40))) for _ in range(150)}
    with get_session() as session:
        session.execute(insert(Generation), [a_request(id=id, created_at=utcnow()) for id in sorted(ids)])
        for id in ids:
            short = shorten_ids(session, [id])[id]
            assert len(short) >= min(13, len(id))
            assert find_generation_ids(session, short) == [id]
        page = random.sample(sorted(ids), 20)
        for id, short in shorten_ids(session, page).items():
            assert find_generation_ids(session, short) == [id]


def test_an_id_is_found_by_an_index(db: Storage) -> None:
    with get_session() as session:
        create_generations(session, [a_request() for _ in range(20)])
        ids = [row.id for row in list_generations(session, limit=5).items]
        plans = explain(session, lambda: shorten_ids(session, ids))
        if is_sqlite(str(db.url)):
            plans += explain(session, lambda: find_generation_ids(session, ids[0][:20]))
            assert "SCAN" not in "".join(plans)
        assert all("_generations_1 (id<?)" in plan or "pk_generations" in plan for plan in plans[:1]), plans
