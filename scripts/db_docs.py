"""Write database-schema.md, and SCHEMA_SQL at the end of services/storage/schema.py, from a newly migrated database.

With --check, write nothing and exit with 1 if one of them is stale.
"""

import re
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, even if another one is installed

import sqlalchemy as sa  # noqa: E402
from alembic.config import Config  # noqa: E402
from alembic.script import ScriptDirectory  # noqa: E402
from sqlalchemy.dialects import postgresql  # noqa: E402

from services.storage import Storage, migrations, models, queue_models  # noqa: E402
from services.storage.schema import LEGAL_MOVES, REVISIONS, GenerationStatus  # noqa: E402

DOCUMENT = ROOT / "database-schema.md"
MODULE = ROOT / "services/storage/schema.py"
ASSIGNMENT = "SCHEMA_SQL: Final = "

COLUMNS = {
    "generations": {
        "id": "UUID text, ordered by time, or the caller's own id",
        "prompt": "text to render, exactly as given",
        "model_name": "model that renders it",
        "model_version": "version of the model",
        "duration_seconds": "requested length",
        "sample_rate": "requested sample rate, in Hz",
        "channels": "1 (mono) or 2 (stereo)",
        "file_path": "file of the track",
        "file_size_bytes": "size of the finished track",
        "status": "see the life cycle below",
        "created_at": "time of the request",
        "completed_at": "time it finished, with any outcome",
        "generation_time_seconds": "how long rendering took",
        "error_message": "why it failed",
        "metadata": "JSON object: what is known about the track",
        "prompt_id": "row in prompts with the same text",
        "priority": "higher is served first",
        "scheduled_at": "not due before this time",
        "attempt": "grows with every claim; fencing number of the lease",
        "max_attempts": "claims before it fails for good",
        "started_at": "start of the current or last attempt",
        "worker_id": "worker that holds the lease",
        "lease_expires_at": "after this time it may be reclaimed",
        "progress": "0 to 1, from the last heartbeat",
        "current_step": "what the worker is doing, from the last heartbeat",
        "cancel_requested_at": "set to cancel a running generation; the next heartbeat tells the worker",
        "batch_id": "name shared by generations that were requested together",
        "parent_id": "generation of which this is a variation",
        "idempotency_key": "a repeated request with the same key returns the same row",
        "is_favorite": "marked as a favourite",
        "parameters": "JSON object: the sampling request",
        "version": "grows with every change; detects two writers of one row",
        "file_sha256": "SHA-256 of the finished track, in hexadecimal",
        "file_format": "format of the finished track, such as wav",
        "file_missing_since": "when find_files() first found the file missing",
    },
    "prompts": {
        "id": "",
        "text": "unique",
        "used_count": "how many generations were requested with it",
        "first_used_at": "",
        "last_used_at": "",
        "folded": "words of a text that is not ASCII or has sharps, for the full-text index",
        "words": "generated: `folded`, or else `text`",
    },
    "attempts": {
        "generation_id": "",
        "number": "`attempt` of the generation",
        "worker_id": "worker that held the lease",
        "started_at": "",
        "finished_at": "",
        "outcome": "how it ended",
        "error_message": "why it failed",
    },
    "queue_state": {
        "id": "always 1",
        "paused_at": "while this is set, nothing is claimed",
        "reason": "text to show",
    },
    "workers": {
        "id": "as in `generations.worker_id`",
        "host": "",
        "pid": "process on that host",
        "model_names": "JSON array of the models it claims; null means any",
        "warm_model": "model in its memory",
        "device": "label of its device, such as cuda:0",
        "version": "release of this library that it runs",
        "state": "idle, busy or stopping when it wrote the row; `get_workers()` knows what it does now",
        "generation_id": "what it was working on when it wrote the row",
        "started_at": "",
        "last_seen_at": "when it wrote the row",
        "expires_at": "it counts until this time, unless it writes the row again",
    },
    "usage_totals": {
        "hour": "hours since 1970-01-01 00:00 UTC",
        "model_name": "",
        "event": "created, or how it finished",
        "count": "how many pruned generations",
    },
    "pruned_files": {
        "path": "absolute path",
    },
}
ON_POSTGRESQL = """\
## Differences on PostgreSQL

- `uq_prompts_text_md5`, a unique index on `md5(text)`, replaces `uq_prompts_text`, because PostgreSQL refuses b-tree
  keys over 2.7 kB.
- Times are `TIMESTAMP WITH TIME ZONE`, JSON is `JSONB`.
- The full-text index is a column, see below.
"""
STORED_TIMES = """\
## Stored times

All times are in UTC. On SQLite they are text with a space, six decimals and no offset, such as
`2026-03-01 09:30:00.250000`, so they sort and compare as text. Compare them with text of the same form: a time with a
`T` or an offset gives a wrong result. `datetime()` of SQLite returns this form without decimals, which compares
correctly:

```sql
SELECT count(*) FROM generations WHERE created_at >= datetime('now', '-1 day');
```

PostgreSQL compares times of any time zone:

```sql
SELECT count(*) FROM generations WHERE created_at >= now() - interval '1 day';
```
"""
# Types on PostgreSQL of the columns that the models lack.
ELSEWHERE = {"folded": "none", "words": "TSVECTOR"}
FULL_TEXT_ON_SQLITE = """\
## Full-text index of prompts

SQLite: `prompts_fts` is an FTS5 table that stores no copy of the text (external content). It indexes the generated
column `words` of `prompts`. Triggers of `prompts` keep `folded` and the index up to date. Dropping or rebuilding
`prompts` by hand also drops the triggers: create them again. In the triggers, `ltrim(…, '')` returns its argument on
the connections of other programs, and the words of the text on those of the library. Prompts that other programs write
are therefore found as they are written, and in every other form after `check`. FTS5 itself adds `prompts_fts_config`,
`prompts_fts_data`, `prompts_fts_docsize` and `prompts_fts_idx`.
"""
FULL_TEXT_ON_POSTGRESQL = """\
PostgreSQL: the column `words` of `prompts` is a tsvector that the database generates from `prompt_words(text)`, a
function that returns the same words. The GIN index `idx_prompts_words` serves `search_prompts` and
`search_generations`. Revision 008 has the definitions.

The models define none of these objects, because Alembic cannot compare them.
"""


