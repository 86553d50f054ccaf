"""What is known about a rendered file: its size, SHA-256 and format. Reads files, never a database."""

import hashlib
import os
from typing import Final, NamedTuple

from .file_reading import open_file

# The first bytes of a file in each format: their offset, and the bytes (https://en.wikipedia.org/wiki/List_of_file_signatures).
SIGNATURES: Final = (
    (8, b"WAVE", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (4, b"ftyp", "m4a"),
    (8, b"AIFF", "aiff"),
)
READ_BYTES: Final = 16


class AudioFile(NamedTuple):
    """A file: its size in bytes, its SHA-256 in hexadecimal, and its format, None if it is not a known one."""

    size_bytes: int
    sha256: str
    format: str | None


def describe_file(path: str | os.PathLike[str]) -> AudioFile:
    """Read a file and return what is known about it. Raises OSError if it cannot be read, or is a database in use."""
    with open_file(path) as file:
        start = file.read(READ_BYTES)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    found = (name for offset, signature, name in SIGNATURES if start[offset:].startswith(signature))
    return AudioFile(size, digest, next(found, None))
