"""Create generations and prompts, the tables of the specification.

Revision ID: 001
Revises: none

Downgrade drops both tables and all rows.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

TIME = sa.DateTime(timezone=True)
JSON_TEXT = sa.Text().with_variant(postgresql.JSONB(), "postgresql")
SIZE = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "generations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text),
        sa.Column("duration_seconds", sa.Double, nullable=False),
        sa.Column("sample_rate", sa.Integer, nullable=False),
        sa.Column("channels", sa.Integer, nullable=False),
        sa.Column("file_path", sa.Text, nullable=False),
        sa.Column("file_size_bytes", SIZE),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("completed_at", TIME),
        sa.Column("generation_time_seconds", sa.Double),
        sa.Column("error_message", sa.Text),
        sa.Column("metadata", JSON_TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_generations"),
    )
    op.create_index("idx_generations_status", "generations", ["status"])
    op.create_index("idx_generations_created_at", "generations", [sa.text("created_at DESC")])
    op.create_index("idx_generations_model_name", "generations", ["model_name"])
    op.create_index("idx_generations_completed_at", "generations", [sa.text("completed_at DESC")])

    sqlite = op.get_context().dialect.name == "sqlite"
    op.create_table(
        "prompts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("used_count", sa.Integer, nullable=False, server_default="1"),
        sa.Column("first_used_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        *([sa.UniqueConstraint("text", name="uq_prompts_text")] if sqlite else []),
    )
    if sqlite:
        op.create_index("idx_prompts_text", "prompts", ["text"])
    else:
        # The md5, because a b-tree refuses keys over 2.7 kB and a prompt may have 10,000 characters. See ADR 7.
        op.create_index("uq_prompts_text_md5", "prompts", [sa.text("md5(text)")], unique=True)


def downgrade() -> None:
    op.drop_table("prompts")
    op.drop_table("generations")
