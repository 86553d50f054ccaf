"""The verbs that add and change generations: submit, cancel, retry, delete, favorite."""

import json
from collections.abc import Callable
from typing import Any

import click

from ..defaults import MAX_ATTEMPTS
from ..maintenance import cancel_generations, delete_generations, retry_generations, set_favorites
from ..types import uuid7
from .app import commands
from .options import Moment, confirm, dry_run_option, filter_options, given_filters, resolve_ids, yes_option
from .output import echo_err, open_storage, sanitize


@commands.command()
@click.argument("prompt")
@click.option("--model", "model_name", metavar="NAME", required=True, help="The model that renders it.")
@click.option("--seconds", "duration_seconds", type=float, required=True, help="Length of the music.")
@click.option("--rate", "sample_rate", type=int, default=32_000, show_default=True, help="Sample rate in Hz.")
@click.option("--channels", type=int, default=2, show_default=True, help="1 mono, 2 stereo.")
@click.option("--file", "file_path", metavar="PATH", help="The file to write.  [default: outputs/ID.wav]")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher ones are claimed first.")
@click.option("--at", "scheduled_at", metavar="TIME", type=Moment(), help="Not due before TIME.")
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
    request["generation_id"] = None if request["idempotency_key"] else uuid7()
    request["file_path"] = request["file_path"] or f"outputs/{request['generation_id'] or uuid7()}.wav"
    with open_storage(database_url) as storage:
        try:
            with storage.session() as session:
                generation = create_generation(session, **request)
        except (TypeError, ValueError) as error:
            raise click.ClickException(sanitize(str(error))) from error
        click.echo(generation.id)


def add_change_verb(name: str, change: Callable[..., int], summary: str, done: str, *, question: str = "") -> None:
    """Register a verb that changes the generations named by ids, or all that meet filters."""

    @commands.command(name=name, short_help=f"{summary} by ID or by filters.")
    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @filter_options
    @dry_run_option
    @yes_option
    @click.pass_obj
    def verb(database_url: str | None, /, ids: tuple[str, ...], dry_run: bool, yes: bool, **options: Any) -> None:
        filters = given_filters(options)
        if bool(ids) == bool(filters):
            raise click.UsageError("Name IDs or filters: one of them, not both.")
        with open_storage(database_url) as storage:
            selected: dict[str, Any] = {"ids": resolve_ids(storage, ids)} if ids else filters
            try:
                if not dry_run and (filters or question):
                    count = change(dry_run=True, storage=storage, **selected)
                    confirm(f"{question or name.capitalize()} {_say_count(count)} in {storage.display_url}?", yes=yes)
                count = change(dry_run=dry_run, storage=storage, **selected)
            except ValueError as error:
                raise click.ClickException(sanitize(str(error))) from error
        click.echo(count)
        echo_err(f"Would change {_say_count(count)}." if dry_run else f"{done} {_say_count(count)}.")

    verb.help = (
        f"{summary} with these IDs, or all that meet the filters.\n\n"
        "An ID may be shortened to what is unique, 6 characters or more. Filters ask for confirmation. Prints the "
        "number of generations that changed; those in another state stay as they are."
    )


add_change_verb("cancel", cancel_generations, "Cancel generations", "Cancelled")
add_change_verb("retry", retry_generations, "Retry failed and cancelled generations", "Made pending again:")
add_change_verb("delete", delete_generations, "Delete generations", "Deleted", question="Delete")
add_change_verb("favorite", set_favorites, "Mark generations as favorites,", "Marked as favorites:")


def _say_count(count: int) -> str:
    return f"{count:,} generation{'' if count == 1 else 's'}"
