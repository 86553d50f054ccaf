"""Link generations to their prompts by id.

Revision ID: 002
Revises: 001

Also repairs rows in an adopted database: creates the missing prompts, merges prompts with the same text and, on
PostgreSQL, gives columns and keys that another program created the types and names of revision 001.

Downgrade loses the links, which the next upgrade restores from the texts. Repairs are not undone.
"""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision: str = "002"
down_revision: str | None = "001"
branch_labels: str | None = None
depends_on: str | None = None

# By the type's name in information_schema: its SQL name, and the expression that converts a column of another type.
POSTGRESQL_TYPES = {
    "text": ("TEXT", "{column}"),
    "bigint": ("BIGINT", "{column}"),
    "double precision": ("DOUBLE PRECISION", "{column}"),
    "timestamp with time zone": ("TIMESTAMP WITH TIME ZONE", "{column} AT TIME ZONE 'UTC'"),
    # text that is not JSON becomes a JSON string
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
    # A script (--sql) cannot look for what another program created: it is for tables of revision 001.
    if not op.get_context().as_sql:
        repair()

    op.execute(
        "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) "
        "SELECT prompt, count(*), min(created_at), max(created_at) FROM generations "
        "WHERE NOT EXISTS (SELECT 1 FROM prompts WHERE prompts.text = generations.prompt) GROUP BY prompt"
    )
    op.add_column("generations", sa.Column("prompt_id", sa.Integer))
    # A join, because PostgreSQL has no index on the text itself: a subquery would read all prompts for every row.
    op.execute("UPDATE generations SET prompt_id = prompts.id FROM prompts WHERE prompts.text = generations.prompt")


def repair() -> None:
    """Give the tables of another program the types, keys and indexes of revision 001, and merge its prompts."""
    sqlite = op.get_context().dialect.name == "sqlite"
    if not sqlite:
        convert_columns()
        rename_primary_keys()
        drop_text_keys()
    merge_duplicates()
    indexes = {index["name"]: index["column_names"] for index in sa.inspect(op.get_bind()).get_indexes("prompts")}
    if indexes.get("idx_prompts_text") == ["text"]:
        op.execute("DROP INDEX idx_prompts_text")
    if not sqlite and not has_md5_index():
        op.execute("CREATE UNIQUE INDEX uq_prompts_text_md5 ON prompts (md5(text))")


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
    """Raise if a view selects from the table: PostgreSQL then refuses to change the types of the view's columns."""
    views = op.get_bind().exec_driver_sql(
        "SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid "
        f"WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = '{table}'::regclass ORDER BY 1"
    )
    for view in views.scalars():
        raise CommandError(
            f"the view {view} selects from {table}, whose column types have to change: drop it, run `just db-migrate`, "
            "then create it again. Nothing was changed."
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
    """Drop every plain b-tree index on the text alone, because it refuses prompts over 2.7 kB. See ADR 7.

    Raises if there is another b-tree index that contains the text: it refuses them too, and is somebody's own.
    """
    keys = op.get_bind().exec_driver_sql(
        "SELECT i.relname, c.conname, "
        "x.indnatts = 1 AND x.indpred IS NULL AND x.indexprs IS NULL AND o.opcdefault AS is_plain "
        "FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid "
        "JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attname = 'text' AND a.attnum = ANY (x.indkey) "
        "JOIN pg_am AS m ON m.oid = i.relam AND m.amname = 'btree' JOIN pg_opclass AS o ON o.oid = x.indclass[0] "
        "LEFT JOIN pg_constraint AS c ON c.conindid = i.oid AND c.conrelid = x.indrelid "
        "WHERE x.indrelid = 'prompts'::regclass"
    )
    for index, constraint, is_plain in keys.all():
        if not is_plain:
            raise CommandError(
                f"the index {index} contains the text of prompts, and would refuse prompts over 2.7 kB: drop it or use "
                "md5(text). Nothing was changed."
            )
        op.execute(
            f"ALTER TABLE prompts DROP CONSTRAINT {quote(constraint)}" if constraint else f"DROP INDEX {quote(index)}"
        )


def has_md5_index() -> bool:
    index = op.get_bind().exec_driver_sql(
        "SELECT 1 FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid "
        "WHERE x.indrelid = 'prompts'::regclass AND x.indisunique AND i.relname = 'uq_prompts_text_md5' "
        "AND pg_get_expr(x.indexprs, x.indrelid) = 'md5(text)' AND x.indpred IS NULL"
    )
    return index.first() is not None


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def merge_duplicates() -> None:
    """Merge prompts with the same text, which exist only in a table created without the UNIQUE constraint."""
    if op.get_bind().exec_driver_sql("SELECT 1 FROM prompts GROUP BY text HAVING count(*) > 1 LIMIT 1").first() is None:
        return
    refuse_references()
    op.execute(
        "UPDATE prompts SET "
        "used_count = (SELECT sum(same.used_count) FROM prompts AS same WHERE same.text = prompts.text), "
        "first_used_at = (SELECT min(same.first_used_at) FROM prompts AS same WHERE same.text = prompts.text), "
        "last_used_at = (SELECT max(same.last_used_at) FROM prompts AS same WHERE same.text = prompts.text) "
        "WHERE text IN (SELECT text FROM prompts GROUP BY text HAVING count(*) > 1)"
    )
    op.execute("DELETE FROM prompts WHERE id NOT IN (SELECT min(id) FROM prompts GROUP BY text)")


def refuse_references() -> None:
    """Raise if another table refers to prompts: its rows would go, or refer to nothing, with the merged prompts."""
    inspector = sa.inspect(op.get_bind())
    for table in inspector.get_table_names():
        if any(key["referred_table"] == "prompts" for key in inspector.get_foreign_keys(table)):
            raise CommandError(
                f"prompts holds texts more than once, which have to become one row, and the table {table} refers to "
                "prompts: merge these prompts first. Nothing was changed."
            )


def downgrade() -> None:
    op.execute("ALTER TABLE generations DROP COLUMN prompt_id")
    if op.get_context().dialect.name == "sqlite":
        op.create_index("idx_prompts_text", "prompts", ["text"])
