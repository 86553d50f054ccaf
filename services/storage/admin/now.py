"""The page Now: what waits, what runs, who works, and how the last day went."""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from ..analytics import estimate_running, get_queue_stats, get_usage
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


def read_now(session: Session, view: View) -> dict[str, Any]:
    """Return what the template shows. Eight statements with the check of the schema."""
    stats = get_queue_stats(session)
    running = get_generations_by_status(session, GenerationStatus.PROCESSING, RUNNING_SHOWN)
    usage = get_usage(session, since=stats.at - timedelta(hours=HOURS_SHOWN - 1), bucket="hour")
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
