"""The admin page in a real browser: it refreshes itself, plays, can be used with the keyboard, and passes axe-core."""

import re
import shutil
import threading
import wave
from array import array
from collections.abc import Iterator
from math import sin
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from services.storage import (
    Job,
    Result,
    Storage,
    Worker,
    create_generation,
    list_generations,
    pause_queue,
    resume_queue,
)
from services.storage.admin import create_app
from tests.integration.test_admin_pages import HOSTILE, fill
from tests.support.admin_server import served
from tests.support.factories import a_generation

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")
WIDTHS = (360, 1280, 3840)
SECONDS = 3
# For what the browser does with a page: test_admin_pages.py compares the pages of both databases.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")  # Playwright runs an event loop in this thread until the fixture ends
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser: apt-get install chromium-headless-shell")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def address(db: Storage, outputs: Path) -> Iterator[str]:
    with served(create_app(db, outputs=outputs)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Return a page that fails the test for a request to another site, or an error of a script or the policy."""
    context = browser.new_context(base_url=address)
    page = context.new_page()
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(address) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
    yield page
    context.close()
    assert not foreign
    assert not errors


def render(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(array("h", (int(9_000 * sin(at / 9)) for at in range(8_000 * SECONDS))).tobytes())


def test_a_submitted_job_appears_moves_plays_and_is_found(db: Storage, page: Page, outputs: Path) -> None:
    steps = {fraction: threading.Event() for fraction in (0.25, 0.75, 1.0)}

    def handler(job: Job) -> Result:
        for fraction, event in steps.items():
            job.progress(fraction, f"step {fraction}")
            assert event.wait(60)
        render(outputs / "new.wav")
        return Result.from_file(outputs / "new.wav", metadata={"peaks": [0.2, 0.9, 0.5]})

    page.goto("/")
    expect(page.get_by_text("The queue is empty.")).to_be_visible()
    with db.session() as session:
        create_generation(session, "a waltz for the browser", "test-model", SECONDS, 8_000, 1, "new.wav")
    expect(page.get_by_role("region", name="Next in the queue")).to_contain_text("a waltz for the browser")
    thread = threading.Thread(target=Worker(handler, storage=db).run, kwargs={"until_empty": True})
    thread.start()
    try:
        running = page.get_by_role("region", name="Running")
        for fraction, event in steps.items():
            expect(running).to_contain_text(f"{fraction * 100:.0f} %", timeout=15_000)
            event.set()
    finally:
        for event in steps.values():
            event.set()
        thread.join()
    expect(page.get_by_role("region", name="Newest music")).to_contain_text("a waltz for the browser", timeout=15_000)

    page.get_by_role("link", name="History", exact=True).click()
    page.get_by_role("searchbox", name="Search the prompts").fill("waltz")
    page.get_by_role("searchbox", name="Search the prompts").press("Enter")
    expect(page.locator("mark")).to_have_text("waltz")
    page.get_by_role("link", name="a waltz for the browser").click()
    assert_plays(page)
    assert page.evaluate("getComputedStyle(document.querySelector('.wave')).getPropertyValue('--played')") > "0"
    page.locator(".wave").click(position={"x": 600, "y": 20})
    wait_until(page, "document.querySelector('audio').currentTime > 1")


def wait_until(page: Page, condition: str) -> None:
    """Wait until an expression is true. Not wait_for_function(): the policy of the page forbids its eval()."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {condition}")


def assert_plays(page: Page) -> None:
    """Play the first file, and check that its time advances and its length is known."""
    page.evaluate("document.querySelector('audio').play()")
    wait_until(page, "document.querySelector('audio').currentTime > 0.3")
    assert page.evaluate("document.querySelector('audio').duration") == pytest.approx(SECONDS, abs=0.1)


@on_sqlite
def test_only_one_player_plays_at_a_time_and_seeking_asks_for_a_range(db: Storage, page: Page, outputs: Path) -> None:
    for name in ("a.wav", "b.wav"):
        render(outputs / name)
        with db.session() as session:
            a_generation(session, file_path=name, duration_seconds=SECONDS).mark_completed(1.0)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/audio" in request.url else None)
    page.goto("/history")
    assert not asked  # preload=none
    first, second = page.locator("audio").all()
    for player, other in ((first, second), (second, first)):
        player.evaluate("audio => audio.play()")
        wait_until(page, "[...document.querySelectorAll('audio')].some((audio) => audio.currentTime > 0.1)")
        assert other.evaluate("audio => audio.paused")
    second.evaluate("audio => { audio.currentTime = 2 }")
    wait_until(page, "document.querySelectorAll('audio')[1].currentTime >= 2")
    (outputs / "a.wav").unlink()
    page.reload()
    page.locator("audio").nth(1).evaluate("audio => audio.play().catch(() => 0)")
    expect(page.get_by_text("The file cannot be played.")).to_be_visible()


