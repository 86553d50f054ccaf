"""The pages of the admin: what they show, in how many statements, and that no prompt becomes HTML."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from services.storage import (
    Storage,
    cancel_generation,
    claim_generation,
    clone_generation,
    complete_generation,
    estimate_completion,
    estimate_running,
    fail_generation,
    find_files,
    get_popular_prompts,
    get_prompt_stats,
    heartbeat_generation,
    list_generations,
    pause_queue,
    set_favorite,
)
from tests.support.admin_server import admin_client
from tests.support.factories import a_generation

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "javascript:alert(1) ' onfocus='alert(1)",
    "\u202eevil \x02 marks \x03",
)
STATEMENTS = 8


@pytest.fixture
def client(db: Storage) -> Iterator[httpx.Client]:
    with admin_client(db) as client:
        yield client


def text_of(page: httpx.Response) -> str:
    """Return the words of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


def fill(storage: Storage) -> dict[str, str]:
    """Store one generation of each kind; return their ids."""
    with storage.session() as session:
        completed = a_generation(session, prompt="slow waltz in D minor", metadata={"bpm": 84}, parameters={"seed": 7})
        claimed = claim_generation(session, "worker-1")
        assert claimed is not None
        complete_generation(
            session, completed.id, 18.5, 5_242_880, metadata={"peaks": [0.1, 0.9, 0.4]}, lease=claimed.lease
        )
        variation = clone_generation(session, completed.id, file_path="outputs/v.wav")
        assert variation is not None
        claimed = claim_generation(session, "worker-1")
        assert claimed is not None
        fail_generation(session, variation.id, "CUDA out of memory at 0x7f", lease=claimed.lease, retry=False)
        running = a_generation(session, prompt="techno for a warehouse", max_attempts=2)
        claimed = claim_generation(session, "worker-2")
        assert claimed is not None
        assert claimed.lease is not None
        heartbeat_generation(session, claimed.lease, progress=0.42, current_step="decoding")
        cancelled = a_generation(session, prompt="never mind")
        cancel_generation(session, cancelled.id)
        waiting = a_generation(session, prompt="lofi rain", priority=3)
        later = a_generation(session, prompt="tomorrow", scheduled_at=datetime.now(UTC) + timedelta(days=1))
        set_favorite(session, completed.id)
    kinds = {"completed": completed, "failed": variation, "running": running, "waiting": waiting}
    return {name: row.id for name, row in (kinds | {"cancelled": cancelled, "later": later}).items()}


