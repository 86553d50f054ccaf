"""The interface of a handler: it receives a Job and returns a Result, or raises DoNotRetry."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..audio_files import describe_file
from ..models import Generation, Lease
from ..serialization import Report
from ..validation import validate_generation_field


class DoNotRetry(Exception):  # noqa: N818 - a signal from the handler, like StopIteration, not an error of this library
    """Another attempt would end the same way."""


class WorkerInterrupted(BaseException):
    """Raised inside the handler when the worker stops and the grace period of its running job is over."""


@dataclass(frozen=True)
class Result(Report):
    """The result of a handler: its file, metadata to merge into the stored, and the time in seconds it measured.

    `file_sha256`, 64 hexadecimal digits, lets find_files() recognize the file when it was moved.
    """

    file_size_bytes: int | None
    metadata: Mapping[str, Any] | None = None
    generation_time: float | None = None
    file_sha256: str | None = None
    file_format: str | None = None

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        metadata: Mapping[str, Any] | None = None,
        generation_time: float | None = None,
    ) -> "Result":
        """Return the result for the finished file at `path`, after reading it: its size, SHA-256 and format.

        Raises OSError if the file cannot be read.
        """
        file = describe_file(path)
        return cls(file.size_bytes, metadata, generation_time, file.sha256, file.format)


class Job:
    """One attempt at a generation, as its handler sees it."""

    def __init__(self, generation: Generation, lease: Lease, report: Callable[[float, str | None], None]) -> None:
        self.generation = generation
        self.lease = lease
        self._report = report
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether the result will be dropped: a user cancelled the job, or its lease was lost. The handler may end."""
        return self._cancelled

    def cancel(self) -> None:
        """Set `cancelled`. Safe in any thread."""
        self._cancelled = True

    def progress(self, fraction: float, step: str | None = None) -> None:
        """Report the progress (0 to 1) and the current step; they are stored at most once a second.

        Raises ValueError or TypeError for a bad value.
        """
        fraction = validate_generation_field("progress", fraction)
        self._report(fraction, validate_generation_field("current_step", step))
