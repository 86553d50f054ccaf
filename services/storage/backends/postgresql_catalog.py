"""Read the objects of a schema from the catalogs of PostgreSQL, with the statements that create and drop each."""

from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, text

# Expressions are printed as for people: otherwise the parentheses depend on how they were written.
# For each object: its kind, the order of creation, the table that it belongs to, its name, a definition to compare, and
# the names of the columns and constraints that have to be there before it. Names are quoted where they need it.
NOT_PLAIN: Final = "not a plain table"  # partitioned or foreign
TABLES: Final = f"""
    SELECT 'table' AS kind, 2 AS place, quote_ident(c.relname) AS "table", quote_ident(c.relname) AS name,
           concat_ws(', ', CASE WHEN c.relkind <> 'r' THEN '{NOT_PLAIN}' END,
                     CASE WHEN c.relpersistence = 'u' THEN 'UNLOGGED' END,
                     CASE WHEN c.relrowsecurity THEN 'ROW LEVEL SECURITY' END) AS definition,
           '{{}}'::text[] AS needs
    FROM pg_class AS c WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'p', 'f')
"""
FUNCTIONS: Final = """
    SELECT 'function', 0, '', quote_ident(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           pg_get_functiondef(p.oid), '{}'
    FROM pg_proc AS p
    WHERE p.pronamespace = to_regnamespace(:schema) AND p.prokind IN ('f', 'p')
        AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
"""
SEQUENCES: Final = """
    SELECT 'sequence', 1, '', quote_ident(c.relname),
           format('AS %s START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s%s',
                  format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
                  CASE WHEN s.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END),
           '{}'
    FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid
    WHERE c.relnamespace = to_regnamespace(:schema) AND NOT EXISTS (
        SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'i')
    UNION ALL
    SELECT 'owner of', 5, quote_ident(t.relname), quote_ident(c.relname), format('%I.%I', t.relname, a.attname),
           ARRAY[format('%I.%I', t.relname, a.attname)]
    FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid AND c.relkind = 'S'
    JOIN pg_class AS t ON t.oid = d.refobjid
    JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a'
        AND d.refobjsubid > 0 AND c.relnamespace = to_regnamespace(:schema)
"""
# What is a property of a column is an object of its own, so that each has a statement that repairs it alone.
COLUMNS: Final = """
    SELECT p.kind, p.place, quote_ident(c.relname), format('%I.%I', c.relname, a.attname), p.definition,
           CASE WHEN p.kind = 'column' THEN '{}'::text[] ELSE ARRAY[format('%I.%I', c.relname, a.attname)] END
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation AS l ON l.oid = a.attcollation AND a.attcollation <> t.typcollation
    CROSS JOIN LATERAL (VALUES
        ('column', 4, format_type(a.atttypid, a.atttypmod) || coalesce(' COLLATE ' || quote_ident(l.collname), '')
             || CASE WHEN a.attgenerated <> '' THEN ' GENERATED ALWAYS AS ('
                         || pg_get_expr(d.adbin, d.adrelid, true) || ')'
                         || CASE a.attgenerated WHEN 's' THEN ' STORED' ELSE '' END ELSE '' END),
        ('NOT NULL of', 5, CASE WHEN a.attnotnull THEN 'NOT NULL' END),
        ('default of', 5, CASE WHEN a.attidentity <> '' THEN
             'GENERATED ' || CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END || ' AS IDENTITY'
             WHEN a.attgenerated = '' THEN 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid, true) END),
        ('statistics target of', 5, CASE WHEN a.attstattarget >= 0 THEN 'STATISTICS ' || a.attstattarget END)
    ) AS p (kind, place, definition)
    WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
        AND p.definition IS NOT NULL
"""
# A disabled trigger of a foreign key does not enforce it.
CONSTRAINTS: Final = """
    SELECT CASE n.contype WHEN 'p' THEN 'primary key' WHEN 'u' THEN 'unique constraint' WHEN 'c' THEN 'check'
                          WHEN 'x' THEN 'exclusion constraint' ELSE 'foreign key' END,
           CASE n.contype WHEN 'p' THEN 6 WHEN 'f' THEN 9 ELSE 7 END, quote_ident(c.relname),
           CASE n.contype WHEN 'p' THEN quote_ident(c.relname) ELSE format('%I.%I', c.relname, n.conname) END,
           CASE n.contype WHEN 'p' THEN quote_ident(n.conname) || ' ' ELSE '' END
               || regexp_replace(pg_get_constraintdef(n.oid, true), ' NOT VALID$', '')
               || CASE WHEN EXISTS (SELECT 1 FROM pg_trigger WHERE tgconstraint = n.oid AND tgenabled <> 'O')
                       THEN ' (disabled)' ELSE '' END,
           ARRAY(SELECT format('%I.%I', k.relname, a.attname)
                 FROM (SELECT n.conrelid AS owner, unnest(n.conkey) AS number
                       UNION ALL SELECT n.confrelid, unnest(n.confkey)) AS u
                 JOIN pg_class AS k ON k.oid = u.owner
                 JOIN pg_attribute AS a ON a.attrelid = u.owner AND a.attnum = u.number)
               || CASE n.contype WHEN 'f' THEN ARRAY(SELECT quote_ident(relname) || ' key' FROM pg_class
                                                     WHERE oid = n.confrelid) ELSE '{}' END
    FROM pg_constraint AS n JOIN pg_class AS c ON c.oid = n.conrelid
    WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind = 'r' AND n.contype IN ('p', 'u', 'c', 'x', 'f')
"""
INDEXES: Final = """
    SELECT 'index', 8, quote_ident(t.relname), quote_ident(i.relname),
           CASE WHEN x.indisvalid THEN '' ELSE 'INVALID ' END || pg_get_indexdef(x.indexrelid, 0, true),
           ARRAY(SELECT format('%I.%I', t.relname, a.attname) FROM pg_depend AS d
                 JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                 WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid
                     AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.indrelid)
    FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS t ON t.oid = x.indrelid
    WHERE i.relnamespace = to_regnamespace(:schema) AND t.relkind = 'r'
        AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = x.indexrelid AND contype IN ('p', 'u', 'x'))
"""
TRIGGERS: Final = """
    SELECT 'trigger', 10, quote_ident(c.relname), format('%I.%I', c.relname, g.tgname),
           pg_get_triggerdef(g.oid, true) || CASE g.tgenabled WHEN 'O' THEN '' ELSE ' (disabled)' END, '{}'
    FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid
    WHERE c.relnamespace = to_regnamespace(:schema) AND NOT g.tgisinternal
"""
VIEWS: Final = """
    SELECT 'view', 11, '', quote_ident(c.relname), pg_get_viewdef(c.oid, true), '{}'
    FROM pg_class AS c WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('v', 'm')
"""
PARTS: Final = (TABLES, FUNCTIONS, SEQUENCES, COLUMNS, CONSTRAINTS, INDEXES, TRIGGERS, VIEWS)
CATALOG: Final = text(f"{' UNION ALL '.join(PARTS)} ORDER BY place, name")
PROPERTIES: Final = ("NOT NULL of", "default of", "statistics target of")


