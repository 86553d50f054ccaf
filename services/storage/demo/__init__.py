"""The story that `just demo` tells: prompts are submitted, worked and recorded. Prints nothing; the caller watches."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from re import sub

from ..database import complete_generation, create_generations, get_generation, update_generation_status
from ..engine import Storage
from ..models import Generation
from ..schema import GenerationStatus
from .synthesis import CHANNELS, SAMPLE_RATE, read_style, render

MODEL_NAME = "stdlib-synthesis"


def submit(storage: Storage, prompts: Sequence[str], outputs: Path, duration_seconds: float) -> list[Generation]:
    """Return one pending generation for each prompt, in order; its file is going to be in `outputs`."""
    requests = [
        {
            "prompt": prompt,
            "model_name": MODEL_NAME,
            "duration_seconds": duration_seconds,
            "sample_rate": SAMPLE_RATE,
            "channels": CHANNELS,
            "file_path": outputs / f"{number:03}-{_slug(prompt)}.wav",
        }
        for number, prompt in enumerate(prompts, start=1)
    ]
    with storage.session() as session:
        return create_generations(session, requests)


def work(storage: Storage, generations: Sequence[Generation]) -> Iterator[Generation]:
    """Render each of `generations` and yield it once it is finished: completed, or failed with its error."""
    for generation in generations:
        yield _work_one(storage, generation)


def _work_one(storage: Storage, generation: Generation) -> Generation:
    with storage.session() as session:
        update_generation_status(session, generation.id, GenerationStatus.PROCESSING)
    started = time.perf_counter()
    path = Path(generation.file_path)
    try:
        render(generation.prompt, path, generation.duration_seconds)
    except ValueError as error:
        with storage.session() as session:
            update_generation_status(session, generation.id, GenerationStatus.FAILED, error_message=str(error))
    else:
        style = read_style(generation.prompt)
        with storage.session() as session:
            complete_generation(
                session,
                generation.id,
                generation_time=time.perf_counter() - started,
                file_size_bytes=path.stat().st_size,
                metadata={"bpm": style.bpm, "key": style.key},
            )
    with storage.session(read_only=True) as session:
        finished = get_generation(session, generation.id)
    assert finished is not None
    return finished


def _slug(prompt: str) -> str:
    """Return the first words of `prompt` as part of a file name."""
    return sub(r"[^a-z0-9]+", "-", prompt[:48].lower()).strip("-") or "music"
