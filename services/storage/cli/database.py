"""The verbs that administer a database: init, migrate, reset, copy."""

import sys
from collections.abc import Sequence

import click

from ..database import get_database_stats, init_db
from ..engine import Storage, get_storage
from ..errors import CopyError, StorageError
from .app import commands
from .options import confirm, yes_option
from .output import echo_err, open_storage, sanitize, say_contents, say_count, shown_progress


@commands.command()
@click.pass_obj
def init(database_url: str | None) -> None:
    """Create the database, or upgrade an older one."""
    init_db(database_url)
    storage = get_storage()
    _echo_ready(storage)
    storage.dispose()


@commands.command()
@click.argument("revision", default="head")
@click.pass_obj
def migrate(database_url: str | None, revision: str) -> None:
    """Upgrade the schema to REVISION, or to the newest one."""
    from ..migrations import upgrade

    with open_storage(database_url) as storage:
        before = storage.read_revision()
        try:
            upgrade(storage, revision)
        except ValueError as error:
            raise click.ClickException(sanitize(str(error))) from error
        after = storage.read_revision()
        if before == after:
            echo_err(f"{storage.display_url} is at revision {after} already")
        else:
            echo_err(f"{storage.display_url} was at revision {before or 'none'} and is at revision {after}")


@commands.command(examples=["", "009"])
@click.argument("revision", default="-1")
@yes_option
@click.pass_obj
def rollback(database_url: str | None, revision: str, yes: bool) -> None:
    """Downgrade the schema, by one revision or to REVISION.

    What a downgrade loses is in the docstring of each revision. Make a backup first.
    """
    from ..migrations import downgrade

    with open_storage(database_url) as storage:
        before = storage.read_revision()
        confirm(_ask_rollback(storage, before, revision), yes=yes)
        try:
            downgrade(storage, revision)
        except ValueError as error:
            raise click.ClickException(sanitize(str(error))) from error
        echo_err(
            f"{storage.display_url} was at revision {before} and is at revision {storage.read_revision() or 'none'}"
        )


@commands.command()
@yes_option
@click.pass_obj
def reset(database_url: str | None, yes: bool) -> None:
    """Drop and create every table. ALL DATA IS LOST."""
    from ..migrations import reset as reset_schema

    with open_storage(database_url) as storage:
        question = f"This deletes {_say_contents(storage)} in {storage.display_url}. Really reset it?"
        confirm(question, yes=yes)
        reset_schema(storage)
        _echo_ready(storage)


@commands.command(examples=["sqlite:///data/generations.db postgresql://user@host/music"])
@click.argument("source", envvar="DATABASE_SOURCE_URL")
@click.argument("target", envvar="DATABASE_TARGET_URL")
def copy(source: str, target: str) -> None:
    """Copy the database at the URL SOURCE into an empty one, TARGET.

    At the end both are compared, row by row.

    Other users of the host can read the arguments of a command: give URLs with a password in the environment variables
    DATABASE_SOURCE_URL and DATABASE_TARGET_URL instead, and leave out both, or TARGET alone.

    Stop every writer of both databases first. If the copy is interrupted, run it again: it continues where it stopped.
    Rows that the target would refuse are listed before anything is written.
    """
    from ..maintenance import copy_database

    try:
        with shown_progress() as progress:
            report = copy_database(source, target, progress=progress)
    except CopyError as error:
        for row in error.refused:
            echo_err(f"{row.table} {row.key}: {row.reason}")
        raise
    rows = [(table.name, table.row_count, table.checksum) for table in report.tables]
    if sys.stdout.isatty():
        _print_copied(rows)
    else:
        click.echo("\n".join(f"{name}\t{count}\t{checksum}" for name, count, checksum in rows))
    resumed = " (continued an interrupted copy)" if report.resumed else ""
    echo_err(f"Copied {say_count(report.row_count, 'row')}{resumed}; both databases have the same contents.")


def _print_copied(rows: Sequence[tuple[str, int, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    copied = Table("table", "rows", "checksum", box=None)
    copied.columns[1].justify = "right"
    for name, count, checksum in rows:
        copied.add_row(name, f"{count:,}", checksum)
    Console().print(copied)


def _say_contents(storage: Storage) -> str:
    try:
        with storage.session(read_only=True) as session:
            counts = get_database_stats(session)
    except StorageError:  # another revision, or damaged: reset is the way out then
        return "every generation and prompt"
    return say_contents(counts["total_generations"], counts["total_prompts"])


def _ask_rollback(storage: Storage, before: str | None, revision: str) -> str:
    """Return the question before a downgrade, which names the revision that it ends at and what is lost."""
    from ..migrations.scripts import load_scripts

    newest_first = [script.revision for script in load_scripts().walk_revisions()]
    if before in newest_first and revision[:1] == "-" and revision[1:].isdecimal():
        older = newest_first[newest_first.index(before) + int(revision[1:]) :]
        revision = older[0] if older else "base"
    if revision == "base":
        return f"This drops every table of {storage.display_url}, with {_say_contents(storage)}. Really roll it back?"
    return f"Downgrade {storage.display_url} from revision {before} to {revision}? Columns of newer revisions are lost."


def _echo_ready(storage: Storage) -> None:
    echo_err(f"Database ready: {storage.display_url} at revision {storage.read_revision()}")
