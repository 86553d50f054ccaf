"""Create, read, list, update and delete generations. Functions take the session first and never commit."""

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final, Unpack

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, delete, func, select, true, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from .backends import backend_for
from .claim_order import CLAIM_ORDER
from .conditions import PENDING, REFRESH, newest_first, of_status
from .constructor_arguments import RequestChanges
from .defaults import MAX_ATTEMPTS, PAGE_SIZE
from .filters import filter_conditions, validate_filters
from .lifecycle import GenerationStatus, validate_status
from .limits import ID_LIMIT, INTEGER_LIMIT, ROWS_PER_STATEMENT, SHORT_ID_LENGTH, SHORTEST_ID_PREFIX
from .models import Generation
from .pagination import Page, after_position, decode_cursor, fetch_page
from .queue.enqueue import REQUEST, build_generation, insert_all, insert_once
from .row_loading import ALONE, GENERATIONS, connection_of, find, load_generations
from .types import uuid7s
from .validation import (
    is_storable,
    validate_count,
    validate_generation_field,
)

# Arguments that a constraint can refuse, so that a savepoint is needed.
REFUSABLE: Final = frozenset({"generation_id", "parent_id", "idempotency_key"})
LAST_CHARACTER: Final = "\U0010ffff"  # in byte order
CLONED_FIELDS: Final = (*REQUEST, "priority", "max_attempts")
SELECT_GENERATION: Final = (
    select(GENERATIONS).where(GENERATIONS.c.id == bindparam("generation_id")).execution_options(**ALONE)
)
OTHERS: Final = GENERATIONS.alias()
# By the primary key, two index seeks for each id.
SELECT_NEIGHBOURS: Final = select(
    GENERATIONS.c.id,
    select(func.max(OTHERS.c.id)).where(OTHERS.c.id < GENERATIONS.c.id).correlate(GENERATIONS).scalar_subquery(),
    select(func.min(OTHERS.c.id)).where(OTHERS.c.id > GENERATIONS.c.id).correlate(GENERATIONS).scalar_subquery(),
).where(GENERATIONS.c.id.in_(bindparam("ids", expanding=True)))


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
    max_attempts: int = MAX_ATTEMPTS,
    batch_id: str | None = None,
    parent_id: str | None = None,
    idempotency_key: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Generation:
    """Store a request as a pending generation and count one use of its prompt.

    `duration_seconds` and `sample_rate` (Hz) are what is requested. A higher `priority` is claimed first, and no
    generation before its `scheduled_at`. A repeated `idempotency_key` returns the first row and counts no use. Raises
    ValueError or TypeError naming the field, ConflictError for a `generation_id` that exists or the key of another
    request, ConstraintError for an unknown `parent_id`; the session stays usable. See ADR 9 and 14.
    """
    generation = build_generation(
        {
            "prompt": prompt,
            "model_name": model_name,
            "duration_seconds": duration_seconds,
            "sample_rate": sample_rate,
            "channels": channels,
            "file_path": file_path,
            "model_version": model_version,
            "metadata": metadata,
            "generation_id": generation_id,
            "priority": priority,
            "scheduled_at": scheduled_at,
            "max_attempts": max_attempts,
            "batch_id": batch_id,
            "parent_id": parent_id,
            "idempotency_key": idempotency_key,
            "parameters": parameters,
        }
    )
    if generation_id is parent_id is idempotency_key is None:
        return insert_all(session, [generation])[0]
    return insert_once(session, [generation])[0]


def create_generations(
    session: Session, requests: Iterable[Mapping[str, Any]], *, batch_id: str | None = None
) -> list[Generation]:
    """Store many requests at once, all or none, and return their generations in the same order.

    Each request maps the arguments of create_generation() to values; `batch_id` applies to requests without one. Raises
    what create_generation() raises, with the position of the request in the message.
    """
    requests = list(requests)
    generations, can_be_refused = [], False
    # In ascending order, because claims break ties by id.
    for position, (request, new_id) in enumerate(zip(requests, uuid7s(len(requests)), strict=True)):
        try:
            given = {"batch_id": batch_id} | dict(request)
            generations.append(build_generation(given, new_id=new_id))
        except (TypeError, ValueError) as error:
            raise type(error)(f"requests[{position}]: {error}") from None
        can_be_refused = can_be_refused or not REFUSABLE.isdisjoint(given)
    return insert_once(session, generations) if can_be_refused else insert_all(session, generations)


