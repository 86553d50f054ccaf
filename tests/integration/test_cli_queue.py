"""The verbs that change generations and the queue, through the real program."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.storage import Storage, claim_generation, create_generations, register_worker
from tests.support.command_line import on_a_terminal, process, run
from tests.support.factories import a_request


def submitted(url: str, *prompts: str) -> list[str]:
    ids = []
    for prompt in prompts:
        result = run("submit", prompt, "--model", "musicgen-small", "--seconds", "4", url=url)
        assert result.exit_code == 0, result.stderr
        ids.append(result.stdout.strip())
    return ids


def listed(url: str, *arguments: str) -> list[str]:
    lines = run("list", "--json", *arguments, url=url).stdout.splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_a_submitted_generation_is_shown_with_its_request(sqlite_url: str) -> None:
    arguments = ["--rate", "44100", "--channels", "1", "--priority", "3", "--batch", "b", "--attempts", "5"]
    arguments += ["--parameters", '{"seed": 1}', "--metadata", '{"bpm": 140}', "--at", "2999-01-01"]
    submit = run("submit", "trap beat", "--model", "m", "--seconds", "2.5", *arguments, url=sqlite_url)
    assert submit.exit_code == 0
    shown = json.loads(run("show", submit.stdout.strip()[:20], "--json", url=sqlite_url).stdout)
    assert shown["prompt"] == "trap beat"
    assert (shown["sample_rate"], shown["channels"], shown["priority"], shown["max_attempts"]) == (44_100, 1, 3, 5)
    assert (shown["parameters"], shown["metadata"]) == ({"seed": 1}, {"bpm": 140})
    assert shown["scheduled_at"] == "2999-01-01T00:00:00+00:00"
    assert shown["file_path"] == f"outputs/{shown['id']}.wav"
    assert shown["attempts"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds must be greater than 0"),
        (["--seconds", "1", "--channels", "3"], "channels must be 1"),
        (["--seconds", "1", "--metadata", "[1]"], "metadata must be a JSON object"),
        (["--seconds", "1", "--metadata", "{"], "--metadata"),
        (["--seconds", "1", "--at", "soon"], "is not a time"),
    ],
)
def test_a_bad_request_names_the_field_and_stores_nothing(sqlite_url: str, arguments: list[str], message: str) -> None:
    result = run("submit", "x", "--model", "m", *arguments, url=sqlite_url)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert listed(sqlite_url) == []


def test_the_same_key_again_stores_nothing_new(sqlite_url: str) -> None:
    arguments = ["submit", "x", "--model", "m", "--seconds", "1", "--key", "k"]
    assert run(*arguments, url=sqlite_url).stdout == run(*arguments, url=sqlite_url).stdout
    (line,) = run("list", "--json", url=sqlite_url).stdout.splitlines()
    assert json.loads(line)["file_path"] == f"outputs/{json.loads(line)['id']}.wav"


@pytest.mark.parametrize(("given", "delay"), [("2h", timedelta(hours=2)), ("3d", timedelta(days=3))])
def test_a_generation_can_be_scheduled_after_a_delay(sqlite_url: str, given: str, delay: timedelta) -> None:
    before = datetime.now(UTC)
    run("submit", "x", "--model", "m", "--seconds", "1", "--at", given, url=sqlite_url)
    (line,) = run("list", "--json", url=sqlite_url).stdout.splitlines()
    scheduled_at = datetime.fromisoformat(json.loads(line)["scheduled_at"])
    assert before + delay <= scheduled_at <= datetime.now(UTC) + delay


def test_filters_change_what_the_list_with_the_same_filters_shows(sqlite_url: str) -> None:
    submitted(sqlite_url, "lofi one", "trap", "lofi two")
    filters = ["--search", "lofi", "--since", "1h"]
    assert listed(sqlite_url, *filters) == ["lofi two", "lofi one"]
    dry = run("cancel", *filters, "--dry-run", url=sqlite_url)
    assert (dry.stdout, dry.stderr) == ("2\n", "Would cancel 2 generations.\n")
    assert listed(sqlite_url, "--status", "cancelled") == []
    refused = run("cancel", *filters, url=sqlite_url)
    assert refused.exit_code == 1
    assert "Cancel 2 generations" in refused.stderr
    assert "--yes" in refused.stderr
    assert run("cancel", *filters, "--yes", url=sqlite_url).stdout == "2\n"
    assert sorted(listed(sqlite_url, "--status", "cancelled")) == ["lofi one", "lofi two"]
    assert run("retry", "--status", "cancelled", "--yes", url=sqlite_url).stdout == "2\n"
    assert len(listed(sqlite_url, "--status", "pending")) == 3


def test_ids_are_changed_without_a_question_unless_that_deletes(sqlite_url: str) -> None:
    first, second = submitted(sqlite_url, "one", "two")
    assert run("favorite", first, url=sqlite_url).stdout == "1\n"
    assert listed(sqlite_url, "--favorites") == ["one"]
    removed = run("favorite", first, "--remove", url=sqlite_url)
    assert (removed.stdout, removed.stderr) == ("1\n", "Removed from favorites: 1 generation.\n")
    assert listed(sqlite_url, "--favorites") == []
    assert run("delete", second, url=sqlite_url).exit_code == 1
    assert run("delete", second, "--yes", url=sqlite_url).stdout == "1\n"
    assert listed(sqlite_url) == ["one"]


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("cancel", "Would cancel 1 generation."),
        ("delete", "Would delete 1 generation."),
        ("favorite", "Would mark as favorites: 1 generation."),
    ],
)
def test_a_dry_run_on_a_terminal_says_what_it_would_do_and_prints_no_bare_number(
    sqlite_url: str, verb: str, said: str
) -> None:
    (generation_id,) = submitted(sqlite_url, "x")
    code, screen = on_a_terminal("--database-url", sqlite_url, verb, generation_id, "--dry-run")
    assert (code, screen.splitlines()) == (0, [said])


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete", "favorite"])
def test_nothing_named_and_both_named_are_wrong_usage(sqlite_url: str, verb: str) -> None:
    for arguments, message in (([], "at least one filter such as --status"), (["x", "--status", "failed"], "not both")):
        result = run(verb, *arguments, url=sqlite_url)
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize("verb", ["show", "why", "cancel", "delete"])
def test_an_unknown_and_an_ambiguous_id_are_errors(sqlite_url: str, verb: str) -> None:
    for name in ("aaaaaa-1", "aaaaaa-2"):
        run("submit", name, "--model", "m", "--seconds", "1", "--key", name, url=sqlite_url)
    first = submitted(sqlite_url, "x")[0]
    submitted(sqlite_url, "y")
    for given, message in (
        ("unknown-id", "no generation has the id"),
        ("abc", "at least 6"),
        (first[:6], "type more characters"),
    ):
        result = run(verb, given, url=sqlite_url)
        assert result.exit_code == 1
        assert message in result.stderr


def test_a_pause_says_its_reason_until_the_queue_is_resumed(sqlite_url: str) -> None:
    (generation_id,) = submitted(sqlite_url, "x")
    assert run("pause", "--reason", "maintenance", url=sqlite_url).exit_code == 0
    assert "maintenance" in run("why", generation_id, url=sqlite_url).stdout
    code, screen = on_a_terminal("--database-url", sqlite_url, "stats", env={"NO_COLOR": "1"})
    assert code == 0
    assert "paused (maintenance)" in screen
    for message in ("Claims are allowed again", "was not paused"):
        resumed = run("resume", url=sqlite_url)
        assert resumed.exit_code == 0
        assert message in resumed.stderr
    assert "paused" not in run("why", generation_id, url=sqlite_url).stdout


def test_metadata_is_filtered_by_value_and_by_range(sqlite_url: str) -> None:
    for bpm in (90, 120, 150):
        request = ["submit", f"at {bpm}", "--model", "m", "--seconds", "1"]
        run(*request, "--metadata", json.dumps({"bpm": bpm, "genre": "trap"}), url=sqlite_url)
    assert listed(sqlite_url, "--metadata", "bpm=100..") == ["at 150", "at 120"]
    assert listed(sqlite_url, "--metadata", "bpm=90", "--metadata", "genre=trap") == ["at 90"]
    assert run("list", "--metadata", "bpm", url=sqlite_url).exit_code == 2


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_list_fits_a_narrow_terminal(sqlite_url: str, columns: str) -> None:
    submitted(sqlite_url, "a very long prompt " * 10, "another")
    code, screen = on_a_terminal(
        "list", env={"DATABASE_URL": sqlite_url, "COLUMNS": columns, "LINES": "25", "NO_COLOR": "1", "TERM": "dumb"}
    )
    assert code == 0
    assert max(map(len, screen.splitlines())) <= int(columns)
    assert "pend" in screen


def test_an_id_from_a_terminal_can_be_typed_back(sqlite_url: str) -> None:
    submitted(sqlite_url, "one", "two", "three")
    for arguments in (["-n", "1"], []):
        code, screen = on_a_terminal("--database-url", sqlite_url, "list", *arguments, env={"NO_COLOR": "1"})
        assert code == 0
        for line in screen.splitlines()[1:]:
            if " pending " in line:
                assert run("show", line.split()[0], url=sqlite_url).exit_code == 0, line


def test_ids_of_a_bulk_insert_can_be_typed_back(sqlite_url: str) -> None:
    storage = Storage(sqlite_url)
    with storage.session() as session:
        create_generations(session, [a_request() for _ in range(1_000)])
        claim_generation(session, "gpu-0")
    storage.dispose()
    for verb, state in (("list", " pending "), ("workers", " busy ")):
        code, screen = on_a_terminal("--database-url", sqlite_url, verb, env={"NO_COLOR": "1", "COLUMNS": "80"})
        assert code == 0
        lines = [line for line in screen.splitlines() if state in line]
        assert lines
        for line in lines:
            short_id = line.split()[0 if verb == "list" else 2]
            assert run("show", short_id, url=sqlite_url).exit_code == 0, line


def test_the_database_may_be_named_before_and_after_the_verb(sqlite_url: str, tmp_path: object) -> None:
    submitted(sqlite_url, "x")
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    assert len(run("--database-url", sqlite_url, "list").stdout.splitlines()) == 1
    assert len(run("list", "--database-url", sqlite_url, url=elsewhere).stdout.splitlines()) == 1
    assert run("--database-url", sqlite_url, "list", "--database-url", elsewhere).exit_code == 1


def test_the_errors_of_a_request_name_the_options(sqlite_url: str) -> None:
    valid = {"--model": "m", "--seconds": "4"}
    for option, value in (
        ("--seconds", "-1"), ("--model", " "), ("--rate", "0"), ("--channels", "3"), ("--attempts", "0"),
        ("--file", " "), ("--batch", "x" * 300), ("--key", " "), ("--priority", str(2**40)),
    ):  # fmt: skip
        arguments = [word for pair in (valid | {option: value}).items() for word in pair]
        result = run("submit", "trap beat", *arguments, url=sqlite_url)
        assert result.exit_code == 1, option
        assert option.removeprefix("--") in result.stderr
        assert "_" not in result.stderr, result.stderr


def test_the_help_lists_the_verbs_in_sections() -> None:
    text = run("--help").stdout
    for section in ("Database:", "Backups:", "Generations:", "Queue and workers:"):
        assert section in text
    assert "Other:" not in text
    assert "..." not in text.partition("Database:")[2], "every summary fits a line of 80 columns"


def test_a_rollback_says_where_it_started_and_ended(sqlite_url: str) -> None:
    submitted(sqlite_url, "x")
    for arguments, question in (
        ([], "from revision 010 to 009? Columns"),
        (["-3"], "from revision 010 to 007? Columns"),
        (["008"], "from revision 010 to 008? Columns"),
        (["base"], "This drops every table"),
        (["-10"], "with 1 generation and 1 prompt. Really"),
    ):
        refused = run("rollback", "--", *arguments, url=sqlite_url)
        assert refused.exit_code == 1
        assert question in refused.stderr
    result = run("rollback", "--yes", url=sqlite_url)
    assert result.exit_code == 0
    assert "was at revision" in result.stderr
    result = run("migrate", url=sqlite_url)
    assert "was at revision" in result.stderr
    assert "already" in run("migrate", url=sqlite_url).stderr


def test_the_live_workers_are_listed(sqlite_url: str) -> None:
    nobody = run("workers", url=sqlite_url)
    assert (nobody.exit_code, nobody.stdout, nobody.stderr) == (0, "", "No live workers.\n")
    generation_id = submitted(sqlite_url, "trap beat")[0]
    storage = Storage(sqlite_url)
    with storage.session() as session:
        register_worker(session, "gpu-0", model_names=["musicgen-small", "other"], device="cuda:0", version="1.0.0")
        register_worker(session, "gpu-1\x1b[31m", state="stopping")
        claim_generation(session, "gpu-0")
    storage.dispose()
    first, second = (line.split("\t") for line in run("workers", url=sqlite_url).stdout.splitlines())
    assert first[:5] == ["gpu-0", "busy", generation_id, "musicgen-small, other", "cuda:0"]
    assert second[:5] == ["gpu-1 [31m", "stopping", "", "", ""]
    assert [len(line) for line in (first, second)] == [10, 10]
    as_json = [json.loads(line) for line in run("workers", "--json", url=sqlite_url).stdout.splitlines()]
    assert [worker["model_names"] for worker in as_json] == [["musicgen-small", "other"], None]
    code, screen = on_a_terminal("--database-url", sqlite_url, "workers", env={"NO_COLOR": "1"})
    assert code == 0
    assert "cuda:0" in screen
    assert "\x1b[31m" not in screen


def test_the_label_of_a_worker_is_listed_while_it_works(sqlite_url: str, tmp_path: Path) -> None:
    submitted(sqlite_url, "trap beat")
    (tmp_path / "handlers.py").write_text(
        "from services.storage import Storage, get_workers\n"
        "def render(job):\n"
        f"    with Storage({sqlite_url!r}).session() as session:\n"
        "        print(*(worker.device for worker in get_workers(session)))\n"
    )
    arguments = ["--database-url", sqlite_url, "worker", "handlers:render", "--until-empty"]
    done = process(*arguments, "--device", "cuda:0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "cuda:0\n"), done.stderr
    refused = process(*arguments, "--device", " ", cwd=tmp_path)
    assert refused.returncode == 2
    assert "device must not be blank" in refused.stderr
