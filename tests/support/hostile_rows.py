"""Rows that this library would not write, but that older releases and other programs have stored."""

import json
from random import Random
from typing import Any

from sqlalchemy import text, update

from services.storage import Base, Storage
from tests.support.copy_process import fill
from tests.support.rows_that_break_checks import unchecked

TEXTS = (
    'quote " and \\ back\\slash', "'; DROP TABLE prompts; --", "line\nbreak\r\n\ttab", "a\u2028b\u2029c\x85d",
    "\x01\x1b[2J\x7f", "音楽 🎵 e\u0301", "\u202eright to left", "\ufeffmark", "\U0010ffff", "{}", "null", "NaN",
    "%s %(x)s :name", " padded ", "x" * 10_000,
)  # fmt: skip
DOCUMENTS = (
    '{"seed": 18446744073709551615}', '{"huge": 100000000000000000000000000000}', '{"bpm": NaN}', '{"x": -Infinity}',
    '{"x": 1e400}', '{"b": 1, "a": {"d": 2, "c": [3, -0.0, 1e16, 5e-324]}}', '{"z": "\\u0000"}', '{"z": "\\ud800"}',
    "not JSON", "", "[1, 2]", '"a string"', '"{}"', "17", "true", "null", '{"a": 1, "a": 2}', '{"": null}',
    '{"u": "\\u2028 \\"quoted\\" \\\\ é 音"}', "[" * 50 + "]" * 50, json.dumps({"long": "x" * 70_000}),
)  # fmt: skip


def fill_with_hostile_rows(storage: Storage, count: int, seed: int) -> None:
    """Store `count` generations; the metadata, parameters and texts of most are what other programs store."""
    random = Random(seed)
    fill(storage, count, seed=seed)
    is_text_kept = storage.backend.name == "sqlite"
    with unchecked(storage) as connection:
        ids = connection.execute(text("SELECT id FROM generations ORDER BY id")).scalars().all()
        for generation_id in ids:
            values: dict[str, Any] = {
                column: random.choice((None, *TEXTS[:-1]))
                for column in ("model_version", "worker_id", "current_step", "batch_id", "file_format", "error_message")
            }
            values |= {"model_name": random.choice(TEXTS[:-1]), "file_path": random.choice(TEXTS[:-1])}
            if is_text_kept:
                values |= {column: random.choice((None, *DOCUMENTS)) for column in ("metadata", "parameters")}
            assignments = ", ".join(f"{column} = :{column}" for column in values)
            statement = text(f"UPDATE generations SET {assignments} WHERE id = :id")
            connection.execute(statement, values | {"id": generation_id})
        tables = Base.metadata.tables
        for number, one in enumerate(TEXTS):
            connection.execute(
                update(tables["attempts"])
                .where(tables["attempts"].c.generation_id == ids[number % len(ids)])
                .values(worker_id=one[:255], error_message=one * 3)
            )
        connection.execute(tables["queue_state"].insert(), {"id": 1, "paused_at": None, "reason": TEXTS[0]})
        totals = [
            {"hour": number, "model_name": one[:255], "event": "completed", "count": 2**40 + number}
            for number, one in enumerate(TEXTS)
        ]
        connection.execute(tables["usage_totals"].insert(), totals)
        connection.execute(tables["pruned_files"].insert(), [{"path": one[:255]} for one in TEXTS])
        workers = [
            {
                "id": one[:255],
                "host": one[:255],
                "pid": number,
                "model_names": sorted([one[:255], "m"]),
                "device": one[:255],
            }
            for number, one in enumerate(TEXTS)
        ]
        connection.execute(tables["workers"].insert(), workers)
