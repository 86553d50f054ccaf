"""The library as an API process or a worker uses it: each operation in a session of its own."""

from collections.abc import Sequence
from typing import Any

from services.storage import (
    Lease,
    Storage,
    claim_generation,
    complete_generation,
    create_generation,
    create_generations,
    get_all_generations,
    get_generation,
)

WORKER = "benchmark"
METADATA = {"bpm": 140, "key": "Cm"}


class Library:
    """The operations of raw_driver.py through `with storage.session()`: validated, fenced, as objects."""

    def __init__(self, url: str, synchronous: str) -> None:
        self.storage = Storage(url, synchronous=synchronous, busy_timeout=60.0)

    def create(self, prompt: str) -> str:
        with self.storage.session() as session:
            return create_generation(
                session, prompt, "musicgen-small", 16.0, 32_000, 2, "outputs/a.wav", metadata={"genre": "hip hop"}
            ).id

    def claim(self) -> Lease | None:
        with self.storage.session() as session:
            generation = claim_generation(session, WORKER)
            return None if generation is None else generation.lease

    def complete(self, lease: Any) -> Any:
        with self.storage.session() as session:
            return complete_generation(session, lease.generation_id, 18.5, 5_242_880, METADATA, lease=lease)

    def get(self, key: str) -> Any:
        with self.storage.session() as session:
            return get_generation(session, key)

    def page(self) -> Any:
        with self.storage.session() as session:
            return get_all_generations(session)

    def create_many(self, prompts: Sequence[str]) -> None:
        with self.storage.session() as session:
            create_generations(
                session,
                [
                    {
                        "prompt": prompt,
                        "model_name": "musicgen-small",
                        "duration_seconds": 16.0,
                        "sample_rate": 32_000,
                        "channels": 2,
                        "file_path": "outputs/a.wav",
                        "metadata": {"genre": "hip hop"},
                    }
                    for prompt in prompts
                ],
            )

    def close(self) -> None:
        self.storage.dispose()


class WorkerSteps(Library):
    """The same, with claim and complete as the Worker does them: in one round trip where the database can."""

    def claim(self) -> Lease | None:
        generation = self.storage.run_step(lambda session: claim_generation(session, WORKER))
        return None if generation is None else generation.lease

    def complete(self, lease: Any) -> Any:
        return self.storage.run_step(
            lambda session: complete_generation(session, lease.generation_id, 18.5, 5_242_880, METADATA, lease=lease)
        )
