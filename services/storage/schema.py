"""The module of the specification for the schema: statuses, revisions, and the SQL of a new SQLite database."""

from collections.abc import Sequence
from typing import Final

from .lifecycle import FINISHED, LEGAL_MOVES, GenerationStatus, is_legal_move, validate_status

__all__ = [
    "FINISHED",
    "LEGAL_MOVES",
    "REVISIONS",
    "SCHEMA_SQL",
    "GenerationStatus",
    "get_schema_version",
    "is_legal_move",
    "validate_status",
]

# Oldest first. Repeated here, so that opening an up-to-date database needs neither Alembic nor its scripts; a test
# compares both.
REVISIONS: Final = ("001", "002", "003", "004", "005", "006", "007", "008", "009", "010")


def get_schema_version() -> str:
    """Return the revision id that this library works with: the head of its migrations."""
    return REVISIONS[-1]


def is_own_revision(revision: str) -> bool:
    """Return whether `revision` looks like one of this library, known or newer: three digits."""
    return len(revision) == 3 and revision.isdecimal()


def name_several_revisions(revisions: Sequence[str]) -> str:
    """Return the message for an alembic_version with more than one row."""
    return (
        f"alembic_version says {' and '.join(map(repr, revisions))}: another program keeps its revision there too. "
        "Give it a version_table of its own and delete its row, or point DATABASE_URL at another database. Nothing was "
        "changed."
    )


