"""Read the CREATE TABLE statements that SQLite stores: its PRAGMAs show neither names nor rules of constraints."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

# A quoted name, a string, a comment, a word, spaces or a single character: enough to read what SQLite has accepted.
TOKEN: Final = re.compile(
    r'"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|\'(?:[^\']|\'\')*\'|--[^\n]*|/\*.*?\*/|[\w$]+|\s+|.', re.DOTALL
)
TABLE_CLAUSES: Final = frozenset("CONSTRAINT PRIMARY UNIQUE CHECK FOREIGN".split())
COLUMN_CLAUSES: Final = frozenset(
    "CONSTRAINT PRIMARY UNIQUE CHECK NOT NULL DEFAULT COLLATE REFERENCES GENERATED AS".split()
)


class Constraint(NamedTuple):
    """A constraint of a table or column, as a table would declare it; two with the same `key` are the same rule."""

    name: str
    rule: str

    @property
    def kind(self) -> str:
        word = self.rule.split("(")[0].split()[0].upper()
        return {"PRIMARY": "primary key", "UNIQUE": "unique constraint", "CHECK": "check"}.get(word, "foreign key")

    @property
    def key(self) -> str:
        return normalize(self.rule)

    @property
    def sql(self) -> str:
        return f"CONSTRAINT {quote(self.name)} {self.rule}" if self.name else self.rule


@dataclass
class Column:
    """A column; its `constraints`, such as UNIQUE, are written as those of a table."""

    name: str
    sql: str
    type: str = ""
    is_not_null: bool = False
    default: str = ""
    collation: str = ""
    generated: str = ""
    constraints: list[Constraint] = field(default_factory=list)


@dataclass
class Table:
    """A table as its CREATE TABLE says: columns by name in lower case, its own constraints, what follows them."""

    name: str
    sql: str
    options: str = ""
    columns: dict[str, Column] = field(default_factory=dict)
    own_constraints: list[Constraint] = field(default_factory=list)

    @property
    def constraints(self) -> list[Constraint]:
        """All constraints, also those in the definitions of columns."""
        return [*(one for column in self.columns.values() for one in column.constraints), *self.own_constraints]


def normalize(sql: str) -> str:
    """Return `sql` without what other tools write in another way: spaces, comments, quotes of names, lower case."""
    return " ".join(token if token[0] == "'" else unquote(token).lower() for token in _words(sql))


def quote(name: str) -> str:
    """Return a name in double quotes where it needs them."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'


def unquote(name: str) -> str:
    """Return a name without its quotes."""
    if name[0] not in "\"`['" or len(name) < 2:
        return name
    closing = {"[": "]"}.get(name[0], name[0])
    return name[1:-1].replace(closing * 2, closing)


def read_table(name: str, sql: str) -> Table:
    """Return the table that a CREATE TABLE statement describes."""
    parts, options = _split_table(sql)
    table = Table(name, sql, normalize(options))
    for part in parts:
        if _words(part)[0].upper() in TABLE_CLAUSES:
            table.own_constraints += [_constraint(clause) for clause in _split_clauses(part, TABLE_CLAUSES)[1:]]
        else:
            column = _read_column(part)
            table.columns[column.name.lower()] = column
    return table


def without_not_null(column: Column) -> str:
    """Return the definition of a column that may be NULL, and is the same otherwise."""
    head, *clauses = _split_clauses(column.sql, COLUMN_CLAUSES)
    return " ".join([head, *(one for one in clauses if _words(_constraint(one).rule)[0].upper() != "NOT")])


def _read_column(part: str) -> Column:
    head, *clauses = _split_clauses(part, COLUMN_CLAUSES)
    name, *kind = _words(head)
    column = Column(unquote(name), part, normalize(" ".join(kind)))
    for clause in clauses:
        constraint = _constraint(clause)
        word, rule = _words(constraint.rule)[0].upper(), constraint.rule
        if word == "NOT":
            column.is_not_null = True
        elif word == "DEFAULT":
            column.default = rule
        elif word == "COLLATE":
            column.collation = rule
        elif word in ("GENERATED", "AS"):
            column.generated = normalize(re.sub(r"(?i)^GENERATED\s+ALWAYS\s+", "", rule))
        elif word != "NULL":
            if word == "PRIMARY":
                rule = re.sub(r"(?i)^PRIMARY\s+KEY", f"PRIMARY KEY ({quote(column.name)})", rule)
            elif word == "UNIQUE":
                rule = f"UNIQUE ({quote(column.name)}){rule[6:]}"
            elif word == "REFERENCES":
                rule = f"FOREIGN KEY ({quote(column.name)}) {rule}"
            column.constraints.append(Constraint(constraint.name, rule))
    return column


def _constraint(clause: str) -> Constraint:
    if not clause.upper().startswith("CONSTRAINT"):
        return Constraint("", clause)
    rest = clause[len("CONSTRAINT") :].lstrip()
    found = TOKEN.match(rest)
    assert found is not None, "SQLite has accepted it"
    return Constraint(unquote(found[0]), rest[found.end() :].lstrip())


def _tokens(sql: str) -> Iterator[str]:
    for token in TOKEN.findall(sql):
        yield " " if token.startswith(("--", "/*")) else token


def _words(sql: str) -> list[str]:
    return [token for token in _tokens(sql) if not token.isspace()]


def _split_table(sql: str) -> tuple[list[str], str]:
    """Return the parts of a CREATE TABLE between its commas, without comments, and the options that follow them."""
    parts: list[str] = []
    depth, part = 0, ""
    for token in _tokens(sql):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if (token == "(" and depth == 1) or (token == "," and depth == 1) or (token == ")" and depth == 0):
            parts.append(part.strip())
            part = ""
        else:
            part += token
    return parts[1:], part.strip()


def _split_clauses(part: str, starters: frozenset[str]) -> list[str]:
    """Return what is before the constraints of a part of a CREATE TABLE, then each constraint with its name."""
    clauses, words, depth = [""], [""], 0
    tokens = list(_tokens(part))
    for position, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token, 0)
        word = token.upper()
        starts = depth == 0 and word in starters and words[-1] not in ("SET", "DEFAULT", "NOT")
        if word == "NOT" and "".join(tokens[position + 1 : position + 3]).strip().upper() != "NULL":
            starts = False  # NOT DEFERRABLE
        if word == "AS" and words[0] == "GENERATED":
            starts = False
        if starts and not (words[0] == "CONSTRAINT" and len(words) == 2):
            clauses.append("")
            words = []
        clauses[-1] += token
        if not token.isspace():
            words.append(word)
    return [clause.strip() for clause in clauses]
