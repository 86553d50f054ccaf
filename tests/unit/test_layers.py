"""The rules of the architecture, checked in the source: the imports, and what each module may do."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import services.storage

PACKAGE = Path(services.storage.__file__).parent
ROOT = PACKAGE.parents[1]

# A module or package may import those of earlier lines only, not those of its own line.
LAYERS = (
    {"limits", "defaults", "errors", "serialization", "constructor_arguments", "version"},
    {"json_members", "json_values", "search_words", "durable_files", "file_reading"},
    {"types"},
    {"audio_files", "lifecycle", "settings", "retry_policy", "search_spellings"},
    {"schema", "validation", "declarative", "search_query"},
    {"model_base", "status_predicates", "retention_models"},
    {"queue_models"},
    {"models"},
    {"conditions", "claim_order", "row_loading"},
    {"pagination"},
    {"backends"},
    {"queue", "search"},
    {"analytics", "filters"},
    {"prompts", "generations"},
    {"replicas", "schema_check", "session"},
    {"engine"},
    {"migrations"},
    {"maintenance", "worker", "watching"},
    {"database"},
    {"__init__"},
    {"demo", "testing", "aio"},
    {"admin"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "_alembic" not in path.parts)
ALEMBIC = sorted((ROOT / "alembic").rglob("*.py"))
PACING = PACKAGE / "maintenance" / "pacing.py"
WAKEUP = PACKAGE / "queue" / "wakeup.py"
FILE_LINES = 350
FUNCTION_LINES = 50


def member_of(path: Path) -> str:
    """Return the top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("services", "storage", *parts)).removesuffix(".__init__")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of every module that `path` imports, also inside functions."""
    package = ("services", "storage", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from ([module] if node.module else [f"{module}.{alias.name}" for alias in node.names])


def calls(path: Path) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]


def words(path: Path) -> list[str]:
    """Return the text constants of the code, without its docstrings."""
    tree = parse(path)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


def named(*members: str) -> list[Path]:
    return [path for path in SOURCES if member_of(path) in members]


def outside(*members: str) -> list[Path]:
    return [path for path in SOURCES if member_of(path) not in members]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(PACKAGE)) for path in paths])


@each(SOURCES)
def test_modules_import_only_lower_layers(path: Path) -> None:
    importer = member_of(path)
    assert importer in LAYER_OF, f"{importer} has no layer yet: give it one in LAYERS"
    for module in imports(path):
        if not module.startswith("services.storage"):
            continue
        other = [*module.split("."), "__init__"][2]
        other = "__init__" if other.startswith("__") else other
        assert other == importer or LAYER_OF[other] < LAYER_OF[importer], f"{importer} must not import {other}"


def test_no_import_is_part_of_a_cycle() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {
        name: {found for found in imports(path) if found in modules and found != name}
        - {name.rpartition(".")[0]}  # `from . import x` also names the parent package
        for name, path in modules.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError and names the modules


@pytest.mark.parametrize("path", [*SOURCES, *ALEMBIC], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    functions = (node for node in ast.walk(parse(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES]
    assert not long


@each(outside("migrations"))
def test_only_migrations_imports_alembic(path: Path) -> None:
    assert not [module for module in imports(path) if module.split(".")[0] == "alembic"]


@each([path for path in outside("worker", "engine", "watching", "aio") if path not in (PACING, WAKEUP)])
def test_only_the_worker_and_the_wake_ups_use_threads_signals_and_sleep(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & {"threading", "signal", "asyncio", "concurrent"}
    assert not [call for call in calls(path) if call.split(".")[-1] == "sleep"]


def test_the_wake_ups_have_one_thread_and_one_sleep() -> None:
    called = calls(WAKEUP)
    assert {call for call in called if call.startswith("threading.")} == {
        "threading.Condition",
        "threading.Thread",
        "threading.current_thread",
    }
    assert called.count("threading.Thread") == called.count("time.sleep") == 1


def test_watches_have_a_lock_and_no_thread() -> None:
    called = calls(PACKAGE / "watching.py")
    assert {call for call in called if call.startswith("threading.")} == {"threading.Lock"}
    assert not [call for call in called if call.split(".")[-1] == "sleep"]


def test_the_functions_for_async_callers_use_the_threads_of_the_event_loop() -> None:
    path = PACKAGE / "aio.py"
    assert not {module.split(".")[0] for module in imports(path)} & {"threading", "signal", "concurrent"}
    assert not [call for call in calls(path) if call.split(".")[-1] == "sleep"]


def test_maintenance_has_one_sleep() -> None:
    assert calls(PACING).count("time.sleep") == 1


def test_the_engine_has_one_lock_and_one_sleep() -> None:
    called = calls(PACKAGE / "engine.py")
    assert called.count("Lock") == 2  # the lock, and the new one in a forked child
    assert called.count("time.sleep") == 1
    names = [
        alias.name
        for node in ast.walk(parse(PACKAGE / "engine.py"))
        if isinstance(node, ast.ImportFrom) and node.module == "threading"
        for alias in node.names
    ]
    assert names == ["Lock"]


@each(outside("settings", "cli"))
def test_only_the_settings_read_the_environment(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\benviron\b|\bgetenv\b", source)


# Who may open files, and why none of these can be the live database of this process.
OPENS_FILES = {
    "file_reading.py": "refuses a database that is in use",
    "admin/audio.py": "opens files through Outputs, which leaves out those of a database",
    "backends/sqlite_files.py": "creates an empty file that is not there yet",
    "backends/sqlite_backup.py": "creates the file of a backup",
    "backends/postgresql_backup.py": "PostgreSQL has no file here",
    "maintenance/output_folder.py": "opens folders, and files that are not a database's, without following a link",
    "maintenance/zip_generation.py": "reads a file that is open: output_folder.py has refused those of a database",
    "durable_files.py": "creates partial files; flushes finished ones, which no connection has open, and their folder",
    "demo/processes.py": "reads standard input",
    "demo/synthesis.py": "writes a WAV under a partial name",
}
OPENING = {
    "open", "os.open", "io.open", "fdopen", "read_bytes", "read_text", "write_bytes", "write_text", "touch",
    "copy", "copy2", "copyfile", "copytree", "move", "mmap",
}  # fmt: skip


@each(SOURCES)
def test_nothing_but_sqlite_opens_a_database_file(path: Path) -> None:
    """Closing another descriptor of it drops this process's locks: https://sqlite.org/howtocorrupt.html, 2.2."""
    opened = {call for call in calls(path) if call in OPENING or call.split(".")[-1] in OPENING - {"copy", "move"}}
    opened |= {call for call in calls(path) if call.startswith("shutil.") and call.split(".")[-1] in OPENING}
    assert not opened or str(path.relative_to(PACKAGE)) in OPENS_FILES, opened


