"""The verb worker: which handler it runs, and its log messages on stderr."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..validation import clean_error_message
from .app import commands
from .output import echo_err, open_storage, sanitize, say_count

if TYPE_CHECKING:
    from ..worker import Job, Result


@commands.command(examples=["my_handlers:render --model musicgen-small", "--until-empty"])
@click.argument("handler", metavar="[MODULE:FUNCTION]", required=False)
@click.option("--max-jobs", metavar="N", type=click.IntRange(min=1), help="Exit after N jobs.")
@click.option("--until-empty", is_flag=True, help="Exit when nothing is due.")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Only this model; may be repeated.")
@click.option("--device", metavar="LABEL", help="What `workers` shows as its device, such as cuda:0.")
@click.option(
    "--outputs",
    metavar="DIR",
    default=".",
    type=click.Path(path_type=Path, file_okay=False),
    help="The demo's synthesizer writes only below DIR, where relative paths start.  [default: the current folder]",
)
@click.pass_obj
def worker(
    database_url: str | None,
    handler: str | None,
    max_jobs: int | None,
    until_empty: bool,
    models: tuple[str, ...],
    device: str | None,
    outputs: Path,
) -> None:
    """Claim generations and run a handler for each.

    MODULE:FUNCTION is your handler, a function of a Job. Without it the demo's synthesizer renders the generations of
    the demo's model, or of --model; it never replaces a file. On Ctrl-C or SIGTERM the worker finishes its job and
    exits; on a second one it releases the job and exits at once.
    """
    from ..demo import MODEL_NAME, render_job
    from ..worker import Worker

    run_job = _load_handler(handler) if handler else partial(render_job, folder=outputs)
    names = models or (None if handler else (MODEL_NAME,))
    with open_storage(database_url) as storage, _logging_to_stderr():
        try:
            worker = Worker(run_job, model_names=names, device=device, storage=storage)
        except ValueError as error:  # it names the parameter
            raise click.UsageError(sanitize(str(error))) from error
        storage.require_schema()
        which = "every model" if names is None else f"model {', '.join(names)}"
        if not handler and not models:
            which += " (the demo's; name your handler to render other models)"
        echo_err(f"Worker {worker.worker_id} started, {which}, database {storage.display_url}")
        jobs = worker.run(max_jobs=max_jobs, until_empty=until_empty)
        echo_err(f"Worker {worker.worker_id} stopped after {say_count(jobs, 'job')}")


def _load_handler(name: str) -> "Callable[[Job], Result | None]":
    """Return the function that MODULE:FUNCTION names; the current folder is searched first."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise click.BadParameter(f"{sanitize(name)}: write MODULE:FUNCTION", param_hint="MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(
            f"{sanitize(name)} cannot be imported: {error}", param_hint="MODULE:FUNCTION"
        ) from error
    if not callable(found):
        raise click.BadParameter(f"{sanitize(name)} is not a function", param_hint="MODULE:FUNCTION")
    handler: Callable[[Job], Result | None] = found
    return handler


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Print the worker's log messages to stderr, one line each, without tracebacks."""
    log = logging.getLogger("services.storage.worker")
    handler = _StderrHandler(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        echo_err(record.getMessage() + (f": {clean_error_message(error)}" if error else ""))
