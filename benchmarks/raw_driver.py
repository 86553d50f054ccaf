"""The bare driver: what a careful program writes by hand for the same rows, indexes, triggers and durability.

One connection, fixed SQL, one round trip an operation where the database can. No validation, no objects.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from services.storage.types import uuid7

FIELDS = (
    "id prompt model_name duration_seconds sample_rate channels file_path status created_at metadata prompt_id "
    "priority scheduled_at attempt max_attempts is_favorite version"
).split()
DUE = (
    "SELECT id FROM generations WHERE status = 'pending' AND scheduled_at <= {now} "
    "ORDER BY priority DESC, scheduled_at, id LIMIT 1"
)
PAGE = "SELECT * FROM generations ORDER BY created_at DESC, id DESC LIMIT 100"
ENDED = (
    "INSERT INTO attempts (generation_id, number, worker_id, started_at, finished_at, outcome) "
    "SELECT id, attempt, worker_id, started_at, {now}, 'completed' FROM generations "
    "WHERE id = {p} AND worker_id = {p} AND attempt = {p} AND status = 'processing'"
)
COMPLETED = (
    "UPDATE generations SET status = 'completed', completed_at = {now}, generation_time_seconds = {p}, "
    "file_size_bytes = {p}, metadata = {merged}, worker_id = NULL, lease_expires_at = NULL, version = version + 1 "
)


class RawSQLite:
    """Python's sqlite3. Times are text, made by Python as the library makes them."""

    def __init__(self, path: str, synchronous: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=60)
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.connection.execute(f"PRAGMA synchronous = {synchronous}")
        self.connection.execute("PRAGMA temp_store = MEMORY")
        self.connection.execute("PRAGMA cache_size = -65536")
        self.attempt = _position(self.connection.execute("SELECT * FROM generations LIMIT 0"), "attempt")

    def create(self, prompt: str) -> str:
        execute, now, key = self.connection.execute, _now(), uuid7()
        execute("BEGIN IMMEDIATE")
        (prompt_id,) = execute(
            "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) VALUES (?, 1, ?, ?) "
            "ON CONFLICT (text) DO UPDATE SET used_count = used_count + 1, last_used_at = excluded.last_used_at "
            "RETURNING id",
            (prompt, now, now),
        ).fetchone()
        execute(INSERT_SQLITE, _row(key, prompt, prompt_id, now, False))
        execute("COMMIT")
        return key

    def claim(self) -> Any:
        now, until = datetime.now(UTC), datetime.now(UTC) + timedelta(seconds=60)
        cursor = self.connection.execute(
            "UPDATE generations SET status = 'processing', worker_id = 'raw', attempt = attempt + 1, started_at = ?1, "
            f"lease_expires_at = ?2, version = version + 1 WHERE id = ({DUE.format(now='?1')}) RETURNING *",
            (_text(now), _text(until)),
        )
        rows = cursor.fetchall()
        return (rows[0][0], "raw", rows[0][self.attempt]) if rows else None

    def complete(self, lease: Any) -> Any:
        execute, now = self.connection.execute, _now()
        execute("BEGIN IMMEDIATE")
        execute(ENDED.format(now="?", p="?"), (now, *lease))
        rows = execute(
            COMPLETED.format(now="?", p="?", merged="json_patch(coalesce(metadata, '{}'), ?)")
            + "WHERE id = ? RETURNING *",
            (now, 18.5, 5_242_880, '{"bpm": 140, "key": "Cm"}', lease[0]),
        ).fetchall()
        execute("COMMIT")
        return rows[0]

    def get(self, key: str) -> Any:
        return self.connection.execute("SELECT * FROM generations WHERE id = ?", (key,)).fetchone()

    def page(self) -> Any:
        return self.connection.execute(PAGE).fetchall()

    def create_many(self, prompts: Sequence[str]) -> None:
        now = _now()
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) VALUES (?, 1, ?, ?) "
            "ON CONFLICT (text) DO UPDATE SET used_count = used_count + 1, last_used_at = excluded.last_used_at",
            [(prompt, now, now) for prompt in prompts],
        )
        ids = dict(self.connection.execute("SELECT text, id FROM prompts").fetchall())
        rows = [_row(uuid7(), prompt, ids[prompt], now, False) for prompt in prompts]
        self.connection.executemany(INSERT_SQLITE, rows)
        self.connection.execute("COMMIT")

    def close(self) -> None:
        self.connection.close()


