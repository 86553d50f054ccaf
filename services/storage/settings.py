"""Settings: database URLs, environment variables and engine options. The only module that reads the environment.

Opens nothing and knows no database system beyond the way its URLs are written.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .errors import DatabaseURLError
from .limits import BUSY_TIMEOUT_SECONDS

DEFAULT_DATABASE_URL: Final = "sqlite:///data/generations.db"
SECRET_WORDS: Final = ("pass", "pwd", "secret", "token", "key")
BOOLEANS: Final = {
    "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False
}  # fmt: skip

# libpq's postgresql://user@first:5432,second:5433/name, which SQLAlchemy cannot read
MANY_HOSTS: Final = re.compile(
    r"(?P<head>postgresql[^:]*://(?:[^@/?]*@)?)(?P<hosts>[^@/?]*,[^@/?]*)(?P<tail>.*)", re.DOTALL
)


@dataclass(frozen=True)
class EngineOptions:
    """How the engines of a database are opened; times are in seconds. Raises ValueError or TypeError naming the option.

    `echo` logs SQL. SQLite: `synchronous` FULL keeps every acknowledged commit through a power cut, NORMAL may lose the
    last ones; `busy_timeout` is the longest wait for another writer. PostgreSQL: `connect_timeout` and the three
    options after it, where 0 means no timeout; `replica_max_lag` is how old the answer of a replica may be; `pgbouncer`
    says that PgBouncer in transaction mode stands between.
    """

    echo: bool = False
    synchronous: str = "FULL"
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

    def __post_init__(self) -> None:
        if self.synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be FULL or NORMAL, not {self.synchronous!r}")
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


def read_engine_options(given: Mapping[str, Any]) -> EngineOptions:
    """Return the options `given`; one that is missing or None comes from the environment, else from EngineOptions.

    The variable of `pool_size` is DATABASE_POOL_SIZE, and so on. Raises TypeError or ValueError naming the option or
    the variable.
    """
    known = {field.name: field for field in fields(EngineOptions)}
    if unknown := given.keys() - known.keys():
        raise TypeError(f"{min(unknown)} is not an engine option: the options are {', '.join(known)}")
    values = {name: value for name, value in given.items() if value is not None}
    for name, field in known.items():
        variable = f"DATABASE_{name.upper()}"
        if name not in values and (text := os.environ.get(variable)):
            values[name] = _parse_option(variable, text, type(field.default))
    return EngineOptions(**values)


def parse_url(database_url: str | None) -> URL:
    """Return `database_url`, else DATABASE_URL, else the default, as a URL; an empty one counts as unset.

    Raises DatabaseURLError, which never repeats the text: it may hold a password.
    """
    given = database_url or os.environ.get("DATABASE_URL") or DEFAULT_DATABASE_URL
    if not isinstance(given, str):
        raise DatabaseURLError(f"database_url must be text, not {type(given).__name__}")
    try:
        url = make_url(normalize_url(given))
    except (ArgumentError, ValueError):
        raise DatabaseURLError from None
    if "\0" in given:
        raise DatabaseURLError
    return url


def parse_replica_urls(given: Iterable[str], *, from_environment: bool) -> list[URL]:
    """Return the URLs of the replicas: those `given`, else those of DATABASE_REPLICA_URLS when `from_environment`.

    Raises TypeError for a single text, DatabaseURLError for a URL that cannot be read.
    """
    if isinstance(given, str):
        raise TypeError("replica_urls must be a list of URLs, not text")
    texts = list(given)
    if not texts and from_environment:
        # A URL may name several hosts with commas between them, so only a comma before a scheme separates two URLs.
        texts = re.split(r",(?=\s*\w+(?:\+\w+)?://)", os.environ.get("DATABASE_REPLICA_URLS", ""))
    return [parse_url(text.strip()) for text in texts if text.strip()]


def normalize_url(given: str) -> str:
    """Return a URL as SQLAlchemy writes it, whether written for SQLAlchemy or for libpq."""
    if given.startswith("postgres://"):
        given = given.replace("postgres://", "postgresql://", 1)
    if (many := MANY_HOSTS.fullmatch(given)) is None:
        return given
    path, _, query = many["tail"].partition("?")
    hosts = [f"host={host}" if ":" in host else f"host={host}:5432" for host in many["hosts"].split(",")]
    return f"{many['head']}{path or '/'}?{'&'.join([*hosts, *([query] if query else [])])}"


def mask_url(url: URL) -> str:
    """Return `url` as text with every password hidden, including one given as ?password=… ."""
    query = {
        name: "***" if any(word in name.lower() for word in SECRET_WORDS) else value
        for name, value in url.query.items()
    }
    return url.set(query=query).render_as_string(hide_password=True)


def _parse_option(variable: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"{variable} must be 1 or 0, not {text[:20]!r}")
        return BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{variable} must be a number, not {text[:20]!r}") from None
