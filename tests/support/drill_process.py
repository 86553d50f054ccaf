"""The processes of the drills: `python -m tests.support.drill_process FUNCTION ARGUMENTS`.

Each function is what one process does. It prints a line, flushed at once, for everything it acknowledges.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, event

from services.storage import (
    ConflictError,
    RetryableError,
    Storage,
    StorageError,
    backup_database,
    complete_generation,
    create_generation,
    export_database,
    get_generation,
    get_pending_generations,
    get_prompt_by_text,
    get_session,
    import_database,
    init_db,
    migrations,
    prune_generations,
    reset_database,
    restore_database,
    run_in_transaction,
)
from tests.support.factories import a_request


def print_line(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def wait_for_start() -> None:
    print_line("ready")
    sys.stdin.readline()


def read_then_write(url: str, rounds: str) -> None:
    """Initialize a database that may not exist yet, then read and write in `rounds` sessions."""
    wait_for_start()
    init_db(url)
    for number in range(int(rounds)):
        with get_session() as session:
            prompt = get_prompt_by_text(session, "shared")
            generation = create_generation(session, **a_request(prompt="shared"))
            create_generation(session, **a_request(prompt=f"prompt {number}"))
            assert generation.prompt_id == (prompt.id if prompt else generation.prompt_id)
        with get_session() as session:
            assert get_generation(session, generation.id) is not None
    print_line("done")


def initialize(url: str) -> None:
    """Initialize a database that other processes initialize at the same time."""
    wait_for_start()
    init_db(url)
    print_line("done")


def take_batches(url: str) -> None:
    """Run the batch loop of the specification until nothing is pending; print the ids of each committed batch."""
    init_db(url)
    wait_for_start()
    taken: list[str] | None = None
    while taken != []:
        try:
            with get_session() as session:
                taken = []
                for generation in get_pending_generations(session, limit=10):
                    generation.mark_processing()
                    taken.append(generation.id)
        except (ConflictError, RetryableError):
            taken = None
        else:
            print_line(*taken)


def sleep_after_marking(url: str, generation_id: str) -> None:
    """Mark a generation, keep the session open until a line is read, then commit; print a line after each."""
    init_db(url)
    with get_session() as session:
        generation = get_generation(session, generation_id)
        assert generation is not None
        generation.mark_processing()
        wait_for_start()
    print_line("committed")


def write_until_killed(url: str, seed: str) -> None:
    """Create and complete generations until killed; print their status and ids after each commit."""
    generator = random.Random(seed)
    init_db(url)
    while True:

        def write(session: Any) -> list[str]:
            count = generator.randint(1, 20)
            return [
                create_generation(session, **a_request(prompt=f"prompt {generator.randint(1, 5)}")).id
                for _ in range(count)
            ]

        ids = run_in_transaction(write, attempts=100)
        print_line("pending", *ids)
        finished = ids[: len(ids) // 2 + 1]

        def finish(session: Any, ids: list[str] = finished) -> None:
            for generation_id in ids:
                complete_generation(session, generation_id, 18.5, 1_000, {"bpm": 140})

        run_in_transaction(finish, attempts=100)
        print_line("completed", *finished)


def write_large_rows(url: str, seconds: str) -> None:
    """Store 60 kB about every 50 ms; print how many sessions were committed, and the errors of the others."""
    init_db(url)
    wait_for_start()
    end, stored, errors = time.monotonic() + float(seconds), 0, []
    while time.monotonic() < end:
        try:
            with get_session() as session:
                create_generation(session, **a_request(metadata={"x": "x" * 30_000}, parameters={"x": "x" * 30_000}))
            stored += 1
        except StorageError as error:
            errors.append(type(error).__name__)
        time.sleep(0.05)
    print_line(stored, *errors)


def count_up(url: str, writer: str) -> None:
    """Store a numbered generation per transaction until killed; print its number and when it began, once committed."""
    init_db(url)
    number = 0
    while True:
        number += 1
        request = a_request(prompt=f"prompt of {writer}", batch_id=writer, idempotency_key=f"{writer} {number}")
        began = time.monotonic()
        run_in_transaction(lambda session, request=request: create_generation(session, **request), attempts=100)
        print_line(number, began)


def back_up_until_killed(url: str, folder: str) -> None:
    """Write backups until killed."""
    init_db(url)
    print_line("ready")
    while True:
        backup_database(folder)


def import_one_file(url: str, file: str) -> None:
    """Import a file at the same time as others."""
    init_db(url)
    wait_for_start()
    import_database(file)


def export_until_killed(url: str, file: str) -> None:
    """Write exports over each other until killed."""
    init_db(url)
    print_line("ready")
    while True:
        export_database(file, overwrite=True)


def restore_until_killed(url: str, *backups: str) -> None:
    """Restore backups in turn until killed."""
    init_db(url)
    print_line("ready")
    while True:
        for backup in backups:
            restore_database(backup)


def prune_and_print(url: str, folder: str) -> None:
    """Prune what is older than a day, with its files; print each id after its commit."""
    init_db(url)
    print_line("ready")
    prune_generations(
        older_than=timedelta(days=1),
        delete_files_under=folder,
        force=True,
        on_generation=lambda row: print_line(row.id),
    )


def restore_a_part(url: str, backup: str, part: str) -> None:
    """Restore a backup into PostgreSQL; be killed when psql has got some of the statements."""

    def copy(source: Any, target: Any) -> None:
        script = source.read()
        target.write(script[: script.rindex(b";\n", 0, int(len(script) * float(part))) + 2])
        target.flush()
        print_line("ready")
        os.kill(os.getpid(), signal.SIGKILL)

    init_db(url)
    shutil.copyfileobj = copy
    restore_database(backup)


def fork_and_kill() -> None:
    """For each line of stdin, fork a child that does `work` and is killed after a number of statements.

    Prints the exit code of each child: -9, or 0 if the work took fewer statements. A fork is used because starting
    Python and importing everything for each of a hundred statements would take minutes.
    """
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            kill_after(request["statements"])
            {"upgrade": init_db, "reset": reset, "import": import_file}[request["work"]](request["url"])
            os._exit(0)
        print_line(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def reset(url: str) -> None:
    os.environ["DATABASE_URL"] = url
    reset_database()


def import_file(url: str) -> None:
    """Import the file that the environment names."""
    import_database(os.environ["EXPORT"], storage=Storage(url))


def kill_after(statements: int) -> None:
    """Kill this process with SIGKILL right after it has executed this number of statements."""
    executed = 0

    @event.listens_for(Engine, "after_cursor_execute")
    def count(*_: Any) -> None:
        nonlocal executed
        executed += 1
        if executed == statements:
            os.kill(os.getpid(), signal.SIGKILL)


FUNCTIONS = {
    function.__name__: function
    for function in (
        back_up_until_killed,
        count_up,
        export_until_killed,
        read_then_write,
        prune_and_print,
        restore_a_part,
        restore_until_killed,
        import_one_file,
        initialize,
        take_batches,
        sleep_after_marking,
        write_large_rows,
        write_until_killed,
        fork_and_kill,
    )
}

if __name__ == "__main__":
    assert migrations  # imported once, before the forks
    FUNCTIONS[sys.argv[1]](*sys.argv[2:])
