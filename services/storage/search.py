"""Full-text search of prompts, and of generations by their prompts. search_query.py has the query language.

The database finds the matches. Rank and snippets are computed in Python, so they are the same on both databases. See
ADR 21.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Select, false, func, select
from sqlalchemy.orm import Session, aliased

from .backends import backend_for
from .conditions import literal_int, newest_first, of_status
from .lifecycle import validate_status
from .limits import INTEGER_LIMIT
from .models import Generation, Prompt
from .pagination import Page, PagePosition, after_position, decode_cursor, fetch_page
from .search_query import Query, parse_query
from .serialization import Report
from .validation import validate_count

Order = Literal["relevance", "used", "newest"]

# Relevance ranks at most this many of the newest matches: reading and ranking their texts takes 10 ms.
RANKED_LIMIT = 2_000
# Up to this many matching prompts are collected by id and then sorted. More matches are common, so a scan in the order
# of the result finds enough of them. At 1,000,000 rows both take a few milliseconds (ADR 23).
COLLECTED_LIMIT = 3_000


@dataclass(frozen=True)
class PromptMatch(Report):
    """A prompt that matches a search, the snippet of its text around the first match, and its relevance."""

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
    """Return at most `limit` prompts that match `query`.

    `order_by` "relevance" ranks the newest 2,000 matches (Query.rank() has the formula), "used" puts the most used
    first, "newest" the most recently created. `marks` are inserted before and after each match in a snippet. Any string
    is a valid query. Raises ValueError or TypeError for an invalid limit or order, TypeError for a query that is not
    text.
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
        by_id = {prompt.id: prompt for prompt in session.scalars(select(Prompt).where(Prompt.id.in_(ids)))}
        prompts = [by_id[prompt_id] for prompt_id in ranked if prompt_id in by_id]
    else:
        statement = _newest(session, parsed, limit) if order_by == "newest" else _most_used(session, parsed, limit)
        prompts = list(session.scalars(statement))
        ranked = dict(zip((p.id for p in prompts), parsed.rank([p.text for p in prompts]), strict=True))
    return [PromptMatch(prompt, parsed.snippet(prompt.text, marks), ranked[prompt.id]) for prompt in prompts]


def search_generations(
    session: Session, query: str, *, status: str | None = None, limit: int = 20, after: str | None = None
) -> Page[Generation]:
    """Return a page of the generations whose prompts match `query`, newest first.

    `after` is the `next` of the previous page. Raises InvalidCursorError for a cursor of another search, ValueError or
    TypeError for an invalid status, limit or query.
    """
    limit = min(validate_count("limit", limit, minimum=1), INTEGER_LIMIT)
    status = None if status is None else validate_status(status)
    filters = {"search": query, "status": status}
    position = decode_cursor(after, filters)
    parsed = parse_query(query)
    if not parsed.wanted:
        return Page([], None)
    prompt_ids = _ids_if_rare(session, parsed)
    if prompt_ids is None:
        matches = backend_for(session).match_condition(parsed, Generation.prompt_id)
        conditions = [matches, *_conditions(Generation, status, position)]
    else:
        conditions = [Generation.id.in_(_newest_of_prompts(session, prompt_ids, status, position, limit + 1))]
    statement = select(Generation).where(*conditions).order_by(*newest_first())
    return fetch_page(session, statement, query=filters, limit=limit)


def match_generations(session: Session, query: str) -> ColumnElement[bool]:
    """Return the condition that the prompt of a generation matches `query`; false for a query without words."""
    parsed = parse_query(query)
    if not parsed.wanted:
        return false()
    ids = _ids_if_rare(session, parsed)
    if ids is None:
        return backend_for(session).match_condition(parsed, Generation.prompt_id)
    return Generation.prompt_id.in_(select(backend_for(session).unnest(ids).c.value))


def check_search_index(session: Session) -> bool:
    """Return whether the search index matches the prompts. Reads all of them; needs a session that can write."""
    session.flush()
    return backend_for(session).check_search_index(session)


def rebuild_search_index(session: Session) -> None:
    """Rebuild the search index from the prompts. Blocks other writers: 30 seconds for a million prompts."""
    session.flush()
    backend_for(session).rebuild_search_index(session)


def _ids_if_rare(session: Session, query: Query) -> list[int] | None:
    """Return the ids of all prompts that match, or None if they are so many that a scan finds enough quickly."""
    ids: list[int] | None = session.scalar(backend_for(session).match_ids_if_rare(query, COLLECTED_LIMIT + 1))
    return None if ids is None or len(ids) > COLLECTED_LIMIT else ids


def _newest_of_prompts(
    session: Session, prompt_ids: Sequence[int], status: str | None, position: PagePosition | None, limit: int
) -> Select[Any]:
    """Return the query for the ids of the newest `limit` generations of these prompts.

    Reads at most the newest `limit` generations of each prompt, and those with the same created_at as the last of them,
    so a prompt with a million generations costs no more than another.
    """
    numbers = backend_for(session).unnest(prompt_ids)
    one, other = _generation_aliases()
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
def _generation_aliases() -> tuple[Any, Any]:
    # Cached, because creating an alias of 33 columns takes a millisecond.
    return aliased(Generation), aliased(Generation)


def _newest(session: Session, query: Query, limit: int) -> Select[Any]:
    ids = backend_for(session).select_newest_matches(session, query, limit).subquery()
    return select(Prompt).where(Prompt.id.in_(select(ids.c.id))).order_by(Prompt.id.desc())


def _most_used(session: Session, query: Query, limit: int) -> Select[Any]:
    backend, prompt_ids = backend_for(session), _ids_if_rare(session, query)
    if prompt_ids is None:
        matches = backend.match_condition(query, Prompt.id)
    else:
        matches = Prompt.id.in_(select(backend.unnest(prompt_ids).c.value))
    return select(Prompt).where(matches).order_by(Prompt.used_count.desc(), Prompt.id).limit(literal_int(limit))


def _rank_newest(session: Session, query: Query, limit: int) -> dict[int, float]:
    """Return the ids and ranks of the most relevant of the newest matches, best first, ties newest first."""
    newest = backend_for(session).select_newest_matches(session, query, max(RANKED_LIMIT, limit), with_text=True)
    rows = session.execute(newest).all()
    ranks = query.rank([text for _, text in rows])
    best = sorted(zip(ranks, rows, strict=True), key=lambda match: (-match[0], -match[1][0]))[:limit]
    return {row[0]: rank for rank, row in best}