def clone_generation(
    session: Session, generation_id: str, *, file_path: str | os.PathLike[str], **changes: Unpack[RequestChanges]
) -> Generation | None:
    """Store a variation: the same request with `changes` and `parent_id` set. Return None for an unknown id.

    Copies the prompt, model, duration, sample rate, channels, parameters, priority and max_attempts, but no results.
    Raises what create_generation() raises.
    """
    source = get_generation(session, generation_id)
    if source is None:
        return None
    copied = {field: getattr(source, field) for field in CLONED_FIELDS}
    request: dict[str, Any] = {**copied, "parent_id": source.id, **changes}
    return create_generation(session, file_path=file_path, **request)


def get_generation(session: Session, generation_id: str) -> Generation | None:
    """Return the generation with this id, or None."""
    if not is_storable("generation_id", generation_id):
        return None
    if session.identity_map and identity_key(Generation, generation_id) in session.identity_map:
        return session.get(Generation, generation_id)
    row = connection_of(session).execute(SELECT_GENERATION, {"generation_id": generation_id}).one_or_none()
    return None if row is None else load_generations(session, [row])[0]


def get_all_generations(
    session: Session, limit: int = PAGE_SIZE, offset: int = 0, status: str | None = None
) -> list[Generation]:
    """Return generations newest first, then by id; with status pending, in claim order."""
    limit, offset = validate_count("limit", limit), validate_count("offset", offset)
    if offset == 0:
        listing = _listing(None if status is None else validate_status(status))
        return find(session, Generation, listing, {"listing_limit": limit})[0]
    condition, order = _status_listing(status)
    # The subquery reads only the index, so skipped rows are not read: four times faster at offset 900,000.
    ids = select(Generation.id).where(condition).order_by(*order).limit(limit).offset(offset)
    return find(session, Generation, select(Generation).where(Generation.id.in_(ids)).order_by(*order))[0]


def list_generations(
    session: Session,
    *,
    status: str | None = None,
    model_name: str | None = None,
    prompt: str | None = None,
    batch_id: str | None = None,
    parent_id: str | None = None,
    favorite: bool | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    search: str | None = None,
    limit: int = PAGE_SIZE,
    after: str | None = None,
) -> Page[Generation]:
    """Return a page of the generations that meet all conditions, newest first for every status.

    `created_after` is inclusive, `created_before` exclusive. `metadata` maps top-level keys to the value they must
    have: text, a number, a boolean, None for a missing or null value, or a range (low, high) of numbers, inclusive,
    where None means no bound. `search` is a query as in search_prompts(). `after` is the `next` of the previous page of
    the same conditions. While rows are added and deleted, no row appears on two pages, and no row that exists
    throughout is skipped. Raises InvalidCursorError for a cursor of another query, ValueError or TypeError naming the
    field for an invalid condition. See ADR 20.
    """
    limit = min(validate_count("limit", limit, minimum=1), INTEGER_LIMIT)
    filters = validate_filters(
        status=status,
        model_name=model_name,
        prompt=prompt,
        batch_id=batch_id,
        favorite=favorite,
        created_after=created_after,
        created_before=created_before,
        metadata=metadata,
        search=search,
        parent_id=parent_id,
    )
    position = decode_cursor(after, filters)
    statement = select(Generation).where(*filter_conditions(session, filters), *after_position(position))
    return fetch_page(session, statement.order_by(*newest_first()), query=filters, limit=limit)


def find_generation_ids(session: Session, id_prefix: str, limit: int = 2) -> list[str]:
    """Return up to `limit` ids that begin with `id_prefix`, in order; the id itself alone when it exists.

    Raises ValueError for a prefix of fewer than 6 characters that is not an id.
    """
    limit = validate_count("limit", limit)
    if not is_storable("id_prefix", id_prefix):
        return []
    if session.scalar(select(Generation.id).where(Generation.id == id_prefix)) is not None:
        return [id_prefix]
    if len(id_prefix) < SHORTEST_ID_PREFIX:
        raise ValueError(f"id_prefix, the beginning of an id, must have at least {SHORTEST_ID_PREFIX} characters")
    id = backend_for(session).byte_order(Generation.id)
    found = select(Generation.id).where(id >= id_prefix, id <= id_prefix + LAST_CHARACTER * ID_LIMIT)
    return list(session.scalars(found.order_by(Generation.id).limit(limit)))


