"""What is read from a rendered file."""

import hashlib
from pathlib import Path

import pytest

from services.storage.audio_files import describe_file

STARTS = {
    "wav": b"RIFF\x24\x00\x00\x00WAVEfmt ",
    "flac": b"fLaC\x00",
    "ogg": b"OggS\x00",
    "mp3": b"ID3\x04",
    "m4a": b"\x00\x00\x00\x20ftypM4A ",
    "aiff": b"FORM\x00\x00\x00\x00AIFF",
}


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("length", [0, 1, 5_000_000])
def test_a_file_is_described_by_its_bytes_and_not_by_its_name(name: str, length: int, tmp_path: Path) -> None:
    content = STARTS[name] + bytes(length)
    path = tmp_path / "track.unknown"
    path.write_bytes(content)
    assert describe_file(path) == (len(content), hashlib.sha256(content).hexdigest(), name)


@pytest.mark.parametrize("content", [b"", b"x", b"RIFF\x00\x00\x00\x00AVI "])
def test_an_unknown_format_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "track.wav"
    path.write_bytes(content)
    assert describe_file(path) == (len(content), hashlib.sha256(content).hexdigest(), None)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_database_in_use_is_not_opened(suffix: str, tmp_path: Path) -> None:
    database, companion = tmp_path / "generations.db", tmp_path / f"generations.db{suffix}"
    for path in (database, companion):
        path.touch()
    for path in (database, companion):
        with pytest.raises(OSError, match="only SQLite may open"):
            describe_file(path)
    companion.unlink()
    assert describe_file(database).size_bytes == 0


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        describe_file(tmp_path / "none")
