"""A history of any number of prompts and generations for benchmarks; it depends only on the size."""

import csv
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from services.storage import Storage, migrations

START = datetime(2025, 11, 1, tzinfo=UTC)
STATUSES = (("completed", 0.9), ("failed", 0.05), ("pending", 0.05))
WORDS = (
    "warm dusty soft slow bright dark heavy gentle distant broken golden electric acoustic analog vinyl piano guitar "
    "bass drums strings choir synth flute trumpet violin harp sitar banjo organ house techno trap jazz ambient folk "
    "soul reggae salsa waltz ballad groove melody rhythm chords arpeggio solo loop intro bridge drop riff texture"
).split()
PROMPT = ["id", "text", "used_count", "first_used_at", "last_used_at"]
GENERATION = (
    "id prompt prompt_id model_name duration_seconds sample_rate channels file_path status created_at completed_at "
    "generation_time_seconds metadata priority scheduled_at attempt max_attempts is_favorite version"
).split()


def build(storage: Storage, size: int, prompts: str | None = None, *, start: datetime = START) -> float:
    """Fill an empty database with `size` prompts and as many generations; return the seconds it took.

    One prompt in 10,000 contains the word waterphone, every prompt the word take; 30 % of the generations repeat an
    earlier prompt. The first row is as old as `start`. `prompts` names a file of real prompts: .csv with a column
    caption or .json of objects with overall_prompt.
    """
    started = time.perf_counter()
    migrations.upgrade(storage)
    phrases = read_phrases(prompts)
    generator = random.Random(1)
    texts = [_text(generator, phrases, number) for number in range(1, size + 1)]
    connection: Any = storage.engine.raw_connection()
    cursor = connection.cursor()
    if storage.backend.name == "sqlite":
        cursor.execute("BEGIN IMMEDIATE")
    for table, columns, rows in (
        ("prompts", PROMPT, _prompts(generator, texts, start)),
        ("generations", GENERATION, _generations(generator, texts, start)),
    ):
        if storage.backend.name == "sqlite":
            places = ", ".join("?" * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)
        else:
            with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
    connection.commit()
    if storage.backend.name == "postgresql":
        connection.driver_connection.autocommit = True
        cursor.execute("VACUUM ANALYZE")
        connection.driver_connection.autocommit = False
    connection.close()
    return time.perf_counter() - started


def read_phrases(path: str | None) -> list[str]:
    """Return the phrases that prompts consist of: those of a file, or random words."""
    if path is None:
        generator = random.Random(2)
        return [" ".join(generator.sample(WORDS, 6)) for _ in range(20_000)]
    if path.endswith(".csv"):
        with Path(path).open(newline="", encoding="utf-8") as lines:
            texts = [row["caption"] for row in csv.DictReader(lines)]
    else:
        texts = [item["overall_prompt"] for item in json.loads(Path(path).read_text(encoding="utf-8"))]
    return [phrase.strip() for text in texts for phrase in re.split(r"[.,\n]", text) if 10 < len(phrase.strip()) < 80]


def median_ms(operation: Callable[[], Any], rounds: int = 7) -> float:
    """Return the median time of `rounds` calls, in milliseconds.

    The first call, which fills the caches, is not counted, nor are the next 20 of a fast operation: the driver prepares
    a statement at its sixth execution on a connection, and PostgreSQL may change to a generic plan after five more.
    """
    started = time.perf_counter()
    operation()
    if time.perf_counter() - started < 0.5:
        for _ in range(20):
            operation()
    timings = []
    for _ in range(rounds):
        started = time.perf_counter()
        operation()
        timings.append(time.perf_counter() - started)
    return sorted(timings)[rounds // 2] * 1000


def raw(engine: Engine, statement: str) -> Callable[[], Any]:
    """Return a function that fetches the rows of a statement with the driver alone, on one connection."""
    connection: Any = engine.raw_connection()

    def fetch() -> Any:
        cursor = connection.cursor()
        rows = cursor.execute(statement).fetchall()
        connection.rollback()
        return rows

    return fetch


def time_of(number: int, start: datetime = START) -> str:
    """Return created_at of row `number` in SQLite's stored form; there is one row every 18 seconds."""
    return (start + timedelta(seconds=18 * number)).replace(tzinfo=None).isoformat(" ", "microseconds")


def _text(generator: random.Random, phrases: list[str], number: int) -> str:
    rare = ", waterphone" if number % 10_000 == 0 else ""
    phrase, other = generator.choice(phrases), generator.choice(phrases)
    return f"{phrase}, {other} at {generator.randint(60, 180)} BPM{rare}, take {number}"


def _prompts(generator: random.Random, texts: list[str], start: datetime) -> Iterator[tuple[Any, ...]]:
    for number, text in enumerate(texts, 1):
        at = time_of(number, start)
        yield number, text, min(int(generator.paretovariate(1)), 100_000), at, at


def _generations(generator: random.Random, texts: list[str], start: datetime) -> Iterator[tuple[Any, ...]]:
    statuses, weights = zip(*STATUSES, strict=True)
    for number in range(1, len(texts) + 1):
        prompt = number if generator.random() < 0.7 else generator.randint(1, number)
        status = generator.choices(statuses, weights)[0]
        at, finished = time_of(number, start), status != "pending"
        yield (
            f"01a00000-0000-7000-8000-{number:012d}",
            texts[prompt - 1],
            prompt,
            f"model-{number % 3}",
            16.0,
            32_000,
            2,
            f"outputs/{number}.wav",
            status,
            at,
            time_of(number + 1, start) if finished else None,
            generator.lognormvariate(2.9, 0.3) if status == "completed" else None,
            json.dumps({"bpm": generator.randint(60, 180)}),
            0,
            at,
            int(finished),
            3,
            number % 100 == 0,
            1,
        )
