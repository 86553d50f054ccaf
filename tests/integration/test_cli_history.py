"""list, search, why, check and stats: tables on a terminal, lines and JSON for scripts."""

import json
import re
from pathlib import Path

import pytest

from services.storage import Storage, claim_generation, complete_generation, set_favorite, update_generation_status
from tests.support.command_line import add, on_a_terminal, run
from tests.support.databases import run_script
from tests.support.factories import a_generation

HOSTILE_PROMPT = "lofi [red]rain[/b]\x1b[2J\r\u202eon a\ttrain\x07"


@pytest.fixture
def history(sqlite_url: str) -> str:
    """Return the URL of a database with five generations: two of jazz and three of lofi rain, one of them completed."""
    storage = Storage(sqlite_url)
    with storage.session() as session:
        for number in range(5):
            prompt = "jazz" if number < 2 else "lofi rain"
            a_generation(session, generation_id=f"g{number}", prompt=prompt, batch_id="b" if number == 1 else None)
        set_favorite(session, "g3")
        complete_generation(session, "g4", 2.5, 1)
    storage.dispose()
    return sqlite_url


def ids(*arguments: str, url: str) -> list[str]:
    return [line.split("\t")[0] for line in run("list", *arguments, url=url).stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["g4", "g3", "g2", "g1", "g0"]),
        (["--status", "completed"], ["g4"]),
        (["--model", "another"], []),
        (["--model", "musicgen-small", "--limit", "2"], ["g4", "g3"]),
        (["--prompt", "jazz"], ["g1", "g0"]),
        (["--batch", "b"], ["g1"]),
        (["--favorites"], ["g3"]),
    ],
)
def test_list_shows_the_newest_first_and_applies_its_filters(
    history: str, arguments: list[str], expected: list[str]
) -> None:
    assert ids(*arguments, url=history) == expected


def test_list_continues_after_the_previous_page(history: str) -> None:
    first = run("list", "--limit", "3", "--json", url=history)
    assert [json.loads(line)["id"] for line in first.stdout.splitlines()] == ["g4", "g3", "g2"]
    cursor = first.stderr.split()[-1]
    assert f"--after {cursor}" in run("list", "--limit", "3", url=history).stderr
    rest = run("list", "--limit", "3", "--after", cursor, url=history)
    assert [line.split("\t")[0] for line in rest.stdout.splitlines()] == ["g1", "g0"]
    assert rest.stderr == ""


def test_a_narrow_terminal_shows_the_prompt(history: str) -> None:
    code, screen = on_a_terminal("--database-url", history, "list", env={"NO_COLOR": "1", "COLUMNS": "80"})
    assert code == 0
    assert "lofi rain" in screen
    assert "(UTC)" not in screen


def test_an_empty_list_prints_a_message(sqlite_url: str) -> None:
    result = run("list", url=sqlite_url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No generations.\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [("POOL_SIZE", "x"), ("PGBOUNCER", "maybe"), ("REPLICA_MAX_LAG", "abc"), ("STATEMENT_TIMEOUT", "-1")],
)
def test_an_invalid_setting_is_named_without_a_traceback(
    history: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DATABASE_{name}", value)
    result = run("stats", url=history)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert name in result.stderr.upper()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--status", "done"], 2), (["--limit", "0"], 2), (["--after", "nonsense"], 1)],
)
def test_list_refuses_invalid_options(history: str, arguments: list[str], code: int) -> None:
    result = run("list", *arguments, url=history)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "Traceback" not in result.stderr


def test_list_prints_one_line_per_generation_whatever_its_prompt(sqlite_url: str) -> None:
    add(sqlite_url, HOSTILE_PROMPT)
    line = run("list", url=sqlite_url).stdout
    assert line.endswith(
        "\tpending\t" + line.split("\t")[2] + "\tstdlib-synthesis\tlofi [red]rain[/b] [2J on a train \n"
    )
    code, screen = on_a_terminal("--database-url", sqlite_url, "list", env={"NO_COLOR": "1", "COLUMNS": "200"})
    assert code == 0
    assert "lofi [red]rain[/b] [2J on a train" in screen


def test_search_marks_what_matches(history: str) -> None:
    assert run("search", "rain", url=history).stdout == "3\tlofi [rain]\n"
    found = json.loads(run("search", "LOFI", "rain", "--json", url=history).stdout)["prompts"]
    assert [(one["text"], one["used_count"], one["snippet"]) for one in found] == [("lofi rain", 3, "[lofi] [rain]")]
    assert run("search", "--order", "newest", "--", "lofi", "-jazz", url=history).stdout == "3\t[lofi] rain\n"


