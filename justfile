# DGX Music storage. `just` lists the recipes. The first recipe that you run creates .venv.

set dotenv-load # DATABASE_URL from .env
set positional-arguments # "$@" keeps arguments with spaces in one piece

[private]
default:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Run a demo on a scratch database: submit prompts, render WAV files, kill a worker, show statistics
[group("start here")]
[no-exit-message]
demo *args: (_venv "run")
    @.venv/bin/python -m services.storage demo "$@"

# Show the queue, the history and the numbers in a browser, until Ctrl-C; without a database, those of the demo
[group("start here")]
[no-exit-message]
admin *args: (_venv "run")
    @.venv/bin/python -m services.storage admin "$@"

# Render due generations of your database with the demo's synthesizer, until Ctrl-C
[group("start here")]
[no-exit-message]
worker *args: (_venv "run")
    @.venv/bin/python -m services.storage worker "$@"

# Run all tests, about ten minutes (arguments go to pytest: just test -k prompt -x)
[group("start here")]
[no-exit-message]
test *args: (_venv "dev")
    @.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"

# Run the tests that need no database
[group("tests")]
[no-exit-message]
test-unit *args: (_venv "dev")
    @.venv/bin/python -m pytest tests/unit "$@"

# Run the tests with real databases and processes
[group("tests")]
[no-exit-message]
test-integration *args: (_venv "dev")
    @.venv/bin/python -m pytest tests/integration "$@"

# Run the tests and measure coverage, worker processes included; report in htmlcov/
[group("tests")]
[no-exit-message]
coverage *args: (_venv "dev")
    @.venv/bin/python -m pytest --cov --cov-report=term-missing --cov-report=html --cov-fail-under=95 "$@"

# Run the tests of kills, races and fuzzing at full size (minutes)
[group("tests")]
[no-exit-message]
drill *args: (_venv "dev")
    @DRILL_SCALE="${DRILL_SCALE:-1}" .venv/bin/python -m pytest -m "drill or sampled" --timeout=3600 "$@"

# Check style, types, layers and generated documents
[group("tests")]
[no-exit-message]
lint: (_venv "dev")
    @.venv/bin/ruff check .
    @.venv/bin/ruff format --check .
    @.venv/bin/mypy
    @.venv/bin/python scripts/db_docs.py --check
    @.venv/bin/python -m pytest -q tests/unit/test_layers.py

# Measure the library and compare it with the plain driver
[group("tests")]
[no-exit-message]
bench *args: (_venv "dev")
    @.venv/bin/python -m benchmarks "$@"

# Create the database and its tables, or upgrade an older one
[group("database")]
[no-exit-message]
db-init: (_venv "run")
    @.venv/bin/python -m services.storage init

# Upgrade the schema to a revision, by default the newest
[group("database")]
[no-exit-message]
db-migrate revision="head": (_venv "run")
    @.venv/bin/alembic upgrade "$1"

# Undo the last migration (back up the database first: the revision file says what this loses)
[group("database")]
[no-exit-message]
db-rollback: (_venv "run")
    @.venv/bin/alembic downgrade -1

# Drop every table and create them again: ALL DATA IS LOST (to skip the question: just --yes db-reset)
[confirm("This deletes every generation and prompt. Really reset the database? [y/N]")]
[group("database")]
[no-exit-message]
db-reset: (_venv "run")
    @.venv/bin/python -m services.storage reset --yes

# Write the next migration from the differences between the models and the database
[group("database")]
[no-exit-message]
db-revision message: (_venv "dev")
    @.venv/bin/alembic revision --autogenerate -m "$1" --rev-id "$(.venv/bin/python scripts/next_revision.py)"
    @.venv/bin/ruff check --quiet --fix --exit-zero alembic/versions
    @.venv/bin/ruff format --quiet alembic/versions

# Show counts, the queue, the last 30 days, models and the most used prompts
[group("database")]
[no-exit-message]
db-stats *args: (_venv "run")
    @.venv/bin/python -m services.storage stats "$@"

# List generations, newest first
[group("database")]
[no-exit-message]
db-list *args: (_venv "run")
    @.venv/bin/python -m services.storage list "$@"

# Search the prompts
[group("database")]
[no-exit-message]
db-search *args: (_venv "run")
    @.venv/bin/python -m services.storage search "$@"

# Write a verified backup into the folder backups, or to the path given
[group("database")]
[no-exit-message]
db-backup *args: (_venv "run")
    @.venv/bin/python -m services.storage backup "$@"

# Replace the database with a backup: asks first
[group("database")]
[no-exit-message]
db-restore *args: (_venv "run")
    @.venv/bin/python -m services.storage restore "$@"

# Check the database, and print how to repair what is wrong
[group("database")]
[no-exit-message]
db-check *args: (_venv "run")
    @.venv/bin/python -m services.storage check "$@"

# Write database-schema.md and SCHEMA_SQL from the migrations
[group("database")]
[no-exit-message]
db-docs: (_venv "dev")
    @.venv/bin/python scripts/db_docs.py

[private]
_venv what:
    @sh scripts/setup.sh "$1"
