"""Add CHECK constraints, foreign keys and NOT NULL, so that the database enforces the lifecycle of generations.

Revision ID: 006
Revises: 005

Finished generations without completed_at, which the first release wrote, get their created_at. Any other row that
violates a constraint stays unchanged: SQLite copies it without checks, PostgreSQL leaves the constraint NOT VALID.
See ADR 11.

SQLite cannot add a constraint to a table, so both tables are rebuilt there, with the columns, indexes and triggers that
other programs added. Downgrade drops the constraints and loses no row.
"""

import re

from alembic import op
from alembic.util import CommandError

revision: str = "006"
down_revision: str | None = "005"
branch_labels: str | None = None
depends_on: str | None = None

FINISHED = "status IN ('completed', 'failed', 'cancelled')"

WHOLE = "{0} BETWEEN {1} AND 2147483647 AND {0} = CAST({0} AS INTEGER)"
SIZE = "file_size_bytes BETWEEN 0 AND 9223372036854775807 AND file_size_bytes = CAST(file_size_bytes AS BIGINT)"
CHECKS = {
    "prompts": {"used_count_positive": WHOLE.format("used_count", 1)},
    "generations": {
        "status_known": "status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')",
        "finished_has_time": f"({FINISHED}) = (completed_at IS NOT NULL)",
        "lease_while_processing": "lease_expires_at IS NULL OR status = 'processing'",
        "duration_positive": "duration_seconds > 0 AND duration_seconds <= 1e300",
        "sample_rate_positive": WHOLE.format("sample_rate", 1),
        "channels_mono_or_stereo": "channels IN (1, 2)",
        "file_size_not_negative": SIZE,
        "generation_time_not_negative": "generation_time_seconds BETWEEN 0 AND 1e300",
        "progress_is_fraction": "progress BETWEEN 0 AND 1",
        "priority_whole": WHOLE.format("priority", -2147483647),
        "attempt_not_negative": WHOLE.format("attempt", 0),
        "max_attempts_positive": WHOLE.format("max_attempts", 1),
        "version_positive": WHOLE.format("version", 1),
    },
}
# Times that sort as they are stored and that every program can read. The space keeps 'now' from meaning the present.
TIMES = {
    "prompts": ("first_used_at", "last_used_at"),
    "generations": (
        "created_at", "scheduled_at", "started_at", "completed_at", "lease_expires_at", "cancel_requested_at"
    ),
}  # fmt: skip
TIME_FORMS = {
    "sqlite": (
        "datetime(substr({0}, 1, 19) || ' ', '+0 days') IS substr({0}, 1, 19) AND substr({0}, 1, 4) > '0000' "
        "AND (length({0}) = 19 OR substr({0}, 20) GLOB '.[0-9]*' AND rtrim(substr({0}, 21), '0123456789') = '')"
    ),
    "postgresql": "{0} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
}
FOREIGN_KEYS = {
    "fk_generations_prompt_id_prompts": "FOREIGN KEY (prompt_id) REFERENCES prompts (id) ON DELETE CASCADE",
    "fk_generations_parent_id_generations": "FOREIGN KEY (parent_id) REFERENCES generations (id) ON DELETE SET NULL",
}
SQLITE_COLUMNS = {
    "prompts": {
        "id": "INTEGER NOT NULL",
        "text": "TEXT NOT NULL",
        "used_count": "INTEGER NOT NULL",
        "first_used_at": "DATETIME NOT NULL",
        "last_used_at": "DATETIME NOT NULL",
    },
    "generations": {
        "id": "TEXT NOT NULL",
        "prompt": "TEXT NOT NULL",
        "model_name": "TEXT NOT NULL",
        "model_version": "TEXT",
        "duration_seconds": "DOUBLE NOT NULL",
        "sample_rate": "INTEGER NOT NULL",
        "channels": "INTEGER NOT NULL",
        "file_path": "TEXT NOT NULL",
        "file_size_bytes": "INTEGER",
        "status": "TEXT NOT NULL",
        "created_at": "DATETIME NOT NULL",
        "completed_at": "DATETIME",
        "generation_time_seconds": "DOUBLE",
        "error_message": "TEXT",
        "metadata": "TEXT",
        "prompt_id": "INTEGER",
        "priority": "INTEGER NOT NULL",
        "scheduled_at": "DATETIME NOT NULL",
        "attempt": "INTEGER NOT NULL",
        "max_attempts": "INTEGER NOT NULL",
        "started_at": "DATETIME",
        "worker_id": "TEXT",
        "lease_expires_at": "DATETIME",
        "progress": "DOUBLE",
        "current_step": "TEXT",
        "cancel_requested_at": "DATETIME",
        "batch_id": "TEXT",
        "parent_id": "TEXT",
        "idempotency_key": "TEXT",
        "is_favorite": "BOOLEAN NOT NULL",
        "parameters": "TEXT",
        "version": "INTEGER NOT NULL",
    },
}
# The defaults that revisions 001, 003 and 004 set; a downgrade restores them.
SQLITE_DEFAULTS = {
    "used_count": "1",
    "priority": "0",
    "attempt": "0",
    "max_attempts": "3",
    "is_favorite": "0",
    "version": "1",
}
# A quoted name, a string, a comment, a word, spaces or a single character: enough to read a CREATE TABLE.
TOKEN = r'"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|\'(?:[^\']|\'\')*\'|--[^\n]*|/\*.*?\*/|[\w$]+|\s+|.'
TABLE_CLAUSES = frozenset("CONSTRAINT PRIMARY UNIQUE CHECK FOREIGN".split())
COLUMN_CLAUSES = frozenset("CONSTRAINT PRIMARY UNIQUE CHECK NOT NULL DEFAULT COLLATE REFERENCES GENERATED AS".split())
NOT_NULL = {"generations": ("scheduled_at",)}
SERVER_DEFAULTS = {
    "prompts": ("used_count",),
    "generations": ("priority", "attempt", "max_attempts", "is_favorite", "version"),
}


