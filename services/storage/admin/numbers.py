"""The page Prompts and numbers: usage, models, prompts and failures of some days, and the health of the database."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
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
from ..engine import Storage
from ..errors import StorageError
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
REFRESH_SECONDS: Final = 1
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
    """Reads the page from figures that are at most half a minute old, or says that it reads newer ones.

    Reading every generation of 30 days takes longer than a page may. So a request that finds the figures old shows them
    anyway, and they are read again once it is answered; the page then refreshes itself.
    """

    def __init__(self) -> None:
        self._figures: dict[tuple[str, int], Figures] = {}
        self._being_read: set[tuple[str, int]] = set()

    def read(self, session: Session, view: View) -> dict[str, Any]:
        """Return what the template shows. At most eight statements, with those that follow the answer."""
        asked = view.asked.get("days", "")
        days = int(asked) if asked in map(str, PERIODS) else DEFAULT_DAYS
        key = (view.storage.display_url, days)
        figures = self._figures.get(key)
        is_fresh = figures is not None and utcnow() - figures.at <= FRESH
        if not is_fresh and key not in self._being_read:
            view.afterwards = partial(self._read_again, view.storage, key)
        health = check_health(storage=view.storage)
        if not health.ok and view.storage.replicas is None:
            view.storage.require_schema(refresh=True)  # another process may have changed it meanwhile
        return {
            "days": days,
            "periods": PERIODS,
            "figures": figures,
            "now": utcnow(),
            "chart_drawn": figures and draw_usage(figures.usage, "%H:00" if days == 1 else "%-d %b"),
            "health": health,
            "is_searchable": _is_newest_found(session),
            "refresh": 0 if is_fresh else REFRESH_SECONDS,
        }

    def _read_again(self, storage: Storage, key: tuple[str, int]) -> None:
        self._being_read.add(key)
        try:
            with suppress(StorageError), storage.session(read_only=True) as session:  # the page says what is wrong
                self._figures[key] = _read_figures(session, key[1], utcnow())
        finally:
            self._being_read.discard(key)


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
