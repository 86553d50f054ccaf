"""Full-text search of prompts, and of generations through them. What a query may say stands in terms.py.

The database finds what matches; how relevant that is, and where it matches, is told here, alike on every database.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from .backends import backend_for
from .models import Generation, Prompt
from .pagination import Page, after_position, decode_cursor, fetch_page, newest_first, of_status
from .schema import validate_status
from .terms import Query, parse_query
from .validation import validate_count

Order = Literal["relevance", "used", "newest"]

# Ranking reads texts: this many take 10 ms, and of a common word nobody looks through more.
RANKED = 2_000
# Up to this many prompts are gathered and sorted; of a more common word enough are met soon by walking in the order
# asked for. At 1,000,000 rows both take some milliseconds here.
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

    `order_by` relevance ranks the newest 2,000 of them (terms.Query.rank says how), "used" puts those used most first,
    "newest" those used first last. Every match in a snippet stands between the two `marks`. Any string is a query.
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
        found = {prompt.id: prompt for prompt in session.scalars(select(Prompt).where(Prompt.id.in_(ranked)))}
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
    limit = validate_count("limit", limit, minimum=1)
    status = None if status is None else validate_status(status)
    asked = {"search": query, "status": status}
    position = decode_cursor(after, asked)
    parsed = parse_query(query)
    if not parsed.wanted:
        return Page([], None)
    conditions: Any = after_position(position)
    if status is not None:
        conditions.append(of_status(status))
    backend = backend_for(session)
    statement = select(Generation).order_by(*newest_first())
    if _is_common(session, parsed):
        matches = backend.prompt_matches(parsed, Generation.prompt_id, Generation.prompt)
        statement = statement.where(matches, *conditions)
    else:
        # The newest of each prompt, so that one prompt of a million generations costs no more than another.
        prompts = backend.matching_prompts(parsed).subquery()
        one = _another_generation()
        newest = select(one.id).where(one.prompt_id == prompts.c.id, *after_position(position, one))
        if status is not None:
            newest = newest.where(of_status(status, one))
        newest = newest.order_by(*newest_first(one)).limit(limit + 1).correlate(prompts)
        statement = statement.join(prompts, Generation.prompt_id == prompts.c.id).where(Generation.id.in_(newest))
    return fetch_page(session, statement, query=asked, limit=limit)


def check_search_index(session: Session) -> bool:
    """Tell whether the index is exactly what the prompts say; it reads all of them, in a session that may write."""
    session.flush()
    return backend_for(session).check_search_index(session)


def rebuild_search_index(session: Session) -> None:
    """Make the index anew from the prompts: 30 seconds for a million of them, in which nobody else can write."""
    session.flush()
    backend_for(session).rebuild_search_index(session)


@cache
def _another_generation() -> Any:
    # Made once: a new alias of 33 columns takes a millisecond.
    return aliased(Generation)


def _newest(session: Session, query: Query, limit: int) -> Select[Any]:
    return select(Prompt).where(Prompt.id.in_(_newest_ids(session, query, limit))).order_by(Prompt.id.desc())


def _newest_ids(session: Session, query: Query, limit: int, *, with_text: bool = False) -> Select[Any]:
    matching = backend_for(session).matching_prompts(query, with_text=with_text)
    return matching.order_by(matching.selected_columns[0].desc()).limit(limit)


def _most_used(session: Session, query: Query, limit: int) -> Select[Any]:
    statement = select(Prompt).order_by(Prompt.used_count.desc(), Prompt.id).limit(limit)
    if _is_common(session, query):
        return statement.where(backend_for(session).prompt_matches(query, Prompt.id, Prompt.text))
    return statement.where(Prompt.id.in_(_newest_ids(session, query, GATHERED + 1)))


def _rank_newest(session: Session, query: Query, limit: int) -> dict[int, float]:
    """Return the ids and ranks of the most relevant of the newest matches, best first; of equals the newer."""
    rows = session.execute(_newest_ids(session, query, max(RANKED, limit), with_text=True)).all()
    ranks = query.rank([text for _, text in rows])
    best = sorted(zip(ranks, rows, strict=True), key=lambda match: (-match[0], -match[1][0]))[:limit]
    return {row[0]: rank for rank, row in best}


def _is_common(session: Session, query: Query) -> bool:
    some = backend_for(session).matching_prompts(query).limit(GATHERED + 1).subquery()
    return (session.scalar(select(func.count()).select_from(some)) or 0) > GATHERED
