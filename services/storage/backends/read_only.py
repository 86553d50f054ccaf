"""Classify SQL statements: which ones write, and which ones a read-only session refuses."""

import re
from typing import Any, Final

from sqlalchemy import CompoundSelect, ExecutionContext, Select

READING: Final = frozenset({"SELECT", "VALUES", "EXPLAIN", "SHOW", "PRAGMA"})
CONTROL: Final = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "RELEASE", "VACUUM", "ATTACH", "DETACH", "SET"})

# A comment that contains another one is none: PostgreSQL nests them, SQLite does not.
COMMENT: Final = r"--[^\n]*(?:\n|\Z)|/\*(?:(?!/\*|\*/).)*\*/"
BEFORE_KEYWORD: Final = re.compile(rf"(?:[\s(]|{COMMENT})*", re.DOTALL)
KEYWORD: Final = re.compile(r"[A-Za-z]*")
# Two patterns that are compiled when a read-only session needs them, because that takes a millisecond.
NOT_CODE: Final = rf"(?s:'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|{COMMENT})"
PRAGMA: Final = r"(?i)\s*PRAGMA\s+(?:\w+\.)?(?P<name>\w+)\s*(?P<argument>\([^()]*\))?[\s;]*"
# The PRAGMAs whose argument says what to read (https://sqlite.org/pragma.html); any other argument is a new setting.
WITH_ARGUMENT: Final = frozenset(
    {
        *("table_info", "table_xinfo", "table_list", "index_info", "index_xinfo", "index_list"),
        *("foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"),
    }
)
ACTIONS: Final = frozenset({"optimize", "wal_checkpoint", "incremental_vacuum", "shrink_memory"})


def keyword_of(statement: str) -> str:
    """Return the first word of a statement in upper case, after comments and opening parentheses; "" without one."""
    found = BEFORE_KEYWORD.match(statement)
    start = found.end() if found else 0
    word = KEYWORD.match(statement, start)
    return word.group().upper() if word else ""


def is_write(statement: str, context: ExecutionContext | None) -> bool:
    """Return whether a statement may change the database; true for any it does not recognize."""
    keyword = keyword_of(statement)
    if keyword in READING or keyword in CONTROL:
        return False
    if keyword == "WITH":
        compiled: Any = getattr(context, "compiled", None)
        # text() may contain WITH … DELETE, which SQLAlchemy does not parse, so only its own SELECT counts as reading.
        is_select = isinstance(getattr(compiled, "statement", None), (Select, CompoundSelect))
        return not is_select or bool(compiled.isinsert or compiled.isupdate or compiled.isdelete)
    return True


def is_refused_when_reading(statement: str, context: ExecutionContext | None) -> bool:
    """Return whether a read-only session must not run a statement: it may change the data, the file or a setting."""
    keyword = keyword_of(statement)
    if keyword == "PRAGMA":
        return not _is_reading_pragma(statement)
    if keyword in CONTROL or is_write(statement, context):
        return True  # SET TRANSACTION READ WRITE would end the protection, other settings would stay in the pool
    return ";" in statement and _has_several(statement)


def _is_reading_pragma(statement: str) -> bool:
    pragma = re.fullmatch(PRAGMA, re.sub(NOT_CODE, " ", statement))
    if pragma is None:
        return False
    name = pragma["name"].lower()
    return name in WITH_ARGUMENT if pragma["argument"] else name not in ACTIONS


def _has_several(statement: str) -> bool:
    """Return whether the text may hold several statements, such as `SELECT 1; COMMIT; DELETE …` (PostgreSQL runs all).

    In doubt it does: a backslash or a dollar may be part of PostgreSQL's other kinds of quotes.
    """
    return "\\" in statement or "$" in statement or ";" in re.sub(NOT_CODE, " ", statement).rstrip("; \t\r\n")
