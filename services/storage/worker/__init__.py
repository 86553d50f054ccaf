"""The worker: claims generations, runs a handler on each and stores the results. The only threads and signals."""

from .job import DoNotRetry, Job, Result, WorkerInterrupted
from .loop import Worker

__all__ = ["DoNotRetry", "Job", "Result", "Worker", "WorkerInterrupted"]
