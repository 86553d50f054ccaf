"""The arguments of the models' constructors, and of a clone, for type checkers and editors."""

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict


class PromptFields(TypedDict, total=False):
    """The arguments of Prompt()."""

    id: int
    text: str
    used_count: int
    first_used_at: datetime
    last_used_at: datetime


class GenerationFields(TypedDict, total=False):
    """The arguments of Generation(). `metadata` and `metadata_json` are two names of the same column."""

    id: str
    prompt: str
    model_name: str
    model_version: str | None
    duration_seconds: float
    sample_rate: int
    channels: int
    file_path: str | os.PathLike[str]
    file_size_bytes: int | None
    status: str
    created_at: datetime
    completed_at: datetime | None
    generation_time_seconds: float | None
    error_message: str | None
    metadata: Mapping[str, Any] | str | None
    metadata_json: Mapping[str, Any] | str | None
    prompt_id: int | None
    priority: int
    scheduled_at: datetime
    attempt: int
    max_attempts: int
    started_at: datetime | None
    worker_id: str | None
    lease_expires_at: datetime | None
    progress: float | None
    current_step: str | None
    cancel_requested_at: datetime | None
    batch_id: str | None
    parent_id: str | None
    parent: Any
    idempotency_key: str | None
    is_favorite: bool
    parameters: Mapping[str, Any] | None
    version: int
    file_sha256: str | None
    file_format: str | None
    file_missing_since: datetime | None


class RequestChanges(TypedDict, total=False):
    """What clone_generation() can change: the arguments of create_generation()."""

    prompt: str
    model_name: str
    duration_seconds: float
    sample_rate: int
    channels: int
    model_version: str | None
    metadata: Mapping[str, Any] | None
    priority: int
    scheduled_at: datetime | None
    max_attempts: int
    batch_id: str | None
    parent_id: str | None
    idempotency_key: str | None
    parameters: Mapping[str, Any] | None


class AttemptFields(TypedDict, total=False):
    """The arguments of Attempt()."""

    generation_id: str
    number: int
    worker_id: str
    started_at: datetime | None
    finished_at: datetime
    outcome: str
    error_message: str | None


class RegisteredWorkerFields(TypedDict, total=False):
    """The arguments of RegisteredWorker()."""

    id: str
    host: str
    pid: int
    model_names: list[str] | None
    warm_model: str | None
    device: str | None
    version: str | None
    state: str
    generation_id: str | None
    started_at: datetime
    last_seen_at: datetime
    expires_at: datetime
