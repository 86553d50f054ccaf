"""The verb check: what is wrong with a database, the SQL that repairs it, and the repair."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import commands
from .output import echo_err, open_storage, sanitize, say_count

if TYPE_CHECKING:
    from ..maintenance import DatabaseReport


@commands.command()
@click.option("--fix", is_flag=True, help="Repair what can be repaired. Never drops what others added.")
@click.option("--quick", is_flag=True, help="Leave out what reads every row.")
@click.option(
    "--outputs",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Check also that the files exist; a relative file_path is below DIR or the current folder.",
)
@click.option("--sql", is_flag=True, help="Print only the SQL script that repairs what SQL can repair.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_obj
def check(database_url: str | None, fix: bool, quick: bool, outputs: Path | None, sql: bool, as_json: bool) -> None:
    """Find what is wrong with the database, and how to repair it.

    Changes nothing without --fix. The exit code is 1 if something is left to repair; notices do not count.
    """
    from ..maintenance import check_database

    with open_storage(database_url) as storage:
        report = check_database(fix=fix, quick=quick, outputs_dir=outputs, storage=storage)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False))
    elif sql:
        click.echo(report.repair_sql, nl=False)
    else:
        _print_report(report)
    left = [finding for finding in report.findings if not finding.fixed and finding.severity != "notice"]
    if left:
        can_fix = not fix and any(not finding.advice or "--fix" in finding.advice for finding in left)
        what_next = ": dgx-storage backup, then dgx-storage check --fix" if can_fix else ""
        raise click.ClickException(f"{say_count(len(left), 'finding')} left to repair{what_next}")
    if any(finding.values_lost for finding in report.findings):
        echo_err("The schema is repaired, but the lost values are only in a backup.")
    elif any(finding.fixed for finding in report.findings):
        echo_err("All problems found have been fixed.")
    else:
        echo_err("No problems found.")


def _print_report(report: "DatabaseReport") -> None:
    echo_err(_describe_engine(report))
    for finding in report.findings:
        is_whole = finding.fixed and not finding.values_lost
        what = f"{finding.severity}: {finding.subject}: {finding.problem}" + (" (fixed)" if is_whole else "")
        click.echo(sanitize(what))
        if finding.advice and not finding.fixed:
            click.echo(sanitize(f"    {finding.advice}"))
    if report.repair_sql:
        click.echo(f"-- SQL that repairs what SQL can repair\n{report.repair_sql}", nl=False)


def _describe_engine(report: "DatabaseReport") -> str:
    facts = [report.version, *report.known_bugs]
    facts += [f"journal mode {report.journal_mode}"] if report.journal_mode else []
    if report.wal_bytes is not None:
        facts.append(f"log of {report.wal_bytes / 1e6:,.1f} MB")
    if report.checkpoint_age_seconds is not None:
        facts.append(f"last checkpoint {report.checkpoint_age_seconds:,.0f} s ago")
    if report.disk_free_bytes is not None:
        facts.append(f"{report.disk_free_bytes / 1e9:,.1f} GB of disk free")
    return "; ".join(facts)
