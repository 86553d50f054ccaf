"""What `just demo` runs: it submits prompts as a batch and renders them with Worker processes. Prints nothing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from os import geteuid
from pathlib import Path
from re import sub
from stat import S_ISDIR, S_ISREG
from tempfile import gettempdir
from uuid import uuid4

from ..database import create_generations
from ..engine import Storage
from ..models import Generation
from ..worker import DoNotRetry, Job, Result
from .synthesis import CHANNELS, SAMPLE_RATE, measure_peaks, read_style, render

MODEL_NAME = "stdlib-synthesis"
SCRATCH_PREFIX = "dgx-music-demo-"  # of the temporary folder with the database and the music of one run
DATABASE_NAME = "generations.db"
# Leases in the demo are short, so a worker on a busy machine may miss a heartbeat and lose an attempt.
MAX_ATTEMPTS = 10


class RenderingCancelled(Exception):  # noqa: N818 - ends a rendering early, not an error
    """The job was cancelled or its lease was lost, so its result would be dropped."""


def find_scratch() -> Path | None:
    """Return the folder of this user's newest demo whose database is still there, or None."""
    found = []
    for folder in Path(gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        with suppress(OSError):
            about, database = folder.lstat(), (folder / DATABASE_NAME).lstat()
            if S_ISDIR(about.st_mode) and about.st_uid == geteuid() and S_ISREG(database.st_mode):
                found.append((database.st_mtime, folder))
    return max(found)[1] if found else None


def submit(storage: Storage, prompts: Sequence[str], outputs: Path, duration_seconds: float) -> list[Generation]:
    """Create one batch with a pending generation for each prompt, in order; the `file_path`s are in `outputs`."""
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
    """Render the job's prompt to its file; the handler of the demo's workers.

    A relative `file_path` is below `folder`, or below the current folder if that is below `folder` too.
    Calls `at_step` with the fraction that is done. Returns None if the job was cancelled. Raises DoNotRetry if the
    prompt cannot be rendered, or if its file would be outside `folder` or replace another file; OSError if the file
    cannot be written.
    """
    generation = job.generation
    root = folder.resolve()
    path = Path(generation.file_path).resolve()  # such as outputs/a.wav with the folder outputs
    if not path.is_relative_to(root):
        path = (root / generation.file_path).resolve()
    if not path.is_relative_to(root):
        raise DoNotRetry(f"file_path is outside the folder {root}")

    def report(fraction: float) -> None:
        if job.cancelled:
            raise RenderingCancelled
        job.progress(fraction, "composing")
        if at_step is not None:
            at_step(fraction)

    style = read_style(generation.prompt)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        render(
            generation.prompt,
            path,
            generation.duration_seconds,
            report,
            sample_rate=generation.sample_rate,
            channels=generation.channels,
        )
    except RenderingCancelled:
        return None
    except FileExistsError as error:
        raise DoNotRetry("file_path names a file that exists: it is not replaced") from error
    except ValueError as error:
        raise DoNotRetry(str(error)) from error
    return Result.from_file(path, metadata={"bpm": style.bpm, "key": style.key, "peaks": measure_peaks(path)})


def _slug(prompt: str) -> str:
    """Return the start of `prompt` in a form that fits into a file name."""
    return sub(r"[^a-z0-9]+", "-", prompt[:48].lower()).strip("-") or "music"
