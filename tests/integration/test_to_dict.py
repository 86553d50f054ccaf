"""Rows and reports as dicts of JSON types, and rows from such dicts."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import update

import services.storage
from services.storage import (
    Attempt,
    Generation,
    Percentiles,
    Prompt,
    Storage,
    check_database,
    claim_generation,
    complete_generation,
    estimate_completion,
    explain_wait,
    fail_generation,
    get_failure_reasons,
    get_performance_stats,
    get_prompt_stats,
    get_queue_stats,
    get_session,
    get_usage,
    get_workers,
    list_generations,
    register_worker,
    search_prompts,
)
from services.storage.serialization import Report, plain
from services.storage.worker import Result
from tests.support.factories import a_generation, a_request


def as_json(value: Any) -> Any:
    """Return what a client reads that gets `value` as JSON."""
    return json.loads(json.dumps(value.to_dict(), allow_nan=False))


class TestReports:
    def test_every_dataclass_that_users_get_is_a_report(self) -> None:
        public = [getattr(services.storage, name) for name in services.storage.__all__]
        given = {services.storage.RetryPolicy}
        classes = {item for item in public if isinstance(item, type) and dataclasses.is_dataclass(item)}
        assert len(classes) > 10
        assert {item for item in classes if not issubclass(item, Report)} == given

    def test_each_one_is_json(self, db: Storage) -> None:
        with get_session() as session:
            rows = [a_generation(session, metadata={"bpm": 140}) for _ in range(4)]
            for _ in range(2):
                claimed = claim_generation(session, "w")
                assert claimed is not None
                lease = claimed.lease
                assert lease is not None
                assert as_json(lease) == {"generation_id": claimed.id, "worker_id": "w", "attempt": 1}
                complete_generation(session, claimed.id, 2.0, 10, lease=lease)
            fail_generation(session, rows[2].id, "out of memory")
            register_worker(session, "w", model_names=[rows[3].model_name])
        with get_session(read_only=True) as session:
            reports = [
                list_generations(session, limit=2),
                *get_workers(session),
                *search_prompts(session, "trap"),
                get_queue_stats(session),
                *get_performance_stats(session),
                *get_usage(session),
                get_prompt_stats(session, rows[0].prompt),
                *get_failure_reasons(session),
                estimate_completion(session, rows[3].id),
                explain_wait(session, rows[3].id),
                Result(1, {"bpm": 140}),
                check_database(),
                *check_database().findings,
            ]
        for report in reports:
            assert report is not None
            assert as_json(report).keys() == {field.name for field in dataclasses.fields(report)}
        page = as_json(reports[0])
        assert page["items"][0] == rows[3].to_dict() | {"status": "pending"}
        assert isinstance(page["next"], str)

    def test_a_number_that_is_not_finite_is_null(self) -> None:
        assert as_json(Percentiles(1, float("nan"), float("inf"), 1.0)) == {
            "count": 1,
            "p50": None,
            "p90": None,
            "p99": 1.0,
        }

    def test_what_has_no_json_form_is_refused(self) -> None:
        with pytest.raises(TypeError, match="object"):
            plain(object())


class TestRows:
    def test_every_row_is_read_back_as_it_was(self, db: Storage) -> None:
        with get_session() as session:
            a_generation(session, metadata={"títle": ["日本", {"deep": None}]}, parameters={"seed": 7, "top": [1.5]})
            a_generation(session, metadata={}, parameters={}, scheduled_at=datetime(2030, 1, 1, tzinfo=UTC))
            plain_one = a_generation(session, idempotency_key="k", batch_id="b", priority=-3)
            claimed = claim_generation(session, "w")
            assert claimed is not None
            fail_generation(session, claimed.id, "out of memory", lease=claimed.lease, retry=False)
            claim_generation(session, "w")
            plain_one.is_favorite = True
        with get_session(read_only=True) as session:
            for model in (Generation, Prompt, Attempt):
                rows = session.query(model).all()
                assert rows
                for row in rows:
                    copy = model.from_dict(as_json(row))
                    assert copy.to_dict() == row.to_dict()
                    for column in model.__mapper__.column_attrs:
                        assert getattr(copy, column.key) == getattr(row, column.key)

    def test_metadata_and_parameters_are_shown_alike(self) -> None:
        for value in (None, {}, {"a": 1}):
            shown = Generation(**a_request(metadata=value, parameters=value)).to_dict()
            assert shown["metadata"] == shown["parameters"] == value

    def test_what_others_stored_is_shown_without_an_error(self, db: Storage) -> None:
        with get_session() as session:
            generation = a_generation(session)
            session.execute(update(Generation).values(metadata_json="not JSON", parameters=None))
            session.refresh(generation)
        assert as_json(generation)["metadata"] is None

    def test_a_read_row_can_be_stored_and_changes_what_is_given(self, db: Storage) -> None:
        with get_session() as session:
            session.add(Generation.from_dict(a_request(id="mine", metadata={"bpm": 1})))
        with get_session() as session:
            session.merge(Generation.from_dict({**a_request(), "id": "mine", "priority": 4}))
        with get_session() as session:
            stored = session.get_one(Generation, "mine")
            assert (stored.priority, stored.get_metadata()) == (4, {"bpm": 1})

    @pytest.mark.parametrize(
        ("model", "change", "message"),
        [
            (Generation, {"tempo": 140}, "tempo is not a column of generations"),
            (Generation, {"metadata_json": "{}"}, "metadata_json is not a column"),
            (Generation, {"prompt": None}, "prompt is required"),
            (Generation, {"created_at": "yesterday"}, "created_at must be a time"),
            (Generation, {"created_at": 5}, "created_at must be"),
            (Generation, {"duration_seconds": "long"}, "duration_seconds must be a number"),
            (Generation, {"status": "done"}, "status must be one of"),
            (Generation, {"metadata": [1]}, "metadata must be"),
            (Prompt, {"used_count": 0}, "used_count must be"),
            (Attempt, {"number": "1"}, "number must be"),
            (Attempt, {"outcome": "won"}, "outcome must be one of"),
        ],
    )
    def test_bad_values_are_refused_by_name(self, model: Any, change: dict[str, Any], message: str) -> None:
        valid: dict[Any, dict[str, Any]] = {
            Generation: a_request(),
            Prompt: {"text": "x"},
            Attempt: {"generation_id": "x", "number": 1, "worker_id": "w", "outcome": "failed"},
        }
        model.from_dict(valid[model])
        with pytest.raises((TypeError, ValueError), match=message):
            model.from_dict(valid[model] | change)
