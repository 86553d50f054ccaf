"""The verbs that keep the database small: prune, optimize."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ..lifecycle import FINISHED
from ..maintenance import Optimization, PrunedGeneration, PruneReport
from .app import commands
from .options import Moment, confirm, json_option, yes_option
from .output import echo_err, open_storage, print_fields, sanitize, say_count

folder = click.Path(path_type=Path, exists=True, file_okay=False)
finished = click.Choice(sorted(status.value for status in FINISHED))


@commands.command(
    examples=["--older-than 90d --dry-run", "--older-than 90d --keep-newest 1000 --delete-files-under outputs"]
)
@click.option("--older-than", metavar="TIME", type=Moment(), required=True, help="Finished before TIME, such as 90d.")
@click.option("--status", "statuses", type=finished, multiple=True, help="Only this status; may be repeated.")
@click.option("--favorites", "favorites_too", is_flag=True, help="Delete favorites too.")
@click.option("--keep-newest", metavar="N", type=click.IntRange(min=0), help="Keep the N that finished last.")
@click.option("--delete-files-under", metavar="DIR", type=folder, help="Delete their files too, only below DIR.")
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, a line each, and delete nothing.")
@click.option("--force", is_flag=True, help="Also if it deletes more than 1,000 generations and more than half of all.")
@yes_option
@json_option
@click.pass_obj
def prune(
    database_url: str | None,
    /,
    older_than: datetime,
    statuses: tuple[str, ...],
    favorites_too: bool,
    keep_newest: int | None,
    delete_files_under: Path | None,
    dry_run: bool,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete old finished generations, while others read and write.

    TIME is an age such as 90d or 12h, or a time such as 2026-01-31. Favorites stay, and `stats` still counts what was
    deleted. A file is deleted only below DIR, if no other generation names it and no symbolic link is on its path.
    --dry-run prints the id, status, time and file of each. May be interrupted and run again.
    """
    from ..maintenance import prune_generations

    options: dict[str, Any] = {
        "older_than": older_than,
        "statuses": statuses or FINISHED,
        "keep_favorites": not favorites_too,
        "keep_newest": keep_newest,
        "delete_files_under": delete_files_under,
    }
    with open_storage(database_url) as storage:
        if dry_run:
            report = prune_generations(**options, dry_run=True, on_generation=_printer(as_json), storage=storage)
            echo_err(f"Would delete {_say(report)} in {storage.display_url}.")
            return
        if not yes:
            planned = prune_generations(**options, dry_run=True, storage=storage)
            confirm(f"Delete {_say(planned)} in {storage.display_url}?", yes=False)
        report = prune_generations(**options, force=force, storage=storage)
        _print(report, as_json)
        for file in report.undeleted_files:
            echo_err(f"{file} could not be deleted; the next prune tries again")
        echo_err(f"Deleted {_say(report)} in {storage.display_url}.")


@commands.command()
@click.option("--full", is_flag=True, help="Rebuild the whole database; others wait, and it needs twice the space.")
@json_option
@click.pass_obj
def optimize(database_url: str | None, full: bool, as_json: bool) -> None:
    """Return the space of deleted rows to the file system.

    Others may read and write meanwhile, except with --full.
    """
    from ..maintenance import optimize_database

    with open_storage(database_url) as storage:
        done = optimize_database(full=full, storage=storage)
        _print(done, as_json)
        echo_err(
            f"{storage.display_url}: {_megabytes(done.size_before_bytes)} before, {_megabytes(done.size_bytes)} now"
        )
    if done.unused_bytes and not full:
        echo_err(
            f"{_megabytes(done.unused_bytes)} inside the file are unused: `dgx-storage optimize --full` returns them"
        )


def _printer(as_json: bool) -> Callable[[PrunedGeneration], None]:
    def echo(row: PrunedGeneration) -> None:
        at = "" if row.completed_at is None else row.completed_at.isoformat()
        if as_json:
            click.echo(json.dumps(row._asdict() | {"completed_at": at or None}))
        else:
            click.echo("\t".join(map(sanitize, (row.id, row.status, at, row.file or ""))))

    return echo


def _print(report: PruneReport | Optimization, as_json: bool) -> None:
    fields = {name: value for name, value in vars(report).items() if not isinstance(value, tuple)}
    if as_json:
        click.echo(json.dumps(vars(report)))
    else:
        print_fields([(name, str(value)) for name, value in fields.items()])


def _say(report: PruneReport) -> str:
    rows = say_count(report.rows, "generation")
    if not report.files:
        return rows
    return f"{rows} and {say_count(report.files, 'file')} of {_megabytes(report.bytes_freed)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
