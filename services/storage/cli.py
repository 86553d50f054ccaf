"""The command line, the only place that prints or exits: results go to stdout, messages to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Alembic, rich and the demo load when they are used.
"""

import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .database import get_database_stats, get_most_used_prompts, init_db
from .engine import Storage, get_storage
from .errors import CopyError, StorageError
from .models import Generation

if TYPE_CHECKING:
    from rich.progress import Progress

    from .demo.crew import Event

# Control characters and the marks that turn the direction of writing: a prompt must not steer the terminal.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
# A long list gets this many lines of progress when nobody watches a bar.
PROGRESS_LINES = 50
# A few thousand prompts get short sounds, so that the demo ends within minutes.
DEMO_SECONDS = 3.0
DEMO_SHORTEST_SECONDS = 0.25
DEMO_SECONDS_IN_ALL = 450.0


class Commands(click.Group):
    """A group of verbs that ends with a message and an exit code, never with a traceback of ours."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb, and turn what can go wrong into what click prints to stderr."""
        try:
            return super().invoke(ctx)
        except StorageError as error:
            raise click.ClickException(_plain(str(error))) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise click.ClickException(_plain(f"{error.strerror}: {error.filename}")) from error
        except (KeyboardInterrupt, click.Abort):
            _say("Interrupted.")
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dgx-storage")
@click.option(
    "--database-url",
    metavar="URL",
    envvar="DATABASE_URL",
    show_envvar=True,
    help="The database to use.  [default: sqlite:///data/generations.db]",
)
@click.pass_context
def commands(ctx: click.Context, database_url: str | None) -> None:
    """Keep the generations and prompts of DGX Music."""
    ctx.obj = database_url or None


@commands.command()
@click.pass_obj
def init(database_url: str | None) -> None:
    """Make the database, or bring an older one up to date."""
    init_db(database_url)
    storage = get_storage()
    _say_ready(storage)
    storage.dispose()


@commands.command()
@click.argument("revision", default="head")
@click.pass_obj
def migrate(database_url: str | None, revision: str) -> None:
    """Bring the schema up to REVISION, else the newest."""
    from .migrations import upgrade

    with _opened(database_url) as storage:
        try:
            upgrade(storage, revision)
        except ValueError as error:
            raise click.ClickException(_plain(str(error))) from error
        _say_ready(storage)


@commands.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def reset(database_url: str | None, yes: bool) -> None:
    """Drop every table and start again. ALL DATA IS LOST."""
    from .migrations import reset as make_again

    with _opened(database_url) as storage:
        if not yes and not sys.stdin.isatty():
            raise click.ClickException("reset deletes everything, and nobody is there to ask: pass --yes to mean it")
        question = f"This deletes every generation and prompt in {_plain(storage.display_url)}. Really reset it?"
        if not yes and not click.confirm(question, err=True):
            raise click.ClickException("not confirmed; nothing was changed")
        make_again(storage)
        _say_ready(storage)


@commands.command()
@click.option(
    "--prompts",
    "limit",
    metavar="N",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="How many of the most used prompts to show.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def stats(database_url: str | None, limit: int, as_json: bool) -> None:
    """Show counts and the most used prompts."""
    with _opened(database_url) as storage:
        _print_stats(storage, limit, as_json=as_json)


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
    from .demo.prompts import FAILING_PROMPT, OWN_PROMPTS, read_prompts

    prompts: Sequence[str] = OWN_PROMPTS
    if prompts_file is not None:
        try:
            prompts = read_prompts(prompts_file)
        except ValueError as error:
            raise click.BadParameter(_plain(str(error)), param_hint="--prompts") from error
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
        _say(f"The music is in {music}")
    if keep and not database_url:
        _say(f"The scratch database is {scratch / 'generations.db'}")


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
    from .demo import render_job
    from .worker import DoNotRetry, Job, Result, Worker

    def handler(job: Job) -> Result | None:
        generation = job.generation
        try:
            result = render_job(job, outputs)
        except DoNotRetry as error:
            _say(f"{generation.id} cannot be rendered: {error} ({_shorten(generation.prompt)})")
            raise
        done = "rendered" if result else "dropped"
        _say(f"{generation.id} {done}, attempt {generation.attempt}: {_shorten(generation.prompt)}")
        return result

    with _opened(database_url) as storage, _logging_to_stderr():
        try:
            it = Worker(handler, model_names=models or None, storage=storage)
        except ValueError as error:
            raise click.BadParameter(_plain(str(error)), param_hint="--model") from error
        storage.require_schema()
        _say(f"Worker {it.worker_id} at {storage.display_url}")
        jobs = it.run(max_jobs=max_jobs, until_empty=until_empty)
        _say(f"Worker {it.worker_id} has ended after {jobs:,} job{'' if jobs == 1 else 's'}")


@commands.command()
@click.argument("source")
@click.argument("target")
def copy(source: str, target: str) -> None:
    """Copy the database at URL SOURCE into the empty one at URL TARGET, and compare them.

    Killed and run again it goes on where it stopped. Nothing may write to either meanwhile. Rows that the target would
    refuse are listed before anything is written.
    """
    from .maintenance import copy_database

    try:
        with _shown_progress() as progress:
            report = copy_database(source, target, progress=progress)
    except CopyError as error:
        for row in error.refused:
            _say(f"{row.table} {row.key}: {row.reason}")
        raise
    rows = [(table.name, table.row_count, table.checksum) for table in report.tables]
    if sys.stdout.isatty():
        _print_copied(rows)
    else:
        click.echo("\n".join(f"{name}\t{count}\t{checksum}" for name, count, checksum in rows))
    again = " (went on where it had stopped)" if report.resumed else ""
    _say(f"Copied {report.row_count:,} rows{again}; both databases hold the same.")


def _play(database_url: str, prompts: Sequence[str], music: Path, seconds: float) -> None:
    from .demo import submit
    from .demo.crew import CrewError, play, require_shareable
    from .migrations import upgrade

    with _opened(database_url) as storage:
        upgrade(storage)
        try:
            require_shareable(storage)
        except CrewError as error:
            raise click.ClickException(f"The demo cannot play: {error}") from error
        _say(f"Submitting {len(prompts):,} prompts to {storage.display_url}, {seconds:.3g} s of music each")
        try:
            generations = submit(storage, prompts, music, seconds)
        except ValueError as error:
            raise click.ClickException(_plain(str(error))) from error
        with closing(play(storage, generations)) as events:
            try:
                _watch(events, len(generations))
            except CrewError as error:
                raise click.ClickException(f"The demo has stopped: {error}") from error
        _say("")
        _print_stats(storage, 5)
        _say("")


@contextmanager
def _opened(database_url: str | None) -> Iterator[Storage]:
    storage = Storage(database_url)
    try:
        yield storage
    finally:
        storage.dispose()


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
        _say(record.getMessage() + (f": {error}" if error else ""))


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows how far each step of a copy is: a bar on a terminal, a line for each step elsewhere."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda step, done, total: _say(f"{step}: {total:,} rows") if 0 < total == done else None
        return
    with _progress_bar() as progress:
        bar = progress.add_task("", total=None)
        yield lambda step, done, total: progress.update(bar, completed=done, total=total, description=step)


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
            _say(f"{number:>{len(str(total))}}/{total} {_name_worker(event)}: {_describe(event.generation)}")
        if news := _tell_news(event):
            _say(news)


def _watch_bar(events: "Iterator[Event]", total: int) -> None:
    from rich.text import Text

    with _progress_bar() as progress:
        bar = progress.add_task("", total=total)
        for event in events:
            if news := _tell_news(event):
                progress.console.print(Text(news, style="red" if event.is_kill else "green"))
            if event.is_kill:
                continue
            if event.generation.is_failed:
                progress.console.print(Text(f"{_name_worker(event)}: {_describe(event.generation)}", style="red"))
            what = f"{_name_worker(event)}: {_plain(event.generation.prompt)}"
            progress.update(bar, advance=1, description=what)
        progress.update(bar, description="done")


def _progress_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    what = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), what)
    return Progress(*columns, console=Console(stderr=True), expand=True)


