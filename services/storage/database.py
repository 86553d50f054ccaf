"""The API of the specification: the default database, and create, read, update, delete of generations and prompts.

Every function but the first five takes the session first and never commits: the block around the session does.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cache
from inspect import Parameter, signature
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    Select,
    bindparam,
    delete,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session

from .analytics import get_database_stats as get_database_stats
from .backends import backend_for
from .engine import Storage, get_default, get_storage, set_storage
from .errors import NotInitializedError, SchemaOutdatedError, SchemaTooNewError
from .insertion import REQUEST, count_use, insert_all, insert_once
from .leases import complete_generation as complete_generation
from .models import CLAIM_ORDER, PENDING, Generation, Prompt
from .schema import INTEGER_LIMIT, GenerationStatus, validate_status
from .types import uuid7
from .validation import (
    GENERATION_RULES,
    is_storable,
    validate_count,
    validate_generation_field,
    validate_prompt_field,
)

Result = TypeVar("Result")

COPIED = (*REQUEST, "priority", "max_attempts")


def init_db(
    database_url: str | None = None,
    *,
    replica_urls: Iterable[str] = (),
    echo: bool = False,
    synchronous: str = "FULL",
    busy_timeout: float = 5.0,
) -> None:
    """Make the database at `database_url` (else DATABASE_URL, else sqlite:///data/generations.db) the default one.

    Creates it when missing, upgrades it when older, adopts one made without a version; at head it asks one small
    question. `echo` logs SQL, `synchronous` FULL or NORMAL and `busy_timeout` (seconds) are SQLite's. Each call that
    names a memory database makes a new, empty one. `replica_urls` (else DATABASE_REPLICA_URLS) answer read-only
    sessions on PostgreSQL; pool and timeouts come from the environment, see Storage. Raises ForeignDatabaseError or
    SchemaTooNewError, with nothing changed, for a database that is not this library's.
    """
    storage = Storage(
        database_url, replica_urls=replica_urls, echo=echo, synchronous=synchronous, busy_timeout=busy_timeout
    )
    current = get_default()
    if current is not None and current.is_same(storage) and (database_url is None or not storage.is_memory):
        storage = current
    try:
        try:
            storage.require_schema(anew=True)
        except (NotInitializedError, SchemaOutdatedError, SchemaTooNewError):  # migrations tell newer from foreign
            from . import migrations  # Alembic doubles the import time, and a database at head needs none of it

            migrations.upgrade(storage)
    except BaseException:
        storage.dispose()
        raise
    set_storage(storage)


def reset_database() -> None:
    """Drop and make again every table of the default database, in one transaction. ALL DATA IS LOST."""
    from . import migrations

    migrations.reset(get_storage())


def get_session(*, read_only: bool = False) -> AbstractContextManager[Session]:
    """Open a session of the default database: commits at the end of the `with` block, rolls back when it raises.

    A `read_only` one sees the database at one moment and raises ReadOnlyError instead of writing. Raises
    NotInitializedError, SchemaOutdatedError or SchemaTooNewError when the schema is not this library's.
    """
    return get_storage().session(read_only=read_only)


def get_engine() -> Engine:
    """Return the default database's SQLAlchemy engine; statements on it follow the same transaction rules."""
    return get_storage().engine


def run_in_transaction(fn: Callable[[Session], Result], *, attempts: int = 5, read_only: bool = False) -> Result:
    """Return what `fn(session)` returns, committed; see Storage.run_in_transaction()."""
    return get_storage().run_in_transaction(fn, attempts=attempts, read_only=read_only)


def create_generation(
    session: Session,
    prompt: str,
    model_name: str,
    duration_seconds: float,
    sample_rate: int,
    channels: int,
    file_path: str | os.PathLike[str],
    model_version: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    generation_id: str | None = None,
    priority: int = 0,
    scheduled_at: datetime | None = None,
    max_attempts: int = 3,
    batch_id: str | None = None,
    parent_id: str | None = None,
    idempotency_key: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Generation:
    """Store a request as pending and count one use of its prompt.

    `duration_seconds` and `sample_rate` (Hz) are wanted, not measured. Higher `priority` is served first;
    `scheduled_at` is the earliest time to begin. The same `idempotency_key` again returns the first row and counts
    nothing. Raises ValueError or TypeError naming the field, ConflictError for a `generation_id` that exists or a key
    that came with another request, ConstraintError for an unknown `parent_id`; the session stays usable.
    """
    request = {name: value for name, value in locals().items() if name != "session"}
    generation = _build(request)
    if generation_id is parent_id is idempotency_key is None:
        insert_all(session, [generation])  # nothing that could be refused, so no savepoint
        return generation
    return insert_once(session, [generation])[0]


def create_generations(
    session: Session, requests: Iterable[Mapping[str, Any]], *, batch_id: str | None = None
) -> list[Generation]:
    """Store many requests at once, all or none, and return them in order.

    Each is a mapping of create_generation()'s arguments; `batch_id` is for those that name none. Raises what
    create_generation() raises, with the request's position in the message.
    """
    requests = list(requests)
    # Sorted, because ids made in the same fraction of a microsecond are not, and claims break ties by id.
    ids = sorted(uuid7() for _ in requests)
    generations = []
    for position, (request, generation_id) in enumerate(zip(requests, ids, strict=True)):
        try:
            generations.append(_build({"generation_id": generation_id, "batch_id": batch_id} | dict(request)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"requests[{position}]: {error}") from None
    return insert_once(session, generations)


def clone_generation(
    session: Session, generation_id: str, *, file_path: str | os.PathLike[str], **changes: Any
) -> Generation | None:
    """Store a variation: the same request with `changes`, as a child of the first. Returns None for an unknown id.

    Copies prompt, model, duration, sample rate, channels, parameters, priority and max_attempts, not what was rendered.
    Raises what create_generation() raises.
    """
    source = get_generation(session, generation_id)
    if source is None:
        return None
    request = {field: getattr(source, field) for field in COPIED} | {"parent_id": source.id} | changes
    return create_generation(session, file_path=file_path, **request)


def get_generation(session: Session, generation_id: str) -> Generation | None:
    """Return the generation with this id, or None."""
    return session.get(Generation, generation_id) if is_storable("generation_id", generation_id) else None


def get_all_generations(
    session: Session, limit: int = 100, offset: int = 0, status: str | None = None
) -> list[Generation]:
    """Return generations newest first, ties broken by id; those of status pending in the order of their claims."""
    limit, offset = validate_count("limit", limit), validate_count("offset", offset)
    condition, order = _of_status(status)
    if offset == 0:
        return list(session.scalars(select(Generation).where(condition).order_by(*order).limit(limit)))
    # The index alone finds the ids, so skipping reads no rows: at 900,000 that is four times faster.
    ids = select(Generation.id).where(condition).order_by(*order).limit(limit).offset(offset)
    return list(session.scalars(select(Generation).where(Generation.id.in_(ids)).order_by(*order)))


def get_generations_by_status(session: Session, status: str, limit: int = 100) -> list[Generation]:
    """Return generations of one status, in the order of get_all_generations()."""
    return get_all_generations(session, limit=limit, status=validate_status(status))


def get_pending_generations(session: Session, limit: int = 100) -> list[Generation]:
    """Return pending generations, due or not, in the order they will be claimed: priority, then oldest."""
    return get_all_generations(session, limit=limit, status=GenerationStatus.PENDING)


def count_generations(session: Session, status: str | None = None) -> int:
    """Return how many generations there are, in all or of one status."""
    count = select(func.count()).select_from(Generation)
    if status is not None:
        count = count.where(Generation.status == validate_status(status))
    return session.scalar(count) or 0


def update_generation_status(
    session: Session, generation_id: str, status: str, error_message: str | None = None
) -> Generation | None:
    """Change a generation's status and all that follows from it. Returns None for an unknown id.

    Raises IllegalTransitionError for a move the life cycle does not know, ConflictError when another writer changed the
    row meanwhile, ValueError for an unknown status or an `error_message` with any but failed and cancelled.
    """
    status = validate_status(status)
    if error_message is not None and status not in (GenerationStatus.FAILED, GenerationStatus.CANCELLED):
        raise ValueError(f"error_message belongs to a failed or cancelled generation, not to a {status} one")
    generation = get_generation(session, generation_id)
    if generation is None:
        return None
    generation.status = status
    if error_message is not None:
        generation.error_message = error_message
    session.flush()
    return generation


def set_favorite(session: Session, generation_id: str, favorite: bool = True) -> Generation | None:
    """Mark a generation as a favourite, or no longer. Returns None for an unknown id."""
    favorite = validate_generation_field("is_favorite", favorite)
    if not is_storable("generation_id", generation_id):
        return None
    change = update(Generation).where(Generation.id == generation_id)
    change = change.values(is_favorite=favorite, version=Generation.version + 1)
    return session.scalars(change.returning(Generation), execution_options={"populate_existing": True}).one_or_none()


def delete_generation(session: Session, generation_id: str) -> bool:
    """Delete a generation and the history of its attempts; tell whether there was one. Its prompt keeps its count."""
    if not is_storable("generation_id", generation_id):
        return False
    deleted = session.scalars(delete(Generation).where(Generation.id == generation_id).returning(Generation.id))
    return deleted.one_or_none() is not None


def track_prompt_usage(session: Session, prompt_text: str) -> Prompt:
    """Count one use of a prompt, new or known, and return it; the sum is made by the database.

    create_generation() has done so already for its own. Raises ValueError or TypeError for a text that is no prompt.
    """
    return count_use(session, validate_prompt_field("text", prompt_text))


def get_prompt(session: Session, prompt_id: int) -> Prompt | None:
    """Return the prompt with this id, or None."""
    prompt_id = validate_count("prompt_id", prompt_id, minimum=-INTEGER_LIMIT)
    return session.get(Prompt, prompt_id) if prompt_id <= INTEGER_LIMIT else None


def get_prompt_by_text(session: Session, text: str) -> Prompt | None:
    """Return the prompt with exactly this text, or None."""
    if not is_storable("text", text):
        return None
    return session.scalars(select(Prompt).where(backend_for(session).prompt_is(text))).one_or_none()


def get_all_prompts(session: Session, limit: int = 100, offset: int = 0) -> list[Prompt]:
    """Return prompts, most used first, ties broken by age."""
    portion = {"limit": validate_count("limit", limit), "offset": validate_count("offset", offset)}
    return list(session.scalars(_by_use(), portion))


def get_most_used_prompts(session: Session, limit: int = 10) -> list[Prompt]:
    """Return the most frequently used prompts, ties broken by age."""
    return get_all_prompts(session, limit=limit)


def delete_prompt(session: Session, prompt_id: int) -> bool:
    """Delete a prompt with all its generations and their attempts; tell whether there was one."""
    prompt_id = validate_count("prompt_id", prompt_id, minimum=-INTEGER_LIMIT)
    if prompt_id > INTEGER_LIMIT:
        return False
    session.flush()
    deleted = session.scalars(delete(Prompt).where(Prompt.id == prompt_id).returning(Prompt.id)).one_or_none()
    for row in list(session.identity_map.values()):
        # The database has deleted it too; an expired one would be looked for, and finds out by itself when it is read.
        if isinstance(row, Generation) and row.__dict__.get("prompt_id") == prompt_id:
            session.expunge(row)
    return deleted is not None


@cache  # building it takes as long as executing it
def _by_use() -> Select[Any]:
    ranked = select(Prompt).order_by(Prompt.used_count.desc(), Prompt.id)
    return ranked.limit(bindparam("limit", type_=BigInteger())).offset(bindparam("offset", type_=BigInteger()))


def _of_status(status: str | None) -> tuple[ColumnElement[bool], tuple[Any, ...]]:
    """Return the condition and the order for listing one status, worded so that its partial index fits."""
    newest_first = (Generation.created_at.desc(), Generation.id.desc())
    if status is None:
        return true(), newest_first
    status = validate_status(status)
    if status == GenerationStatus.PENDING:
        return PENDING, CLAIM_ORDER
    condition = Generation.status == status
    if status != GenerationStatus.COMPLETED:
        condition &= Generation.status != literal_column("'completed'")
    return condition, newest_first


def _build(request: Mapping[str, Any]) -> Generation:
    """Return the unsaved generation of create_generation()'s arguments."""
    unknown = request.keys() - ARGUMENTS
    missing = REQUIRED - request.keys()
    if unknown or missing:
        problem = f"{min(unknown)} is not an argument" if unknown else f"{min(missing)} is missing"
        raise TypeError(f"{problem} of create_generation()")
    given = {name: value for name, value in request.items() if value is not None or name not in OPTIONAL}
    if "generation_id" in given:
        given["id"] = GENERATION_RULES["id"]("generation_id", given.pop("generation_id"))
    return Generation(**given)


PARAMETERS = {name: parameter.default for name, parameter in signature(create_generation).parameters.items()}
ARGUMENTS = PARAMETERS.keys() - {"session"}
REQUIRED = {name for name in ARGUMENTS if PARAMETERS[name] is Parameter.empty}
OPTIONAL = {name for name in ARGUMENTS if PARAMETERS[name] is None}
