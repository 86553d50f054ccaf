"""The specification: its examples, literally, on both databases, and its signatures."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from services import storage
from services.storage import (
    Generation,
    GenerationStatus,
    Prompt,
    Storage,
    create_generation,
    get_engine,
    get_generation,
    get_session,
    get_storage,
    track_prompt_usage,
)
from tests.support.factories import REQUEST, a_generation

MANUAL = Path(storage.__file__).with_name("README.md")

INITIALIZE = """
from services.storage import init_db

init_db()
"""

CREATE = """
from services.storage import get_session, create_generation

with get_session() as session:
    gen = create_generation(
        session=session,
        prompt="hip hop beat at 140 BPM",
        model_name="musicgen-small",
        duration_seconds=16.0,
        sample_rate=32000,
        channels=2,
        file_path="outputs/gen_123.wav",
        metadata={"bpm": 140, "genre": "hip hop"}
    )
    print(f"Created: {gen.id}")
"""

QUERY = """
from services.storage import get_session, get_all_generations, GenerationStatus

with get_session() as session:
    # Get all pending jobs
    pending = get_all_generations(
        session,
        status=GenerationStatus.PENDING,
        limit=10
    )

    for gen in pending:
        print(f"{gen.id}: {gen.prompt}")
"""

UPDATE = """
from services.storage import get_session, complete_generation

with get_session() as session:
    complete_generation(
        session,
        generation_id="abc-123",
        generation_time=18.5,
        file_size_bytes=5000000,
        metadata={"bpm": 140}
    )
"""

INITIALIZE_ELSEWHERE = """
init_db()  # Use default
init_db("sqlite:///custom.db")  # Custom path
"""

SESSION = """
with get_session() as session:
    # Your database operations
    gen = create_generation(session, ...)
    # Auto-commit on success, rollback on error
"""

WORKFLOW = """
from services.storage import (
    init_db,
    get_session,
    create_generation,
    get_generation,
    complete_generation,
    GenerationStatus
)

# Initialize database
init_db()

# Create generation
with get_session() as session:
    gen = create_generation(
        session=session,
        prompt="trap beat 140 BPM",
        model_name="musicgen-small",
        duration_seconds=16.0,
        sample_rate=32000,
        channels=2,
        file_path="outputs/test.wav"
    )
    gen_id = gen.id

# Mark as processing
with get_session() as session:
    gen = get_generation(session, gen_id)
    gen.mark_processing()

# ... generate audio ...

# Mark as completed
with get_session() as session:
    complete_generation(
        session,
        gen_id,
        generation_time=18.5,
        file_size_bytes=5242880,
        metadata={"bpm": 140, "key": "Cm"}
    )

# Retrieve and check
with get_session() as session:
    gen = get_generation(session, gen_id)
    print(f"Status: {gen.status}")
    print(f"Time: {gen.generation_time_seconds}s")
    print(f"Metadata: {gen.get_metadata()}")
"""

BATCH = """
from services.storage import get_session, get_pending_generations

# Process pending jobs
with get_session() as session:
    pending = get_pending_generations(session, limit=10)

    for gen in pending:
        print(f"Processing: {gen.prompt}")
        gen.mark_processing()
        # Process job...
"""

ANALYTICS = """
from services.storage import (
    get_session,
    get_database_stats,
    get_most_used_prompts
)

with get_session() as session:
    # Overall stats
    stats = get_database_stats(session)
    print(f"Total: {stats['total_generations']}")
    print(f"Completed: {stats['completed_generations']}")

    # Popular prompts
    popular = get_most_used_prompts(session, limit=5)
    for prompt in popular:
        print(f"{prompt.text}: {prompt.used_count} uses")
"""

ERRORS = """
try:
    with get_session() as session:
        gen = create_generation(session, ...)
        # If error occurs, transaction is rolled back
        raise Exception("Something went wrong")
except Exception as e:
    print(f"Error: {e}")
    # Session is closed, transaction rolled back
