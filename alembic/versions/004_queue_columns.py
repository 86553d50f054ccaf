"""Add the columns of the queue to generations: priority, schedule, attempts, lease, progress, version.

Revision ID: 004
Revises: 003

Downgrade drops these columns and their values. It sets cancelled generations to failed, because the older release does
not know the status cancelled.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "004"
down_revision: str | None = "003"
branch_labels: str | None = None
depends_on: str | None = None

TIME = sa.DateTime(timezone=True)


def columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("scheduled_at", TIME),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer, nullable=False, server_default="3"),
        sa.Column("started_at", TIME),
        sa.Column("worker_id", sa.Text),
        sa.Column("lease_expires_at", TIME),
        sa.Column("progress", sa.Double),
        sa.Column("current_step", sa.Text),
        sa.Column("cancel_requested_at", TIME),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    ]


def upgrade() -> None:
    for column in columns():
        op.add_column("generations", column)
    op.execute("UPDATE generations SET scheduled_at = created_at")


def downgrade() -> None:
    op.execute(
        "UPDATE generations SET status = 'failed', error_message = coalesce(error_message, 'cancelled') "
        "WHERE status = 'cancelled'"
    )
    for column in columns():
        op.execute(f"ALTER TABLE generations DROP COLUMN {column.name}")
