"""The validation rules for every value that is stored, by a constructor, an attribute or a bulk insert. See ADR 11.

Each rule returns the value to store, or raises ValueError or TypeError with a message that names the field and never
contains a prompt. CHECK constraints in the database repeat the most important rules.
"""

import json
import math
import operator
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from .json_values import freeze
from .lifecycle import validate_status
from .limits import (
    BIG_INTEGER_LIMIT,
    ERROR_LIMIT,
    FLOAT_LIMIT,
    ID_LIMIT,
    INTEGER_LIMIT,
    JSON_BYTES_LIMIT,
    JSON_DEPTH_LIMIT,
    JSON_INTEGER_LIMIT,
    NAME_LIMIT,
    PATH_LIMIT,
    PROMPT_LIMIT,
    SECONDS_LIMIT,
)
from .types import as_utc, dump_json, load_json_object

Rule = Callable[[str, Any], Any]


def validate_generation_field(field: str, value: Any) -> Any:
    """Return `value` as generations.`field` stores it. Raises ValueError or TypeError naming the field."""
    return GENERATION_RULES[field](field, value)


def validate_prompt_field(field: str, value: Any) -> Any:
    """Return `value` as prompts.`field` stores it. Raises ValueError or TypeError naming the field."""
    return PROMPT_RULES[field](field, value)


def validate_count(field: str, value: Any, *, minimum: int = 0) -> int:
    """Return `value` as a whole number, for limits and offsets. Raises ValueError or TypeError naming the field."""
    return int(_integer(minimum, BIG_INTEGER_LIMIT)(field, value))


def validate_seconds(field: str, value: Any) -> float:
    """Return `value` as seconds, more than 0 and at most a year. Raises ValueError or TypeError naming the field."""
    return float(_SECONDS(field, value))


def validate_flag(field: str, value: Any) -> bool:
    """Return `value` as a bool. Raises TypeError naming the field for anything but a boolean."""
    if _is_boolean(value):
        return bool(value)
    raise TypeError(f"{field} must be True or False, not {type(value).__name__}")


def validate_name(field: str, value: Any) -> str:
    """Return `value` as the name of a worker, a model or a batch. Raises ValueError or TypeError naming the field."""
    return str(_NAME(field, value))


def validate_moment(field: str, value: Any) -> datetime:
    """Return `value`, naive or aware, as an aware time in UTC. Raises ValueError or TypeError naming the field."""
    if not isinstance(value, datetime):
        raise TypeError(f"{field} must be a datetime, not {type(value).__name__}")
    try:
        return as_utc(value)
    except OverflowError:
        raise ValueError(f"{field} must be between the years 1 and 9999 in UTC") from None


def validate_metadata_filter(conditions: Any) -> dict[str, Any]:
    """Return `conditions` on metadata: for each key a scalar, or a tuple of two bounds, each a number or None.

    Raises ValueError or TypeError naming the key.
    """
    if not isinstance(conditions, Mapping):
        raise TypeError(f"metadata must be a mapping of keys to values, not {type(conditions).__name__}")
    wanted: dict[str, Any] = {}
    for key, value in conditions.items():
        if not isinstance(key, str):
            raise TypeError("metadata must have only text as keys")
        field = f"metadata[{key[:40]!r}]"
        if isinstance(value, tuple):
            if len(value) != 2 or any(isinstance(bound, bool) for bound in value):
                raise ValueError(f"{field} must be a range of two numbers, (low, high), where None means no bound")
            if any(isinstance(bound, str) for bound in value):
                raise TypeError(f"{field} must have numbers as bounds, not text")
            wanted[key] = tuple(None if bound is None else _json_number(field, bound) for bound in value)
        elif value is None or isinstance(value, (bool, str)):
            wanted[key] = value
        else:
            wanted[key] = _json_number(field, value)
    return wanted


