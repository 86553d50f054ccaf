"""Which StorageError a psycopg error becomes: by its SQLSTATE, or by the text of an error from before one is known."""

import re
from typing import Final

from ..errors import (
    AccessDeniedError,
    BusyError,
    CommitUnknownError,
    ConflictError,
    ConstraintError,
    CorruptError,
    DisconnectedError,
    FullError,
    NotInitializedError,
    ReadOnlyError,
    SchemaDamagedError,
    SerializationError,
    StatementTimeoutError,
    StorageError,
    UnreachableError,
)
from .base import OWN_TABLES, Phase, error_of_kind

# Prefixes of SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html); the first match counts.
ERRORS: tuple[tuple[str, type[StorageError]], ...] = (
    ("40001", SerializationError),
    ("40P01", SerializationError),
    ("40003", DisconnectedError),
    ("55P03", BusyError),
    ("53300", BusyError),
    ("57014", StatementTimeoutError),
    ("57P0", DisconnectedError),
    ("25P03", DisconnectedError),
    ("08", DisconnectedError),
    ("25006", ReadOnlyError),
    ("53100", FullError),
    ("23505", ConflictError),
    ("23", ConstraintError),
    ("22", ConstraintError),
    ("54", ConstraintError),
    ("42P10", SchemaDamagedError),  # ON CONFLICT without the unique index that it names
    ("42501", AccessDeniedError),
    ("0A000", ReadOnlyError),  # a standby refuses SQLAlchemy's request for a READ WRITE transaction
    ("28", UnreachableError),
    ("3D000", UnreachableError),
    ("58", UnreachableError),
    ("XX001", CorruptError),
    ("XX002", CorruptError),
)

# psycopg gives no SQLSTATE for a connection that the server or the network refused, only libpq's text. With several
# hosts it holds one line for each; the first pattern that is found counts. A server that reports errors in another
# language gives an UnreachableError.
CONNECTION_ERRORS: Final[tuple[tuple[str, type[StorageError], str], ...]] = (
    (
        r"too many (clients|connections)|connection slots are reserved|no more connections allowed",
        BusyError,
        "The server accepts no more connections now: try again, or lower DATABASE_POOL_SIZE or raise max_connections",
    ),
    (
        r"(password|authentication) .*failed|no password supplied|no pg_hba\.conf entry|role .* does not exist",
        UnreachableError,
        "the server refused the user or the password: check DATABASE_URL and pg_hba.conf",
    ),
    (
        r"database .* does not exist",
        UnreachableError,
        "the server has no database of that name: check DATABASE_URL, or create it with createdb",
    ),
    (
        r"could not translate host name|[Nn]ame or service not known|failed to resolve host",
        UnreachableError,
        "the host is unknown: check DATABASE_URL",
    ),
    (
        r"[Cc]onnection refused|[Nn]o route to host|[Nn]etwork is unreachable|timeout|No such file",
        UnreachableError,
        "no server answers there: check DATABASE_URL, or that the server runs",
    ),
)


def translate(error: BaseException, *, phase: Phase, is_disconnect: bool) -> StorageError | None:
    """Return the StorageError for `error`, or None if there is no specific one."""
    import psycopg  # here, because it is an extra: certainly installed only once PostgreSQL is in use

    if not isinstance(error, psycopg.Error):
        return None
    diagnosis, state = error.diag, error.sqlstate or ""
    if diagnosis.message_primary:
        # Keep only the primary message: the detail and the context may quote a prompt. In class 22 (bad values) the
        # primary message may do so too.
        error.args = (type(error).__name__ if state.startswith("22") else diagnosis.message_primary,)
    kind = next((kind for prefix, kind in ERRORS if state.startswith(prefix)), None)
    kind = kind or _kind_of_lost_object(state, diagnosis.message_primary or "")
    if phase == "connect" and kind in (None, DisconnectedError):
        return _translate_refusal(error)
    if is_disconnect and kind is not ReadOnlyError:
        kind = DisconnectedError
    if phase == "commit" and kind is DisconnectedError:
        kind = CommitUnknownError  # the answer to COMMIT is lost, so repeating could do everything twice
    return None if kind is None else error_of_kind(kind, error, diagnosis.constraint_name or diagnosis.column_name)


def _kind_of_lost_object(state: str, message: str) -> type[StorageError] | None:
    """Return the error for a table, column or function that does not exist, or None if it is not this library's."""
    if state == "42P01":
        names = [name.rpartition(".")[2] for name in re.findall(r'"([^"]+)"', message)]
        return NotInitializedError if not names or OWN_TABLES.intersection(names) else None
    is_search = (state == "42883" and "prompt_words(" in message) or (state == "42703" and ".words" in message)
    return SchemaDamagedError if is_search else None


def _translate_refusal(error: BaseException) -> StorageError:
    text = str(error)
    for pattern, kind, message in CONNECTION_ERRORS:
        if re.search(pattern, text):
            prefix = "The database cannot be opened, because " if kind is UnreachableError else ""
            return kind(f"{prefix}{message}.", orig=error)
    return UnreachableError(orig=error)
