"""The size of a PostgreSQL database, and VACUUM."""

from collections.abc import Sequence

from sqlalchemy import Connection


class PostgreSQLSpace:
    """The space that a PostgreSQL database takes; see SpaceDialect."""

    def measure_space(self, connection: Connection) -> tuple[int, int]:
        size = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
        return int(size), 0

    def measure_log(self, connection: Connection) -> int | None:
        allowed = "SELECT has_function_privilege('pg_ls_waldir()', 'execute')"  # members of pg_monitor may
        if not connection.exec_driver_sql(allowed).scalar_one():
            return None
        return int(connection.exec_driver_sql("SELECT coalesce(sum(size), 0) FROM pg_ls_waldir()").scalar_one())

    def release_pages(self, connection: Connection, count: int) -> bool:
        return False

    def vacuum(self, connection: Connection, tables: Sequence[str], *, full: bool) -> None:
        connection.exec_driver_sql(f"VACUUM ({'FULL, ' if full else ''}ANALYZE) {', '.join(tables)}")

    def write_log(self, connection: Connection) -> bool:
        return True
