"""Files and rows: which files are missing, which have no row, and which were moved."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from services.storage import (
    Generation,
    MissingFile,
    MovedFile,
    complete_generation,
    create_generations,
    find_files,
    get_generation,
    get_session,
    init_db,
)
from services.storage.audio_files import describe_file
from tests.support.command_line import run
from tests.support.databases import is_sqlite
from tests.support.factories import a_generation, a_request

pytestmark = pytest.mark.usefixtures("db")


def rendered(path: Path, content: bytes | None = None, *, hashed: bool = True, file_path: str | None = None) -> str:
    """Store a completed generation with its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode() if content is None else content)
    file = describe_file(path)
    with get_session() as session:
        generation = a_generation(session, file_path=file_path or str(path))
        sha256 = file.sha256 if hashed else None
        complete_generation(session, generation.id, 1.0, file.size_bytes, file_sha256=sha256, file_format=file.format)
    return generation.id


def stored(generation_id: str) -> Generation:
    with get_session() as session:
        generation = get_generation(session, generation_id)
    assert generation is not None
    return generation


def test_every_row_with_its_file_is_no_finding(tmp_path: Path) -> None:
    rendered(tmp_path / "out/a.wav")
    with get_session() as session:
        a_generation(session, file_path=str(tmp_path / "out/pending.wav"))
    report = find_files(tmp_path / "out")
    assert (report.missing, report.orphaned, report.moved, report.relinked) == ((), (), (), 0)


def test_missing_files_are_marked_until_they_are_back(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    generation_id = rendered(path)
    path.rename(tmp_path.parent / "away.wav")
    assert find_files(tmp_path).missing == (MissingFile(generation_id, str(path)),)
    since = stored(generation_id).file_missing_since
    assert since is not None
    assert find_files(tmp_path).missing == (MissingFile(generation_id, str(path)),)
    assert stored(generation_id).file_missing_since == since
    (tmp_path.parent / "away.wav").rename(path)
    assert find_files(tmp_path).missing == ()
    assert stored(generation_id).file_missing_since is None


@pytest.mark.parametrize("name", ["x" * 4_000, f"{'x' * 300}/a.wav", "a.wav/b.wav"])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path, name: str) -> None:
    rendered(tmp_path / "a.wav")
    generation_id = rendered(tmp_path / "b.wav", file_path=name)
    (tmp_path / "b.wav").unlink()
    assert find_files(tmp_path).missing == (MissingFile(generation_id, name),)


def test_files_without_a_row_are_reported_and_stay(tmp_path: Path, database_url: str) -> None:
    rendered(tmp_path / "out/a.wav")
    (tmp_path / "out/b.wav").write_bytes(b"1")
    (tmp_path / "out/link.wav").symlink_to(tmp_path / "out/b.wav")
    assert find_files(tmp_path / "out").orphaned == (str(tmp_path / "out/b.wav"),)
    assert (tmp_path / "out/b.wav").exists()
    if is_sqlite(database_url):  # the database's own files are not opened, and not reported
        assert find_files(tmp_path).orphaned == (str(tmp_path / "out/b.wav"),)


def test_a_moved_file_is_recognized_and_linked_again(tmp_path: Path) -> None:
    generation_id = rendered(tmp_path / "a.wav")
    (tmp_path / "new").mkdir()
    (tmp_path / "a.wav").rename(tmp_path / "new/renamed.wav")
    moved = (MovedFile(generation_id, str(tmp_path / "a.wav"), str(tmp_path / "new/renamed.wav")),)
    report = find_files(tmp_path)
    assert (report.missing, report.orphaned, report.moved, report.relinked) == ((), (), moved, 0)
    assert stored(generation_id).file_path == str(tmp_path / "a.wav")
    assert find_files(tmp_path, relink=True).relinked == 1
    assert stored(generation_id).file_path == str(tmp_path / "new/renamed.wav")
    assert stored(generation_id).file_missing_since is None
    assert find_files(tmp_path).moved == ()


@pytest.mark.parametrize(("current", "start"), [(".", "out/"), ("out", ""), ("/", "")])
def test_a_relative_path_stays_relative(
    current: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / current)
    generation_id = rendered(tmp_path / "out/a.wav", file_path=f"{start}a.wav")
    (tmp_path / "out/b").mkdir()
    (tmp_path / "out/a.wav").rename(tmp_path / "out/b/a.wav")
    find_files(tmp_path / "out", relink=True)
    assert stored(generation_id).file_path == f"{start}b/a.wav"
    assert find_files(tmp_path / "out").missing == ()


@pytest.mark.parametrize("change", ["other content", "no hash"])
def test_a_file_that_may_be_another_one_is_not_linked(change: str, tmp_path: Path) -> None:
    generation_id = rendered(tmp_path / "a.wav", b"12345", hashed=change != "no hash")
    (tmp_path / "a.wav").unlink()
    (tmp_path / "b.wav").write_bytes(b"12345" if change == "no hash" else b"54321")
    report = find_files(tmp_path, relink=True)
    assert report.missing == (MissingFile(generation_id, str(tmp_path / "a.wav")),)
    assert report.orphaned == (str(tmp_path / "b.wav"),)
    assert report.moved == ()


def test_a_thousand_moved_files_are_linked_again_and_none_twice(tmp_path: Path) -> None:
    """A third of the files have the same content as others."""
    (tmp_path / "old").mkdir()
    with get_session() as session:
        requests = [a_request(file_path=str(tmp_path / f"old/{number}.wav")) for number in range(1_000)]
        generations = create_generations(session, requests)
        for number, generation in enumerate(generations):
            Path(generation.file_path).write_bytes(b"same" if number % 3 == 0 else b"%05d" % number)
            file = describe_file(generation.file_path)
            complete_generation(session, generation.id, 1.0, file.size_bytes, file_sha256=file.sha256)
    for number in range(1_000):
        target = tmp_path / f"new/{number % 10}/{number}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"old/{number}.wav").rename(target)
    report = find_files(tmp_path, relink=True)
    assert (report.relinked, report.missing, report.orphaned) == (1_000, (), ())
    with get_session() as session:
        paths = session.scalars(select(Generation.file_path).order_by(Generation.id)).all()
    assert paths == [str(tmp_path / f"new/{number % 10}/{number}.wav") for number in range(1_000)]
    assert len(list((tmp_path / "new").rglob("*.wav"))) == 1_000


@pytest.mark.parametrize(("folder", "relink", "error"), [("no/such", False, ValueError), (".", "yes", TypeError)])
def test_a_bad_argument_is_refused(folder: str, relink: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"outputs_dir|relink"):
        find_files(folder, relink=relink)


def test_the_verb_prints_a_line_for_each_finding(sqlite_url: str, tmp_path: Path) -> None:
    init_db(sqlite_url)
    out = tmp_path / "out"
    ids = [rendered(out / name) for name in ("moved.wav", "lost.wav")]
    (out / "moved.wav").rename(out / "b.wav")
    (out / "lost.wav").unlink()
    (out / "c.wav").write_bytes(b"1")
    result = run("files", str(out), url=sqlite_url)
    assert [line.split("\t") for line in result.stdout.splitlines()] == [
        ["missing", ids[1], str(out / "lost.wav")],
        ["orphaned", "", str(out / "c.wav")],
        ["moved", ids[0], str(out / "moved.wav"), str(out / "b.wav")],
    ]
    assert "--relink" in result.stderr
    assert json.loads(run("files", str(out), "--relink", "--json", url=sqlite_url).stdout)["relinked"] == 1
