"""The CHECK constraints refuse what the library could not compute with, whoever writes it, with the same verdict."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Integer, text

from services.storage import ConstraintError, Storage, register_worker, run_in_transaction
from services.storage.models import Base
from services.storage.types import TIME_FORMS, UTCDateTime
from tests.support.factories import a_generation
from tests.support.sqlite_module import sqlite3

TABLES = ("generations", "prompts", "attempts", "queue_state", "workers")
ATTEMPT = (
    "INSERT INTO attempts (generation_id, number, worker_id, finished_at, outcome) "
    "VALUES ('one', 1, 'w', '2026-11-22 10:00:00', 'lost')"
)
OTHER_FORMS: tuple[Any, ...] = (
    *(1710054005, 2460000.5, "10/03/2024 07:00", "now", "", "yesterday", "2026-02-31 00:00:00", b"\xff"),
    *("2026-11-22", "10:00:00", "2026-11-22 10:00", "2026-11-22T10:00:00", "2026-11-22 10:00:00Z", "1.5"),
    *("2026-11-22 10:00:00+02:00", "2026-11-22 24:00:00", "2026-11-22 10:00:60", "2026-11-22 10:00:00.", b"1"),
    *(" 2026-11-22 10:00:00", "2026-11-22 10:00:00 ", "2026-11-22 10:00:000", "2026-11-22 10:00:00.5a"),
    *("0000-01-01 00:00:00", "-001-01-01 00:00:00", "2026-11-22 10:00:00\n", float("inf")),
)
NOT_REFUSED = st.characters(exclude_categories=["Cs"])  # by the driver
KEYS = {("generations", "prompt_id"), ("prompts", "id"), ("queue_state", "id")}
COLUMNS = [(table, column) for table in TABLES for column in Base.metadata.tables[table].columns]
NUMBERS = [(table, column.name) for table, column in COLUMNS if isinstance(column.type, Integer)]
TIMES = [(table, column.name) for table, column in COLUMNS if isinstance(column.type, UTCDateTime)]


@pytest.fixture
def filled(db: Storage) -> Storage:
    """Return a database with a row in every table, all of them finished, so that any time may be set."""
    with db.session() as session:
        a_generation(session, generation_id="one")
        session.execute(text(ATTEMPT))
        session.execute(text("INSERT INTO queue_state (id) VALUES (1)"))
        register_worker(session, "gpu-0")
    return db


def assign(storage: Storage, table: str, column: str, literal: str) -> None:
    values = {column: literal}
    if column == "completed_at":
        values["status"] = "'failed'"
    if column == "lease_expires_at":
        values["status"] = "'processing'"
    changes = ", ".join(f"{name} = {value}" for name, value in values.items())
    run_in_transaction(lambda session: session.execute(text(f"UPDATE {table} SET {changes}")), attempts=1)


@pytest.mark.parametrize(("table", "column"), [number for number in NUMBERS if number not in KEYS])
def test_a_whole_number_is_one_and_in_range(filled: Storage, table: str, column: str) -> None:
    refused = ["'high'", "''", "'1e'", "-3000000000", "9e99", "'1.5'"]
    refused += ["3000000000"] if column != "file_size_bytes" else []
    refused += ["1.5"] if filled.backend.name == "sqlite" else []  # PostgreSQL rounds it
    for literal in refused:
        with pytest.raises(ConstraintError):
            assign(filled, table, column, literal)


@pytest.mark.parametrize(("table", "column"), TIMES)
def test_a_time_is_one_that_python_has(filled: Storage, table: str, column: str) -> None:
    for literal in ("'infinity'", "'-infinity'", "'0044-03-15 00:00:00 BC'", "'20000-01-01 00:00:00'"):
        with pytest.raises(ConstraintError):
            assign(filled, table, column, literal)
    for accepted in ("2026-11-22 10:00:00", "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"):
        literal = f"'{accepted}'" if filled.backend.name == "sqlite" else f"timestamptz '{accepted}+00'"
        assign(filled, table, column, literal)


class TestSQLite:
    def test_a_time_in_another_form_is_refused(self, sqlite_url: str) -> None:
        storage = Storage(sqlite_url)
        with storage.session() as session:
            a_generation(session)
        for value in OTHER_FORMS:
            change = text("UPDATE generations SET created_at = :value").bindparams(value=value)
            with pytest.raises(ConstraintError):
                storage.run_in_transaction(lambda session, change=change: session.execute(change))
        storage.dispose()

    @settings(deadline=None)
    @given(st.one_of(st.datetimes(), st.text("0123456789-:. T+Znow", max_size=30), st.text(NOT_REFUSED, max_size=30)))
    def test_what_is_accepted_loads_as_that_time(self, value: datetime | str) -> None:
        stored = value.isoformat(" ", "auto") if isinstance(value, datetime) else value
        connection = sqlite3.connect(":memory:")
        (accepted,) = connection.execute(f"SELECT {TIME_FORMS['sqlite'].format(':t')}", {"t": stored}).fetchone()
        connection.close()
        assert accepted or isinstance(value, str)
        if accepted:
            seconds, _, fraction = stored.partition(".")
            assert datetime.fromisoformat(stored).isoformat(" ", "seconds") == seconds
            assert not fraction or fraction.isdigit()
