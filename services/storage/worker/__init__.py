"""The worker: claims generations, runs a handler on each and stores the results. All threads and signals are here."""

from .job import DoNotRetry, Job, Result, WorkerInterrupted
from .loop import Worker

__all__ = ["DoNotRetry", "Job", "Result", "Worker", "WorkerInterrupted"]
