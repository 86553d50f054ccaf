"""The verbs that write rows into files and read them back: export, import, zip."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from .app import commands
from .options import filter_options, given_filters, json_option, resolve_ids
from .output import echo_err, open_storage, print_fields, sanitize, say_contents, shown_progress

STREAM = Path("-")
file_argument = click.argument("file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))


@commands.command(name="export", examples=["all.jsonl", "failed.jsonl --status failed --since 7d"])
@file_argument
@filter_options
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.pass_obj
def export_(database_url: str | None, /, file: Path, force: bool, **options: Any) -> None:
    """Write all rows, or generations that meet filters, to FILE.

    FILE is JSON Lines, for `import`; - is stdout. Others may read and write meanwhile. With filters, the prompts and
    attempts of the generations are written too, but no other table. The file is private, and complete when it has its
    name.
    """
    from ..maintenance import export_database

    target = sys.stdout.buffer if file == STREAM else file
    with open_storage(database_url) as storage:
        try:
            with nullcontext(None) if file == STREAM else shown_progress() as progress:
                report = export_database(
                    target, overwrite=force, progress=progress, storage=storage, **given_filters(options)
                )
        except (ValueError, TypeError) as error:
            raise click.ClickException(sanitize(str(error))) from error
        where = storage.display_url
    if file != STREAM:
        print_fields([(name, str(number)) for name, number in report.row_counts.items()])
    echo_err(f"Exported {_say(report.row_counts)} of {where} to {'stdout' if file == STREAM else file}.")


@commands.command(name="import", examples=["all.jsonl"])
@file_argument
@json_option
@click.pass_obj
def import_(database_url: str | None, file: Path, as_json: bool) -> None:
    """Store the rows of an export that the database lacks.

    FILE is what `export` wrote; - is stdin. All or nothing: if a line is refused, or the command is interrupted,
    nothing is stored. Generations that exist already stay as they are, so a second import changes nothing. Others
    cannot write to an SQLite file meanwhile.
    """
    from ..maintenance import import_database

    with open_storage(database_url) as storage:
        with shown_progress() as progress:
            report = import_database(sys.stdin.buffer if file == STREAM else file, progress=progress, storage=storage)
        where = storage.display_url
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        existing = report.existing
        print_fields([(name, f"{number} stored, {existing[name]} existing") for name, number in report.stored.items()])
    if report.missing_parents:
        echo_err(f"{report.missing_parents:,} parents are neither in the file nor in the database.")
    echo_err(f"Imported {_say(report.stored)} into {where}.")


@commands.command(name="zip", examples=["ID one.zip --outputs outputs"])
@click.argument("generation_id", metavar="ID")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--outputs",
    metavar="DIR",
    default=".",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder with the audio files.  [default: the current folder]",
)
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.pass_obj
def zip_(database_url: str | None, generation_id: str, file: Path, outputs: Path, force: bool) -> None:
    """Write the generation ID with its audio file into the zip FILE.

    The audio file must be below DIR, and no symbolic link may be on its path. The ID may be shortened to what is
    unique, 6 characters or more.
    """
    from ..maintenance import zip_generation

    with open_storage(database_url) as storage:
        (whole_id,) = resolve_ids(storage, [generation_id])
        report = zip_generation(whole_id, file, outputs_dir=outputs, overwrite=force, storage=storage)
    if report is None:
        raise click.ClickException(f"no generation has the id {sanitize(generation_id)}")
    echo_err(f"{report.path} has generation.json and {report.audio_name} ({report.audio_bytes:,} bytes).")


def _say(counts: Mapping[str, int]) -> str:
    return say_contents(counts.get("generations", 0), counts.get("prompts", 0))
