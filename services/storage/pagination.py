"""Keyset pagination of generations, newest first, with opaque cursors. See ADR 20.

A cursor holds the created_at and id of the last row of a page, so it stays valid when that row is deleted, and a digest
of its query, so that it cannot be used with another query.
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, literal, select, tuple_, type_coerce
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session, aliased

from .errors import InvalidCursorError
from .limits import BIG_INTEGER_LIMIT
from .models import Generation
from .row_loading import find
from .serialization import Report
from .types import TimeText
from .validation import is_storable

Item = TypeVar("Item")
VERSION = b"\x01"
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Page(Report, Generic[Item]):
    """The items of a page, and the cursor of the next page, None on the last one."""

    items: list[Item]
    next: str | None


class PagePosition(NamedTuple):
    """A position in newest_first() order: created_at as stored, and the id.

    On SQLite created_at is the stored text, or whatever else another program stored. It is None where Python has no
    such time (PostgreSQL's infinity): then the row with this id says where the position is.
    """

    created_at: str | float | bytes | None
    id: str


def after_position(position: PagePosition | None, model: Any = Generation) -> list[ColumnElement[bool]]:
    """Return the conditions for the rows of `model` that follow `position` in newest_first() order."""
    if position is None:
        return []
    stored: Any = literal(position.created_at, TimeText())
    if position.created_at is None:
        last = aliased(Generation)
        stored = select(type_coerce(last.created_at, TimeText())).where(last.id == position.id).scalar_subquery()
    return [tuple_(type_coerce(model.created_at, TimeText()), model.id) < tuple_(stored, literal(position.id))]


def fetch_page(session: Session, statement: Select[Any], *, query: Mapping[str, Any], limit: int) -> Page[Generation]:
    """Return the first `limit` generations of `statement`, which selects them in newest_first() order.

    The cursor is valid for `query` only. Raises InvalidCursorError for a position that the database cannot compare.
    """
    statement = statement.add_columns(type_coerce(Generation.created_at, TimeText()).label("position")).limit(limit + 1)
    try:
        items, rows = find(session, Generation, statement)
    except (StatementError, TypeError, ValueError) as error:
        # TimeText refuses the position. SQLAlchemy wraps that, the engine unwraps a TypeError and a ValueError.
        if isinstance(getattr(error, "orig", error), (TypeError, ValueError, OverflowError)):
            raise InvalidCursorError from None
        raise
    if len(items) <= limit:
        return Page(items, None)
    last = items[limit - 1]
    return Page(items[:limit], encode_cursor(PagePosition(rows[limit - 1].position, last.id), query))


def encode_cursor(position: PagePosition, query: Mapping[str, Any]) -> str:
    """Return the cursor for `position` in the result of `query`, as URL-safe text."""
    payload = json.dumps(position, separators=(",", ":"), default=lambda value: {"hex": value.hex()}).encode()
    return base64.urlsafe_b64encode(VERSION + _digest(payload, query) + payload).decode().rstrip("=")


def decode_cursor(cursor: str | None, query: Mapping[str, Any]) -> PagePosition | None:
    """Return the position of a cursor, or None for None.

    Raises InvalidCursorError for a cursor of another query, and for text that is no cursor. The digest finds mistakes;
    it is no signature, so whoever computes one can choose the position, but gets only rows that `query` selects.
    """
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
        version, digest, payload = raw[:1], raw[1 : 1 + DIGEST_BYTES], raw[1 + DIGEST_BYTES :]
        if version == VERSION and digest == _digest(payload, query):
            return _read_position(json.loads(payload))
    except (TypeError, AttributeError, ValueError, binascii.Error, RecursionError):
        pass
    raise InvalidCursorError


def _read_position(loaded: Any) -> PagePosition:
    """Return the position in a cursor's JSON. Raises ValueError or TypeError for what no database can hold."""
    if not isinstance(loaded, list):
        raise TypeError
    created_at, generation_id = loaded
    if isinstance(created_at, dict):
        created_at = bytes.fromhex(created_at["hex"]) if created_at.keys() == {"hex"} else created_at
    match created_at:
        case None | bytes():
            is_valid = True
        case bool():
            is_valid = False
        case int():
            is_valid = abs(created_at) <= BIG_INTEGER_LIMIT
        case float():
            is_valid = math.isfinite(created_at)
        case _:
            is_valid = is_storable("created_at", created_at)
    if not is_valid or not is_storable("id", generation_id):
        raise ValueError
    return PagePosition(created_at, generation_id)


def _digest(payload: bytes, query: Mapping[str, Any]) -> bytes:
    query_text = json.dumps(query, sort_keys=True, default=str).encode()
    return hashlib.sha256(VERSION + len(payload).to_bytes(8, "big") + payload + query_text).digest()[:DIGEST_BYTES]
