"""The format of an export: JSON Lines in UTF-8, a header and then a line for each row. See ADR 37.

The line of a row is {"table": …, "row": {column: value}}; that of a generation contains its attempts too. Equal rows
have equal lines, whichever database they come from. Nothing here executes SQL.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, ColumnElement, Table, type_coerce

from ..errors import SchemaTooNewError, TransferError
from ..model_base import Row
from ..models import TABLES, Base
from ..schema import REVISIONS, get_schema_version
from ..serialization import plain
from ..types import JSONObject, JSONText, TimeText, UTCDateTime, as_utc, dump_json
from ..validation import validate_generation_field
from .row_scan import find_problem, is_portable_json, load_document, plain_table, portable_float

FORMAT: Final = "dgx-music-storage export"
VERSION: Final = 1
LINE_BYTES_LIMIT: Final = 64 * 1024 * 1024
Values = Mapping[Any, Any]  # of a row, by column
MODELS: Final[Mapping[str, type[Base]]] = {
    mapper.local_table.name: mapper.class_
    for mapper in Base.registry.mappers
    if isinstance(mapper.local_table, Table) and mapper.local_table in TABLES
}


class Header(NamedTuple):
    """The first line: the revision of the database, and the number of rows of each table in the file."""

    revision: str
    counts: Mapping[str, int]


def links_to_owner(table: Table) -> Column[Any] | None:
    """Return the column by which a row belongs to a row of another table, in whose line it is; None without one."""
    return next((column for column in table.primary_key if column.foreign_keys), None)


def parts_of(table: Table) -> Sequence[Table]:
    """Return the tables whose rows are in the lines of `table`."""
    owners = [(part, links_to_owner(part)) for part in TABLES]
    return [part for part, link in owners if link is not None and link.references(table.primary_key.columns[0])]


def exported_columns(table: Table) -> list[ColumnElement[Any]]:
    """Return the columns of a table as write_line() reads them: times and JSON as the text that is stored."""
    return [_as_stored(column).label(column.name) for column in table.columns if column.computed is None]


def write_header(header: Header) -> bytes:
    """Return the first line of an export."""
    return _line({"format": FORMAT, "version": VERSION, "revision": header.revision, "counts": dict(header.counts)})


def write_line(table: Table, row: Values, parts: Mapping[str, Sequence[Values]]) -> bytes:
    """Return the line of a row, and of the rows of other tables that belong to it."""
    values = _write_row(table, row)
    for part in parts_of(table):
        link = links_to_owner(part)
        rows = [_write_row(part, one) for one in parts.get(part.name, ())]
        values[part.name] = [{name: value for name, value in one.items() if name != link.name} for one in rows]  # type: ignore[union-attr]
    return _line({"table": table.name, "row": values})


def read_header(line: bytes) -> Header:
    """Return what the first line says. Raises TransferError, and SchemaTooNewError for a file of a newer release."""
    try:
        header = _parse(line)
    except (ValueError, TypeError):
        header = {}
    if header.get("format") != FORMAT:
        message = "line 1: it is not the header of an export: name a file that `dgx-storage export` wrote"
        raise TransferError(message, line=1, field="format")
    counts, revision = header.get("counts"), header.get("revision")
    if header.get("version") != VERSION or revision not in REVISIONS:
        raise SchemaTooNewError(f"The file has revision {revision!r}, which this release does not know: upgrade it.")
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise TransferError("line 1: counts must be the number of rows of each table", line=1, field="counts")
    return Header(str(revision), counts)


def new_header(counts: Mapping[str, int]) -> Header:
    """Return the header of a new export."""
    return Header(get_schema_version(), counts)


def read_line(line: bytes) -> tuple[Table, dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Return the table, the values to store, and the values of the rows that belong to it, by table.

    Raises ValueError or TypeError whose message begins with the name of the field.
    """
    content = _parse(line)
    table = Base.metadata.tables.get(str(content.get("table")))
    if table not in TABLES or links_to_owner(table) is not None:
        raise ValueError("table must be one that an export contains")
    row = content.get("row")
    if not isinstance(row, dict):
        raise TypeError("row must be a JSON object")
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in parts_of(table):
        given, owner = row.pop(part.name, []), row.get(table.primary_key.columns[0].name)
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise TypeError(f"{part.name} must be a list of JSON objects")
        link = links_to_owner(part)
        parts[part.name] = [_read_row(part, one | {link.name: owner}) for one in given]  # type: ignore[union-attr]
    return table, _read_row(table, row), parts


