"""The filters of lists of generations: their validation, and the SQL conditions that they mean."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import ColumnElement, and_, false, select
from sqlalchemy.orm import Session

from .backends import backend_for
from .conditions import of_status
from .lifecycle import validate_status
from .models import Generation, Prompt
from .search import match_generations
from .validation import is_storable, validate_flag, validate_metadata_filter, validate_moment


class FiltersButFavorite(TypedDict, total=False):
    """The filters of list_generations() but one, as keyword arguments of other functions."""

    status: str | None
    model_name: str | None
    prompt: str | None
    batch_id: str | None
    created_after: datetime | None
    created_before: datetime | None
    metadata: Mapping[str, Any] | None
    search: str | None
    parent_id: str | None


class Filters(FiltersButFavorite, total=False):
    """The filters of list_generations() as keyword arguments of other functions."""

    favorite: bool | None


def validate_filters(
    *,
    status: str | None = None,
    model_name: str | None = None,
    prompt: str | None = None,
    batch_id: str | None = None,
    favorite: bool | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    search: str | None = None,
    parent_id: str | None = None,
) -> dict[str, Any]:
    """Return the filters of list_generations(), for filter_conditions(). Raises what list_generations() raises."""
    filters = {
        "status": None if status is None else validate_status(status),
        "model_name": model_name,
        "prompt": prompt,
        "batch_id": batch_id,
        "favorite": None if favorite is None else validate_flag("favorite", favorite),
        "created_after": None if created_after is None else validate_moment("created_after", created_after),
        "created_before": None if created_before is None else validate_moment("created_before", created_before),
        "metadata": None if metadata is None else validate_metadata_filter(metadata),
    }
    # No keys without a value: cursors of earlier releases stay valid.
    later = {"search": search, "parent_id": parent_id}
    filters |= {name: value for name, value in later.items() if value is not None}
    return filters


def filter_conditions(session: Session, filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Return the conditions of the filters that validate_filters() returned; none for no filters."""
    filters = {name: value for name, value in filters.items() if value is not None}
    texts = ((name, filters[name]) for name in ("model_name", "prompt", "batch_id", "parent_id") if name in filters)
    if not all(is_storable(name, text) for name, text in texts):
        return [false()]
    conditions: list[ColumnElement[bool]] = []
    if "status" in filters:
        conditions.append(of_status(filters["status"]))
    if "model_name" in filters:
        conditions.append(Generation.model_name == filters["model_name"])
    if "prompt" in filters:
        prompt_ids = select(Prompt.id).where(backend_for(session).prompt_text_equals(filters["prompt"]))
        conditions.append(Generation.prompt_id == prompt_ids.scalar_subquery())
    if "batch_id" in filters:
        conditions.append(Generation.batch_id == filters["batch_id"])
    if "parent_id" in filters:
        conditions.append(Generation.parent_id == filters["parent_id"])
    if "favorite" in filters:
        conditions.append(and_(Generation.is_favorite) if filters["favorite"] else ~Generation.is_favorite)
    if "created_after" in filters:
        conditions.append(Generation.created_at >= filters["created_after"])
    if "created_before" in filters:
        conditions.append(Generation.created_at < filters["created_before"])
    conditions += [_has_metadata(key, wanted) for key, wanted in filters.get("metadata", {}).items()]
    if "search" in filters:
        conditions.append(match_generations(session, filters["search"]))
    return conditions


def _has_metadata(key: str, wanted: Any) -> ColumnElement[bool]:
    """Return the condition that `key` of the metadata has the value `wanted`; invalid JSON has no keys."""
    if not is_storable("metadata", key) or (isinstance(wanted, str) and not is_storable("metadata", wanted)):
        return false()
    member = Generation.metadata_json[key]
    if not isinstance(wanted, tuple):
        return and_(member == wanted)
    low, high = wanted
    number = member.as_float()
    return and_(
        number.is_not(None),
        *([number >= low] if low is not None else []),
        *([number <= high] if high is not None else []),
    )
