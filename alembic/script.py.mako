"""${message}.

Revision ID: ${up_revision}
Revises: ${down_revision or "none"}

Downgrade loses: nothing (or name every column and row that it deletes).
"""

# Import nothing from the models: they will change, but this revision must always do the same.
# On PostgreSQL other processes use the tables during the migration. So for a large table:
# - make a new column nullable or give it a constant server_default; otherwise PostgreSQL rewrites the table under an
#   exclusive lock;
# - add a CHECK or foreign key as NOT VALID, and validate it in a later revision;
# - fill columns in batches by primary key, not in one UPDATE;
# - do not rename a column or change its type: add a new one, fill it, read it, and drop the old one in a later release.

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
