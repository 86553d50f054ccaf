"""The story that `just demo` tells: prompts are submitted, Workers render them. Prints nothing; others watch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from re import sub
from uuid import uuid4

from ..database import create_generations
from ..engine import Storage
from ..models import Generation
from ..worker import DoNotRetry, Job, Result
from .synthesis import CHANNELS, SAMPLE_RATE, read_style, render

MODEL_NAME = "stdlib-synthesis"
# A worker's lease in the demo is short, so one that misses a beat on a busy machine may lose it and start again.
MAX_ATTEMPTS = 10


class Unwanted(Exception):  # noqa: N818 - ends a rendering early, not an error
    """Nobody wants the music any more."""


def submit(storage: Storage, prompts: Sequence[str], outputs: Path, duration_seconds: float) -> list[Generation]:
    """Return one pending generation for each prompt, in order, of one batch; its file is going to be in `outputs`."""
    requests = [
        {
            "prompt": prompt,
            "model_name": MODEL_NAME,
            "duration_seconds": duration_seconds,
            "sample_rate": SAMPLE_RATE,
            "channels": CHANNELS,
            "file_path": outputs / f"{number:03}-{_slug(prompt)}.wav",
            "max_attempts": MAX_ATTEMPTS,
        }
        for number, prompt in enumerate(prompts, start=1)
    ]
    with storage.session() as session:
        return create_generations(session, requests, batch_id=str(uuid4()))


def render_job(job: Job, folder: Path = Path(), at_step: Callable[[float], None] | None = None) -> Result | None:
    """Render the job's prompt to its file, a handler for Worker; a relative `file_path` begins in `folder`.

    Calls `at_step` with the fraction that is done. Returns None when nobody wants the music any more. Raises DoNotRetry
    for a prompt that nobody can play, OSError when the file cannot be written.
    """
    generation = job.generation
    path = folder / generation.file_path

    def report(fraction: float) -> None:
        if job.cancelled:
            raise Unwanted
        job.progress(fraction, "composing")
        if at_step is not None:
            at_step(fraction)

    style = read_style(generation.prompt)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        render(generation.prompt, path, generation.duration_seconds, report)
    except Unwanted:
        return None
    except ValueError as error:
        raise DoNotRetry(str(error)) from error
    return Result(path.stat().st_size, {"bpm": style.bpm, "key": style.key})


def _slug(prompt: str) -> str:
    """Return the first words of `prompt` as part of a file name."""
    return sub(r"[^a-z0-9]+", "-", prompt[:48].lower()).strip("-") or "music"
