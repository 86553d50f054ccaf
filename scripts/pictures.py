"""Take the pictures of the README from a run of the demo: python scripts/pictures.py

Needs the extra `dev` and chromium-headless-shell. Writes docs/pictures/*.png.
"""

import io
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.text import Text

from services.storage import Storage, get_generations_by_status, get_queue_stats, list_generations

PICTURES: Final = Path(__file__).resolve().parents[1] / "docs" / "pictures"
PIECE_SECONDS: Final = "10"  # long enough that three jobs run while the picture of Now is taken
COLUMNS: Final = 96  # of the terminal
TERMINAL: Final = """<style>
body { margin: 0; background: #131316; color: #d9d7d1; font: 15px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { margin: 0; padding: 24px 28px; font: inherit; width: fit-content; } b { color: #9aa4ff; font-weight: 600; }
i { color: #ff8d85; font-style: normal; } u { color: #62c896; text-decoration: none; }
</style>"""

Scheme = Literal["light", "dark"]
SCHEMES: Final[tuple[Scheme, ...]] = ("light", "dark")


def main() -> None:
    """Run the demo, and take every picture while it runs or when it is done."""
    PICTURES.mkdir(exist_ok=True)
    browser_path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    with tempfile.TemporaryDirectory(prefix="pictures-") as name, sync_playwright() as playwright:
        folder = Path(name)
        database_url = f"sqlite:///{folder / 'generations.db'}"
        # A terminal for stdout alone: it gets the tables, and the messages are lines instead of a bar.
        terminal, its_end = pty.openpty()
        arguments = ("--seconds", PIECE_SECONDS, "--outputs", name, "--database-url", database_url)
        demo = _start("demo", *arguments, stdout=its_end, stderr=subprocess.PIPE)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        with _serving(database_url, folder) as address:
            _wait_until_busy(database_url)
            for scheme in SCHEMES:
                _take(browser, f"{address}/", f"now-{scheme}", scheme)
            _, messages = demo.communicate()
            for scheme in SCHEMES:
                _take(browser, f"{address}/history", f"history-{scheme}", scheme)
            _take(browser, f"{address}/generation?id={_choose(database_url)}", "generation-light", "light")
            _take(browser, f"{address}/numbers", "numbers-light", "light", shown="#models-title")
        page = browser.new_page(viewport={"width": 1000, "height": 100}, device_scale_factor=1.5)
        page.set_content(TERMINAL + f"<pre>{_as_terminal(messages, os.read(terminal, 100_000).decode())}</pre>")
        page.locator("pre").screenshot(path=PICTURES / "demo.png")
        browser.close()


def _start(*arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.STDOUT) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "services.storage", *arguments]
    variables = os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env=variables)


@contextmanager
def _serving(database_url: str, outputs: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ("--database-url", database_url, "--outputs", str(outputs), "--port", str(port))
    with _start("admin", *options) as server:
        try:
            assert server.stdout is not None
            while "http://" not in server.stdout.readline():
                assert server.poll() is None
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_until_busy(database_url: str) -> None:
    """Wait until three jobs run, at least two of them in the middle, and some are done."""
    storage = Storage(database_url)
    while True:
        time.sleep(0.02)
        if not storage.backend.is_present(storage.url) or storage.read_revision() is None:
            continue
        with storage.session(read_only=True) as session:
            running = [row.progress or 0.0 for row in get_generations_by_status(session, "processing")]
            done = get_queue_stats(session).completed_per_hour
        if len(running) == 3 and sum(0.15 < progress < 0.9 for progress in running) >= 2 and done >= 4:
            storage.dispose()
            return


def _choose(database_url: str) -> str:
    """Return the id of the generation that took two attempts."""
    storage = Storage(database_url)
    with storage.session(read_only=True) as session:
        rows = list_generations(session, status="completed").items
        chosen = max(rows, key=lambda row: (row.attempt, row.created_at)).id
    storage.dispose()
    return chosen


def _take(browser: Browser, address: str, name: str, scheme: Scheme, shown: str = "main") -> None:
    size, scale = {"width": 1200, "height": 860}, 1.5
    context = browser.new_context(viewport=size, device_scale_factor=scale, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    page.locator(shown).wait_for()
    page.screenshot(path=PICTURES / f"{name}.png")
    context.close()


def _as_terminal(messages: str, tables: str) -> str:
    """Return the demo's output as HTML: its lines around the kill, then its tables with their colours."""
    lines = messages.strip().splitlines()
    killed = next(number for number, line in enumerate(lines) if "was killed" in line)
    last = next(number for number, line in enumerate(lines) if line.startswith("finished by"))
    chosen = [*lines[:2], "", *lines[killed - 4 : last + 2], "..."]
    text = escape(re.sub(r"(?<=sqlite:///)/\S+/(?=generations.db)", "/tmp/dgx-music-demo/", "\n".join(chosen)))
    text = re.sub(r"(?m)^(.*(?:was killed|failed:).*)$", r"<i>\1</i>", text)
    text = re.sub(r"(?m)^(finished by .*|waiting for its lease.*)$", r"<u>\1</u>", text)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(tables.strip("\r\n").replace("\r", "")))
    return f"<b>$ just demo</b>\n{text}\n\n{console.export_html(inline_styles=True, code_format='{code}')}"


if __name__ == "__main__":
    main()
