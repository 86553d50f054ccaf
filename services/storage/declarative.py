"""The declarative base of all models: constraint names, column types, and the attribute `metadata`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, overload

from sqlalchemy import CheckConstraint, Double, Index, MetaData, Table, Text
from sqlalchemy.orm import DeclarativeBase

from .errors import ConstraintError
from .limits import INTEGER_LIMIT
from .types import UTCDateTime


class _MetaData(MetaData):
    """The MetaData of all models, which stands for the column `metadata` on a class. See ADR 4."""

    def _bulk_update_tuples(self, value: Any) -> Sequence[tuple[str, Any]]:
        # SQLAlchemy 2.0 calls this for insert(Generation).values(metadata=…), 2.1 uses the name of the column.
        return [("metadata", value)]


class Base(DeclarativeBase):
    """The declarative base: a naming convention for constraints, and the column type of each Python type."""

    metadata = _MetaData(
        naming_convention={
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        }
    )
    type_annotation_map = {datetime: UTCDateTime, str: Text(), float: Double()}


def partial_index(name: str, where: str, *columns: Any, unique: bool = False) -> Index:
    """Return a partial index of the rows that meet `where`.

    The condition is in `info`, because SQLAlchemy's options (sqlite_where) import the dialects, which takes 50 ms.
    """
    return Index(name, *columns, unique=unique, info={"where": where})


def whole_number(column: str, minimum: int, maximum: int = INTEGER_LIMIT, *, name: str) -> CheckConstraint:
    """Return the CHECK that a column holds a whole number in a range: SQLite's INTEGER would take 1.5 and text."""
    rule = f"{column} BETWEEN {minimum} AND {maximum} AND {column} = CAST({column} AS INTEGER)"
    return CheckConstraint(rule.replace("INTEGER", "BIGINT") if maximum > INTEGER_LIMIT else rule, name=name)


def checks_of(table: Table, dialect: str) -> list[CheckConstraint]:
    """Return the CHECK constraints that a table has on a database system."""
    checks = [constraint for constraint in table.constraints if isinstance(constraint, CheckConstraint)]
    return [check for check in checks if check.info.get("only_on", dialect) == dialect]


def stored_number(field: str, value: Any) -> int:
    """Return the number that a row holds; raise ConstraintError where another program stored something else."""
    if isinstance(value, int):
        return value
    raise ConstraintError(f"{field} of the stored row is not a whole number: correct it, `dgx-storage check` names it.")


def next_version(version: Any) -> int:
    """Return the version of a row that is inserted (None) or updated."""
    return 1 if version is None else stored_number("version", version) + 1


class MetadataAttribute:
    """The attribute `metadata`: the JSON text on a row, SQLAlchemy's MetaData on the class. See ADR 4."""

    @overload
    def __get__(self, row: None, owner: type[Any]) -> MetaData: ...
    @overload
    def __get__(self, row: Any, owner: type[Any]) -> str | None: ...
    def __get__(self, row: Any, owner: type[Any]) -> Any:
        return owner.registry.metadata if row is None else row.metadata_json

    def __set__(self, row: Any, value: str | Mapping[str, Any] | None) -> None:
        row.metadata_json = value


class HasMetadata:
    """A mixin for MetadataAttribute: SQLAlchemy 2.0 refuses it on a mapped class, and 2.1 warns. See ADR 4."""

    # Annotated, because pyright would take it for the ClassVar of SQLAlchemy's base, which no instance may assign.
    metadata: MetadataAttribute = MetadataAttribute()
