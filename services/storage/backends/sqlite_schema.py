"""What migrations ask of SQLite: what is in the file, what stands in the way, which objects can be created again."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, event

from ..models import Base
from .base import DerivedObject, Obstacle

# Litestream keeps its position in these tables of every database that it replicates.
TOOL_TABLES = ("_litestream_",)
# SQLite's messages about a name that is taken, without quotes and the name of the schema
EXISTS = (
    re.compile(r"there is already (?:a|an) (?P<kind>table|index|view) named (?P<name>.+)"),
    re.compile(r".*?(?P<kind>table|index|view|trigger) (?P<name>\S+) already exists"),
)
COLUMN_EXISTS = re.compile(r"duplicate column name: (.+)")
ALTERED_TABLE = re.compile(r"ALTER TABLE (\w+)")
TOKEN = r'"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|\'(?:[^\']|\'\')*\'|--[^\n]*|/\*.*?\*/|.'
DERIVED = """
    SELECT type, name, sql FROM sqlite_master
    WHERE type IN ('index', 'trigger') AND sql IS NOT NULL OR sql LIKE 'CREATE VIRTUAL TABLE%'
    ORDER BY CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 ELSE 3 END, name
"""


class SQLiteSchema:
    """The schema dialect of SQLite; see SchemaDialect."""

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

    def find_derived(self, connection: Connection) -> list[DerivedObject]:
        rows = connection.exec_driver_sql(DERIVED).all()
        others = [DerivedObject(kind, name, _normalize(sql), sql) for kind, name, sql in rows]
        return [*_find_columns(connection), *others]

    def drop_derived(self, connection: Connection, derived: DerivedObject) -> None:
        table, _, name = derived.name.rpartition(".")
        statement = f"ALTER TABLE {table} DROP COLUMN {name}" if table else f'DROP {derived.kind} "{name}"'
        connection.exec_driver_sql(statement)

    def create_derived(self, connection: Connection, derived: DerivedObject) -> None:
        connection.exec_driver_sql(derived.sql)


def _find_columns(connection: Connection) -> list[DerivedObject]:
    """Return the columns of our tables that the models lack: what the revisions compute from other columns."""
    derived = []
    for table in Base.metadata.sorted_tables:
        sql = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        definitions = _split_columns(connection.exec_driver_sql(sql, (table.name,)).scalar() or "")
        for row in connection.exec_driver_sql(f"PRAGMA table_xinfo({table.name})"):
            if row.name not in table.columns:
                definition = definitions[row.cid]
                add = f"ALTER TABLE {table.name} ADD COLUMN {definition}"
                derived.append(DerivedObject("column", f"{table.name}.{row.name}", _normalize(definition), add))
    return derived


def _split_columns(sql: str) -> list[str]:
    """Return the definitions in a CREATE TABLE: those of the columns, in their order, then the constraints."""
    parts, depth = [""], 0
    for token in re.findall(TOKEN, sql[sql.find("(") + 1 :], re.DOTALL):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0:
            break
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += " " if token.startswith(("--", "/*")) else token
    return [part.strip() for part in parts]


def _normalize(sql: str) -> str:
    """Return `sql` without what ALTER TABLE and other tools write in another way: spaces, quotes, lower case."""
    return re.sub(r'[\s"`\[\]]', "", sql).lower()