@each(outside("cli", "__main__"))
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    assert not set(calls(path)) & {"print", "sys.exit", "exit", "quit", "os._exit", "input", "sys.stdout.write"}
    assert not {module.split(".")[0] for module in imports(path)} & {"click", "rich"}


@each(outside("backends", "types"))
def test_dialects_are_named_only_in_backends_and_types(path: Path) -> None:
    found = {word for word in words(path) if re.fullmatch(r"(sqlite3?|postgres(ql)?|psycopg)", word)}
    # The models mark options of one database, and the settings hold the name of SQLite's module.
    allowed = {"models": {"sqlite"}, "settings": {"sqlite3"}}.get(member_of(path), set())
    assert found <= allowed
    assert not [module for module in imports(path) if re.match(r"sqlite3|psycopg|sqlalchemy\.dialects", module)]


@each(named("models"))
def test_models_do_not_use_a_session(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert "Session" not in source
    assert "object_session" not in source


@each(SOURCES)
def test_every_module_has_a_docstring(path: Path) -> None:
    documentation = ast.get_docstring(parse(path))
    assert documentation
    assert not path.stem.endswith(("utils", "helpers", "manager", "repository"))


def test_no_package_shadows_alembic() -> None:
    assert (ROOT / "alembic" / "env.py").is_file()
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert not (ROOT / "alembic" / "versions" / "__init__.py").exists()
