"""The reports as frozen dataclasses: the definition of every number that stats.py and estimates.py return."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True)
class QueueStats:
    """The queue at `at`.

    `backlog` due generations wait, the oldest of them due for `oldest_seconds`; `scheduled` ones are not due yet.
    `processing` have been claimed, of which `expired` by a worker that has not been heard of since its lease ended.
    `workers` are alive: they hold a lease that has not ended, or finished an attempt in the last five minutes.
    `completed_per_hour` and `failed_per_hour` count the last hour.
    """

    at: datetime
    is_paused: bool
    backlog: int
    oldest_seconds: float | None
    scheduled: int
    processing: int
    expired: int
    workers: int
    completed_per_hour: int
    failed_per_hour: int


@dataclass(frozen=True)
class Percentiles:
    """The median, the 90th and the 99th percentile of `count` values; None without any."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True)
class PerformanceStats:
    """How one model did.

    `failure_rate` is failed / (completed + failed), None before either. `generation_time` (seconds) is what completed
    generations report; `real_time_factor` that time / the seconds of music asked for: below 1, faster than it plays.
    `queue_wait` (seconds) is the time from being due to the start of the last attempt, of completed and failed ones
    that were started by a worker.
    """

    model_name: str
    completed: int
    failed: int
    cancelled: int
    failure_rate: float | None
    generation_time: Percentiles
    real_time_factor: Percentiles
    queue_wait: Percentiles


@dataclass(frozen=True)
class Usage:
    """What happened from `start` (UTC, included) until the next one's: created, and finished in each way."""

    start: datetime
    created: int
    completed: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class PromptStats:
    """How one prompt did.

    `used_count` counts every use; `generations` are those stored. `success_rate` is completed / (completed + failed)
    and `median_seconds` the median generation time of the completed ones, None before there are any.
    """

    prompt_id: int
    text: str
    used_count: int
    first_used_at: datetime
    last_used_at: datetime
    generations: int
    completed: int
    failed: int
    favorites: int
    success_rate: float | None
    median_seconds: float | None


@dataclass(frozen=True)
class FailureReason:
    """An error message, cut to 200 characters and with # for digits, and the failed generations that have it."""

    reason: str
    count: int
    models: int
    last_at: datetime | None


@dataclass(frozen=True)
class Estimate:
    """When a generation will be finished: with 80 % likelihood between `p10_at` and `p90_at`, half of them by `p50_at`.

    `jobs_ahead` will be claimed first, by `workers` alive; `samples` completed generations of its model say how long
    it takes itself.
    """

    generation_id: str
    at: datetime
    p10_at: datetime
    p50_at: datetime
    p90_at: datetime
    jobs_ahead: int
    workers: int
    samples: int


class WaitReason(StrEnum):
    """Why a generation is not finished yet. Members are strings: they compare, print and serialize as their word."""

    PAUSED = "paused"
    SCHEDULED = "scheduled"
    NO_WORKERS = "no_workers"
    BEHIND = "behind"
    NEXT = "next"
    PROCESSING = "processing"
    EXPIRED = "expired"
    UNLEASED = "unleased"
    EXHAUSTED = "exhausted"
    FINISHED = "finished"


@dataclass(frozen=True)
class Wait:
    """Why a generation is not finished yet.

    `reason` is paused, scheduled (until `until`), no_workers, behind (`ahead` others), next, processing (the lease of
    its worker ends at `until`), expired (its worker sent no heartbeat in time; it will be reclaimed), unleased (started
    outside the queue), exhausted (failed after its last attempt) or finished. `explanation` is a sentence about it.
    """

    reason: WaitReason
    explanation: str
    ahead: int = 0
    until: datetime | None = None
