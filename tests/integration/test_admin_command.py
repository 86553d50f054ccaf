"""The verb admin: the address it prints, its token, and which database it shows."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.storage import Storage, init_db
from tests.integration.test_admin_pages import text_of
from tests.support.command_line import command, environment, process, run
from tests.support.factories import a_generation


def get(address: str, **options: Any) -> httpx.Response:
    return httpx.get(address, timeout=60, **options)


@contextmanager
def running(*arguments: str, cwd: Path, url: str = "") -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run the verb on a free port; yield the address it prints and the process."""
    process = subprocess.Popen(
        command("admin", "--port", "0", *arguments), cwd=cwd, text=True,
        env=environment(TMPDIR=str(cwd), DATABASE_URL=url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_it_prints_its_address_and_ends_with_ctrl_c(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "a.wav").write_bytes(b"RIFF")
    storage = Storage(sqlite_url)
    with storage.session() as session:
        row = a_generation(session, prompt="still here", file_path="outputs/a.wav")
        row.mark_completed(1.0)
    with running(cwd=tmp_path, url=sqlite_url) as (address, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert "still here" in text_of(get(address))
        assert get(f"{address}audio?id={row.id}").content == b"RIFF"
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert messages.splitlines()[0] == f"Showing {storage.display_url}"
    assert "Traceback" not in messages
    storage.dispose()


def test_workers_and_the_api_get_the_processor_first(sqlite_url: str, tmp_path: Path) -> None:
    with running(cwd=tmp_path, url=sqlite_url) as (_, process):
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)


def test_on_another_address_visitors_need_a_token(sqlite_url: str, tmp_path: Path) -> None:
    with running("--host", "0.0.0.0", cwd=tmp_path, url=sqlite_url) as (address, _):
        here, _, token = address.replace("0.0.0.0", "127.0.0.1").partition("?token=")
        assert len(token) >= 32
        assert get(here).status_code == 401
        assert get(here, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert get(here, headers={"Host": "music.example"}).status_code == 400
    with running("--token", "mine", "--hide-prompts", cwd=tmp_path, url=sqlite_url) as (address, _):
        assert address.endswith("/?token=mine")
        assert get(address).status_code == 303


def test_it_never_shows_the_token_to_others_on_the_command_line(sqlite_url: str, tmp_path: Path) -> None:
    variables = environment(
        TMPDIR=str(tmp_path), DATABASE_URL=sqlite_url, DGX_STORAGE_ADMIN_TOKEN="from the environment"
    )
    with subprocess.Popen(
        command("admin", "--port", "0"), cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    ) as page:  # fmt: skip
        assert page.stdout is not None
        assert "token=" in page.stdout.readline()
        page.send_signal(signal.SIGINT)


def test_a_port_in_use_is_explained(sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("admin", "--port", str(port), url=sqlite_url)
    assert result.exit_code == 1
    assert f"Cannot listen on 127.0.0.1, port {port}: Address already in use. Try another --port." in result.stderr


def test_without_the_extra_it_names_the_extra(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("admin", url=sqlite_url)
    assert result.exit_code == 1
    assert "pip install 'dgx-music-storage[admin]'" in result.stderr


def test_without_a_database_it_runs_and_then_shows_the_demo(tmp_path: Path) -> None:
    with running(cwd=tmp_path) as (address, _):
        assert "dgx-music-demo-" in text_of(get(address))
        until = 0
        while 'class="status completed"' not in get(f"{address}history?status=completed").text:
            until += 1
            assert until < 2_000
        row = re.search(r"/audio\?id=([^\"]+)", get(f"{address}history?status=completed").text)
        assert row is not None
        assert get(f"{address}audio?id={row[1]}").content[:4] == b"RIFF"
    assert not (tmp_path / "data").exists()
    assert len(list(tmp_path.glob("dgx-music-demo-*/generations.db"))) == 1
    with running(cwd=tmp_path) as (address, _):
        assert "dgx-music-demo-" in text_of(get(address))
    assert len(list(tmp_path.glob("dgx-music-demo-*"))) == 1


def test_a_database_that_is_named_but_missing_is_not_replaced_by_the_demo(tmp_path: Path) -> None:
    with running(cwd=tmp_path, url=f"sqlite:///{tmp_path / 'typing-error.db'}") as (address, _):
        page = get(address)
        assert page.status_code == 503
        assert "typing-error.db does not exist" in text_of(page)
    assert not (tmp_path / "typing-error.db").exists()


def test_a_folder_of_somebody_else_is_not_taken_for_the_demo(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    init_db(f"sqlite:///{target / 'generations.db'}")
    (tmp_path / "dgx-music-demo-link").symlink_to(target)
    empty = tmp_path / "dgx-music-demo-empty"
    empty.mkdir()
    (empty / "generations.db").symlink_to(target / "generations.db")
    script = "from services.storage.demo import find_scratch; print(find_scratch())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"


def test_the_page_opens_only_what_is_a_database(tmp_path: Path) -> None:
    done = process("admin", "--outputs", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 2
    assert "--outputs" in done.stderr
