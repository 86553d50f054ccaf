"""Compare the schema of a database with what the revisions create, and repair what differs. See ADR 36.

The revisions, run in an empty schema beside the database, say what every object has to be, so there is no list of them.
"""

from contextlib import suppress
from typing import Any, Final

from alembic import command
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..backends.schema_dialect import Difference, Repair
from ..engine import Storage
from ..errors import NotInitializedError, StorageError
from ..schema import get_schema_version
from .backfill_values import fill_on
from .connections import connect, exclusive
from .recognition import VERSION_TABLE, find_missing, read_revision
from .scripts import run

STAMP: Final = (
    f"INSERT INTO {VERSION_TABLE} (version_num) SELECT '{get_schema_version()}' "
    f"WHERE NOT EXISTS (SELECT 1 FROM {VERSION_TABLE})"
)
ROUNDS: Final = 3  # a repair may bring to light what was hidden, such as the rule of a column that was missing

# What the revisions create, by database system and version of the server; the definitions hold no name of a schema.
_expected: dict[Any, Any] = {}


def find_drift(storage: Storage) -> list[Repair]:
    """Return the repairs of what is missing or differs, in the order in which to run them; [] if nothing is.

    Raises AccessDeniedError or ReadOnlyError on PostgreSQL if this user may not create the schema in which the
    revisions are run for the comparison, and NotInitializedError for a database that is not at the head.
    """
    with connect(storage) as connection:
        return compare(connection)


def find_differences(storage: Storage) -> list[str]:
    """Return which objects are missing or differ, in words, without what others added to ours; [] if none."""
    repairs = [repair for repair in find_drift(storage) if not repair.is_kept]
    return [str(difference) for repair in repairs for difference in repair.differences]


def is_head_without_version(storage: Storage) -> bool:
    """Return whether a database has all tables and columns of the head, but not its revision."""
    with connect(storage) as connection:
        return read_revision(connection) is None and not find_missing(connection, baseline=False)


def repair(storage: Storage) -> dict[Difference, StorageError | None]:
    """Repair what differs, in one transaction; return each difference, and the error if its repair failed.

    What others added is kept. A repair that fails changes nothing, and the others are made all the same.
    """
    if not any(not repair.is_kept for repair in find_drift(storage)):
        return {}
    with exclusive(storage, accept_partial=True, accept_damaged=True) as connection:
        return _repair(connection)


def recreate(connection: Connection) -> None:
    """Repair what differs, in the transaction of `connection`. Raises the first error of a repair."""
    for error in _repair(connection).values():
        if error is not None:
            raise error


def compare(connection: Connection) -> list[Repair]:
    """Return what find_drift() does, on a connection."""
    revision = read_revision(connection)
    if revision is None and find_missing(connection, baseline=False):
        raise NotInitializedError
    backend = backend_for(connection)
    repairs: list[Repair] = backend.compare_schemas(
        expected_schema(connection), backend.read_schema(connection), fill_on(connection)
    )
    if revision is None:
        problem = "has no row with the revision"
        repairs.append(Repair((Difference("table", VERSION_TABLE, problem),), (STAMP,)))
    return repairs


def expected_schema(connection: Connection) -> Any:
    """Return the schema that the revisions create on this database system, as its backend reads it.

    Raises AccessDeniedError on PostgreSQL if the user may not create a schema.
    """
    backend = backend_for(connection)
    key = backend.name, connection.dialect.server_version_info
    if key not in _expected:
        with backend.empty_schema(connection) as scratch:
            run(command.upgrade, scratch, "head")
            _expected[key] = backend.read_schema(scratch)
    return _expected[key]


def _repair(connection: Connection) -> dict[Difference, StorageError | None]:
    backend = backend_for(connection)
    outcomes: dict[Difference, StorageError | None] = {}
    for _ in range(ROUNDS):
        repairs = [one for one in compare(connection) if not one.is_kept and one.statements]
        repairs = [one for one in repairs if not any(outcomes.get(difference) for difference in one.differences)]
        for one in repairs:
            error: StorageError | None = None
            try:
                with connection.begin_nested():
                    backend.run_repair(connection, one.statements)
            except (DBAPIError, StorageError) as failure:
                error = failure if isinstance(failure, StorageError) else StorageError(str(failure.orig), orig=failure)
            outcomes |= dict.fromkeys(one.differences, error)
        if not repairs:
            break
    if any(difference.kind != "index" for difference in outcomes):
        _update_search_index(connection)
    return outcomes


def _update_search_index(connection: Connection) -> None:
    """Rebuild a search index that does not match the prompts, unless something that it consists of is still missing."""
    backend = backend_for(connection)
    with (
        suppress(DBAPIError, StorageError),
        Session(connection, join_transaction_mode="create_savepoint") as session,
    ):
        if not backend.check_search_index(session):
            backend.rebuild_search_index(session)
        session.commit()
