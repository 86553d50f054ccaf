"""The reports as frozen dataclasses: the definition of every number that the functions of this package return."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ..serialization import Report


@dataclass(frozen=True)
class QueueStats(Report):
    """The state of the queue at the time `at`.

    `backlog` is the number of due generations, and `oldest_seconds` how long the oldest of them has been due.
    `scheduled` is the number of pending generations that are not due yet. `processing` counts all that are processing;
    `expired` counts those of them whose lease has expired. `workers` counts the live workers, which get_workers()
    lists: a killed one counts for 45 seconds more, or for its lease if that is shorter. `completed_per_hour` and
    `failed_per_hour` count the last hour.
    `pause_reason` is what pause_queue() was given, None while the queue is not paused.
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
    pause_reason: str | None = None


@dataclass(frozen=True)
class Percentiles(Report):
    """The median, the 90th and the 99th percentile of `count` values; None if there are no values."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True)
class PerformanceStats(Report):
    """The performance of one model.

    `failure_rate` is failed / (completed + failed), None if both are 0. `generation_time` (seconds) is the reported
    time of completed generations; `real_time_factor` is that time divided by the requested length: below 1 is faster
    than playback. `queue_wait` (seconds) is the time from being due to the start of the last attempt, for completed and
    failed generations that were started.
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
class Usage(Report):
    """The numbers of created and finished generations from `start` (UTC, included) to the start of the next bucket."""

    start: datetime
    created: int
    completed: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class PromptStats(Report):
    """The uses and results of one prompt.

    `used_count` counts every use; `generations` counts the stored generations. `success_rate` is completed /
    (completed + failed), `median_seconds` the median generation time of the completed ones; None if there are none.
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
class FailureReason(Report):
    """An error message, cut to 200 characters and with # for digits, and the number of failed generations with it."""

    reason: str
    count: int
    models: int
    last_at: datetime | None


@dataclass(frozen=True)
class Estimate(Report):
    """When a generation will finish: between `p10_at` and `p90_at` with a probability of 80 %; the median is `p50_at`.

    `jobs_ahead` due generations will be claimed before it, by the `workers` live workers that claim its model. Its own
    time is estimated from `samples` completed generations of its model.
    """

    generation_id: str
    at: datetime
    p10_at: datetime
    p50_at: datetime
    p90_at: datetime
    jobs_ahead: int
    workers: int
    samples: int


@dataclass(frozen=True)
class Remaining(Report):
    """When a running generation will finish, by the times of `samples` generations of its model.

    Between `p10_at` and `p90_at` with a probability of 80 %; the median is `p50_at`; all estimated at the time `at`.
    """

    generation_id: str
    at: datetime
    p10_at: datetime
    p50_at: datetime
    p90_at: datetime
    samples: int


class WaitReason(StrEnum):
    """Why a generation is not finished yet. Members are strings: they compare, print and serialize as their word."""

    PAUSED = "paused"
    SCHEDULED = "scheduled"
    NO_WORKERS = "no_workers"
    NO_WORKER_FOR_MODEL = "no_worker_for_model"
    BEHIND = "behind"
    NEXT = "next"
    PROCESSING = "processing"
    EXPIRED = "expired"
    UNLEASED = "unleased"
    EXHAUSTED = "exhausted"
    FINISHED = "finished"
    INVALID = "invalid"


@dataclass(frozen=True)
class Wait(Report):
    """Why a generation is not finished yet.

    `reason` is paused, scheduled (until `until`), no_workers (none is alive, or all are stopping), no_worker_for_model
    (none of them claims its model), behind (`ahead` others), next, processing (the lease of its worker expires at
    `until`), expired (its worker sent no heartbeat in time; it will be reclaimed), unleased (started without a lease),
    exhausted (failed after its last attempt), finished, or invalid (it violates a CHECK, as rows of older databases
    may, so it is never claimed). `explanation` is one sentence.
    """

    reason: WaitReason
    explanation: str
    ahead: int = 0
    until: datetime | None = None
