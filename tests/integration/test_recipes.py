"""The recipes of the justfile, run in a copy of this checkout whose path contains a space."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.storage.schema import REVISIONS, get_schema_version
from tests.support.sqlite_module import sqlite3

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("alembic", "services", "scripts", "alembic.ini", "justfile", "pyproject.toml")
RECIPES = (
    "demo admin worker test test-unit test-integration coverage drill lint bench "
    "db-init db-migrate db-rollback db-reset db-revision db-stats db-list db-search db-check "
    "db-backup db-restore db-docs"
).split()
NEEDS_DEV_TOOLS = {
    "test", "test-unit", "test-integration", "coverage", "drill", "lint", "bench", "db-revision", "db-docs",
}  # fmt: skip
# Scripts in .venv/bin of the copy: they run this environment's Python in the folder of the copy
FAKE_TOOLS = {
    "python": 'exec "$REAL_PYTHON" "$@"',
    "alembic": 'exec "$REAL_PYTHON" -m alembic "$@"',
    "ruff": 'exec "$REAL_PYTHON" -m ruff "$@"',
    "mypy": "",
    "pytest": "",
    "dgx-storage": "",
}


@dataclass
class Checkout:
    """A copy of the checkout with a .venv that setup.sh accepts as up to date."""

    path: Path

    def just(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [just_binary(), *arguments],
            cwd=self.path,
            env={"PATH": self.search_path, "HOME": str(self.path), "REAL_PYTHON": sys.executable} | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def search_path(self) -> str:
        """The PATH, after a folder with Pythons that setup.sh refuses, so that no test installs anything."""
        return f"{self.path / '.venv/no-python'}{os.pathsep}{os.environ['PATH']}"

    @property
    def database(self) -> Path:
        return self.path / "data" / "generations.db"

    @property
    def revision(self) -> str:
        return str(self.ask("SELECT version_num FROM alembic_version"))

    def ask(self, query: str) -> object:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(query).fetchone()[0]
        finally:
            connection.close()

    def echo_arguments(self) -> None:
        """Replace every tool by a script that prints its name and arguments, one per line."""
        for name in FAKE_TOOLS:
            write_script(self.path / ".venv/bin" / name, f'printf \'%s\\n\' {name} "$@" "${{DRILL_SCALE-}}"')


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    path = tmp_path.resolve() / "a b" / "checkout"
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, path / name)
    for name, script in FAKE_TOOLS.items():
        write_script(path / ".venv/bin" / name, script)
    for name in ("python", "python3", *(f"python3.{minor}" for minor in range(11, 15))):
        write_script(path / ".venv/no-python" / name, "exit 1")
    (path / ".venv/.ready-dev").write_text(f"{path}|")
    return Checkout(path)


def test_just_without_arguments_lists_every_recipe_with_its_comment(checkout: Checkout) -> None:
    listed = checkout.just().stdout
    for recipe in RECIPES:
        assert any(line.split()[:1] == [recipe] and " # " in line for line in listed.splitlines()), recipe


def test_the_public_recipes_are_the_documented_ones(checkout: Checkout) -> None:
    assert sorted(checkout.just("--summary").stdout.split()) == sorted(RECIPES)


@pytest.mark.parametrize(
    "order",
    [
        "db-init db-init db-migrate db-migrate db-reset db-reset db-init",
        "db-migrate db-reset db-migrate db-init",
        "db-reset db-migrate db-reset db-migrate",
    ],
)
def test_the_database_recipes_work_in_any_order_and_twice(checkout: Checkout, order: str) -> None:
    for recipe in order.split():
        done = checkout.just("--yes", recipe)
        assert done.returncode == 0, f"{recipe}: {done.stderr}"
        assert checkout.revision == get_schema_version()


def test_db_reset_without_a_terminal_refuses_and_changes_nothing(checkout: Checkout) -> None:
    checkout.just("db-init")
    before = checkout.database.read_bytes()
    done = checkout.just("db-reset")
    assert done.returncode != 0
    assert checkout.database.read_bytes() == before


def test_db_reset_with_yes_empties_the_database(checkout: Checkout) -> None:
    checkout.just("db-init")
    connection = sqlite3.connect(checkout.database)
    connection.execute(
        "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) "
        "VALUES ('x', 1, '2026-11-22 10:00:00', '2026-11-22 10:00:00')"
    )
    connection.commit()
    connection.close()
    assert checkout.just("--yes", "db-reset").returncode == 0
    assert checkout.ask("SELECT count(*) FROM prompts") == 0


def test_db_rollback_undoes_one_revision_and_db_migrate_brings_it_back(checkout: Checkout) -> None:
    checkout.just("db-init")
    assert checkout.just("db-rollback").returncode == 0
    assert checkout.revision == REVISIONS[-2]
    assert checkout.just("db-migrate", REVISIONS[-1]).returncode == 0
    assert checkout.revision == REVISIONS[-1]


def test_db_revision_writes_a_formatted_file_with_the_next_number(checkout: Checkout) -> None:
    checkout.just("db-init")
    before = set(checkout.path.glob("alembic/versions/*.py"))
    done = checkout.just("db-revision", 'Add "tempo" & more')
    assert done.returncode == 0, done.stderr
    (written,) = set(checkout.path.glob("alembic/versions/*.py")) - before
    assert written.name == f"{len(REVISIONS) + 1:03}_add_tempo_more.py"
    text = written.read_text()
    assert f'down_revision: str | None = "{REVISIONS[-1]}"' in text
    assert "Downgrade loses" in text
    for check in (["check", "--select", "E,F,W,I"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, str(written)], cwd=checkout.path, check=True)


def test_db_stats_prints_tab_separated_lines_when_piped(checkout: Checkout) -> None:
    checkout.just("db-init")
    assert json.loads(checkout.just("db-stats", "--json").stdout)["total_generations"] == 0


def test_demo_does_not_use_the_users_database(checkout: Checkout) -> None:
    done = checkout.just("demo", "--seconds", "0.05", "--discard")
    assert done.returncode == 0, done.stderr
    assert "completed_generations\t25" in done.stdout
    assert not checkout.database.exists()


def test_recipes_use_the_database_of_the_env_file_unless_the_environment_names_one(checkout: Checkout) -> None:
    (checkout.path / ".env").write_text("DATABASE_URL=sqlite:///from_file.db\n")
    assert checkout.just("db-init").returncode == 0
    assert checkout.just("db-migrate", DATABASE_URL="sqlite:///from_environment.db").returncode == 0
    assert {path.name for path in checkout.path.glob("*.db")} == {"from_file.db", "from_environment.db"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("test", ["python", "-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]),
        ("test-unit", ["python", "-m", "pytest", "tests/unit"]),
        ("test-integration", ["python", "-m", "pytest", "tests/integration"]),
        ("bench", ["python", "-m", "benchmarks"]),
        ("demo", ["python", "-m", "services.storage", "demo"]),
        ("worker", ["python", "-m", "services.storage", "worker"]),
        ("db-stats", ["python", "-m", "services.storage", "stats"]),
        ("db-list", ["python", "-m", "services.storage", "list"]),
        ("db-search", ["python", "-m", "services.storage", "search"]),
        ("db-check", ["python", "-m", "services.storage", "check"]),
    ],
)
def test_arguments_can_contain_spaces(checkout: Checkout, recipe: str, expected: list[str]) -> None:
    checkout.echo_arguments()
    arguments = ["-k", "one or two", "", "$HOME", "it's", "--json"]
    assert checkout.just(recipe, *arguments).stdout.splitlines() == [*expected, *arguments, ""]


def test_drills_run_at_full_scale_by_default(checkout: Checkout) -> None:
    checkout.echo_arguments()
    assert checkout.just("drill").stdout.splitlines()[-1] == "1"
    assert checkout.just("drill", DRILL_SCALE="0.2").stdout.splitlines()[-1] == "0.2"
    assert checkout.just("test").stdout.splitlines()[-1] == ""


def test_coverage_fails_under_ninety_five_percent(checkout: Checkout) -> None:
    checkout.echo_arguments()
    assert "--cov-fail-under=95" in checkout.just("coverage").stdout.splitlines()


def test_lint_checks_style_types_documents_and_layers(checkout: Checkout) -> None:
    checkout.echo_arguments()
    words = checkout.just("lint").stdout.split()
    assert [word for word in words if word in ("check", "format", "mypy") or word.endswith(".py")] == [
        "check", "format", "mypy", "scripts/db_docs.py", "tests/unit/test_layers.py",
    ]  # fmt: skip


def test_recipes_work_from_a_sub_folder_and_through_a_link(checkout: Checkout, tmp_path: Path) -> None:
    checkout.echo_arguments()
    (tmp_path / "link").symlink_to(checkout.path)
    for folder in (checkout.path / "services" / "storage", tmp_path / "link"):
        assert Checkout(folder).just("test").stdout.startswith("python\n-m\npytest\n")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_sets_up_what_it_needs(checkout: Checkout, recipe: str) -> None:
    checkout.echo_arguments()
    arguments = ["message"] if recipe == "db-revision" else []
    (checkout.path / ".venv/.ready-dev").rename(checkout.path / ".venv/.ready-run")
    assert needs_setup(checkout, "--yes", recipe, *arguments) == (recipe in NEEDS_DEV_TOOLS)
    (checkout.path / ".venv/.ready-run").unlink()
    assert needs_setup(checkout, "--yes", recipe, *arguments)


def test_setup_prints_nothing_when_nothing_changed(checkout: Checkout) -> None:
    for what in ("dev", "run"):
        done = checkout.just("_venv", what)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_runs_again_in_a_copied_folder_or_when_the_project_changed(checkout: Checkout) -> None:
    ready = checkout.path / ".venv/.ready-dev"
    ready.write_text("/another/checkout|")
    assert needs_setup(checkout, "test")
    ready.write_text(f"{checkout.path}|")
    os.utime(checkout.path / "pyproject.toml", (2**31, 2**31))
    assert needs_setup(checkout, "test")


def test_setup_runs_again_for_another_python_or_when_a_tool_is_missing(checkout: Checkout) -> None:
    assert needs_setup(checkout, "test", PYTHON="/no/such/python")
    (checkout.path / ".venv/bin/pytest").unlink()
    assert needs_setup(checkout, "test")


def test_setup_installs_the_postgresql_driver_only_for_a_postgresql_url(checkout: Checkout) -> None:
    ready = checkout.path / ".venv/.ready-dev"
    ready = ready.rename(ready.with_name(".ready-run"))
    assert not needs_setup(checkout, "_venv", "run", DATABASE_URL="sqlite:///x.db")
    assert needs_setup(checkout, "_venv", "run", DATABASE_URL="postgres://localhost/x")
    ready.rename(ready.with_name(".ready-postgres"))
    assert not needs_setup(checkout, "_venv", "run", DATABASE_URL="postgresql+psycopg://localhost/x")
    assert not needs_setup(checkout, "_venv", "run", DATABASE_URL="sqlite:///x.db")
    assert needs_setup(checkout, "_venv", "dev", DATABASE_URL="postgres://localhost/x")


def test_setup_refuses_an_unknown_argument(checkout: Checkout) -> None:
    assert checkout.just("_venv", "nonsense").returncode == 2


def needs_setup(checkout: Checkout, *arguments: str, **variables: str) -> bool:
    """Return whether setup.sh tried to set up .venv, which fails here because it finds no usable Python."""
    done = checkout.just(*arguments, **variables)
    return done.returncode != 0 and "Python 3.11 or newer is needed" in done.stderr


def just_binary() -> str:
    """Return the `just` of this environment (from the dev extra), or else the one on PATH."""
    found = shutil.which("just", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.fail("these tests run the justfile: pip install rust-just")
    return found


def write_script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
