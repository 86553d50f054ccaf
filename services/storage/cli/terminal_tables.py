"""The tables, bars and sparklines that the verbs print on a terminal. Stored texts are never parsed as markup."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..analytics import PerformanceStats, QueueStats, Usage
from ..lifecycle import GenerationStatus, WorkerState
from ..models import Generation
from ..queue import WorkerStatus
from ..types import utcnow
from .output import sanitize

BAR_WIDTH = 32
MODEL_WIDTH = 20
WIDE = 100  # from this terminal width on, the model and the year of creation are shown
COLORS: Mapping[str, str] = {
    GenerationStatus.PENDING: "yellow",
    GenerationStatus.PROCESSING: "cyan",
    GenerationStatus.COMPLETED: "green",
    GenerationStatus.FAILED: "red",
    GenerationStatus.CANCELLED: "magenta",
}
STATE_COLORS: Mapping[str, str] = {WorkerState.IDLE: "green", WorkerState.BUSY: "cyan", WorkerState.STOPPING: "yellow"}
BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*%#"


def print_tables(
    counts: Mapping[str, int],
    queue: QueueStats,
    days: Sequence[Usage],
    models: Sequence[PerformanceStats],
    used: Sequence[tuple[int, str]],
) -> None:
    """Print the tables of `stats`."""
    console = Console()
    blocks = blocks_for(console)
    console.print(_by_status(counts, blocks[-1]))
    console.print()
    console.print(queue_line(queue))
    if any(day.created or day.completed or day.failed or day.cancelled for day in days):
        console.print()
        console.print(_last_days(days, blocks))
    if models:
        console.print()
        console.print(_by_model(models))
    if used:
        prompts = Table("uses", "most used prompts", box=None)
        prompts.columns[0].justify = "right"
        for count, text in used:
            prompts.add_row(f"{count:,}", Text(text, no_wrap=True, overflow="ellipsis"))
        console.print()
        console.print(prompts)


def print_generations(rows: Sequence[Generation], short_ids: Mapping[str, str]) -> None:
    """Print one line for each generation that fits the terminal, with its id as in `short_ids`; times are UTC."""
    console = Console()
    is_wide = console.width >= WIDE
    table = Table("id", "status", *(["created (UTC)"] if is_wide else []), "model", "prompt", box=None)
    table.columns[0].min_width = max((len(short_ids[row.id]) for row in rows), default=0)  # ids are to be copied
    table.columns[-2].max_width = MODEL_WIDTH
    for row in rows:
        table.add_row(
            Text(sanitize(short_ids[row.id]), no_wrap=True),
            Text(row.status, style=COLORS.get(row.status, ""), no_wrap=True),
            *([Text(f"{row.created_at:%Y-%m-%d %H:%M}", no_wrap=True)] if is_wide else []),
            Text(sanitize(row.model_name), no_wrap=True, overflow="ellipsis"),
            Text(("★ " if row.is_favorite else "") + sanitize(row.prompt), no_wrap=True, overflow="ellipsis"),
        )
    console.print(table)


def print_workers(workers: Sequence[WorkerStatus], short_ids: Mapping[str, str]) -> None:
    """Print one line for each worker."""
    Console().print(workers_table(workers, short_ids))


def running_table(
    running: Sequence[tuple[Generation, str, str]], short_ids: Mapping[str, str], *, with_step: bool
) -> Table:
    """Return one line for each running generation: its progress, the time when it should finish, and its step."""
    table = Table("running", "model", "done", "ready", *(["step"] if with_step else []), box=None)
    table.columns[0].min_width = max((len(short_ids[row.id]) for row, _, _ in running), default=0)
    table.columns[1].max_width = MODEL_WIDTH
    for row, percent, ready in running:
        step = [row.current_step or ""] if with_step else []
        texts = (short_ids[row.id], row.model_name, percent, ready, *step)
        table.add_row(*(Text(sanitize(text), no_wrap=True, overflow="ellipsis") for text in texts))
    return table


def failure_table(failed: Sequence[Generation], short_ids: Mapping[str, str]) -> Table:
    """Return one line for each failed generation, with its error."""
    table = Table("failed", "error", box=None)
    table.columns[0].min_width = max((len(short_ids[row.id]) for row in failed), default=0)
    for row in failed:
        texts = (short_ids[row.id], row.error_message or "")
        table.add_row(*(Text(sanitize(text), style="red", no_wrap=True, overflow="ellipsis") for text in texts))
    return table


def blocks_for(console: Console) -> str:
    """Return the characters of bars, from none to full, that a terminal can show."""
    return ASCII_BLOCKS if console.options.ascii_only else BLOCKS


def workers_table(workers: Sequence[WorkerStatus], short_ids: Mapping[str, str]) -> Table:
    """Return one line for each worker, with the time since it was last seen."""
    now = utcnow()
    table = Table("worker", "state", "generation", "models", "device", "seen", box=None)
    for worker in workers:
        seen = "" if worker.last_seen_at is None else f"{_span((now - worker.last_seen_at).total_seconds())} ago"
        models = "any" if worker.model_names is None else ", ".join(worker.model_names)
        generation_id = worker.generation_id or ""
        texts = (short_ids.get(generation_id, generation_id), models, worker.device or "")
        table.add_row(
            Text(sanitize(worker.id), overflow="fold"),
            Text(worker.state, style=STATE_COLORS[worker.state], no_wrap=True),
            *(Text(sanitize(text), no_wrap=True, overflow="ellipsis") for text in texts),
            Text(seen, no_wrap=True),
        )
    return table


def print_matches(found: Sequence[tuple[int, Sequence[tuple[str, bool]]]]) -> None:
    """Print a line for each prompt: its number of uses, and the parts of its snippet, matches in bold."""
    table = Table("uses", "prompt", box=None)
    table.columns[0].justify = "right"
    for count, parts in found:
        text = Text.assemble(*((part, "bold" if matches else "") for part, matches in parts))
        table.add_row(f"{count:,}", text)
    Console().print(table)


def _by_status(counts: Mapping[str, int], block: str) -> Table:
    table = Table(show_header=False, box=None)
    most = max(counts[f"{status}_generations"] for status in GenerationStatus)
    for status in GenerationStatus:
        count = counts[f"{status}_generations"]
        bar = block * -(-count * BAR_WIDTH // most) if count else ""
        table.add_row(f"{status}", f"{count:,}", Text(bar, style=COLORS[status]))
    table.add_row("total generations", f"{counts['total_generations']:,}")
    table.add_row("total prompts", f"{counts['total_prompts']:,}")
    table.columns[1].justify = "right"
    return table


def queue_line(queue: QueueStats) -> Text:
    """Return the state of the queue as one sentence."""
    text = Text(f" queue: backlog {queue.backlog:,}")
    if queue.oldest_seconds is not None:
        text.append(f" (oldest {_span(queue.oldest_seconds)})")
    text.append(f", scheduled {queue.scheduled:,}, processing {queue.processing:,}, workers {queue.workers:,}")
    if queue.expired:
        text.append(f", expired leases {queue.expired:,}", style="red")
    if queue.is_paused:
        reason = f" ({sanitize(queue.pause_reason)})" if queue.pause_reason else ""
        text.append(f", paused{reason}", style="yellow")
    return text


def _last_days(days: Sequence[Usage], blocks: str) -> Table:
    table = Table("", f"last {len(days)} days", "total", box=None)
    table.columns[2].justify = "right"
    for name, style in (("created", ""), ("completed", "green"), ("failed", "red")):
        values = [getattr(day, name) for day in days]
        table.add_row(name, Text(sparkline(values, blocks), style=style, no_wrap=True), f"{sum(values):,}")
    return table


def sparkline(values: Sequence[int], blocks: str) -> str:
    """Return a block character for each value: the full block for the largest, at least the lowest block above 0."""
    most = max(values) or 1
    return "".join(blocks[-(-value * (len(blocks) - 1) // most)] for value in values)


def _by_model(models: Sequence[PerformanceStats]) -> Table:
    table = Table("model", "completed", "failed", "median time", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for model in models:
        median = model.generation_time.p50
        name = Text(sanitize(model.model_name), no_wrap=True, overflow="ellipsis")
        table.add_row(name, f"{model.completed:,}", f"{model.failed:,}", "" if median is None else f"{median:.2f} s")
    return table


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
