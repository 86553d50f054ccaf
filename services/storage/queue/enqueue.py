"""Enqueue: insert generations and count the uses of their prompts, with idempotency keys.

Rows are inserted with Core statements, not with the ORM's unit of work: it is slower and adds nothing to rows that are
already complete. See ADR 9.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, event, func, insert, inspect, select, type_coerce
from sqlalchemy.orm import Session, object_session
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from ..backends import Backend, backend_for
from ..errors import ConflictError, ConstraintError
from ..limits import ROWS_PER_STATEMENT
from ..model_base import new_row
from ..models import Generation, Prompt
from ..row_loading import GENERATIONS, attach, compile_for_driver, execute_directly
from ..types import UTCDateTime, utcnow
from ..validation import GENERATION_RULES
from .due import SOON, announce_due, is_announced

# Two requests with the same idempotency key must agree in these fields.
REQUEST = ("prompt", "model_name", "model_version", "duration_seconds", "sample_rate", "channels", "parameters")
# The arguments of create_generation() except the session; a test compares them with its signature.
REQUIRED = frozenset({"prompt", "model_name", "duration_seconds", "sample_rate", "channels", "file_path"})
WITH_DEFAULT = frozenset({"priority", "max_attempts"})
OPTIONAL = frozenset(
    "model_version metadata generation_id scheduled_at batch_id parent_id idempotency_key parameters".split()
)
ARGUMENTS = REQUIRED | WITH_DEFAULT | OPTIONAL
ATTRIBUTES = {"generation_id": "id", "metadata": "metadata_json"}  # where they differ from the arguments
INSERT_GENERATIONS = insert(GENERATIONS)
USE = ("text", "used_count", "first_used_at", "last_used_at")


def build_generation(request: Mapping[str, Any], *, new_id: str | None = None) -> Generation:
    """Return an unsaved generation built from a mapping of the arguments of create_generation().

    `new_id` is a valid id for a request without one. Raises TypeError for an unknown or missing argument, ValueError or
    TypeError naming the field for a bad value.
    """
    if not REQUIRED <= request.keys() <= ARGUMENTS:
        if unknown := request.keys() - ARGUMENTS:
            raise TypeError(f"{min(unknown)} is not an argument of create_generation()")
        raise TypeError(f"create_generation() needs the argument {min(REQUIRED - request.keys())}")
    valid = {} if new_id is None else {"id": new_id}
    for name, value in request.items():
        if value is not None or name not in OPTIONAL:
            attribute = ATTRIBUTES.get(name, name)
            valid[attribute] = GENERATION_RULES[attribute](name, value)
    return new_row(Generation, valid)


def insert_once(session: Session, generations: list[Generation]) -> list[Generation]:
    """Insert the generations, all or none; where an idempotency key is already stored, return the stored row instead.

    Raises ConflictError for a stored id or for an idempotency key that was used for another request, ConstraintError
    for an unknown parent_id.
    """
    for last_try in (False, True):
        try:
            # On SQLite a savepoint takes the write lock, so nobody can insert the same key between SELECT and INSERT.
            with session.begin_nested():
                first = _find_by_key(session, generations)
                new = []
                for generation in generations:
                    key = generation.idempotency_key
                    if key is not None and first.setdefault(key, generation) is not generation:
                        _require_same_request(first[key], generation)
                    else:
                        new.append(generation)
                insert_all(session, new)
            return [first.get(generation.idempotency_key or "", generation) for generation in generations]
        except ConstraintError as error:
            if any(generation.parent_id for generation in generations):
                raise ConstraintError("parent_id must be the id of a stored generation", orig=error.orig) from error
            raise
        except ConflictError as error:
            if any(name in str(error) for name in ("generations.id)", "pk_generations")):
                raise ConflictError(
                    "generation_id is already stored: use a new one, or an idempotency_key to repeat a request",
                    orig=error.orig,
                ) from error
            # On PostgreSQL another transaction may have inserted the key meanwhile; the second SELECT finds it.
            if last_try or error.orig is None:
                raise
    raise AssertionError("the loop returns or raises")


def insert_all(session: Session, generations: list[Generation]) -> list[Generation]:
    """Count the uses of the prompts and insert the rows. The objects become persistent."""
    if not generations:
        return []
    session.flush()
    uses = _uses(generation.prompt for generation in generations)
    connection, backend = session.connection(), backend_for(session)  # Core, not the ORM: see the module's docstring
    if len(generations) == 1 and backend.has_writing_ctes:
        is_unscheduled = _is_unscheduled(generations[0])
        row = {f"new_{column}": value for column, value in _row(generations[0]).items()}
        row |= {f"use_{column}": value for column, value in uses[0].items()}
        if is_unscheduled:
            row |= {"new_created_at": None, "new_scheduled_at": None}
        stored = connection.execute(_count_and_insert(backend, is_announced(connection)), row).one()
        ids = {generations[0].prompt: stored.prompt_id}
        set_committed_value(generations[0], "prompt_id", stored.prompt_id)
        if is_unscheduled:
            _store_now([generations[0]], stored.scheduled_at)
    else:
        counted = _count(connection, backend, uses)
        ids = {row.text: row.id for row in counted}
        if backend.has_own_clock:
            _store_now(list(filter(_is_unscheduled, generations)), counted[0].now)
        for generation in generations:
            generation.__dict__["prompt_id"] = ids[generation.prompt]  # the object has no history that could differ
        _insert_rows(connection, generations)
        if is_announced(connection):
            soon = utcnow() + SOON
            if any(generation.scheduled_at < soon for generation in generations):
                announce_due(connection)
    _expire_prompts(session, ids.values())
    identify = inspect(Generation).identity_key_from_primary_key
    transaction: Any = session.get_nested_transaction() or session.get_transaction()
    for generation in generations:
        # The unit of work would do the same but takes 115 µs longer per row.
        state = attach(session, generation, identify((generation.id,)))
        # As after a flush: a rollback makes the object unsaved again and keeps its values readable.
        transaction._new[state] = True
    return generations


def count_use(session: Session, text: str) -> Prompt:
    """Count one use of a prompt, inserting it if it is new, and return the stored row."""
    session.flush()
    upsert = _count_uses(backend_for(session)).returning(Prompt)
    prompt: Prompt = session.scalars(upsert, _uses([text]), execution_options={"populate_existing": True}).one()
    return prompt


@event.listens_for(Generation, "before_insert")
def _count_prompt(mapper: Any, connection: Connection, generation: Generation) -> None:
    """Count the prompt of a generation that session.add() stores, and link them, as create_generation() does."""
    if generation.prompt is None:
        return  # the database refuses the row
    backend = backend_for(connection)
    counted = connection.execute(_count_uses_for_ids(backend), _uses([generation.prompt])).one()
    generation.prompt_id = counted.id
    created_at_was_given = inspect(generation).attrs.created_at.history.added
    if backend.has_own_clock and _is_unscheduled(generation) and not created_at_was_given:
        # Not created_at, which the caller may have read.
        set_committed_value(generation, "scheduled_at", counted.now)
    announce_due(connection)
    session = object_session(generation)
    prompt = session and session.identity_map.get(identity_key(Prompt, counted.id))
    if session and prompt is not None:
        session.expire(prompt, ["used_count", "last_used_at"])


def _count(connection: Connection, backend: Backend, uses: list[dict[str, Any]]) -> Sequence[Row[Any]]:
    """Count the uses of prompts; return their ids and texts, and now where the database has a clock of its own."""
    count = _count_uses_for_ids(backend)
    if len(uses) > 1:
        return connection.execute(count, uses).all()
    return execute_directly(connection, count, uses[0]).all()


def _find_by_key(session: Session, generations: list[Generation]) -> dict[str, Generation]:
    keys = sorted({generation.idempotency_key for generation in generations if generation.idempotency_key})
    if not keys:
        return {}
    found: dict[str, Generation] = {}
    for start in range(0, len(keys), ROWS_PER_STATEMENT):
        some = Generation.idempotency_key.in_(keys[start : start + ROWS_PER_STATEMENT])
        rows = session.scalars(select(Generation).where(some, Generation.idempotency_key.is_not(None)))
        found |= {row.idempotency_key: row for row in rows if row.idempotency_key}
    return found


def _require_same_request(stored: Generation, repeated: Generation) -> None:
    for field in REQUEST:
        if getattr(stored, field) != getattr(repeated, field):
            raise ConflictError(
                f"idempotency_key was used before with another {field}: repeat the request exactly or use a new key"
            )


def _is_unscheduled(generation: Generation) -> bool:
    """Return whether scheduled_at was not given, so that the generation is due when it is stored."""
    return generation.scheduled_at is generation.created_at


def _store_now(generations: Sequence[Generation], now: datetime) -> None:
    """Set the times by the database's clock: this host's may be minutes ahead, and hide the job, or behind.

    They are a microsecond apart, so that the generations are claimed in their order.
    """
    for number, generation in enumerate(generations, start=1):
        moment = now - timedelta(microseconds=len(generations) - number)
        set_committed_value(generation, "created_at", moment)
        set_committed_value(generation, "scheduled_at", moment)


def _expire_prompts(session: Session, prompt_ids: Iterable[int]) -> None:
    """Let the session read its prompts again, whose uses were counted."""
    if session.identity_map:
        for prompt_id in prompt_ids:
            if (prompt := session.identity_map.get(identity_key(Prompt, prompt_id))) is not None:
                session.expire(prompt)


def _insert_rows(connection: Connection, generations: Sequence[Generation]) -> None:
    columns, read_values = _columns()
    if not connection.dialect.positional:
        connection.execute(INSERT_GENERATIONS, [_row(generation) for generation in generations])
        return
    # SQLAlchemy binds the values of a row by name, which takes 10 µs, and SQLite 20 µs to store it. Here the same types
    # process whole columns.
    statement, binds = compile_for_driver(INSERT_GENERATIONS, connection.dialect, columns)
    stored = zip(*(read_values(generation.__dict__) for generation in generations), strict=True)
    bound = [
        values if process is None else map(process, values)
        for values, (_, _, process) in zip(stored, binds, strict=True)
    ]
    connection.exec_driver_sql(statement, list(zip(*bound, strict=True)))


def _row(generation: Generation) -> dict[str, Any]:
    columns, read_values = _columns()
    return dict(zip(columns, read_values(generation.__dict__), strict=True))


@cache
def _columns() -> tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[Any, ...]]]:
    """Return the columns that a new row can have, and what reads their values from its attributes.

    The others are NULL, and not to bind them saves a third of the time of an INSERT.
    """
    given = {ATTRIBUTES.get(name, name) for name in ARGUMENTS} | {"prompt_id"}
    columns = {attribute.key: attribute.columns[0] for attribute in inspect(Generation).column_attrs}
    new = {key: column.name for key, column in columns.items() if key in given or column.default is not None}
    return tuple(new.values()), itemgetter(*new)


@cache
def _count_uses_for_ids(backend: Backend) -> Any:
    now = [type_coerce(backend.now(), UTCDateTime()).label("now")] if backend.has_own_clock else []
    return _count_uses(backend).returning(Prompt.id, Prompt.text, *now)


@cache
def _count_uses(backend: Backend) -> Any:
    upsert = backend.insert(Prompt)
    return upsert.on_conflict_do_update(
        index_elements=backend.prompt_conflict_target(),
        set_={
            "used_count": Prompt.used_count + upsert.excluded.used_count,
            "last_used_at": upsert.excluded.last_used_at,
        },
    )


@cache
def _count_and_insert(backend: Backend, announces: bool) -> Any:
    """Return the statement that counts one use of a prompt and inserts a generation of it, in one round trip.

    If it `announces`, it also wakes idle workers, unless the generation is due much later.
    """
    use = _count_uses(backend).values({column: bindparam(f"use_{column}") for column in USE})
    counted = use.returning(Prompt.id).cte("counted")
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in _columns()[0]}
    values["prompt_id"] = select(counted.c.id).scalar_subquery()
    # statement_timestamp(): both columns get the same time
    now = backend.statement_clock()(timedelta(0))
    for name in ("created_at", "scheduled_at"):
        values[name] = func.coalesce(bindparam(f"new_{name}", type_=UTCDateTime()), now)
    stored: list[Any] = [GENERATIONS.c.prompt_id, GENERATIONS.c.scheduled_at]
    if announces:
        is_soon = GENERATIONS.c.scheduled_at < backend.statement_clock()(SOON)
        stored.append(case((is_soon, backend.announce_due())).label("announced"))
    return INSERT_GENERATIONS.values(values).returning(*stored)


def _uses(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return one row for each distinct text, sorted so that concurrent transactions lock them in the same order."""
    now = utcnow()
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    return [
        {"text": text, "used_count": count, "first_used_at": now, "last_used_at": now}
        for text, count in sorted(counts.items())
    ]
