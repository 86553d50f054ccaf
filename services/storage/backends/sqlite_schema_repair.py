"""Find what differs between two SQLite schemas, and the statements that repair it. See ADR 36.

SQLite cannot change a column or a constraint: the table is rebuilt (https://sqlite.org/lang_altertable.html, section
7), with all rows, and with the columns, constraints, indexes and triggers that others added.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from .schema_dialect import REFUSES_INSERTS, Difference, Fill, Repair, lost_column, lost_table
from .sqlite_ddl import Column, Constraint, Table, normalize, quote, read_table, without_not_null

# Set for a repair: rows that break a rule are copied as they are, and references to a table survive its rebuild.
PRAGMAS: Final = ("ignore_check_constraints", "legacy_alter_table")
KINDS: Final = ("virtual table", "index", "trigger", "view")
SEARCH_INDEX: Final = "prompts_fts"
REBUILD_SEARCH_INDEX: Final = f"INSERT INTO {SEARCH_INDEX} ({SEARCH_INDEX}) VALUES ('rebuild')"
ROW_NUMBERS: Final = ("rowid", "oid", "_rowid_")


class Stored(NamedTuple):
    """An object that is not a table: its name, the table that it is on, and its SQL."""

    name: str
    table: str
    sql: str


@dataclass
class Contents:
    """The tables and the other objects of a database, by their names in lower case."""

    tables: dict[str, Table] = field(default_factory=dict)
    others: dict[str, dict[str, Stored]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    shadows: set[str] = field(default_factory=set)  # the tables in which FTS5 keeps its indexes

    def on(self, table: str) -> Iterator[Stored]:
        """Return the indexes and triggers on a table."""
        for kind in ("index", "trigger"):
            yield from (stored for stored in self.others[kind].values() if stored.table.lower() == table)

    def kind_of(self, name: str) -> str | None:
        """Return what has a name, if anything has."""
        if name in self.tables:
            return "table"
        return next((kind for kind in KINDS if name in self.others[kind]), None)


def read_contents(rows: Iterable[Any]) -> Contents:
    """Return what rows of sqlite_master (type, name, tbl_name, sql) describe, without the shadow tables of FTS5."""
    rows = list(rows)
    is_virtual = {name: sql.upper().startswith("CREATE VIRTUAL") for kind, name, _, sql in rows if kind == "table"}
    shadows = tuple(f"{name}_" for name, virtual in is_virtual.items() if virtual)
    contents = Contents()
    for kind, name, table, sql in rows:
        if kind == "table" and not is_virtual[name]:
            if shadows and name.startswith(shadows):
                contents.shadows.add(name)
            elif not name.startswith("sqlite_"):
                contents.tables[name.lower()] = read_table(name, sql)
        else:
            contents.others["virtual table" if kind == "table" else kind][name.lower()] = Stored(name, table, sql)
    return contents


def compare(expected: Contents, present: Contents, fill: Fill) -> list[Repair]:
    """Return the repairs of what differs, in the order in which to run them."""
    repairs = []
    for name, table in expected.tables.items():
        if name not in present.tables:
            repairs.append(_create_table(table, expected, present))
        else:
            repairs += _repair_table(table, present.tables[name], present, fill)
    created = {name for name in expected.tables if name not in present.tables}
    for kind in KINDS:
        for stored in expected.others[kind].values():
            if stored.table.lower() not in created or kind not in ("index", "trigger"):
                repairs += _repair_other(kind, stored, expected, present)
    concerned = [place for place, repair in enumerate(repairs) if _concerns_search(repair)]
    if concerned:  # once, when everything that it needs is there
        last = repairs[concerned[-1]]
        repairs[concerned[-1]] = last._replace(statements=(*last.statements, REBUILD_SEARCH_INDEX))
    return repairs


def write_script(statements: list[str]) -> str:
    """Return a script for the sqlite3 shell, or for executescript(), that runs statements in one transaction."""
    lines = ["PRAGMA foreign_keys = OFF", *(f"PRAGMA {pragma} = ON" for pragma in PRAGMAS), "BEGIN IMMEDIATE"]
    lines += [*statements, "COMMIT", *(f"PRAGMA {pragma} = OFF" for pragma in PRAGMAS), "PRAGMA foreign_keys = ON"]
    return "".join(f"{line};\n" for line in lines)


def _concerns_search(repair: Repair) -> bool:
    """Return whether the search index may be stale after a repair."""
    names = {difference.name.partition(".")[0] for difference in repair.differences if difference.kind != "index"}
    return bool(repair.statements) and any(name == "prompts" or name.startswith(SEARCH_INDEX) for name in names)


def _create_table(table: Table, expected: Contents, present: Contents) -> Repair:
    name = table.name.lower()
    if (kind := present.kind_of(name)) is not None:
        return _taken("table", table.name, kind)
    statements = [table.sql, *(stored.sql for stored in expected.on(name))]
    return Repair((lost_table(table.name),), tuple(statements))


def _taken(kind: str, name: str, taken_by: str) -> Repair:
    problem = f"is missing, and a {taken_by} that is not this library's has its name: rename that, then check again"
    return Repair((Difference(kind, name, problem),), ())


def _repair_other(kind: str, stored: Stored, expected: Contents, present: Contents) -> list[Repair]:
    name = stored.name.lower()
    found = present.others[kind].get(name)
    is_whole = kind != "virtual table" or expected.shadows <= present.shadows
    if found is not None and normalize(found.sql) == normalize(stored.sql) and is_whole:
        return []
    if found is None:
        if kind != "trigger" and (taken_by := present.kind_of(name)) is not None:
            return [_taken(kind, stored.name, taken_by)]
        return [Repair((Difference(kind, stored.name, "is missing"),), (stored.sql,))]
    if kind in ("index", "trigger") and found.table.lower() not in expected.tables:
        return [_taken(kind, stored.name, f"{kind} on {found.table}")]
    drop = f"DROP {'TABLE' if kind == 'virtual table' else kind.upper()} {quote(found.name)}"
    difference = Difference(kind, stored.name, "differs from that of the revisions")
    return [Repair((difference,), (drop, stored.sql))]


def _repair_table(wanted: Table, found: Table, present: Contents, fill: Fill) -> list[Repair]:
    differences = [*_compare_columns(wanted, found, fill), *_compare_constraints(wanted, found)]
    if wanted.options != found.options:
        problem = f"has the options {found.options or 'none'!r}, not {wanted.options or 'none'!r}"
        differences.append(Difference("table", wanted.name, problem))
    ours = tuple(difference for difference in differences if not difference.is_kept)
    repairs = []
    if ours:
        added = _added_columns(wanted, found, ours)
        rebuild = _rebuild(wanted, found, present, fill, keep_additions=True)
        repairs.append(Repair(ours, tuple(added or rebuild)))
    for difference in differences:
        if difference.is_kept:
            statements = _rebuild(wanted, found, present, fill, keep_additions=False)
            repairs.append(Repair((difference,), tuple(statements)))
    return repairs


def _compare_columns(wanted: Table, found: Table, fill: Fill) -> Iterator[Difference]:
    for name, column in wanted.columns.items():
        subject = f"{wanted.name}.{column.name}"
        other = found.columns.get(name)
        if other is None:
            is_computed = bool(column.generated) or name == "folded"
            if is_computed:
                yield Difference("column", subject, "is missing")
            else:
                yield lost_column(wanted.name, column.name, fill)
            continue
        if column.type != other.type:
            yield Difference("column", subject, f"has the type {other.type!r}, not {column.type!r}")
        if column.is_not_null != other.is_not_null:
            yield Difference("column", subject, f"{'lacks' if column.is_not_null else 'has'} NOT NULL")
        if column.generated != other.generated:
            yield Difference("column", subject, "is not generated as the revisions say")
        for clause, attribute in (("DEFAULT", "default"), ("COLLATE", "collation")):
            mine, theirs = getattr(column, attribute), getattr(other, attribute)
            if mine and normalize(mine) != normalize(theirs):
                yield Difference("column", subject, f"has {theirs or f'no {clause}'}, not {mine}")
            elif theirs and not mine:
                problem = f"has {theirs}, which this library did not add, so repairs keep it"
                yield Difference("column", subject, problem, is_kept=True)
    for name, column in found.columns.items():
        if name not in wanted.columns and _refuses_inserts(column):
            yield Difference("column", f"{wanted.name}.{column.name}", REFUSES_INSERTS)


def _refuses_inserts(column: Column) -> bool:
    """Return whether inserts that do not name the column fail."""
    has_value = column.generated or normalize(column.default) not in ("", "default null")
    return column.is_not_null and not has_value


def _compare_constraints(wanted: Table, found: Table) -> Iterator[Difference]:
    for constraint in wanted.constraints:
        kind, name = constraint.kind, constraint.name or constraint.rule
        named = [other for other in found.constraints if _is_same(other, constraint)]
        if not named:
            yield Difference(kind, f"{wanted.name}.{name}", "is missing")
        elif named[0].key != constraint.key or named[0].name.lower() != constraint.name.lower():
            yield Difference(kind, f"{wanted.name}.{name}", "differs from that of the revisions")


def _is_same(other: Constraint, constraint: Constraint) -> bool:
    """Return whether a constraint stands where one of ours should: by its name, or the one primary key of a table."""
    if constraint.kind == "primary key":
        return other.kind == "primary key"
    return other.name.lower() == constraint.name.lower() and (bool(other.name) or other.key == constraint.key)


def _added_columns(wanted: Table, found: Table, differences: tuple[Difference, ...]) -> list[str]:
    """Return the statements that add columns, if nothing else differs and SQLite can add them; else none."""
    missing = [column for name, column in wanted.columns.items() if name not in found.columns]
    simple = all(not column.is_not_null and "stored" not in column.generated for column in missing)
    if len(missing) != len(differences) or not simple:
        return []
    return [f"ALTER TABLE {quote(found.name)} ADD COLUMN {column.sql}" for column in missing]


def _rebuild(wanted: Table, found: Table, present: Contents, fill: Fill, *, keep_additions: bool) -> list[str]:
    """Return the statements that replace a table by one that is as wanted, with its rows and what others added."""
    columns = [_definition(column, found, keep_additions) for column in wanted.columns.values()]
    foreign = {name: column for name, column in found.columns.items() if name not in wanted.columns}
    inherited = [one for name in wanted.columns if name in found.columns for one in found.columns[name].constraints]
    inherited = [one for one in [*inherited, *found.own_constraints] if _is_foreign(one, wanted)]
    body = [*columns]
    body += [without_not_null(column) if _refuses_inserts(column) else column.sql for column in foreign.values()]
    body += [constraint.sql for constraint in [*wanted.own_constraints, *inherited]]

    names, values = [], []
    for name, column in wanted.columns.items():
        if not column.generated:
            names.append(quote(column.name))
            values.append(_value(wanted, column, found.columns.get(name), fill))
    for column in foreign.values():
        if not column.generated:
            names.append(quote(column.name))
            values.append(quote(column.name))
    if "rowid" not in f"{wanted.options} {found.options}" and not _numbers_rows(wanted):
        # Without it, SQLite would number the rows again, and a full-text index of others refers to the numbers.
        alias = [alias for alias in ROW_NUMBERS if alias not in found.columns and alias not in wanted.columns][:1]
        names, values = names + alias, values + alias
    new, old = quote(f"dgx_new_{wanted.name}"), quote(found.name)
    lines = ",\n    ".join(body)
    return [
        f"CREATE TABLE {new} (\n    {lines}\n) {wanted.options.upper()}".rstrip(),
        f"INSERT INTO {new} ({', '.join(names)})\nSELECT {', '.join(values)} FROM {old}",
        f"DROP TABLE {old}",
        f"ALTER TABLE {new} RENAME TO {quote(wanted.name)}",
        *(stored.sql for stored in present.on(wanted.name.lower())),
    ]


def _definition(column: Column, found: Table, keep_additions: bool) -> str:
    other = found.columns.get(column.name.lower())
    if other is None or not keep_additions:
        return column.sql
    added = [other.collation if not column.collation else "", other.default if not column.default else ""]
    return " ".join([column.sql, *filter(None, added)])


def _is_foreign(constraint: Constraint, wanted: Table) -> bool:
    """Return whether others added a constraint; one with the same rule as ours under another name adds nothing."""
    return not any(_is_same(constraint, own) or constraint.key == own.key for own in wanted.constraints)


def _value(table: Table, column: Column, other: Column | None, fill: Fill) -> str:
    """Return the SQL of the value that a row of the old table gives the column of the new one."""
    if other is not None and (other.is_not_null or not column.is_not_null):
        return quote(column.name)
    try:
        value = fill(table.name, column.name)
    except KeyError:
        value = "NULL"
    return value if other is None else f"coalesce({quote(column.name)}, {value})"


def _numbers_rows(table: Table) -> bool:
    """Return whether the primary key is an integer column, which is then the number of the row."""
    keys = [normalize(constraint.rule) for constraint in table.constraints if constraint.kind == "primary key"]
    return any(
        keys == [f"primary key ( {name} )"] and column.type == "integer" for name, column in table.columns.items()
    )
