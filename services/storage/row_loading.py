"""Execute Core statements in the transaction of a session, and turn rows of generations into its objects.

A statement that is built once and executed on the connection costs a third of one that goes through the session, and
its rows become objects in a fifth of the time. See ADR 25.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Row, Table, inspect
from sqlalchemy.orm import Mapper, Session, make_transient_to_detached

from .models import Base, Generation, Prompt

Model = TypeVar("Model", Generation, Prompt)
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
    """Return the objects for rows of all columns of `generations`, in the order of the table; see load()."""
    return load(session, Generation, rows)


def load(session: Session, model: type[Model], rows: Iterable[Row[Any]]) -> list[Model]:
    """Return the objects for rows of all columns of the table of `model`, in their order.

    An object that the session holds already is refreshed by a query of its own: its unsaved changes were flushed.
    """
    mapper, keys = _attributes(model)
    position = keys.index("id")
    objects: list[Model] = []
    for row in rows:
        held = session.identity_map.get(mapper.identity_key_from_primary_key((row[position],)))
        if held is None:
            held = mapper.class_manager.new_instance()
            held.__dict__.update(zip(keys, row, strict=True))
            make_transient_to_detached(held)
            session.add(held)
        else:
            session.refresh(held)
        objects.append(held)
    return objects


@cache
def _attributes(model: type[Base]) -> tuple[Mapper[Any], Sequence[str]]:
    """Return the mapper of `model` and its attributes in the order of the columns."""
    mapper: Mapper[Any] = inspect(model)
    mapper.registry.configure()  # a query does so; a process whose first call is load() has made none
    return mapper, [mapper.get_property_by_column(column).key for column in model.__table__.c]
