"""Keyset pages of generations, newest first, and the opaque cursors between them. Never a growing OFFSET.

A cursor holds the place it points at, not a row, so pages stay right while rows are added and when its own row is
deleted; and a digest of the query it belongs to, so that it cannot be used with another.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, literal, tuple_, type_coerce
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from .errors import InvalidCursorError
from .models import Generation
from .types import TimeText
from .validation import is_storable

Item = TypeVar("Item")
VERSION = b"\x01"
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of the items, in order, and the cursor of the next page: None on the last one."""

    items: list[Item]
    next: str | None


class PagePosition(NamedTuple):
    """A place in the history: what is stored as created_at there (its text, on SQLite), and the id."""

    created_at: str | int | float
    id: str


def after_position(position: PagePosition | None, model: Any = Generation) -> list[ColumnElement[bool]]:
    """Return the conditions on `model` of what follows `position` in newest_first() order."""
    if position is None:
        return []
    stored = literal(position.created_at, TimeText())
    return [tuple_(type_coerce(model.created_at, TimeText()), model.id) < tuple_(stored, literal(position.id))]


def fetch_page(session: Session, statement: Select[Any], *, query: Mapping[str, Any], limit: int) -> Page[Generation]:
    """Return the first `limit` generations of `statement`, which selects them in newest_first() order.

    `query` is what the cursor is bound to. Raises InvalidCursorError for a position that was never in this database.
    """
    statement = statement.add_columns(type_coerce(Generation.created_at, TimeText()).label("position")).limit(limit + 1)
    try:
        rows = session.execute(statement).all()
    except StatementError as error:
        if isinstance(error.orig, (TypeError, ValueError)):
            raise InvalidCursorError from None
        raise
    items = [row[0] for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(items, None)
    return Page(items, encode_cursor(PagePosition(rows[limit - 1][1], items[-1].id), query))


def encode_cursor(position: PagePosition, query: Mapping[str, Any]) -> str:
    """Return `position` in the answer to `query` as text that is safe in a URL."""
    payload = json.dumps(position, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(VERSION + _digest(payload, query) + payload).decode().rstrip("=")


def decode_cursor(cursor: str | None, query: Mapping[str, Any]) -> PagePosition | None:
    """Return the position of a cursor, or None for None.

    Raises InvalidCursorError for anything that encode_cursor() did not make for the same `query`.
    """
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
        version, digest, payload = raw[:1], raw[1 : 1 + DIGEST_BYTES], raw[1 + DIGEST_BYTES :]
        if version != VERSION or digest != _digest(payload, query):
            raise InvalidCursorError
        created_at, generation_id = json.loads(payload)
    except InvalidCursorError:
        raise
    except (TypeError, AttributeError, ValueError, binascii.Error, RecursionError):
        raise InvalidCursorError from None
    if not isinstance(created_at, (str, int, float)) or not isinstance(generation_id, str):
        raise InvalidCursorError
    if not is_storable("id", generation_id) or not is_storable("created_at", str(created_at)):
        raise InvalidCursorError
    return PagePosition(created_at, generation_id)


def _digest(payload: bytes, query: Mapping[str, Any]) -> bytes:
    described = json.dumps(query, sort_keys=True, default=str).encode()
    return hashlib.sha256(VERSION + len(payload).to_bytes(8, "big") + payload + described).digest()[:DIGEST_BYTES]
