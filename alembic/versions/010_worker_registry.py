"""Create workers, in which each worker process writes that it is alive.

Revision ID: 010
Revises: 009

Downgrade drops the table. Its rows are not missed: every worker writes its own again within 15 seconds.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "010"
down_revision: str | None = "009"
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
TIMES = ("started_at", "last_seen_at", "expires_at")


def upgrade() -> None:
    form = TIME_FORMS[op.get_context().dialect.name]
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("model_names", sa.Text().with_variant(postgresql.JSONB(), "postgresql")),
        sa.Column("warm_model", sa.Text),
        sa.Column("device", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("generation_id", sa.Text),
        *(sa.Column(name, TIME, nullable=False) for name in TIMES),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
        sa.CheckConstraint("state IN ('idle', 'busy', 'stopping')", name=op.f("ck_workers_state_known")),
        sa.CheckConstraint(
            "pid BETWEEN 0 AND 2147483647 AND pid = CAST(pid AS INTEGER)", name=op.f("ck_workers_pid_not_negative")
        ),
        *(sa.CheckConstraint(form.format(name), name=op.f(f"ck_workers_{name}_form")) for name in TIMES),
    )


def downgrade() -> None:
    op.drop_table("workers")
