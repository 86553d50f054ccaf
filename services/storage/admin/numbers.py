"""The page Prompts and numbers: usage, models, prompts and failures of some days, and the health of the database."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from ..analytics import (
    FailureReason,
    PerformanceStats,
    PromptStats,
    Usage,
    get_failure_reasons,
    get_performance_stats,
    get_popular_prompts,
    get_usage,
)
from ..generations import list_generations
from ..limits import QUERY_TERMS_LIMIT
from ..maintenance import check_health
from ..search import search_prompts
from ..search_words import split_words
from ..types import utcnow
from .charts import draw_usage
from .view import View

PERIODS: Final = {1: "24 hours", 7: "7 days", 30: "30 days"}
DEFAULT_DAYS: Final = 7
PROMPTS_SHOWN: Final = 10
FAILURES_SHOWN: Final = 8
# Reading every generation of 30 days takes longer than a page may, so the figures are remembered for a while.
FRESH: Final = timedelta(seconds=30)


@dataclass(frozen=True)
class Figures:
    """The figures of one period, read at the time `at`."""

    at: datetime
    usage: list[Usage]
    models: list[PerformanceStats]
    prompts: list[PromptStats]
    failures: list[FailureReason]


class Numbers:
    """Reads the page, and remembers the figures of each period for half a minute."""

    def __init__(self) -> None:
        self._figures: dict[int, Figures] = {}

    def read(self, session: Session, view: View) -> dict[str, Any]:
        """Return what the template shows. At most eight statements with the check of the schema."""
        asked = view.asked.get("days", "")
        days = int(asked) if asked in map(str, PERIODS) else DEFAULT_DAYS
        figures = self._figures.get(days)
        now = utcnow()
        if figures is None or now - figures.at > FRESH:
            figures = self._figures[days] = _read_figures(session, days, now)
        return {
            "days": days,
            "periods": PERIODS,
            "figures": figures,
            "now": now,
            "chart_drawn": draw_usage(figures.usage, "%H:00" if days == 1 else "%-d %b"),
            "health": check_health(storage=view.storage),
            "is_searchable": _is_newest_found(session),
        }


def _read_figures(session: Session, days: int, now: datetime) -> Figures:
    since = now - timedelta(days=days)
    bucket: Any = ("hour", timedelta(hours=1)) if days == 1 else ("day", timedelta(days=1))
    return Figures(
        now,
        get_usage(session, since=since + bucket[1], bucket=bucket[0]),
        get_performance_stats(session, since=since),
        get_popular_prompts(session, PROMPTS_SHOWN),
        get_failure_reasons(session, since=since, limit=FAILURES_SHOWN),
    )


def _is_newest_found(session: Session) -> bool | None:
    """Return whether the search finds the words of the newest generation; None if there are none."""
    newest = list_generations(session, limit=1).items
    if not newest:
        return None
    words = split_words(newest[0].prompt)[:QUERY_TERMS_LIMIT]
    if not words:
        return None
    return bool(search_prompts(session, " ".join(f'"{word}"' for word in words), 1, order_by="newest"))