def _tell_news(event: "Event") -> str:
    """Return what is out of the ordinary about the event: a kill, or another attempt than the first."""
    prompt = _shorten(event.generation.prompt)
    if event.is_kill:
        return f"worker {event.worker} was killed (kill -9) while rendering: {prompt}"
    if event.generation.attempt > 1:
        return f"finished by {_name_worker(event)} on attempt {event.generation.attempt}: {prompt}"
    return ""


def _name_worker(event: "Event") -> str:
    return "another worker" if event.worker is None else f"worker {event.worker}"


def _describe(generation: Generation) -> str:
    prompt = _shorten(generation.prompt)
    if generation.is_failed:
        return f"failed: {_plain(generation.error_message or '')} ({prompt})"
    style = generation.get_metadata()
    took = f"{generation.generation_time_seconds or 0:.2f} s"
    return f"{generation.status} in {took}: {prompt} ({style.get('bpm')} BPM, {style.get('key')})"


def _shorten(prompt: str) -> str:
    prompt = _plain(prompt)
    return prompt if len(prompt) <= 60 else f"{prompt[:59]}…"


def _print_stats(storage: Storage, limit: int, *, as_json: bool = False) -> None:
    with storage.session(read_only=True) as session:
        counts = get_database_stats(session)
        prompts = get_most_used_prompts(session, limit=limit)
    if as_json:
        click.echo(json.dumps({**counts, "most_used_prompts": [prompt.to_dict() for prompt in prompts]}))
        return
    used = [(prompt.used_count, _plain(prompt.text)) for prompt in prompts]
    if sys.stdout.isatty():
        _print_tables(counts, used)
        return
    lines = [f"{name}\t{count}" for name, count in counts.items()]
    if used:
        lines += ["", *(f"{count}\t{text}" for count, text in used)]
    click.echo("\n".join(lines))


def _print_tables(counts: Mapping[str, int], used: Sequence[tuple[int, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    totals = Table(show_header=False, box=None)
    for name, count in counts.items():
        totals.add_row(name.replace("_", " "), f"{count:,}")
    totals.columns[1].justify = "right"
    console.print(totals)
    if used:
        popular = Table("uses", "most used prompts", box=None)
        popular.columns[0].justify = "right"
        for count, text in used:
            popular.add_row(f"{count:,}", Text(text, no_wrap=True, overflow="ellipsis"))
        console.print()
        console.print(popular)


def _print_copied(rows: Sequence[tuple[str, int, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    copied = Table("table", "rows", "checksum", box=None)
    copied.columns[1].justify = "right"
    for name, count, checksum in rows:
        copied.add_row(name, f"{count:,}", checksum)
    Console().print(copied)


def _say_ready(storage: Storage) -> None:
    _say(f"Database ready: {storage.display_url} at revision {storage.read_revision()}")


def _say(message: str) -> None:
    click.echo(_plain(message), err=True)


def _plain(text: str) -> str:
    """Return `text` on one line, without anything that a terminal would obey."""
    return UNPRINTABLE.sub(" ", text)