def is_storable(field: str, value: Any) -> bool:
    """Return whether the database can store this text; a query for any other text would find nothing, or raise.

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
    """Return the JSON text of `current` updated with `changes`: only top-level keys are merged, and new values win.

    Raises ValueError if `current` is not a JSON object, because merging would overwrite it.
    """
    changes = {} if changes is None else _json("metadata", changes)[0]
    if not changes:
        return current
    if current is None:
        return dump_json(changes)
    stored = load_json_object(current)
    if stored is None:
        raise ValueError(
            "metadata of the stored row is not a readable JSON object: replace it with set_metadata() first"
        )
    return _json("metadata", stored | changes)[1]


def clean_error_message(value: Any) -> str:
    """Return `value` as storable text, cut to 8,192 characters. Never raises: a failure must always be recorded."""
    try:
        text = str(value)
    except Exception as error:
        text = f"{type(value).__name__} whose str() failed ({type(error).__name__})"
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
    # str() would turn a member of class Model(str, Enum) into "Model.SMALL".
    return str.__str__(value)


def _check_characters(field: str, value: str) -> None:
    """Raise ValueError for characters that cannot be stored: NUL (PostgreSQL) and lone surrogates (both)."""
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


@cache
def _integer(minimum: int, maximum: int = INTEGER_LIMIT) -> Rule:
    def rule(field: str, value: Any) -> int:
        if type(value) is not int:
            if _is_boolean(value):
                raise TypeError(f"{field} must be a whole number, not a boolean")
            try:
                value = operator.index(value)  # accepts numpy's integers, but nothing that would have to be rounded
            except TypeError:
                raise TypeError(f"{field} must be a whole number, not {type(value).__name__}") from None
        if not minimum <= value <= maximum:
            raise ValueError(f"{field} must be between {minimum:,} and {maximum:,}")
        return int(value)

    return rule


def _number(*, above: float | None = None, minimum: float = -math.inf, maximum: float = math.inf) -> Rule:
    def rule(field: str, value: Any) -> float:
        if type(value) is not float:
            if isinstance(value, str) or _is_boolean(value):
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
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):  # float() would parse text and bytes
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


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # the names of numpy's bool in 1 and 2


def _json(field: str, value: Any) -> tuple[dict[str, Any], str]:
    """Return a JSON object, given as a mapping or as JSON text, as a dict of JSON values and as stored text."""
    if isinstance(value, str):
        _check_characters(field, value)
        if len(value.encode()) > JSON_BYTES_LIMIT:
            raise ValueError(f"{field} must be at most {JSON_BYTES_LIMIT // 1024} KiB of JSON")
        value = load_json_object(value, json.loads)
        if value is None:
            raise ValueError(f"{field} must be the text of a JSON object")
    if not isinstance(value, Mapping):
        raise TypeError(f"{field} must be a JSON object (a dict), not {type(value).__name__}")
    copy = _json_value(field, value, JSON_DEPTH_LIMIT, [JSON_BYTES_LIMIT])
    text = dump_json(copy)
    if len(text.encode()) > JSON_BYTES_LIMIT:
        raise ValueError(f"{field} must be at most {JSON_BYTES_LIMIT // 1024} KiB of JSON")
    return copy, text


def _json_value(field: str, value: Any, depth: int, budget: list[int]) -> Any:
    """Return a copy of `value` made of JSON types, with at most `depth` levels and `budget[0]` values."""
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError(f"{field} must be at most {JSON_BYTES_LIMIT // 1024} KiB of JSON")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_characters(field, value)
        return _exact_text(value)
    if depth == 0 and isinstance(value, (Mapping, list, tuple)):
        raise ValueError(f"{field} must be at most {JSON_DEPTH_LIMIT} levels deep")
    if isinstance(value, (dict, Mapping)):  # a dict is recognized five times faster than by its abstract base class
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{field} must have only text as keys")
        for key in value:
            _check_characters(field, key)
        return {_exact_text(key): _json_value(field, item, depth - 1, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(field, item, depth - 1, budget) for item in value]
    return _json_number(field, value)


def _json_number(field: str, value: Any) -> Any:
    if _is_boolean(value):
        return bool(value)
    if not isinstance(value, float):
        try:
            whole = operator.index(value)
        except TypeError:
            pass
        else:
            if not -BIG_INTEGER_LIMIT - 1 <= whole <= JSON_INTEGER_LIMIT:
                raise ValueError(f"{field} must not contain integers outside the 64-bit range")
            return int(whole)
        if not hasattr(value, "__float__"):
            raise TypeError(f"{field} must contain only JSON types, not {type(value).__name__}")
    number = _float(field, value)
    if not math.isfinite(number):
        raise ValueError(f"{field} must not contain NaN or infinities")
    return number


def _sha256(field: str, value: Any) -> str:
    if len(digest := str(_text(64)(field, value))) < 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"{field} must be 64 hexadecimal digits in lower case")
    return digest


def _optional(rule: Rule) -> Rule:
    return lambda field, value: None if value is None else rule(field, value)


_PATH_TEXT, _NAME = _text(PATH_LIMIT), _text(NAME_LIMIT)
_SECONDS = _number(above=0, minimum=0, maximum=SECONDS_LIMIT)
_OPTIONAL_NAMES = ("model_version", "worker_id", "current_step", "batch_id", "idempotency_key", "file_format")
_OPTIONAL_TIMES = ("started_at", "completed_at", "lease_expires_at", "cancel_requested_at", "file_missing_since")

GENERATION_RULES: Mapping[str, Rule] = {
    "id": _text(ID_LIMIT),
    "prompt": _text(PROMPT_LIMIT),
    "prompt_id": _optional(_integer(0)),
    "model_name": _NAME,
    "duration_seconds": _number(above=0),
    "sample_rate": _integer(1),
    "channels": _channels,
    "file_path": _path,
    "file_size_bytes": _optional(_integer(0, BIG_INTEGER_LIMIT)),
    "status": lambda field, value: validate_status(value),
    "created_at": validate_moment,
    "generation_time_seconds": _optional(_number(minimum=0)),
    "error_message": _optional(lambda field, value: clean_error_message(value)),
    "metadata_json": _optional(lambda field, value: _json("metadata", value)[1]),
    "parameters": _optional(lambda field, value: freeze(_json(field, value)[0])),
    "priority": _integer(-INTEGER_LIMIT),
    "scheduled_at": validate_moment,
    "attempt": _integer(0),
    "max_attempts": _integer(1),
    "progress": _optional(_number(minimum=0, maximum=1)),
    "parent_id": _optional(_text(ID_LIMIT)),
    "is_favorite": validate_flag,
    "version": _integer(1),
    "file_sha256": _optional(_sha256),
    **dict.fromkeys(_OPTIONAL_NAMES, _optional(_NAME)),
    **dict.fromkeys(_OPTIONAL_TIMES, _optional(validate_moment)),
}

PROMPT_RULES: Mapping[str, Rule] = {
    "text": _text(PROMPT_LIMIT),
    "used_count": _integer(1),
    "first_used_at": validate_moment,
    "last_used_at": validate_moment,
}
