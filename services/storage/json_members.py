"""Members of JSON columns in queries, alike on both databases: `Generation.parameters["seed"] == 7`.

Not the operators of SQLAlchemy's JSON type: on PostgreSQL they raise for a member of another kind and for integers over
32 bits, on SQLite for a row with invalid JSON. Here a member of another kind is NULL. Backends write the SQL.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from sqlalchemy import Boolean, ColumnElement, Integer, Text, literal, or_
from sqlalchemy.sql import operators
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from .limits import BIG_INTEGER_LIMIT

JSONKind = Literal["text", "number", "boolean", "any", "value"]
COMPARISONS = frozenset({operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge})


class MemberAccess(TypeDecorator.Comparator[Any]):
    """The operators of a JSON column: those of text, and [key] for a member of the object."""

    def __getitem__(self, key: Any) -> "JSONMember":
        """Return the member of the JSON object with this key."""
        if not isinstance(key, str):
            raise TypeError(f"a member of a JSON object has text as its key, not {type(key).__name__}")
        # Not a parameter, because PostgreSQL would take the member in GROUP BY for another expression.
        return JSONMember(self.type.member_type(), self.expr, literal(key, Text(), literal_execute=True))  # type: ignore[attr-defined]


class JSONMember(FunctionElement[Any]):
    """A member of a JSON object: its value as JSON, or NULL if it is missing."""

    name = "json_member"
    inherit_cache = True
    kind: ClassVar[JSONKind] = "value"

    def __init__(self, type_: TypeEngine[Any], *clauses: Any) -> None:
        super().__init__(*clauses)
        self.type = type_

    def as_string(self) -> ColumnElement[str]:
        """Return the member as text, or NULL if it is anything else."""
        return TextMember(Text(), *self.clauses)

    def as_integer(self) -> ColumnElement[int]:
        """Return the member as a number, which is an int if it is whole, or NULL if it is anything else."""
        return WholeMember(self.type.number_type(is_whole=True), *self.clauses)  # type: ignore[attr-defined]

    def as_float(self) -> ColumnElement[float]:
        """Return the member as a float, or NULL if it is not a number."""
        return NumberMember(self.type.number_type(), *self.clauses)  # type: ignore[attr-defined]

    def as_boolean(self) -> ColumnElement[bool]:
        """Return the member as a boolean, or NULL if it is anything else."""
        return BooleanMember(Boolean(), *self.clauses)

    def operate(self, op: Any, *other: Any, **options: Any) -> ColumnElement[Any]:
        """Apply an operator to the member as what it is compared with: text, a number, a boolean or None."""
        if type(self).kind != "value" or not other:
            return super().operate(op, *other, **options)
        values = operands(op, other)
        if len(values) == 1 and values[0] is None:
            member: Any = PresentMember(Text(), *self.clauses)
        elif all(isinstance(value, str) for value in values):
            member = self.as_string()
        elif all(isinstance(value, bool) for value in values):
            member = self.as_boolean()
        elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            member = self.as_float()
        else:
            raise TypeError("compare a member with text, numbers or booleans, or use as_string(), as_integer() …")
        result: ColumnElement[Any] = op(member, *other, **options)
        return result


class TextMember(JSONMember):
    """The member as text."""

    inherit_cache = True
    kind = "text"


class NumberMember(JSONMember):
    """The member as a float."""

    inherit_cache = True
    kind = "number"


class WholeMember(JSONMember):
    """The member as an integer. A class of its own, because statements are cached by class and without the type."""

    inherit_cache = True
    kind = "number"


class BooleanMember(JSONMember):
    """The member as a boolean."""

    inherit_cache = True
    kind = "boolean"


class PresentMember(JSONMember):
    """The name of the type of the member, NULL if it is missing or null."""

    inherit_cache = True
    kind = "any"


class ComparedNumber(FunctionElement[int]):
    """-1, 0 or 1 as the member is less than, equal to or greater than a number, given as decimal text."""

    name = "compare_json_number"
    inherit_cache = True
    type = Integer()


class ExactComparison(TypeDecorator.Comparator[Any]):
    """The operators of a number in JSON, exact for integers of more than 63 bits, which SQLite reads as floats."""

    def operate(self, op: Any, *other: Any, **options: Any) -> ColumnElement[Any]:
        """Return the comparison, written with ComparedNumber for such an integer."""
        values = operands(op, other)
        is_big = any(isinstance(value, int) and abs(value) > BIG_INTEGER_LIMIT for value in values)
        if not is_big or not isinstance(self.expr, JSONMember):
            return super().operate(op, *other, **options)
        if op is operators.in_op:
            return or_(*(self.operate(operator.eq, value) for value in values))
        if op not in COMPARISONS:
            raise TypeError("an integer of more than 63 bits can only be compared with ==, !=, <, <=, >, >= and in_()")
        result: ColumnElement[Any] = op(ComparedNumber(*self.expr.clauses, literal(repr(values[0]), Text())), 0)
        return result


def operands(op: Any, other: Sequence[Any]) -> Sequence[Any]:
    """Return the values that an operator compares with."""
    return list(other[0]) if op in (operators.in_op, operators.not_in_op) and isinstance(other[0], Iterable) else other
