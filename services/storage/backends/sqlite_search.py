"""Full-text search on SQLite: an FTS5 index over the texts of `prompts`, kept up to date by triggers."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    case,
    column,
    exists,
    func,
    literal,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.orm import Session

from ..errors import CorruptError, SchemaDamagedError
from ..models import Prompt
from ..search_query import Query, Term
from ..search_words import split_words
from .base import COMMON_MATCHES, RECENT_PROMPTS

INDEXED = table("prompts_fts", column("rowid", Integer), column("prompts_fts", Text))
# The models lack this column, because PostgreSQL has none: the words of a text that is not ASCII or has sharps.
PROMPTS = table("prompts", column("id", Integer), column("text", Text), column("folded", Text))
# What is in that column, by the expressions in the triggers of revision 008.
NEEDS_FOLDING = "(length(CAST(text AS BLOB)) <> length(text) OR text GLOB '*[A-Ga-g]#*')"
FOLDED = "replace(ltrim(CAST(text AS BLOB), ''), '#', ' sharp ')"
EXPECTED = f"CASE WHEN {NEEDS_FOLDING} THEN {FOLDED} END"


class FTS5Search:
    """The search dialect of SQLite; see SearchDialect."""

    def select_matches(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        # The row id of FTS5, not that of prompts: in its order FTS5 needs no sort.
        matches = select(INDEXED.c.rowid.label("id")).where(_match(query))
        return (
            matches.add_columns(PROMPTS.c.text).join_from(INDEXED, PROMPTS, PROMPTS.c.id == INDEXED.c.rowid)
            if with_text
            else matches
        )

    def select_newest_matches(
        self, session: Session, query: Query, limit: int, *, with_text: bool = False
    ) -> Select[Any]:
        matches = self.select_matches(query, with_text=with_text)
        return matches.order_by(matches.selected_columns[0].desc()).limit(limit)

    def match_ids_if_rare(self, query: Query, limit: int) -> Select[Any]:
        matches = self.select_matches(query)
        # Recent by id: counting the newest prompts would cost a scan, and gaps left by deleted prompts do no harm.
        recent = matches.where(
            matches.selected_columns[0] > select(func.max(Prompt.id) - RECENT_PROMPTS).scalar_subquery()
        )
        count = select(func.count()).select_from(recent.subquery()).scalar_subquery()
        ids = select(func.json_group_array(matches.limit(limit).subquery().c.id, type_=JSON()))
        return select(case((count < COMMON_MATCHES, ids.scalar_subquery())))

    def match_condition(self, query: Query, prompt_id: Any) -> ColumnElement[bool]:
        prompt = PROMPTS.alias()
        match: ColumnElement[bool] = exists().where(_match(query), INDEXED.c.rowid == prompt.c.id)
        if any(term.is_prefix for term in query.wanted):
            # FTS5 merges the rows of all words with the prefix in every query, so query it once for all prompts.
            # `id + 0` stops the planner from starting with these rows instead of the order of the outer query.
            match = (prompt.c.id + 0).in_(select(INDEXED.c.rowid).where(_match(query)))
        return exists().where(prompt.c.id == prompt_id, *_conditions_from_text(query, prompt, match))

    def check_search_index(self, session: Session) -> bool:
        try:
            with session.begin_nested():
                # Rank 1 compares the index with the prompts too, not only with itself (https://sqlite.org/fts5.html#the_integrity_check_command).
                session.execute(text("INSERT INTO prompts_fts (prompts_fts, rank) VALUES ('integrity-check', 1)"))
        except (SchemaDamagedError, CorruptError):  # which of them it is, pysqlite3 does not say
            return False
        return not session.scalar(text(f"SELECT EXISTS (SELECT 1 FROM prompts WHERE folded IS NOT {EXPECTED})"))

    def rebuild_search_index(self, session: Session) -> None:
        session.execute(text(f"UPDATE prompts SET folded = {EXPECTED} WHERE folded IS NOT {EXPECTED}"))
        session.execute(text("INSERT INTO prompts_fts (prompts_fts) VALUES ('rebuild')"))


def trim_or_fold(value: Any, characters: Any) -> str | None:
    """Answer ltrim(value, characters) as SQLite does, but for a BLOB and no characters with the words of its text.

    The search triggers call it so. On connections of others, which do not have this function, it returns
    the text as it is, and their writes succeed (ADR 26).
    """
    if value is None or characters is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
        if characters == "":
            return " ".join(split_words(value))
    return str(value).lstrip(str(characters)) if characters != "" else str(value)


def _match(query: Query) -> ColumnElement[bool]:
    """Return the MATCH condition for the words of a query; FTS5 reads quoted strings as plain text, not as syntax."""
    expression = " AND ".join(map(_expression, query.wanted))
    unwanted = " OR ".join(map(_expression, query.excluded))
    if unwanted:
        expression = f"({expression}) NOT ({unwanted})"
    return INDEXED.c.prompts_fts.op("MATCH", is_comparison=True)(expression)


def _expression(term: Term) -> str:
    spellings = [f'"{spelling}"' for spelling in term.spellings]
    return f"{spellings[0]} *" if term.is_prefix else f"({' OR '.join(spellings)})"


def _conditions_from_text(query: Query, prompt: Any, match: ColumnElement[bool]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that are together equal to `match`, but query the index only if the text cannot decide.

    A query of the index takes 50 µs, a test of the text 1 µs (ADR 23). A word that is no substring does not match; a
    single ASCII word matches an ASCII text exactly if it stands between other characters than letters and digits.
    """
    text = func.lower(func.coalesce(prompt.c.folded, prompt.c.text))
    for term in query.wanted:
        yield or_(*(and_(*(func.instr(text, word) > 0 for word in words.split())) for words in term.spellings))
    if query.excluded or not all(
        words.isascii() and " " not in words for term in query.wanted for words in term.spellings
    ):
        yield match
    else:
        spaced = literal(" ").concat(text).concat(" ")
        patterns = [[_pattern(word, term.is_prefix) for word in term.spellings] for term in query.wanted]
        matches = [or_(*(spaced.op("GLOB", is_comparison=True)(one) for one in any_of)) for any_of in patterns]
        yield case((prompt.c.folded.is_(None), and_(*matches)), else_=match)


def _pattern(word: str, is_prefix: bool) -> str:
    """Return the GLOB pattern for a whole word, or the prefix of one, in lower-case text between two spaces."""
    return f"*[^a-z0-9]{word}*" if is_prefix else f"*[^a-z0-9]{word}[^a-z0-9]*"