def test_filters_survive_a_reload_and_the_next_page(db: Storage, page: Page) -> None:
    with db.session() as session:
        for number in range(30):
            a_generation(session, prompt=f"waltz {number}").mark_completed(1.0)
        a_generation(session, prompt="other")
    page.goto("/history")
    page.get_by_label("Status").select_option("completed")
    page.get_by_role("searchbox").fill("waltz")
    page.get_by_role("button", name="Search").click()
    for _ in range(2):
        expect(page.get_by_label("Status")).to_have_value("completed")
        expect(page.get_by_role("searchbox")).to_have_value("waltz")
        expect(page.locator("li.row")).to_have_count(25)
        page.reload()
    page.get_by_role("link", name="Older").click()
    expect(page.locator("li.row")).to_have_count(5)
    page.get_by_role("link", name=re.compile("Remove the filter matches")).click()
    expect(page.get_by_label("Status")).to_have_value("completed")
    expect(page.get_by_role("searchbox")).to_have_value("")
    page.get_by_role("link", name="Hide prompts").click()
    assert "waltz" not in page.content()
    page.get_by_role("link", name="Numbers").click()
    assert "waltz" not in page.content()
    page.get_by_role("link", name="Show prompts").click()
    expect(page.get_by_role("link", name="waltz 3", exact=True)).to_be_visible()


@on_sqlite
def test_hostile_prompts_run_nothing(db: Storage, page: Page) -> None:
    with db.session() as session:
        rows = [
            a_generation(session, prompt=prompt, model_name=prompt[:100], batch_id=prompt[:60]) for prompt in HOSTILE
        ]
        for row in rows[::2]:
            row.mark_failed(row.prompt)
    paths = ["/", "/history", "/numbers", *(f"/generation?id={row.id}" for row in rows)]
    for path in paths:
        page.goto(path)
        if path == "/numbers":
            expect(page.get_by_role("heading", name="Models")).to_be_visible()
        page.wait_for_timeout(50)
        assert page.evaluate("document.scripts.length") == 1
        assert page.locator("img").count() == 0
    for prompt in HOSTILE[:5]:
        page.goto("/history")
        expect(page.get_by_role("link", name=prompt, exact=True).first).to_be_visible()


@on_sqlite
def test_the_page_stops_asking_while_hidden_or_paused_and_says_when_the_server_is_away(
    db: Storage, browser: Browser, outputs: Path
) -> None:
    with served(create_app(db, outputs=outputs)) as address:
        context = browser.new_context(base_url=address)
        page = context.new_page()
        page.goto("/")
        page.get_by_role("button", name="Pause updates").click()
        with db.session() as session:
            a_generation(session, prompt="meanwhile")
        page.wait_for_timeout(2_500)
        assert "meanwhile" not in page.content()
        page.get_by_role("button", name="Pause updates").click()
        expect(page.locator("#waiting")).to_contain_text("meanwhile")
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        with db.session() as session:
            a_generation(session, prompt="behind your back")
        page.wait_for_timeout(2_500)
        assert "behind your back" not in page.content()
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#waiting")).to_contain_text("behind your back")
    expect(page.get_by_role("status")).to_have_text("The server does not answer. Trying again.", timeout=10_000)
    context.close()


def test_a_page_comes_back_by_itself_when_the_database_does(sqlite_url: str, browser: Browser, tmp_path: Path) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    storage = Storage(sqlite_url)
    with storage.session() as session:
        a_generation(session, prompt="still here")
    with served(create_app(storage)) as address:
        context = browser.new_context(base_url=address)
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#waiting")).to_contain_text("still here")
        storage.dispose()
        path.rename(tmp_path / "away.db")
        expect(page.get_by_role("heading", name="The database cannot be read")).to_be_visible(timeout=15_000)
        (tmp_path / "away.db").rename(path)
        expect(page.locator("#waiting")).to_contain_text("still here", timeout=15_000)
        context.close()
    storage.dispose()