# Written by `just db-docs`.
SCHEMA_SQL: Final = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE attempts (
    generation_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    started_at DATETIME,
    finished_at DATETIME NOT NULL,
    outcome TEXT NOT NULL,
    error_message TEXT,
    CONSTRAINT pk_attempts PRIMARY KEY (generation_id, number),
    CONSTRAINT fk_attempts_generation_id_generations
        FOREIGN KEY (generation_id) REFERENCES generations (id) ON DELETE CASCADE,
    CONSTRAINT ck_attempts_outcome_known
        CHECK (outcome IN ('completed', 'failed', 'lost', 'released', 'cancelled')),
    CONSTRAINT ck_attempts_number_not_negative
        CHECK (number BETWEEN 0 AND 2147483647 AND number = CAST(number AS INTEGER)),
    CONSTRAINT ck_attempts_started_at_form
        CHECK (datetime(substr(started_at, 1, 19) || ' ', '+0 days') IS substr(started_at, 1, 19)
            AND substr(started_at, 1, 4) > '0000'
            AND (length(started_at) = 19
            OR substr(started_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(started_at, 21), '0123456789') = '')),
    CONSTRAINT ck_attempts_finished_at_form
        CHECK (datetime(substr(finished_at, 1, 19) || ' ', '+0 days') IS substr(finished_at, 1, 19)
            AND substr(finished_at, 1, 4) > '0000'
            AND (length(finished_at) = 19
            OR substr(finished_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(finished_at, 21), '0123456789') = ''))
);
CREATE TABLE generations (
    id TEXT NOT NULL,
    prompt TEXT NOT NULL,
    model_name TEXT NOT NULL,
    model_version TEXT,
    duration_seconds DOUBLE NOT NULL,
    sample_rate INTEGER NOT NULL,
    channels INTEGER NOT NULL,
    file_path TEXT NOT NULL,
    file_size_bytes INTEGER,
    status TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    completed_at DATETIME,
    generation_time_seconds DOUBLE,
    error_message TEXT,
    metadata TEXT,
    prompt_id INTEGER,
    priority INTEGER NOT NULL,
    scheduled_at DATETIME NOT NULL,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    started_at DATETIME,
    worker_id TEXT,
    lease_expires_at DATETIME,
    progress DOUBLE,
    current_step TEXT,
    cancel_requested_at DATETIME,
    batch_id TEXT,
    parent_id TEXT,
    idempotency_key TEXT,
    is_favorite BOOLEAN NOT NULL,
    parameters TEXT,
    version INTEGER NOT NULL,
    file_sha256 TEXT CONSTRAINT ck_generations_file_sha256_length
        CHECK (length(file_sha256) = 64),
    file_format TEXT,
    file_missing_since DATETIME CONSTRAINT ck_generations_file_missing_since_form
        CHECK (datetime(substr(file_missing_since, 1, 19) || ' ', '+0 days') IS substr(file_missing_since, 1, 19)
            AND substr(file_missing_since, 1, 4) > '0000'
            AND (length(file_missing_since) = 19
            OR substr(file_missing_since, 20) GLOB '.[0-9]*'
            AND rtrim(substr(file_missing_since, 21), '0123456789') = '')),
    CONSTRAINT pk_generations PRIMARY KEY (id),
    CONSTRAINT ck_generations_status_known
        CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    CONSTRAINT ck_generations_finished_has_time
        CHECK ((status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)),
    CONSTRAINT ck_generations_lease_while_processing
        CHECK (lease_expires_at IS NULL OR status = 'processing'),
    CONSTRAINT ck_generations_duration_positive
        CHECK (duration_seconds > 0 AND duration_seconds <= 1e300),
    CONSTRAINT ck_generations_sample_rate_positive
        CHECK (sample_rate BETWEEN 1 AND 2147483647 AND sample_rate = CAST(sample_rate AS INTEGER)),
    CONSTRAINT ck_generations_channels_mono_or_stereo
        CHECK (channels IN (1, 2)),
    CONSTRAINT ck_generations_file_size_not_negative
        CHECK (file_size_bytes BETWEEN 0 AND 9223372036854775807 AND file_size_bytes = CAST(file_size_bytes AS BIGINT)),
    CONSTRAINT ck_generations_generation_time_not_negative
        CHECK (generation_time_seconds BETWEEN 0 AND 1e300),
    CONSTRAINT ck_generations_progress_is_fraction
        CHECK (progress BETWEEN 0 AND 1),
    CONSTRAINT ck_generations_priority_whole
        CHECK (priority BETWEEN -2147483647 AND 2147483647 AND priority = CAST(priority AS INTEGER)),
    CONSTRAINT ck_generations_attempt_not_negative
        CHECK (attempt BETWEEN 0 AND 2147483647 AND attempt = CAST(attempt AS INTEGER)),
    CONSTRAINT ck_generations_max_attempts_positive
        CHECK (max_attempts BETWEEN 1 AND 2147483647 AND max_attempts = CAST(max_attempts AS INTEGER)),
    CONSTRAINT ck_generations_version_positive
        CHECK (version BETWEEN 1 AND 2147483647 AND version = CAST(version AS INTEGER)),
    CONSTRAINT ck_generations_favorite_is_flag
        CHECK (is_favorite IN (0, 1)),
    CONSTRAINT ck_generations_created_at_form
        CHECK (datetime(substr(created_at, 1, 19) || ' ', '+0 days') IS substr(created_at, 1, 19)
            AND substr(created_at, 1, 4) > '0000'
            AND (length(created_at) = 19
            OR substr(created_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(created_at, 21), '0123456789') = '')),
    CONSTRAINT ck_generations_scheduled_at_form
        CHECK (datetime(substr(scheduled_at, 1, 19) || ' ', '+0 days') IS substr(scheduled_at, 1, 19)
            AND substr(scheduled_at, 1, 4) > '0000'
            AND (length(scheduled_at) = 19
            OR substr(scheduled_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(scheduled_at, 21), '0123456789') = '')),
    CONSTRAINT ck_generations_started_at_form
        CHECK (datetime(substr(started_at, 1, 19) || ' ', '+0 days') IS substr(started_at, 1, 19)
            AND substr(started_at, 1, 4) > '0000'
            AND (length(started_at) = 19
            OR substr(started_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(started_at, 21), '0123456789') = '')),
    CONSTRAINT ck_generations_completed_at_form
        CHECK (datetime(substr(completed_at, 1, 19) || ' ', '+0 days') IS substr(completed_at, 1, 19)
            AND substr(completed_at, 1, 4) > '0000'
            AND (length(completed_at) = 19
            OR substr(completed_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(completed_at, 21), '0123456789') = '')),
    CONSTRAINT ck_generations_lease_expires_at_form
        CHECK (datetime(substr(lease_expires_at, 1, 19) || ' ', '+0 days') IS substr(lease_expires_at, 1, 19)
            AND substr(lease_expires_at, 1, 4) > '0000'
            AND (length(lease_expires_at) = 19
            OR substr(lease_expires_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(lease_expires_at, 21), '0123456789') = '')),
    CONSTRAINT ck_generations_cancel_requested_at_form
        CHECK (datetime(substr(cancel_requested_at, 1, 19) || ' ', '+0 days') IS substr(cancel_requested_at, 1, 19)
            AND substr(cancel_requested_at, 1, 4) > '0000'
            AND (length(cancel_requested_at) = 19
            OR substr(cancel_requested_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(cancel_requested_at, 21), '0123456789') = '')),
    CONSTRAINT fk_generations_prompt_id_prompts
        FOREIGN KEY (prompt_id) REFERENCES prompts (id) ON DELETE CASCADE,
    CONSTRAINT fk_generations_parent_id_generations
        FOREIGN KEY (parent_id) REFERENCES generations (id) ON DELETE SET NULL
);
CREATE TABLE prompts (
    id INTEGER NOT NULL,
    text TEXT NOT NULL,
    used_count INTEGER NOT NULL,
    first_used_at DATETIME NOT NULL,
    last_used_at DATETIME NOT NULL, folded TEXT, words TEXT GENERATED ALWAYS AS (coalesce(folded, text)) VIRTUAL,
    CONSTRAINT pk_prompts PRIMARY KEY (id),
    CONSTRAINT uq_prompts_text UNIQUE (text),
    CONSTRAINT ck_prompts_used_count_positive
        CHECK (used_count BETWEEN 1 AND 2147483647 AND used_count = CAST(used_count AS INTEGER)),
    CONSTRAINT ck_prompts_first_used_at_form
        CHECK (datetime(substr(first_used_at, 1, 19) || ' ', '+0 days') IS substr(first_used_at, 1, 19)
            AND substr(first_used_at, 1, 4) > '0000'
            AND (length(first_used_at) = 19
            OR substr(first_used_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(first_used_at, 21), '0123456789') = '')),
    CONSTRAINT ck_prompts_last_used_at_form
        CHECK (datetime(substr(last_used_at, 1, 19) || ' ', '+0 days') IS substr(last_used_at, 1, 19)
            AND substr(last_used_at, 1, 4) > '0000'
            AND (length(last_used_at) = 19
            OR substr(last_used_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(last_used_at, 21), '0123456789') = ''))
);
CREATE VIRTUAL TABLE prompts_fts USING fts5(words, content="prompts", content_rowid="id", tokenize="ascii");
CREATE TABLE pruned_files (
    path TEXT NOT NULL,
    CONSTRAINT pk_pruned_files PRIMARY KEY (path)
);
CREATE TABLE queue_state (
    id INTEGER NOT NULL,
    paused_at DATETIME,
    reason TEXT,
    CONSTRAINT pk_queue_state PRIMARY KEY (id),
    CONSTRAINT ck_queue_state_single_row
        CHECK (id = 1),
    CONSTRAINT ck_queue_state_paused_at_form
        CHECK (datetime(substr(paused_at, 1, 19) || ' ', '+0 days') IS substr(paused_at, 1, 19)
            AND substr(paused_at, 1, 4) > '0000'
            AND (length(paused_at) = 19
            OR substr(paused_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(paused_at, 21), '0123456789') = ''))
);
CREATE TABLE usage_totals (
    hour INTEGER NOT NULL,
    model_name TEXT NOT NULL,
    event TEXT NOT NULL,
    count INTEGER NOT NULL,
    CONSTRAINT pk_usage_totals PRIMARY KEY (hour, model_name, event),
    CONSTRAINT ck_usage_totals_hour_whole
        CHECK (hour BETWEEN -2147483647 AND 2147483647 AND hour = CAST(hour AS INTEGER)),
    CONSTRAINT ck_usage_totals_event_known
        CHECK (event IN ('created', 'completed', 'failed', 'cancelled')),
    CONSTRAINT ck_usage_totals_count_positive
        CHECK (count BETWEEN 1 AND 9223372036854775807 AND count = CAST(count AS BIGINT))
);
CREATE TABLE workers (
    id TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    model_names TEXT,
    warm_model TEXT,
    device TEXT,
    version TEXT,
    state TEXT NOT NULL,
    generation_id TEXT,
    started_at DATETIME NOT NULL,
    last_seen_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_workers PRIMARY KEY (id),
    CONSTRAINT ck_workers_state_known
        CHECK (state IN ('idle', 'busy', 'stopping')),
    CONSTRAINT ck_workers_pid_not_negative
        CHECK (pid BETWEEN 0 AND 2147483647 AND pid = CAST(pid AS INTEGER)),
    CONSTRAINT ck_workers_started_at_form
        CHECK (datetime(substr(started_at, 1, 19) || ' ', '+0 days') IS substr(started_at, 1, 19)
            AND substr(started_at, 1, 4) > '0000'
            AND (length(started_at) = 19
            OR substr(started_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(started_at, 21), '0123456789') = '')),
    CONSTRAINT ck_workers_last_seen_at_form
        CHECK (datetime(substr(last_seen_at, 1, 19) || ' ', '+0 days') IS substr(last_seen_at, 1, 19)
            AND substr(last_seen_at, 1, 4) > '0000'
            AND (length(last_seen_at) = 19
            OR substr(last_seen_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(last_seen_at, 21), '0123456789') = '')),
    CONSTRAINT ck_workers_expires_at_form
        CHECK (datetime(substr(expires_at, 1, 19) || ' ', '+0 days') IS substr(expires_at, 1, 19)
            AND substr(expires_at, 1, 4) > '0000'
            AND (length(expires_at) = 19
            OR substr(expires_at, 20) GLOB '.[0-9]*'
            AND rtrim(substr(expires_at, 21), '0123456789') = ''))
);
CREATE INDEX idx_attempts_finished_at ON attempts (finished_at);
CREATE INDEX idx_generations_batch_id ON generations (batch_id, created_at DESC, id DESC)
    WHERE batch_id IS NOT NULL;