def upgrade() -> None:
    op.execute(f"UPDATE generations SET completed_at = created_at WHERE {FINISHED} AND completed_at IS NULL")
    if op.get_context().dialect.name == "sqlite":
        for table, columns in SQLITE_COLUMNS.items():
            rebuild(table, without_constraints(table), columns, own_constraints(table), [])
    else:
        constrain_postgresql()


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        for table, columns in SQLITE_COLUMNS.items():
            rebuild(table, columns, without_constraints(table), [], own_constraints(table))
        return
    for name in FOREIGN_KEYS:
        op.drop_constraint(name, "generations")
    for table in ("prompts", "generations"):
        for name in checks(table):
            op.drop_constraint(f"ck_{table}_{name}", table)
        for column in SERVER_DEFAULTS[table]:
            default = (
                {"0": "false"}.get(SQLITE_DEFAULTS[column]) if column == "is_favorite" else SQLITE_DEFAULTS[column]
            )
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}")
    op.execute("ALTER TABLE generations ALTER COLUMN scheduled_at DROP NOT NULL")
    op.execute("ALTER TABLE generations ALTER COLUMN status SET STATISTICS -1")


def checks(table: str) -> dict[str, str]:
    """Return the CHECKs of a table on this database system: their rules by name."""
    system = op.get_context().dialect.name
    forms = {f"{column}_form": TIME_FORMS[system].format(column) for column in TIMES[table]}
    flags = {"favorite_is_flag": "is_favorite IN (0, 1)"} if (table, system) == ("generations", "sqlite") else {}
    return CHECKS[table] | flags | forms


def own_constraints(table: str) -> list[str]:
    """Return the CHECKs and foreign keys that this revision adds to a table."""
    constraints = [f"CONSTRAINT ck_{table}_{name} CHECK ({rule})" for name, rule in checks(table).items()]
    if table == "generations":
        constraints += [f"CONSTRAINT {name} {rule}" for name, rule in FOREIGN_KEYS.items()]
    return constraints


def without_constraints(table: str) -> dict[str, str]:
    """Return the columns of a table before this revision."""
    columns = {
        name: f"{kind} DEFAULT {SQLITE_DEFAULTS[name]}" if name in SQLITE_DEFAULTS else kind
        for name, kind in SQLITE_COLUMNS[table].items()
    }
    return columns | ({"scheduled_at": "DATETIME"} if table == "generations" else {})