def shorten_ids(session: Session, ids: Iterable[str]) -> dict[str, str]:
    """Return for each id its beginning, to show it: find_generation_ids() finds this id alone by it.

    All have the same length: 13 characters, or as many as tell each of them from the ids before and after it in the
    database, because ids that were created together begin alike. An id that is not stored stays whole.
    """
    ids = list(ids)
    wanted, stored, length = [id for id in dict.fromkeys(ids) if is_storable("id", id)], set(), SHORT_ID_LENGTH
    for start in range(0, len(wanted), ROWS_PER_STATEMENT):
        batch = wanted[start : start + ROWS_PER_STATEMENT]
        for id, *neighbours in session.execute(SELECT_NEIGHBOURS, {"ids": batch}):
            stored.add(id)
            length = max(length, *(_count_shared(id, neighbour or "") + 1 for neighbour in neighbours))
    return {id: id[:length] if id in stored else id for id in ids}


def get_generations_by_status(session: Session, status: str, limit: int = PAGE_SIZE) -> list[Generation]:
    """Return generations of one status, in the order of get_all_generations()."""
    return get_all_generations(session, limit=limit, status=validate_status(status))


def get_pending_generations(session: Session, limit: int = PAGE_SIZE) -> list[Generation]:
    """Return pending generations, due or not, in claim order: by priority, then by scheduled_at, then by id."""
    return get_all_generations(session, limit=limit, status=GenerationStatus.PENDING)


def count_generations(session: Session, status: str | None = None) -> int:
    """Return the number of generations, of all statuses or of one."""
    count = select(func.count()).select_from(Generation)
    if status is not None:
        count = count.where(Generation.status == validate_status(status))
    return session.scalar(count) or 0


def update_generation_status(
    session: Session, generation_id: str, status: str, error_message: str | None = None
) -> Generation | None:
    """Change the status of a generation and the columns that depend on it. Return None for an unknown id.

    Raises IllegalTransitionError for a move that is not in LEGAL_MOVES, ConflictError if another writer changed the row
    in the meantime, ValueError for an unknown status or an `error_message` with a status other than failed or
    cancelled. See ADR 5 and 8.
    """
    status = validate_status(status)
    if error_message is not None and status not in (GenerationStatus.FAILED, GenerationStatus.CANCELLED):
        raise ValueError(f"error_message must be None unless status is failed or cancelled, not {status}")
    generation = get_generation(session, generation_id)
    if generation is None:
        return None
    generation.status = status
    if error_message is not None:
        generation.error_message = error_message
    session.flush()
    return generation


def set_favorite(session: Session, generation_id: str, favorite: bool = True) -> Generation | None:
    """Set or clear the favorite mark of a generation. Return None for an unknown id."""
    favorite = validate_generation_field("is_favorite", favorite)
    if not is_storable("generation_id", generation_id):
        return None
    change = update(Generation).where(Generation.id == generation_id)
    change = change.values(is_favorite=favorite, version=Generation.version + 1)
    return session.scalars(change.returning(Generation), execution_options=REFRESH).one_or_none()


def delete_generation(session: Session, generation_id: str) -> bool:
    """Delete a generation and its attempts; return whether it existed. The use count of its prompt stays the same."""
    if not is_storable("generation_id", generation_id):
        return False
    deleted = session.scalars(delete(Generation).where(Generation.id == generation_id).returning(Generation.id))
    return deleted.one_or_none() is not None


@cache
def _listing(status: str | None) -> Select[Any]:
    condition, order = _status_listing(status)
    limit = bindparam("listing_limit", type_=BigInteger())
    return select(Generation).where(condition).order_by(*order).limit(limit)


def _status_listing(status: str | None) -> tuple[ColumnElement[bool], tuple[Any, ...]]:
    """Return the condition and the ORDER BY of get_all_generations()."""
    if status is None:
        return true(), newest_first()
    status = validate_status(status)
    if status == GenerationStatus.PENDING:
        return PENDING, CLAIM_ORDER
    return of_status(status), newest_first()


def _count_shared(one: str, other: str) -> int:
    """Return with how many characters both texts begin alike."""
    shorter = min(len(one), len(other))
    return next((number for number in range(shorter) if one[number] != other[number]), shorter)
