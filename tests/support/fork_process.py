"""A process that forks after it used its pool. Parent and children store generations; it prints their number."""

import os
import sys

from services.storage import Storage, count_generations
from tests.support.factories import a_generation


def main(url: str, children: int, rounds: int) -> int:
    storage = Storage(url)
    with storage.session() as session:
        before = count_generations(session)
    pids = []
    for _ in range(children):
        if (pid := os.fork()) == 0:
            os._exit(work(storage, rounds))
        pids.append(pid)
    failed = work(storage, rounds)
    failed |= any(os.waitpid(pid, 0)[1] for pid in pids)
    with storage.session() as session:
        sys.stdout.write(f"{count_generations(session) - before}\n")
    storage.dispose()
    return int(failed)


def work(storage: Storage, rounds: int) -> int:
    for _ in range(rounds):
        with storage.session() as session:
            a_generation(session, prompt=f"by {os.getpid()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
