# DGX Music storage. `just` lists the recipes; the first one you run sets up .venv.

set dotenv-load # DATABASE_URL from .env
set positional-arguments # "$@" keeps arguments with spaces in one piece

[private]
default:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Play the whole story on a scratch database: submit, process, render WAVs, statistics
[group("start here")]
[no-exit-message]
demo *args: (_venv "run")
    @.venv/bin/python -m services.storage demo "$@"

# Render what is pending in your database, with the demo's synthesizer
[group("start here")]
[no-exit-message]
worker *args: (_venv "run")
    @.venv/bin/python -m services.storage worker "$@"

# Run the tests (arguments go to pytest: just test -k prompt -x)
[group("start here")]
[no-exit-message]
test *args: (_venv "dev")
    @.venv/bin/python -m pytest -n auto --dist loadfile "$@"

# Run the tests that need no database
[group("tests")]
[no-exit-message]
test-unit *args: (_venv "dev")
    @.venv/bin/python -m pytest tests/unit "$@"

# Run the tests on real databases and processes
[group("tests")]
[no-exit-message]
test-integration *args: (_venv "dev")
    @.venv/bin/python -m pytest tests/integration "$@"

# Run the tests and measure coverage, worker processes included; pages in htmlcov/
[group("tests")]
[no-exit-message]
coverage *args: (_venv "dev")
    @.venv/bin/python -m pytest --cov --cov-report=term-missing --cov-report=html --cov-fail-under=95 "$@"

# Run the kills, races and fuzzing at full size (minutes)
[group("tests")]
[no-exit-message]
drill *args: (_venv "dev")
    @DRILL_SCALE="${DRILL_SCALE:-1}" .venv/bin/python -m pytest -m drill --timeout=3600 "$@"

# Check style, types, layers and generated documents
[group("tests")]
[no-exit-message]
lint: (_venv "dev")
    @.venv/bin/ruff check .
    @.venv/bin/ruff format --check .
    @.venv/bin/mypy
    @.venv/bin/python scripts/db_docs.py --check
    @.venv/bin/python -m pytest -q tests/unit/test_layers.py

# Measure the library beside the bare driver
[group("tests")]
[no-exit-message]
bench *args: (_venv "dev")
    @.venv/bin/python -m benchmarks "$@"

# Make the database and its tables
[group("database")]
[no-exit-message]
db-init: (_venv "run")
    @.venv/bin/python -m services.storage init

# Apply migrations up to a revision
[group("database")]
[no-exit-message]
db-migrate revision="head": (_venv "run")
    @.venv/bin/alembic upgrade "$1"

# Undo the last migration; its revision file says what that loses, so copy the database first
[group("database")]
[no-exit-message]
db-rollback: (_venv "run")
    @.venv/bin/alembic downgrade -1

# Drop every table and start again: ALL DATA IS LOST (without the question: just --yes db-reset)
[confirm("This deletes every generation and prompt. Really reset the database? [y/N]")]
[group("database")]
[no-exit-message]
db-reset: (_venv "run")
    @.venv/bin/python -m services.storage reset --yes

# Write the next migration from the difference between models and database
[group("database")]
[no-exit-message]
db-revision message: (_venv "dev")
    @.venv/bin/alembic revision --autogenerate -m "$1" --rev-id "$(.venv/bin/python scripts/next_revision.py)"
    @.venv/bin/ruff check --quiet --fix --exit-zero alembic/versions
    @.venv/bin/ruff format --quiet alembic/versions

# Show counts, the queue, the last days, how models do and the most used prompts
[group("database")]
[no-exit-message]
db-stats *args: (_venv "run")
    @.venv/bin/python -m services.storage stats "$@"

# List generations, the newest first
[group("database")]
[no-exit-message]
db-list *args: (_venv "run")
    @.venv/bin/python -m services.storage list "$@"

# Search the prompts
[group("database")]
[no-exit-message]
db-search *args: (_venv "run")
    @.venv/bin/python -m services.storage search "$@"

# Look for what is wrong with the database, and mend its search index
[group("database")]
[no-exit-message]
db-check *args: (_venv "run")
    @.venv/bin/python -m services.storage check "$@"

# Write the documents that are made from the schema
[group("database")]
[no-exit-message]
db-docs: (_venv "dev")
    @.venv/bin/python scripts/db_docs.py

[private]
_venv what:
    @sh scripts/setup.sh "$1"
