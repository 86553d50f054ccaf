"""The page Now: what waits, what runs, who works, and how the last day went."""

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from ..analytics import Usage, estimate_running, get_queue_stats, get_usage
from ..generations import get_generations_by_status, get_pending_generations, list_generations
from ..lifecycle import GenerationStatus
from ..queue import get_workers
from .charts import draw_usage
from .view import View

RUNNING_SHOWN: Final = 50
WAITING_SHOWN: Final = 8
FINISHED_SHOWN: Final = 6
HOURS_SHOWN: Final = 24
REFRESH_SECONDS: Final = 2
CHART_FRESH: Final = timedelta(seconds=10)


class Now:
    """Reads the page; the chart of the last day, which takes most of the time, only every ten seconds."""

    def __init__(self) -> None:
        self._usage: dict[str, tuple[datetime, list[Usage]]] = {}

    def read(self, session: Session, view: View) -> dict[str, Any]:
        """Return what the template shows. Eight statements with the check of the schema."""
        stats = get_queue_stats(session)
        running = get_generations_by_status(session, GenerationStatus.PROCESSING, RUNNING_SHOWN)
        usage = self._read_usage(session, view.storage.display_url, stats.at)
        return {
            "stats": stats,
            "now": stats.at,
            "running": running,
            "remaining": estimate_running(session) if running else {},
            "workers": get_workers(session),
            "waiting": get_pending_generations(session, WAITING_SHOWN),
            "finished": list_generations(session, status=GenerationStatus.COMPLETED, limit=FINISHED_SHOWN).items,
            "usage": usage,
            "chart_drawn": draw_usage(usage, "%H:00"),
            "refresh": REFRESH_SECONDS,
        }

    def _read_usage(self, session: Session, database: str, now: datetime) -> list[Usage]:
        at, usage = self._usage.get(database, (None, []))
        if at is None or not timedelta(0) <= now - at < CHART_FRESH:
            usage = get_usage(session, since=now - timedelta(hours=HOURS_SHOWN - 1), bucket="hour")
            self._usage[database] = (now, usage)
        return usage
