"""The life of a generation after it was created. SQL only: no threads, no sleeping, no rendering."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import literal_column
from sqlalchemy.orm import Session

from .errors import IllegalTransitionError
from .models import Generation
from .schema import GenerationStatus
from .validation import is_storable, merge_metadata, validate_generation_field

# A literal: a bound value would keep both databases from using the partial indexes of the queue.
PENDING = Generation.status == literal_column("'pending'")
CLAIM_ORDER = (Generation.priority.desc(), Generation.scheduled_at, Generation.id)


def complete_generation(
    session: Session,
    generation_id: str,
    generation_time: float,
    file_size_bytes: int,
    metadata: Mapping[str, Any] | None = None,
) -> Generation | None:
    """Say that the track is there: `generation_time` in seconds, its size, and metadata laid over what is stored.

    Returns None for an unknown id. Raises IllegalTransitionError when the generation is finished already, ConflictError
    when another writer changed it meanwhile, ValueError or TypeError for a bad value; then nothing is changed.
    """
    generation = session.get(Generation, generation_id) if is_storable("generation_id", generation_id) else None
    if generation is None:
        return None
    if generation.is_finished:
        raise IllegalTransitionError(generation.status, GenerationStatus.COMPLETED.value)
    file_size_bytes = validate_generation_field("file_size_bytes", file_size_bytes)
    stored = generation.metadata_json
    merged = merge_metadata(stored, metadata)
    generation.mark_completed(generation_time)
    generation.file_size_bytes = file_size_bytes
    if merged != stored:
        generation.metadata_json = merged
    session.flush()
    return generation
