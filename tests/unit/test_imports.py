"""Importing the library loads only what opening a database at head needs."""

import re
import subprocess
import sys

import services.storage

HEAVY = ("alembic", "click", "rich", "psycopg", "mako")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded once it has run `code`."""
    listing = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_importing_loads_no_migration_command_line_or_server_driver() -> None:
    assert modules_after("import services.storage").isdisjoint(HEAVY)


def test_opening_a_database_at_head_loads_no_migrations(sqlite_url: str) -> None:
    code = f"from services.storage import init_db, get_session, count_generations\ninit_db({sqlite_url!r})\n"
    code += "with get_session() as session: count_generations(session)"
    assert modules_after(code).isdisjoint(HEAVY)


def test_every_public_name_exists_once() -> None:
    names = services.storage.__all__
    assert len(names) == len(set(names))
    for name in names:
        assert hasattr(services.storage, name)


def test_every_name_of_the_specification_exists() -> None:
    from services.storage import database, models, schema

    for name in """
        init_db get_session reset_database get_database_stats create_generation get_generation get_all_generations
        update_generation_status complete_generation delete_generation get_pending_generations count_generations
        track_prompt_usage get_prompt_by_text get_most_used_prompts
    """.split():
        assert getattr(services.storage, name) is getattr(database, name)
    for name in ("Generation", "Prompt"):
        assert getattr(services.storage, name) is getattr(models, name)
    assert services.storage.GenerationStatus is schema.GenerationStatus


def test_the_version_has_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", services.storage.__version__)
