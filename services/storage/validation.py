"""The one place that decides whether a value may be stored, for every path: constructor, attribute, bulk, import.

Each rule returns the value in the form to store, or raises ValueError or TypeError with a message that names the field
and never repeats a prompt. The CHECK constraints stand behind these rules.
"""

import math
import operator
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from .lifecycle import validate_status
from .limits import (
    BIG_INTEGER_LIMIT,
    ERROR_LIMIT,
    FLOAT_LIMIT,
    ID_LIMIT,
    INTEGER_LIMIT,
    JSON_BYTES_LIMIT,
    JSON_DEPTH_LIMIT,
    NAME_LIMIT,
    PATH_LIMIT,
    PROMPT_LIMIT,
    SECONDS_LIMIT,
)
from .types import as_utc, dump_json, load_json_object

Rule = Callable[[str, Any], Any]


def validate_generation_field(field: str, value: Any) -> Any:
    """Return `value` as the generation's column `field` stores it. Raises ValueError or TypeError naming the field."""
    return GENERATION_RULES[field](field, value)


def validate_prompt_field(field: str, value: Any) -> Any:
    """Return `value` as the prompt's column `field` stores it. Raises ValueError or TypeError naming the field."""
    return PROMPT_RULES[field](field, value)


def validate_count(field: str, value: Any, *, minimum: int = 0) -> int:
    """Return `value` as a whole number, for limits and offsets. Raises ValueError or TypeError naming the field."""
    return int(_integer(minimum, BIG_INTEGER_LIMIT)(field, value))


def validate_seconds(field: str, value: Any) -> float:
    """Return `value` as a positive number of seconds, a year at most. Raises ValueError or TypeError with its name."""
    return float(_number(above=0, minimum=0, maximum=SECONDS_LIMIT)(field, value))


def validate_flag(field: str, value: Any) -> bool:
    """Return a boolean. Raises TypeError naming the field for anything else."""
    return _boolean(field, value)


def validate_name(field: str, value: Any) -> str:
    """Return `value` as the name of a worker, a model or a batch. Raises ValueError or TypeError naming the field."""
    return str(_NAME(field, value))


def validate_moment(field: str, value: Any) -> datetime:
    """Return `value`, naive or aware, as an aware time in UTC. Raises ValueError or TypeError naming the field."""
    return _moment(field, value)


def validate_metadata_filter(given: Any) -> dict[str, Any]:
    """Return what a row's metadata must hold: for each key a scalar, or a tuple of two bounds, each a number or None.

    Raises ValueError or TypeError naming the key.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"metadata must be a mapping of keys to what they hold, not {type(given).__name__}")
    wanted: dict[str, Any] = {}
    for key, value in given.items():
        if not isinstance(key, str):
            raise TypeError("metadata must have text for every key")
        field = f"metadata[{key[:40]!r}]"
        if isinstance(value, tuple):
            if len(value) != 2 or any(isinstance(bound, bool) for bound in value):
                raise ValueError(f"{field} must be a range of two numbers, (low, high); None leaves one open")
            wanted[key] = tuple(None if bound is None else _plain_number(field, bound) for bound in value)
        elif value is None or isinstance(value, (bool, str)):
            wanted[key] = value
        else:
            wanted[key] = _plain_number(field, value)
    return wanted


def is_storable(field: str, value: Any) -> bool:
    """Tell whether text could be in the database at all; looking for other text finds nothing.

    Raises TypeError naming the field for anything but text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field} must be text, not {type(value).__name__}")
    try:
        _check_characters(field, value)
    except ValueError:
        return False
    return True


def merge_metadata(current: str | None, changes: Mapping[str, Any] | None) -> str | None:
    """Return the stored text of `current` with `changes` laid over it: shallow, new keys win; none change nothing.

    Raises ValueError when `current` is unreadable, because merging would overwrite what it still holds.
    """
    changes = {} if changes is None else _json_object("metadata", changes)
    if not changes:
        return current
    if current is None:
        return dump_json(changes)
    stored = load_json_object(current)
    if stored is None:
        raise ValueError("metadata of the stored row is not a readable JSON object: mend it with set_metadata() first")
    return _json_text("metadata", stored | changes)


