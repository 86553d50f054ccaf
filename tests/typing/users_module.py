"""A module as a user writes it, with most of the API. Type checkers find no error in it, and the tests run it."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, selectinload

from services import storage
from services.storage import Generation, GenerationStatus, Job, Page, Prompt, Result, Worker, get_session
from services.storage.errors import ConflictError, IllegalTransitionError, StorageError


class Rating(storage.Base):
    __tablename__ = "ratings_of_a_user"

    id: Mapped[int] = mapped_column(primary_key=True)
    stars: Mapped[int]


def submit(session: Session, prompts: list[str]) -> list[str]:
    request: dict[str, Any] = {"model_name": "m", "duration_seconds": 4.0, "sample_rate": 32000, "channels": 2}
    request |= {"metadata": {"bpm": 140}, "parameters": {"seed": 7}}
    first = storage.create_generation(session, prompts[0], file_path=Path("a.wav"), priority=5, **request)
    rest = [request | {"prompt": prompt, "file_path": f"{prompt}.wav"} for prompt in prompts[1:]]
    many = storage.create_generations(session, rest, batch_id="album")
    variation = storage.clone_generation(session, first.id, file_path="b.wav", prompt="slower")
    assert variation is not None
    return [generation.id for generation in (first, *many, variation)]


def edit(session: Session, generation_id: str) -> dict[str, Any]:
    generation = storage.get_generation(session, generation_id)
    if generation is None:
        return {}
    text: str | None = generation.metadata
    generation.metadata = {"bpm": 120}
    generation.metadata = text
    generation.set_metadata(generation.get_metadata() | {"genre": "trap"})
    parameters: Mapping[str, Any] = generation.parameters or {}
    generation.parameters = {**parameters, "seed": 8}
    finished: bool = generation.is_finished
    lease: storage.Lease | None = generation.lease
    storage.set_favorite(session, generation_id)
    return generation.to_dict() | {"is_finished": finished, "lease": lease and lease.to_dict()}


def find(session: Session) -> Iterator[Generation]:
    page: Page[Generation] = storage.list_generations(session, status="pending", metadata={"bpm": (100, 150)}, limit=1)
    yield from page.items
    yield from storage.search_generations(session, "waltz", after=None).items
    query = select(Generation).where(Generation.is_pending, ~Generation.is_finished)
    query = query.where(Generation.parameters["seed"] == 8, Generation.metadata_json["genre"].as_string() == "trap")
    query = query.order_by(Generation.metadata_json["bpm"].as_integer().desc(), Generation.created_at)
    query = query.options(joinedload(Generation.prompt_record), selectinload(Generation.attempts))
    yield from session.scalars(query)
    count: int = session.scalars(select(func.count()).where(Generation.is_failed)).one()
    assert count == storage.count_generations(session, GenerationStatus.FAILED)


def describe(prompt: Prompt) -> str:
    latest = max(prompt.generations, key=lambda generation: generation.created_at)
    parent: Generation | None = latest.parent
    names = [variation.model_name for variation in latest.variations]
    outcomes = [attempt.outcome for attempt in latest.attempts]
    age: timedelta = datetime.now(UTC) - prompt.last_used_at
    return f"{prompt.text.upper()} {prompt.used_count + 1} {age.days} {parent is None} {names} {outcomes}"


def render(job: Job) -> Result:
    job.progress(0.5, "sampling")
    seed: Any = (job.generation.parameters or {}).get("seed")
    return Result(file_size_bytes=1, metadata={"seed": seed}, generation_time=0.1)


def report(session: Session, generation_id: str) -> str:
    queue = storage.get_queue_stats(session)
    wait = storage.explain_wait(session, generation_id)
    estimate = storage.estimate_completion(session, generation_id)
    usage = [bucket.to_dict() for bucket in storage.get_usage(session, bucket="hour")]
    matches = [(match.prompt.text, match.rank) for match in storage.search_prompts(session, "waltz", order_by="used")]
    median: str | None = None if estimate is None else estimate.p50_at.isoformat()
    reason: str = "" if wait is None else wait.reason
    return json.dumps([queue.to_dict(), reason, median, usage, matches], allow_nan=False)


def main(url: str) -> list[str]:
    storage.init_db(url)
    with get_session() as session:
        ids = submit(session, ["trap beat", "slow waltz", "fast polka"])
        edit(session, ids[0])
        assert ids[0] in {generation.id for generation in find(session)}
    Worker(render, retry_policy=storage.RetryPolicy(base_seconds=0)).run(max_jobs=1)
    with get_session(read_only=True) as session:
        prompts: list[Prompt] = storage.get_most_used_prompts(session, limit=1)
        lines = [describe(prompts[0]), report(session, ids[0])]
    try:
        storage.run_in_transaction(lambda session: storage.cancel_generation(session, ids[0]))
    except (IllegalTransitionError, ConflictError) as error:
        refused: StorageError = error
        lines.append(str(refused))
    new = Generation(prompt="x", model_name="m", duration_seconds=1, sample_rate=8000, channels=1, file_path="x.wav")
    copy: Generation = Generation.from_dict(new.to_dict())
    assert copy.to_dict() == new.to_dict()
    return lines
