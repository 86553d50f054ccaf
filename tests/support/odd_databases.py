"""Databases as their operators left them: own tables, columns, constraints, triggers, views and names that we need."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from services.storage import Storage, migrations, schema
from tests.support.databases import ask, is_sqlite, make_old_database, opened, rows_of, run_script, tables_of
from tests.support.sqlite_module import sqlite3

REVISIONS = ("original", *schema.REVISIONS[:-1])


Script = str | Callable[[Any], None]


@dataclass(frozen=True)
class Oddity:
    """One thing that an operator added.

    `kept` are queries that must answer the same after every migration, `refused` statements that must go on failing.
    The upgrade of a database older than revision `until` has to be refused with a message that matches `named`.
    """

    name: str
    sqlite: Script | tuple[Script, ...] | None
    postgresql: str | None
    kept: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    until: str = ""
    named: str = ""

    def add(self, url: str) -> None:
        """Add it to the database at `url`."""
        scripts: Any = self.sqlite if is_sqlite(url) else self.postgresql
        for script in scripts if isinstance(scripts, tuple) else (scripts,):
            if callable(script):
                with opened(url) as connection:
                    script(connection)
            else:
                run_script(url, script)

    def is_for(self, url: str) -> bool:
        return (self.sqlite if is_sqlite(url) else self.postgresql) is not None


def rewritten(table: str, *changes: tuple[str, str]) -> Callable[[Any], None]:
    """Return a function that rebuilds an SQLite table as its operator would, with changes to its definition."""

    def rebuild(connection: Any) -> None:
        query = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        (sql,) = connection.execute(query, (table,)).fetchone()
        for pattern, replacement in changes:
            sql, count = re.subn(pattern, replacement, sql, count=1, flags=re.DOTALL)
            assert count == 1, (pattern, sql)
        query = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type <> 'table' AND sql IS NOT NULL"
        recreated = "".join(f"{statement};" for (statement,) in connection.execute(query, (table,)))
        query = "SELECT name FROM pragma_table_info(?)"  # without generated columns
        quoted = ['"' + name.replace('"', '""') + '"' for (name,) in connection.execute(query, (table,))]
        names = ", ".join(quoted)
        created = "CREATE TABLE rebuilt " + sql[sql.index("(") :]
        connection.executescript(
            "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON; PRAGMA ignore_check_constraints = ON; BEGIN;"
            f"{created}; INSERT INTO rebuilt ({names}) SELECT {names} FROM {table}; DROP TABLE {table};"
            f"ALTER TABLE rebuilt RENAME TO {table}; {recreated} COMMIT"
        )

    return rebuild


END = r"\)\s*$"
MODELS = "CREATE TABLE models (name TEXT PRIMARY KEY); INSERT INTO models SELECT DISTINCT model_name FROM generations"
MINE = (
    "CONSTRAINT mine_fk FOREIGN KEY (model_name) REFERENCES models (name) ON UPDATE SET DEFAULT NOT DEFERRABLE, "
    "CONSTRAINT [mine, ck] CHECK (model_name <> 'forbidden') CHECK (id <> 'no'), UNIQUE (id, file_path)"
)
MATCHES = (
    "SELECT g.id FROM generations_fts JOIN generations AS g ON g.rowid = generations_fts.rowid "
    "WHERE generations_fts MATCH 'trap' ORDER BY g.id"
)
LABELS = (
    r"(model_version \w+(\(50\))?)",
    r"\1 DEFAULT 'v1' COLLATE NOCASE CONSTRAINT one CHECK (model_version <> 'no')",
)
OTHER_INDEX = (
    "DROP INDEX IF EXISTS idx_generations_model_name; CREATE INDEX idx_generations_model_name ON prompts (used_count)"
)
PARTIAL = "CREATE INDEX mine ON generations (file_path DESC) WHERE file_path <> '';"

KEPT = (
    Oddity(
        "a table that refers to generations",
        "CREATE TABLE playlists (id INTEGER PRIMARY KEY, generation_id TEXT REFERENCES generations (id));"
        "INSERT INTO playlists SELECT NULL, id FROM generations LIMIT 2",
        "CREATE TABLE playlists (id SERIAL PRIMARY KEY, generation_id VARCHAR(36));"
        "INSERT INTO playlists (generation_id) SELECT id FROM generations ORDER BY id LIMIT 2",
        kept=("SELECT id, generation_id FROM playlists ORDER BY id",),
    ),
    Oddity(
        "a column spelled in quotes",
        "ALTER TABLE generations ADD COLUMN 'mood' TEXT DEFAULT 'a,b)'; UPDATE generations SET mood = 'calm ' || id",
        "ALTER TABLE generations ADD COLUMN mood TEXT DEFAULT 'a,b)'; UPDATE generations SET mood = 'calm ' || id",
        kept=("SELECT id, mood FROM generations ORDER BY id",),
    ),
    Oddity(
        "a column with a dollar",
        "ALTER TABLE generations ADD COLUMN cost$ REAL DEFAULT 1.5",
        "ALTER TABLE generations ADD COLUMN cost$ REAL DEFAULT 1.5",
        kept=("SELECT id, cost$ FROM generations ORDER BY id",),
    ),
    Oddity(
        "columns with brackets, commas and quotes",
        'ALTER TABLE generations ADD COLUMN "a]" INTEGER DEFAULT 3 CHECK ("a]" <= 5 /* , ( */);'
        'ALTER TABLE generations ADD COLUMN [b "c, (] TEXT COLLATE NOCASE; ALTER TABLE prompts ADD COLUMN `d``e` TEXT',
        'ALTER TABLE generations ADD COLUMN "a]" INTEGER DEFAULT 3 CHECK ("a]" <= 5 /* , ( */);'
        'ALTER TABLE generations ADD COLUMN "b ""c, (" TEXT; ALTER TABLE prompts ADD COLUMN "d`e" TEXT',
        kept=('SELECT id, "a]", "b ""c, (" FROM generations ORDER BY id', 'SELECT "d`e" FROM prompts WHERE id = 1'),
        refused=('UPDATE generations SET "a]" = 6',),
    ),
    Oddity(
        "constraints of the table",
        (MODELS, rewritten("generations", (END, f", {MINE})"))),
        f"{MODELS};"
        "ALTER TABLE generations ADD CONSTRAINT mine_fk FOREIGN KEY (model_name) REFERENCES models (name),"
        "ADD CONSTRAINT \"mine, ck\" CHECK (model_name <> 'forbidden'), ADD CHECK (id <> 'no'),"
        "ADD UNIQUE (id, file_path)",
        kept=("SELECT name FROM models ORDER BY name",),
        refused=(
            "UPDATE generations SET model_name = 'forbidden'",
            "UPDATE generations SET model_name = 'unknown'",
            "UPDATE generations SET id = 'no' WHERE id = (SELECT min(id) FROM generations)",
        ),
    ),
    Oddity(
        "constraints inside our columns",
        rewritten(
            "generations",
            LABELS,
            (r"(file_path \w+(\(500\))? NOT NULL)", r"\1 CONSTRAINT two CHECK (file_path <> 'no')"),
        ),
        "ALTER TABLE generations ALTER COLUMN model_version SET DEFAULT 'v1',"
        "ADD CONSTRAINT one CHECK (model_version <> 'no'), ADD CONSTRAINT two CHECK (file_path <> 'no')",
        refused=("UPDATE generations SET model_version = 'no'", "UPDATE generations SET file_path = 'no'"),
    ),
    Oddity(
        "a table constraint of prompts",
        rewritten("prompts", (END, ", CONSTRAINT short CHECK (length(text) < 20000))")),
        "ALTER TABLE prompts ADD CONSTRAINT short CHECK (length(text) < 20000)",
        refused=(f"UPDATE prompts SET text = '{'x' * 20_001}' WHERE id = 1",),
    ),
    Oddity(
        "indexes, partial and on expressions",
        PARTIAL + 'CREATE INDEX "my lower" ON prompts (lower(text))',
        PARTIAL + 'CREATE INDEX "my lower" ON prompts (md5(lower(text)))',
    ),
    Oddity(
        "a trigger that logs, and one with the name of a table",
        "CREATE TABLE log (id TEXT); CREATE TRIGGER generations AFTER DELETE ON generations "
        "BEGIN INSERT INTO log VALUES (old.id); END; CREATE TRIGGER prompts BEFORE DELETE ON log BEGIN SELECT 1; END",
        "CREATE TABLE log (id TEXT); CREATE FUNCTION write_log() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO log VALUES (old.id); RETURN old; END $$;"
        "CREATE TRIGGER generations AFTER DELETE ON generations FOR EACH ROW EXECUTE FUNCTION write_log()",
        kept=("SELECT id FROM log",),
    ),
    Oddity(
        "a full-text index of somebody's own, by row number",
        "DELETE FROM generations WHERE id = (SELECT min(id) FROM generations);"
        "CREATE VIRTUAL TABLE generations_fts USING fts5 (prompt, content='generations');"
        "INSERT INTO generations_fts (generations_fts) VALUES ('rebuild')",
        None,
        kept=(MATCHES,),
    ),
    Oddity(
        "a view of generations",
        "CREATE VIEW best AS SELECT id, file_path FROM generations WHERE channels = 2",
        None,
        kept=("SELECT * FROM best ORDER BY id",),
    ),
)

CONFLICTS = (
    Oddity(
        "a table", "CREATE TABLE attempts (id TEXT)", "CREATE TABLE attempts (id TEXT)", until="005", named="attempts"
    ),
    Oddity(
        "a view", "CREATE VIEW attempts AS SELECT 1", "CREATE VIEW attempts AS SELECT 1", until="005", named="attempts"
    ),
    Oddity("a type", None, "CREATE TYPE queue_state AS ENUM ('on')", until="005", named="queue_state"),
    Oddity("a sequence", None, "CREATE SEQUENCE queue_state", until="005", named="queue_state"),
    Oddity(
        "a column of generations",
        "ALTER TABLE generations ADD COLUMN Priority TEXT",
        "ALTER TABLE generations ADD COLUMN priority TEXT",
        until="004",
        named="generations.priority",
    ),
    Oddity(
        "a column of prompts",
        "ALTER TABLE prompts ADD COLUMN Words TEXT",
        "ALTER TABLE prompts ADD COLUMN words TEXT",
        until="008",
        named="prompts.words",
    ),
    Oddity(
        "the search table of sqlite-utils",
        "CREATE VIRTUAL TABLE prompts_fts USING FTS5 (text, content=[prompts]);"
        "CREATE TRIGGER prompts_ai AFTER INSERT ON prompts "
        "BEGIN INSERT INTO prompts_fts (rowid, text) VALUES (new.rowid, new.text); END",
        None,
        until="008",
        named="prompts_fts",
    ),
    Oddity("a shadow table", "CREATE TABLE prompts_fts_data (x)", None, until="008", named="prompts_fts"),
    Oddity(
        "a trigger",
        "CREATE TABLE other (x); CREATE TRIGGER prompts_fts_insert AFTER INSERT ON other BEGIN SELECT 1; END",
        None,
        until="008",
        named="prompts_fts_insert",
    ),
    Oddity(
        "a function",
        None,
        "CREATE FUNCTION prompt_words(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
        until="008",
        named="prompt_words",
    ),
    Oddity(
        "a new index",
        "CREATE INDEX idx_generations_due ON generations (file_path)",
        "CREATE INDEX idx_generations_due ON generations (file_path)",
        until="007",
        named="idx_generations_due",
    ),
    Oddity(
        "an old index on something else",
        OTHER_INDEX,
        OTHER_INDEX,
        until="007",
        named="idx_generations_model_name",
    ),
    Oddity(
        "a constraint",
        rewritten("generations", (END, ", CONSTRAINT ck_generations_status_known CHECK (status <> 'x'))")),
        "ALTER TABLE generations ADD CONSTRAINT ck_generations_status_known CHECK (status <> 'x')",
        until="006",
        named="ck_generations_status_known",
    ),
    Oddity(
        "a table of totals",
        "CREATE TABLE usage_totals (x)",
        "CREATE TABLE usage_totals (x INT)",
        (),
        (),
        "009",
        "usage_totals",
    ),
    Oddity("a key on the text", None, "CREATE INDEX two ON prompts (text, used_count)", until="002", named="index two"),
    Oddity("a table of a rebuild", "CREATE TABLE generations_new (x)", None, until="006", named="generations_new"),
)


def make_odd_database(url: str, revision: str, oddities: tuple[Oddity, ...]) -> list[Oddity]:
    """Make a database at `revision`, or the original's, with rows and these oddities; return those that fit there."""
    make_old_database(url, "original" if revision == "original" else "001")
    if revision not in ("original", "001"):
        storage = Storage(url)
        migrations.upgrade(storage, revision)
        storage.dispose()
    added = []
    for oddity in oddities:
        if oddity.is_for(url) and (not oddity.until or is_older(revision, oddity.until)):
            oddity.add(url)
            added.append(oddity)
    return added