@contextmanager
def counted(storage: Storage) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if statement.endswith("LIMIT ? OFFSET ?") and parameters[-1] == 0:
            statement = statement.removesuffix(" OFFSET ?")  # SQLAlchemy adds it
        statements.append(statement)

    event.listen(storage.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(storage.engine, "before_cursor_execute", note)


def test_now_shows_the_queue_the_running_jobs_and_what_is_next(db: Storage, client: httpx.Client) -> None:
    fill(db)
    words = text_of(client.get("/"))
    assert "Backlog 1" in words
    assert "1 scheduled" in words
    assert "techno for a warehouse" in words
    assert "42 % decoding" in words
    assert re.search(r"Workers worker-2 busy", words)
    assert re.search(r"Next in the queue .*lofi rain.* priority 3", words)
    assert "slow waltz in D minor" in words


def test_now_says_why_nothing_runs(db: Storage, client: httpx.Client) -> None:
    assert "Nothing runs at the moment. " in text_of(client.get("/"))
    with db.session() as session:
        a_generation(session)
    assert "Nothing runs, because no worker is running" in text_of(client.get("/"))
    with db.session() as session:
        pause_queue(session, "<b>new model</b>")
    page = client.get("/")
    assert "Paused <b>new model</b>" in text_of(page)
    assert "<b>new model" not in page.text
    assert "the queue is paused" in text_of(page)


def test_the_page_of_a_completed_generation_shows_request_result_and_timeline(
    db: Storage, client: httpx.Client
) -> None:
    ids = fill(db)
    page = client.get("/generation", params={"id": ids["completed"]})
    words = text_of(page)
    for part in (
        "slow waltz in D minor", "completed", "favorite", "32 kHz, stereo", "seed 7", "bpm 84", "5.24 MB",
        "Rendered in 18 s", "Attempt 1 started", "worker-1", "Attempt 1 completed", "Variations",
        f"dgx-storage show {ids['completed']} --json", "clone_generation(session, ",
    ):  # fmt: skip
        assert part in words, part
    assert "peaks" not in words
    assert f"/generation?id={ids['failed']}" in page.text
    assert 'data-refresh="0"' in page.text


def test_the_page_of_a_failed_generation_shows_the_error_and_how_to_retry(db: Storage, client: httpx.Client) -> None:
    ids = fill(db)
    words = text_of(client.get("/generation", params={"id": ids["failed"]}))
    assert "Why it failed CUDA out of memory at 0x7f" in words
    assert f"dgx-storage retry {ids['failed']}" in words
    assert "This is a variation of slow waltz in D minor" in words
    assert words.count("Attempt 1 failed") == 1
    assert " Failed " not in words


def test_the_page_of_an_unfinished_generation_says_why_it_waits(db: Storage, client: httpx.Client) -> None:
    ids = fill(db)
    assert "It is due in" in text_of(client.get("/generation", params={"id": ids["later"]}))
    running = text_of(client.get("/generation", params={"id": ids["running"]}))
    assert "42 %" in running
    assert f"dgx-storage cancel {ids['running']}" in running
    with db.session() as session:
        cancel_generation(session, ids["running"])
    assert "Cancellation requested" in text_of(client.get("/generation", params={"id": ids["running"]}))
    cancelled = text_of(client.get("/generation", params={"id": ids["cancelled"]}))
    assert re.search(r"Timeline Submitted .* Cancelled", cancelled)


def test_a_file_that_is_missing_is_said_to_be(db: Storage, tmp_path: Path) -> None:
    with db.session() as session:
        row = a_generation(session, prompt="!?", file_path="gone.wav")
        row.mark_completed(1.0)
    find_files(tmp_path, storage=db)
    with admin_client(db, outputs=tmp_path) as client:
        assert "File found missing" in text_of(client.get("/generation", params={"id": row.id}))
        assert "dgx-storage files DIR" in client.get("/generation", params={"id": row.id}).text
        history = client.get("/history").text
        assert "The file is missing" in history
        assert "<audio" not in history
        assert "nothing to find yet" in client.get("/numbers").text  # a prompt without words


def test_a_long_prompt_is_a_text_to_scroll_and_no_heading_of_many_pages(db: Storage, client: httpx.Client) -> None:
    with db.session() as session:
        short, long = (a_generation(session, prompt="slow waltz " * times) for times in (3, 900))
    for row, is_long in ((short, False), (long, True)):
        page = client.get("/generation", params={"id": row.id})
        assert ('<h1 class="prompt long" tabindex="0">' in page.text) == is_long
        assert 'aria-current="true">History</a>' in page.text
    assert 'class="prompt long"' not in client.get("/generation", params={"id": long.id, "prompts": "hidden"}).text


def test_a_chart_without_bars_says_so(db: Storage, client: httpx.Client) -> None:
    assert "Nothing was finished" in text_of(client.get("/"))
    fill(db)
    with admin_client(db) as fresh:  # the chart of the other page is ten seconds old at most
        assert "Nothing was finished" not in text_of(fresh.get("/"))


def test_an_id_may_contain_any_character(db: Storage, client: httpx.Client) -> None:
    for number, name in enumerate(("..", "a/b?c=d&e#f", "'; rm -rf /", '"><script>', "生成")):
        with db.session() as session:
            a_generation(session, generation_id=name, prompt=f"prompt {number}")
        links = re.findall(r'href="(/generation\?id=[^"]+)"', client.get("/history?limit=1").text)
        page = client.get(unescape(links[0]))
        assert page.status_code == 200
        assert f"prompt {number}" in text_of(page)
        assert "<script>" not in page.text
    assert "dgx-storage show ''\"'\"'; rm -rf /' --json" in text_of(
        client.get("/generation", params={"id": "'; rm -rf /"})
    )


def test_an_unknown_generation_page_or_cursor_is_explained(client: httpx.Client) -> None:
    for path in ("/generation?id=unknown", "/generation", "/generation?id=%00", "/nowhere", "/static/nowhere.css"):
        assert client.get(path).status_code == 404, path
    assert client.get("/history?after=nonsense").status_code == 400
    assert "start again from the first page" in text_of(client.get("/history?after=nonsense"))
    assert client.post("/").status_code == 405


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", 6), ("status=failed", 1), ("model=musicgen-small", 6), ("model=other", 0), ("favorite=1", 1),
        ("q=waltz", 2), ("q=waltz&status=completed", 1), ("prompt=lofi+rain", 1), ("metadata=bpm%3D80..90", 1),
        ("metadata=bpm%3D84%3B+key%3DCm", 0), ("metadata=bpm%3D..", 1), ("from=2000-01-01&before=2001-01-01", 0),
        ("from=2000-01-01T10:00%2B02:00", 6), ("batch=none", 0), ("metadata=genre%3D[1]", 0), ("metadata=a%3Db..c", 0),
    ],
)  # fmt: skip
def test_every_filter_is_in_the_address(db: Storage, client: httpx.Client, query: str, found: int) -> None:
    fill(db)
    page = client.get(f"/history?{query}")
    assert page.status_code == 200
    assert page.text.count('<li class="row">') == found
    if not found:
        assert "No generation meets these conditions" in page.text


