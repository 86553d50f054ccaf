"""check_health() and get_metrics(): what they say of a database that works, that is in trouble, and that is gone."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import insert, text

from services.storage import (
    Generation,
    Storage,
    cancel_generation,
    check_health,
    claim_generation,
    complete_generation,
    fail_generation,
    get_metrics,
    get_schema_version,
    get_session,
    pause_queue,
    register_worker,
)
from services.storage.maintenance import health as health_module
from services.storage.maintenance.metrics import METRICS, MODEL_LIMIT
from services.storage.queue import due
from services.storage.types import utcnow
from tests.support.command_line import run
from tests.support.databases import is_sqlite
from tests.support.factories import a_generation, a_request
from tests.support.plans import explain, statements_on
from tests.support.stored_times import ago, ahead, pass_time

ALERTS = Path(__file__).parents[2] / "docs/how-to/alert-rules.yml"
SECRET = "s3cret-passw0rd"


def samples(storage: Storage | None = None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the value of every sample by name and labels, as the official parser reads them."""
    families = list(text_string_to_metric_families(get_metrics(storage=storage)))
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value_of(name: str, **labels: str) -> float:
    return samples()[f"dgx_storage_{name}", tuple(sorted(labels.items()))]


@pytest.mark.usefixtures("db")
class TestHealth:
    def test_an_empty_database_is_healthy(self, db: Storage) -> None:
        health = check_health()
        assert health.ok
        assert health.problems == ()
        assert (health.backlog, health.oldest_due, health.workers, health.paused) == (0, None, 0, False)
        assert (health.database, health.revision) == (db.display_url, get_schema_version())
        assert health.latency > 0
        assert json.loads(json.dumps(health.to_dict()))["problems"] == []

    def test_the_backlog_counts_what_is_due_on_every_level(self) -> None:
        with get_session() as session:
            for priority in (5, 0, -5, 0):
                a_generation(session, priority=priority, scheduled_at=ago(seconds=100 + priority))
                a_generation(session, priority=priority, scheduled_at=ahead(hours=1))
            a_generation(session).mark_completed(1.0)
            register_worker(session, "gpu-0")
        health = check_health()
        assert (health.ok, health.backlog, health.workers) == (True, 4, 1)
        assert health.oldest_due == pytest.approx(105, abs=10)
        assert health.problems == ()

    def test_a_long_backlog_is_not_counted_to_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health_module, "BACKLOG_LIMIT", 3)
        health_module._select_health.cache_clear()
        try:
            with get_session() as session:
                for priority in (1, 0, 0, 0, 0):
                    a_generation(session, priority=priority)
            health = check_health()
            assert health.backlog == 3
            assert health.problems == ("3 or more generations are due, and no worker is running.",)
        finally:
            health_module._select_health.cache_clear()

    def test_due_work_that_nobody_does_is_a_problem_but_the_database_is_well(self) -> None:
        with get_session() as session:
            a_generation(session)
        health = check_health()
        assert health.ok
        assert health.problems == ("1 generation is due, and no worker is running.",)
        with get_session() as session:
            register_worker(session, "gpu-0")
        assert check_health().problems == ()
        pass_time(seconds=46)
        assert check_health().problems != ()
        with get_session() as session:
            pause_queue(session, "new driver")
        assert (check_health().paused, check_health().problems) == (True, ())

    def test_a_model_that_no_running_worker_claims_is_named(self) -> None:
        with get_session() as session:
            for number, model in enumerate(("a", "b", "b\nc", "scheduled")):
                at = ahead(hours=1) if model == "scheduled" else ago(seconds=1)
                for priority in (number, -1):
                    a_generation(session, model_name=model, priority=priority, scheduled_at=at)
            a_generation(session, model_name="done").mark_completed(1.0)
        assert check_health().unclaimed_models == ("a", "b", "b\nc")
        assert "no worker is running" in check_health().problems[0]
        with get_session() as session:
            register_worker(session, "gpu-0", model_names=["b", "scheduled"])
            register_worker(session, "gpu-1", model_names=["a"], state="stopping")
        health = check_health()
        assert (health.ok, health.unclaimed_models) == (True, ("a", "b\nc"))
        assert health.problems == ("Generations of these models are due, and no running worker claims them: a, b\nc.",)
        with get_session() as session:
            register_worker(session, "gpu-2", model_names=["a"])
            register_worker(session, "gpu-3", model_names=["b\nc"])
        assert (check_health().unclaimed_models, check_health().problems) == ((), ())
        with get_session() as session:
            for number in range(4):
                register_worker(session, f"gpu-{number}", state="stopping")
        assert check_health().problems == ("6 generations are due, and all running workers are stopping.",)
        with get_session() as session:
            pause_queue(session)
        assert check_health().problems == ()

    def test_many_models_make_neither_a_long_sentence_nor_a_long_check(self) -> None:
        with get_session() as session:
            for number in range(due.MODEL_LIMIT + 3):
                a_generation(session, model_name=f"m{number:03}")
            register_worker(session, "gpu-0", model_names=["m000"])
        health = check_health()
        assert health.unclaimed_models == tuple(f"m{number:03}" for number in range(1, due.MODEL_LIMIT))
        (problem,) = health.problems
        assert problem.endswith("claims them: m001, m002, m003, m004, m005 and 94 more.")

    def test_it_seeks_in_the_indexes_of_the_queue(self, db: Storage) -> None:
        with get_session() as session:
            for number in range(300):
                a_generation(session, model_name="a", scheduled_at=ahead(hours=1), priority=number % 3)
            a_generation(session, model_name="b")
        with statements_on(db.engine, "SELECT", "WITH") as sent:
            check_health()
        assert len(sent) == 1
        with get_session() as session:
            (plan,) = explain(session, lambda: session.connection().exec_driver_sql(*sent[0]))
        if is_sqlite(str(db.url)):  # PostgreSQL scans so small a table
            assert "idx_generations_due_model" in plan
            assert plan.count("SCAN generations") == 1  # of the columns of the schema, WHERE 1 = 0

    @pytest.mark.parametrize("revision", ["005", "999", "abcdef", None])
    def test_a_wrong_schema_is_a_fault(self, db: Storage, revision: str | None) -> None:
        with db.engine.begin() as connection:
            change = "DELETE FROM alembic_version"
            if revision is not None:
                change = f"UPDATE alembic_version SET version_num = '{revision}'"
            connection.exec_driver_sql(change)
        health = check_health()
        assert not health.ok
        assert len(health.problems) == 1
        assert samples()[("dgx_storage_up", ())] in (0, 1)

    @pytest.mark.parametrize("table", ["workers", "queue_state", "alembic_version"])
    def test_a_missing_table_is_a_fault(self, db: Storage, table: str) -> None:
        with db.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE {table}")
        health = check_health()
        assert not health.ok
        assert health.backlog is health.workers is health.paused is None
        assert health.problems[0].endswith(".")

    @pytest.mark.parametrize("lost", ["generations RENAME COLUMN channels TO chan", "prompts RENAME TO texts"])
    def test_what_only_other_statements_read_is_missed_too(self, db: Storage, lost: str) -> None:
        with db.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {lost}")
        health = check_health()
        assert not health.ok
        assert "dgx-storage check --fix" in health.problems[0]

    def test_the_verb_says_the_same(self, db: Storage) -> None:
        url = db.url.render_as_string(hide_password=False)
        healthy = run("health", url=url)
        assert healthy.exit_code == 0
        assert "ok\ttrue" in healthy.stdout.splitlines()
        with get_session() as session:
            a_generation(session)
        found = run("health", "--json", url=url)
        assert found.exit_code == 1
        answer = json.loads(found.stdout)
        assert (answer["ok"], answer["backlog"]) == (True, 1)
        assert "problem\t1 generation is due, and no worker is running." in run("health", url=url).stdout


