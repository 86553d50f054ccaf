"""Execute Core statements in the transaction of a session, and turn rows of generations into its objects.

A statement that is built once and executed on the connection costs a third of one that goes through the session, and
its rows become objects in a fifth of the time. See ADR 25.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, CursorResult, Dialect, Row, Select, Table, inspect
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.attributes import instance_state

from .models import Base, Generation, Prompt

Model = TypeVar("Model", Generation, Prompt)
GENERATIONS: Final[Table] = Base.metadata.tables["generations"]

# For a query whose result does not depend on its transaction, so that PostgreSQL needs no BEGIN and COMMIT for it.
ALONE: Final = {"is_alone": True}


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


def execute_directly(connection: Connection, statement: Any, parameters: Mapping[str, Any]) -> CursorResult[Any]:
    """Execute a statement as SQL text of the driver where it takes parameters by position (SQLite): 25 µs less.

    The rows of the result have the values of the driver, and `before_execute` of the engine does not fire. See ADR 25.
    """
    if not connection.dialect.positional:
        return connection.execute(statement, parameters)
    sql, binds = compile_for_driver(statement, connection.dialect, tuple(parameters))
    values = []
    for name, bind, process in binds:
        value = parameters[name] if bind.required else bind.effective_value
        values.append(value if process is None else process(value))
    return connection.exec_driver_sql(sql, tuple(values))


@lru_cache(maxsize=128)
def compile_for_driver(statement: Any, dialect: Dialect, names: tuple[str, ...]) -> tuple[str, list[Any]]:
    """Return the SQL text of a statement with parameters of these names, and what it binds, in order of position.

    That is for each the name, the parameter of the statement, and what makes a value one of the driver, or None.
    """
    compiled: Any = statement.compile(dialect=dialect, column_keys=list(names))
    binds = [compiled.binds[name] for name in compiled.positiontup]
    return str(compiled), [(bind.key, bind, bind.type.dialect_impl(dialect).bind_processor(dialect)) for bind in binds]


def find(
    session: Session, model: type[Model], statement: Select[Any], parameters: Mapping[str, Any] | None = None
) -> tuple[list[Model], Sequence[Row[Any]]]:
    """Return the objects that `select(model)…` finds, and its rows, whose last columns may be added ones.

    A session that holds objects needs the ORM's loader, which keeps their unsaved changes.
    """
    if session.identity_map or is_observed(session, model):
        found = session.execute(statement, parameters).all()
        return [row[0] for row in found], found
    rows = connection_of(session).execute(statement, parameters, execution_options=ALONE).all()
    return load(session, model, rows), rows


def is_observed(session: Session, model: type[Base]) -> bool:
    """Return whether there are listeners to the ORM's queries and loads, which the direct way does not tell."""
    loads: Any = inspect(model).class_manager.dispatch
    queries: Any = session.dispatch
    return bool(queries.do_orm_execute or queries.loaded_as_persistent or loads.load)


def load_generations(session: Session, rows: Iterable[Row[Any]]) -> list[Generation]:
    """Return the objects for rows of all columns of `generations`, in the order of the table; see load()."""
    return load(session, Generation, rows)


def detached_generation(row: Row[Any]) -> Generation:
    """Return a detached object for a row of all columns of `generations`."""
    mapper, keys, position = _attributes(Generation)
    generation: Generation = mapper.class_manager.new_instance()
    generation.__dict__.update(zip(keys, row, strict=True))
    instance_state(generation).key = mapper.identity_key_from_primary_key((row[position],))
    return generation


def load(session: Session, model: type[Model], rows: Iterable[Row[Any]]) -> list[Model]:
    """Return the objects for rows of all columns of the table of `model`, in their order; more columns are ignored.

    An object that the session holds already is refreshed by a query of its own: its unsaved changes were flushed.
    """
    mapper, keys, position = _attributes(model)
    held_by, new_instance = session.identity_map, mapper.class_manager.new_instance
    identity, _, token = mapper.identity_key_from_primary_key(("",))
    objects: list[Model] = []
    for row in rows:
        key = (identity, (row[position],), token)  # made here, because a page of 100 needs as many
        held = held_by.get(key)
        if held is None:
            held = new_instance()
            held.__dict__.update(zip(keys, row, strict=False))
            attach(session, held, key)
        else:
            session.refresh(held)
        objects.append(held)
    return objects


def attach(session: Session, row: Base, key: Any) -> InstanceState[Any]:
    """Make an object without changes persistent in the session, under its identity key; return its state.

    What the ORM's loader does (sqlalchemy/orm/loading.py, _instance_processor). make_transient_to_detached() and
    session.add() have the same result, but look through all attributes for objects to cascade to: 25 µs.
    """
    state = instance_state(row)
    state.key = key
    state.session_id = session.hash_key
    session.identity_map.add(state)
    return state


@cache
def _attributes(model: type[Base]) -> tuple[Mapper[Any], Sequence[str], int]:
    """Return the mapper of `model`, its attributes in the order of the columns, and the position of the id."""
    mapper: Mapper[Any] = inspect(model)
    mapper.registry.configure()  # a query does so; a process whose first call is load() has made none
    keys = [mapper.get_property_by_column(column).key for column in model.__table__.c]
    return mapper, keys, keys.index("id")
