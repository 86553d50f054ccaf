"""The verb files: compare the rows with the files below a folder."""

import json
from pathlib import Path

import click

from .app import commands
from .options import json_option
from .output import echo_err, open_storage, sanitize


@commands.command(examples=["outputs", "outputs --relink"])
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--relink", is_flag=True, help="Store the new paths of moved files in their generations.")
@json_option
@click.pass_obj
def files(database_url: str | None, folder: Path, relink: bool, as_json: bool) -> None:
    """Find missing, moved and unknown files below DIR.

    A missing file is that of a completed generation, an orphaned one is named by no generation. A moved file is
    recognized by its size and SHA-256. Prints a line for each: "missing", the id and the path; "orphaned", nothing and
    the path; "moved", the id, the old path and the new one. Deletes nothing.
    """
    from ..maintenance import find_files

    with open_storage(database_url) as storage:
        report = find_files(folder, relink=relink, storage=storage)
    if as_json:
        found = {
            "missing": [vars(file) for file in report.missing],
            "orphaned": report.orphaned,
            "moved": [vars(file) for file in report.moved],
            "relinked": report.relinked,
        }
        click.echo(json.dumps(found))
    else:
        lines = [("missing", file.generation_id, file.file_path) for file in report.missing]
        lines += [("orphaned", "", path) for path in report.orphaned]
        moved = [("moved", file.generation_id, file.file_path, file.found_path) for file in report.moved]
        for line in (*lines, *moved):
            click.echo("\t".join(map(sanitize, line)))
    counts = f"{len(report.missing):,} missing, {len(report.orphaned):,} orphaned, {len(report.moved):,} moved"
    echo_err(f"{counts}, {report.relinked:,} linked again." if relink else f"{counts}.")
    if report.moved and not relink:
        echo_err("`--relink` stores the new paths of the moved files.")