def constrain_postgresql() -> None:
    for table in ("prompts", "generations"):
        for column in SERVER_DEFAULTS[table]:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT")
        for column in NOT_NULL.get(table, ()):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL")
        rules = {f"ck_{table}_{name}": f"CHECK ({rule})" for name, rule in checks(table).items()}
        for name, rule in (rules | (FOREIGN_KEYS if table == "generations" else {})).items():
            op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {rule} NOT VALID")
            validate(table, name)
    # If ANALYZE ran while all rows were pending, the planner claims through an index of the history and reads every
    # finished row. Without statistics on status it uses the queue's index: 4.3 times the throughput of four workers.
    op.execute("ALTER TABLE generations ALTER COLUMN status SET STATISTICS 0")


def validate(table: str, name: str) -> None:
    """Let the constraint hold for the existing rows too, if they meet it; a script (--sql) stops if one does not."""
    if op.get_context().as_sql:
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        return
    connection = op.get_bind()
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
    except Exception as error:
        if getattr(getattr(error, "orig", None), "sqlstate", "")[:2] != "23":
            raise


def rebuild(table: str, old: dict[str, str], new: dict[str, str], constraints: list[str], dropped: list[str]) -> None:
    """Rebuild `table` with the columns `new` and these constraints; keep all rows and whatever others added to it.

    `old` are our columns as they were, `dropped` our constraints to leave out. CHECK constraints are not applied to the
    copied rows, and foreign keys are off on this connection (https://sqlite.org/lang_altertable.html, section 7).
    """
    connection = op.get_bind()
    stored = connection.exec_driver_sql(f"PRAGMA table_xinfo({table})").all()
    if {row.name.lower() for row in stored if row.pk} - {"id"}:
        raise CommandError(f"the primary key of {table} is not its id: make id the primary key. Nothing was changed.")
    sql = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
    parts, options = split_table(connection.exec_driver_sql(sql, (table,)).scalar_one())
    definitions = dict(zip((row.name for row in stored), parts, strict=False))
    kept_constraints = [clause for part in parts[len(stored) :] for clause in split_clauses(part, TABLE_CLAUSES)[1:]]
    own_columns = dict(new)
    for name, definition in definitions.items():
        if name.lower() in own_columns:
            kept, moved = foreign_clauses(table, name.lower(), old[name.lower()], definition)
            own_columns[name.lower()] += kept
            kept_constraints += moved
    added_columns = [row for row in stored if row.name.lower() not in new]
    body = [f"{name} {kind}" for name, kind in own_columns.items()]
    body += [definitions[row.name] for row in added_columns]
    body += [f"CONSTRAINT pk_{table} PRIMARY KEY (id)"]
    body += ["CONSTRAINT uq_prompts_text UNIQUE (text)"] if table == "prompts" else []
    body += [*constraints, *without_own(table, kept_constraints, {split_name(clause)[0] for clause in dropped})]

    # generated columns (hidden 2 or 3) cannot be inserted into
    names = [*new, *(quote(row.name) for row in added_columns if not row.hidden)]
    if table == "generations" and "ROWID" not in options.upper():
        # Without it, SQLite would number the rows again, and a full-text index of somebody's own refers to the numbers.
        present = {row.name.lower() for row in stored}
        names += [alias for alias in ("rowid", "oid", "_rowid_") if alias not in present][:1]
    lines = ",\n\t".join(body)
    copy_rows(table, f"(\n\t{lines}\n) {options}".rstrip(), ", ".join(names))


def copy_rows(table: str, body: str, names: str) -> None:
    """Replace `table` by one with this definition and the same rows, indexes and triggers."""
    connection = op.get_bind()
    sql = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type <> 'table' AND sql IS NOT NULL"
    indexes_and_triggers = connection.exec_driver_sql(sql, (table,)).scalars().all()
    for pragma in ("ignore_check_constraints", "legacy_alter_table"):
        connection.exec_driver_sql(f"PRAGMA {pragma} = ON")
    connection.exec_driver_sql(f"CREATE TABLE {table}_new {body}")
    connection.exec_driver_sql(f"INSERT INTO {table}_new ({names}) SELECT {names} FROM {table}")
    connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql(f"ALTER TABLE {table}_new RENAME TO {table}")
    for statement in indexes_and_triggers:
        connection.exec_driver_sql(statement)
    for pragma in ("ignore_check_constraints", "legacy_alter_table"):
        connection.exec_driver_sql(f"PRAGMA {pragma} = OFF")