class CatalogObject(NamedTuple):
    """An object of a schema; names are quoted where they need it, and without the schema."""

    kind: str
    place: int
    table: str
    name: str
    definition: str
    needs: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    @property
    def column(self) -> str:
        """The last part of the name."""
        return self.name.removeprefix(f"{self.table}.")

    @property
    def constraint(self) -> str:
        """The name of a constraint; "" for anything else."""
        if self.kind == "primary key":
            return self.definition.partition(" PRIMARY KEY")[0]
        return self.column if self.kind in ("check", "foreign key") or self.kind.endswith("constraint") else ""

    @property
    def create(self) -> tuple[str, ...]:
        """The statements that create it, or give a column this property."""
        alter, column = f"ALTER TABLE {self.table}", f"ALTER COLUMN {self.column}"
        if self.kind == "table":
            return (f"CREATE TABLE {self.name} ()",)
        if self.kind == "sequence":
            return (f"CREATE SEQUENCE {self.name} {self.definition}",)
        if self.kind == "owner of":
            next_key = f"(SELECT coalesce(max({self.definition.partition('.')[2]}), 0) + 1 FROM {self.table})"
            return (
                f"ALTER SEQUENCE {self.name} OWNED BY {self.definition}",
                f"SELECT setval('{self.name}', {next_key}, false)",
            )
        if self.kind == "view":
            return (f"CREATE VIEW {self.name} AS {self.definition.rstrip(';')}",)
        if self.kind == "column":
            return (f"{alter} ADD COLUMN {self.column} {self.definition}",)
        if self.kind in PROPERTIES:
            word = "ADD" if self.definition.startswith("GENERATED") else "SET"
            return (f"{alter} {column} {word} {self.definition}",)
        if self.kind == "primary key":
            return (f"{alter} ADD CONSTRAINT {self.definition}",)
        if self.kind in ("check", "foreign key"):
            return (f"{alter} ADD CONSTRAINT {self.column} {self.definition} NOT VALID", self._validate)
        if self.kind.endswith("constraint"):
            return (f"{alter} ADD CONSTRAINT {self.column} {self.definition}",)
        return (self.definition,)

    @property
    def drop(self) -> tuple[str, ...]:
        """The statements that drop it, or take the property from a column."""
        alter, column = f"ALTER TABLE {self.table}", f"ALTER COLUMN {self.column}"
        if self.constraint:
            return (f"{alter} DROP CONSTRAINT IF EXISTS {self.constraint}",)
        if self.kind == "column":
            return (f"{alter} DROP COLUMN {self.column}",)
        if self.kind == "trigger":
            return (f"DROP TRIGGER IF EXISTS {self.column} ON {self.table}",)
        if self.kind == "statistics target of":
            return (f"{alter} {column} SET STATISTICS -1",)
        if self.kind in PROPERTIES:
            words = "IDENTITY" if self.definition.startswith("GENERATED") else self.definition.split()[0]
            return (f"{alter} {column} DROP {'NOT NULL' if words == 'NOT' else words}",)
        return (f"DROP {self.kind.upper()} IF EXISTS {self.name}",)

    @property
    def _validate(self) -> str:
        """The statement that lets a constraint hold for the existing rows too, if they meet it."""
        return (
            f"DO $$ BEGIN ALTER TABLE {self.table} VALIDATE CONSTRAINT {self.column}; "
            "EXCEPTION WHEN check_violation OR foreign_key_violation THEN NULL; END $$"
        )


def read_objects(connection: Connection) -> list[CatalogObject]:
    """Return the objects of the current schema, each after those that it needs."""
    schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
    return [_read(row, schema) for row in connection.execute(CATALOG, {"schema": schema})]


def _read(row: Any, schema: str) -> CatalogObject:
    definition = row.definition.replace(f"{schema}.", "")
    return CatalogObject(row.kind, row.place, row.table, row.name, definition, tuple(row.needs))
