"""Write what is made from the schema: database-schema.md, and SCHEMA_SQL at the end of services/storage/schema.py.

Both come from a database that the migrations made a moment ago, so they say what is, not what was meant.
With --check nothing is written: exits 1 when one of them is stale.
"""

import re
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, also where another one is installed

import sqlalchemy as sa  # noqa: E402
from alembic.config import Config  # noqa: E402
from alembic.script import ScriptDirectory  # noqa: E402
from sqlalchemy.dialects import postgresql  # noqa: E402

from services.storage import Storage, migrations, models  # noqa: E402
from services.storage.schema import LEGAL_MOVES, REVISIONS, GenerationStatus  # noqa: E402

DOCUMENT = ROOT / "database-schema.md"
MODULE = ROOT / "services/storage/schema.py"
ASSIGNMENT = "SCHEMA_SQL: Final = "

COLUMNS = {
    "generations": {
        "id": "UUID text, time-ordered, or the caller's own",
        "prompt": "the text to render, exactly as given",
        "model_name": "which model renders it",
        "model_version": "its version, if it matters",
        "duration_seconds": "wanted length",
        "sample_rate": "wanted, in Hz",
        "channels": "1 mono, 2 stereo",
        "file_path": "where the track goes",
        "file_size_bytes": "of the finished track",
        "status": "see the life of a generation below",
        "created_at": "when it was asked for",
        "completed_at": "when it finished, however it ended",
        "generation_time_seconds": "how long the rendering took",
        "error_message": "why it failed",
        "metadata": "JSON object: what is known of the track",
        "prompt_id": "the prompt of that text",
        "priority": "higher is served first",
        "scheduled_at": "not due before",
        "attempt": "grows with every claim: the fence of the lease",
        "max_attempts": "how many claims before it fails for good",
        "started_at": "of the current or last attempt",
        "worker_id": "who has the lease",
        "lease_expires_at": "then it may be reclaimed",
        "progress": "0 to 1, from the heartbeat",
        "current_step": "what the worker is doing",
        "cancel_requested_at": "the next heartbeat tells the worker",
        "batch_id": "generations asked for together",
        "parent_id": "the generation this is a variation of",
        "idempotency_key": "the same key again is the same request",
        "is_favorite": "marked by a listener",
        "parameters": "JSON object: the sampling request",
        "version": "grows with every change: of two writers the second is refused",
    },
    "prompts": {
        "id": "",
        "text": "unique",
        "used_count": "how many generations were asked for with it",
        "first_used_at": "",
        "last_used_at": "",
    },
    "attempts": {
        "generation_id": "",
        "number": "the generation's attempt",
        "worker_id": "who had the lease",
        "started_at": "",
        "finished_at": "",
        "outcome": "how it ended",
        "error_message": "why it failed",
    },
    "queue_state": {
        "id": "always 1",
        "paused_at": "claims find nothing while this is set",
        "reason": "what people are told",
    },
}
KEYS_OF_POSTGRESQL = """\
On PostgreSQL the key on `prompts.text` is a unique index on `md5(text)`, `uq_prompts_text_md5`: a b-tree there refuses
keys over 2.7 kB. Times are `TIMESTAMP WITH TIME ZONE`, JSON is `JSONB`; everything else is the same.
"""


def main(arguments: list[str]) -> int:
    """Write both files, or say which is stale."""
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
    """Return the module's source with the schema as its last assignment."""
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
    """Return what makes the schema, tables before indexes before triggers; not what SQLite makes by itself."""
    rows = connection.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL "
        "AND name NOT IN (SELECT name FROM pragma_table_list WHERE type = 'shadow') "
        "ORDER BY type = 'trigger', type = 'index', tbl_name, name"
    ).fetchall()
    return [tidy(sql) for (sql,) in rows]


def tidy(sql: str) -> str:
    """Return a statement as one would write it: SQLite quotes the name of a renamed table."""
    sql = re.sub(r'^CREATE TABLE "(\w+)"', r"CREATE TABLE \1", sql)
    sql = re.sub(r"[ \t]+\n", "\n", sql).replace("\t", "    ")
    sql = re.sub(r"(CONSTRAINT \w+) (CHECK|FOREIGN KEY) ?", r"\1\n        \2 ", sql)
    return re.sub(r"^(CREATE (?:UNIQUE )?INDEX .*\)) (WHERE .*)$", r"\1\n    \2", sql)


def describe(connection: sqlite3.Connection) -> str:
    """Return the whole document."""
    tables = models.Base.metadata.tables
    parts = [
        "# Database schema\n",
        f"Revision {REVISIONS[-1]}. Written by `just db-docs` from a freshly migrated database: do not edit.\n",
        er_diagram(connection),
        *(describe_table(connection, tables[name]) for name in COLUMNS),
        KEYS_OF_POSTGRESQL,
        life_of_a_generation(),
        revisions(),
    ]
    unknown = {f"{name}.{column.name}" for name, table in tables.items() for column in table.columns} - {
        f"{name}.{column}" for name, columns in COLUMNS.items() for column in columns
    }
    assert not unknown, f"scripts/db_docs.py: COLUMNS does not say what {', '.join(sorted(unknown))} is"
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
        elsewhere = table.columns[column].type.compile(dialect)
        lines.append(f"| {column} | {kind} | {elsewhere} | {'' if not_null else 'yes'} | {COLUMNS[name][column]} |")
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone()
    lines += ["", "Constraints:", ""]
    lines += [f"- {rule.strip()}" for rule in re.findall(r"CONSTRAINT (.*?),?\s*(?:\n|\)$)", sql)]
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
    """Return the comment above each index of the models: it names the queries that the index serves."""
    source = Path(models.__file__).read_text("utf-8")
    found = re.findall(r'((?:^ +#.*\n)+) +(?:partial_index|Index)\(\s*"(\w+)"', source, re.MULTILINE)
    served = {name: " ".join(line.strip(" #") for line in comment.strip().splitlines()) for comment, name in found}
    served["idx_prompts_unspaced"] = "search_prompts, in languages written without spaces"  # only the revisions know it
    indexes = {str(index.name) for table in models.Base.metadata.tables.values() for index in table.indexes}
    unserved = ", ".join(sorted(indexes - served.keys()))
    assert not unserved, f"{models.__file__}: no comment says what {unserved} serves"
    return served


def life_of_a_generation() -> str:
    lines = ["## Life of a generation", "", (GenerationStatus.__doc__ or "").strip(), ""]
    lines += ["```mermaid", "stateDiagram-v2", f"    [*] --> {GenerationStatus.PENDING}"]
    lines += [f"    {status} --> {target}" for status in GenerationStatus for target in GenerationStatus
              if target in LEGAL_MOVES[status]]  # fmt: skip
    lines += [f"    {status} --> [*]" for status in GenerationStatus if not LEGAL_MOVES[status]]
    return "\n".join([*lines, "```", ""])


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
