"""The queue: enqueue, claim, finish and control generations. SQL only: no threads, no sleeps."""

from .claims import choose_model, claim_generation, claim_generations, new_worker_id, resume_claim
from .control import (
    cancel_batch,
    cancel_generation,
    get_queue_position,
    pause_queue,
    resume_queue,
    retry_generation,
)
from .due import seconds_until_due
from .leases import (
    complete_generation,
    fail_generation,
    get_attempts,
    heartbeat_generation,
    reclaim_generations,
    release_generation,
)
from .workers import WorkerStatus, get_workers, register_worker, remove_silent_workers, unregister_worker

__all__ = [
    "WorkerStatus",
    "cancel_batch",
    "cancel_generation",
    "choose_model",
    "claim_generation",
    "claim_generations",
    "complete_generation",
    "fail_generation",
    "get_attempts",
    "get_queue_position",
    "get_workers",
    "heartbeat_generation",
    "new_worker_id",
    "pause_queue",
    "reclaim_generations",
    "register_worker",
    "release_generation",
    "remove_silent_workers",
    "resume_claim",
    "resume_queue",
    "retry_generation",
    "seconds_until_due",
    "unregister_worker",
]
