"""What rows get in a column that was lost and may not be NULL: what other columns tell, a default, or a placeholder."""

from typing import Any, Final

from sqlalchemy import Boolean, Connection, Double, Integer, Text, UniqueConstraint

from ..backends import backend_for
from ..backends.schema_dialect import Fill
from ..lifecycle import FINISHED
from ..model_base import SameAs
from ..models import TABLES
from ..schema import get_schema_version
from ..types import UTCDateTime
from .recognition import VERSION_TABLE, find_missing

LOST: Final = "lost"
_FINISHED: Final = ", ".join(f"'{status.value}'" for status in sorted(FINISHED))
# The expression of a column, and the columns that it reads.
RECOVERED: Final = {
    "generations.prompt": (
        "(SELECT text FROM prompts WHERE prompts.id = generations.prompt_id)",
        "prompts.id prompts.text generations.prompt_id",
    ),
    "generations.status": (
        (
            "CASE WHEN completed_at IS NOT NULL AND error_message IS NOT NULL THEN 'failed' "
            "WHEN completed_at IS NOT NULL THEN 'completed' "
            "WHEN lease_expires_at IS NOT NULL THEN 'processing' ELSE 'pending' END"
        ),
        "generations.completed_at generations.error_message generations.lease_expires_at",
    ),
    "generations.completed_at": (
        f"CASE WHEN status IN ({_FINISHED}) THEN created_at END",
        "generations.status generations.created_at",
    ),
    "generations.created_at": ("scheduled_at", "generations.scheduled_at"),
    "prompts.text": (
        "(SELECT min(prompt) FROM generations WHERE generations.prompt_id = prompts.id)",
        "generations.prompt generations.prompt_id prompts.id",
    ),
    "prompts.first_used_at": ("last_used_at", "prompts.last_used_at"),
}


def fill_on(connection: Connection) -> Fill:
    """Return the function that gives the SQL expression for a lost column in the rows of its table.

    It raises KeyError for a column that may be NULL and that no other column can tell.
    """
    backend = backend_for(connection)
    tables = {table.name: table for table in TABLES}
    missing = {words.removeprefix("the ") for words in find_missing(connection, baseline=False)}

    def is_present(column: str) -> bool:
        return f"column {column}" not in missing and f"table {column.partition('.')[0]}" not in missing

    def fill(table: str, name: str) -> str:
        if table == VERSION_TABLE:
            return f"'{get_schema_version()}'"
        column = tables[table].columns[name]
        expression, needs = RECOVERED.get(f"{table}.{name}") or _same_as(column)
        recovered = expression if all(map(is_present, needs.split())) else ""
        if not column.nullable:
            other = _placeholder(column, backend.row_number, backend.current_time)
            return f"coalesce({recovered}, {other})" if recovered else other
        if not recovered:
            raise KeyError(name)
        return recovered

    return fill


def _same_as(column: Any) -> tuple[str, str]:
    """Return the column whose value is the default of `column`, in the form of RECOVERED."""
    other = getattr(column.default, "arg", None)
    return (other.column, f"{column.table.name}.{other.column}") if isinstance(other, SameAs) else ("", "")


def _placeholder(column: Any, row_number: str, current_time: str) -> str:
    """Return the default of the model, else a value that no program would write; unique in a key."""
    default = column.default
    if default is not None and default.is_scalar:
        value = default.arg
        return f"'{value}'" if isinstance(value, str) else str(value).lower()
    kind = column.type
    if isinstance(kind, UTCDateTime):
        return current_time
    if isinstance(kind, Boolean):
        return "false"
    is_key = column.primary_key or any(
        column.name in unique.columns for unique in column.table.constraints if isinstance(unique, UniqueConstraint)
    )
    if isinstance(kind, Text):
        return f"'{LOST}-' || {row_number}" if is_key else f"'{LOST}'"
    if isinstance(kind, (Integer, Double)):
        return row_number if is_key else "1"
    raise KeyError(column.name)