class TestDatabasesThatFail:
    @pytest.fixture(params=["no server", "no file", "no folder", "not a database", "no tables", "a folder"])
    def broken(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
        path = tmp_path / "some.db"
        url = f"sqlite:///{path}"
        match request.param:
            case "no server":
                url = f"postgresql://dgx:{SECRET}@127.0.0.1:1/music?connect_timeout=1"
            case "no folder":
                url = f"sqlite:///{tmp_path / 'missing' / 'some.db'}"
            case "not a database":
                path.write_bytes(b"This is a letter. " * 100)
            case "no tables":
                path.touch()
            case "a folder":
                path.mkdir()
        storage = Storage(url)
        yield storage
        storage.dispose()

    def test_it_is_a_problem_and_no_exception_and_tells_no_secret(self, broken: Storage, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        health = check_health(storage=broken)
        assert not health.ok
        assert len(health.problems) == 1
        assert health.problems[0]
        assert (health.backlog, health.oldest_due, health.workers, health.paused) == (None,) * 4
        assert health.unclaimed_models is None
        assert SECRET not in json.dumps(health.to_dict())
        metrics = get_metrics(storage=broken)
        assert samples(broken) == {("dgx_storage_up", ()): 0}
        assert SECRET not in metrics
        assert sorted(tmp_path.rglob("*")) == before  # nothing was created

    def test_the_verbs_exit_with_1(self, broken: Storage) -> None:
        url = broken.given_url.render_as_string(hide_password=False)
        for verb in ("health", "metrics"):
            found = run(verb, url=url)
            assert found.exit_code == 1
            assert SECRET not in found.stdout + found.stderr
            assert "Traceback" not in found.stderr

    def test_a_bad_url_is_a_problem_without_the_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", f"postgres//dgx:{SECRET}@")
        health = check_health()
        assert (health.ok, health.database) == (False, "unknown")
        assert SECRET not in str(health)

    def test_an_error_of_another_kind_is_named_but_not_quoted(
        self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(storage: Storage, began: float) -> Any:
            raise ValueError(SECRET)

        monkeypatch.setattr(health_module, "_check", fail)
        storage = Storage(sqlite_url)
        health = check_health(storage=storage)
        assert health.problems == ("The check failed with ValueError.",)
        storage.dispose()


@pytest.mark.usefixtures("db")
class TestMetrics:
    def test_every_metric_is_there_and_parses(self) -> None:
        names = {name.removeprefix("dgx_storage_") for name, _ in samples()}
        needs_replicas_or_history = {"replica_up", "replica_lag_bytes", "finished_last_hour"}
        assert names >= {name for name, kind in METRICS.items() if kind[0] == "gauge"} - needs_replicas_or_history
        assert get_metrics().endswith("# EOF\n")

    def test_the_numbers_are_those_of_the_reports(self) -> None:
        with get_session() as session:
            for wait, seconds in ((0.001, 4.0), (20, 18.0), (4_000, 700.0)):
                row = a_generation(session, model_name="m", scheduled_at=ago(seconds=wait))
                row.mark_processing()
                row.started_at = row.scheduled_at + timedelta(seconds=wait)
                row.mark_completed(seconds)
            row = a_generation(session, model_name="m")
            row.mark_processing()
            row.started_at = row.scheduled_at - timedelta(seconds=1)  # by other clocks
            row.mark_failed("out of memory")
            cancel_generation(session, a_generation(session, model_name="n").id)
            old = a_generation(session, model_name="old")
            old.mark_completed(1.0)
            old.completed_at = ago(hours=2)
            a_generation(session, scheduled_at=ago(seconds=60))
            a_generation(session, scheduled_at=ahead(seconds=60))
            register_worker(session, "gpu-0")
            register_worker(session, "gpu-1", state="stopping")
        found = samples()

        def value(name: str, **labels: str) -> float:
            return found[f"dgx_storage_{name}", tuple(sorted(labels.items()))]

        assert value("generations", status="completed") == 4
        assert value("generations", status="pending") == 2
        assert (value("backlog"), value("scheduled"), value("paused")) == (1, 1, 0)
        assert value("backlog_age_seconds") == pytest.approx(60, abs=10)
        assert (value("workers", state="idle"), value("workers", state="stopping")) == (1, 1)
        assert value("finished_last_hour", model="m", status="completed") == 3
        assert value("finished_last_hour", model="m", status="failed") == 1
        assert value("finished_last_hour", model="n", status="cancelled") == 1
        assert not [labels for _, labels in found if ("model", "old") in labels]
        waits = [value("claim_wait_seconds_bucket", model="m", le=bound) for bound in ("0.01", "15.0", "30.0", "+Inf")]
        assert waits == [2, 2, 3, 4]
        assert value("claim_wait_seconds_gcount", model="m") == 4
        assert value("claim_wait_seconds_gsum", model="m") == pytest.approx(4_020, abs=1)
        renders = [value("render_seconds_bucket", model="m", le=bound) for bound in ("2.5", "5.0", "20.0", "+Inf")]
        assert renders == [0, 1, 2, 3]
        assert value("database_bytes") > 0
        assert value("log_bytes") >= 0

    def test_a_claimed_and_completed_generation_is_counted(self) -> None:
        with get_session() as session:
            a_generation(session, model_name="m")
            a_generation(session, model_name="m")
            for end in (complete_generation, fail_generation):
                claimed = claim_generation(session, "w")
                assert claimed is not None
                rest = (3.0, 5) if end is complete_generation else ("no",)
                end(session, claimed.id, *rest, lease=claimed.lease)  # type: ignore[operator]
        assert value_of("finished_last_hour", model="m", status="completed") == 1
        assert value_of("claim_wait_seconds_gcount", model="m") == 1  # the failed one waits for its next attempt
        assert value_of("backlog") == 0

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50))
    def test_any_model_name_is_one_label(self, db: Storage, name: str) -> None:
        if not name.strip():
            return
        with get_session() as session:
            session.execute(text("DELETE FROM generations"))
            a_generation(session, model_name=name).mark_completed(1.0)
        found = samples()
        assert found["dgx_storage_render_seconds_gcount", (("model", name),)] == 1

    def test_neither_prompts_nor_other_texts_are_in_the_metrics(self) -> None:
        texts = dict.fromkeys(("prompt", "file_path", "batch_id", "idempotency_key"), SECRET)
        with get_session() as session:
            a_generation(session, **texts, metadata={SECRET: SECRET}).mark_failed(SECRET)
            register_worker(session, SECRET, device=SECRET, warm_model=SECRET, model_names=[SECRET])
            pause_queue(session, SECRET)
        assert SECRET not in get_metrics()
        assert SECRET not in json.dumps(check_health().to_dict())

    def test_many_models_do_not_make_many_metrics(self) -> None:
        rows = [
            a_request(id=f"{number}", model_name=f"m{number % (MODEL_LIMIT + 5)}", status="completed")
            | {"completed_at": utcnow(), "generation_time_seconds": 2.0, "created_at": utcnow()}
            for number in range(2 * (MODEL_LIMIT + 5) - 5)
        ]
        with get_session() as session:
            session.execute(insert(Generation), rows)
        found = samples()
        models = {value for name, labels in found for label, value in labels if label == "model"}
        assert len(models) == MODEL_LIMIT + 1
        assert "" in models
        total = sum(value for (name, _), value in found.items() if name == "dgx_storage_render_seconds_gcount")
        assert total == len(rows)

    def test_the_verb_prints_them(self, db: Storage) -> None:
        found = run("metrics", url=db.url.render_as_string(hide_password=False))
        assert found.exit_code == 0
        assert {family.name for family in text_string_to_metric_families(found.stdout)} >= {"dgx_storage_up"}


def test_the_alert_rules_name_metrics_that_exist() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    assert len(group["rules"]) == 4
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        named = set(re.findall(r"dgx_storage_(\w+)", rule["expr"]))
        assert named
        assert named <= METRICS.keys()
        assert rule["expr"].count("(") == rule["expr"].count(")")
        states = re.findall(r'(\w+)(?:=~|!=|=)"([^"]*)"', rule["expr"])
        known = {"state": {"idle", "busy", "stopping"}, "status": {"completed", "failed", "cancelled"}}
        assert all(word in known[label] for label, words in states for word in words.split("|"))
