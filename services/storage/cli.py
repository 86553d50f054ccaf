"""The command line, the only place that prints or exits: results go to stdout, messages to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Alembic, rich and the demo load when they are used.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from . import __version__
from .database import get_database_stats, get_most_used_prompts, init_db
from .engine import Storage, get_storage
from .errors import StorageError
from .models import Generation

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

    Submits prompts, processes each, renders a WAV for it and shows statistics; one prompt fails on purpose. Only a
    --database-url on the command line makes it use another database, DATABASE_URL does not.
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


def _play(database_url: str, prompts: Sequence[str], music: Path, seconds: float) -> None:
    from .demo import submit, work
    from .migrations import upgrade

    with _opened(database_url) as storage:
        upgrade(storage)
        _say(f"Submitting {len(prompts):,} prompts to {storage.display_url}, {seconds:.3g} s of music each")
        try:
            generations = submit(storage, prompts, music, seconds)
        except ValueError as error:
            raise click.ClickException(_plain(str(error))) from error
        _watch(work(storage, generations), len(generations))
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


def _watch(finished: Iterator[Generation], total: int) -> None:
    """Show each finished generation: a bar on a terminal, lines elsewhere."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        _watch_bar(finished, total)
        return
    every = -(-total // PROGRESS_LINES)
    for number, generation in enumerate(finished, start=1):
        if number % every == 0 or number == total or generation.is_failed:
            _say(f"{number:>{len(str(total))}}/{total} {_describe(generation)}")


def _watch_bar(finished: Iterator[Generation], total: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    what = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), what)
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        bar = progress.add_task("", total=total)
        for generation in finished:
            if generation.is_failed:
                progress.console.print(Text(_describe(generation), style="red"))
            progress.update(bar, advance=1, description=_plain(generation.prompt))
        progress.update(bar, description="done")


def _describe(generation: Generation) -> str:
    prompt = _plain(generation.prompt)
    prompt = prompt if len(prompt) <= 60 else f"{prompt[:59]}…"
    if generation.is_failed:
        return f"failed: {_plain(generation.error_message or '')} ({prompt})"
    style = generation.get_metadata()
    took = f"{generation.generation_time_seconds:.2f} s"
    return f"{generation.status} in {took}: {prompt} ({style['bpm']} BPM, {style['key']})"


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


def _say_ready(storage: Storage) -> None:
    _say(f"Database ready: {storage.display_url} at revision {storage.read_revision()}")


def _say(message: str) -> None:
    click.echo(_plain(message), err=True)


def _plain(text: str) -> str:
    """Return `text` on one line, without anything that a terminal would obey."""
    return UNPRINTABLE.sub(" ", text)
