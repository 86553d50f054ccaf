"""Which statements an operation sends, and how the database plans them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session


def explain(session: Session, operation: Callable[[], Any]) -> list[str]:
    """Return the plan of every statement that `operation` sends."""
    with statements_of(session) as sent:
        operation()
    connection: Any = session.connection()
    word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    plans = []
    for statement, parameters in sent:
        rows = connection.exec_driver_sql(f"{word} {statement}", parameters)
        plans.append("\n".join(str(row[-1]) for row in rows) + "\n")
    return plans


@contextmanager
def statements_of(session: Session) -> Iterator[list[tuple[str, Any]]]:
    sent: list[tuple[str, Any]] = []
    engine = session.connection().engine

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "WITH")):
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)
