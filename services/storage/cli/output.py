"""Output of all verbs: messages on stderr, sanitized text, progress bars; and opening the database."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..engine import Storage

if TYPE_CHECKING:
    from rich.progress import Progress

# Control characters, line separators and bidirectional marks: a prompt must not control the terminal.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")


@contextmanager
def open_storage(database_url: str | None, **options: Any) -> Iterator[Storage]:
    """Open the database for one verb."""
    try:
        storage = Storage(database_url, **options)
    except (TypeError, ValueError) as error:  # an invalid URL or environment variable
        raise click.ClickException(sanitize(str(error))) from error
    try:
        yield storage
    finally:
        storage.dispose()


def echo_err(message: str) -> None:
    """Print a message to stderr, on one line."""
    click.echo(sanitize(message), err=True)


def sanitize(text: str) -> str:
    """Return `text` on one line, without characters that control a terminal."""
    return UNPRINTABLE.sub(" ", text)


def shorten(prompt: str) -> str:
    """Return a prompt on one line of at most 60 characters, for use in messages."""
    prompt = sanitize(prompt)
    return prompt if len(prompt) <= 60 else f"{prompt[:59]}…"


def say_count(number: int, noun: str) -> str:
    """Return a number and its noun, in the singular for 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say_contents(generations: int, prompts: int) -> str:
    """Return the numbers of generations and prompts as text."""
    return f"{say_count(generations, 'generation')} and {say_count(prompts, 'prompt')}"


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values: aligned on a terminal, separated by a tab when piped."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        click.echo(f"{name:<{width}}  {value}" if sys.stdout.isatty() else f"{name}\t{value}")


def progress_bar() -> "Progress":
    """Return a progress bar on stderr, with a description of the current step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    what = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), what)
    return Progress(*columns, console=Console(stderr=True), expand=True)


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback: it updates a bar on a terminal, and prints a line for each step elsewhere."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda step, done, total: echo_err(f"{step}: {say_count(total, 'row')}") if 0 < total == done else None
        return
    with progress_bar() as progress:
        bar = progress.add_task("", total=None)
        yield lambda step, done, total: progress.update(bar, completed=done, total=total, description=step)
