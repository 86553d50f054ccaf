"""Point-in-time recovery with Litestream, as docs/how-to/back-up-and-restore.md describes it."""

import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.storage import (
    backup_database,
    check_database,
    count_generations,
    create_generations,
    migrations,
    verify_backup,
)
from tests.support.factories import a_request
from tests.support.sessions import opened, path_of

LITESTREAM = Path(sysconfig.get_path("scripts")) / "litestream"
CHECKPOINTED_BYTES = 4 * 1024 * 1024  # from this size of the -wal on the library checkpoints too
PATIENCE_SECONDS = 60


@pytest.fixture
def config(sqlite_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "litestream.yml"
    path.write_text(
        f"dbs:\n  - path: {path_of(sqlite_url)}\n    replica:\n      type: file\n"
        f"      path: {tmp_path / 'replica'}\n      sync-interval: 100ms\n"
    )
    return path


@contextmanager
def replicated(config: Path, log: Path) -> Iterator[None]:
    """Run Litestream until the end of the block, which begins after its first snapshot."""
    with log.open("w") as output:
        process = subprocess.Popen([LITESTREAM, "replicate", "-config", config], stdout=output, stderr=output)
        try:
            wait_until(lambda: "snapshot complete" in log.read_text())
            yield
        finally:
            process.terminate()  # it replicates what is left, then ends
            process.wait()


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def restore(config: Path, source: Path, target: Path, *options: str) -> None:
    subprocess.run([LITESTREAM, "restore", "-config", config, "-o", target, *options, source], check=True)


def rows_replicated(config: Path, source: Path, target: Path) -> int:
    target.unlink(missing_ok=True)
    restore(config, source, target)
    return verify_backup(target).row_counts["generations"]


def test_every_commit_is_replicated_and_an_earlier_moment_can_be_restored(
    sqlite_url: str, config: Path, tmp_path: Path
) -> None:
    source, parameters = path_of(sqlite_url), {"text": "x" * 30_000}
    with opened(sqlite_url) as storage, replicated(config, tmp_path / "log"):
        stored = 0
        while stored < 3 * CHECKPOINTED_BYTES // 30_000:
            with storage.session() as session:
                stored += len(create_generations(session, [a_request(parameters=parameters) for _ in range(10)]))
            time.sleep(0.01)  # Litestream needs the write lock now and then
        # Litestream replicates every 100 ms, later on a busy machine; -timestamp has whole seconds.
        wait_until(lambda: rows_replicated(config, source, tmp_path / "so far.db") == stored)
        time.sleep(1)
        moment = datetime.now(UTC)
        time.sleep(1)
        with storage.session() as session:
            create_generations(session, [a_request()])
        # Both checkpoint the same -wal; a backup and a check go on beside them.
        backup = backup_database(tmp_path / "copy.db", storage=storage)
        assert backup.row_counts["generations"] == stored + 1
        assert check_database(storage=storage).findings == ()
    for name, options, expected in (
        ("all.db", (), stored + 1),
        ("earlier.db", ("-timestamp", f"{moment:%Y-%m-%dT%H:%M:%SZ}"), stored),
    ):
        restore(config, source, tmp_path / name, *options)
        assert verify_backup(tmp_path / name).row_counts["generations"] == expected
        with opened(f"sqlite:///{tmp_path / name}") as restored:
            assert migrations.check(restored) == []
            with restored.session() as session:
                assert count_generations(session) == expected
