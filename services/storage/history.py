"""The history: pages of generations, newest first, narrowed down by what is known of them. Read-only."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, false, select
from sqlalchemy.orm import Session

from .backends import backend_for
from .models import Generation, Prompt
from .pagination import Page, after_position, decode_cursor, fetch_page, newest_first, of_status
from .schema import INTEGER_LIMIT, validate_status
from .validation import (
    is_storable,
    validate_count,
    validate_flag,
    validate_metadata_filter,
    validate_moment,
)


def list_generations(
    session: Session,
    *,
    status: str | None = None,
    model_name: str | None = None,
    prompt: str | None = None,
    batch_id: str | None = None,
    favorite: bool | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Page[Generation]:
    """Return a page of the generations that meet every condition given, newest first whatever their status.

    `created_after` includes its moment, `created_before` does not. `metadata` maps top-level keys to what they must
    hold: text, a number, a boolean, None for missing or null, or (low, high), bounds included and None for open, for
    a number between. `after` is the `next` of the page before, with the same conditions; pages hold nothing twice and
    skip nothing that was there throughout, whatever is added or deleted meanwhile. Raises InvalidCursorError for a
    cursor of another query, ValueError or TypeError naming the field for a condition that is none.
    """
    limit = min(validate_count("limit", limit, minimum=1), INTEGER_LIMIT)
    asked = {
        "status": None if status is None else validate_status(status),
        "model_name": model_name,
        "prompt": prompt,
        "batch_id": batch_id,
        "favorite": None if favorite is None else validate_flag("favorite", favorite),
        "created_after": None if created_after is None else validate_moment("created_after", created_after),
        "created_before": None if created_before is None else validate_moment("created_before", created_before),
        "metadata": None if metadata is None else validate_metadata_filter(metadata),
    }
    position = decode_cursor(after, asked)
    texts = (("model_name", model_name), ("prompt", prompt), ("batch_id", batch_id))
    if not all(text is None or is_storable(field, text) for field, text in texts):
        return Page([], None)
    statement = select(Generation).where(*_conditions(session, asked), *after_position(position))
    return fetch_page(session, statement.order_by(*newest_first()), query=asked, limit=limit)


def _conditions(session: Session, asked: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    given = {name: value for name, value in asked.items() if value is not None}
    conditions: list[ColumnElement[bool]] = []
    if "status" in given:
        conditions.append(of_status(given["status"]))
    if "model_name" in given:
        conditions.append(Generation.model_name == given["model_name"])
    if "prompt" in given:
        found = select(Prompt.id).where(backend_for(session).prompt_is(given["prompt"]))
        conditions.append(Generation.prompt_id == found.scalar_subquery())
    if "batch_id" in given:
        conditions.append(Generation.batch_id == given["batch_id"])
    if "favorite" in given:
        conditions.append(and_(Generation.is_favorite) if given["favorite"] else ~Generation.is_favorite)
    if "created_after" in given:
        conditions.append(Generation.created_at >= given["created_after"])
    if "created_before" in given:
        conditions.append(Generation.created_at < given["created_before"])
    conditions += [_has_metadata(session, key, wanted) for key, wanted in given.get("metadata", {}).items()]
    return conditions


def _has_metadata(session: Session, key: str, wanted: Any) -> ColumnElement[bool]:
    """Return the condition that the metadata's `key` holds what is `wanted`; unreadable metadata holds nothing."""
    backend, document = backend_for(session), Generation.metadata_json
    if not is_storable("metadata", key) or (isinstance(wanted, str) and not is_storable("metadata", wanted)):
        return false()
    if wanted is None:
        return backend.json_member(document, key, "any").is_(None)
    if isinstance(wanted, str):
        return backend.json_member(document, key, "text") == wanted
    if isinstance(wanted, bool):
        return backend.json_member(document, key, "boolean") == int(wanted)
    number = backend.json_member(document, key, "number")
    if not isinstance(wanted, tuple):
        return number == backend.json_number(wanted)
    low, high = wanted
    return and_(
        number.is_not(None),
        *([number >= backend.json_number(low)] if low is not None else []),
        *([number <= backend.json_number(high)] if high is not None else []),
    )
