"""How requests are stored: each prompt's uses counted by the database, the same request once, whole rows at once.

Past the unit of work, which has nothing to add to rows that are whole already; see ADR 9.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import insert, inspect, select
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.util import identity_key

from ..backends import Backend, backend_for
from ..errors import ConflictError, ConstraintError
from ..limits import ROWS_PER_STATEMENT
from ..models import Base, Generation, Prompt
from ..types import utcnow
from ..validation import GENERATION_RULES

# What makes two requests the same; a repeated idempotency key with another one of these is a mistake.
REQUEST = ("prompt", "model_name", "model_version", "duration_seconds", "sample_rate", "channels", "parameters")
# The arguments of create_generation() without the session; a test compares them with its signature.
REQUIRED = frozenset({"prompt", "model_name", "duration_seconds", "sample_rate", "channels", "file_path"})
WITH_DEFAULT = frozenset({"priority", "max_attempts"})
OPTIONAL = frozenset(
    "model_version metadata generation_id scheduled_at batch_id parent_id idempotency_key parameters".split()
)
INSERT_GENERATIONS = insert(Base.metadata.tables["generations"])


def build_generation(request: Mapping[str, Any]) -> Generation:
    """Return the unsaved generation for the arguments of create_generation(), given as a mapping.

    Raises TypeError for an unknown or missing argument, ValueError or TypeError naming the field for a bad value.
    """
    if unknown := request.keys() - REQUIRED - WITH_DEFAULT - OPTIONAL:
        raise TypeError(f"{min(unknown)} is not an argument of create_generation()")
    if missing := REQUIRED - request.keys():
        raise TypeError(f"{min(missing)} is missing of create_generation()")
    given = {name: value for name, value in request.items() if value is not None or name not in OPTIONAL}
    if "generation_id" in given:
        given["id"] = GENERATION_RULES["id"]("generation_id", given.pop("generation_id"))
    return Generation(**given)


def insert_once(session: Session, generations: list[Generation]) -> list[Generation]:
    """Insert all or none, but return the stored row for an idempotency key that is known."""
    for last_try in (False, True):
        try:
            # A savepoint is a write: on SQLite nobody can store the same key between the look and the insert.
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
                    "generation_id is stored already: take a new one, or an idempotency_key to repeat a request",
                    orig=error.orig,
                ) from error
            # On PostgreSQL another transaction may have stored the key meanwhile; then the second look finds it.
            if last_try or error.orig is None:
                raise
    raise AssertionError("the loop returns or raises")


def insert_all(session: Session, generations: list[Generation]) -> list[Generation]:
    """Count the prompts' uses and insert the rows: two statements, whatever their number. The objects become stored."""
    if not generations:
        return []
    session.flush()
    uses = _uses(generation.prompt for generation in generations)
    connection = session.connection()  # below the ORM, which has nothing to add to rows that are whole already
    counted = connection.execute(_count_uses_for_ids(backend_for(session)), uses)
    ids = {row.text: row.id for row in counted}
    for prompt_id in ids.values():
        if (prompt := session.identity_map.get(identity_key(Prompt, prompt_id))) is not None:
            session.expire(prompt)
    for generation in generations:
        generation.prompt_id = ids[generation.prompt]
    columns = _columns()
    rows = [{column: getattr(generation, key) for key, column in columns} for generation in generations]
    connection.execute(INSERT_GENERATIONS, rows)
    transaction: Any = session.get_nested_transaction() or session.get_transaction()
    for generation in generations:
        # The unit of work would do the same for 115 µs more a row.
        make_transient_to_detached(generation)
        session.add(generation)
        # As after a flush: should this be rolled back, the object is unsaved again, and still readable.
        transaction._new[inspect(generation)] = True
    return generations


def count_use(session: Session, text: str) -> Prompt:
    """Count one use of a prompt, new or known, and return it as it is stored now."""
    session.flush()
    upsert = _count_uses(backend_for(session)).returning(Prompt)
    prompt: Prompt = session.scalars(upsert, _uses([text]), execution_options={"populate_existing": True}).one()
    return prompt


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
                f"idempotency_key was used before with another {field}: repeat the request exactly or take a new key"
            )


@cache
def _columns() -> list[tuple[str, str]]:
    return [(attribute.key, attribute.columns[0].name) for attribute in inspect(Generation).column_attrs]


@cache
def _count_uses_for_ids(backend: Backend) -> Any:
    return _count_uses(backend).returning(Prompt.id, Prompt.text)


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


def _uses(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows to count: one a text, and sorted, so that two transactions lock them in the same order."""
    now = utcnow()
    return [
        {"text": text, "used_count": count, "first_used_at": now, "last_used_at": now}
        for text, count in sorted(Counter(texts).items())
    ]