"""

# The documents contain all of these, and tests/integration/test_documents.py runs them.
SHELL = (
    "just db-init",
    "just db-migrate",
    "alembic upgrade head",
    'alembic revision --autogenerate -m "Description"',
    "alembic downgrade -1",
    "pytest tests/unit/test_models.py -v",
    "pytest tests/integration/test_database.py -v",
    "pytest tests/ --cov=services.storage --cov-report=html",
    'export DATABASE_URL="sqlite:///path/to/db.db"',
    "# Check current version\nalembic current\n\n# Rollback and retry\nalembic downgrade -1\nalembic upgrade head",
    "just db-reset  # WARNING: Deletes data\njust db-migrate",
)
PYTHON = {
    "initialize": INITIALIZE,
    "create": CREATE,
    "query": QUERY,
    "update": UPDATE,
    "initialize elsewhere": INITIALIZE_ELSEWHERE,
    "session": SESSION,
    "workflow": WORKFLOW,
    "batch": BATCH,
    "analytics": ANALYTICS,
    "errors": ERRORS,
}

SIGNATURES = {
    "init_db": "database_url=None",
    "get_session": "",
    "reset_database": "",
    "get_database_stats": "session",
    "create_generation": (
        "session, prompt, model_name, duration_seconds, sample_rate, channels, file_path, "
        "model_version=None, metadata=None"
    ),
    "get_generation": "session, generation_id",
    "get_all_generations": "session, limit=100, offset=0, status=None",
    "update_generation_status": "session, generation_id, status, error_message=None",
    "complete_generation": "session, generation_id, generation_time, file_size_bytes, metadata=None",
    "delete_generation": "session, generation_id",
    "get_pending_generations": "session, limit=100",
    "count_generations": "session, status=None",
    "track_prompt_usage": "session, prompt_text",
    "get_prompt_by_text": "session, text",
    "get_most_used_prompts": "session, limit=10",
}
GENERATION_PROPERTIES = "id prompt model_name status created_at completed_at metadata"
GENERATION_METHODS = (
    "is_pending is_processing is_complete is_failed is_finished "
    "get_metadata set_metadata mark_processing mark_completed mark_failed to_dict"
)
PROMPT_PROPERTIES = "id text used_count first_used_at last_used_at"


@pytest.mark.parametrize("example", [*SHELL, *PYTHON.values()], ids=[*SHELL, *PYTHON])
def test_the_documents_contain_every_example_of_the_specification(example: str) -> None:
    assert example.strip() in re.findall(r"^```\w+\n(.*?)\n```$", MANUAL.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_function_has_the_signature_of_the_specification(name: str) -> None:
    parameters = inspect.signature(getattr(storage, name)).parameters.values()
    positional = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    written = (
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in positional
    )
    assert ", ".join(written) == SIGNATURES[name]
    assert all(parameter.default is not parameter.empty for parameter in parameters if parameter not in positional)


def test_unsaved_rows_have_every_property_and_method() -> None:
    row, prompt = Generation(**REQUEST), Prompt(text="trap")
    assert all(hasattr(row, name) for name in f"{GENERATION_PROPERTIES} {GENERATION_METHODS}".split())
    assert all(hasattr(prompt, name) for name in f"{PROMPT_PROPERTIES} increment_usage to_dict".split())


def test_the_statuses_have_the_values_of_the_specification() -> None:
    assert [GenerationStatus[word.upper()] for word in ("pending", "processing", "completed", "failed")] == [
        "pending", "processing", "completed", "failed",
    ]  # fmt: skip


def test_init_db_creates_the_database_of_the_environment(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    run(INITIALIZE)
    assert get_storage().read_revision() == storage.get_schema_version()


def test_init_db_accepts_the_default_path_and_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run(INITIALIZE)
    run(INITIALIZE_ELSEWHERE, init_db=storage.init_db)
    assert (tmp_path / "data" / "generations.db").exists()
    assert get_engine().url.database == str(tmp_path / "custom.db")


def test_create_and_query(db: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    run(CREATE)
    created = capsys.readouterr().out.removeprefix("Created: ").strip()
    run(QUERY)
    assert capsys.readouterr().out == f"{created}: hip hop beat at 140 BPM\n"


def test_update_completes_the_generation_and_ignores_an_unknown_id(db: Storage) -> None:
    run(UPDATE)
    with get_session() as session:
        a_generation(session, generation_id="abc-123")
    run(UPDATE)
    with get_session(read_only=True) as session:
        generation = get_generation(session, "abc-123")
    assert generation is not None
    assert generation.is_complete
    assert generation.file_size_bytes == 5_000_000


def test_session_commits_what_was_created(db: Storage) -> None:
    run(SESSION, get_session=get_session, create_generation=create_with_arguments)
    with get_session(read_only=True) as session:
        assert storage.count_generations(session) == 1


def test_complete_workflow(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    run(WORKFLOW)
    assert capsys.readouterr().out.splitlines() == [
        "Status: completed",
        "Time: 18.5s",
        "Metadata: {'bpm': 140, 'key': 'Cm'}",
    ]


def test_batch_takes_each_pending_generation_once(db: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with get_session() as session:
        for prompt in ("first", "second"):
            a_generation(session, prompt=prompt)
    run(BATCH)
    run(BATCH)
    assert capsys.readouterr().out == "Processing: first\nProcessing: second\n"


def test_analytics(db: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with get_session() as session:
        a_generation(session, prompt="jazz").mark_completed(18.5)
        a_generation(session, prompt="trap")
        track_prompt_usage(session, "trap")
    run(ANALYTICS)
    assert capsys.readouterr().out.splitlines() == ["Total: 2", "Completed: 1", "trap: 2 uses", "jazz: 1 uses"]


def test_an_error_rolls_back_what_was_created(db: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    run(ERRORS, get_session=get_session, create_generation=create_with_arguments)
    assert capsys.readouterr().out == "Error: Something went wrong\n"
    with get_session(read_only=True) as session:
        assert storage.count_generations(session) == 0


def run(example: str, **names: Any) -> None:
    """Run an example; `names` are the names that the surrounding text imports."""
    exec(compile(example, "<specification>", "exec"), names)


def create_with_arguments(session: Any, *arguments: Any) -> Generation:
    """Create a generation, taking a literal `...` for all six required arguments."""
    return create_generation(session, **REQUEST) if arguments == (...,) else create_generation(session, *arguments)
