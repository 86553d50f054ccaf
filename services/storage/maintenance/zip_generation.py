"""Write one generation into a zip file: its request, result, metadata and attempts as JSON, and its audio file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO, Any, Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from ..engine import Storage, get_storage
from ..errors import TransferError
from ..generations import get_generation
from ..models import Generation
from ..queue import get_attempts
from ..queue.enqueue import REQUEST
from ..serialization import Report
from .export import open_target
from .output_folder import Outputs

DOCUMENT: Final = "generation.json"


@dataclass(frozen=True)
class ZipReport(Report):
    """The zip file, the name of the audio file in it, and the size of that in bytes."""

    path: Path
    audio_name: str
    audio_bytes: int


def zip_generation(
    generation_id: str,
    file: str | os.PathLike[str],
    *,
    outputs_dir: str | os.PathLike[str],
    overwrite: bool = False,
    storage: Storage | None = None,
) -> ZipReport | None:
    """Write a generation and its audio file into a new zip file; return None for an unknown id.

    The zip holds `generation.json` (request, result, metadata, attempts) and `audio/NAME`. The audio file must be below
    `outputs_dir`, and no symbolic link may be on its path. The zip is private (mode 0600), and complete and flushed to
    the disk before it gets its name. Raises TransferError if there is no such audio file, or if `file` exists (with
    `overwrite` only for the database itself), UnreachableError if it cannot be written, ValueError if `outputs_dir` is
    not a folder, OSError if the audio file cannot be read.
    """
    storage = storage or get_storage()
    outputs = Outputs("outputs_dir", outputs_dir, storage)
    with storage.session(read_only=True) as session:
        generation = get_generation(session, generation_id)
        attempts = [attempt.to_dict() for attempt in get_attempts(session, generation_id)]
    if generation is None:
        return None
    name = f"audio/{PurePosixPath(generation.file_path).name}".replace("\\", "_")
    with _open_audio(outputs, generation) as audio, open_target(file, storage, overwrite=overwrite) as target:
        with ZipFile(target, "w", ZIP_DEFLATED) as archive:
            archive.writestr(DOCUMENT, json.dumps(_describe(generation, attempts), ensure_ascii=False, indent=2) + "\n")
            archive.compression = ZIP_STORED  # audio does not get smaller
            with archive.open(name, "w", force_zip64=True) as entry:
                copyfileobj(audio, entry)
        return ZipReport(Path(file), name, audio.tell())


@contextmanager
def _open_audio(outputs: Outputs, generation: Generation) -> Iterator[IO[bytes]]:
    descriptor = outputs.open(generation.file_path)
    if descriptor is None:
        raise TransferError(
            f"The {generation.status} generation {generation.id} has no audio file below {outputs.root}, or a symbolic "
            "link is on its path: check its file_path and the folder.",
            field="file_path",
        )
    with os.fdopen(descriptor, "rb") as audio:
        yield audio


def _describe(generation: Generation, attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns in three groups, and the attempts."""
    columns = generation.to_dict()
    request = {name: columns[name] for name in REQUEST}
    result = {name: value for name, value in columns.items() if name not in request and name != "metadata"}
    return {"request": request, "result": result, "metadata": columns["metadata"], "attempts": attempts}
