"""What migrations ask of PostgreSQL: which schema is ours, what is in the way, what differs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, text

from .postgresql_catalog import read_objects
from .postgresql_schema_repair import Objects, compare, index_by_key
from .schema_dialect import Fill, Obstacle, Repair

# SQLSTATEs of a name that is taken: table, index, view or sequence; column; function; type, constraint or trigger.
EXISTS = ("42P07", "42701", "42723", "42710")
# Something depends on what is dropped or changed; a syntax error or rule that only a foreign object can cause.
IN_THE_WAY = ("2BP01", "0A000", "42")


class PostgreSQLSchema:
    """The schema dialect of PostgreSQL; see SchemaDialect."""

    # The page of a row and its place in it: a page of 8 kB has at most 291 rows.
    row_number = "((ctid::text::point)[0] * 1000 + (ctid::text::point)[1])::integer"
    current_time = "now()"

    def own_schema(self, connection: Connection) -> str | None:
        schema: str | None = connection.scalar(text("SELECT current_schema()"))
        return schema

    def ignored_tables(self, connection: Connection) -> set[str]:
        # spatial_ref_sys of PostGIS, for example
        of_extensions = text(
            "SELECT c.relname FROM pg_class AS c JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass "
            "AND d.objid = c.oid AND d.deptype = 'e' WHERE c.relnamespace = to_regnamespace(current_schema()::text)"
        )
        return set(connection.scalars(of_extensions))

    def find_obstacle(self, error: Any) -> Obstacle | None:
        state = getattr(error.orig, "sqlstate", None) or ""
        message = str(error.orig.diag.message_primary) if hasattr(error.orig, "diag") else ""
        names = re.findall(r'"([^"]+)"', message)
        if state in EXISTS and names:
            kind = message.split()[0]
            if state == "42701" and len(names) == 2:
                return Obstacle(f"the column {names[1]}.{names[0]}", exists=True)
            return Obstacle(f"the {kind} {names[0]}" if kind.isascii() and kind.islower() else names[0], exists=True)
        if state == "42501" or not state.startswith(IN_THE_WAY):
            return None
        # The detail of "other objects depend on it" names them; it holds no values.
        detail = error.orig.diag.message_detail if state == "2BP01" else None
        return Obstacle(detail.replace("\n", ", ") if detail else f"an object is in the way ({message})", exists=False)

    @contextmanager
    def empty_schema(self, connection: Connection) -> Iterator[Connection]:
        name = f"dgx_{uuid4().hex}"
        with connection.begin_nested() as savepoint:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
            connection.exec_driver_sql(f"SET LOCAL search_path = {name}")
            yield connection
            savepoint.rollback()

    def read_schema(self, connection: Connection) -> Objects:
        return index_by_key(read_objects(connection))

    def compare_schemas(self, expected: Objects, present: Objects, fill: Fill) -> list[Repair]:
        return compare(expected, present, fill)

    def drop_derived(self, expected: Objects, present: Objects, *, only_equal: bool) -> list[str]:
        found = [(one, expected.get(one.key)) for one in present.values() if one.kind == "function"]
        return [
            statement
            for one, wanted in found
            if wanted is not None and (not only_equal or one.definition == wanted.definition)
            for statement in one.drop
        ]

    def write_script(self, statements: list[str], schema: str | None) -> str:
        lines = ["BEGIN", f"SET LOCAL search_path = {quote(schema or 'public')}", *statements, "COMMIT"]
        return "".join(f"{line.rstrip()};\n" for line in lines)

    def run_repair(self, connection: Connection, statements: tuple[str, ...]) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
