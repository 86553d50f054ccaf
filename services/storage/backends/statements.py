"""Which statements write: decides when a transaction begins, and what a read-only session refuses."""

from typing import Any, Final

from sqlalchemy import CompoundSelect, ExecutionContext, Select

READING: Final = ("SELECT", "VALUES", "PRAGMA", "EXPLAIN", "SHOW")
TRANSACTION_CONTROL: Final = ("BEGIN", "COMMIT", "ROLLBACK", "RELEASE", "VACUUM", "ATTACH", "DETACH", "SET")


def is_write(statement: str, context: ExecutionContext | None) -> bool:
    """Tell whether a statement changes the database. In doubt it does: a comment before SELECT counts as a write."""
    word = statement.lstrip()[:10].upper()
    if word.startswith((*READING, *TRANSACTION_CONTROL)):
        return False
    if word.startswith("WITH"):
        compiled: Any = getattr(context, "compiled", None)
        # Text may lead to DELETE, and SQLAlchemy cannot see it there.
        is_select = isinstance(getattr(compiled, "statement", None), (Select, CompoundSelect))
        return not is_select or bool(compiled.isinsert or compiled.isupdate or compiled.isdelete)
    return True


def is_refused_when_reading(statement: str, context: ExecutionContext | None) -> bool:
    """Tell whether a read-only session must not run a statement: it writes, or changes the file or the connection."""
    word = statement.lstrip()[:10].upper()
    setting = word.startswith("PRAGMA") and "=" in statement
    return setting or word.startswith(("VACUUM", "ATTACH", "DETACH")) or is_write(statement, context)
