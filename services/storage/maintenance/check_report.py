"""What check_database() returns: the findings, and what the database system says about the database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy.exc import DBAPIError

from ..engine import Storage
from ..errors import StorageError
from ..serialization import Report

Severity = Literal["error", "warning", "notice"]
Fix = Callable[[Storage], object]


@dataclass(frozen=True)
class Finding(Report):
    """A problem, its subject (an object of the schema, or a table and key; never a stored value), and its repair.

    An error is something that fails or is wrong, a warning something that needs a look, a notice something that repairs
    keep. `repair_sql` is the SQL that repairs it, `advice` what to do where SQL cannot or should not. `values_lost`
    says that a table or column was created again, and that only a backup has what was in it.
    """

    problem: str
    subject: str
    severity: Severity = "error"
    fixed: bool = False
    repair_sql: str = ""
    advice: str = ""
    values_lost: bool = False


@dataclass(frozen=True)
class DatabaseReport(Report):
    """The findings of a check, most important first, and what is known about the database.

    `is_sound` says that nothing is left to repair; notices do not count.

    A value is None where the database system has no such thing or this user may not know it. `checkpoint_age_seconds`
    is the time since the log was last written into the database, `repair_sql` a script for all findings that SQL can
    repair, in the right order and in one transaction.
    """

    is_sound: bool
    database: str
    revision: str | None
    version: str
    known_bugs: tuple[str, ...]
    journal_mode: str | None
    wal_bytes: int | None
    checkpoint_age_seconds: float | None
    disk_free_bytes: int | None
    findings: tuple[Finding, ...]
    repair_sql: str


@dataclass
class Found:
    """A finding under way: `statements` repair it in a script, `fix` repairs it and all that have the same `fix`."""

    finding: Finding
    statements: Sequence[str] = ()
    fix: Fix | None = None

    @property
    def is_left(self) -> bool:
        """Whether it is still to be repaired."""
        return not self.finding.fixed and self.finding.severity != "notice"


def fix_all(storage: Storage, found: Sequence[Found]) -> None:
    """Repair the findings that can be repaired at once; where that fails, the problem says why."""
    errors: dict[Fix, Exception | None] = {}
    for one in found:
        if one.fix is None:
            continue
        if one.fix not in errors:
            errors[one.fix] = _attempt(one.fix, storage)
        error = errors[one.fix]
        if error is None:
            one.finding = replace(one.finding, fixed=True)
        else:
            one.finding = replace(one.finding, problem=f"{one.finding.problem}; the repair failed: {error}")


def _attempt(fix: Fix, storage: Storage) -> Exception | None:
    try:
        fix(storage)
    except (StorageError, DBAPIError, OSError) as error:
        return error
    return None
