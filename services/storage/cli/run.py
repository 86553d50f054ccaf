"""The verbs that make music: worker and demo."""

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..models import Generation
from .app import commands
from .history import print_stats
from .output import echo_err, open_storage, progress_bar, sanitize, shorten

if TYPE_CHECKING:
    from ..demo.processes import Event

# A long list gets this many lines of progress when nobody watches a bar.
PROGRESS_LINES = 50
# A few thousand prompts get short sounds, so that the demo ends within minutes.
DEMO_SECONDS = 3.0
DEMO_SHORTEST_SECONDS = 0.25
DEMO_SECONDS_IN_ALL = 450.0


@commands.command()
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Read prompts from lines, CSV or JSON instead of the demo's own.",
)
@click.option(
    "--outputs",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the WAV files there, not into a new temporary folder.",
)
@click.option("--seconds", type=click.FloatRange(min=0.05, max=60), help="Length of each piece of music.")
@click.option("--discard", is_flag=True, help="Delete the scratch database and the temporary folder at the end.")
@click.option("--database-url", metavar="URL", help="Play in this database instead of a scratch one.")
@click.pass_context
def demo(
    ctx: click.Context,
    prompts_file: Path | None,
    outputs: Path | None,
    seconds: float | None,
    discard: bool,
    database_url: str | None,
) -> None:
    """Play the whole story on a scratch database.

    Submits prompts and has three worker processes render them to WAV files. One worker is killed half way and another
    one finishes its job; one prompt fails on purpose; statistics come last. Only a --database-url on the command line
    makes it use another database, DATABASE_URL does not.
    """
    from ..demo.prompts import FAILING_PROMPT, OWN_PROMPTS, read_prompts

    prompts: Sequence[str] = OWN_PROMPTS
    if prompts_file is not None:
        try:
            prompts = read_prompts(prompts_file)
        except ValueError as error:
            raise click.BadParameter(sanitize(str(error)), param_hint="--prompts") from error
        prompts = [*prompts[: len(prompts) // 2], FAILING_PROMPT, *prompts[len(prompts) // 2 :]]
    seconds = seconds or min(DEMO_SECONDS, max(DEMO_SHORTEST_SECONDS, DEMO_SECONDS_IN_ALL / len(prompts)))
    if ctx.find_root().get_parameter_source("database_url") is click.core.ParameterSource.COMMANDLINE:
        database_url = database_url or ctx.obj

    scratch = Path(tempfile.mkdtemp(prefix="dgx-music-demo-"))
    music = outputs.resolve() if outputs else scratch
    keep = False
    try:
        music.mkdir(parents=True, exist_ok=True)
        _play(database_url or f"sqlite:///{scratch / 'generations.db'}", prompts, music, seconds)
        keep = not discard and not (outputs and database_url)
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
    if outputs or keep:
        echo_err(f"The music is in {music}")
    if keep and not database_url:
        echo_err(f"The scratch database is {scratch / 'generations.db'}")


@commands.command()
@click.option("--max-jobs", metavar="N", type=click.IntRange(min=1), help="End after N jobs.")
@click.option("--until-empty", is_flag=True, help="End when nothing is due.")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Only this model's jobs; may be repeated.")
@click.option(
    "--outputs",
    metavar="DIR",
    default=".",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where a relative file_path begins.  [default: the current folder]",
)
@click.pass_obj
def worker(
    database_url: str | None, max_jobs: int | None, until_empty: bool, models: tuple[str, ...], outputs: Path
) -> None:
    """Render what is pending, with the demo's synthesizer.

    Writes each WAV (32 kHz, stereo) to the generation's file_path. Ctrl-C or SIGTERM lets it finish its job, a second
    one gives the job back at once.
    """
    from ..demo import render_job
    from ..worker import DoNotRetry, Job, Result, Worker

    def handler(job: Job) -> Result | None:
        generation = job.generation
        try:
            result = render_job(job, outputs)
        except DoNotRetry as error:
            echo_err(f"{generation.id} cannot be rendered: {error} ({shorten(generation.prompt)})")
            raise
        done = "rendered" if result else "dropped"
        echo_err(f"{generation.id} {done}, attempt {generation.attempt}: {shorten(generation.prompt)}")
        return result

    with open_storage(database_url) as storage, _logging_to_stderr():
        try:
            it = Worker(handler, model_names=models or None, storage=storage)
        except ValueError as error:
            raise click.BadParameter(sanitize(str(error)), param_hint="--model") from error
        storage.require_schema()
        echo_err(f"Worker {it.worker_id} at {storage.display_url}")
        jobs = it.run(max_jobs=max_jobs, until_empty=until_empty)
        echo_err(f"Worker {it.worker_id} has ended after {jobs:,} job{'' if jobs == 1 else 's'}")


def _play(database_url: str, prompts: Sequence[str], music: Path, seconds: float) -> None:
    from ..demo import submit
    from ..demo.processes import DemoError, play, require_shareable
    from ..migrations import upgrade

    with open_storage(database_url) as storage:
        upgrade(storage)
        try:
            require_shareable(storage)
        except DemoError as error:
            raise click.ClickException(f"The demo cannot play: {error}") from error
        echo_err(f"Submitting {len(prompts):,} prompts to {storage.display_url}, {seconds:.3g} s of music each")
        try:
            generations = submit(storage, prompts, music, seconds)
        except ValueError as error:
            raise click.ClickException(sanitize(str(error))) from error
        with closing(play(storage, generations)) as events:
            try:
                _watch(events, len(generations))
            except DemoError as error:
                raise click.ClickException(f"The demo has stopped: {error}") from error
        echo_err("")
        print_stats(storage, 5)
        echo_err("")


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Say what the worker logs in lines of ours, without tracebacks."""
    log = logging.getLogger("services.storage.worker")
    lines = _Lines(logging.WARNING)
    log.addHandler(lines)
    try:
        yield
    finally:
        log.removeHandler(lines)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        echo_err(record.getMessage() + (f": {error}" if error else ""))


def _watch(events: "Iterator[Event]", total: int) -> None:
    """Show what happens: a bar on a terminal, lines elsewhere."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        _watch_bar(events, total)
        return
    every = -(-total // PROGRESS_LINES)
    number = 0
    for event in events:
        number += not event.is_kill
        if not event.is_kill and (number % every == 0 or number == total or event.generation.is_failed):
            echo_err(f"{number:>{len(str(total))}}/{total} {_name_worker(event)}: {_describe(event.generation)}")
        if news := _tell_news(event):
            echo_err(news)


def _watch_bar(events: "Iterator[Event]", total: int) -> None:
    from rich.text import Text

    with progress_bar() as progress:
        bar = progress.add_task("", total=total)
        for event in events:
            if news := _tell_news(event):
                progress.console.print(Text(news, style="red" if event.is_kill else "green"))
            if event.is_kill:
                continue
            if event.generation.is_failed:
                progress.console.print(Text(f"{_name_worker(event)}: {_describe(event.generation)}", style="red"))
            what = f"{_name_worker(event)}: {sanitize(event.generation.prompt)}"
            progress.update(bar, advance=1, description=what)
        progress.update(bar, description="done")


def _tell_news(event: "Event") -> str:
    """Return what is out of the ordinary about the event: a kill, or another attempt than the first."""
    prompt = shorten(event.generation.prompt)
    if event.is_kill:
        return f"worker {event.worker} was killed (kill -9) while rendering: {prompt}"
    if event.generation.attempt > 1:
        return f"finished by {_name_worker(event)} on attempt {event.generation.attempt}: {prompt}"
    return ""


def _name_worker(event: "Event") -> str:
    return "another worker" if event.worker is None else f"worker {event.worker}"


def _describe(generation: Generation) -> str:
    prompt = shorten(generation.prompt)
    if generation.is_failed:
        return f"failed: {sanitize(generation.error_message or '')} ({prompt})"
    style = generation.get_metadata()
    took = f"{generation.generation_time_seconds or 0:.2f} s"
    return f"{generation.status} in {took}: {prompt} ({style.get('bpm')} BPM, {style.get('key')})"
