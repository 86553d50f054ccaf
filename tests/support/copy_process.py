"""Fill a database with all kinds of rows, and run copy_database() as a process that a test can kill."""

import sys
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from sqlalchemy import insert, select

from services.storage import Attempt, Base, Generation, Prompt, Storage, copy_database, create_generations
from services.storage.schema import GenerationStatus
from tests.support.factories import a_request

START = datetime(2025, 11, 7, 12, 0, 0, 123456, tzinfo=UTC)
WORDS = ["trap", "lo-fi", "音楽", "emoji 🎵", 'quote " and \\ slash', "%s %(x)s :name", "a\nb\tc", "İstanbul"]
METADATA: list[dict[str, Any] | None] = [
    None,
    {},
    {"bpm": 140, "genre": "hip hop", "nested": {"b": [1, 2.0, None, True], "a": "ü"}},
    {
        "large": [1e16, 1.2345678901234567e17, 1e300],
        "small": 5e-324,
        "zero": -0.0,
        "whole": 2**63 - 1,
        "seed": 2**64 - 1,
    },
    {"z": 1, "a": 2, "text": "1e+16 \\u0041 \\", "1e+20": ""},
]


def fill(storage: Storage, count: int, seed: int = 1) -> None:
    """Store `count` generations with random statuses, parents, JSON, times, sizes and ids."""
    random = Random(seed)
    for start in range(0, count, 1_000):
        requests = []
        for number in range(start, min(start + 1_000, count)):
            prompt = f"{random.choice(WORDS)} {random.randrange(count // 3 + 1)}"
            request = a_request(prompt=prompt, metadata=random.choice(METADATA), parameters=random.choice(METADATA))
            request |= {"priority": random.randrange(-3, 3), "batch_id": random.choice([None, "batch"])}
            if number % 7 == 0:
                request["generation_id"] = f"{random.choice(['a', 'A', 'é', '-', '_'])}{number}"
            if number % 50 == 0:
                request["idempotency_key"] = f"key {number}"
            requests.append(request)
        with storage.session() as session:
            stored = create_generations(session, requests)
            for number, generation in enumerate(stored):
                generation.created_at = START + timedelta(microseconds=random.randrange(10**15))
                match random.randrange(4):
                    case 1:
                        generation.mark_completed(18.5)
                        generation.file_size_bytes = 5 * 2**30
                    case 2:
                        generation.mark_failed("CUDA out of memory")
                    case 3:
                        generation.status = GenerationStatus.PROCESSING
                        generation.progress = 0.1 + 0.2
                generation.is_favorite = number % 9 == 0
                if number % 5 == 0:
                    generation.parent_id = random.choice(stored).id  # may have a larger id than its child
            session.flush()
            attempts = [
                {"generation_id": row.id, "number": 1, "worker_id": "w", "finished_at": START, "outcome": "failed"}
                for row in stored[::3]
            ]
            session.execute(insert(Attempt), attempts)


def contents(storage: Storage) -> dict[str, dict[Any, dict[str, Any]]]:
    """Return every row of every table as a dictionary, by table and primary key."""
    with storage.session(read_only=True) as session:
        found: dict[str, dict[Any, dict[str, Any]]] = {
            model.__tablename__: {row.id: row.to_dict() for row in session.scalars(select(model))}
            for model in (Prompt, Generation)
        }
        found["attempts"] = {(row.generation_id, row.number): row.to_dict() for row in session.scalars(select(Attempt))}
        state = session.execute(select(Base.metadata.tables["queue_state"])).mappings()
        found["queue_state"] = {row["id"]: dict(row) for row in state}
    return found


if __name__ == "__main__":

    def print_progress(step: str, done: int, total: int) -> None:
        sys.stdout.write(f"{step} {done}\n")
        sys.stdout.flush()

    copy_database(sys.argv[1], sys.argv[2], progress=print_progress)
