"""The verbs that add and change generations: submit, cancel, retry, delete, favorite."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click

from ..defaults import MAX_ATTEMPTS
from ..maintenance import cancel_generations, delete_generations, retry_generations, set_favorites
from ..types import uuid7
from .app import commands
from .options import (
    DueTime,
    confirm,
    dry_run_option,
    filter_options,
    given_filters,
    name_options,
    resolve_ids,
    yes_option,
)
from .output import echo_err, open_storage, sanitize, say_count


@commands.command(
    examples=[
        '"slow waltz in D minor" --model musicgen-small --seconds 16',
        '"lofi rain" --model musicgen-small --seconds 30 --at 2h --priority 5',
    ]
)
@click.argument("prompt")
@click.option("--model", "model_name", metavar="NAME", required=True, help="The model that renders it.")
@click.option("--seconds", "duration_seconds", type=float, required=True, help="Length of the music.")
@click.option("--rate", "sample_rate", type=int, default=32_000, show_default=True, help="Sample rate in Hz.")
@click.option("--channels", type=int, default=2, show_default=True, help="1 mono, 2 stereo.")
@click.option("--file", "file_path", metavar="PATH", help="The file to write.  [default: outputs/ID.wav]")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher ones are claimed first.")
@click.option(
    "--at",
    "scheduled_at",
    metavar="TIME",
    type=DueTime(),
    help="Not due before TIME, such as 2026-11-25T12:00, or 2h from now.",
)
@click.option("--attempts", "max_attempts", type=int, default=MAX_ATTEMPTS, show_default=True, help="At most N.")
@click.option("--batch", "batch_id", metavar="ID", help="The batch it belongs to.")
@click.option("--key", "idempotency_key", metavar="KEY", help="The same KEY again stores nothing new.")
@click.option("--parameters", metavar="JSON", help="A JSON object for the model, such as a seed.")
@click.option("--metadata", metavar="JSON", help="A JSON object about the music.")
@click.pass_obj
def submit(database_url: str | None, /, parameters: str | None, metadata: str | None, **request: Any) -> None:
    """Store a generation of PROMPT as pending, and print its id."""
    from ..generations import create_generation

    for name, text in (("parameters", parameters), ("metadata", metadata)):
        try:
            request[name] = None if text is None else json.loads(text)
        except ValueError as error:
            raise click.BadParameter("it is not valid JSON", param_hint=f"--{name}") from error
    request["generation_id"] = uuid7()
    request["file_path"] = request["file_path"] or f"outputs/{request['generation_id']}.wav"
    with open_storage(database_url) as storage:
        try:
            with storage.session() as session:
                generation = create_generation(session, **request)
        except (TypeError, ValueError) as error:
            raise click.ClickException(sanitize(name_options(str(error)))) from error
        click.echo(generation.id)


class Change(NamedTuple):
    """A change of generations: its function, and what to say before and after it."""

    apply: Callable[..., int]
    action: str
    done: str
    always_asks: bool = False


def add_change_verb(name: str, summary: str, change: Change, note: str = "", removal: Change | None = None) -> None:
    """Register a verb that changes the generations named by ids, or all that meet filters; --remove is `removal`."""
    examples = ["ID", "--model musicgen-small --since 1d --dry-run"]

    @commands.command(name=name, short_help=f"{summary} by ID or by filters.", examples=examples)
    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @filter_options
    @dry_run_option
    @yes_option
    @click.pass_obj
    def verb(database_url: str | None, /, *, dry_run: bool, yes: bool, remove: bool = False, **selected: Any) -> None:
        _change(database_url, removal if removal and remove else change, dry_run=dry_run, yes=yes, **selected)

    if removal:
        click.option("--remove", is_flag=True, help="Remove the mark instead.")(verb)
    verb.help = (
        f"{summary} with these IDs, or all that meet the filters.{note}\n\n"
        "An ID may be shortened to what is unique, 6 characters or more. "
        f"{'It always asks' if change.always_asks else 'Filters ask'} for confirmation. Prints the number of "
        f"generations that changed; those in another state stay as they are."
    )


def _change(
    database_url: str | None, change: Change, *, ids: tuple[str, ...], dry_run: bool, yes: bool, **options: Any
) -> None:
    filters = given_filters(options)
    if ids and filters:
        raise click.UsageError("Name IDs or filters: one of them, not both.")
    if not ids and not filters:
        raise click.UsageError("Name IDs, or at least one filter such as --status.")
    with open_storage(database_url) as storage:
        selected: dict[str, Any] = {"ids": resolve_ids(storage, ids)} if ids else filters
        try:
            if not dry_run and (filters or change.always_asks):
                count = change.apply(dry_run=True, storage=storage, **selected)
                confirm(f"{change.action} {say_count(count, 'generation')} in {storage.display_url}?", yes=yes)
            count = change.apply(dry_run=dry_run, storage=storage, **selected)
        except ValueError as error:
            raise click.ClickException(sanitize(str(error))) from error
    if not sys.stdout.isatty():
        click.echo(count)
    said = f"Would {change.action.lower()}" if dry_run else change.done
    echo_err(f"{said} {say_count(count, 'generation')}.")


add_change_verb("cancel", "Cancel generations", Change(cancel_generations, "Cancel", "Cancelled"))
add_change_verb(
    "retry",
    "Retry failed and cancelled generations",
    Change(retry_generations, "Retry", "Made pending again:"),
)
add_change_verb(
    "delete",
    "Delete generations",
    Change(delete_generations, "Delete", "Deleted", always_asks=True),
    note=" The audio files stay.",
)
add_change_verb(
    "favorite",
    "Mark generations as favorites,",
    Change(set_favorites, "Mark as favorites:", "Marked as favorites:"),
    removal=Change(partial(set_favorites, False), "Remove from favorites:", "Removed from favorites:"),
)
