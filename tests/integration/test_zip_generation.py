"""zip_generation(): the request, result, metadata and audio of one generation, never a file from elsewhere."""

import json
import os
from pathlib import Path
from zipfile import ZipFile

import pytest

from services.storage import (
    Storage,
    TransferError,
    UnreachableError,
    claim_generation,
    complete_generation,
    get_session,
    zip_generation,
)
from tests.support.command_line import run
from tests.support.factories import a_generation


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "beat.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "linked").symlink_to(tmp_path)
    return folder


def completed(file_path: str) -> str:
    with get_session() as session:
        a_generation(session, file_path=file_path, metadata={"bpm": 140, "títle": "音"}, parameters={"seed": 2**64 - 1})
        claimed = claim_generation(session)
        assert claimed is not None
        complete_generation(session, claimed.id, 18.5, 12, lease=claimed.lease)
        return claimed.id


@pytest.mark.parametrize("file_path", ["beat.wav", "{outputs}/beat.wav"])
def test_the_zip_holds_the_row_and_the_audio(db: Storage, outputs: Path, tmp_path: Path, file_path: str) -> None:
    generation_id = completed(file_path.format(outputs=outputs))
    report = zip_generation(generation_id, tmp_path / "one.zip", outputs_dir=outputs)
    assert report is not None
    assert (report.audio_name, report.audio_bytes) == ("audio/beat.wav", 12)
    assert (tmp_path / "one.zip").stat().st_mode & 0o777 == 0o600
    with ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["generation.json", "audio/beat.wav"]
        assert archive.read("audio/beat.wav") == b"RIFF\0\0\0\0WAVE"
        document = json.loads(archive.read("generation.json"))
    assert document["request"]["parameters"] == {"seed": 2**64 - 1}
    assert document["metadata"] == {"bpm": 140, "títle": "音"}
    assert (document["result"]["status"], document["result"]["id"]) == ("completed", generation_id)
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["completed"]


@pytest.mark.parametrize(
    "file_path", ["link.wav", "linked/secret.wav", "../secret.wav", "{outputs}/../secret.wav", "missing.wav", "linked"]
)
def test_a_file_from_elsewhere_is_never_read_and_nothing_is_written(
    db: Storage, outputs: Path, tmp_path: Path, file_path: str
) -> None:
    generation_id = completed(file_path.format(outputs=outputs))
    with pytest.raises(TransferError, match="no audio file below") as caught:
        zip_generation(generation_id, tmp_path / "one.zip", outputs_dir=outputs)
    assert caught.value.field == "file_path"
    assert not list(tmp_path.glob("*one.zip*"))


def test_a_zip_that_exists_stays_unless_it_may_be_replaced(db: Storage, outputs: Path, tmp_path: Path) -> None:
    generation_id = completed("beat.wav")
    target = tmp_path / "one.zip"
    target.write_text("precious")
    with pytest.raises(TransferError, match="exists"):
        zip_generation(generation_id, target, outputs_dir=outputs)
    assert target.read_text() == "precious"
    zip_generation(generation_id, target, outputs_dir=outputs, overwrite=True)
    assert ZipFile(target).testzip() is None
    with pytest.raises(UnreachableError):
        zip_generation(generation_id, tmp_path / "nowhere" / "one.zip", outputs_dir=outputs)
    with pytest.raises(ValueError, match="outputs_dir"):
        zip_generation(generation_id, target, outputs_dir=tmp_path / "nowhere", overwrite=True)
    assert zip_generation("unknown", target, outputs_dir=outputs) is None
    assert [path for path in os.listdir(tmp_path) if path.endswith(".partial")] == []


def test_the_verb_writes_a_zip_and_says_why_not(db: Storage, database_url: str, outputs: Path, tmp_path: Path) -> None:
    arguments = [completed("beat.wav"), str(tmp_path / "one.zip"), "--outputs", str(outputs)]
    done = run("zip", *arguments, url=database_url)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.endswith("one.zip has generation.json and audio/beat.wav (12 bytes).\n")
    again = run("zip", *arguments, url=database_url)
    assert (again.exit_code, "--force" in again.stderr) == (1, True)
    assert run("zip", *arguments, "--force", url=database_url).exit_code == 0
    assert run("zip", "unknown-id", *arguments[1:], "--force", url=database_url).exit_code == 1
