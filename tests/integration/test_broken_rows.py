"""Rows of older databases that break a CHECK: no function stumbles over them, the queue goes on, check names them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from services.storage import (
    Generation,
    Storage,
    StorageError,
    WaitReason,
    cancel_generation,
    check_database,
    claim_generation,
    claim_generations,
    complete_generation,
    create_generation,
    delete_generation,
    estimate_completion,
    explain_wait,
    fail_generation,
    get_all_generations,
    get_attempts,
    get_database_stats,
    get_failure_reasons,
    get_generation,
    get_pending_generations,
    get_performance_stats,
    get_queue_position,
    get_queue_stats,
    get_usage,
    list_generations,
    reclaim_generations,
    retry_generation,
    search_generations,
    set_favorite,
    update_generation_status,
)
from services.storage.queue import seconds_until_due
from tests.support.factories import a_generation, a_request
from tests.support.rows_that_break_checks import break_row, unchecked
from tests.support.stored_times import ago

OLD = "2020-01-01 00:00:00"
TEXTS = ("high", "", "10/03/2024 07:00", "now", b"\xff")
ODD: dict[str, list[dict[str, Any]]] = {
    "sqlite": [
        *({column: value} for column in ("priority", "attempt", "max_attempts", "version") for value in ("x", b"\xff")),
        *({"priority": value} for value in (1.5, 9e300, 2**40)),
        *({column: value} for column in ("created_at", "scheduled_at") for value in (1710054005, 2.5, *TEXTS)),
        {"created_at": "2020-01-01T00:00:00Z", "scheduled_at": "2020-01-01T00:00:00Z"},
        *({column: "soon"} for column in ("started_at", "completed_at", "lease_expires_at", "cancel_requested_at")),
        {"duration_seconds": "long", "sample_rate": "x", "channels": "stereo"},
        {"duration_seconds": 0.0},
        {"generation_time_seconds": "fast", "file_size_bytes": "big", "progress": "x", "is_favorite": "maybe"},
        {"completed_at": OLD},
    ],
    "postgresql": [
        {"priority": -(2**31)},
        {"created_at": "infinity", "scheduled_at": "-infinity"},
        {"scheduled_at": "0044-03-15 00:00:00+00 BC"},
        {"created_at": "20000-01-01 00:00:00+00", "scheduled_at": "20000-01-01 00:00:00+00"},
        {"started_at": "infinity", "cancel_requested_at": "infinity"},
        {"duration_seconds": 0.0},
        {"duration_seconds": "NaN", "sample_rate": -1, "channels": 7, "max_attempts": 0, "version": 0},
        {"attempt": -1},
        {"completed_at": OLD},
    ],
}
UNUSABLE = ({"attempt": 2**31 - 1}, {"version": 2**31 - 1})  # they break no rule, but no claim can count further


def pages(session: Session) -> list[str]:
    seen, after, left = [], None, True
    while left:
        page = list_generations(session, limit=1, after=after)
        seen += [row.id for row in page.items]
        after, left = page.next, page.next is not None
    return seen


def restart(session: Session) -> None:
    generation = session.get_one(Generation, "odd")
    generation.mark_processing()
    generation.status = "pending"
    session.flush()


READS: dict[str, Callable[[Session], Any]] = {
    "get": lambda session: [row.to_dict() for row in get_all_generations(session)],
    "repr": lambda session: [f"{row} {row.lease} {row.is_pending}" for row in get_all_generations(session)],
    "pending": get_pending_generations,
    "pages": pages,
    "search": lambda session: search_generations(session, "trap"),
    "explain": lambda session: [explain_wait(session, id) for id in ("odd", "a", "b")],
    "estimate": lambda session: [estimate_completion(session, id) for id in ("odd", "a", "b")],
    "position": lambda session: [get_queue_position(session, id) for id in ("odd", "a", "b")],
    "attempts": lambda session: get_attempts(session, "odd"),
    "seconds until due": seconds_until_due,
    "stats": lambda session: [
        report(session)
        for report in (*(get_database_stats, get_queue_stats, get_performance_stats, get_usage, get_failure_reasons),)
    ],
}
WRITES: dict[str, Callable[[Session], Any]] = {
    "cancel": lambda session: cancel_generation(session, "odd"),
    "complete": lambda session: complete_generation(session, "odd", 1.0, 1),
    "fail": lambda session: fail_generation(session, "odd", "x"),
    "fail and retry": lambda session: fail_generation(session, "odd", "x", retry=True),
    "retry": lambda session: retry_generation(session, "odd"),
    "favourite": lambda session: set_favorite(session, "odd"),
    "start": lambda session: update_generation_status(session, "odd", "processing"),
    "start and stop": restart,
    "delete": lambda session: delete_generation(session, "odd"),
}


def prepare(db: Storage, values: dict[str, Any]) -> Storage:
    with db.session() as session:
        for name in ("odd", "a", "b", "c"):
            create_generation(session, **a_request(generation_id=name, priority=1 if name == "odd" else 0))
    break_row(db, "odd", **values)
    return db


def test_why_names_a_status_that_the_library_does_not_know(db: Storage) -> None:
    prepare(db, {"status": "archived"})
    with db.session(read_only=True) as session:
        wait = explain_wait(session, "odd")
        assert wait is not None
        assert (wait.reason, "'archived'" in wait.explanation) == (WaitReason.INVALID, True)
        assert "retry" not in wait.explanation


@pytest.mark.sampled
@pytest.mark.parametrize("number", range(max(len(odd) for odd in ODD.values()) + len(UNUSABLE)))
def test_the_queue_goes_on_past_an_odd_row_and_check_names_it(db: Storage, number: int) -> None:
    odd = (*ODD[db.backend.name], *UNUSABLE)
    if number >= len(odd):
        return
    values = odd[number]
    prepare(db, values)
    for name, read in READS.items():
        for read_only in (True, False):
            with db.session(read_only=read_only) as session:
                assert read(session) is not None, name
    with db.session(read_only=True) as session:
        assert sorted(pages(session)) == ["a", "b", "c", "odd"]
        wait = explain_wait(session, "odd")
        assert wait is not None
        assert wait.reason == WaitReason.INVALID
        json.dumps(get_generation(session, "a").to_dict())  # type: ignore[union-attr]
    with db.session() as session:
        assert [row.id for row in claim_generations(session, 3)] == ["a", "b", "c"]
        assert claim_generation(session) is None
        assert seconds_until_due(session) != 0
    if values not in UNUSABLE:
        assert "generations odd" in [finding.subject for finding in check_database(storage=db).findings]
    for name, write in WRITES.items():
        try:
            with db.session() as session:
                write(session)
                session.rollback()
        except (StorageError, ValueError):
            continue
        except Exception as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("models", [None, ["musicgen-small"], ["musicgen-small", "large"]])
def test_every_way_to_claim_passes_over_it(db: Storage, models: list[str] | None) -> None:
    prepare(db, {"duration_seconds": 0.0})
    with db.session() as session:
        claimed = claim_generations(session, 9, model_names=models, prefer_model="musicgen-small")
        assert [row.id for row in claimed] == ["a", "b", "c"]


def test_an_expired_lease_on_an_odd_row_does_not_keep_the_others(db: Storage) -> None:
    with db.session() as session:
        for name in ("odd", "a", "b"):
            create_generation(session, **a_request(generation_id=name))
        for row in claim_generations(session, 3):
            row.lease_expires_at = ago(seconds=9 if row.id == "odd" else 1)
    break_row(db, "odd", duration_seconds=0.0)
    with db.session() as session:
        assert {row.id for row in reclaim_generations(session)} == {"a", "b"}
        assert reclaim_generations(session) == []


def test_an_attempt_number_that_was_set_back_does_not_keep_the_queue(db: Storage) -> None:
    with db.session() as session:
        a_generation(session, generation_id="again")
        claimed = claim_generation(session)
        assert claimed is not None
        fail_generation(session, "again", "x", lease=claimed.lease, retry=False)
    with unchecked(db) as connection:
        connection.exec_driver_sql("UPDATE generations SET attempt = 0, status = 'pending', completed_at = NULL")
    for outcome in ("lost", "completed"):
        with db.session() as session:
            claimed = claim_generation(session)
            assert claimed is not None
            claimed.lease_expires_at = ago(seconds=1)
            if outcome == "lost":
                session.flush()
                assert [row.id for row in reclaim_generations(session)] == ["again"]
            else:
                complete_generation(session, "again", 1.0, 1, lease=claimed.lease)
    with db.session() as session:
        assert [(one.number, one.outcome) for one in get_attempts(session, "again")] == [
            (1, "lost"),
            (2, "completed"),
        ]
