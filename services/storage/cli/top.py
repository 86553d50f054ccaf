"""The verb top: a live view of the queue, the running jobs, the workers and the latest failures. Only reads."""

import select
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import click

from ..analytics import Estimate, QueueStats, Usage, estimate_completion, get_queue_stats, get_usage
from ..engine import Storage
from ..generations import get_generations_by_status, shorten_ids
from ..lifecycle import GenerationStatus
from ..models import Generation
from ..queue import WorkerStatus, get_workers
from ..types import utcnow
from .app import commands
from .output import open_storage, sanitize

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

HOURS = 24  # of throughput
MOST_RUNNING = 10
MOST_FAILED = 5
STEP_WIDTH = 60  # from this terminal width on, the steps of running jobs are shown


class View(NamedTuple):
    """What is shown, of one moment."""

    queue: QueueStats
    hours: Sequence[Usage]
    running: Sequence[tuple[Generation, Estimate | None]]
    workers: Sequence[WorkerStatus]
    failed: Sequence[Generation]
    short_ids: Mapping[str, str]


@commands.command()
@click.option(
    "--interval",
    "seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3600),
    default=2.0,
    show_default=True,
    help="Read again after SECONDS; the Enter key does so at once.",
)
@click.pass_obj
def top(database_url: str | None, seconds: float) -> None:
    """Show the queue, jobs, workers and failures, until Ctrl-C.

    When piped, it prints one moment as tab-separated lines and ends. It only reads.
    """
    with open_storage(database_url) as storage:
        view = read_view(storage)
        if not sys.stdout.isatty():
            click.echo("\n".join("\t".join(map(sanitize, line)) for line in _lines(view)))
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(_render(view, storage.display_url, console), refresh=True)
                inputs = [sys.stdin] if sys.stdin.isatty() else []
                if select.select(inputs, [], [], seconds)[0]:
                    sys.stdin.readline()
                view = read_view(storage)


def read_view(storage: Storage) -> View:
    """Read what is shown, in one snapshot."""
    with storage.session(read_only=True) as session:
        running = get_generations_by_status(session, GenerationStatus.PROCESSING, limit=MOST_RUNNING)
        workers = get_workers(session)
        failed = get_generations_by_status(session, GenerationStatus.FAILED, limit=MOST_FAILED)
        at_work = [worker.generation_id for worker in workers if worker.generation_id]
        return View(
            get_queue_stats(session),
            get_usage(session, since=utcnow() - timedelta(hours=HOURS - 1), bucket="hour"),
            [(row, estimate_completion(session, row.id) if row.lease else None) for row in running],
            workers,
            failed,
            shorten_ids(session, [*(row.id for row in [*running, *failed]), *at_work]),
        )


def _lines(view: View) -> list[tuple[str, ...]]:
    """Return the lines of a pipe: the name of the line, then its values."""
    counts = view.queue.to_dict()
    lines = [(name, "" if value is None else str(value)) for name, value in counts.items()]
    return [
        *lines,
        *(("running", row.id, row.model_name, _percent(row), _eta(estimate)) for row, estimate in view.running),
        *(("worker", worker.id, worker.state, worker.generation_id or "") for worker in view.workers),
        *(("failed", row.id, row.error_message or "") for row in view.failed),
    ]


def _render(view: View, where: str, console: "Console") -> "Group":
    from rich.console import Group
    from rich.text import Text

    from .terminal_tables import blocks_for, failure_table, queue_line, running_table, sparkline, workers_table

    completed = [hour.completed for hour in view.hours]
    spark = sparkline(completed[-HOURS:], blocks_for(console))
    parts: list[RenderableType] = [
        Text(sanitize(f" {view.queue.at:%H:%M:%S} UTC  {where}"), no_wrap=True, overflow="ellipsis"),
        queue_line(view.queue),
        Text(f" {HOURS} h: {spark} {view.queue.completed_per_hour:,}/h", no_wrap=True, overflow="ellipsis"),
    ]
    running = [(row, _percent(row), _eta(estimate)) for row, estimate in view.running]
    if running:
        parts += [Text(), running_table(running, view.short_ids, with_step=console.width >= STEP_WIDTH)]
    if view.workers:
        parts += [Text(), workers_table(view.workers, view.short_ids)]
    if view.failed:
        parts += [Text(), failure_table(view.failed, view.short_ids)]
    return Group(*parts)


def _percent(row: Generation) -> str:
    return "" if row.progress is None else f"{row.progress:.0%}"


def _eta(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.p50_at:%H:%M:%S}"
