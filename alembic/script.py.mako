"""${message}.

Revision ID: ${up_revision}
Revises: ${down_revision or "none"}

Downgrade loses: nothing (or name every column and row it does).
"""

# Imports nothing from the models: they move on, and this revision must still do what it does today.
# On PostgreSQL others go on working meanwhile, so that, on a large table:
# - a new column is nullable, or has a constant server_default: else the table is rewritten under an exclusive lock;
# - a new CHECK or foreign key is added NOT VALID and validated by a later revision;
# - rows are filled in batches by their key, never by one UPDATE;
# - no column is renamed or retyped: add one, fill it, read it, and drop the old one in a later release.

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: str | None = ${repr(branch_labels)}
depends_on: str | None = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
