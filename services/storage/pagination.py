"""Keyset pagination of generations, newest first, with opaque cursors. See ADR 20.

A cursor holds the created_at and id of the last row of a page, so it stays valid when that row is deleted, and a digest
of its query, so that it cannot be used with another query.
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
    """The items of a page, and the cursor of the next page, None on the last one."""

    items: list[Item]
    next: str | None


class PagePosition(NamedTuple):
    """A position in newest_first() order: created_at as stored (on SQLite the text), and the id."""

    created_at: str | int | float
    id: str


def after_position(position: PagePosition | None, model: Any = Generation) -> list[ColumnElement[bool]]:
    """Return the conditions for the rows of `model` that follow `position` in newest_first() order."""
    if position is None:
        return []
    stored = literal(position.created_at, TimeText())
    return [tuple_(type_coerce(model.created_at, TimeText()), model.id) < tuple_(stored, literal(position.id))]


def fetch_page(session: Session, statement: Select[Any], *, query: Mapping[str, Any], limit: int) -> Page[Generation]:
    """Return the first `limit` generations of `statement`, which selects them in newest_first() order.

    The cursor is valid for `query` only. Raises InvalidCursorError for a position that the database cannot compare.
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
    """Return the cursor for `position` in the result of `query`, as URL-safe text."""
    payload = json.dumps(position, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(VERSION + _digest(payload, query) + payload).decode().rstrip("=")


def decode_cursor(cursor: str | None, query: Mapping[str, Any]) -> PagePosition | None:
    """Return the position of a cursor, or None for None.

    Raises InvalidCursorError for anything but a result of encode_cursor() for the same `query`.
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
    query_text = json.dumps(query, sort_keys=True, default=str).encode()
    return hashlib.sha256(VERSION + len(payload).to_bytes(8, "big") + payload + query_text).digest()[:DIGEST_BYTES]
