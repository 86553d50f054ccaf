"""The verbs about the queue and its workers: pause, resume, workers."""

import json
import sys

import click

from ..generations import shorten_ids
from ..queue import WorkerStatus, get_workers, pause_queue, resume_queue
from .app import commands
from .output import echo_err, open_storage, sanitize


@commands.command()
@click.option("--reason", metavar="TEXT", help="Why; `why` and `stats` show it.")
@click.pass_obj
def pause(database_url: str | None, reason: str | None) -> None:
    """Stop all claims until `resume`.

    Generations being processed continue.
    """
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
        if storage.run_in_transaction(resume_queue):
            echo_err(f"Claims are allowed again in {storage.display_url}.")
        else:
            echo_err(f"The queue of {storage.display_url} was not paused.")


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def workers(database_url: str | None, as_json: bool) -> None:
    """List the live workers, and what each is doing.

    A killed worker is listed until its lease ends, for 45 seconds at most. When piped, each line has the id, state,
    generation, models, device, host, process, version, start and when it was last seen, separated by tabs.
    """
    with open_storage(database_url) as storage, storage.session(read_only=True) as session:
        found = get_workers(session)
        short_ids = shorten_ids(session, [worker.generation_id for worker in found if worker.generation_id])
    if as_json:
        for worker in found:
            click.echo(json.dumps(worker.to_dict()))
    elif sys.stdout.isatty():
        from .terminal_tables import print_workers

        print_workers(found, short_ids)
    else:
        for worker in found:
            click.echo("\t".join(sanitize(field) for field in worker_fields(worker)))
    if not found:
        echo_err("No live workers.")


def worker_fields(worker: WorkerStatus) -> list[str]:
    """Return what `workers` prints of a worker when piped."""
    given = (worker.generation_id, ", ".join(worker.model_names or ()), worker.device, worker.host, worker.pid)
    times = (None if time is None else time.isoformat() for time in (worker.started_at, worker.last_seen_at))
    return ["" if value is None else str(value) for value in (worker.id, worker.state, *given, worker.version, *times)]
