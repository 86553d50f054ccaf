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
TIME_FORMS = {
    "sqlite": (
        "datetime(substr({0}, 1, 19) || ' ', '+0 days') IS substr({0}, 1, 19) AND substr({0}, 1, 4) > '0000' "
        "AND (length({0}) = 19 OR substr({0}, 20) GLOB '.[0-9]*' AND rtrim(substr({0}, 21), '0123456789') = '')"
    ),
    "postgresql": "{0} BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
}


def upgrade() -> None:
    form = TIME_FORMS[op.get_context().dialect.name]
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
        sa.CheckConstraint(
            "number BETWEEN 0 AND 2147483647 AND number = CAST(number AS INTEGER)",
            name=op.f("ck_attempts_number_not_negative"),
        ),
        sa.CheckConstraint(form.format("started_at"), name=op.f("ck_attempts_started_at_form")),
        sa.CheckConstraint(form.format("finished_at"), name=op.f("ck_attempts_finished_at_form")),
    )
    op.create_table(
        "queue_state",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("paused_at", TIME),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_queue_state"),
        sa.CheckConstraint("id = 1", name=op.f("ck_queue_state_single_row")),
        sa.CheckConstraint(form.format("paused_at"), name=op.f("ck_queue_state_paused_at_form")),
    )


def downgrade() -> None:
    op.drop_table("queue_state")
    op.drop_table("attempts")