def is_older(revision: str, other: str) -> bool:
    return REVISIONS.index(revision) < (REVISIONS.index(other) if other in REVISIONS else len(REVISIONS))


def definitions(url: str) -> list[str]:
    """Return the definitions of everything that is stored beside our tables, and what the operators' queries answer."""
    if is_sqlite(url):
        query = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        return sorted(repr(row) for row in ask(url, query))
    query = (
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid "
        "WHERE c.relnamespace = 'public'::regnamespace "
        "UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND contype <> 'n' "
        "UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal "
        "UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
        "UNION ALL SELECT attrelid::regclass || ' ' || attname || ' ' || atttypid::regtype FROM pg_attribute AS a "
        "JOIN pg_class AS c ON c.oid = a.attrelid "
        "WHERE c.relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped "
        "UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace"
    )
    return sorted(line for (line,) in ask(url, query))


def state(url: str) -> Any:
    """Return the definitions and all rows, byte for byte."""
    return definitions(url), {table: rows_of(url, table) for table in sorted(tables_of(url)) if "_fts" not in table}


def answers(url: str, oddities: list[Oddity]) -> dict[str, Any]:
    """Return what the operators' queries answer, and check that their constraints still refuse what they refused."""
    answered = {query: ask(url, query) for oddity in oddities for query in oddity.kept}
    for statement in (statement for oddity in oddities for statement in oddity.refused):
        with opened(url) as connection:
            if is_sqlite(url):
                connection.execute("PRAGMA foreign_keys = ON")
            with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
                connection.execute(statement)
    return answered
