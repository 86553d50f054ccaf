"""The base of this library's own models: defaults at construction, conversion to and from dicts."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, Self, TypeVar

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.util.langhelpers import HasMemoized

from .declarative import Base
from .serialization import plain
from .types import UTCDateTime

Model = TypeVar("Model", bound="Row")


class RowMapper(Mapper[Any]):
    """A mapper that takes the name of a column for that of its attribute in the mappings of a bulk INSERT or UPDATE.

    SQLAlchemy ignores unknown names there, so `metadata` for `metadata_json` would be lost, whatever the session.
    """

    @HasMemoized.memoized_attribute
    def _propkey_to_col(self) -> dict[Any, dict[str, Any]]:
        # Used only where SQLAlchemy collects the values of an INSERT or UPDATE.
        return {
            table: {column.key: column for column in columns}
            | {self.get_property_by_column(column).key: column for column in columns}
            for table, columns in self._cols_by_table.items()
        }


class Row(Base):
    """A row whose attributes have their column defaults as soon as it is constructed."""

    __abstract__ = True
    __mapper_cls__ = RowMapper

    def to_dict(self) -> dict[str, Any]:
        """Return the values of all columns by column name, as JSON types; times in ISO 8601 with an offset.

        A number that is not finite and JSON text that cannot be read, which only other programs store, become None.
        """
        values = self.__dict__
        return {
            column: plain(values[key] if key in values else getattr(self, key))
            for column, key in _attributes(type(self)).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return a new row from the result of to_dict(), not stored; missing columns have their defaults.

        Raises TypeError or ValueError naming the column for one that is unknown, required or invalid.
        """
        attributes, columns = _attributes(cls), cls.__table__.c
        if unknown := values.keys() - attributes.keys():
            raise TypeError(f"{min(unknown)} is not a column of {cls.__tablename__}")
        for name, column in columns.items():
            if values.get(name) is None and not column.nullable and column.default is None and not column.primary_key:
                raise ValueError(f"{name} is required")
        given = {
            attributes[name]: _read_time(name, value) if isinstance(columns[name].type, UTCDateTime) else value
            for name, value in values.items()
            if value is not None or columns[name].nullable
        }
        return cls(**given)

    def _get_for_repr(self, key: str) -> Any:
        """Return an attribute, long text cut; None if it is not loaded, because a repr must not query or raise."""
        state = inspect(self, raiseerr=False)
        value = getattr(self, key) if state is not None and state.transient else self.__dict__.get(key)
        return value[:29] + "…" if isinstance(value, str) and len(value) > 40 else value


class SameAs:
    """A column default: the value of another column. Works at construction and in a Core insert.

    `otherwise` is the default of that column, for tools that ask for a default without a row, as forms do.
    """

    def __init__(self, column: str, otherwise: Callable[[], Any]) -> None:
        self.column = column
        self.otherwise = otherwise

    def __call__(self, context: Any) -> Any:
        if context is None:
            return self.otherwise()
        # Not isolate_multiinsert_groups=True, which raises KeyError for insert(Model).values([…]).
        values = context.get_current_parameters(isolate_multiinsert_groups=False)
        position = getattr(context.current_column, "index", None)  # in the list of rows, from 0 for the second row
        name = f"{self.column}_m{0 if position is None else position + 1}"
        return values[name if name in values else self.column]


@event.listens_for(Row, "init", propagate=True)
def _set_defaults(row: Row, args: Any, values: dict[str, Any]) -> None:
    """Set the column defaults, or None, when a row is constructed instead of at the flush; explicit values win.

    Writes to `__dict__`, as SQLAlchemy does when it loads a row: the defaults are valid, and validation takes half of
    the time to construct a row. Without the None, reading an unset column after the session is closed would raise
    DetachedInstanceError.

    A row with an explicit primary key may be an argument of session.merge(), which copies all of `__dict__` over the
    stored row. Its defaults are kept elsewhere until they are inserted.
    """
    model = type(row)
    if all(values.get(key) is not None for key in _primary_key(model)):
        for key in _defaults(model):
            if key not in values:
                _read_default(row, key)
        return
    state = row.__dict__
    for key, default in _defaults(model).items():
        if key in values:
            continue
        if default is None:
            state[key] = None
        elif isinstance(default.arg, SameAs):
            source = default.arg.column
            values[key] = values[source] if source in values else state[source]
        else:
            state[key] = default.arg(None) if default.is_callable else default.arg


def new_row(model: type[Model], valid: Mapping[str, Any]) -> Model:
    """Return a row with these values, which must be valid, and its defaults, as the constructor does.

    It takes a fifth of the time: no events of the ORM, which take 1 µs for each attribute.
    """
    new_instance, fixed, computed, copied = _template(model)
    row: Model = new_instance()
    values = row.__dict__
    values.update(fixed)
    values.update(valid)
    for key, compute in computed:
        if key not in valid:
            values[key] = compute(None)
    for key, source in copied:
        if key not in valid:
            values[key] = values[source]
    return row


@event.listens_for(Row, "before_insert", propagate=True)
def _insert_defaults(mapper: Any, connection: Any, row: Row) -> None:
    """Insert the defaults that were read before, instead of new ones."""
    for key in _defaults(type(row)):
        row.__dict__.setdefault(key, getattr(row, key))


@event.listens_for(Row, "attribute_instrument", propagate=True)
def _use_defaults_when_unset(model: type[Row], key: str, attribute: Any) -> None:
    if hasattr(attribute.property, "columns"):

        @event.listens_for(attribute, "init_scalar", retval=True, propagate=True)
        def read(row: Row, value: Any, state: dict[str, Any]) -> Any:
            return _read_default(row, key)


def _read_default(row: Row, key: str) -> Any:
    """Return the default of an unset attribute; it is computed once, so that each reading gives the same."""
    default = _defaults(type(row))[key]
    if default is None:
        return None
    if isinstance(default.arg, SameAs):
        return getattr(row, default.arg.column)
    kept = inspect(row).info.setdefault("defaults", {})
    if key not in kept:
        kept[key] = default.arg(None) if default.is_callable else default.arg
    return kept[key]


@cache
def _defaults(model: type[Row]) -> dict[str, Any]:
    return {attribute.key: attribute.columns[0].default for attribute in inspect(model).column_attrs}


@cache
def _template(model: type[Row]) -> tuple[Any, dict[str, Any], list[tuple[str, Any]], list[tuple[str, str]]]:
    """Return what makes an empty instance, the fixed defaults, the functions for others, and the columns to copy."""
    mapper: Any = inspect(model)
    mapper.registry.configure()  # a process whose first row is made by new_row() has executed no query
    fixed: dict[str, Any] = {}
    computed, copied = [], []
    for key, default in _defaults(model).items():
        if default is not None and isinstance(default.arg, SameAs):
            copied.append((key, default.arg.column))
        elif default is not None and default.is_callable:
            computed.append((key, default.arg))
        else:
            fixed[key] = None if default is None else default.arg
    return mapper.class_manager.new_instance, fixed, computed, copied


@cache
def _primary_key(model: type[Row]) -> tuple[str, ...]:
    mapper = inspect(model)
    return tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)


@cache
def _attributes(model: type[Row]) -> dict[str, str]:
    """Return the attribute of each column."""
    return {attribute.columns[0].name: attribute.key for attribute in inspect(model).column_attrs}


def _read_time(column: str, value: Any) -> Any:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{column} must be a time in ISO 8601") from None
