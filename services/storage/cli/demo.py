"""The verb demo: its options, and what it prints while the batch is rendered."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..models import Generation
from .app import commands
from .history import print_stats
from .output import echo_err, open_storage, progress_bar, sanitize, shorten

if TYPE_CHECKING:
    from ..demo.processes import Event, LiveWorkers

PROGRESS_LINES = 50  # about as many lines of progress are printed when stderr is not a terminal
# The length of each piece. Many prompts get shorter pieces, so that the demo ends within minutes.
DEMO_SECONDS = 3.0
DEMO_MIN_SECONDS = 0.25
DEMO_TOTAL_SECONDS = 450.0


@commands.command()
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Read prompts from a text, CSV or JSON file instead of the built-in ones.",
)
@click.option(
    "--outputs",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the WAV files to DIR instead of a new temporary folder.",
)
@click.option("--seconds", type=click.FloatRange(min=0.05, max=60), help="Length of each WAV file.")
@click.option("--discard", is_flag=True, help="Delete the scratch database and folder at the end.")
@click.option("--database-url", metavar="URL", help="Use this database instead of a scratch one.")
@click.pass_context
def demo(
    ctx: click.Context,
    prompts_file: Path | None,
    outputs: Path | None,
    seconds: float | None,
    discard: bool,
    database_url: str | None,
) -> None:
    """Run a demo on a scratch database.

    Submits prompts, renders them to WAV files with several worker processes, and prints statistics. One worker is
    killed; when its lease has expired, another one finishes its job. One prompt fails on purpose.

    DATABASE_URL is ignored: the demo uses another database only if --database-url is on the command line.
    """
    from ..demo import DATABASE_NAME, SCRATCH_PREFIX
    from ..demo.prompts import BUILT_IN_PROMPTS, FAILING_PROMPT, read_prompts

    prompts: Sequence[str] = BUILT_IN_PROMPTS
    if prompts_file is not None:
        try:
            prompts = read_prompts(prompts_file)
        except ValueError as error:
            raise click.BadParameter(sanitize(str(error)), param_hint="--prompts") from error
        prompts = [*prompts[: len(prompts) // 2], FAILING_PROMPT, *prompts[len(prompts) // 2 :]]
    seconds = seconds or min(DEMO_SECONDS, max(DEMO_MIN_SECONDS, DEMO_TOTAL_SECONDS / len(prompts)))
    if ctx.find_root().get_parameter_source("database_url") is click.core.ParameterSource.COMMANDLINE:
        database_url = database_url or ctx.obj

    if outputs is not None:
        outputs = outputs.resolve()
        outputs.mkdir(parents=True, exist_ok=True)
        if database_url:  # then nothing of the demo is scratch
            _run_demo(database_url, prompts, outputs, seconds)
            echo_err(f"The WAV files are in {outputs}")
            return
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    folder = outputs or scratch
    keep = False
    try:
        _run_demo(database_url or f"sqlite:///{scratch / DATABASE_NAME}", prompts, folder, seconds)
        keep = not discard
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
    if outputs or keep:
        echo_err(f"The WAV files are in {folder}")
    if keep and not database_url:
        echo_err(f"The scratch database is {scratch / DATABASE_NAME}")


def _run_demo(database_url: str, prompts: Sequence[str], outputs: Path, seconds: float) -> None:
    from ..demo import submit
    from ..demo.processes import WORKER_COUNT, DemoError, require_shareable, run_batch
    from ..migrations import upgrade

    with open_storage(database_url) as storage:
        upgrade(storage)
        try:
            require_shareable(storage)
        except DemoError as error:
            raise click.ClickException(f"The demo cannot run: {error}") from error
        echo_err(f"Submitting {len(prompts):,} prompts to {storage.display_url}, {seconds:.3g} s of music each")
        echo_err(f"Rendering them with {WORKER_COUNT} worker processes. The prompt with 0 BPM fails on purpose.")
        try:
            generations = submit(storage, prompts, outputs, seconds)
        except ValueError as error:
            raise click.ClickException(sanitize(str(error))) from error
        with closing(run_batch(storage, generations, outputs)) as events:
            try:
                _show(events, len(generations))
            except DemoError as error:
                raise click.ClickException(f"The demo stopped: {error}") from error
        echo_err("")
        print_stats(storage, 5)
        echo_err("")


def _show(events: "Iterator[Event | LiveWorkers]", total: int) -> None:
    """Show the progress of the batch: a bar on a terminal, lines elsewhere."""
    from ..demo.processes import LiveWorkers

    if sys.stdout.isatty() and sys.stderr.isatty():
        _show_bar(events, total)
        return
    every = -(-total // PROGRESS_LINES)
    number = 0
    for event in events:
        if isinstance(event, LiveWorkers):
            echo_err(_describe_workers(event))
            continue
        number += not event.is_kill
        if not event.is_kill and (number % every == 0 or number == total or event.generation.is_failed):
            echo_err(f"{number:>{len(str(total))}}/{total} {_name_worker(event)}: {_describe(event.generation)}")
        for line in _report(event):
            echo_err(line)


def _show_bar(events: "Iterator[Event | LiveWorkers]", total: int) -> None:
    from rich.text import Text

    from ..demo.processes import LiveWorkers

    with progress_bar() as progress:
        bar = progress.add_task("", total=total)
        for event in events:
            if isinstance(event, LiveWorkers):
                progress.console.print(Text(_describe_workers(event)))
                continue
            for line in _report(event):
                progress.console.print(Text(line, style="red" if event.is_kill else "green"))
            if event.is_kill:
                continue
            if event.generation.is_failed:
                progress.console.print(Text(f"{_name_worker(event)}: {_describe(event.generation)}", style="red"))
            what = f"{_name_worker(event)}: {sanitize(event.generation.prompt)}"
            progress.update(bar, advance=1, description=what)
        progress.update(bar, description="done")


def _describe_workers(workers: "LiveWorkers") -> str:
    states = ", ".join(f"worker {number} {state}" for number, state in sorted(workers.states.items()))
    count = len(workers.states)
    return f"{count} worker{' is' if count == 1 else 's are'} alive: {states}"


def _report(event: "Event") -> list[str]:
    """Return the lines to print about a kill, or about a generation that took more than one attempt."""
    from ..demo.processes import LEASE_SECONDS

    prompt = shorten(event.generation.prompt)
    if event.is_kill:
        worker = f"worker {event.worker}"
        return [
            f"{worker} was killed (kill -9) while rendering: {prompt}",
            f"waiting for the lease of {worker} to expire, {LEASE_SECONDS:g} seconds after its last heartbeat",
            "then it no longer counts, and another worker renders that prompt",
        ]
    if event.generation.attempt > 1:
        return [f"finished by {_name_worker(event)} on attempt {event.generation.attempt}: {prompt}"]
    return []


def _name_worker(event: "Event") -> str:
    return "another worker" if event.worker is None else f"worker {event.worker}"


def _describe(generation: Generation) -> str:
    prompt = shorten(generation.prompt)
    if generation.is_failed:
        return f"failed: {sanitize(generation.error_message or '')} ({prompt})"
    style = generation.get_metadata()
    seconds = generation.generation_time_seconds or 0
    return f"{generation.status} in {seconds:.2f} s: {prompt} ({style.get('bpm')} BPM, {style.get('key')})"
