"""The verbs that stop and allow claims: pause, resume."""

import click

from ..queue import pause_queue, resume_queue
from .app import commands
from .output import echo_err, open_storage, sanitize


@commands.command()
@click.option("--reason", metavar="TEXT", help="Why; `why` and `stats` show it.")
@click.pass_obj
def pause(database_url: str | None, reason: str | None) -> None:
    """Stop all claims until `resume`; generations being processed continue."""
    with open_storage(database_url) as storage:
        try:
            storage.run_in_transaction(lambda session: pause_queue(session, reason))
        except ValueError as error:
            raise click.BadParameter(sanitize(str(error)), param_hint="--reason") from error
        echo_err(f"The queue of {storage.display_url} is paused; `dgx-storage resume` ends the pause.")


@commands.command()
@click.pass_obj
def resume(database_url: str | None) -> None:
    """Allow claims again after `pause`."""
    with open_storage(database_url) as storage:
        storage.run_in_transaction(resume_queue)
        echo_err(f"The queue of {storage.display_url} is not paused.")
