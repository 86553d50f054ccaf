"""Connections for migrations: outside the pool, in one transaction under the migration lock."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..engine import Storage, translate_errors
from ..errors import BusyError, ForeignDatabaseError, StorageError
from .recognition import is_empty, read_revision, refuse_foreign


@contextmanager
def connect(storage: Storage) -> Iterator[Connection]:
    """Open a connection for migrations, outside the pool of `storage`."""
    engine = storage.backend.create_migration_engine(storage.url, storage.options)
    translate_errors(engine)
    with engine.connect() as connection:
        yield connection


@contextmanager
def exclusive(storage: Storage, *, accept_partial: bool = False, accept_damaged: bool = False) -> Iterator[Connection]:
    """Open a connection in a transaction that holds the migration lock; commit at the end of the block.

    Raises ForeignDatabaseError, SchemaTooNewError or SchemaDamagedError before anything is written; see
    refuse_foreign() for the options. Also raises, with nothing changed, ForeignDatabaseError if a statement of the
    block meets an object of another program, and BusyError if a lock is not free within the lock timeout.
    """
    with connect(storage) as connection:
        storage.backend.lock_migrations(connection, storage.options)
        refuse_foreign(connection, accept_partial=accept_partial, accept_damaged=accept_damaged)
        has_version = read_revision(connection) is not None
        is_new = is_empty(connection)
        if is_new:  # properties of a file that can only be set before its first page, outside a transaction
            connection.rollback()
            storage.backend.prepare_file(connection)
            storage.backend.lock_migrations(connection, storage.options)
            refuse_foreign(connection, accept_partial=accept_partial, accept_damaged=accept_damaged)
        try:
            yield connection
            connection.commit()
        except (DBAPIError, StorageError) as error:
            explained = _explain(storage, error, has_version)
            if explained is None:
                raise
            raise explained from error
        if not is_new:  # last: a file that was refused stays exactly as it was
            storage.backend.prepare_file(connection)


def _explain(storage: Storage, error: DBAPIError | StorageError, has_version: bool) -> StorageError | None:
    """Return the error that says what is in the way of a migration, or None if nothing is."""
    if isinstance(error, BusyError):
        return BusyError(
            "Another session holds a lock on the tables for longer than the lock timeout: end it (one that is idle in "
            "a transaction keeps its locks), then run the migration again. Nothing was changed.",
            orig=error.orig,
        )
    obstacle = storage.backend.find_obstacle(error) if error.orig else None
    if obstacle is None:
        return None
    if not obstacle.exists:
        message = f"{obstacle.name}: drop it, run the migration, then create it again."
    elif has_version:
        message = f"The database already has {obstacle.name}: rename it, then run the migration again."
    else:
        message = (
            f"The database has no version, yet already has {obstacle.name}: rename it if it is your own, or run "
            "`alembic stamp REVISION` if the version was lost."
        )
    return ForeignDatabaseError(f"{message} Nothing was changed.", orig=error.orig)
