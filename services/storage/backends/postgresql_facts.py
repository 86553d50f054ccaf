"""What PostgreSQL says about a database: its version, its last checkpoint, and sequences that are behind."""

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from ..errors import StorageError
from .schema_dialect import EngineFacts, FileMode

CHECKPOINT = text("SELECT extract(epoch FROM clock_timestamp() - checkpoint_time) FROM pg_control_checkpoint()")


class PostgreSQLFacts:
    """The facts dialect of PostgreSQL; see FactsDialect."""

    def read_facts(self, connection: Connection) -> EngineFacts:
        version = f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"
        age: float | None = None
        try:
            with connection.begin_nested():
                age = float(connection.scalar(CHECKPOINT) or 0.0)
        except (DBAPIError, StorageError):
            pass  # not every user may ask
        return EngineFacts(version, (), None, None, age, None)

    def find_open_files(self, url: URL) -> list[FileMode]:
        return []
