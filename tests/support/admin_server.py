"""Serve the admin page over HTTP in this process, and ask it as a program would."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from services.storage import Storage
from services.storage.admin import create_app


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a free port; yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def admin_client(storage: Storage | None, **options: Any) -> Iterator[httpx.Client]:
    """Serve the page of a database; yield a client of it."""
    with served(create_app(storage, **options)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client
