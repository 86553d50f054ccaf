"""Return unused space of a database to the file system."""

from dataclasses import dataclass
from typing import Final

from ..engine import Storage, get_storage, translate_errors
from ..models import Base
from ..serialization import Report
from .pacing import Pace, try_again

MOST_PAGES_AT_ONCE: Final = 2_048
LOG_SECONDS: Final = 2.0  # then whoever writes the log next makes the file smaller


@dataclass(frozen=True)
class Optimization(Report):
    """The size of the database before and after, and what is still unused inside its file, in bytes."""

    size_before_bytes: int
    size_bytes: int
    unused_bytes: int


def optimize_database(*, full: bool = False, storage: Storage | None = None) -> Optimization:
    """Return unused space to the file system; return the sizes before and after.

    SQLite: in steps of about 1 MB, while others write. A file that an older release created keeps its unused space for
    new rows until `full` rebuilds it; others wait meanwhile, and it needs twice the space. PostgreSQL: VACUUM, or with
    `full` VACUUM FULL, for which others wait too. Raises BusyError if others hold the database for too long.
    """
    storage = storage or get_storage()
    storage.require_schema()
    with storage.engine.connect() as connection:
        before, _ = storage.backend.measure_space(connection)
    vacuum(storage, full=full)
    with storage.engine.connect() as connection:
        after, unused = storage.backend.measure_space(connection)
    return Optimization(before, after, unused)


def vacuum(storage: Storage, *, full: bool = False) -> None:
    """Do what optimize_database() does, without measuring."""
    if full or not storage.is_memory:
        engine = storage.backend.create_migration_engine(
            storage.url, storage.options
        )  # no timeouts; temporary tables are in a file
        translate_errors(engine)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            storage.backend.vacuum(connection, list(Base.metadata.tables), full=full)
    pace = Pace(most_rows=MOST_PAGES_AT_ONCE)
    while pace.run_in_transaction(
        storage, lambda session: storage.backend.release_pages(session.connection(), pace.rows)
    ):
        pass
    with storage.engine.connect() as connection:
        # The file gets smaller when the whole log is in it, which a reader or a writer prevents for a moment.
        try_again(LOG_SECONDS, lambda: storage.backend.write_log(connection))
