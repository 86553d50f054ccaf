"""The packages: the wheel works outside of the checkout, and no file contains local paths."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from services.storage import __version__
from services.storage.schema import REVISIONS, get_schema_version

ROOT = Path(__file__).resolve().parents[2]
# Split so that the test does not find this file.
TELLTALES = re.compile(
    rb"py[p]i\.org|python[h]osted\.org|registry\.npm[j]s\.org|/r[o]ot/|/ho[m]e/[a-z]|/Us[e]rs/[A-Za-z]|/w[o]rk/|/tmp/[v]env"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unzipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_is_pure_python_of_this_version(wheel: Path) -> None:
    assert wheel.name == f"dgx_music_storage-{__version__}-py3-none-any.whl"


def test_the_wheel_contains_only_the_package_its_types_and_every_migration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    migrations = {path.name for path in ROOT.glob("alembic/versions/*.py")}
    assert {f"services/storage/_alembic/versions/{name}" for name in migrations} < names
    assert len(migrations) == len(REVISIONS)
    assert {"services/__init__.py", "services/storage/py.typed", "services/storage/_alembic/env.py"} < names
    assert {name.split("/")[0] for name in names} == {"services", f"dgx_music_storage-{__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".db"))]


def test_the_wheel_declares_its_license_extras_and_command(unzipped: Path) -> None:
    (info,) = unzipped.glob("*.dist-info")
    metadata = (info / "METADATA").read_text()
    assert "License-Expression: MIT" in metadata
    assert (info / "licenses/LICENSE").exists()
    extras = set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.MULTILINE))
    assert extras == {"admin", "browser", "cli", "dev", "postgres", "sqlite"}
    core = [line for line in re.findall(r"^Requires-Dist: (.+)", metadata, re.MULTILINE) if "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in core) == ["alembic", "sqlalchemy"]
    assert "dgx-storage = services.storage.__main__:main" in (info / "entry_points.txt").read_text()


def test_an_installed_wheel_creates_a_database_with_its_own_migrations(unzipped: Path, tmp_path: Path) -> None:
    code = (
        "import services.storage.migrations as m; print(m.__file__, m.script_location(), sep='\\n');"
        "from services.storage.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "init"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unzipped)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(unzipped / "services/storage/migrations/__init__.py"),
        str(unzipped / "services/storage/_alembic"),
    ]
    assert done.stderr.endswith(f"at revision {get_schema_version()}\n")
    assert (tmp_path / "data/generations.db").exists()


def test_the_sdist_can_build_the_wheel_and_test_it(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {"pyproject.toml", "justfile", "alembic.ini", "alembic/env.py", "scripts/setup.sh", "LICENSE"} < names
    assert not [name for name in names if name.startswith((".venv", ".git/", "data/"))]


def test_the_migrations_folder_is_not_a_package_because_it_would_hide_alembic() -> None:
    assert not (ROOT / "alembic/__init__.py").exists()


def test_no_file_contains_a_registry_host_or_a_local_path(tmp_path: Path) -> None:
    # The sdist contains what git tracks; it excludes the patterns of .gitignore, with or without git.
    with tarfile.open(build("sdist", tmp_path)) as sdist:
        files = [member for member in sdist.getmembers() if member.isfile() and not member.name.endswith("/PKG-INFO")]
        found = {
            member.name: match.group()
            for member in files
            if (stream := sdist.extractfile(member)) and (match := TELLTALES.search(stream.read()))
        }
    assert len(files) > 30
    assert found == {}


def test_scripts_that_are_run_by_name_are_executable() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


def build(target: str, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built