def test_a_filter_of_variations_finds_them(db: Storage, client: httpx.Client) -> None:
    ids = fill(db)
    assert client.get("/history", params={"parent": ids["completed"]}).text.count('<li class="row">') == 1
    with db.session() as session:
        assert [row.id for row in list_generations(session, parent_id=ids["completed"]).items] == [ids["failed"]]
        assert list_generations(session, parent_id="\0").items == []


@pytest.mark.parametrize(
    ("query", "message"),
    [("status=done", "is one of pending"), ("from=yesterday", "is a date such as"), ("metadata=bpm", "is written"),
     ("metadata=%3D1", "is written")],
)  # fmt: skip
def test_a_filter_that_cannot_be_used_is_named(client: httpx.Client, query: str, message: str) -> None:
    page = client.get(f"/history?{query}")
    assert page.status_code == 200
    assert message in text_of(page)
    assert "correct the marked fields" in text_of(page)


def test_pages_follow_each_other_by_cursor_and_keep_the_filters(db: Storage, client: httpx.Client) -> None:
    with db.session() as session:
        for number in range(60):
            a_generation(session, prompt=f"waltz number {number}")
    seen: list[str] = []
    address = "/history?q=waltz"
    while address:
        page = client.get(address)
        seen += re.findall(r"number (\d+)</a>", page.text)
        following = re.search(r'rel="next" href="([^"]+)"', page.text)
        address = unescape(following[1]) if following else ""
        assert "q=waltz" in address or not address
    assert seen == [str(number) for number in reversed(range(60))]


def test_a_search_marks_what_it_found(db: Storage, client: httpx.Client) -> None:
    fill(db)
    assert "<mark>waltz</mark> in D minor" in client.get("/history?q=waltz").text


def test_numbers_shows_models_prompts_failures_and_health(db: Storage, client: httpx.Client) -> None:
    assert "The figures of the last 7 days are being read" in client.get("/numbers").text
    empty = text_of(figures(client))
    for part in ("Nothing was finished", "There are no prompts yet", "Nothing failed", "nothing to find yet"):
        assert part in empty, part
    fill(db)
    with admin_client(db) as fresh:
        words = text_of(figures(fresh, "?days=1"))
    assert re.search(r"musicgen-small 1 1 \(50 %\) 18 s 18 s 18 s", words)
    assert re.search(r"slow waltz in D minor 2 50 % 18 s", words)
    assert "CUDA out of memory at #x#f 1 1" in words
    assert "Search index in order" in words


def figures(client: httpx.Client, query: str = "") -> httpx.Response:
    """Ask for the numbers until they are fresh, as the page itself does."""
    while 'data-refresh="0"' not in (page := client.get(f"/numbers{query}")).text:
        assert page.status_code == 200
    return page


def test_old_figures_are_shown_while_newer_ones_are_read(db: Storage, client: httpx.Client, monkeypatch: Any) -> None:
    from services.storage.admin import numbers

    figures(client)
    fill(db)
    assert "Nothing was finished" in client.get("/numbers").text
    monkeypatch.setattr(numbers, "FRESH", timedelta(0))
    page = client.get("/numbers")
    assert "Nothing was finished" in page.text
    assert "newer ones are being read" in text_of(page)
    while "musicgen-small" not in client.get("/numbers").text:
        pass  # a mistake ends in the timeout of the test


def test_no_page_needs_more_than_eight_statements(db: Storage) -> None:
    ids = fill(db)
    with db.session() as session:
        pause_queue(session, "maintenance")
    paths = ["/", "/history", "/history?q=waltz&status=completed", "/numbers"]
    paths += [f"/generation?id={generation_id}" for generation_id in ids.values()]
    with admin_client(db) as client:
        for path in paths:
            with counted(db) as statements:
                assert client.get(path).status_code == 200
                while path == "/numbers" and "AS reason" not in statements[-1]:
                    pass  # the figures are read after the answer, the reasons of failures last
            assert 0 < len(statements) <= STATEMENTS, (path, statements)
            assert not [one for one in statements if one.endswith("OFFSET ?") or "OFFSET %" in one], path


def test_no_page_writes(db: Storage) -> None:
    ids = fill(db)
    with admin_client(db) as client, counted(db) as statements:
        for path in ("/", "/history", "/numbers", f"/generation?id={ids['running']}"):
            client.get(path)
    assert all(re.match(r"\s*(SELECT|WITH|BEGIN|SET TRANSACTION)", one) for one in statements), statements