def clean_error_message(value: Any) -> str:
    """Return `value` as text that can be stored, cut to 8,192 characters: recording a failure must never fail."""
    try:
        text = str(value)
    except Exception as error:
        text = f"{type(value).__name__} whose text cannot be read ({type(error).__name__})"
    return text[:ERROR_LIMIT].replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _text(limit: int) -> Rule:
    def rule(field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{field} must be text, not {type(value).__name__}")
        if not value.strip():
            raise ValueError(f"{field} must not be blank")
        if len(value) > limit:
            raise ValueError(f"{field} must be at most {limit:,} characters, not {len(value):,}")
        _check_characters(field, value)
        return _exact_text(value)

    return rule


def _exact_text(value: str) -> str:
    # str() would give a member of class Model(str, Enum) as "Model.SMALL"
    return str.__str__(value)


def _check_characters(field: str, value: str) -> None:
    """Refuse what one of the two databases cannot hold: NUL (PostgreSQL) and lone surrogates (both)."""
    if "\0" in value:
        raise ValueError(f"{field} must not contain the NUL character")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{field} must be valid Unicode: it contains a lone surrogate") from None


def _path(field: str, value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bytes):
        raise TypeError(f"{field} must be text or a path, not bytes")
    return str(_PATH_TEXT(field, value))


def _integer(minimum: int, maximum: int = INTEGER_LIMIT) -> Rule:
    def rule(field: str, value: Any) -> int:
        if type(value) is not int:
            if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
                raise TypeError(f"{field} must be a whole number, not a boolean")
            try:
                value = operator.index(value)  # numpy's integers, and nothing that would have to be rounded
            except TypeError:
                raise TypeError(f"{field} must be a whole number, not {type(value).__name__}") from None
        if not minimum <= value <= maximum:
            raise ValueError(f"{field} must be between {minimum:,} and {maximum:,}")
        return int(value)

    return rule


def _number(*, above: float | None = None, minimum: float = -math.inf, maximum: float = math.inf) -> Rule:
    def rule(field: str, value: Any) -> float:
        if type(value) is not float:
            if isinstance(value, (bool, str)) or type(value).__name__ in ("bool_", "bool"):
                raise TypeError(f"{field} must be a number, not {type(value).__name__}")
            value = _float(field, value)
        if not math.isfinite(value) or abs(value) > FLOAT_LIMIT:
            raise ValueError(f"{field} must be a finite number")
        if above is not None and value <= above:
            raise ValueError(f"{field} must be greater than {above:g}")
        if not minimum <= value <= maximum:
            bounds = f"at least {minimum:g}" if maximum == math.inf else f"between {minimum:g} and {maximum:g}"
            raise ValueError(f"{field} must be {bounds}")
        return float(value)

    return rule


def _float(field: str, value: Any) -> float:
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):  # float() would read text and bytes
        raise TypeError(f"{field} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{field} must be a number, not {type(value).__name__}") from None


def _channels(field: str, value: Any) -> int:
    channels = _integer(-INTEGER_LIMIT)(field, value)
    if channels not in (1, 2):
        raise ValueError(f"{field} must be 1 (mono) or 2 (stereo)")
    return int(channels)


def _boolean(field: str, value: Any) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise TypeError(f"{field} must be True or False, not {type(value).__name__}")


