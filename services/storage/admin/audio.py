"""Audio files over HTTP, with ranges. A request names a generation, never a path."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from starlette.responses import FileResponse

from ..engine import Storage
from ..maintenance.output_folder import Outputs
from ..models import Generation

# By the name of the file, because the page must never serve a text as HTML, whatever a row says about it.
MEDIA_TYPES: Final = {
    ".aiff": "audio/aiff",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}


@dataclass(frozen=True)
class OpenFile:
    """An open file, and its media type."""

    descriptor: int
    media_type: str


def open_audio(outputs: str | os.PathLike[str], generation: Generation, storage: Storage) -> OpenFile | None:
    """Open the file of a generation; None unless it is an audio file below the folder with no link on its path."""
    media_type = MEDIA_TYPES.get(PurePath(generation.file_path).suffix.lower())
    if media_type is None:
        return None
    try:
        descriptor = Outputs("outputs", outputs, storage).open(generation.file_path)
    except (OSError, ValueError):  # no such folder, or no permission
        return None
    return None if descriptor is None else OpenFile(descriptor, media_type)


class AudioResponse(FileResponse):
    """Sends an open file, so that nothing can put another one at its path meanwhile, and closes it."""

    def __init__(self, file: OpenFile) -> None:
        self.descriptor = file.descriptor
        super().__init__(
            f"/proc/self/fd/{file.descriptor}",
            media_type=file.media_type,
            stat_result=os.fstat(file.descriptor),
            headers={"Cache-Control": "private, no-cache"},
        )

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Send the file, then close it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self.descriptor)
