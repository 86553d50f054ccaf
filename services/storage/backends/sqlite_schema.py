"""What migrations ask of SQLite: what is in the file, what stands in the way, what differs."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, event

from .schema_dialect import Fill, Obstacle, Repair
from .sqlite_ddl import normalize, quote
from .sqlite_schema_repair import PRAGMAS, Contents, compare, read_contents, write_script

# Litestream keeps its position in these tables of every database that it replicates.
TOOL_TABLES = ("_litestream_",)
# SQLite's messages about a name that is taken, without quotes and the name of the schema
EXISTS = (
    re.compile(r"there is already (?:a|an) (?P<kind>table|index|view) named (?P<name>.+)"),
    re.compile(r".*?(?P<kind>table|index|view|trigger) (?P<name>\S+) already exists"),
)
COLUMN_EXISTS = re.compile(r"duplicate column name: (.+)")
ALTERED_TABLE = re.compile(r"ALTER TABLE (\w+)")
OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"


class SQLiteSchema:
    """The schema dialect of SQLite; see SchemaDialect."""

    row_number = "rowid"
    current_time = "strftime('%Y-%m-%d %H:%M:%f', 'now')"

    def own_schema(self, connection: Connection) -> None:
        return None

    def ignored_tables(self, connection: Connection) -> set[str]:
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
        return {name for name in names if name.startswith(TOOL_TABLES)}

    def find_obstacle(self, error: Any) -> Obstacle | None:
        driver_error = error.orig
        if getattr(driver_error, "sqlite_errorname", "") != "SQLITE_ERROR":
            return None
        message = str(driver_error)
        for pattern in EXISTS:
            if found := pattern.match(re.sub("main'?\\.|['\"]", "", message)):
                return Obstacle(f"the {found['kind']} {found['name']}", exists=True)
        if found := COLUMN_EXISTS.match(message):
            table = ALTERED_TABLE.match(getattr(error, "statement", None) or "")
            return Obstacle(f"the column {table[1]}.{found[1]}" if table else f"the column {found[1]}", exists=True)
        return Obstacle(f"an object is in the way ({message})", exists=False)

    @contextmanager
    def empty_schema(self, connection: Connection) -> Iterator[Connection]:
        engine = create_engine("sqlite://", poolclass=NullPool)

        @event.listens_for(engine, "connect")
        def configure(driver: sqlite3.Connection, record: Any) -> None:
            driver.isolation_level = None

        with engine.connect() as scratch:
            yield scratch

    def read_schema(self, connection: Connection) -> Contents:
        return read_contents(connection.exec_driver_sql(OBJECTS).all())

    def compare_schemas(self, expected: Contents, present: Contents, fill: Fill) -> list[Repair]:
        return compare(expected, present, fill)

    def drop_derived(self, expected: Contents, present: Contents, *, only_equal: bool) -> list[str]:
        kind = "virtual table"
        return [
            f"DROP TABLE {quote(found.name)}"
            for name, found in present.others[kind].items()
            if name in expected.others[kind]
            and (not only_equal or normalize(found.sql) == normalize(expected.others[kind][name].sql))
        ]

    def write_script(self, statements: list[str], schema: str | None) -> str:
        return write_script(statements)

    def run_repair(self, connection: Connection, statements: tuple[str, ...]) -> None:
        for pragma in PRAGMAS:
            connection.exec_driver_sql(f"PRAGMA {pragma} = ON")
        try:
            for statement in statements:
                connection.exec_driver_sql(statement)
        finally:
            for pragma in PRAGMAS:
                connection.exec_driver_sql(f"PRAGMA {pragma} = OFF")