@pytest.mark.sampled
@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_hostile_prompt_is_text_on_every_page(db: Storage, client: httpx.Client, prompt: str) -> None:
    with db.session() as session:
        row = a_generation(
            session, prompt=prompt, model_name=prompt[:200], parameters={prompt: prompt}, metadata={prompt: [prompt]},
            batch_id=prompt[:60],
        )  # fmt: skip
        fail_generation(session, row.id, prompt)
    with db.session() as session:
        a_generation(session, prompt=prompt)
    word = quote(prompt)
    assert prompt[:20] in text_of(figures(client))
    paths = ("/", "/history", f"/history?q={word}&prompt={word}&batch={word}&from={word}", "/numbers",
             f"/generation?id={row.id}", f"/generation?id={word}", f"/{word}?x={word}&prompts={word}")  # fmt: skip
    for path in paths:
        page = client.get(path)
        assert page.status_code in (200, 404), path
        assert_harmless(page.text)


def test_a_value_that_turns_the_direction_of_text_does_not_turn_its_unit(db: Storage, client: httpx.Client) -> None:
    with db.session() as session:
        a_generation(session, metadata={"bpm": "\u202e140"})
    assert "<bdi>\u202e140</bdi> BPM" in client.get("/history").text


@given(text=st.text(min_size=1, max_size=40))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_address_gets_a_harmless_answer(client: httpx.Client, text: str) -> None:
    word = quote(text, errors="replace", safe="")
    for path in (f"/history?q={word}&{word}={word}", f"/history?metadata={word}&from={word}&after={word}", f"/{word}"):
        page = client.get(path)
        assert page.status_code in (200, 303, 307, 400, 404)
        assert_harmless(page.text)


def assert_harmless(text: str) -> None:
    """Check that the only elements and attributes are those of the templates."""
    assert not re.search(
        r"<(script|img|svg|textarea|title)\b(?![^>]*(src=\"/static|viewBox|preserve))[^>]*(on\w+|src)=", text
    )
    assert not re.search(r"<[a-z][^>]*\s(on[a-z]+|style)\s*=", re.sub(r'"[^"]*"', '""', text))
    assert text.count("<script") == (1 if text.startswith("\n<!doctype") or "<!doctype" in text else 0)


def test_hidden_prompts_are_on_no_page(db: Storage) -> None:
    ids = fill(db)
    secrets = ("waltz", "techno", "lofi", "outputs/test", "CUDA", "decoding", ">84<", "seed")
    paths = ["/", "/history", "/history?q=waltz", "/numbers"]
    paths += [f"/generation?id={generation_id}" for generation_id in ids.values()]
    for options, switch in (({}, "prompts=hidden"), ({"hide_prompts": True}, "")):
        with admin_client(db, **options) as client:  # type: ignore[arg-type]
            assert "musicgen-small" in figures(client, f"?{switch}").text
            for path in paths:
                page = client.get(f"{path}{'&' if '?' in path else '?'}{switch}")
                for secret in secrets:
                    without_search = re.sub(r"value=\"waltz\"|q=waltz", "", page.text)
                    assert secret not in without_search, (path, secret)
                links = re.findall(r'href="(/(?!static)[^"]*)"', page.text)
                switches = [link for link in links if "prompts=hidden" not in link]
                assert len(switches) == (1 if switch else len(links)), switches  # only "Show prompts"


def test_the_estimates_of_running_generations_are_those_of_estimate_completion(db: Storage) -> None:
    with db.session() as session:
        assert estimate_running(session) == {}
        for number in range(30):
            row = a_generation(session, prompt="x")
            complete_generation(session, row.id, 10.0 + number, 1)
        a_generation(session, model_name="new")
        first, second = a_generation(session), a_generation(session, duration_seconds=32.0)
        for _ in range(3):
            claim_generation(session, "w")
    with db.session(read_only=True) as session:
        found = estimate_running(session)
        assert found.keys() == {first.id, second.id}  # nothing is known about the model "new"
        for generation_id, remaining in found.items():
            estimate = estimate_completion(session, generation_id)
            assert estimate is not None
            assert remaining.samples == estimate.samples == 30
            for name in ("p10_at", "p50_at", "p90_at"):
                difference = (getattr(remaining, name) - remaining.at) - (getattr(estimate, name) - estimate.at)
                assert abs(difference.total_seconds()) < 0.5


def test_popular_prompts_have_the_numbers_of_get_prompt_stats(db: Storage) -> None:
    with db.session() as session:
        assert get_popular_prompts(session) == []
    fill(db)
    with db.session(read_only=True) as session:
        popular = get_popular_prompts(session, 3)
        assert popular[0].text == "slow waltz in D minor"
        assert len(popular) == 3
        for stats in popular:
            assert stats == get_prompt_stats(session, stats.text)
        assert get_popular_prompts(session, 0) == []
        with pytest.raises(ValueError, match="limit"):
            get_popular_prompts(session, -1)
