"""Backups of PostgreSQL: pg_dump's custom format, compared row for row with the moment that was dumped."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

from sqlalchemy import Engine, inspect

from ..errors import BackupError
from ..models import Base
from ..settings import child_environment
from .backup_dialect import Contents

CHECKSUM_BYTES: Final = 16
SERVICE: Final = "dgx_storage"
COMMON: Final = (f"--dbname=service={SERVICE}", "--no-owner", "--no-privileges")
LOCK_TIMEOUT_MS: Final = 10_000
COPY: Final = re.compile(rb"COPY (?P<table>\S+) \((?P<columns>.*)\) FROM stdin;\n")

# As pg_dump sets them, so that a row is the same text on both sides.
SETTINGS: Final = (
    "DateStyle = ISO",
    "IntervalStyle = POSTGRES",
    "extra_float_digits = 3",
    "synchronize_seqscans = off",
)
TABLES: Final = """
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname),
           string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    GROUP BY 1 ORDER BY 1
"""


class PostgreSQLBackups:
    """The backups of PostgreSQL; see BackupDialect. Needs pg_dump and pg_restore of the server's version or newer."""

    suffix = ".dump"

    def recognizes(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(5) == b"PGDMP"

    def write(self, engine: Engine, path: Path) -> Contents:
        target = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with (
            os.fdopen(target, "wb") as file,
            engine.connect() as connection,
            connection.execution_options(isolation_level="REPEATABLE READ").begin(),
        ):
            for setting in SETTINGS:
                connection.exec_driver_sql(f"SET LOCAL {setting}")
            snapshot = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
            # Not --file: a pg_dump that outlives us would create the file again, after the next backup deleted it.
            command = [_find_program("pg_dump"), *COMMON, "--format=custom", f"--snapshot={snapshot}"]
            with _service_file(engine) as environment:
                _run(command, environment, file)
            driver: Any = connection.connection.driver_connection
            return _summarize((table, _copied(driver, table, columns)) for table, columns in driver.execute(TABLES))

    def read(self, path: Path) -> Contents:
        if not self.recognizes(path):
            raise BackupError(f"{path} is neither an SQLite database nor an archive of pg_dump: use another backup")
        command = [_find_program("pg_restore"), "--file=-", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            contents = _summarize(_dumped(running.stdout))
            message = running.stderr.read().decode(errors="replace").strip()
        if running.returncode:
            raise BackupError(f"{path} is not a sound backup: {message or 'pg_restore failed'}")
        return contents

    def restore(self, engine: Engine, path: Path) -> Path | None:
        archived = {table.rpartition(".")[2] for table in self.read(path).row_counts}
        with engine.connect() as connection:
            present = set(inspect(connection).get_table_names())
        # pg_restore drops only what the archive holds; a table of a newer revision would stop the next upgrade.
        newer = sorted(present & Base.metadata.tables.keys() - archived)
        script = "".join(f"DROP TABLE {table};\n" for table in newer)
        dump = [_find_program("pg_restore"), "--clean", "--if-exists", "--no-owner", "--no-privileges", "--file=-"]
        psql = [_find_program("psql"), f"--dbname=service={SERVICE}", "--no-psqlrc", "--quiet"]
        with _service_file(engine) as environment:
            _pipe([*dump, str(path)], [*psql, "--set=ON_ERROR_STOP=1"], script.encode(), environment)
        engine.pool.dispose()  # other processes prepare their statements again by themselves
        return None


def _pipe(source: list[str], target: list[str], first: bytes, environment: dict[str, str]) -> None:
    """Run `first` and the output of `source` in psql, as one transaction. Raises BackupError if a program fails.

    Not with --single-transaction: if this process was killed, psql would commit the part that it had read.
    """
    with (
        subprocess.Popen(source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer,
        subprocess.Popen(
            target, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as reader,
    ):
        assert writer.stdout is not None
        assert reader.stdin is not None
        assert reader.stderr is not None
        with suppress(BrokenPipeError):  # the reader has ended with an error
            reader.stdin.write(b"BEGIN;\n" + first)
            shutil.copyfileobj(writer.stdout, reader.stdin)
            reader.stdin.flush()
        writer.stdout.close()
        with suppress(BrokenPipeError):
            if writer.wait() == 0:  # else psql rolls back
                reader.stdin.write(b"COMMIT;\n")
            reader.stdin.close()
        message = reader.stderr.read().decode(errors="replace").strip().splitlines()
        if reader.wait() or writer.returncode:
            raise BackupError(f"the restore failed: {message[0] if message else 'the archive cannot be read'}")


def _find_program(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        raise BackupError(f"{name} was not found: install the PostgreSQL client programs and put them in PATH")
    return program


@contextmanager
def _service_file(engine: Engine) -> Iterator[dict[str, str]]:
    """Yield an environment in which libpq connects as the engine does; no argument and no variable holds a password."""
    _, arguments = engine.dialect.create_connect_args(engine.url)
    settings = {name: value for name, value in arguments.items() if isinstance(value, (str, int))}
    settings["options"] = f"{settings.get('options', '')} -c lock_timeout={LOCK_TIMEOUT_MS}".strip()
    with TemporaryDirectory(prefix="dgx-storage-") as folder:
        file = Path(folder) / "service.conf"
        lines = [f"[{SERVICE}]", *(f"{name}={value}" for name, value in settings.items())]
        file.touch(mode=0o600)
        file.write_text("\n".join(lines) + "\n")
        yield child_environment(PGSERVICEFILE=str(file), LC_MESSAGES="C")


def _run(command: list[str], environment: dict[str, str], output: IO[bytes]) -> None:
    errors = subprocess.PIPE
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, check=False)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().splitlines()
        raise BackupError(
            f"{Path(command[0]).name} failed: {message[0] if message else f'exit code {done.returncode}'}"
        )


def _copied(driver: Any, table: str, columns: str) -> Iterator[bytes]:
    """Yield the rows of a table, as COPY writes them, in pieces that may end anywhere."""
    with closing(driver.cursor()) as cursor, cursor.copy(f"COPY {table} ({columns}) TO STDOUT") as rows:
        yield from map(bytes, rows)


def _dumped(script: IO[bytes]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each table of a dump with the rows that its COPY block holds."""
    for line in script:
        if found := COPY.fullmatch(line):
            yield found["table"].decode(), iter(lambda: _next_row(script), b"")


def _next_row(script: IO[bytes]) -> bytes:
    line = script.readline()
    return b"" if line == b"\\.\n" else line


def _summarize(tables: Iterable[tuple[str, Iterator[bytes]]]) -> Contents:
    digests: dict[str, bytes] = {}
    counts: dict[str, int] = {}
    revision = None
    for table, pieces in tables:
        digest = blake2b(digest_size=CHECKSUM_BYTES)
        counts[table] = 0
        for piece in pieces:
            counts[table] += piece.count(b"\n")
            digest.update(piece)
            if table.endswith(".alembic_version"):
                revision = piece.decode().strip()
        digests[table] = digest.digest()
    whole = blake2b(digest_size=CHECKSUM_BYTES)
    for table in sorted(digests):
        whole.update(table.encode() + digests[table])
    return Contents(revision, dict(sorted(counts.items())), whole.hexdigest())
