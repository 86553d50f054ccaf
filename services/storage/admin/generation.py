"""The page of one generation: its request and result, its states and attempts, its variations, and why it waits."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import Any, Final

from sqlalchemy.orm import Session

from ..analytics import WaitReason, estimate_completion, explain_wait
from ..generations import get_generation, list_generations
from ..lifecycle import AttemptOutcome, GenerationStatus
from ..models import Attempt, Generation
from ..queue import get_attempts
from ..types import utcnow
from .now import REFRESH_SECONDS
from .view import Missing, View

VARIATIONS_SHOWN: Final = 12
OBVIOUS: Final = (WaitReason.FINISHED, WaitReason.EXHAUSTED, WaitReason.PROCESSING)  # the page shows it anyway


@dataclass(frozen=True)
class Event:
    """Something that happened to the generation."""

    at: datetime
    title: str
    kind: str
    detail: str = ""
    error: str = ""
    seconds: float | None = None


def read_generation(session: Session, view: View) -> dict[str, Any]:
    """Return what the template shows. Seven statements with the check of the schema."""
    generation_id = view.asked.get("id", "")
    generation = get_generation(session, generation_id)
    if generation is None:
        raise Missing("There is no such generation", "It may have been deleted, or the address is incomplete.")
    attempts = get_attempts(session, generation_id)
    wait = None if generation.is_finished else explain_wait(session, generation_id)
    children = list_generations(session, parent_id=generation_id, limit=VARIATIONS_SHOWN)
    return {
        "generation": generation,
        "now": utcnow(),
        "wait": None if wait is None or wait.reason in OBVIOUS else wait,
        "estimate": None if generation.is_finished else estimate_completion(session, generation_id),
        "events": list_events(generation, attempts),
        "parent": get_generation(session, generation.parent_id) if generation.parent_id else None,
        "variations": children.items,
        "has_more_variations": children.next is not None,
        "commands": list(_list_commands(generation)),
        "metadata": {key: value for key, value in generation.get_metadata().items() if key != "peaks"},
        "refresh": 0 if generation.is_finished else REFRESH_SECONDS,
    }


def list_events(generation: Generation, attempts: list[Attempt]) -> list[Event]:
    """Return what happened to a generation in order of time."""
    events = [Event(generation.created_at, "Submitted", "pending")]
    if generation.scheduled_at > generation.created_at and not attempts:
        events.append(Event(generation.scheduled_at, "Due", "pending"))
    for attempt in attempts:
        events += _list_attempt(attempt)
    if generation.is_processing and generation.started_at is not None:
        events.append(_start(generation.started_at, generation.attempt, generation.worker_id))
    if generation.cancel_requested_at is not None:
        events.append(Event(generation.cancel_requested_at, "Cancellation requested", "cancelled"))
    # The end of an attempt under a lease is also the end of the generation: one event is enough.
    is_told = bool(attempts) and attempts[-1].outcome == generation.status
    if generation.completed_at is not None and not is_told:
        error = generation.error_message or ""
        events.append(Event(generation.completed_at, generation.status.capitalize(), generation.status, error=error))
    if generation.file_missing_since is not None:
        events.append(Event(generation.file_missing_since, "File found missing", "failed"))
    return sorted(events, key=lambda event: event.at)


def _list_attempt(attempt: Attempt) -> Iterator[Event]:
    seconds = None
    if attempt.started_at is not None:
        yield _start(attempt.started_at, attempt.number, attempt.worker_id)
        seconds = (attempt.finished_at - attempt.started_at).total_seconds()
    kind = "failed" if attempt.outcome in (AttemptOutcome.FAILED, AttemptOutcome.LOST) else attempt.outcome
    error = attempt.error_message or ""
    yield Event(attempt.finished_at, f"Attempt {attempt.number} {attempt.outcome}", kind, error=error, seconds=seconds)


def _start(at: datetime, number: int, worker_id: str | None) -> Event:
    return Event(at, f"Attempt {number} started", "processing", worker_id or "")


def _list_commands(generation: Generation) -> Iterator[tuple[str, str]]:
    """Yield what the reader may want to do next, in words and as a line to copy."""
    given = quote(generation.id)  # may have been chosen by somebody else
    if generation.status in (GenerationStatus.FAILED, GenerationStatus.CANCELLED):
        yield "Retry", f"dgx-storage retry {given}"
    elif not generation.is_finished:
        yield "Cancel", f"dgx-storage cancel {given}"
    yield "Show as JSON", f"dgx-storage show {given} --json"
    yield "Clone in Python", f"clone_generation(session, {generation.id!r}, file_path='outputs/variation.wav')"
