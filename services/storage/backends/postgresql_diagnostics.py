"""What PostgreSQL says about a database: its version, its last checkpoint, and sequences that are behind."""

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from ..errors import StorageError
from .postgresql_catalog import read_objects
from .schema_dialect import EngineDiagnostics, FileMode, LowSequence

CHECKPOINT = text("SELECT extract(epoch FROM clock_timestamp() - checkpoint_time) FROM pg_control_checkpoint()")


class PostgreSQLDiagnostics:
    """The diagnostics dialect of PostgreSQL; see DiagnosticsDialect."""

    def read_diagnostics(self, connection: Connection) -> EngineDiagnostics:
        version = f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"
        age: float | None = None
        try:
            with connection.begin_nested():
                age = float(connection.scalar(CHECKPOINT) or 0.0)
        except (DBAPIError, StorageError):
            pass  # not every user may ask
        return EngineDiagnostics(version, (), None, None, age, None)

    def find_open_files(self, url: URL) -> list[FileMode]:
        return []

    def find_low_sequences(self, connection: Connection) -> list[LowSequence]:
        found = []
        for owned in (one for one in read_objects(connection) if one.kind == "owner of"):
            may_read = text("SELECT has_sequence_privilege(:name, 'SELECT')")
            if not connection.scalar(may_read, {"name": owned.name}):
                continue
            key = owned.definition.removeprefix(f"{owned.table}.")
            next_key = f"(SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END FROM {owned.name})"
            if connection.exec_driver_sql(f"SELECT max({key}) >= {next_key} FROM {owned.table}").scalar():
                found.append(LowSequence(owned.name, owned.create[-1]))
        return found
