"""Full-text search of prompts, and of generations through them. What a query may say stands in search_query.py.

The database finds what matches; how relevant that is, and where it matches, is told here, alike on every database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, aliased

from .backends import backend_for
from .conditions import literal_int, newest_first, of_status
from .lifecycle import validate_status
from .limits import INTEGER_LIMIT
from .models import Generation, Prompt
from .pagination import Page, PagePosition, after_position, decode_cursor, fetch_page
from .search_query import Query, parse_query
from .validation import validate_count

Order = Literal["relevance", "used", "newest"]

# Ranking reads texts: this many take 10 ms, and of a common word nobody looks through more.
RANKED = 2_000
# Up to this many prompts are gathered and sorted; of more, or of what is met OFTEN, enough are met soon by walking in
# the order wanted. At 1,000,000 rows both take some milliseconds.
GATHERED = 3_000


@dataclass(frozen=True)
class PromptMatch:
    """A prompt that answers a search, the part of its text that does, and how relevant it is among the others."""

    prompt: Prompt
    snippet: str
    rank: float


def search_prompts(
    session: Session,
    query: str,
    limit: int = 20,
    *,
    order_by: Order = "relevance",
    marks: tuple[str, str] = ("[", "]"),
) -> list[PromptMatch]:
    """Return the prompts that answer `query`, at most `limit`.

    `order_by` relevance ranks the newest 2,000 of them (Query.rank has the formula), "used" puts the most used first,
    "newest" those first used last. Each match in a snippet stands between the two `marks`. Any string is a valid query.
    Raises ValueError or TypeError for a bad limit or order, TypeError for a query that is not text.
    """
    limit = validate_count("limit", limit)
    if order_by not in get_args(Order):
        raise ValueError(f"order_by must be one of {', '.join(get_args(Order))}")
    parsed = parse_query(query)
    if not parsed.wanted or limit == 0:
        return []
    if order_by == "relevance":
        ranked = _rank_newest(session, parsed, limit)
        ids = select(backend_for(session).unnest([*ranked]).c.value)
        found = {prompt.id: prompt for prompt in session.scalars(select(Prompt).where(Prompt.id.in_(ids)))}
        prompts = [found[prompt_id] for prompt_id in ranked if prompt_id in found]
    else:
        statement = _newest(session, parsed, limit) if order_by == "newest" else _most_used(session, parsed, limit)
        prompts = list(session.scalars(statement))
        ranked = dict(zip((p.id for p in prompts), parsed.rank([p.text for p in prompts]), strict=True))
    return [PromptMatch(prompt, parsed.snippet(prompt.text, marks), ranked[prompt.id]) for prompt in prompts]


def search_generations(
    session: Session, query: str, *, status: str | None = None, limit: int = 20, after: str | None = None
) -> Page[Generation]:
    """Return a page of the generations whose prompts answer `query`, newest first.

    `after` is the `next` of the page before. Raises InvalidCursorError for a cursor of another search, ValueError or
    TypeError for a bad status, limit or query.
    """
    limit = min(validate_count("limit", limit, minimum=1), INTEGER_LIMIT)
    status = None if status is None else validate_status(status)
    asked = {"search": query, "status": status}
    position = decode_cursor(after, asked)
    parsed = parse_query(query)
    if not parsed.wanted:
        return Page([], None)
    few = _few_matches(session, parsed)
    if few is None:
        matches = backend_for(session).match_condition(parsed, Generation.prompt_id)
        found = [matches, *_conditions(Generation, status, position)]
    else:
        found = [Generation.id.in_(_newest_of_each(session, few, status, position, limit + 1))]
    statement = select(Generation).where(*found).order_by(*newest_first())
    return fetch_page(session, statement, query=asked, limit=limit)


def check_search_index(session: Session) -> bool:
    """Tell whether the index is exactly what the prompts say; it reads all of them, in a session that may write."""
    session.flush()
    return backend_for(session).check_search_index(session)


def rebuild_search_index(session: Session) -> None:
    """Make the index anew from the prompts: 30 seconds for a million of them, in which nobody else can write."""
    session.flush()
    backend_for(session).rebuild_search_index(session)


def _few_matches(session: Session, query: Query) -> list[int] | None:
    """Return the ids of all prompts that answer, or None where so many do that walking meets them soon."""
    ids: list[int] | None = session.scalar(backend_for(session).match_ids_if_rare(query, GATHERED + 1))
    return None if ids is None or len(ids) > GATHERED else ids


def _newest_of_each(
    session: Session, prompts: Sequence[int], status: str | None, position: PagePosition | None, limit: int
) -> Select[Any]:
    """Return the select of the ids of the newest `limit` generations of these prompts.

    Of each, no more are looked at than so many and those of the same moment: one prompt of a million generations costs
    no more than another.
    """
    numbers = backend_for(session).unnest(prompts)
    one, other = _other_generations()
    last = select(other.created_at).where(other.prompt_id == numbers.c.value, *_conditions(other, status, position))
    last = last.order_by(*newest_first(other)).offset(literal_int(limit - 1)).limit(literal_int(1))
    first = select(func.min(other.created_at)).where(other.prompt_id == numbers.c.value)
    since = func.coalesce(last.correlate(numbers).scalar_subquery(), first.correlate(numbers).scalar_subquery())
    newest = select(one.id).join(numbers, one.prompt_id == numbers.c.value)
    newest = newest.where(one.created_at >= since, *_conditions(one, status, position))
    return newest.order_by(*newest_first(one)).limit(literal_int(limit))


def _conditions(model: Any, status: str | None, position: PagePosition | None) -> list[ColumnElement[bool]]:
    return [*after_position(position, model), *([] if status is None else [of_status(status, model)])]


@cache
def _other_generations() -> tuple[Any, Any]:
    # Made once: a new alias of 33 columns takes a millisecond.
    return aliased(Generation), aliased(Generation)


def _newest(session: Session, query: Query, limit: int) -> Select[Any]:
    ids = backend_for(session).select_newest_matches(session, query, limit).subquery()
    return select(Prompt).where(Prompt.id.in_(select(ids.c.id))).order_by(Prompt.id.desc())


def _most_used(session: Session, query: Query, limit: int) -> Select[Any]:
    backend, few = backend_for(session), _few_matches(session, query)
    if few is None:
        found = backend.match_condition(query, Prompt.id)
    else:
        found = Prompt.id.in_(select(backend.unnest(few).c.value))
    return select(Prompt).where(found).order_by(Prompt.used_count.desc(), Prompt.id).limit(literal_int(limit))


def _rank_newest(session: Session, query: Query, limit: int) -> dict[int, float]:
    """Return the ids and ranks of the most relevant of the newest matches, best first; of equals the newer."""
    newest = backend_for(session).select_newest_matches(session, query, max(RANKED, limit), with_text=True)
    rows = session.execute(newest).all()
    ranks = query.rank([text for _, text in rows])
    best = sorted(zip(ranks, rows, strict=True), key=lambda match: (-match[0], -match[1][0]))[:limit]
    return {row[0]: rank for rank, row in best}
