"""Objects that hold no data of their own: indexes, triggers, functions, the search index. Compare, create again.

The revisions, run in an empty schema beside the database, say what these objects have to be.
"""

from alembic import command
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..backends.base import DerivedObject
from ..engine import Storage
from .connections import connect, exclusive
from .scripts import run


def find_differences(storage: Storage) -> list[str]:
    """Return which objects are missing or differ from what the revisions create, in words; [] if none."""
    with connect(storage) as connection:
        return [_describe(wanted, present) for wanted, present in compare(connection)]


def repair(storage: Storage) -> list[str]:
    """Create the objects that are missing or differ, in one transaction; return them as find_differences() does."""
    if not find_differences(storage):
        return []
    with exclusive(storage) as connection:
        return recreate(connection)


def recreate(connection: Connection) -> list[str]:
    """Create the objects that are missing or differ, in the transaction of `connection`; rebuild the search index."""
    backend = backend_for(connection)
    descriptions: list[str] = []
    for _ in range(2):  # the second time those that went with another object, as an index with its column
        different = compare(connection)
        for wanted, present in reversed(different):
            if present is not None and not wanted.sql.startswith("CREATE OR REPLACE"):
                backend.drop_derived(connection, present)
        for wanted, _present in different:
            backend.create_derived(connection, wanted)
        descriptions += [_describe(wanted, present) for wanted, present in different]
    if any(not description.startswith("the index") for description in descriptions):
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            backend.rebuild_search_index(session)
            session.commit()
    return descriptions


def compare(connection: Connection) -> list[tuple[DerivedObject, DerivedObject | None]]:
    """Return the objects to create again, in the order in which they need each other, and what stands there now."""
    present = {(one.kind, one.name): one for one in backend_for(connection).find_derived(connection)}
    pairs = [(wanted, present.get((wanted.kind, wanted.name))) for wanted in expected_objects(connection)]
    return [(wanted, found) for wanted, found in pairs if wanted != found]


def expected_objects(connection: Connection) -> list[DerivedObject]:
    """Return the objects that the revisions create on this database system, each after those that it needs.

    Raises AccessDeniedError on PostgreSQL if the user may not create a schema.
    """
    backend = backend_for(connection)
    with backend.empty_schema(connection) as scratch:
        run(command.upgrade, scratch, "head")
        return backend.find_derived(scratch)


def _describe(wanted: DerivedObject, present: DerivedObject | None) -> str:
    return (
        f"the {wanted.kind} {wanted.name} {'is missing' if present is None else 'differs from that of the revisions'}"
    )
