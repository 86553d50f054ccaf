"""A committed claim with a thousand pending generations and with a million."""

from collections.abc import Callable
from typing import Any

from services.storage import Storage, claim_generation

from .scratch_databases import KINDS, Scratch, fill, scratch
from .timing import Report, compare

SIZE = 1_000_000
FEW = 1_000

# A claim without this library: no schedule, no models, no pause.
RAW = """
UPDATE generations
SET status = 'processing', worker_id = 'raw', attempt = attempt + 1, version = version + 1,
    lease_expires_at = '2999-01-01 00:00:00'
WHERE id = (
    SELECT id FROM generations WHERE status = 'pending' ORDER BY priority DESC, scheduled_at, id LIMIT 1 {lock}
)
RETURNING *
"""
LOCK = {"sqlite": "", "postgresql": "FOR UPDATE SKIP LOCKED"}


def run(report: Report, *, size: int) -> None:
    for kind in KINDS:
        with scratch(kind) as place:
            backlogs = ("none", "many", "future", "others")
            few, many, future, others = (with_backlog(place, size, backlog) for backlog in backlogs)
            compare(
                report,
                f"{kind}: any model",
                {
                    f"{FEW:,} pending": claim(few),
                    f"{size:,} pending": claim(many),
                    f"{FEW:,} and {size:,} of higher priority tomorrow": claim(future),
                    f"{FEW:,}, the driver alone": claim_raw(few),
                },
            )
            compare(
                report,
                f"{kind}: one model",
                {
                    f"{FEW:,} pending": claim(few, model_names=["musicgen-small"]),
                    f"{FEW:,} and {size:,} of another model": claim(others, model_names=["musicgen-small"]),
                    f"{size:,} pending": claim(many, model_names=["musicgen-small"]),
                },
            )
            compare(
                report,
                f"{kind}: with a preferred model",
                {
                    f"{FEW:,} pending": claim(few, prefer_model="musicgen-large"),
                    f"{size:,} pending": claim(many, prefer_model="musicgen-large"),
                },
            )


def with_backlog(place: Scratch, size: int, backlog: str) -> Storage:
    storage = place.database()
    fill(storage, FEW)
    if backlog == "many":
        fill(storage, size, first=1)
    elif backlog == "future":
        fill(storage, size, first=1, priority=9, when="+1 day")
    elif backlog == "others":
        fill(storage, size, first=1, model_name="musicgen-large", when="-2 days")
    return storage


def claim(storage: Storage, **options: Any) -> Callable[[], object]:
    def call() -> object:
        with storage.session() as session:
            generation = claim_generation(session, "benchmark", **options)
        assert generation is not None
        return generation

    return call


def claim_raw(storage: Storage) -> Callable[[], object]:
    connection = storage.engine.raw_connection()
    statement = RAW.format(lock=LOCK[storage.backend.name])

    def call() -> object:
        if storage.backend.name == "sqlite":
            connection.execute("BEGIN IMMEDIATE")  # type: ignore[attr-defined]
        row = connection.execute(statement).fetchone()  # type: ignore[attr-defined]
        connection.commit()
        assert row is not None
        return row

    return call
