"""JSON objects and arrays that cannot be changed in place, because SQLAlchemy would not notice and store the change.

They are a dict and a list, so json.dumps(), Pydantic and others take them. A copy of one is an ordinary dict or list.
"""

from copy import deepcopy
from typing import Any, NoReturn, Self


def freeze(value: Any) -> Any:
    """Return `value`, made of dicts, lists and scalars, with every dict and list read-only."""
    if isinstance(value, list):
        return ReadOnlyList(map(freeze, value))
    if not isinstance(value, dict):
        return value
    frozen = ReadOnlyDict(value)
    for key, item in value.items():
        if isinstance(item, (dict, list)):
            dict.__setitem__(frozen, key, freeze(item))
    return frozen


class _ReadOnly:
    """A mixin that refuses changes."""

    __slots__ = ()

    def _refuse(self, *args: Any, **values: Any) -> NoReturn:
        raise TypeError(
            "a stored JSON value cannot be changed in place: change a copy, and assign that to the attribute"
        )

    __setitem__ = __delitem__ = clear = pop = _refuse


class ReadOnlyDict(_ReadOnly, dict[str, Any]):
    """A dict that cannot be changed."""

    __slots__ = ()
    popitem = setdefault = update = _ReadOnly._refuse

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        """Return a new dict, so that `row.parameters |= other` assigns one."""
        return self | other

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(dict(self), memo)

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


class ReadOnlyList(_ReadOnly, list[Any]):
    """A list that cannot be changed."""

    __slots__ = ()
    append = extend = insert = remove = reverse = sort = __iadd__ = __imul__ = _ReadOnly._refuse

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return deepcopy(list(self), memo)

    def __reduce__(self) -> tuple[type[Self], tuple[list[Any]]]:
        return type(self), (list(self),)
