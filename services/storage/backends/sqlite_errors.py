"""Which StorageError an error of SQLite becomes: by its error name, or by its message where the driver names none."""

import re
from typing import Final

from ..errors import (
    BusyError,
    ConflictError,
    ConstraintError,
    CorruptError,
    FullError,
    NotInitializedError,
    ReadOnlyError,
    SchemaDamagedError,
    StorageError,
    UnreachableError,
)
from .base import OWN_TABLES, error_of_kind

# Prefixes of SQLite's error names (https://sqlite.org/rescode.html); the first match counts.
ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("SQLITE_BUSY", BusyError),
    ("SQLITE_LOCKED", BusyError),
    ("SQLITE_FULL", FullError),
    ("SQLITE_IOERR_SHMSIZE", FullError),
    ("SQLITE_READONLY", ReadOnlyError),
    ("SQLITE_CORRUPT_VTAB", SchemaDamagedError),  # a search index that does not match the prompts
    ("SQLITE_CORRUPT", CorruptError),
    ("SQLITE_NOTADB", CorruptError),
    ("SQLITE_CANTOPEN", UnreachableError),
    ("SQLITE_PERM", UnreachableError),
    ("SQLITE_AUTH", UnreachableError),
    ("SQLITE_CONSTRAINT_UNIQUE", ConflictError),
    ("SQLITE_CONSTRAINT_PRIMARYKEY", ConflictError),
    ("SQLITE_CONSTRAINT_ROWID", ConflictError),
    ("SQLITE_CONSTRAINT", ConstraintError),
    ("SQLITE_TOOBIG", ConstraintError),
)

# What sqlite3_errstr() says (https://sqlite.org/c3ref/errcode.html): the errors of pysqlite3's backup() have no names.
NAMES: Final = {
    "database is locked": "SQLITE_BUSY",
    "database or disk is full": "SQLITE_FULL",
    "disk I/O error": "SQLITE_IOERR",
    "attempt to write a readonly database": "SQLITE_READONLY",
    "database disk image is malformed": "SQLITE_CORRUPT",
    "file is not a database": "SQLITE_NOTADB",
    "unable to open database file": "SQLITE_CANTOPEN",
}


def translate(error: BaseException) -> StorageError | None:
    """Return the StorageError for `error`, or None if there is no specific one."""
    # By the attribute, not by the class: each driver module has classes of its own.
    code = getattr(error, "sqlite_errorname", None) or NAMES.get(str(error), "")
    if code == "SQLITE_CONSTRAINT" and str(error).startswith("UNIQUE constraint failed"):
        code = "SQLITE_CONSTRAINT_UNIQUE"  # pysqlite3 gives no extended codes
    if code == "SQLITE_ERROR":
        kind_of_missing = _kind_of_missing(str(error))
        return kind_of_missing(orig=error) if kind_of_missing else None
    if code == "SQLITE_CORRUPT" and type(error).__module__.startswith("pysqlite3"):
        # It may be SQLITE_CORRUPT_VTAB.
        return CorruptError(
            "The file or its search index is damaged: run `dgx-storage check --fix`, which repairs the index. If the "
            "file is damaged, restore a backup.",
            orig=error,
        )
    if code.startswith("SQLITE_IOERR") and code != "SQLITE_IOERR_SHMSIZE":
        return UnreachableError(
            f"The database cannot be read or written ({error}): check the disk, its free space and your quota.",
            orig=error,
        )
    for prefix, kind in ERRORS:
        if code.startswith(prefix):
            # This part of the message names the constraint and its columns, never a value.
            return error_of_kind(kind, error, str(error).partition("constraint failed: ")[2])
    return None


def _kind_of_missing(message: str) -> type[StorageError] | None:
    """Return the error for a table or column that does not exist, or None if it is not this library's."""
    found = re.fullmatch(r"no such (table|column): (?:\w+\.)?(\w+)", message)
    if found is None:
        return None
    kind, name = found.groups()
    # The columns of the search index: a tool that rebuilds prompts leaves them out.
    if (kind, name) in {("table", "prompts_fts"), ("column", "words"), ("column", "folded")}:
        return SchemaDamagedError
    return NotInitializedError if kind == "table" and name in OWN_TABLES else None
