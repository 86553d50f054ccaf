"""Add the columns of a request: batch, parent, idempotency key, favorite, parameters.

Revision ID: 003
Revises: 002

Downgrade drops these five columns and their values.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "003"
down_revision: str | None = "002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("batch_id", sa.Text))
    op.add_column("generations", sa.Column("parent_id", sa.Text))
    op.add_column("generations", sa.Column("idempotency_key", sa.Text))
    op.add_column("generations", sa.Column("is_favorite", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("generations", sa.Column("parameters", sa.Text().with_variant(postgresql.JSONB(), "postgresql")))


def downgrade() -> None:
    for column in ("batch_id", "parent_id", "idempotency_key", "is_favorite", "parameters"):
        op.execute(f"ALTER TABLE generations DROP COLUMN {column}")
