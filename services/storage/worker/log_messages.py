"""The log messages about a job: claimed, finished, failed, due again. None contains a prompt."""

from ..lifecycle import GenerationStatus
from ..models import Generation


def describe_claim(generation: Generation) -> str:
    """Return the message for a generation that was just claimed."""
    attempt = f"attempt {generation.attempt} of {generation.max_attempts}"
    return f"generation {generation.id}: claimed, {attempt}, model {generation.model_name}"


def describe_outcome(generation: Generation) -> str:
    """Return the message for a generation whose attempt has just ended: with its time, or when it is due again."""
    match generation.status:
        case GenerationStatus.COMPLETED:
            outcome = f"finished in {generation.generation_time_seconds or 0:.1f} s"
        case GenerationStatus.PENDING:
            outcome = f"pending again, due at {generation.scheduled_at:%Y-%m-%d %H:%M:%S} UTC"
        case GenerationStatus.FAILED:
            outcome = f"failed after attempt {generation.attempt}, and is not tried again"
        case _:
            outcome = str(generation.status)
    return f"generation {generation.id}: {outcome}"
