"""Read-only reports about the queue, the models and the prompts; each is one statement (ADR 22)."""

from .estimates import estimate_completion, explain_wait
from .popular_prompts import get_popular_prompts
from .report_types import (
    Estimate,
    FailureReason,
    Percentiles,
    PerformanceStats,
    PromptStats,
    QueueStats,
    Remaining,
    Usage,
    Wait,
    WaitReason,
)
from .reports import (
    get_database_stats,
    get_failure_reasons,
    get_performance_stats,
    get_prompt_stats,
    get_queue_stats,
)
from .running_estimates import estimate_running
from .usage import get_usage

__all__ = [
    "Estimate",
    "FailureReason",
    "Percentiles",
    "PerformanceStats",
    "PromptStats",
    "QueueStats",
    "Remaining",
    "Usage",
    "Wait",
    "WaitReason",
    "estimate_completion",
    "estimate_running",
    "explain_wait",
    "get_database_stats",
    "get_failure_reasons",
    "get_performance_stats",
    "get_popular_prompts",
    "get_prompt_stats",
    "get_queue_stats",
    "get_usage",
]
