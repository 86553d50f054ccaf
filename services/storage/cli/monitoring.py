"""The verbs for monitoring: health, metrics."""

import json

import click

from ..maintenance import check_health, get_metrics
from .app import commands
from .options import json_option
from .output import open_storage, print_fields, sanitize


@commands.command()
@json_option
@click.pass_context
def health(ctx: click.Context, as_json: bool) -> None:
    """Check that the database and its workers do their work.

    There is a problem if the database cannot serve requests, or if no running worker claims what is due; then the exit
    code is 1. "ok" is false only if the database itself cannot serve requests.
    """
    with open_storage(ctx.obj) as storage:
        found = check_health(storage=storage)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        known = [(name, value) for name, value in found.to_dict().items() if name != "problems" and value is not None]
        lines = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in known]
        lines += [("problem", problem) for problem in found.problems]
        print_fields([(name, sanitize(value)) for name, value in lines])
    ctx.exit(1 if found.problems else 0)


@commands.command()
@click.pass_obj
def metrics(database_url: str | None) -> None:
    """Print the metrics for Prometheus, as OpenMetrics text.

    The exit code is 1 if the database does not answer.
    """
    with open_storage(database_url) as storage:
        text = get_metrics(storage=storage)
    click.echo(text, nl=False)
    if "\ndgx_storage_up 0\n" in text:
        raise click.exceptions.Exit(1)
