"""Settings: database URLs, environment variables and engine options. The only module that reads the environment.

Opens no database.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .defaults import BUSY_TIMEOUT_SECONDS
from .errors import DatabaseURLError

DEFAULT_DATABASE_URL: Final = "sqlite:///data/generations.db"
SECRET_WORDS: Final = ("pass", "pwd", "secret", "token", "key")
SQLITE_MODULES: Final = ("sqlite3", "pysqlite3")
BOOLEANS: Final = {
    "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False
}  # fmt: skip

# Patterns as text: `import services.storage` compiles none of them.
CONTROL_CHARACTER: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"

# libpq's form for several hosts, postgresql://user@first:5432,second:5433/name, which SQLAlchemy cannot parse
MANY_HOSTS: Final = r"(?s)(?P<head>postgresql[^:]*://(?:[^@/?]*@)?)(?P<hosts>[^@/?]*,[^@/?]*)(?P<tail>(?:[/?].*)?)"


@dataclass(frozen=True)
class EngineOptions:
    """The options of a database's engines; times are in seconds. Raises ValueError or TypeError naming the option.

    `echo` logs SQL. SQLite: with `synchronous` FULL, a power failure loses no acknowledged commit; with NORMAL it may
    lose the last ones. `sqlite_module` "pysqlite3" uses the SQLite of that package instead of Python's own.
    `busy_timeout` is the maximum wait for another writer. PostgreSQL: `connect_timeout` and the three options after it,
    where 0 means no timeout; `replica_max_lag` is the maximum age of what a replica returns; set `pgbouncer` if
    connections go through PgBouncer in transaction mode. Without `wakeup`, idle workers only poll, and PostgreSQL sends
    them no notifications.
    """

    echo: bool = False
    synchronous: str = "FULL"
    sqlite_module: str = "sqlite3"
    busy_timeout: float = BUSY_TIMEOUT_SECONDS
    pool_size: int = 5
    max_overflow: int = 10
    pool_timeout: float = 30.0
    pool_recycle: float = 1800.0
    connect_timeout: float = 5.0
    statement_timeout: float = 60.0
    lock_timeout: float = 10.0
    idle_transaction_timeout: float = 300.0
    replica_max_lag: float = 10.0
    pgbouncer: bool = False
    wakeup: bool = True

    def __post_init__(self) -> None:
        if self.synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be FULL or NORMAL, not {self.synchronous!r}")
        if self.sqlite_module not in SQLITE_MODULES:
            raise ValueError(f"sqlite_module must be {' or '.join(SQLITE_MODULES)}, not {self.sqlite_module!r}")
        for name, minimum in (("pool_size", 1), ("max_overflow", 0)):
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
            if value < minimum:
                raise ValueError(f"{name} must be at least {minimum}")
        for name in (field.name for field in fields(self) if isinstance(field.default, float)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
            if not (0 <= value < math.inf):
                raise ValueError(f"{name} must be 0 or more seconds")


def read_engine_options(options: Mapping[str, Any]) -> EngineOptions:
    """Return EngineOptions; an option that is missing or None comes from the environment, else from the defaults.

    `pool_size` comes from DATABASE_POOL_SIZE, and so on. Raises TypeError or ValueError naming the option or the
    variable.
    """
    known = {field.name: field for field in fields(EngineOptions)}
    if unknown := options.keys() - known.keys():
        raise TypeError(f"{min(unknown)} is not an engine option: the options are {', '.join(known)}")
    values = {name: value for name, value in options.items() if value is not None}
    for name, field in known.items():
        variable = f"DATABASE_{name.upper()}"
        if name not in values and (text := os.environ.get(variable)):
            values[name] = _parse_option(variable, text, type(field.default))
    return EngineOptions(**values)


def parse_url(database_url: str | None) -> URL:
    """Return `database_url`, else DATABASE_URL, else the default, as a URL; an empty one counts as unset.

    Raises DatabaseURLError without the text of the URL, which may contain a password.
    """
    text = database_url or os.environ.get("DATABASE_URL") or DEFAULT_DATABASE_URL
    if not isinstance(text, str):
        raise DatabaseURLError(f"database_url must be text, not {type(text).__name__}")
    url = _read_url(_trim(text))
    if url is None:
        raise DatabaseURLError  # outside any `except`, whose error would stay in __context__, with parts of the URL
    if _is_misread(url):
        raise DatabaseURLError(
            "The host or the database name in the URL contains @ or a space: write @ in a password as %40, / as %2F, "
            "as in postgresql://user:p%40ss@host/name."
        )
    return MaskedURL(*url)


def parse_replica_urls(urls: Iterable[str], *, from_environment: bool) -> list[URL]:
    """Return `urls`, or if there are none and `from_environment` is set, those in DATABASE_REPLICA_URLS.

    Raises TypeError for a string instead of a list, DatabaseURLError for an invalid URL.
    """
    if isinstance(urls, str):
        raise TypeError("replica_urls must be a list of URLs, not text")
    texts = list(urls)
    if not texts and from_environment:
        # A URL may list several hosts separated by commas, so only a comma before a scheme separates two URLs.
        texts = re.split(r",(?=\s*\w+(?:\+\w+)?://)", os.environ.get("DATABASE_REPLICA_URLS", ""))
    return [parse_url(text.strip()) for text in texts if text.strip()]


def read_libpq_options() -> str:
    """Return PGOPTIONS, the server settings that libpq uses unless a connection gets others."""
    return os.environ.get("PGOPTIONS", "")


def normalize_url(url: str) -> str:
    """Return a URL in SQLAlchemy's form; it may be in libpq's form."""
    if url.startswith("postgres://"):
        url = url.replace("postgres://", "postgresql://", 1)
    if (many := re.fullmatch(MANY_HOSTS, url)) is None:
        return url
    path, _, query = many["tail"].partition("?")
    hosts = [f"host={host}" if ":" in host else f"host={host}:5432" for host in many["hosts"].split(",")]
    return f"{many['head']}{path or '/'}?{'&'.join([*hosts, *([query] if query else [])])}"


class MaskedURL(URL):
    """A URL whose text hides every password, also one in the query string; `hide_password=False` shows it."""

    __slots__ = ()

    def render_as_string(self, hide_password: bool = True) -> str:
        return mask_url(self) if hide_password else URL(*self).render_as_string(hide_password=False)

    def __eq__(self, other: object) -> bool:
        return URL(*self) == (URL(*other) if isinstance(other, MaskedURL) else other)

    def __hash__(self) -> int:
        return hash(URL(*self))


def mask_url(url: URL) -> str:
    """Return `url` as text with every password hidden, also one in the query string (?password=…)."""
    query = {
        name: "***" if any(word in name.lower() for word in SECRET_WORDS) else value
        for name, value in url.query.items()
    }
    return URL(*url).set(query=query).render_as_string(hide_password=True)


def child_environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process with `variables`, for a program that it starts."""
    return os.environ | variables


def _trim(text: str) -> str:
    """Return a URL without the spaces, line ends and quotes that files of variables and secrets leave around it."""
    text = text.strip("\ufeff").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    return text


def _read_url(text: str) -> URL | None:
    if re.search(CONTROL_CHARACTER, text) or text.endswith(("'", '"')):
        return None
    try:
        return make_url(normalize_url(text))
    except (ArgumentError, ValueError):
        return None


def _is_misread(url: URL) -> bool:
    """Return whether an unescaped @ or / in a password has made it part of the host or of the database name."""
    hosts = url.query.get("host", ())
    others = (hosts,) if isinstance(hosts, str) else hosts
    is_bad_host = re.search(r"[@\s]", url.host or "") or any(re.search(r".@|\s", host) for host in others)
    has_bad_name = url.host is not None and url.username is None and "@" in (url.database or "")
    return bool(is_bad_host) or has_bad_name


def _parse_option(variable: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"{variable} must be 1 or 0, not {text[:20]!r}")
        return BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be a number, not {text[:20]!r}") from None
