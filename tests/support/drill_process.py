"""What the drills' processes do: `python -m tests.support.drill_process FUNCTION ARGUMENTS`.

Every function is one process's whole life; what it prints, a line each and flushed, is what it acknowledges.
"""

import json
import os
import random
import signal
import sys
from typing import Any

from sqlalchemy import Engine, event

from services.storage import (
    ConflictError,
    RetryableError,
    backup_database,
    complete_generation,
    create_generation,
    get_generation,
    get_pending_generations,
    get_prompt_by_text,
    get_session,
    init_db,
    migrations,
    reset_database,
    restore_database,
    run_in_transaction,
)
from tests.support.factories import a_request


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def await_signal() -> None:
    say("ready")
    sys.stdin.readline()


def read_then_write(url: str, rounds: str) -> None:
    """Start on a database that may not be there yet, then read and write in `rounds` sessions."""
    await_signal()
    init_db(url)
    for number in range(int(rounds)):
        with get_session() as session:
            prompt = get_prompt_by_text(session, "shared")
            generation = create_generation(session, **a_request(prompt="shared"))
            create_generation(session, **a_request(prompt=f"prompt {number}"))
            assert generation.prompt_id == (prompt.id if prompt else generation.prompt_id)
        with get_session() as session:
            assert get_generation(session, generation.id) is not None
    say("done")


def initialize(url: str) -> None:
    """Start on a database that others start on too."""
    await_signal()
    init_db(url)
    say("done")


def take_batches(url: str) -> None:
    """Run the batch loop of the specification until nothing is pending; print the ids of every committed batch."""
    init_db(url)
    await_signal()
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
            say(*taken)


def sleep_after_marking(url: str, generation_id: str) -> None:
    """Mark a generation, then do nothing in the open session until told; print when marked and when committed."""
    init_db(url)
    with get_session() as session:
        generation = get_generation(session, generation_id)
        assert generation is not None
        generation.mark_processing()
        await_signal()
    say("committed")


def write_for_ever(url: str, seed: str) -> None:
    """Create and complete until killed; print each id with its status once the commit has returned."""
    choose = random.Random(seed)
    init_db(url)
    while True:

        def write(session: Any) -> list[str]:
            count = choose.randint(1, 20)
            return [
                create_generation(session, **a_request(prompt=f"prompt {choose.randint(1, 5)}")).id
                for _ in range(count)
            ]

        ids = run_in_transaction(write, attempts=100)
        say("pending", *ids)
        finished = ids[: len(ids) // 2 + 1]

        def finish(session: Any, ids: list[str] = finished) -> None:
            for generation_id in ids:
                complete_generation(session, generation_id, 18.5, 1_000, {"bpm": 140})

        run_in_transaction(finish, attempts=100)
        say("completed", *finished)


def count_up(url: str, writer: str) -> None:
    """Store one numbered generation a transaction until killed; print each number once its commit has returned."""
    init_db(url)
    number = 0
    while True:
        number += 1
        request = a_request(prompt=f"prompt of {writer}", batch_id=writer, idempotency_key=f"{writer} {number}")
        run_in_transaction(lambda session, request=request: create_generation(session, **request), attempts=100)
        say(number)


def back_up_for_ever(url: str, folder: str) -> None:
    """Write backups until killed."""
    init_db(url)
    say("ready")
    while True:
        backup_database(folder)


def restore_for_ever(url: str, *backups: str) -> None:
    """Restore backups in turn until killed."""
    init_db(url)
    say("ready")
    while True:
        for backup in backups:
            restore_database(backup)


def serve_deaths() -> None:
    """Fork for every order on stdin a child that does what it says and dies after so many statements.

    Prints how each ended: -9, or 0 when the work was done before that many. Forked, because starting Python and
    importing everything for each of a hundred statements would take minutes.
    """
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            die_after(order["statements"])
            {"upgrade": init_db, "reset": reset}[order["work"]](order["url"])
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def reset(url: str) -> None:
    os.environ["DATABASE_URL"] = url
    reset_database()


def die_after(statements: int) -> None:
    """Let this process be killed as soon as it has executed so many statements, before it does anything else."""
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
        back_up_for_ever,
        count_up,
        read_then_write,
        restore_for_ever,
        initialize,
        take_batches,
        sleep_after_marking,
        write_for_ever,
        serve_deaths,
    )
}

if __name__ == "__main__":
    assert migrations  # imported before any fork
    FUNCTIONS[sys.argv[1]](*sys.argv[2:])
