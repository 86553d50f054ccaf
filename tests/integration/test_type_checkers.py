"""The types that users see: a module of a user in mypy and pyright, its mistakes, and what dir() and pydoc list."""

import importlib.util
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services import storage
from services.storage import Base, Storage
from services.storage.constructor_arguments import AttemptFields, GenerationFields, PromptFields, RequestChanges
from services.storage.filters import Filters

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "typing"
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache'}"],
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
}


@pytest.fixture(scope="module", params=CHECKERS)
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """Return the errors that a type checker finds in each module, by line."""
    # In an empty folder, so that the library is the installed one and no configuration applies.
    modules = sorted(FOLDER.glob("*.py"))
    run = subprocess.run(
        [sys.executable, *CHECKERS[request.param], *map(str, modules)],
        cwd=tmp_path_factory.mktemp("user"),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"(\w+\.py):(\d+)\b.* error: (.*)", run.stdout)
    assert found, run.stdout + run.stderr
    return {
        module.name: {int(line): message for name, line, message in found if name == module.name} for module in modules
    }


@pytest.fixture
def users_module() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("users_module", FOLDER / "users_module.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    Base.metadata.remove(module.Rating.__table__)
    Base.registry._dispose_cls(module.Rating)


def test_the_module_runs(db: Storage, database_url: str, users_module: Any) -> None:
    described, reported, refused = users_module.main(database_url)
    assert "'completed'" in refused
    assert described
    assert reported


def test_a_type_checker_finds_no_error_in_the_module(errors: dict[str, dict[int, str]]) -> None:
    assert len((FOLDER / "users_module.py").read_text().splitlines()) > 100
    assert errors["users_module.py"] == {}


def test_a_type_checker_finds_the_mistakes(errors: dict[str, dict[int, str]]) -> None:
    lines = (FOLDER / "mistakes.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, start=1) if line.endswith("# E")}
    assert len(expected) > 15
    assert errors["mistakes.py"].keys() == expected


def test_the_typed_keyword_arguments_are_those_of_the_functions() -> None:
    filters = set(inspect.signature(storage.list_generations).parameters) - {"session", "limit", "after"}
    assert set(Filters.__annotations__) == filters
    request = set(inspect.signature(storage.create_generation).parameters)
    assert set(RequestChanges.__annotations__) == request - {"session", "generation_id", "file_path"}
    attributes = set(storage.Generation.__mapper__.column_attrs.keys())
    assert set(GenerationFields.__annotations__) == attributes | {"metadata", "parent"}
    assert set(PromptFields.__annotations__) == set(storage.Prompt.__mapper__.column_attrs.keys())
    assert set(AttemptFields.__annotations__) == set(storage.Attempt.__mapper__.column_attrs.keys())


def test_dir_and_pydoc_list_everything_public() -> None:
    assert set(storage.__all__) <= set(dir(storage))
    documentation = pydoc.plain(pydoc.render_doc(storage))
    assert [name for name in storage.__all__ if name not in documentation] == []
    for model in (storage.Generation, storage.Prompt, storage.Attempt):
        names = set(model.__mapper__.all_orm_descriptors.keys()) | {"to_dict", "from_dict"}
        documentation = pydoc.plain(pydoc.render_doc(model))
        assert [name for name in sorted(names) if name not in documentation] == []
