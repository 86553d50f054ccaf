"""The verb that shows the database in a browser: admin."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from secrets import token_urlsafe
from subprocess import DEVNULL, Popen

import click

from ..engine import Storage
from .app import commands
from .output import echo_err, open_storage, sanitize

BUSY_SECONDS = 2.0  # a page says that the database is locked instead of waiting any longer
STOP_SECONDS = 10.0
NICENESS = 10  # whoever looks at the queue must not slow it: workers and the API get the processor first


@commands.command()
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", metavar="N", default=8765, show_default=True, type=click.IntRange(0, 65_535))
@click.option(
    "--outputs",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Play files only below DIR.  [default: the folder outputs]",
)
@click.option("--token", metavar="TEXT", envvar="DGX_STORAGE_ADMIN_TOKEN", show_envvar=True, help="Ask for this token.")
@click.option("--allow-host", "allowed_hosts", metavar="NAME", multiple=True, help="Also answer under this host name.")
@click.option("--hide-prompts", is_flag=True, help="Show no prompts, nor what may quote them.")
@click.pass_obj
def admin(
    database_url: str | None,
    host: str,
    port: int,
    outputs: Path | None,
    token: str | None,
    allowed_hosts: tuple[str, ...],
    hide_prompts: bool,
) -> None:
    """Show the queue and the history in a browser, until Ctrl-C.

    Nothing can be changed there. On another address than this computer's own, visitors need a token: --token, or a new
    one that is printed. Without a database, it shows the newest one of the demo, and runs the demo if there is none.
    """
    try:
        import uvicorn

        from ..admin import create_app
    except ImportError as error:
        message = f"The page needs {error.name}: pip install 'dgx-music-storage[admin]'"
        raise click.ClickException(message) from error

    listener = _listen(host, port)
    if not token and not _is_loopback(host):
        token = token_urlsafe(24)
    with listener, _open(database_url, outputs) as (storage, folder):
        app = create_app(storage, outputs=folder, token=token, allowed_hosts=allowed_hosts, hide_prompts=hide_prompts)
        address = f"[{host}]" if ":" in host else host
        query = f"?token={token}" if token else ""
        os.nice(NICENESS)
        echo_err(f"Showing {storage.display_url}")
        click.echo(f"http://{address}:{listener.getsockname()[1]}/{query}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        message = (
            f"Cannot listen on {sanitize(host)}, port {port}: {os.strerror(error.errno or 0)}. Try another --port."
        )
        raise click.ClickException(message) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _open(database_url: str | None, outputs: Path | None) -> Iterator[tuple[Storage, Path | None]]:
    """Open the database and choose the folder of its files; those of the demo if there is no database."""
    with open_storage(database_url, busy_timeout=BUSY_SECONDS) as storage:
        if database_url or storage.backend.is_present(storage.url):
            default = Path("outputs")
            yield storage, outputs or (default if default.is_dir() else None)
            return
        echo_err(f"There is no database at {storage.display_url} yet, so this is the one of the demo.")
    from ..demo import DATABASE_NAME, SCRATCH_PREFIX, find_scratch

    found = find_scratch()
    folder = found or Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    url = f"sqlite:///{folder / DATABASE_NAME}"
    with open_storage(url, busy_timeout=BUSY_SECONDS) as storage:
        if found:
            yield storage, folder
            return
        with _demo(storage, url, folder):
            yield storage, folder


@contextmanager
def _demo(storage: Storage, url: str, folder: Path) -> Iterator[None]:
    """Run the demo beside the page."""
    from ..migrations import upgrade

    upgrade(storage)  # here, so that the first page has a database
    command = [sys.executable, "-m", "services.storage", "demo", "--database-url", url, "--outputs", str(folder)]
    with Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)
