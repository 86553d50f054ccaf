"""Create old databases, and read the schema and rows of a database with the driver alone, to compare them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from services.storage import Storage, migrations
from tests.support.sqlite_module import sqlite3

ASSETS = Path(__file__).parents[1] / "assets"

# One line for each column, constraint, index and sequence of a PostgreSQL schema, without OIDs.
POSTGRESQL_CATALOG = """
    SELECT concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                     pg_get_expr(d.adbin, d.adrelid), a.attstattarget)
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
    UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', 'sequence', relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
"""


def make_old_database(url: str, name: str) -> str:
    """Create the database of the asset `name` ("001" or "original") at `url`; return the URL."""
    if is_sqlite(url):
        run_script(url, (ASSETS / f"{name}.sql").read_text("utf-8"))
    elif name == "original":
        run_script(url, (ASSETS / "original_postgresql.sql").read_text("utf-8"))
    else:
        # The asset is for SQLite: insert its rows into tables that the revision creates.
        storage = Storage(url)
        migrations.upgrade(storage, "001")
        storage.dispose()
        inserts = re.findall(
            r"^INSERT INTO (?!alembic).*?;\n", (ASSETS / "001.sql").read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        run_script(url, "".join(inserts) + "SELECT setval('prompts_id_seq', 7)")
    return url


def run_script(url: str, script: str) -> None:
    """Run statements with the driver alone, and commit."""
    with opened(url) as connection:
        if is_sqlite(url):
            connection.executescript(script)
        else:
            connection.execute(script)
        connection.commit()


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query, fetched with the driver alone."""
    with opened(url) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    return rows


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """Open a connection with the driver alone."""
    connection = sqlite3.connect(file_of(url)) if is_sqlite(url) else psycopg.connect(url)
    try:
        yield connection
    finally:
        connection.close()


def schema_of(url: str) -> list[str]:
    """Return the schema, one line for each object. On SQLite the lines are its SQL without spaces and quotes."""
    if is_sqlite(url):
        return sorted(re.sub(r'[\s"]', "", sql) for (sql,) in ask(url, "SELECT sql FROM sqlite_master") if sql)
    return sorted(line for (line,) in ask(url, POSTGRESQL_CATALOG))


def structure_of(url: str) -> list[str]:
    """Return the schema without what a downgrade need not restore: the order of columns and the wording of the SQL."""
    if not is_sqlite(url):
        return schema_of(url)
    lines = [line for line in schema_of(url) if not line.startswith("CREATETABLE")]
    for table, sql in ask(url, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        for _, name, kind, not_null, default, key, _ in ask(url, f"PRAGMA table_xinfo({table})"):
            lines.append(f"{table} {name} {kind} {not_null} {default and default.strip(chr(39))} {key}")
        lines += [f"{table} {name}" for name in re.findall(r"CONSTRAINT (\w+)", sql)]
    return sorted(lines)


def rows_of(url: str, table: str, columns: tuple[str, ...] | None = None) -> list[tuple[Any, ...]]:
    """Return every row exactly, each value as an SQL literal; `columns` selects the columns."""
    names = columns_of(url, table) if columns is None else columns
    literal = "quote({})" if is_sqlite(url) else "{}::text"
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    return sorted(ask(url, f"SELECT {', '.join(map(literal.format, quoted))} FROM {table}"), key=repr)


def columns_of(url: str, table: str) -> tuple[str, ...]:
    """Return the columns without those that the database fills itself: generated ones, and what its triggers fold."""
    if is_sqlite(url):
        return tuple(
            name for (name,) in ask(url, f"SELECT name FROM pragma_table_info('{table}') WHERE name <> 'folded'")
        )
    return tuple(
        name
        for (name,) in ask(
            url,
            "SELECT attname FROM pg_attribute "
            f"WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' "
            "ORDER BY attnum",
        )
    )


def tables_of(url: str) -> set[str]:
    """Return the names of the tables, except those of the full-text index."""
    catalog = (
        "sqlite_master WHERE type = 'table' AND name NOT LIKE 'prompts_fts%'"
        if is_sqlite(url)
        else "pg_tables WHERE schemaname = 'public'"
    )
    return {name for (name,) in ask(url, f"SELECT {'name' if is_sqlite(url) else 'tablename'} FROM {catalog}")}


def everything_in(url: str) -> Any:
    """Return the contents to compare after a refusal: the bytes of the SQLite file, or PostgreSQL's schema and rows."""
    if is_sqlite(url):
        return file_of(url).read_bytes()
    return schema_of(url), {table: rows_of(url, table) for table in sorted(tables_of(url))}


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def file_of(url: str) -> Path:
    return Path(str(make_url(url).database))
