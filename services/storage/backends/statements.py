"""Classify SQL statements: which ones write, and which ones a read-only session refuses."""

from typing import Any, Final

from sqlalchemy import CompoundSelect, ExecutionContext, Select

READING: Final = ("SELECT", "VALUES", "PRAGMA", "EXPLAIN", "SHOW")
TRANSACTION_CONTROL: Final = ("BEGIN", "COMMIT", "ROLLBACK", "RELEASE", "VACUUM", "ATTACH", "DETACH", "SET")


def is_write(statement: str, context: ExecutionContext | None) -> bool:
    """Return whether a statement may change the database; true for any it does not recognize, as `/* … */ SELECT`."""
    keyword = statement.lstrip()[:10].upper()
    if keyword.startswith((*READING, *TRANSACTION_CONTROL)):
        return False
    if keyword.startswith("WITH"):
        compiled: Any = getattr(context, "compiled", None)
        # text() may contain WITH … DELETE, which SQLAlchemy does not parse, so only its own SELECT counts as reading.
        is_select = isinstance(getattr(compiled, "statement", None), (Select, CompoundSelect))
        return not is_select or bool(compiled.isinsert or compiled.isupdate or compiled.isdelete)
    return True


def is_refused_when_reading(statement: str, context: ExecutionContext | None) -> bool:
    """Return whether a read-only session must not run a statement: it may change the data, the file or a setting."""
    keyword = statement.lstrip()[:10].upper()
    sets_pragma = keyword.startswith("PRAGMA") and "=" in statement
    return sets_pragma or keyword.startswith(("VACUUM", "ATTACH", "DETACH")) or is_write(statement, context)
