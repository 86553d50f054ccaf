"""The verbs for backups: backup, verify, restore."""

import json
from pathlib import Path

import click

from ..maintenance import Backup
from .app import commands
from .options import confirm, json_option, yes_option
from .output import echo_err, open_storage, print_fields, sanitize, say_contents


@commands.command(examples=["", "backups --keep 7", "before-upgrade.db"])
@click.argument("path", default="backups", type=click.Path(path_type=Path))
@click.option("--keep", metavar="N", type=click.IntRange(min=1), help="Keep only the newest N backups in a folder.")
@click.option("--force", is_flag=True, help="Replace the backup at PATH.")
@json_option
@click.pass_obj
def backup(database_url: str | None, path: Path, keep: int | None, force: bool, as_json: bool) -> None:
    """Write a backup while the database is in use.

    PATH is a file or a folder.
    In a folder (./backups unless named) the file is named after the time. The backup is opened and compared with the
    database before it gets its name. PostgreSQL needs pg_dump.
    """
    from ..maintenance import backup_database

    with open_storage(database_url) as storage:
        try:
            made = backup_database(path, overwrite=force, keep=keep, storage=storage)
        except ValueError as error:
            raise click.BadParameter(sanitize(str(error)), param_hint="--keep") from error
        where = storage.display_url
    _print(made, as_json)
    echo_err(f"Backup of {where} written and verified: {made.path}")
    for old in made.deleted:
        echo_err(f"Deleted the older backup {old}")


@commands.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Read a whole backup and print what it holds."""
    from ..maintenance import verify_backup

    _print(verify_backup(path), as_json)
    echo_err("The backup is sound.")


@commands.command()
@click.argument("path", type=click.Path(path_type=Path))
@yes_option
@click.pass_obj
def restore(database_url: str | None, path: Path, yes: bool) -> None:
    """Replace the database with a backup.

    All or nothing; other processes may keep the database open. The backup is verified first.
    """
    from ..maintenance import restore_database, verify_backup
    from ..schema import get_schema_version

    with open_storage(database_url) as storage:
        question = f"Replace everything in {storage.display_url} with {_say_rows(verify_backup(path))}?"
        confirm(question, yes=yes)
        restored = restore_database(path, storage=storage)
        echo_err(f"Restored {_say_rows(restored)} into {storage.display_url}")
    if restored.moved_aside is not None:
        echo_err(f"The damaged files are in {restored.moved_aside}")
    if restored.revision != get_schema_version():
        echo_err(f"The backup is at revision {restored.revision}: run `dgx-storage migrate` next")


def _say_rows(backup: Backup) -> str:
    counts = {table.rpartition(".")[2]: number for table, number in backup.row_counts.items()}
    return say_contents(counts.get("generations", 0), counts.get("prompts", 0))


def _print(backup: Backup, as_json: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {
                    "path": str(backup.path),
                    "revision": backup.revision,
                    "row_counts": dict(backup.row_counts),
                    "size_bytes": backup.size_bytes,
                    "checksum": backup.checksum,
                    "deleted": [str(path) for path in backup.deleted],
                }
            )
        )
        return
    lines = [("path", str(backup.path)), ("revision", backup.revision), ("size_bytes", str(backup.size_bytes))]
    lines += [("checksum", backup.checksum), *((f"rows {name}", str(n)) for name, n in backup.row_counts.items())]
    print_fields([(name, sanitize(value)) for name, value in lines])
