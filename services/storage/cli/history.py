"""The verbs that show the contents of a database: list, show, search, why, stats.

They print tables on a terminal, tab-separated lines when piped, and JSON with --json.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from ..analytics import WaitReason, estimate_completion, explain_wait, get_performance_stats, get_queue_stats, get_usage
from ..database import get_database_stats, get_most_used_prompts
from ..engine import Storage
from ..generations import get_generation, list_generations, shorten_ids
from ..models import Generation
from ..queue import get_attempts
from ..search import search_prompts
from .app import commands
from .options import filter_options, given_filters, json_option, resolve_ids
from .output import echo_err, open_storage, print_fields, sanitize, shorten

PAGE_ROWS = 500  # read at once, so memory does not grow with --limit

limit_option = click.option(
    "-n", "--limit", metavar="N", default=20, show_default=True, type=click.IntRange(min=1), help="Show at most N."
)

# Control characters that prompts normally do not contain. In a prompt that does, only the bold parts are wrong.
MARKS = ("\x02", "\x03")


@commands.command(
    name="list", examples=["--status failed --since 1d", "--metadata bpm=120..140 --search lofi -n 100 --json"]
)
@filter_options
@limit_option
@click.option("--after", metavar="CURSOR", help="Continue after the previous page, which prints its CURSOR.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def list_(database_url: str | None, /, limit: int, after: str | None, as_json: bool, **options: Any) -> None:
    """List generations, newest first.

    When piped, each line has the id, status, creation time, model and prompt, separated by tabs. TIME is a date such as
    2026-11-25 or an age such as 90d or 12h.
    """
    filters = given_filters(options)
    as_table = sys.stdout.isatty() and not as_json
    shown = 0
    with open_storage(database_url) as storage, storage.session(read_only=True) as session:
        while True:
            try:
                page = list_generations(session, limit=min(limit - shown, PAGE_ROWS), after=after, **filters)
            except ValueError as error:
                raise click.ClickException(sanitize(str(error))) from error
            if as_table:
                from .terminal_tables import print_generations

                print_generations(page.items, shorten_ids(session, [row.id for row in page.items]))
            else:
                for row in page.items:
                    click.echo(_json_line(row) if as_json else _tabbed_line(row))
            shown += len(page.items)
            after = page.next
            session.expunge_all()
            if after is None or shown >= limit:
                break
    if not shown:
        echo_err("No generations.")
    if after:
        echo_err(f"More generations: --after {after}")


@commands.command()
@click.argument("generation_id", metavar="ID")
@json_option
@click.pass_obj
def show(database_url: str | None, generation_id: str, as_json: bool) -> None:
    """Show one generation: request, result, error and attempts.

    The ID may be shortened to what is unique, 6 characters or more.
    """
    with open_storage(database_url) as storage:
        (whole_id,) = resolve_ids(storage, [generation_id])
        with storage.session(read_only=True) as session:
            generation, attempts = get_generation(session, whole_id), get_attempts(session, whole_id)
            wait = explain_wait(session, whole_id)
    if generation is None or wait is None:
        raise click.ClickException(f"no generation has the id {shorten(generation_id)}")
    fields = generation.to_dict()
    if as_json:
        click.echo(json.dumps({**fields, "attempts": [attempt.to_dict() for attempt in attempts]}, allow_nan=False))
        return
    lines = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in fields.items() if value]
    for attempt in attempts:
        error = f": {attempt.error_message}" if attempt.error_message else ""
        lines.append((f"attempt {attempt.number}", f"{attempt.outcome} at {attempt.finished_at.isoformat()}{error}"))
    lines.append(("now", wait.explanation))
    print_fields([(name, sanitize(value)) for name, value in lines])


@commands.command(examples=["lofi rain", "--order newest -- lofi -piano"])
@click.argument("words", nargs=-1, required=True)
@click.option(
    "--order",
    default="relevance",
    show_default=True,
    type=click.Choice(["relevance", "used", "newest"]),
    help="Sort by relevance, by number of uses, or newest first.",
)
@limit_option
@json_option
@click.pass_obj
def search(database_url: str | None, words: tuple[str, ...], order: str, limit: int, as_json: bool) -> None:
    """Search the prompts for WORDS.

    A prompt matches if it contains all of them. '"two words"' is a phrase, lof* a prefix, and -word (after --) excludes
    prompts. When piped, each line has the number of uses and the prompt's matching part, with the matches in [ ].
    """
    bold = sys.stdout.isatty() and not as_json
    with open_storage(database_url) as storage, storage.session(read_only=True) as session:
        found = search_prompts(
            session,
            " ".join(words),
            limit,
            order_by=order,  # type: ignore[arg-type]  # click has validated it
            marks=MARKS if bold else ("[", "]"),
        )
    if as_json:
        prompts = [{**match.prompt.to_dict(), "snippet": match.snippet, "rank": match.rank} for match in found]
        click.echo(json.dumps({"prompts": prompts}))
    elif bold:
        from .terminal_tables import print_matches

        print_matches([(match.prompt.used_count, _split(match.snippet)) for match in found])
    else:
        for match in found:
            click.echo(f"{match.prompt.used_count}\t{sanitize(match.snippet)}")
    if not found:
        echo_err("No matching prompts.")


@commands.command()
@click.argument("generation_id", metavar="ID")
@json_option
@click.pass_obj
def why(database_url: str | None, generation_id: str, as_json: bool) -> None:
    """Explain why a generation is not finished, and until when.

    The estimate is an interval with a probability of 80 %, from the latest generations of the same model.
    """
    with open_storage(database_url) as storage:
        (whole_id,) = resolve_ids(storage, [generation_id])
        with storage.session(read_only=True) as session:
            wait = explain_wait(session, whole_id)
            # Without a valid lease it is unknown whether a worker is processing it: there is nothing to estimate.
            has_estimate = wait is not None and wait.reason not in (WaitReason.EXPIRED, WaitReason.UNLEASED)
            estimate = estimate_completion(session, whole_id) if has_estimate else None
    if wait is None:
        raise click.ClickException(f"no generation has the id {shorten(generation_id)}")
    if as_json:
        answer = {**asdict(wait), "estimate": None if estimate is None else asdict(estimate)}
        click.echo(json.dumps(answer, default=lambda moment: moment.isoformat()))
        return
    click.echo(sanitize(wait.explanation))
    if estimate is not None:
        soonest, latest = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (estimate.p10_at, estimate.p90_at))
        basis = f"the latest {estimate.samples:,} generations" if estimate.samples > 1 else "one generation"
        click.echo(f"It should finish between {soonest} and {latest} UTC, estimated from {basis} of its model.")


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
@json_option
@click.pass_obj
def stats(database_url: str | None, limit: int, as_json: bool) -> None:
    """Show counts, the queue, the last 30 days, models and prompts.

    Of the models it shows how many generations ended how and how long they took, of the prompts the most used ones.
    """
    with open_storage(database_url) as storage:
        print_stats(storage, limit, as_json=as_json)


def print_stats(storage: Storage, limit: int, *, as_json: bool = False) -> None:
    """Print the statistics: tables on a terminal, tab-separated lines when piped, or JSON."""
    with storage.session(read_only=True) as session:
        counts = get_database_stats(session)
        prompts = get_most_used_prompts(session, limit=limit)
        queue = get_queue_stats(session)
        days = get_usage(session)
        models = get_performance_stats(session, since=days[0].start)
    if as_json:
        report = {
            **counts,
            "most_used_prompts": [prompt.to_dict() for prompt in prompts],
            "queue": asdict(queue),
            "days": [asdict(day) for day in days],
            "models": [asdict(model) for model in models],
        }
        click.echo(json.dumps(report, default=lambda moment: moment.isoformat()))
        return
    used = [(prompt.used_count, sanitize(prompt.text)) for prompt in prompts]
    if sys.stdout.isatty():
        from .terminal_tables import print_tables

        print_tables(counts, queue, days, models, used)
        return
    oldest = "" if queue.oldest_seconds is None else f"{queue.oldest_seconds:.3f}"
    lines = [f"{name}\t{count}" for name, count in counts.items()]
    lines += [f"backlog\t{queue.backlog}", f"oldest_seconds\t{oldest}", f"workers\t{queue.workers}"]
    if used:
        lines += ["", *(f"{count}\t{text}" for count, text in used)]
    click.echo("\n".join(lines))


def _json_line(row: Generation) -> str:
    return json.dumps(row.to_dict(), allow_nan=False)


def _tabbed_line(row: Generation) -> str:
    fields = (row.id, row.status, row.created_at.isoformat(), row.model_name, row.prompt)
    return "\t".join(map(sanitize, fields))


def _split(snippet: str) -> Sequence[tuple[str, bool]]:
    """Return the parts of a snippet, each with whether it matches."""
    parts = re.split(f"{MARKS[0]}([^{MARKS[1]}]*){MARKS[1]}", snippet)
    return [(sanitize(part), number % 2 == 1) for number, part in enumerate(parts)]