def split_table(sql: str) -> tuple[list[str], str]:
    """Return the parts of a CREATE TABLE between its commas, without comments, and the options that follow them."""
    parts: list[str] = []
    depth, part = 0, ""
    for token in re.findall(TOKEN, sql, re.DOTALL):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if (token == "(" and depth == 1) or (token == "," and depth == 1) or (token == ")" and depth == 0):
            parts.append(part.strip())
            part = ""
        else:
            part += " " if token.startswith(("--", "/*")) else token
    return parts[1:], part.strip()


def split_clauses(part: str, starters: frozenset[str]) -> list[str]:
    """Return what stands before the constraints of a part of a CREATE TABLE, then each constraint with its name."""
    clauses, words, depth = [""], [""], 0
    tokens = re.findall(TOKEN, part, re.DOTALL)
    for position, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token, 0)
        following = "".join(tokens[position + 1 : position + 3]).strip().upper()
        starts = depth == 0 and token.upper() in starters and words[-1] not in ("SET", "DEFAULT", "NOT")
        if token.upper() == "NOT" and following != "NULL":
            starts = False  # NOT DEFERRABLE
        if starts and not (words[0] == "CONSTRAINT" and len(words) == 2):
            clauses.append("")
            words = []
        clauses[-1] += token
        if not token.isspace():
            words.append(token.upper())
    return [clause.strip() for clause in clauses]


def split_name(clause: str) -> tuple[str, str]:
    """Return the name of a constraint, "" if it has none, and its rule."""
    if not clause.upper().startswith("CONSTRAINT"):
        return "", clause
    name = re.match(TOKEN, clause[10:].lstrip(), re.DOTALL)
    return (unquote(name[0]), clause[10:].lstrip()[len(name[0]) :].lstrip()) if name else ("", clause)


def foreign_clauses(table: str, column: str, own: str, definition: str) -> tuple[str, list[str]]:
    """Return what others added to one of our columns: what has to stay in its definition, and constraints of the table.

    `own` is our definition of the column at this revision.
    """
    kept, constraints = "", []
    for clause in split_clauses(definition, COLUMN_CLAUSES)[1:]:
        name, rule = split_name(clause)
        named = f"CONSTRAINT {quote(name)} " if name else ""
        word = rule.split("(")[0].split()[0].upper()
        if word in ("GENERATED", "AS") or "AUTOINCREMENT" in rule.upper():
            raise CommandError(f"the column {table}.{column} cannot keep {rule!r}: remove it. Nothing was changed.")
        if word in ("COLLATE", "DEFAULT") or (word == "NOT" and "NOT NULL" not in own):
            kept += f" {clause}" if not (word == "DEFAULT" and " DEFAULT " in own) else ""
        elif word == "REFERENCES":
            constraints.append(f"{named}FOREIGN KEY ({column}) {rule}")
        elif word == "UNIQUE":
            constraints.append(f"{named}UNIQUE ({column}){rule[6:]}")
        elif word == "CHECK":
            constraints.append(clause)
    return kept, constraints


def without_own(table: str, constraints: list[str], dropped: set[str]) -> list[str]:
    """Return the constraints that others added to `table`; raise if one has a name that this revision needs."""
    coming = {split_name(clause)[0] for clause in own_constraints(table)}
    foreign = []
    for clause in constraints:
        name, rule = split_name(clause)
        is_key = rule.upper().startswith("PRIMARY") or (
            table == "prompts" and re.sub(r'[\s"`\[\]]', "", rule).upper().startswith("UNIQUE(TEXT)")
        )
        if is_key or name.lower() in dropped:
            continue
        if name.lower() in coming:
            raise CommandError(f"{table} already has the constraint {name}: rename it. Nothing was changed.")
        foreign.append(clause)
    return foreign


def unquote(name: str) -> str:
    closing = {"[": "]"}.get(name[0], name[0])
    return name[1:-1].replace(closing * 2, closing) if name[0] in "\"`['" else name


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
