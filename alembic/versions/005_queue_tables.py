"""Create attempts, the history of finished attempts, and queue_state, the row that stores whether claims are paused.

Revision ID: 005
Revises: 004

Downgrade loses the history, and resumes a paused queue.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "005"
down_revision: str | None = "004"
branch_labels: str | None = None
depends_on: str | None = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("generation_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("generation_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name="fk_attempts_generation_id_generations", ondelete="CASCADE"
        ),
        sa.CheckConstraint(
            "outcome IN ('completed', 'failed', 'lost', 'released', 'cancelled')",
            name=op.f("ck_attempts_outcome_known"),
        ),
    )
    op.create_table(
        "queue_state",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("paused_at", TIME),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_queue_state"),
        sa.CheckConstraint("id = 1", name=op.f("ck_queue_state_single_row")),
    )


def downgrade() -> None:
    op.drop_table("queue_state")
    op.drop_table("attempts")
