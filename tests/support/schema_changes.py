"""One change for each property of each object of a schema, made from the catalog of a real database."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.storage.backends.sqlite_ddl import Table, read_table
from tests.support.databases import ask

OTHER_TYPES = {"INTEGER": "TEXT", "TEXT": "BLOB", "DATETIME": "TEXT", "DOUBLE": "REAL", "BOOLEAN": "INTEGER"}
ROWS_ALLOW_NO_OTHER = ("prompts", "generations")  # a search index refers to their row numbers


ONE_ROW_EACH = "INSERT INTO changed (other) SELECT 'row' FROM {};"


@dataclass(frozen=True)
class Change:
    """A script that changes the schema, the subject that a check must name, and the table whose rows it deletes."""

    name: str
    subject: str
    script: str
    lost_table: str = ""


def changes_of_sqlite(url: str) -> Iterator[Change]:
    """Yield a change for each table, column, constraint, index, trigger and virtual table of an SQLite database."""
    objects = ask(url, "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    for kind, name, owner, sql in objects:
        if sql.startswith("CREATE VIRTUAL"):
            yield Change(f"drop {name}", f"virtual table {name}", f"DROP TABLE {name}")
            other = sql.replace("ascii", "unicode61")
            yield Change(f"change {name}", f"virtual table {name}", f"DROP TABLE {name}; {other}")
        elif kind == "index":
            yield from _changes_of_index(name, sql)
        elif kind == "trigger":
            yield Change(f"drop {name}", f"trigger {name}", f"DROP TRIGGER {name}")
            other = re.sub(r"BEGIN.*", "BEGIN SELECT 1; END", sql, flags=re.DOTALL)
            yield Change(f"change {name}", f"trigger {name}", f"DROP TRIGGER {name}; {other}")
        elif not name.startswith("prompts_fts_"):
            yield Change(
                f"drop {name}",
                f"table {name}",
                f"PRAGMA foreign_keys = OFF; DROP TABLE {name}",
                "" if name == "alembic_version" else name,
            )
            yield from _changes_of_table(read_table(name, sql), [one[3] for one in objects if one[2] == owner][1:])


def _changes_of_index(name: str, sql: str) -> Iterator[Change]:
    found = re.fullmatch(r"CREATE (UNIQUE )?INDEX \w+ ON (\w+) ?\((.*?)\)( WHERE .*)?", sql, re.DOTALL)
    assert found is not None
    unique, table, columns, condition = (group or "" for group in found.groups())
    first, *rest = columns.split(", ")
    turned = first.removesuffix(" DESC") if " DESC" in first else f"{first} DESC"
    last = {"generations": "file_path", "prompts": "text", "attempts": "number"}[table]

    def index(unique: str, columns: list[str], condition: str) -> str:
        return f"DROP INDEX {name}; CREATE {unique}INDEX {name} ON {table} ({', '.join(columns)}){condition}"

    scripts = {
        "drop": f"DROP INDEX {name}",
        "another column in": index(unique, [first, *rest, last], condition),
        "another order of": index(unique, [turned, *rest], condition),
        "another uniqueness of": index(
            "" if unique else "UNIQUE ",
            [first, *rest],
            f"{condition or ' WHERE'} AND 1 = 0" if condition else " WHERE 1 = 0",
        ),
        "another condition of": index(unique, [first, *rest], "" if condition else f" WHERE {last} IS NOT NULL"),
    }
    for change, script in scripts.items():
        yield Change(f"{change} {name}", f"index {name}", script)


def _changes_of_table(table: Table, others: list[str]) -> Iterator[Change]:
    constraints = [one.sql for one in table.own_constraints]
    for column in table.columns.values():
        definition, subject = column.sql, f"column {table.name}.{column.name}"
        yield _rebuild(f"drop {column.name}", subject, table, others, {definition: ""}, lost=column.name)
        if column.generated:
            changed = {definition: definition.replace("coalesce(folded, text)", "text")}
            yield _rebuild(f"another rule of {column.name}", subject, table, others, changed)
            continue
        kind = definition.split()[1]
        other = OTHER_TYPES.get(kind, "BLOB")
        yield _rebuild(
            f"another type of {column.name}", subject, table, others, {definition: definition.replace(kind, other, 1)}
        )
        if column.is_not_null:
            changed = {definition: definition.replace(" NOT NULL", "")}
            yield _rebuild(f"another nullability of {column.name}", subject, table, others, changed)
        else:  # without a change of the rows, some of which hold NULL
            indexes = re.findall(rf"INDEX (\w+) ON .* WHERE {column.name} IS NOT NULL", ";\n".join(others))
            script = "".join(f"DROP INDEX {name};" for name in indexes) + (
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = "
                f"replace(sql, {_literal(definition)}, {_literal(definition + ' NOT NULL')}) "
                f"WHERE name = '{table.name}'; PRAGMA writable_schema = OFF"
            )
            yield Change(f"another nullability of {column.name} ({table.name})", subject, script)
        yield _rebuild(f"a default of {column.name}", subject, table, others, {definition: f"{definition} DEFAULT 1"})
    for constraint in table.constraints:
        subject = f"{constraint.kind} {table.name}.{constraint.name}"
        (spelled,) = [
            part for part in [*constraints, *(one.sql for one in table.columns.values())] if constraint.name in part
        ]
        clause = f"CONSTRAINT {constraint.name} {constraint.rule}"
        other = {
            "check": clause.replace("CHECK (", "CHECK (1 = 1 OR ", 1),
            "foreign key": re.sub("ON DELETE .*", "ON DELETE NO ACTION", clause),
            "unique constraint": clause.replace("(text)", "(text, id)"),
            "primary key": clause.replace("PRIMARY KEY", "UNIQUE"),
        }[constraint.kind]
        renamed = clause.replace(constraint.name, f"my_{constraint.name}")
        for change, replacement in (("drop", ""), ("change", other), ("rename", renamed)):
            assert clause in spelled
            changed = {spelled: spelled.replace(clause, replacement).strip()}
            yield _rebuild(f"{change} {constraint.name}", subject, table, others, changed)
    if table.name not in ROWS_ALLOW_NO_OTHER:
        yield _rebuild("WITHOUT ROWID", f"table {table.name}", table, others, {}, options=" WITHOUT ROWID")


def _rebuild(
    name: str,
    subject: str,
    table: Table,
    others: list[str],
    changed: dict[str, str],
    *,
    lost: str = "",
    options: str = "",
) -> Change:
    """Return the change that replaces a table by one with changed parts, or without the column `lost`."""
    parts = [*(one.sql for one in table.columns.values()), *(one.sql for one in table.own_constraints)]
    parts = [part for part in (changed.get(part, part) for part in parts) if part]
    mentions = re.compile(rf"\b{lost}\b" if lost else "$^")
    parts = [part for part in parts if not mentions.search(part)] or ["other TEXT"]
    kept = [sql for sql in others if not mentions.search(sql)]
    columns = [one for one in table.columns.values() if not one.generated and one.name != lost]
    names = ", ".join(one.name for one in columns)
    script = (
        "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON; PRAGMA ignore_check_constraints = ON; BEGIN;"
        f"CREATE TABLE changed ({', '.join(parts)}){options};"
        + (
            f"INSERT INTO changed ({names}) SELECT {names} FROM {table.name};"
            if columns
            else ONE_ROW_EACH.format(table.name)
        )
        + f"DROP TABLE {table.name}; ALTER TABLE changed RENAME TO {table.name};"
        + "".join(f"{sql};" for sql in kept)
        + "COMMIT"
    )
    return Change(f"{name} ({table.name})", subject, script)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def changes_of_postgresql(url: str) -> Iterator[Change]:
    """Yield a change for each property of each table, column, constraint, index, function and sequence."""
    tables = [name for (name,) in ask(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    indexes = dict(
        ask(
            url,
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class AS c "
            "ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace AND NOT EXISTS "
            "(SELECT 1 FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u'))",
        )
    )
    constraints = ask(
        url,
        "SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND contype <> 'n'",
    )
    for table in tables:
        lost = "" if table == "alembic_version" else table
        yield Change(f"drop {table}", f"table {table}", f"DROP TABLE {table} CASCADE", lost)
        row_security = f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield Change(f"row level security of {table}", f"table {table}", row_security)
        if not any("FOREIGN KEY" in rule and table in f"{owner} {rule}" for owner, _, _, rule in constraints):
            yield Change(f"unlogged {table}", f"table {table}", f"ALTER TABLE {table} SET UNLOGGED")
    yield from _changes_of_columns(url, indexes, constraints)
    for table, name, kind, rule in constraints:
        yield from _changes_of_constraint(table, name, kind, rule)
    for name, definition in indexes.items():
        yield from _changes_of_postgresql_index(name, definition)
    functions = (
        "SELECT oid::regprocedure::text, pg_get_functiondef(oid), proname || '(' || "
        "pg_get_function_identity_arguments(oid) || ')' FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    )
    for name, definition, signature in ask(url, functions):
        subject = f"function {signature}"
        yield Change(f"drop {name}", subject, f"DROP FUNCTION {name} CASCADE")
        body = definition[: definition.rindex("RETURN ")] + "RETURN ''::tsvector"
        yield Change(f"another body of {name}", subject, body)
        yield Change(f"another volatility of {name}", subject, f"ALTER FUNCTION {name} STABLE")
    for (name,) in ask(url, "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'"):
        yield Change(f"drop {name}", f"sequence {name}", f"DROP SEQUENCE {name} CASCADE")
        yield Change(f"another increment of {name}", f"sequence {name}", f"ALTER SEQUENCE {name} INCREMENT BY 2")
        yield Change(f"another cycle of {name}", f"sequence {name}", f"ALTER SEQUENCE {name} CYCLE")
        yield Change(f"no owner of {name}", f"owner of {name}", f"ALTER SEQUENCE {name} OWNED BY NONE")


OTHER_POSTGRESQL_TYPES = {
    "text": "varchar(20000)",
    "integer": "bigint",
    "bigint": "numeric",
    "double precision": "real",
    "timestamp with time zone": "timestamp",
    "boolean": "integer USING is_favorite::integer",
    "jsonb": "json",
    "character varying(32)": "text",
}


OTHER_DEFAULTS = {
    "text": "'other'",
    "integer": "7",
    "bigint": "7",
    "double precision": "7",
    "timestamp with time zone": "now()",
    "boolean": "true",
    "jsonb": "'{}'",
    "character varying(32)": "'other'",
}


def _changes_of_columns(url: str, indexes: dict[str, str], constraints: list[tuple[str, ...]]) -> Iterator[Change]:
    columns = (
        "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attgenerated <> '', "
        "pg_get_expr(adbin, adrelid) FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid "
        "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND attnum > 0 AND NOT attisdropped"
    )
    for table, name, kind, is_not_null, is_generated, default in ask(url, columns):
        column, alter = f"{table}.{name}", f"ALTER TABLE {table} ALTER COLUMN {name}"
        mentions = re.compile(rf"\b{name}\b")
        freed = [
            f"DROP INDEX {index}" for index, rule in indexes.items() if f".{table} " in rule and mentions.search(rule)
        ]
        freed += [
            f"ALTER TABLE {owner} DROP CONSTRAINT IF EXISTS {constraint} CASCADE"
            for owner, constraint, sort, rule in constraints
            if (owner == table and mentions.search(rule)) or (sort == "f" and f"REFERENCES {table}({name})" in rule)
        ]
        freed += ["ALTER TABLE prompts DROP COLUMN words"] if column == "prompts.text" else []
        yield Change(f"drop {column}", f"column {column}", f"ALTER TABLE {table} DROP COLUMN {name} CASCADE")
        if is_generated:
            again = f"{alter} DROP EXPRESSION"
            yield Change(f"no rule of {column}", f"column {column}", again)
            continue
        other = f"{'; '.join([*freed, ''])} {alter} TYPE {OTHER_POSTGRESQL_TYPES[kind]}"
        yield Change(f"another type of {column}", f"column {column}", other)
        if kind == "text" and column != "prompts.text":
            yield Change(f"a collation of {column}", f"column {column}", f'{alter} TYPE text COLLATE "C"')
        keys = " ".join(rule for owner, _, sort, rule in constraints if owner == table and sort == "p")
        if is_not_null and not mentions.search(keys):
            yield Change(f"no NOT NULL of {column}", f"NOT NULL of {column}", f"{alter} DROP NOT NULL")
        elif not is_not_null and ask(url, f"SELECT 1 FROM {table} WHERE {name} IS NULL LIMIT 1") == []:
            yield Change(f"NOT NULL of {column}", f"NOT NULL of {column}", f"{alter} SET NOT NULL")
        if default:
            yield Change(f"no default of {column}", f"default of {column}", f"{alter} DROP DEFAULT")
        yield Change(
            f"another default of {column}", f"default of {column}", f"{alter} SET DEFAULT {OTHER_DEFAULTS[kind]}"
        )
        yield Change(f"statistics of {column}", f"statistics target of {column}", f"{alter} SET STATISTICS 7")


def _changes_of_constraint(table: str, name: str, kind: str, rule: str) -> Iterator[Change]:
    subject = {"p": f"primary key {table}", "c": f"check {table}.{name}", "f": f"foreign key {table}.{name}"}[kind]
    drop = f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE"
    other = {
        "p": rule.replace("PRIMARY KEY", "UNIQUE"),
        "c": rule.replace("CHECK (", "CHECK (1 = 1 OR ", 1),
        "f": re.sub("ON DELETE .*", "ON DELETE NO ACTION", rule),
    }[kind]
    yield Change(f"drop {name}", subject, drop)
    yield Change(f"change {name}", subject, f"{drop}; ALTER TABLE {table} ADD CONSTRAINT {name} {other}")
    yield Change(f"rename {name}", subject, f"ALTER TABLE {table} RENAME CONSTRAINT {name} TO my_{name}")
    if kind == "f":
        disabled = f"ALTER TABLE {table} DISABLE TRIGGER ALL"
        yield Change(f"disable {name}", subject, disabled)


def _changes_of_postgresql_index(name: str, definition: str) -> Iterator[Change]:
    drop, subject = f"DROP INDEX {name}", f"index {name}"
    yield Change(f"drop {name}", subject, drop)
    unique = definition.replace("CREATE UNIQUE", "CREATE")
    if unique == definition and " gin " not in definition:
        unique = definition.partition(" WHERE ")[0].replace("CREATE", "CREATE UNIQUE") + " WHERE 1 = 0"
    if unique != definition:
        yield Change(f"another uniqueness of {name}", subject, f"{drop}; {unique}")
    first, condition, _ = definition.partition(" WHERE ")
    other = first if condition else f"{definition} WHERE 1 = 1"
    yield Change(f"another condition of {name}", subject, f"{drop}; {other}")
    if "(" in definition and " gin " not in definition and "md5" not in definition:
        columns = first[first.rindex("(") + 1 : -1].split(", ")
        turned = columns[0].removesuffix(" DESC") if " DESC" in columns[0] else f"{columns[0]} DESC"
        other = definition.replace(f"({', '.join(columns)})", f"({', '.join([turned, *columns[1:]])})")
        yield Change(f"another order of {name}", subject, f"{drop}; {other}")
    invalid = f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass"
    yield Change(f"invalid {name}", subject, invalid)