class RawPostgreSQL:
    """psycopg 3 in autocommit: every operation is one statement."""

    def __init__(self, url: str, synchronous: str) -> None:
        import psycopg

        self.connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)
        self.attempt = _position(self.connection.execute("SELECT * FROM generations LIMIT 0"), "attempt")

    def create(self, prompt: str) -> str:
        now, key = datetime.now(UTC), uuid7()
        names = [name for name in FIELDS if name != "prompt_id"]
        row = dict(zip(FIELDS, _row(key, prompt, None, now, True), strict=True))
        self.connection.execute(
            "WITH counted AS (INSERT INTO prompts (text, used_count, first_used_at, last_used_at) "
            "VALUES (%s, 1, %s, %s) ON CONFLICT (md5(text)) DO UPDATE SET used_count = prompts.used_count + 1, "
            "last_used_at = excluded.last_used_at RETURNING id) "
            f"INSERT INTO generations ({', '.join(names)}, prompt_id) "
            f"SELECT {', '.join(CASTS.get(name, '%s') for name in names)}, id FROM counted",
            (prompt, now, now, *(row[name] for name in names)),
        )
        return key

    def claim(self) -> Any:
        due = DUE.format(now="(SELECT clock_timestamp())") + " FOR UPDATE SKIP LOCKED"
        row = self.connection.execute(
            "UPDATE generations SET status = 'processing', worker_id = 'raw', attempt = attempt + 1, "
            "started_at = clock_timestamp(), lease_expires_at = clock_timestamp() + interval '60 seconds', "
            f"version = version + 1 WHERE id = ({due}) RETURNING *"
        ).fetchone()
        return None if row is None else (row[0], "raw", row[self.attempt])

    def complete(self, lease: Any) -> Any:
        row = self.connection.execute(
            f"WITH ended AS ({ENDED.format(now='clock_timestamp()', p='%s')} FOR UPDATE RETURNING generation_id) "
            + COMPLETED.format(now="clock_timestamp()", p="%s", merged="coalesce(metadata, '{}') || %s::jsonb")
            + "FROM ended WHERE id = ended.generation_id RETURNING generations.*",
            (*lease, 18.5, 5_242_880, '{"bpm": 140, "key": "Cm"}'),
        ).fetchone()
        assert row is not None
        return row

    def get(self, key: str) -> Any:
        return self.connection.execute("SELECT * FROM generations WHERE id = %s", (key,)).fetchone()

    def page(self) -> Any:
        return self.connection.execute(PAGE).fetchall()

    def create_many(self, prompts: Sequence[str]) -> None:
        now = datetime.now(UTC)
        with self.connection.transaction():
            found = self.connection.execute(
                "INSERT INTO prompts (text, used_count, first_used_at, last_used_at) "
                "SELECT text, count(*), %s, %s FROM unnest(%s::text[]) AS text GROUP BY text ON CONFLICT (md5(text)) "
                "DO UPDATE SET used_count = prompts.used_count + excluded.used_count, "
                "last_used_at = excluded.last_used_at RETURNING text, id",
                (now, now, list(prompts)),
            )
            ids: dict[str, int] = dict(found.fetchall())
            insert = f"INSERT INTO generations ({', '.join(FIELDS)}) VALUES ({', '.join(['%s'] * len(FIELDS))})"
            rows = [_row(uuid7(), prompt, ids[prompt], now, True) for prompt in prompts]
            self.connection.cursor().executemany(insert, rows)

    def close(self) -> None:
        self.connection.close()


INSERT_SQLITE = f"INSERT INTO generations ({', '.join(FIELDS)}) VALUES ({', '.join('?' * len(FIELDS))})"
CASTS = {"metadata": "%s::jsonb", "created_at": "%s::timestamptz", "scheduled_at": "%s::timestamptz"}


def _position(cursor: Any, column: str) -> int:
    return [described[0] for described in cursor.description].index(column)


def _row(key: str, prompt: str, prompt_id: int | None, now: Any, no: Any) -> tuple[Any, ...]:
    return (
        *(key, prompt, "musicgen-small", 16.0, 32_000, 2, "outputs/a.wav", "pending", now),
        *('{"genre": "hip hop"}', prompt_id, 0, now, 0, 3, no, 1),
    )


def _text(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat(" ", "microseconds")


def _now() -> str:
    return _text(datetime.now(UTC))
