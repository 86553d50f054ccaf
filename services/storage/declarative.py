"""What every mapped class shares: constraint names, column types, defaults at construction, and to_dict()."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Double, Index, MetaData, Text, event, inspect
from sqlalchemy.orm import DeclarativeBase, InstanceState

from .types import UTCDateTime


class Base(DeclarativeBase):
    """The declarative base: a naming convention for constraints, and the column types of Python types."""

    metadata = MetaData(
        naming_convention={
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        }
    )
    type_annotation_map = {datetime: UTCDateTime, str: Text(), float: Double()}


def partial_index(name: str, where: str, *columns: Any, unique: bool = False) -> Index:
    """Return an index of the rows that meet `where`.

    The condition is in `info`: SQLAlchemy's own options import the dialects they are named for, 50 ms for everybody.
    """
    return Index(name, *columns, unique=unique, info={"where": where})


class SameAs:
    """A column default that repeats another column's value, at construction and in a Core insert alike."""

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, context: Any) -> Any:
        return context.get_current_parameters()[self.column]


@cache
def _defaults(model: type[Base]) -> list[tuple[str, Any]]:
    return [(attribute.key, attribute.columns[0].default) for attribute in inspect(model).column_attrs]


@event.listens_for(Base, "init", propagate=True)
def _fill_defaults(row: Base, args: Any, values: dict[str, Any]) -> None:
    """Give a new row its column defaults, or None, at once and not first at flush; explicit values win.

    Straight into the row, as loading does: our own constants are valid, and validation is half of what a row costs.
    Without the None, a row that was stored and whose session is closed could not be asked for that column.
    """
    state = row.__dict__
    for key, default in _defaults(type(row)):
        if key in values:
            continue
        if default is None:
            state[key] = None
        elif isinstance(default.arg, SameAs):
            source = default.arg.column
            values[key] = values[source] if source in values else state[source]
        else:
            state[key] = default.arg(None) if default.is_callable else default.arg


class MetadataAttribute:
    """`metadata` of a row: its JSON text. On the class it stays SQLAlchemy's MetaData, which declarative needs."""

    def __get__(self, row: Any, owner: type[Any]) -> Any:
        return owner.registry.metadata if row is None else row.metadata_json

    def __set__(self, row: Any, value: str | Mapping[str, Any] | None) -> None:
        row.metadata_json = value


class HasMetadata:
    """Carry the descriptor on a mixin: SQLAlchemy refuses (2.0) or warns (2.1) when the mapped class itself has it."""

    metadata = MetadataAttribute()


def to_dict(row: Base) -> dict[str, Any]:
    """Return every column of `row` under its name in the database; times in ISO 8601 with their offset."""
    state: InstanceState[Any] = inspect(row)
    values = {attribute.columns[0].name: getattr(row, attribute.key) for attribute in state.mapper.column_attrs}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