def test_search_without_a_match_prints_a_message_and_exits_with_0(history: str) -> None:
    result = run("search", "polka", url=history)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No matching prompts.\n")
    assert run("search", url=history).exit_code == 2


def test_search_prints_matches_in_bold_and_a_prompt_cannot_control_the_terminal(sqlite_url: str) -> None:
    add(sqlite_url, HOSTILE_PROMPT)
    code, screen = on_a_terminal("--database-url", sqlite_url, "search", "train")
    assert code == 0
    assert "\x1b[1mtrain\x1b[0m" in screen
    assert "\x1b[2J" not in screen
    assert "[red]rain[/b]" in screen


def test_stats_on_a_terminal_are_tables_and_bars(history: str) -> None:
    code, screen = on_a_terminal("--database-url", history, "stats", env={"NO_COLOR": "1"})
    assert code == 0
    upper = [line for line in screen.partition("total")[0].splitlines() if line.strip()]
    bars = {line.split()[0]: line.count("█") for line in upper}
    assert bars["pending"] == 4 * bars["completed"] > 0
    assert bars["failed"] == 0
    assert "queue: backlog 4" in screen
    assert "last 30 days" in screen
    assert "2.50 s" in screen
    assert "most used prompts" in screen


def test_stats_of_an_empty_database_are_shown_on_a_terminal(sqlite_url: str) -> None:
    code, screen = on_a_terminal("--database-url", sqlite_url, "stats")
    assert code == 0
    assert "queue: backlog 0" in screen


def test_stats_as_json_contain_the_queue_the_days_and_the_models(history: str) -> None:
    stats = json.loads(run("stats", "--json", url=history).stdout)
    assert stats["queue"]["backlog"] == 4
    assert sum(day["created"] for day in stats["days"]) == 5
    assert stats["models"][0]["generation_time"]["p50"] == 2.5
    assert "backlog\t4\n" in run("stats", url=history).stdout


def test_why_explains_the_wait_and_estimates_its_end(history: str) -> None:
    nobody = run("why", "g0", url=history)
    assert (nobody.exit_code, nobody.stdout) == (
        0,
        "No worker is running, or all are stopping: start one with `dgx-storage worker MODULE:FUNCTION`.\n",
    )
    storage = Storage(history)
    with storage.session() as session:
        assert claim_generation(session, "worker") is not None
    storage.dispose()
    at_work, behind = run("why", "g0", url=history).stdout.splitlines(), run("why", "g1", url=history).stdout
    assert at_work[0] == "worker is working on it, attempt 1."
    assert re.fullmatch(
        r"It should finish between \S+ \S+ and \S+ \S+ UTC, estimated from one generation of its model\.", at_work[1]
    )
    assert behind.startswith("It is the next to be claimed.\nIt should finish between ")
    answer = json.loads(run("why", "g2", "--json", url=history).stdout)
    assert (answer["reason"], answer["ahead"], answer["estimate"]["jobs_ahead"]) == ("behind", 1, 1)
    assert json.loads(run("why", "g4", "--json", url=history).stdout)["estimate"] is None
    unknown = run("why", "nobody\x1b[2J", url=history)
    assert (unknown.exit_code, unknown.stderr) == (1, "Error: no generation has the id nobody [2J\n")


def test_check_of_a_correct_database_prints_nothing_to_stdout(history: str) -> None:
    result = run("check", url=history)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("No problems found.\n")


def test_check_rebuilds_the_search_index_if_it_is_to_fix_what_it_finds(history: str) -> None:
    run_script(history, "INSERT INTO prompts_fts (prompts_fts) VALUES ('delete-all')")
    found = "error: search index: it does not match the prompts"
    result = run("check", url=history)
    assert (result.exit_code, result.stdout) == (1, f"{found}\n    dgx-storage check --fix\n")
    result = run("check", "--fix", url=history)
    assert (result.exit_code, result.stdout) == (0, f"{found} (fixed)\n")
    assert run("check", url=history).stdout == ""


def test_check_fails_when_findings_remain(history: str, tmp_path: Path) -> None:
    storage = Storage(history)
    with storage.session() as session:
        update_generation_status(session, "g0", "processing")
        claim_generation(session, "worker")
    storage.dispose()
    result = run("check", "--outputs", str(tmp_path), url=history)
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if not line.startswith("    ")] == [
        "warning: generations g0: it is processing without a lease",
        "warning: generations g4: its file is missing",
    ]
    assert "2 findings" in result.stderr
