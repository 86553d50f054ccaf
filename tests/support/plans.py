"""Capture the queries of an operation and their query plans."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session


def explain(session: Session, operation: Callable[[], Any]) -> list[str]:
    """Return the plan of every query of `operation`; on PostgreSQL followed by the generic plan.

    PostgreSQL may change to the generic plan after a connection has executed a prepared statement five times.
    """
    with statements_of(session) as sent:
        operation()
    connection: Any = session.connection()
    is_sqlite = connection.dialect.name == "sqlite"
    plans = []
    for statement, parameters in sent:
        rows = connection.exec_driver_sql(f"{'EXPLAIN QUERY PLAN' if is_sqlite else 'EXPLAIN'} {statement}", parameters)
        lines = [str(row[-1]) for row in rows]
        if not is_sqlite:
            lines += _explain_generic(connection, statement)
        plans.append("\n".join(lines) + "\n")
    return plans


def _explain_generic(connection: Any, statement: str) -> list[str]:
    numbers: dict[str, int] = {}
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}", statement)
    asked = f"EXPLAIN (GENERIC_PLAN) {numbered.replace('%%', '%')}"
    # With the driver alone and unprepared, because a prepared statement would need the values.
    with connection.connection.cursor() as cursor:
        rows = cursor.execute(asked, prepare=False).fetchall()
    return [str(row[-1]) for row in rows]


@contextmanager
def statements_of(session: Session) -> Iterator[list[tuple[str, Any]]]:
    """Note the queries of the block, with their parameters."""
    with statements_on(session.connection().engine, "SELECT", "WITH") as sent:
        yield sent


@contextmanager
def statements_on(engine: Engine, *words: str) -> Iterator[list[tuple[str, Any]]]:
    """Note the statements that begin with one of `words`, on any connection of `engine`, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith(words):
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)