CREATE INDEX idx_generations_completed_at ON generations (completed_at)
    WHERE completed_at IS NOT NULL;
CREATE INDEX idx_generations_created_at ON generations (created_at DESC, id DESC);
CREATE INDEX idx_generations_due ON generations (status, priority DESC, scheduled_at, id)
    WHERE status = 'pending';
CREATE INDEX idx_generations_due_model ON generations (status, model_name, priority DESC, scheduled_at, id)
    WHERE status = 'pending';
CREATE INDEX idx_generations_favorite ON generations (created_at DESC, id DESC)
    WHERE is_favorite;
CREATE INDEX idx_generations_lease ON generations (status, lease_expires_at)
    WHERE status = 'processing';
CREATE INDEX idx_generations_model_name ON generations (model_name, created_at DESC, id DESC);
CREATE INDEX idx_generations_parent_id ON generations (parent_id)
    WHERE parent_id IS NOT NULL;
CREATE INDEX idx_generations_prompt_id ON generations (prompt_id, created_at DESC, id DESC);
CREATE INDEX idx_generations_status ON generations (status);
CREATE INDEX idx_generations_status_created_at ON generations (status, created_at DESC, id DESC)
    WHERE status <> 'completed';
CREATE UNIQUE INDEX uq_generations_idempotency_key ON generations (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX idx_prompts_used_count ON prompts (used_count DESC, id);
CREATE TRIGGER prompts_fts_delete AFTER DELETE ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, words) VALUES ('delete', old.id, coalesce(old.folded, old.text));
END;
CREATE TRIGGER prompts_fts_insert AFTER INSERT ON prompts BEGIN
    UPDATE prompts SET folded = replace(ltrim(CAST(text AS BLOB), ''), '#', ' sharp ')
    WHERE id = new.id AND (length(CAST(text AS BLOB)) <> length(text) OR text GLOB '*[A-Ga-g]#*');
    INSERT INTO prompts_fts (rowid, words) SELECT id, words FROM prompts WHERE id = new.id;
END;
CREATE TRIGGER prompts_fts_update AFTER UPDATE OF id, text ON prompts BEGIN
    INSERT INTO prompts_fts (prompts_fts, rowid, words) VALUES ('delete', old.id, coalesce(old.folded, old.text));
    UPDATE prompts SET folded = CASE WHEN (length(CAST(text AS BLOB)) <> length(text) OR text GLOB '*[A-Ga-g]#*')
        THEN replace(ltrim(CAST(text AS BLOB), ''), '#', ' sharp ') END
    WHERE id = new.id;
    INSERT INTO prompts_fts (rowid, words) SELECT id, words FROM prompts WHERE id = new.id;
END;
INSERT INTO alembic_version (version_num) VALUES ('010');
"""