@on_sqlite
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_passes_axe_core_and_fits_every_screen(db: Storage, page: Page, outputs: Path, scheme: Any) -> None:
    render(outputs / "a.wav")
    page.emulate_media(color_scheme=scheme)
    paths = ["/", "/history", "/numbers"]
    for path in paths:  # empty
        assert_accessible(page, path)
    ids = fill(db)
    with db.session() as session:
        row = a_generation(session, prompt="word" * 200, file_path="a.wav", metadata={"peaks": [0.1, 0.5]})
        row.mark_completed(2.0)
        a_generation(session, prompt="lofi\nrain " * 60).mark_failed("out of memory\n" + "x" * 400)
        pause_queue(session, "maintenance")
    assert_accessible(page, "/")
    with db.session() as session:
        resume_queue(session)
        everything = [row.id for row in list_generations(session).items]
    assert set(ids.values()) <= set(everything)
    paths += ["/history?q=waltz", "/history?q=waltz&from=x&status=completed&metadata=y", "/history?q=nothing+there"]
    paths += ["/?prompts=hidden", "/history?prompts=hidden", "/numbers?days=1&prompts=hidden", "/nowhere"]
    paths += [f"/generation?id={generation_id}" for generation_id in everything]
    for path in paths:
        assert_accessible(page, path)


def assert_accessible(page: Page, path: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(path)
    if path.startswith("/numbers"):
        expect(page.get_by_role("heading", name="Models")).to_be_visible()
        wait_until(page, "document.body.dataset.refresh === '0'")
    for details in page.locator("details:not([open]) > summary").all():
        details.click()
    violations = Axe().run(page).response["violations"]
    found = [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in violations]
    assert not found, (path, found)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


@on_sqlite
def test_the_keyboard_alone_reaches_everything(db: Storage, page: Page, outputs: Path) -> None:
    fill(db)
    render(outputs / "a.wav")
    with db.session() as session:
        row = a_generation(session, file_path="a.wav", duration_seconds=SECONDS)
        row.mark_completed(1.0)
    for path in ("/", "/history", "/numbers", f"/generation?id={row.id}"):
        page.goto(path)
        if path == "/numbers":
            expect(page.get_by_role("heading", name="Models")).to_be_visible()
        page.evaluate("document.body.dataset.refresh = '0'")
        wanted = "a[href], button:not([hidden]), input:not([type=hidden]), select, summary, audio, pre, [tabindex='0']"
        visible = f"[...document.querySelectorAll({wanted!r})].filter((one) => one.checkVisibility())"
        count = page.evaluate(f"{visible}.length")
        reached: set[int] = set()
        for _ in range(8 * count):  # a player has several stops of its own
            page.keyboard.press("Tab")
            at = page.evaluate(f"{visible}.indexOf(document.activeElement)")
            if at >= 0:
                reached.add(at)
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                # The browser draws the focus inside a player itself.
                assert page.evaluate(f"document.activeElement.tagName === 'AUDIO' || {outline} !== 'none'")
            if len(reached) == count:
                break
        assert len(reached) == count, path
    page.goto("/history")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the content
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("audio").first.focus()
    page.keyboard.press("Space")
    wait_until(page, "document.querySelector('audio').currentTime > 0.1")


@on_sqlite
def test_nothing_shifts_while_a_page_loads_or_refreshes(db: Storage, page: Page, outputs: Path) -> None:
    fill(db)
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver((list) => {for (const one of list.getEntries()) shift += one.value})"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    for path in ("/", "/history", "/numbers"):
        page.goto(path)
        page.wait_for_timeout(2_500 if path == "/" else 300)
        assert page.evaluate("window.shift") < 0.02, path


@on_sqlite
def test_pages_work_without_scripts(db: Storage, browser: Browser, address: str) -> None:
    fill(db)
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    expect(page.get_by_text("techno for a warehouse")).to_be_visible()
    page.get_by_role("link", name="History", exact=True).click()
    page.get_by_role("searchbox").fill("waltz")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("mark").first).to_have_text("waltz")
    expect(page.get_by_role("button", name="Pause updates")).to_have_count(0)
    context.close()
