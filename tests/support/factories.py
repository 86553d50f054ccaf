"""Valid requests and generations; a test passes only the fields that it is about."""

from typing import Any

from sqlalchemy.orm import Session

from services.storage import Generation, create_generation

REQUEST: dict[str, Any] = {
    "prompt": "trap beat 140 BPM",
    "model_name": "musicgen-small",
    "duration_seconds": 16.0,
    "sample_rate": 32_000,
    "channels": 2,
    "file_path": "outputs/test.wav",
}


def a_request(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a valid create_generation()."""
    return REQUEST | changes


def a_generation(session: Session, **changes: Any) -> Generation:
    """Store a valid generation."""
    return create_generation(session, **a_request(**changes))