def _as_stored(column: Column[Any]) -> ColumnElement[Any]:
    if isinstance(column.type, UTCDateTime):
        return type_coerce(column, TimeText())
    return type_coerce(column, JSONText()) if isinstance(column.type, JSONObject) else column


def _write_row(table: Table, row: Values) -> dict[str, Any]:
    return {column.name: _write_value(column, row[column.name]) for column in table.columns if column.name in row}


def _write_value(column: Column[Any], value: Any) -> Any:
    """Return a value as it is in the line; text that is no time or no JSON object, from other programs, as text."""
    if value is None:
        return None
    if isinstance(column.type, UTCDateTime):
        try:
            return as_utc(datetime.fromisoformat(value)).isoformat()
        except (TypeError, ValueError, OverflowError):
            return plain(value)
    if isinstance(column.type, (JSONText, JSONObject)):
        return _write_json(plain(value))
    if isinstance(value, float):
        number = portable_float(value)
        return number if plain(number) is not None else repr(number)
    return plain(value)


def _write_json(text: str) -> Any:
    """Return JSON text as an object if metadata and parameters may be that object, else as text.

    PostgreSQL stores text that is not JSON as a JSON string, so a string stands for the text in it.
    """
    document = load_document(text)
    if isinstance(document, str):
        text, document = document, load_document(document)
    try:
        if isinstance(document, dict):
            return _sorted(validate_generation_field("parameters", document))
    except (ValueError, TypeError):
        pass  # NaN, a number of over 64 bits, over 64 KiB: older releases stored them
    if document is None:
        return None  # JSON null, for which PostgreSQL stores NULL
    if isinstance(document, str) or not is_portable_json(text):
        return text
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8") + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_BYTES_LIMIT:
        raise ValueError(f"line must be at most {LINE_BYTES_LIMIT // 1024**2} MiB long")
    if not line.endswith(b"\n"):
        raise ValueError("line is incomplete: the file was cut")
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("line is not JSON") from None
    if not isinstance(content, dict):
        raise TypeError("line must be a JSON object")
    return content


def _read_row(table: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all columns, checked as the model checks them and completed by its defaults."""
    model, columns = MODELS[table.name], plain_table(table).columns
    for key in table.primary_key:
        if given.get(key.name) is None:
            raise ValueError(f"{key.name} is required")
    if unknown := given.keys() - columns.keys():
        raise TypeError(f"{min(unknown)} is not a column of {table.name}")
    values = {name: given[name] for name in columns.keys() if name in given}  # noqa: SIM118 - iterates over columns otherwise
    # What may be stored, but not assigned: text of other programs that is no JSON object, and long error messages.
    kept = {name: value for name, value in values.items() if _is_kept(columns[name], value)}
    if issubclass(model, Row):
        row = model.from_dict({name: value for name, value in values.items() if name not in kept})
        attributes = model.__mapper__.column_attrs
        values = {attribute.columns[0].name: getattr(row, attribute.key) for attribute in attributes} | kept
    for column in columns:
        value = values.get(column.name)
        if isinstance(column.type, JSONText) and value is not None:
            value = _read_json(value, is_text=column.name in kept)
        if value is None and not column.nullable:
            raise ValueError(f"{column.name} is required")
        if value is not None and (problem := find_problem(column, value)):
            raise ValueError(problem)
        values[column.name] = value
    return values


def _is_kept(column: Column[Any], value: Any) -> bool:
    return column.name == "error_message" or (isinstance(column.type, JSONText) and isinstance(value, str))


def _read_json(value: Any, *, is_text: bool) -> str:
    """Return the JSON text to store; PostgreSQL can store NaN and NUL only inside a JSON string."""
    text = value if isinstance(value, str) else dump_json(value)
    return json.dumps(text, ensure_ascii=False) if is_text and not is_portable_json(text) else text
