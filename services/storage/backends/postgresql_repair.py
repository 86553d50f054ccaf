"""Find what differs between two PostgreSQL schemas, and the statements that repair it. See ADR 32."""

from collections.abc import Iterable, Iterator
from typing import Final

from .postgresql_catalog import PROPERTIES, CatalogObject
from .schema_dialect import Difference, Fill, Repair

Key = tuple[str, str]
Objects = dict[Key, CatalogObject]
# What decides what the search index holds; the column is generated, so an UPDATE computes it again.
SEARCH_INDEX: Final = ("function", "column")
UPDATE_SEARCH_INDEX: Final = "UPDATE prompts SET text = text WHERE words IS DISTINCT FROM prompt_words(text)"
IN_PLACE: Final = {  # the statement that turns the object of this kind that is there into the expected one
    "function": "{0.definition}",
    "sequence": "ALTER SEQUENCE {0.name} {0.definition}",
    "table": "ALTER TABLE {0.name} SET LOGGED; ALTER TABLE {0.name} DISABLE ROW LEVEL SECURITY",
}


def index_by_key(objects: Iterable[CatalogObject]) -> Objects:
    """Return the objects by kind and name, in their order."""
    return {one.key: one for one in objects}


def compare(expected: Objects, present: Objects, fill: Fill) -> list[Repair]:
    """Return the repairs of what differs, in the order in which to run them."""
    return list(_Comparison(expected, present, fill).repairs())


class _Comparison:
    def __init__(self, expected: Objects, present: Objects, fill: Fill) -> None:
        self._expected, self._present, self._fill = expected, present, fill
        self._different = {key for key, wanted in expected.items() if not _is_same(wanted, present.get(key))}
        self._lost_tables = {name for kind, name in self._different if kind == "table" and ("table", name) not in present}

    def repairs(self) -> Iterator[Repair]:
        for key, wanted in self._expected.items():
            if key in self._different and not self._is_part_of_lost(wanted):
                yield self._repair(wanted, self._present.get(key))
        for one in self._present.values():
            if one.kind in PROPERTIES and one.key not in self._expected and ("column", one.name) in self._expected:
                yield _remove_property(one)

    def _is_part_of_lost(self, wanted: CatalogObject) -> bool:
        """Return whether an object comes back with its table or column, and needs no repair of its own."""
        if wanted.table in self._lost_tables:
            return wanted.kind not in ("table", "foreign key")
        return wanted.kind in PROPERTIES and ("column", wanted.name) not in self._present

    def _repair(self, wanted: CatalogObject, found: CatalogObject | None) -> Repair:
        if found is None:
            statements = self._create(wanted)
            problem = f"is missing{_lost_values(wanted)}"
        else:
            statements = self._change(wanted, found)
            problem = f"is {found.definition!r}, not {wanted.definition!r}"
            if wanted.kind in ("function", "view", "table") or len(problem) > 200:
                problem = f"is {found.definition}" if wanted.kind == "table" else "differs from that of the revisions"
        if wanted.kind in SEARCH_INDEX and wanted.name in ("prompt_words(prompt text)", "prompts.words"):
            if ("column", "prompts.words") in self._present and wanted.kind == "function":
                statements = [*statements, UPDATE_SEARCH_INDEX]
        return Repair((Difference(wanted.kind, wanted.name, problem),), tuple(statements))

    def _create(self, wanted: CatalogObject) -> list[str]:
        if wanted.kind == "table":
            parts = [one for one in self._expected.values() if one.table == wanted.name and one.kind != "foreign key"]
            columns = {one.name for one in parts if one.kind == "column"}
            created = [part for part in parts if part.kind not in PROPERTIES or part.name not in columns]
            return [
                statement
                for part in created
                for statement in (self._add_column(part, is_empty=True) if part.kind == "column" else part.create)
            ]
        if wanted.kind == "column":
            return self._add_column(wanted)
        if wanted.kind == "NOT NULL of":
            return [*self._fill_column(wanted, f" WHERE {wanted.column} IS NULL"), *wanted.create]
        return list(wanted.create)

    def _add_column(self, wanted: CatalogObject, *, is_empty: bool = False) -> list[str]:
        found = [self._expected.get((kind, wanted.name)) for kind in PROPERTIES]
        not_null, default, statistics = found
        (statement,) = wanted.create
        after: list[str] = []
        if default is not None:
            statement += f" {default.definition}"
        elif not is_empty:
            after += self._fill_column(wanted)
        return [statement, *after, *(line for one in (not_null, statistics) if one for line in one.create)]

    def _fill_column(self, wanted: CatalogObject, where: str = "") -> list[str]:
        try:
            value = self._fill(wanted.table, wanted.column)
        except KeyError:
            return []
        return [f"UPDATE {wanted.table} SET {wanted.column} = {value}{where}"]

    def _change(self, wanted: CatalogObject, found: CatalogObject) -> list[str]:
        if wanted.kind in IN_PLACE:
            return IN_PLACE[wanted.kind].format(wanted).split("; ") if wanted.kind == "table" else [
                IN_PLACE[wanted.kind].format(wanted)
            ]
        if wanted.kind in PROPERTIES or wanted.kind == "owner of":
            return list(wanted.create)
        needing = [one for one in self._expected.values() if _needed_name(wanted) in one.needs and one.key != wanted.key]
        dependents = [one for one in needing if one.kind not in PROPERTIES and one.kind != "owner of"]
        dropped = [self._present.get(one.key) for one in reversed(dependents)]
        again = [one for one in dependents if one.key not in self._different]
        return [
            *(statement for one in dropped if one for statement in one.drop),
            *self._replace(wanted, found),
            *(statement for one in again for statement in one.create),
        ]

    def _replace(self, wanted: CatalogObject, found: CatalogObject) -> list[str]:
        if wanted.kind != "column":
            return [*found.drop, *wanted.create]
        if "GENERATED" in wanted.definition + found.definition:
            return [*found.drop, *self._add_column(wanted)]
        kind = wanted.definition.partition(" COLLATE ")[0]
        alter = f"ALTER TABLE {wanted.table} ALTER COLUMN {wanted.column}"
        default = self._expected.get(("default of", wanted.name))
        again = list(default.create) if default else []
        drop = [f"{alter} DROP DEFAULT"] if ("default of", wanted.name) in self._present else []
        return [*drop, f"{alter} TYPE {wanted.definition} USING {wanted.column}::{kind}", *again]


def _is_same(wanted: CatalogObject, found: CatalogObject | None) -> bool:
    return found is not None and found.definition == wanted.definition


def _needed_name(wanted: CatalogObject) -> str:
    return f"{wanted.name} key" if wanted.kind == "primary key" else wanted.name


def _lost_values(wanted: CatalogObject) -> str:
    if wanted.kind == "table":
        return ", and its rows with it: restore a backup to get them back; the repair creates it empty"
    if wanted.kind == "column" and "GENERATED" not in wanted.definition:
        return ", and its values with it: restore a backup to get them back"
    return ""


def _remove_property(one: CatalogObject) -> Repair:
    is_kept = one.kind != "NOT NULL of"
    problem = f"is {one.definition!r}, which this library did not set" + (", so repairs keep it" if is_kept else "")
    return Repair((Difference(one.kind, one.name, problem, is_kept),), one.drop)
