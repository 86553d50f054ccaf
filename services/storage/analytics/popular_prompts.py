"""The results of the most used prompts, in one statement. Read-only."""

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Select, bindparam, case, func, literal, select
from sqlalchemy.orm import Session

from ..lifecycle import GenerationStatus
from ..models import Generation, Prompt
from ..row_loading import connection_of
from ..validation import validate_count
from .percentiles import interpolate, select_percentiles
from .report_types import PromptStats
from .reports import rate


def get_popular_prompts(session: Session, limit: int = 10) -> list[PromptStats]:
    """Return the uses and results of the most used prompts, then by id; PromptStats defines each number.

    Reads every generation of these prompts.
    """
    parameters = {"prompt_limit": validate_count("limit", limit)}
    popular = []
    for row in connection_of(session).execute(_popular_prompts(), parameters):
        *known, timed, p50_low, p50_high = row
        median = interpolate(timed, *(p50_low, p50_high) * 3).p50 if timed else None
        known += [rate(known[6], known[7]), median]
        popular.append(PromptStats(*known))
    return popular


@cache
def _popular_prompts() -> Select[Any]:
    ranked = select(Prompt).order_by(Prompt.used_count.desc(), Prompt.id)
    popular = ranked.limit(bindparam("prompt_limit", type_=BigInteger())).cte("popular")
    stored = select(Generation).join(popular, Generation.prompt_id == popular.c.id).cte("stored")
    is_completed = stored.c.status == GenerationStatus.COMPLETED
    counts = select(
        stored.c.prompt_id,
        func.count().label("generations"),
        func.count(case((is_completed, 1))).label("completed"),
        func.count(case((stored.c.status == GenerationStatus.FAILED, 1))).label("failed"),
        func.count(case((stored.c.is_favorite, 1))).label("favorites"),
    )
    counted = counts.group_by(stored.c.prompt_id).subquery()
    time = case((is_completed, stored.c.generation_time_seconds))
    times = select_percentiles(stored.c.prompt_id, literal(""), time).subquery()
    prompt_id, _, timed, p50_low, p50_high, *_ = times.c
    return (
        select(*popular.c, *(func.coalesce(column, 0) for column in list(counted.c)[1:]), timed, p50_low, p50_high)
        .select_from(popular.outerjoin(counted, counted.c.prompt_id == popular.c.id))
        .outerjoin(times, prompt_id == popular.c.id)
        .order_by(popular.c.used_count.desc(), popular.c.id)
    )