def _moment(field: str, value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{field} must be a datetime, not {type(value).__name__}")
    try:
        return as_utc(value)
    except OverflowError:
        raise ValueError(f"{field} must lie within the years 1 and 9999 in UTC") from None


def _json_object(field: str, value: Any) -> dict[str, Any]:
    """Return a plain copy of the JSON object `value`, a mapping or its text, checked without recursion."""
    if isinstance(value, str):
        _check_characters(field, value)
        if len(value.encode()) > JSON_BYTES_LIMIT:
            raise ValueError(f"{field} must be at most {JSON_BYTES_LIMIT // 1024} KiB of JSON")
        loaded = load_json_object(value)
        if loaded is None:
            raise ValueError(f"{field} must be the text of a JSON object")
        value = loaded
    if not isinstance(value, Mapping):
        raise TypeError(f"{field} must be a JSON object (a dict), not {type(value).__name__}")
    plain = _plain(field, value, JSON_DEPTH_LIMIT, [JSON_BYTES_LIMIT])
    if len(dump_json(plain).encode()) > JSON_BYTES_LIMIT:
        raise ValueError(f"{field} must be at most {JSON_BYTES_LIMIT // 1024} KiB of JSON")
    assert isinstance(plain, dict)
    return plain


def _plain(field: str, value: Any, depth: int, budget: list[int]) -> Any:
    """Copy `value` into what JSON knows, at most `depth` levels deep and `budget` values wide."""
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError(f"{field} must be at most {JSON_BYTES_LIMIT // 1024} KiB of JSON")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_characters(field, value)
        return _exact_text(value)
    if isinstance(value, Mapping):
        if depth == 0:
            raise ValueError(f"{field} must be at most {JSON_DEPTH_LIMIT} levels deep")
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{field} must have text for every key")
        for key in value:
            _check_characters(field, key)
        return {_exact_text(key): _plain(field, item, depth - 1, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if depth == 0:
            raise ValueError(f"{field} must be at most {JSON_DEPTH_LIMIT} levels deep")
        return [_plain(field, item, depth - 1, budget) for item in value]
    return _plain_number(field, value)


def _plain_number(field: str, value: Any) -> Any:
    if type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    if not isinstance(value, float):
        try:
            whole = operator.index(value)
        except TypeError:
            pass
        else:
            if abs(whole) > BIG_INTEGER_LIMIT:
                raise ValueError(f"{field} must not contain integers over 63 bits")
            return int(whole)
        if not hasattr(value, "__float__"):
            raise TypeError(f"{field} must hold only what JSON knows, not {type(value).__name__}")
    number = _float(field, value)
    if not math.isfinite(number):
        raise ValueError(f"{field} must not contain NaN or infinities")
    return number


def _json_text(field: str, value: Any) -> str:
    return dump_json(_json_object(field, value))


def _optional(rule: Rule) -> Rule:
    return lambda field, value: None if value is None else rule(field, value)


_PATH_TEXT = _text(PATH_LIMIT)
_NAME = _text(NAME_LIMIT)
_SECONDS = _number(minimum=0)

GENERATION_RULES: Mapping[str, Rule] = {
    "id": _text(ID_LIMIT),
    "prompt": _text(PROMPT_LIMIT),
    "prompt_id": _optional(_integer(0)),
    "model_name": _NAME,
    "model_version": _optional(_NAME),
    "duration_seconds": _number(above=0),
    "sample_rate": _integer(1),
    "channels": _channels,
    "file_path": _path,
    "file_size_bytes": _optional(_integer(0, BIG_INTEGER_LIMIT)),
    "status": lambda field, value: validate_status(value),
    "created_at": _moment,
    "started_at": _optional(_moment),
    "completed_at": _optional(_moment),
    "generation_time_seconds": _optional(_SECONDS),
    "error_message": _optional(lambda field, value: clean_error_message(value)),
    "metadata_json": _optional(lambda field, value: _json_text("metadata", value)),
    "parameters": _optional(_json_object),
    "priority": _integer(-INTEGER_LIMIT),
    "scheduled_at": _moment,
    "attempt": _integer(0),
    "max_attempts": _integer(1),
    "worker_id": _optional(_NAME),
    "lease_expires_at": _optional(_moment),
    "progress": _optional(_number(minimum=0, maximum=1)),
    "current_step": _optional(_NAME),
    "cancel_requested_at": _optional(_moment),
    "batch_id": _optional(_NAME),
    "parent_id": _optional(_text(ID_LIMIT)),
    "idempotency_key": _optional(_NAME),
    "is_favorite": _boolean,
}

PROMPT_RULES: Mapping[str, Rule] = {
    "text": _text(PROMPT_LIMIT),
    "used_count": _integer(1),
    "first_used_at": _moment,
    "last_used_at": _moment,
}