def main(arguments: list[str]) -> int:
    """Write both files, or with --check print which of them are stale."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{folder}/schema.db")
        migrations.upgrade(storage)
        storage.dispose()
        connection = sqlite3.connect(f"{folder}/schema.db")
        wanted = {DOCUMENT: describe(connection), MODULE: with_schema_sql(MODULE.read_text("utf-8"), connection)}
        connection.close()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if arguments:
            print(f"{name} is stale: run `just db-docs` and commit what it writes.", file=sys.stderr)
        else:
            path.write_text(wanted[path], "utf-8")
            print(f"{name} written.")
    return 1 if stale and arguments else 0


def with_schema_sql(source: str, connection: sqlite3.Connection) -> str:
    """Return the source of the module with the current schema in its last assignment."""
    statements = [
        *create_statements(connection),
        f"INSERT INTO alembic_version (version_num) VALUES ('{REVISIONS[-1]}')",
    ]
    sql = "".join(f"{statement};\n" for statement in statements)
    assert '"""' not in sql
    assert "\\" not in sql
    head, found, _ = source.partition(f"\n{ASSIGNMENT}")
    assert found, f"{MODULE} ends with {ASSIGNMENT}"
    return f'{head}{found}"""\n{sql}"""\n'


def create_statements(connection: sqlite3.Connection) -> list[str]:
    """Return the statements of the schema, tables before indexes before triggers, without FTS5's own tables."""
    rows = connection.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL "
        "AND name NOT IN (SELECT name FROM pragma_table_list WHERE type = 'shadow') "
        "ORDER BY type = 'trigger', type = 'index', tbl_name, name"
    ).fetchall()
    return [tidy(sql) for (sql,) in rows]


def tidy(sql: str) -> str:
    """Return a statement with consistent whitespace and without the quotes that SQLite adds to renamed tables."""
    sql = re.sub(r'^CREATE TABLE "(\w+)"', r"CREATE TABLE \1", sql)
    sql = re.sub(r"[ \t]+\n", "\n", one_column_a_line(sql)).replace("\t", "    ")
    sql = re.sub(r"(CONSTRAINT \w+) (CHECK|FOREIGN KEY) ?", r"\1\n        \2 ", sql)
    sql = re.sub(r"^(CREATE (?:UNIQUE )?INDEX .*\)) (WHERE .*)$", r"\1\n    \2", sql)
    return "\n".join(line if len(line) <= 120 else wrap(line) for line in sql.split("\n"))


def one_column_a_line(sql: str) -> str:
    """Return a CREATE TABLE with a line for each column: ALTER TABLE adds columns to the last line."""
    return re.sub(r", (?=file_\w+ (?:TEXT|DATETIME)\b)", ",\n\t", sql)


def wrap(rule: str) -> str:
    """Return a long CHECK with a line for each of its conditions."""
    return re.sub(r" (?=AND \(|AND rtrim|OR |AND substr)", "\n            ", rule)


def describe(connection: sqlite3.Connection) -> str:
    """Return the text of database-schema.md."""
    tables = models.Base.metadata.tables
    parts = [
        "# Database schema\n",
        f"Revision {REVISIONS[-1]}. `just db-docs` writes this page from a new database: do not edit it.\n",
        er_diagram(connection),
        *(describe_table(connection, tables[name]) for name in COLUMNS),
        ON_POSTGRESQL,
        STORED_TIMES,
        full_text_index(connection),
        life_cycle(),
        revisions(),
    ]
    unknown = {f"{name}.{column.name}" for name, table in tables.items() for column in table.columns} - {
        f"{name}.{column}" for name, columns in COLUMNS.items() for column in columns
    }
    assert not unknown, f"scripts/db_docs.py: COLUMNS has no description of {', '.join(sorted(unknown))}"
    return "\n".join(parts)


