"""Read-only reports; each is one statement, hence one moment."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, null, select, union_all
from sqlalchemy.orm import Session

from .models import Generation, Prompt
from .schema import GenerationStatus


def get_database_stats(session: Session) -> dict[str, Any]:
    """Return how many generations there are in all and of each status, and how many prompts.

    The keys: total_generations, pending_generations, processing_generations, completed_generations,
    failed_generations, cancelled_generations, total_prompts. The total counts unknown statuses too.
    """
    by_status = select(Generation.status, func.count()).group_by(Generation.status)
    prompts = select(null(), func.count()).select_from(Prompt)
    rows: Sequence[Any] = session.execute(union_all(by_status, prompts)).all()
    counts: dict[str | None, int] = dict(rows)
    total_prompts = counts.pop(None)
    return {
        "total_generations": sum(counts.values()),
        **{f"{status}_generations": counts.get(status, 0) for status in GenerationStatus},
        "total_prompts": total_prompts,
    }
