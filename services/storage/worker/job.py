"""What a handler gets and gives: a Job, a Result, and DoNotRetry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..models import Generation, Lease
from ..validation import validate_generation_field


class DoNotRetry(Exception):  # noqa: N818 - said by a handler, like StopIteration, not an error of ours
    """Another attempt would end the same way."""


class WorkerInterrupted(BaseException):
    """The worker stops and the time that its running job had is over."""


@dataclass(frozen=True)
class Result:
    """What a handler made: the size of the file, metadata to lay over what is stored, and its own measure of time."""

    file_size_bytes: int | None
    metadata: Mapping[str, Any] | None = None
    generation_time: float | None = None


class Job:
    """One attempt at a generation, as its handler sees it."""

    def __init__(self, generation: Generation, lease: Lease, report: Callable[[float, str | None], None]) -> None:
        self.generation = generation
        self.lease = lease
        self._report = report
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted: a user cancelled it or the lease was lost. The handler may return."""
        return self._cancelled

    def cancel(self) -> None:
        """Tell the handler that the result is no longer wanted. From any thread."""
        self._cancelled = True

    def progress(self, fraction: float, step: str | None = None) -> None:
        """Say how far the work is (a fraction of 1) and at what step; it is written once a second at most.

        Raises ValueError or TypeError for a bad value.
        """
        fraction = validate_generation_field("progress", fraction)
        self._report(fraction, validate_generation_field("current_step", step))