def er_diagram(connection: sqlite3.Connection) -> str:
    lines = ["```mermaid", "erDiagram"]
    for name in COLUMNS:
        foreign = {row[3] for row in foreign_keys(connection, name)}
        lines.append(f"    {name} {{")
        for _, column, kind, _, _, key, _ in columns_of(connection, name):
            marks = ", ".join(["PK"] * bool(key) + ["FK"] * (column in foreign))
            lines.append(f"        {kind} {column} {marks}".rstrip())
        lines.append("    }")
    for name in COLUMNS:
        for row in foreign_keys(connection, name):
            nullable = any(column[1] == row[3] and not column[3] for column in columns_of(connection, name))
            lines.append(f"    {row[2]} {'|o' if nullable else '||'}--o{{ {name} : {row[3]}")
    return "\n".join([*lines, "```", ""])


def describe_table(connection: sqlite3.Connection, table: sa.Table) -> str:
    name = table.name
    model = next(mapper.class_ for mapper in models.Base.registry.mappers if mapper.local_table is table)
    lines = [f"## {name}", "", (model.__doc__ or "").strip(), ""]
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    lines += ["| column | SQLite | PostgreSQL | null | what it is |", "|---|---|---|---|---|"]
    for _, column, kind, not_null, _, _, _ in columns_of(connection, name):
        elsewhere = table.columns[column].type.compile(dialect) if column in table.columns else ELSEWHERE[column]
        lines.append(f"| {column} | {kind} | {elsewhere} | {'' if not_null else 'yes'} | {COLUMNS[name][column]} |")
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone()
    lines += ["", "Constraints:", ""]
    lines += [f"- {rule.strip()}" for rule in re.findall(r"CONSTRAINT (.*?),?\s*(?:\n|\)$)", one_column_a_line(sql))]
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = ? ORDER BY name",
        (name,),
    ).fetchall()
    if indexes:
        served = comments_of_indexes()
        lines += ["", "| index | on | serves |", "|---|---|---|"]
        for index, statement in indexes:
            target = statement.partition(f" ON {name} ")[2]
            unique = "unique " if statement.startswith("CREATE UNIQUE") else ""
            lines.append(f"| {index} | {unique}`{target}` | {served[index]} |")
    return "\n".join([*lines, ""])


def comments_of_indexes() -> dict[str, str]:
    """Return the comment above each index in the models, which names the queries that the index serves."""
    source = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (models, queue_models))
    found = re.findall(r'((?:^ +#.*\n)+) +(?:partial_index|Index)\(\s*"(\w+)"', source, re.MULTILINE)
    served = {name: " ".join(line.strip(" #") for line in comment.strip().splitlines()) for comment, name in found}
    indexes = {str(index.name) for table in models.Base.metadata.tables.values() for index in table.indexes}
    unserved = ", ".join(sorted(indexes - served.keys()))
    assert not unserved, f"{models.__file__}: no comment says what {unserved} serves"
    return served


def full_text_index(connection: sqlite3.Connection) -> str:
    statements = [sql for sql in create_statements(connection) if "prompts_fts" in sql]
    lines = [FULL_TEXT_ON_SQLITE, "```sql", *(f"{sql};" for sql in statements), "```", ""]
    return "\n".join([*lines, FULL_TEXT_ON_POSTGRESQL])


def life_cycle() -> str:
    lines = ["## Life cycle of a generation", "", (GenerationStatus.__doc__ or "").strip(), ""]
    lines += ["```mermaid", "stateDiagram-v2", f"    [*] --> {GenerationStatus.PENDING}"]
    lines += [f"    {status} --> {target}" for status in GenerationStatus for target in GenerationStatus
              if target in LEGAL_MOVES[status]]  # fmt: skip
    lines += [f"    {status} --> [*]" for status in GenerationStatus if not LEGAL_MOVES[status]]
    lines += ["```", "", "[Life cycle of a generation](docs/explanation/lifecycle.md) explains each move.", ""]
    return "\n".join(lines)


def revisions() -> str:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "alembic").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    lines = ["## Revisions", "", "| revision | what it does | downgrade |", "|---|---|---|"]
    for script in sorted(ScriptDirectory.from_config(config).walk_revisions(), key=lambda script: script.revision):
        words = [" ".join(part.split()) for part in (script.module.__doc__ or "").strip().split("\n\n")]
        loss = " ".join(re.findall(r"(?:^|(?<=\. ))Downgrade .*$", "\n".join(words), re.MULTILINE))
        assert loss, f"revision {script.revision}: the docstring does not say what its downgrade loses"
        lines.append(f"| {script.revision} | {words[0]} | {loss.removeprefix('Downgrade ')} |")
    return "\n".join([*lines, ""])


def columns_of(connection: sqlite3.Connection, table: str) -> list[Any]:
    return connection.execute(f"PRAGMA table_xinfo({table})").fetchall()


def foreign_keys(connection: sqlite3.Connection, table: str) -> list[Any]:
    return sorted(connection.execute(f"PRAGMA foreign_key_list({table})").fetchall())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
