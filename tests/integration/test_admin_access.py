"""Who may open the admin page, under which names, and which files it plays."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import services.storage.admin
from services.storage import Generation, Storage, complete_generation
from tests.support.admin_server import admin_client, served
from tests.support.factories import a_generation
from tests.support.sessions import path_of

SOUND = bytes(range(256)) * 40
STATIC = Path(services.storage.admin.__file__).parent / "static"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    (folder / "deep").mkdir(parents=True)
    return folder


@pytest.fixture
def client(db: Storage, outputs: Path) -> Iterator[httpx.Client]:
    with admin_client(db, outputs=outputs) as client:
        yield client


def rendered(storage: Storage, path: str | os.PathLike[str]) -> Generation:
    """Store a completed generation whose file is at `path`."""
    with storage.session() as session:
        row = a_generation(session, file_path=path)
        complete_generation(session, row.id, 1.0, 1)
    return row


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:8765", 200), ("localhost:8765", 200), ("LOCALHOST", 200), ("[::1]:8765", 200),
        ("192.168.7.9", 200), ("evil.example", 400), ("evil.example:8765", 400), ("127.0.0.1.evil.example", 400),
        ("", 400), ("[::1", 200), ("a:b:c", 400), ("localhost.evil.example", 400),
    ],
)  # fmt: skip
def test_only_addresses_and_known_names_are_answered(client: httpx.Client, host: str, status: int) -> None:
    for path in ("/", "/static/admin.css", "/audio?id=1", "/?token=x"):
        answer = client.get(path, headers={"Host": host})
        assert (answer.status_code == 400) == (status == 400), path


def test_more_names_can_be_allowed(db: Storage) -> None:
    with admin_client(db, allowed_hosts=["Music.example"]) as client:
        assert client.get("/", headers={"Host": "music.example:80"}).status_code == 200
        assert client.get("/", headers={"Host": "other.example"}).status_code == 400
    with admin_client(db, allowed_hosts=["*"]) as client:
        assert client.get("/", headers={"Host": "other.example"}).status_code == 200


def test_every_answer_has_the_headers_that_keep_foreign_code_out(client: httpx.Client) -> None:
    for path in ("/", "/history", "/nowhere", "/static/admin.js", "/static/none", "/audio?id=none"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';"), path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"]


def test_pages_name_no_other_site_and_have_no_inline_code(db: Storage, client: httpx.Client) -> None:
    rendered(db, "a.wav")
    for path in ("/", "/history", "/numbers", "/nowhere"):
        text = client.get(path).text
        assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https:" not in text
        assert " style=" not in text
        assert "<style" not in text
        assert text.count("<script") == 1


def test_the_static_files_are_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) <= 75 * 1024


def test_a_token_is_asked_for_on_every_address_and_kept_as_a_cookie(db: Storage) -> None:
    token = "a token & more"
    with admin_client(db, token=token) as client:
        for path in ("/", "/history", "/static/admin.css", "/audio?id=1", "/nowhere", "/?token=wrong", "/?token="):
            assert client.get(path).status_code == 401, path
        assert client.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        first = client.get("/history", params={"q": "a b", "token": token})
        assert first.status_code == 303
        assert first.headers["location"] == "/history?q=a+b"
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert token not in cookie
        assert client.get("/history").status_code == 200
        away = client.get(f"{client.base_url}/evil.example/", params={"token": token})
        assert away.headers["location"] == "/evil.example/"


def test_mounted_below_a_path_every_link_and_the_cookie_stay_there(db: Storage) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from services.storage.admin import create_app

    row = rendered(db, "a.wav")
    site = Starlette(routes=[Mount("/admin", create_app(db, token="t"))])
    with served(site) as address, httpx.Client(base_url=address, follow_redirects=True) as client:
        page = client.get("/admin/", params={"token": "t"})
        assert page.status_code == 200
        assert page.url.path == "/admin/"
        for part in (
            '"/admin/history"',
            '"/admin/static/admin.css?',
            f'"/admin/generation?id={row.id}"',
            "aria-current",
        ):
            assert part in page.text, part
        assert 'href="/history' not in page.text
        assert client.get("/admin/static/admin.css").status_code == 200
        assert client.get("/admin/history?prompts=hidden").text.count("/admin/history?prompts=hidden") >= 1
        assert client.get("/admin").status_code == 200


def test_a_file_is_played_whole_or_in_parts(db: Storage, client: httpx.Client, outputs: Path) -> None:
    for path in (outputs / "a.wav", outputs / "deep" / "b.mp3", Path("deep/c.FLAC")):
        (outputs / path).write_bytes(SOUND)
        address = f"/audio?id={rendered(db, path).id}"
        whole = client.get(address)
        assert whole.content == SOUND
        assert whole.headers["content-type"].startswith("audio/")
        assert whole.headers["accept-ranges"] == "bytes"
        part = client.get(address, headers={"Range": "bytes=100-199"})
        assert part.status_code == 206
        assert part.content == SOUND[100:200]
        assert client.get(address, headers={"Range": "bytes=-10"}).content == SOUND[-10:]
        assert client.get(address, headers={"Range": "bytes=99999-"}).status_code == 416
        assert client.head(address).headers["content-length"] == str(len(SOUND))


def test_nothing_outside_the_folder_is_played(db: Storage, client: httpx.Client, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(SOUND)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.wav").write_bytes(SOUND)
    (outputs / "link.wav").symlink_to(tmp_path / "secret.wav")
    (outputs / "inside.wav").symlink_to(outputs / "real.wav")
    (outputs / "real.wav").write_bytes(SOUND)
    (outputs / "folder").symlink_to(tmp_path / "other")
    (outputs / "page.html").write_bytes(SOUND)
    (outputs / "noext").write_bytes(SOUND)
    (outputs / "dir.wav").mkdir()
    os.mkfifo(outputs / "pipe.wav")
    for path in (
        tmp_path / "secret.wav", outputs / ".." / "secret.wav", "../secret.wav", "link.wav", "inside.wav",
        "folder/x.wav", "page.html", "noext", "dir.wav", "pipe.wav", "missing.wav", "/dev/zero.wav", "x" * 300 + ".wav",
    ):  # fmt: skip
        assert client.get(f"/audio?id={rendered(db, path).id}").status_code == 404, path
    for name in ("none", "", "../secret.wav", str(tmp_path / "secret.wav")):
        assert client.get("/audio", params={"id": name}).status_code == 404


def test_the_database_itself_is_never_opened(sqlite_url: str, tmp_path: Path) -> None:
    """Closing another descriptor of it would drop this process's locks: https://sqlite.org/howtocorrupt.html, 2.2."""
    os.link(path_of(sqlite_url), tmp_path / "hard.wav")
    storage = Storage(sqlite_url)
    with admin_client(storage, outputs=tmp_path) as client:
        assert client.get(f"/audio?id={rendered(storage, 'hard.wav').id}").status_code == 404
    storage.dispose()


def test_without_a_folder_nothing_is_played_and_the_page_says_how(db: Storage, outputs: Path) -> None:
    (outputs / "a.wav").write_bytes(SOUND)
    row = rendered(db, outputs / "a.wav")
    with admin_client(db) as client:
        assert client.get(f"/audio?id={row.id}").status_code == 404
        assert "<audio" not in client.get("/history").text
        assert "dgx-storage admin --outputs DIR" in client.get(f"/generation?id={row.id}").text
    with admin_client(db, outputs=outputs / "gone") as client:
        assert client.get(f"/audio?id={row.id}").status_code == 404


def test_many_files_leave_no_descriptor_open(db: Storage, client: httpx.Client, outputs: Path) -> None:
    (outputs / "a.wav").write_bytes(SOUND)
    address = f"/audio?id={rendered(db, 'a.wav').id}"
    client.get(address)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        client.get(address)
        client.get(address, headers={"Range": "bytes=99999-"})
        client.head(address)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
