"""The verbs that show the contents of a database: list, search, why, stats.

They print tables on a terminal, tab-separated lines when piped, and JSON with --json.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from ..analytics import WaitReason, estimate_completion, explain_wait, get_performance_stats, get_queue_stats, get_usage
from ..database import get_database_stats, get_most_used_prompts
from ..engine import Storage
from ..generations import list_generations
from ..lifecycle import GenerationStatus
from ..search import search_prompts
from .app import commands
from .output import echo_err, open_storage, sanitize, shorten

limit_option = click.option(
    "--limit", metavar="N", default=20, show_default=True, type=click.IntRange(1, 100_000), help="Show at most N."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

# Control characters that prompts normally do not contain. In a prompt that does, only the bold parts are wrong.
MARKS = ("\x02", "\x03")


@commands.command(name="list")
@click.option(
    "--status",
    type=click.Choice([status.value for status in GenerationStatus]),
    help="Only this status.",
)
@click.option("--model", metavar="NAME", help="Only this model.")
@click.option("--prompt", metavar="TEXT", help="Only exactly this prompt.")
@click.option("--batch", metavar="ID", help="Only this batch.")
@click.option("--favorites", is_flag=True, help="Only favorites.")
@limit_option
@click.option("--after", metavar="CURSOR", help="Continue after the previous page, which prints its CURSOR.")
@json_option
@click.pass_obj
def list_(
    database_url: str | None,
    status: str | None,
    model: str | None,
    prompt: str | None,
    batch: str | None,
    favorites: bool,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List generations, newest first.

    When piped, each line has the id, status, creation time, model and prompt, separated by tabs.
    """
    with open_storage(database_url) as storage, storage.session(read_only=True) as session:
        page = list_generations(
            session,
            status=status,
            model_name=model,
            prompt=prompt,
            batch_id=batch,
            favorite=True if favorites else None,
            limit=limit,
            after=after,
        )
    if as_json:
        click.echo(json.dumps({"generations": [row.to_dict() for row in page.items], "next": page.next}))
        return
    if sys.stdout.isatty():
        from .tables import print_generations

        print_generations(page.items)
    else:
        for row in page.items:
            fields = (row.id, row.status, row.created_at.isoformat(), row.model_name, row.prompt)
            click.echo("\t".join(map(sanitize, fields)))
    if not page.items:
        echo_err("No generations.")
    if page.next:
        echo_err(f"More generations: --after {page.next}")


@commands.command()
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
        from .tables import print_matches

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
    """Explain why the generation ID is not finished, and estimate when it will be.

    The estimate is an interval with a probability of 80 %, from the latest generations of the same model.
    """
    with open_storage(database_url) as storage, storage.session(read_only=True) as session:
        wait = explain_wait(session, generation_id)
        # Without a valid lease it is unknown whether a worker is processing it, so there is nothing to estimate.
        has_estimate = wait is not None and wait.reason not in (WaitReason.EXPIRED, WaitReason.UNLEASED)
        estimate = estimate_completion(session, generation_id) if has_estimate else None
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
    """Show counts, the queue, the last 30 days, the performance of the models and the most used prompts."""
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
        from .tables import print_tables

        print_tables(counts, queue, days, models, used)
        return
    oldest = "" if queue.oldest_seconds is None else f"{queue.oldest_seconds:.3f}"
    lines = [f"{name}\t{count}" for name, count in counts.items()]
    lines += [f"backlog\t{queue.backlog}", f"oldest_seconds\t{oldest}", f"workers\t{queue.workers}"]
    if used:
        lines += ["", *(f"{count}\t{text}" for count, text in used)]
    click.echo("\n".join(lines))


def _split(snippet: str) -> Sequence[tuple[str, bool]]:
    """Return the parts of a snippet, each with whether it matches."""
    parts = re.split(f"{MARKS[0]}([^{MARKS[1]}]*){MARKS[1]}", snippet)
    return [(sanitize(part), number % 2 == 1) for number, part in enumerate(parts)]
