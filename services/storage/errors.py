"""The exceptions of the library. The docstring of a class is its default message, which ends with what to do."""

from collections.abc import Sequence
from typing import Any


class StorageError(Exception):
    """The storage operation failed."""

    def __init__(self, message: str | None = None, *, orig: BaseException | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.orig = orig


class DatabaseURLError(StorageError, ValueError):
    """The database URL cannot be read: write it as sqlite:///path/to/file.db or postgresql://user@host/name."""


class NotInitializedError(StorageError, RuntimeError):
    """The database has no tables yet: call init_db(), or run `dgx-storage init` or `just db-init`."""


class SchemaOutdatedError(StorageError):
    """The database has an older schema: back it up, then run `dgx-storage migrate` or `just db-migrate`."""


class SchemaTooNewError(StorageError):
    """The database is at a revision this release does not know: upgrade dgx-music-storage, or restore a backup."""


class SchemaDamagedError(StorageError):
    """Something of the schema is missing or differs: `dgx-storage check` names it, and `check --fix` repairs it."""


class ForeignDatabaseError(StorageError):
    """The database holds other tables, not this library's: point DATABASE_URL at another one. Nothing was changed."""


class MigrationsMissingError(StorageError):
    """The folder of migrations is not this release's: install the package, or replace the folder alembic/ too."""


class CopyError(StorageError):
    """The copy was refused: the target must be empty, and every row of the source valid."""

    def __init__(
        self, message: str | None = None, *, refused: Sequence[Any] = (), orig: BaseException | None = None
    ) -> None:
        super().__init__(message, orig=orig)
        self.refused = tuple(refused)


class BackupError(StorageError):
    """The backup was refused: check the path, and that the file is a sound backup of this library."""


class TransferError(StorageError, ValueError):
    """The export or import was refused: correct the file, at the line that the message names."""

    def __init__(
        self,
        message: str | None = None,
        *,
        line: int | None = None,
        field: str | None = None,
        orig: BaseException | None = None,
    ) -> None:
        super().__init__(message, orig=orig)
        self.line = line
        self.field = field


class PruneError(StorageError):
    """The prune was refused, because it would delete suspiciously much: look at a dry run, then pass force."""


class IllegalTransitionError(StorageError, ValueError):
    """The generation cannot change to that status: read its current status first."""

    def __init__(self, current: str | None = None, target: str | None = None) -> None:
        message = None
        if current is not None and current == target:
            message = f"the generation is already {current}, and its result is stored: a second one is refused"
        elif current is not None:
            message = f"status cannot change from {current!r} to {target!r}: see LEGAL_MOVES in services.storage.schema"
        super().__init__(message)
        self.current = current
        self.target = target

    def __reduce__(self) -> tuple[type["IllegalTransitionError"], tuple[str | None, str | None]]:
        return type(self), (self.current, self.target)  # pickle would pass the message as `current`


class LeaseLostError(StorageError):
    """The lease is no longer this worker's: the generation was reclaimed, finished or deleted; discard the result."""


class ConflictError(StorageError):
    """Another writer created, changed or deleted the row first: read it again before you retry."""


class ConstraintError(StorageError, ValueError):
    """The database refused a value that violates a constraint: correct the value."""


class InvalidCursorError(StorageError, ValueError):
    """The cursor does not belong to this query: start again from the first page."""


class ReadOnlyError(StorageError):
    """The database or session is read-only: write in a session of the primary, or correct the file's permissions."""


class FullError(StorageError):
    """The disk or the database is full: free some space; nothing was half-written."""


class CorruptError(StorageError):
    """The database is damaged, or the file is not an SQLite database: restore a backup."""


class UnreachableError(StorageError):
    """The database cannot be opened: check DATABASE_URL, the folder and its permissions, or that the server runs."""


class AccessDeniedError(StorageError):
    """The database user lacks a privilege: make it the owner of the database, or GRANT it the privilege."""


class UnsafeOpenError(StorageError):
    """The process was forked while it had the database open: close all sessions before a fork, or use spawn."""


class DriverMissingError(StorageError, ImportError):
    """The driver for this database is not installed: pip install 'dgx-music-storage[postgres]'."""


class PoolTimeoutError(StorageError, TimeoutError):
    """No connection became free in time: close sessions sooner or raise pool_size."""


class RetryableError(StorageError):
    """The transaction was rolled back and may succeed if run again: use run_in_transaction()."""


class BusyError(RetryableError):
    """Another writer held the database for longer than the busy timeout: keep transactions short, then try again."""


class SerializationError(RetryableError):
    """The transaction conflicted with a concurrent one and was rolled back: use run_in_transaction()."""


class StatementTimeoutError(StorageError, TimeoutError):
    """The database cancelled a statement that ran for too long: narrow the query or raise the timeout."""


class DisconnectedError(RetryableError):
    """The connection was lost before the commit, so the transaction was rolled back: use run_in_transaction()."""


class CommitUnknownError(StorageError):
    """The connection was lost during the commit: check whether the transaction was committed before you repeat it."""
