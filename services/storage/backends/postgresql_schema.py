"""What migrations ask of PostgreSQL: which schema is ours, what is in the way, which objects can be created again."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, text

from .base import DerivedObject, Obstacle

# SQLSTATEs of a name that is taken: table, index, view or sequence; column; function; type, constraint or trigger.
EXISTS = ("42P07", "42701", "42723", "42710")
# Something depends on what is dropped or changed; a syntax error or rule that only a foreign object can cause.
IN_THE_WAY = ("2BP01", "0A000", "42")
DERIVED = """
    SELECT 'function' AS kind, 1 AS place, p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS name,
           '' AS "table", pg_get_functiondef(p.oid) AS definition
    FROM pg_proc AS p
    WHERE p.pronamespace = to_regnamespace(:schema) AND p.prokind = 'f'
        AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
    UNION ALL
    SELECT 'column', 2, quote_ident(a.attname), quote_ident(c.relname),
           format_type(a.atttypid, a.atttypmod) || ' GENERATED ALWAYS AS ('
               || pg_get_expr(d.adbin, d.adrelid) || ') STORED'
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = to_regnamespace(:schema) AND a.attgenerated = 's' AND NOT a.attisdropped
    UNION ALL
    SELECT 'index', 3, quote_ident(i.relname), quote_ident(t.relname), pg_get_indexdef(x.indexrelid)
    FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS t ON t.oid = x.indrelid
    WHERE i.relnamespace = to_regnamespace(:schema) AND t.relkind = 'r' AND x.indisvalid
        AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = x.indexrelid AND contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT 'trigger', 4, quote_ident(g.tgname), quote_ident(c.relname), pg_get_triggerdef(g.oid)
    FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid
    WHERE c.relnamespace = to_regnamespace(:schema) AND NOT g.tgisinternal
    UNION ALL
    SELECT 'statistics target', 5, quote_ident(a.attname), quote_ident(c.relname), a.attstattarget::text
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r' AND a.attnum > 0 AND a.attstattarget >= 0
    ORDER BY place, name
"""


class PostgreSQLSchema:
    """The schema dialect of PostgreSQL; see SchemaDialect."""

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

    def find_derived(self, connection: Connection) -> list[DerivedObject]:
        schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
        derived = []
        for row in connection.execute(text(DERIVED), {"schema": schema}):
            definition = row.definition.replace(f"{schema}.", "")
            if row.kind == "column":
                sql = f"ALTER TABLE {row.table} ADD COLUMN {row.name} {definition}"
            elif row.kind == "statistics target":
                sql = f"ALTER TABLE {row.table} ALTER COLUMN {row.name} SET STATISTICS {definition}"
            else:
                sql = definition
            name = row.name if row.kind in ("function", "index") else f"{row.table}.{row.name}"
            derived.append(DerivedObject(row.kind, name, definition, sql))
        return derived

    def drop_derived(self, connection: Connection, derived: DerivedObject) -> None:
        table, _, name = derived.name.rpartition(".")
        statements = {
            "function": f"DROP FUNCTION {derived.name}",
            "column": f"ALTER TABLE {table} DROP COLUMN {name}",
            "index": f"DROP INDEX {name}",
            "trigger": f"DROP TRIGGER {name} ON {table}",
        }
        if derived.kind in statements:  # a statistics target is replaced
            connection.exec_driver_sql(statements[derived.kind])

    def create_derived(self, connection: Connection, derived: DerivedObject) -> None:
        connection.exec_driver_sql(derived.sql.replace("%", "%%"))
