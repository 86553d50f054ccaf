"""The durable queue, history and prompt analytics of DGX Music. This page is the table of contents."""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The mappings live as long as the process: a search for garbage among them is a fifth of the cost of this import.
_collects_garbage = gc.isenabled()
gc.disable()

from .analytics import (
    get_failure_reasons,
    get_performance_stats,
    get_prompt_stats,
    get_queue_stats,
    get_usage,
)
from .database import (
    clone_generation,
    complete_generation,
    count_generations,
    create_generation,
    create_generations,
    delete_generation,
    delete_prompt,
    get_all_generations,
    get_all_prompts,
    get_database_stats,
    get_engine,
    get_generation,
    get_generations_by_status,
    get_most_used_prompts,
    get_pending_generations,
    get_prompt,
    get_prompt_by_text,
    get_session,
    init_db,
    reset_database,
    run_in_transaction,
    set_favorite,
    track_prompt_usage,
    update_generation_status,
)
from .engine import Storage, get_storage
from .errors import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    ConstraintError,
    CopyError,
    CorruptError,
    DatabaseURLError,
    DisconnectedError,
    DriverMissingError,
    ForeignDatabaseError,
    FullError,
    IllegalTransitionError,
    InvalidCursorError,
    LeaseLostError,
    NotInitializedError,
    PoolTimeoutError,
    ReadOnlyError,
    RetryableError,
    SchemaOutdatedError,
    SchemaTooNewError,
    SerializationError,
    StatementTimeoutError,
    StorageError,
    UnreachableError,
)
from .leases import (
    fail_generation,
    get_attempts,
    heartbeat_generation,
    reclaim_generations,
    release_generation,
)
from .models import Attempt, Base, Generation, Lease, Prompt
from .pagination import Page
from .queue import (
    cancel_batch,
    cancel_generation,
    claim_generation,
    claim_generations,
    get_queue_position,
    pause_queue,
    resume_queue,
    retry_generation,
)
from .reports import Estimate, FailureReason, Percentiles, PerformanceStats, PromptStats, QueueStats, Usage, Wait
from .retry import RetryPolicy
from .schema import SCHEMA_SQL, GenerationStatus, get_schema_version, validate_status

if _collects_garbage:
    gc.enable()

if TYPE_CHECKING:
    from .forecast import estimate_completion, explain_wait
    from .history import list_generations
    from .maintenance import Finding, check_database, copy_database
    from .search import PromptMatch, check_search_index, rebuild_search_index, search_generations, search_prompts
    from .worker import DoNotRetry, Job, Result, Worker

__version__ = "1.0.0"

# Rooms that an API process which only creates and reads never enters: imported when one of their names is asked for.
ENTERED_LATER = ("worker", "history", "search", "forecast", "maintenance")

__all__ = [
    # Database management
    "init_db",
    "get_session",
    "run_in_transaction",
    "reset_database",
    "get_engine",
    "get_storage",
    "Storage",
    # Generations
    "create_generation",
    "create_generations",
    "clone_generation",
    "get_generation",
    "get_all_generations",
    "list_generations",
    "Page",
    "get_generations_by_status",
    "get_pending_generations",
    "count_generations",
    "update_generation_status",
    "complete_generation",
    "set_favorite",
    "delete_generation",
    # Prompts
    "track_prompt_usage",
    "get_prompt",
    "get_prompt_by_text",
    "get_all_prompts",
    "get_most_used_prompts",
    "delete_prompt",
    # Queue
    "claim_generation",
    "claim_generations",
    "heartbeat_generation",
    "fail_generation",
    "release_generation",
    "reclaim_generations",
    "cancel_generation",
    "cancel_batch",
    "retry_generation",
    "pause_queue",
    "resume_queue",
    "get_queue_position",
    "get_attempts",
    "Lease",
    "RetryPolicy",
    # Worker
    "Worker",
    "Job",
    "Result",
    "DoNotRetry",
    # Search
    "search_prompts",
    "search_generations",
    "PromptMatch",
    "check_search_index",
    "rebuild_search_index",
    # Analytics
    "get_database_stats",
    "get_queue_stats",
    "QueueStats",
    "get_performance_stats",
    "PerformanceStats",
    "Percentiles",
    "get_usage",
    "Usage",
    "get_prompt_stats",
    "PromptStats",
    "get_failure_reasons",
    "FailureReason",
    "estimate_completion",
    "Estimate",
    "explain_wait",
    "Wait",
    # Maintenance
    "check_database",
    "Finding",
    "copy_database",
    # Models
    "Base",
    "Generation",
    "Prompt",
    "Attempt",
    # Schema
    "GenerationStatus",
    "SCHEMA_SQL",
    "get_schema_version",
    "validate_status",
    # Errors
    "StorageError",
    "BusyError",
    "ConflictError",
    "ConstraintError",
    "CopyError",
    "CorruptError",
    "AccessDeniedError",
    "DatabaseURLError",
    "DisconnectedError",
    "DriverMissingError",
    "ForeignDatabaseError",
    "FullError",
    "IllegalTransitionError",
    "InvalidCursorError",
    "LeaseLostError",
    "NotInitializedError",
    "PoolTimeoutError",
    "ReadOnlyError",
    "RetryableError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "SerializationError",
    "StatementTimeoutError",
    "UnreachableError",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in ENTERED_LATER:
            if hasattr(module := import_module(f".{room}", __name__), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
