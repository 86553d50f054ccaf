"""Create an index for every query, a partial one if the query reads only some rows.

Revision ID: 007
Revises: 006

Downgrade restores the four indexes of revision 001 and loses no row.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "007"
down_revision: str | None = "006"
branch_labels: str | None = None
depends_on: str | None = None

NEWEST = "created_at DESC, id DESC"
DUE = "priority DESC, scheduled_at, id"

INDEXES = {
    # counts by status
    "idx_generations_status": "generations (status)",
    # lists, newest first: all generations, those of one status, model, prompt or batch, and the favorites
    "idx_generations_created_at": f"generations ({NEWEST})",
    "idx_generations_status_created_at": f"generations (status, {NEWEST}) WHERE status <> 'completed'",
    "idx_generations_model_name": f"generations (model_name, {NEWEST})",
    "idx_generations_prompt_id": f"generations (prompt_id, {NEWEST})",
    "idx_generations_batch_id": f"generations (batch_id, {NEWEST}) WHERE batch_id IS NOT NULL",
    "idx_generations_favorite": f"generations ({NEWEST}) WHERE is_favorite",
    # recently finished generations
    "idx_generations_completed_at": "generations (completed_at) WHERE completed_at IS NOT NULL",
    # claims, of any model and of some models (ADR 15); status is the first column because SQLite without statistics
    # otherwise uses another index and sorts
    "idx_generations_due": f"generations (status, {DUE}) WHERE status = 'pending'",
    "idx_generations_due_model": f"generations (status, model_name, {DUE}) WHERE status = 'pending'",
    # reclaims; status comes first for the same reason
    "idx_generations_lease": "generations (status, lease_expires_at) WHERE status = 'processing'",
    # the ON DELETE SET NULL of parent_id
    "idx_generations_parent_id": "generations (parent_id) WHERE parent_id IS NOT NULL",
    "uq_generations_idempotency_key": "generations (idempotency_key) WHERE idempotency_key IS NOT NULL",
    # workers with recent attempts
    "idx_attempts_finished_at": "attempts (finished_at)",
    # the most used prompts
    "idx_prompts_used_count": "prompts (used_count DESC, id)",
}
BASELINE = {
    "idx_generations_status": "generations (status)",
    "idx_generations_created_at": "generations (created_at DESC)",
    "idx_generations_model_name": "generations (model_name)",
    "idx_generations_completed_at": "generations (completed_at DESC)",
}


def upgrade() -> None:
    replace(BASELINE, INDEXES)


def downgrade() -> None:
    replace(INDEXES, BASELINE)


def replace(old: dict[str, str], new: dict[str, str]) -> None:
    """Drop the indexes `old`, but none that has only its name from us, and create the indexes `new`."""
    as_sql = op.get_context().as_sql  # a script is for a database that has the indexes of the revision before
    present = {} if as_sql else find_indexes()
    for name, target in old.items():
        table, columns = target.split(" WHERE ")[0].rstrip(")").split(" (")
        if as_sql or present.get(name) == f"{table} {[column.split()[0] for column in columns.split(', ')]}":
            op.execute(f"DROP INDEX {name}")
    for name, target in new.items():
        op.execute(f"CREATE {'UNIQUE ' if name.startswith('uq_') else ''}INDEX {name} ON {target}")


def find_indexes() -> dict[str, str]:
    """Return the table and columns of each index by name."""
    inspector = sa.inspect(op.get_bind())
    return {
        str(index["name"]): f"{table} {index['column_names']}"
        for table in ("generations", "attempts", "prompts")
        for index in inspector.get_indexes(table)
    }
