"""Link generations to their prompts by id.

Revision ID: 002
Revises: 001

Mends on the way what has one right answer: texts without a prompt get one, prompts stored twice become one, and on
PostgreSQL what another program made with other types and names becomes that of revision 001.

Downgrade loses the links, which the texts still tell; mended prompts stay.
"""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision: str = "002"
down_revision: str | None = "001"
branch_labels: str | None = None
depends_on: str | None = None

# information_schema's word for the type, and how to get there from whatever is stored instead
POSTGRESQL_TYPES = {
    "text": ("TEXT", "{column}"),
    "bigint": ("BIGINT", "{column}"),
    "double precision": ("DOUBLE PRECISION", "{column}"),
    "timestamp with time zone": ("TIMESTAMP WITH TIME ZONE", "{column} AT TIME ZONE 'UTC'"),
    # text that is no JSON is kept as a JSON string
    "jsonb": (
        "JSONB",
        (
            "CASE WHEN pg_input_is_valid({column}::text, 'jsonb') THEN {column}::text::jsonb "
            "ELSE to_jsonb({column}::text) END"
        ),
    ),
}
POSTGRESQL_COLUMNS = {
    "generations": {
        "text": ("id", "prompt", "model_name", "model_version", "file_path", "status", "error_message"),
        "bigint": ("file_size_bytes",),
        "double precision": ("duration_seconds", "generation_time_seconds"),
        "timestamp with time zone": ("created_at", "completed_at"),
        "jsonb": ("metadata",),
    },
    "prompts": {"text": ("text",), "timestamp with time zone": ("first_used_at", "last_used_at")},
}
NOT_NULL = {
    "generations": ("prompt model_name duration_seconds sample_rate channels file_path status created_at".split()),
    "prompts": "text used_count first_used_at last_used_at".split(),
}


def upgrade() -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    if not sqlite:
        convert_columns()
        rename_primary_keys()
        drop_text_keys()
    merge_duplicates()
    op.execute("DROP INDEX IF EXISTS idx_prompts_text")
    if not sqlite:
        op.execute("CREATE UNIQUE INDEX IF NOT EXISTS uq_prompts_text_md5 ON prompts (md5(text))")

    op.execute(
        "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) "
        "SELECT prompt, count(*), min(created_at), max(created_at) FROM generations "
        "WHERE NOT EXISTS (SELECT 1 FROM prompts WHERE prompts.text = generations.prompt) GROUP BY prompt"
    )
    op.add_column("generations", sa.Column("prompt_id", sa.Integer))
    # A join: PostgreSQL has no index on the text itself, and a subquery for every row would read all prompts each time.
    op.execute("UPDATE generations SET prompt_id = prompts.id FROM prompts WHERE prompts.text = generations.prompt")


def convert_columns() -> None:
    for table, columns_by_type in POSTGRESQL_COLUMNS.items():
        columns = sa.text(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = :table"
        )
        present = {row.column_name: row for row in op.get_bind().execute(columns, {"table": table})}
        changes = [
            f"ALTER COLUMN {column} TYPE {POSTGRESQL_TYPES[wanted][0]} "
            f"USING {POSTGRESQL_TYPES[wanted][1].format(column=column)}"
            for wanted, columns in columns_by_type.items()
            for column in columns
            if present[column].data_type != wanted
        ]
        changes += [
            f"ALTER COLUMN {column} SET NOT NULL" for column in NOT_NULL[table] if present[column].is_nullable == "YES"
        ]
        if changes:
            refuse_views(table)
            op.execute(sa.text(f"ALTER TABLE {table} {', '.join(changes)}".replace(":", r"\:")))


def refuse_views(table: str) -> None:
    """Raise when a view shows the table: PostgreSQL changes the type of none of its columns then."""
    views = op.get_bind().exec_driver_sql(
        "SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid "
        f"WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = '{table}'::regclass ORDER BY 1"
    )
    for view in views.scalars():
        raise CommandError(
            f"the view {view} shows columns of {table} whose types change: drop it, run `just db-migrate`, make it "
            "again. Nothing was changed."
        )


def rename_primary_keys() -> None:
    keys = op.get_bind().exec_driver_sql(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint "
        "WHERE contype = 'p' AND conrelid IN ('generations'::regclass, 'prompts'::regclass)"
    )
    for table, name in keys.all():
        if name != f"pk_{table}":
            op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {quote(name)} TO pk_{table}")


def drop_text_keys() -> None:
    """Drop every key on the text itself: it would go on refusing prompts over 2.7 kB."""
    keys = op.get_bind().exec_driver_sql(
        "SELECT i.relname, c.conname FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid "
        "JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attname = 'text' AND a.attnum = ANY (x.indkey) "
        "JOIN pg_am AS m ON m.oid = i.relam AND m.amname = 'btree' "
        "LEFT JOIN pg_constraint AS c ON c.conindid = i.oid WHERE x.indrelid = 'prompts'::regclass"
    )
    for index, constraint in keys.all():
        op.execute(
            f"ALTER TABLE prompts DROP CONSTRAINT {quote(constraint)}" if constraint else f"DROP INDEX {quote(index)}"
        )


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def merge_duplicates() -> None:
    """Make one prompt of those with the same text: only a table made without its UNIQUE constraint has any."""
    op.execute(
        "UPDATE prompts SET "
        "used_count = (SELECT sum(twin.used_count) FROM prompts AS twin WHERE twin.text = prompts.text), "
        "first_used_at = (SELECT min(twin.first_used_at) FROM prompts AS twin WHERE twin.text = prompts.text), "
        "last_used_at = (SELECT max(twin.last_used_at) FROM prompts AS twin WHERE twin.text = prompts.text) "
        "WHERE text IN (SELECT text FROM prompts GROUP BY text HAVING count(*) > 1)"
    )
    op.execute("DELETE FROM prompts WHERE id NOT IN (SELECT min(id) FROM prompts GROUP BY text)")


def downgrade() -> None:
    op.execute("ALTER TABLE generations DROP COLUMN prompt_id")
    if op.get_context().dialect.name == "sqlite":
        op.create_index("idx_prompts_text", "prompts", ["text"])
