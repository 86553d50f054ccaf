"""A proxy before a PostgreSQL server that loses the answer to a commit, as a failing network or load balancer does."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from sqlalchemy import URL, make_url

Fate = Literal["pass", "lose the answer", "lose the commit"]
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"  # the Query message of PostgreSQL's protocol
ROLLBACK = b"Q\x00\x00\x00\x0dROLLBACK\x00"
WRITE = b"UPDATE generations"  # outside a transaction it commits itself, as the steps of a worker do


class Proxy:
    """Forwards connections to the server at `url`; `fate` decides about each commit that a client sends.

    "lose the answer" lets the server commit and then drops the client; "lose the commit" drops the client before the
    server has seen the commit. A COMMIT is one, and an UPDATE outside a transaction.
    """

    def __init__(self, url: str, fate: Callable[[], Fate]) -> None:
        self.fate = fate
        self._server = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address of the database through the proxy."""
        url: URL = self._server.set(host="127.0.0.1", port=self._listener.getsockname()[1], query={})
        return url.render_as_string(hide_password=False)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        links: list[_Link] = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            links.append(_Link(client, self._connect(), self.fate))
        for link in links:
            link.close()

    def _connect(self) -> socket.socket:
        folder = self._server.query.get("host")
        if folder is None:
            return socket.create_connection((self._server.host, self._server.port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{folder}/.s.PGSQL.{self._server.port or 5432}")
        return server


class _Link:
    """One client's connection and the threads that forward what it and the server send."""

    def __init__(self, client: socket.socket, server: socket.socket, fate: Callable[[], Fate]) -> None:
        self.client, self.server, self.fate = client, server, fate
        self.is_losing_answer = self.is_in_transaction = False
        self.threads = [threading.Thread(target=work) for work in (self._forward_requests, self._forward_answers)]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self._drop()
        for thread in self.threads:
            thread.join()
        self.client.close()
        self.server.close()

    def _forward_requests(self) -> None:
        while data := _receive(self.client):
            fate = self.fate() if self._is_commit(data) else "pass"
            if fate == "lose the commit":
                break
            self.is_losing_answer = fate == "lose the answer"
            if not _send(self.server, data):
                break
            if self.is_losing_answer:
                return  # the other thread drops the client once the server has answered
        self._drop()

    def _is_commit(self, data: bytes) -> bool:
        if b"BEGIN" in data:
            self.is_in_transaction = True
        elif data.endswith((COMMIT, ROLLBACK)):
            self.is_in_transaction = False
            return data.endswith(COMMIT)
        return WRITE in data and not self.is_in_transaction

    def _forward_answers(self) -> None:
        while (data := _receive(self.server)) and not self.is_losing_answer and _send(self.client, data):
            pass
        self._drop()

    def _drop(self) -> None:
        for end in (self.client, self.server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is shut down already


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(65_536)
    except OSError:
        return b""


def _send(end: socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:
        return False
    return True


@contextmanager
def proxied(url: str, fate: Callable[[], Fate]) -> Iterator[Proxy]:
    """Open a proxy before the database at `url`."""
    proxy = Proxy(url, fate)
    try:
        yield proxy
    finally:
        proxy.close()
