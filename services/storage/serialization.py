"""Conversion of rows and reports to JSON types."""

import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import PurePath
from typing import Any


class Report:
    """A base for dataclasses that are returned to users."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types: times in ISO 8601 with an offset, a number that is not finite as None."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """Return `value` as JSON types, which json.dumps(allow_nan=False) accepts; other objects raise TypeError."""
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, PurePath)):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, bytes):  # a BLOB that another program stored in a text column of SQLite
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
