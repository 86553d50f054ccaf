"""Commit prompts to an SQLite file with the driver alone: `python -m tests.support.prompt_writer FILE`.

Prints each text, and when its transaction began, after its commit. Ends with stdin. Closes the file after a few commits
and opens it again: SQLite deletes the -wal then, unless it sees the locks of the other processes.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.sqlite_module import sqlite3

COMMITS = 5  # before the file is closed
ADD = "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) VALUES (?, 1, ?, ?)"
AT = "2026-11-25 12:00:00.000000"


def open_file(path: str | Path) -> Any:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def add_prompt(connection: Any, text: str) -> float:
    """Commit a prompt; return when that began."""
    began = time.monotonic()
    connection.execute(ADD, (text, AT, AT))
    return began


def write(path: str, is_ended: Callable[[], bool]) -> None:
    number = 0
    while not is_ended():
        with closing(open_file(path)) as connection:
            for _ in range(COMMITS):
                number += 1
                sys.stdout.write(f"other {number}\t{add_prompt(connection, f'other {number}')}\n")
                sys.stdout.flush()
                time.sleep(0.002)


if __name__ == "__main__":
    reader = Thread(target=sys.stdin.read)
    reader.start()
    write(sys.argv[1], lambda: not reader.is_alive())
