"""Which StorageError an error of SQLite becomes: by its error name."""

from ..errors import (
    BusyError,
    ConflictError,
    ConstraintError,
    CorruptError,
    FullError,
    NotInitializedError,
    ReadOnlyError,
    StorageError,
    UnreachableError,
)
from .base import error_of_kind

# Prefixes of SQLite's error names (https://sqlite.org/rescode.html); the first match counts.
ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("SQLITE_BUSY", BusyError),
    ("SQLITE_LOCKED", BusyError),
    ("SQLITE_FULL", FullError),
    ("SQLITE_READONLY", ReadOnlyError),
    ("SQLITE_CORRUPT", CorruptError),
    ("SQLITE_NOTADB", CorruptError),
    ("SQLITE_CANTOPEN", UnreachableError),
    ("SQLITE_PERM", UnreachableError),
    ("SQLITE_AUTH", UnreachableError),
    ("SQLITE_IOERR", UnreachableError),
    ("SQLITE_CONSTRAINT_UNIQUE", ConflictError),
    ("SQLITE_CONSTRAINT_PRIMARYKEY", ConflictError),
    ("SQLITE_CONSTRAINT_ROWID", ConflictError),
    ("SQLITE_CONSTRAINT", ConstraintError),
    ("SQLITE_TOOBIG", ConstraintError),
)


def translate(error: BaseException) -> StorageError | None:
    """Return the StorageError for `error`, or None if there is no specific one."""
    # By the attribute, not by the class: each driver module has classes of its own.
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_ERROR" and str(error).startswith("no such table"):
        return NotInitializedError(orig=error)
    for prefix, kind in ERRORS:
        if code.startswith(prefix):
            # This part of the message names the constraint and its columns, never a value.
            return error_of_kind(kind, error, str(error).partition("constraint failed: ")[2])
    return None
