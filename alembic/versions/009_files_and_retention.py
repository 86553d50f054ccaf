"""Add what is known about the file of a generation, the totals of pruned generations, and the files left to delete.

Revision ID: 009
Revises: 008

file_sha256, file_format and file_missing_since of generations; usage_totals, from which get_usage() counts pruned
generations; pruned_files, so that a prune that was killed deletes its files when it runs again. See ADR 27.

Downgrade drops these columns and tables and their values: get_usage() no longer counts pruned generations.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "009"
down_revision: str | None = "008"
branch_labels: str | None = None
depends_on: str | None = None

TIME = {"sqlite": "DATETIME", "postgresql": "TIMESTAMP WITH TIME ZONE"}
TIME_FORMS = {
    "sqlite": (
        "datetime(substr({0}, 1, 19) || ' ', '+0 days') IS substr({0}, 1, 19) AND substr({0}, 1, 4) > '0000' "
        "AND (length({0}) = 19 OR substr({0}, 20) GLOB '.[0-9]*' AND rtrim(substr({0}, 21), '0123456789') = '')"
    ),
    "postgresql": "{0} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
}
WHOLE = "{0} BETWEEN {1} AND {2} AND {0} = CAST({0} AS {3})"


def upgrade() -> None:
    system = op.get_context().dialect.name
    form = TIME_FORMS[system].format("file_missing_since")
    columns = {
        "file_sha256": "TEXT CONSTRAINT ck_generations_file_sha256_length CHECK (length(file_sha256) = 64)",
        "file_format": "TEXT",
        "file_missing_since": f"{TIME[system]} CONSTRAINT ck_generations_file_missing_since_form CHECK ({form})",
    }
    # SQLite checks the other constraints of the existing rows too, and adopted databases may have rows that violate
    # them.
    if system == "sqlite":
        op.execute("PRAGMA ignore_check_constraints = ON")
    for name, definition in columns.items():
        op.execute(sa.text(f"ALTER TABLE generations ADD COLUMN {name} {definition}".replace(":", r"\:")))
    if system == "sqlite":
        op.execute("PRAGMA ignore_check_constraints = OFF")
    op.create_table(
        "usage_totals",
        sa.Column("hour", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("hour", "model_name", "event", name="pk_usage_totals"),
        sa.CheckConstraint(
            WHOLE.format("hour", -2147483647, 2147483647, "INTEGER"), name=op.f("ck_usage_totals_hour_whole")
        ),
        sa.CheckConstraint(
            "event IN ('created', 'completed', 'failed', 'cancelled')", name=op.f("ck_usage_totals_event_known")
        ),
        sa.CheckConstraint(
            WHOLE.format("count", 1, 9223372036854775807, "BIGINT"), name=op.f("ck_usage_totals_count_positive")
        ),
    )
    op.create_table(
        "pruned_files",
        sa.Column("path", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_pruned_files"),
    )


def downgrade() -> None:
    op.drop_table("pruned_files")
    op.drop_table("usage_totals")
    for column in ("file_missing_since", "file_format", "file_sha256"):
        op.execute(f"ALTER TABLE generations DROP COLUMN {column}")
