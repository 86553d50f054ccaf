"""Execute Core statements in the transaction of a session, and turn rows of generations into its objects.

A statement that is built once and executed on the connection costs a third of one that goes through the session, and
its rows become objects in a fifth of the time. See ADR 25.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Row, Table, inspect
from sqlalchemy.orm import Mapper, Session, make_transient_to_detached

from .models import Base, Generation

GENERATIONS: Final[Table] = Base.metadata.tables["generations"]


class SeveralStatementsError(Exception):
    """A step needs several statements, and so a transaction; nothing was written."""


def require_transaction(session: Session) -> None:
    """Raise SeveralStatementsError in a session of Storage.run_step() that commits each statement by itself."""
    if session.connection().get_execution_options().get("is_step", False):
        raise SeveralStatementsError


def connection_of(session: Session) -> Connection:
    """Return the connection of the session's transaction, after an autoflush, as before any query of the session."""
    if session.autoflush:
        session.flush()
    return session.connection()


def load_generations(session: Session, rows: Iterable[Row[Any]]) -> list[Generation]:
    """Return the objects for rows of all columns of `generations`, in the order of the table.

    An object that the session holds already is refreshed by a query of its own: its unsaved changes were flushed.
    """
    mapper, keys = _generation()
    generations = []
    for row in rows:
        values = dict(zip(keys, row, strict=True))
        held = session.identity_map.get(mapper.identity_key_from_primary_key((values["id"],)))
        if held is None:
            held = mapper.class_manager.new_instance()
            held.__dict__.update(values)
            make_transient_to_detached(held)
            session.add(held)
        else:
            session.refresh(held)
        generations.append(held)
    return generations


@cache
def _generation() -> tuple[Mapper[Generation], Sequence[str]]:
    """Return the mapper of Generation and its attributes in the order of the columns."""
    mapper: Mapper[Generation] = inspect(Generation)
    return mapper, [mapper.get_property_by_column(column).key for column in GENERATIONS.c]
