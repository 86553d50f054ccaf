"""create_generations(): in order, all or none, in a constant number of statements."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, inspect

from services.storage import (
    ConflictError,
    Generation,
    Storage,
    count_generations,
    create_generation,
    create_generations,
    get_all_prompts,
    get_database_stats,
    get_generation,
    get_pending_generations,
    get_session,
)
from services.storage.errors import ConstraintError
from tests.support.factories import a_request


def test_thousands_of_requests_are_stored_and_claimed_in_order(db: Storage) -> None:
    requests = [a_request(prompt=f"prompt {number % 100}", file_path=f"{number}.wav") for number in range(2_500)]
    with get_session() as session:
        created = create_generations(session, iter(requests), batch_id="batch")
        assert [generation.file_path for generation in created] == [request["file_path"] for request in requests]
    with get_session() as session:
        assert count_generations(session) == 2_500
        pending = get_pending_generations(session, limit=3_000)
        assert {generation.batch_id for generation in pending} == {"batch"}
        assert [generation.file_path for generation in pending] == [request["file_path"] for request in requests]
        assert [prompt.used_count for prompt in get_all_prompts(session)] == [25] * 100


def test_the_number_of_statements_does_not_depend_on_the_number_of_requests(db: Storage) -> None:
    counts = []
    for size in (2, 900):
        statements: list[str] = []

        def note(connection: Any, cursor: Any, statement: str, *rest: Any, seen: list[str] = statements) -> None:
            seen.append(statement)

        event.listen(db.engine, "before_cursor_execute", note)
        with get_session() as session:
            create_generations(session, [a_request() for _ in range(size)])
        event.remove(db.engine, "before_cursor_execute", note)
        counts.append(len([statement for statement in statements if statement.startswith("INSERT")]))
    assert counts == [2, 2]


@pytest.mark.parametrize("bad", [{"channels": 3}, {"prompt": ""}, {"tempo": 140}, {"sample_rate": "44100"}], ids=str)
def test_one_bad_request_stores_none_and_its_position_is_named(db: Storage, bad: dict[str, Any]) -> None:
    with get_session() as session:
        with pytest.raises((ValueError, TypeError), match=rf"requests\[2\].*{next(iter(bad))}"):
            create_generations(session, [a_request(), a_request(), a_request(**bad), a_request()])
        stats = get_database_stats(session)
        assert (stats["total_generations"], stats["total_prompts"]) == (0, 0)


def test_a_value_that_is_not_a_mapping_is_refused_with_its_position(db: Storage) -> None:
    lacking = a_request()
    del lacking["prompt"]
    nonsense: list[Any] = [lacking, "text", 5, None, ["prompt"]]
    with get_session() as session:
        for request in nonsense:
            with pytest.raises((ValueError, TypeError), match=r"requests\[1\]"):
                create_generations(session, [a_request(), request])


def test_a_refusal_by_the_database_stores_none_and_the_session_stays_usable(db: Storage) -> None:
    with get_session() as session:
        create_generations(session, [a_request(generation_id="abc-123")])
        with pytest.raises(ConflictError, match="generation_id"):
            create_generations(session, [a_request(prompt="new"), a_request(generation_id="abc-123")])
        with pytest.raises(ConflictError, match="generation_id"):
            create_generations(session, [a_request(generation_id="same"), a_request(generation_id="same")])
        with pytest.raises(ConstraintError, match="parent_id"):
            create_generations(session, [a_request(), a_request(parent_id="nobody")])
        create_generations(session, [a_request()])
    with get_session() as session:
        assert count_generations(session) == 2
        assert [prompt.used_count for prompt in get_all_prompts(session)] == [2]


def test_a_request_can_name_an_earlier_one_as_its_parent(db: Storage) -> None:
    with get_session() as session:
        create_generations(session, [a_request(generation_id="theme"), a_request(parent_id="theme", batch_id="own")])
        theme = get_generation(session, "theme")
        assert theme is not None
        assert theme.batch_id is None


def test_a_request_keeps_its_own_batch_id(db: Storage) -> None:
    with get_session() as session:
        first, second = create_generations(session, [a_request(), a_request(batch_id="own")], batch_id="all")
        assert (first.batch_id, second.batch_id) == ("all", "own")
        with pytest.raises((ValueError, TypeError), match="batch_id"):
            create_generations(session, [a_request()], batch_id=" ")


def test_no_requests_create_no_rows(db: Storage) -> None:
    with get_session() as session:
        assert create_generations(session, []) == []
        assert count_generations(session) == 0


def test_the_returned_objects_are_persistent(db: Storage) -> None:
    with get_session() as session:
        created = create_generations(session, [a_request(metadata={"n": n}, parameters={"n": n}) for n in range(3)])
        created[0].mark_processing()
        created[1].mark_completed(1.0)
    with get_session() as session:
        for number, generation in enumerate(created):
            found = get_generation(session, generation.id)
            assert found is not None
            assert found.to_dict() == generation.to_dict()
            assert found.get_metadata() == {"n": number}


@pytest.mark.parametrize("given", ["required", "all"])
def test_every_way_to_create_stores_the_same(db: Storage, given: str) -> None:
    """The constructor and the unit of work, and both direct ways."""
    request = a_request()
    if given == "all":
        request |= {
            "model_version": "1.5",
            "metadata": {"key": "Cm", "tempo": 1e16},
            "scheduled_at": datetime(2031, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
            "priority": -3,
            "max_attempts": 9,
            "batch_id": "evening",
            "parameters": {"seed": 2**63 - 1, "text": "ü"},
        }
    with get_session() as session:
        added = Generation(**request)
        session.add(added)
        session.flush()
        created = [added, create_generation(session, **request), *create_generations(session, [request, request])]
        made = [_comparable(generation) for generation in created]
    with get_session() as session:
        stored = [_comparable(session.get_one(Generation, generation.id)) for generation in created]
    assert all(one == made[0] for one in [*made, *stored]), made
    assert len({generation.id for generation in created}) == 4


def _comparable(generation: Generation) -> dict[str, Any]:
    """Return what must be the same for the same request, with the types of the attributes."""
    keys = {attribute.key for attribute in inspect(Generation).column_attrs} - {"id"}
    values = {key: getattr(generation, key) for key in keys}
    assert values["created_at"].tzinfo is UTC
    assert datetime.now(UTC) - values.pop("created_at") < timedelta(minutes=1)
    if values["scheduled_at"] < datetime.now(UTC) + timedelta(days=1):
        del values["scheduled_at"]
    return {key: (type(value), value) for key, value in values.items()}
