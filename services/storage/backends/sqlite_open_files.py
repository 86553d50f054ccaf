"""The SQLite connections that this process has open, so that none is opened where it could damage a file.

SQLite keeps the state of a file's locks in the memory of the process. A forked child has a copy of its parent's state,
so it would read and write without locks or wait for ever. Two copies of SQLite in one process know nothing of each
other, and each would drop the other's locks (https://sqlite.org/howtocorrupt.html, 2.2 and 2.6). See ADR 28.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from sqlalchemy import URL, Engine, event

from ..errors import DriverMissingError, UnsafeOpenError
from .sqlite_files import is_memory, open_url, path_of


class _Open(NamedTuple):
    database: Hashable
    module: str
    connection: Any


_open: dict[int, _Open] = {}  # by the identity of the connection, or of the attempt to open one
_inherited: dict[int, _Open] = {}  # kept, because closing one would change the parent's files


def load_module(name: str) -> Any:
    """Return the DB-API module "sqlite3" or "pysqlite3". Raises DriverMissingError if it is not installed."""
    try:
        return import_module(f"{name}.dbapi2")
    except ModuleNotFoundError as error:
        raise DriverMissingError(
            f"{name} is not installed: pip install 'dgx-music-storage[sqlite]', or unset DATABASE_SQLITE_MODULE.",
            orig=error,
        ) from error


def watch(engine: Engine, url: URL, configure: Callable[[Any, Any], None]) -> None:
    """Open and configure the connections of `engine` here, with `configure(connection, record)`.

    Raises UnsafeOpenError where a connection could damage the file. Never creates the file.
    """
    name = None if is_memory(url) else engine.dialect.create_connect_args(open_url(url))[0]

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        connection = open_connection(dialect, url, name or arguments, parameters | {"uri": True})
        try:
            configure(connection, record)
        except BaseException:
            close_connection(connection)  # SQLAlchemy 2.0 would leave it to the garbage collector
            raise
        return connection

    @event.listens_for(engine, "close")
    def close(connection: Any, record: Any) -> None:
        _open.pop(id(connection), None)

    @event.listens_for(engine, "close_detached")
    def close_detached(connection: Any) -> None:
        _open.pop(id(connection), None)


def open_connection(dialect: Any, url: URL, arguments: Sequence[Any], parameters: dict[str, Any]) -> Any:
    """Open a connection of the driver. Raises UnsafeOpenError where it could damage the file."""
    database, module = _identity(url), dialect.loaded_dbapi.__name__.partition(".")[0]
    _refuse_unsafe(database, module)
    attempt = object()  # counts as open: a fork meanwhile would copy half of it
    _open[id(attempt)] = _Open(database, module, attempt)
    try:
        connection = dialect.connect(*arguments, **parameters)
        _open[id(connection)] = _Open(database, module, connection)
    finally:
        del _open[id(attempt)]
    return connection


def close_connection(connection: Any) -> None:
    """Close a connection of open_connection()."""
    connection.close()
    _open.pop(id(connection), None)


def refuse_inherited(connection: Any) -> None:
    """Raise UnsafeOpenError for a connection that was open when this process was forked."""
    if _inherited and id(connection) in _inherited:
        raise UnsafeOpenError


def _refuse_unsafe(database: Hashable, module: str) -> None:
    if any(each.database == database for each in _inherited.values()):
        raise UnsafeOpenError
    others = {each.module for each in list(_open.values()) if each.database == database} - {module}
    if others:
        raise UnsafeOpenError(
            f"The database is open in this process through {min(others)}, which is another copy of SQLite than "
            f"{module}. Each would drop the locks of the other: use one sqlite_module in a process."
        )


def _identity(url: URL) -> Hashable:
    """Return what identifies the database in this process: device and inode, as for SQLite itself."""
    if is_memory(url):
        return url.database
    try:
        status = os.stat(path_of(url))
    except OSError:
        return object()  # equal to no other; opening it will fail
    return status.st_dev, status.st_ino


def _inherit() -> None:
    _inherited.update(_open)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)
