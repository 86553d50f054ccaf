"""Full-text search on SQLite: an FTS5 index over the texts of `prompts`, kept up to date by triggers."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.orm import Session, aliased

from ..errors import CorruptError
from ..models import Prompt
from ..search_query import UNSPACED, Query, Term
from .base import COMMON_MATCHES, RECENT_PROMPTS, literal_conditions

INDEXED = table("prompts_fts", column("rowid", Integer), column("prompts_fts", Text), column("text", Text))


class FTS5Search:
    """The search dialect of SQLite; see SearchDialect."""

    def select_matches(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        literals = literal_conditions(query, Prompt.text)
        if query.is_literal:
            # A scan of the prompts in languages without spaces. The condition has to be the one of the partial index
            # idx_prompts_unspaced, so that SQLite uses that index.
            columns: list[Any] = [Prompt.id, Prompt.text] if with_text else [Prompt.id]
            return select(*columns).where(literal_column(f"prompts.text GLOB '*[{UNSPACED}]*'"), *literals)
        identity = INDEXED.c.rowid.label("id")
        matches = select(identity, INDEXED.c.text) if with_text else select(identity)
        matches = matches.where(_match(query))
        return matches.join(Prompt, Prompt.id == INDEXED.c.rowid).where(*literals) if literals else matches

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
        prompt = aliased(Prompt)
        conditions = literal_conditions(query, prompt.text)
        if not query.is_literal:
            match: ColumnElement[bool] = exists().where(_match(query), INDEXED.c.rowid == prompt.id)
            if any(term.is_prefix for term in query.wanted):
                # FTS5 merges the rows of all words with the prefix in every query, so query it once for all prompts.
                # `id + 0` stops the planner from starting with these rows instead of the order of the outer query.
                match = (prompt.id + 0).in_(select(INDEXED.c.rowid).where(_match(query)))
            conditions = [*_conditions_from_text(query, prompt.text, match), *conditions]
        return exists().where(prompt.id == prompt_id, *conditions)

    def check_search_index(self, session: Session) -> bool:
        try:
            with session.begin_nested():
                # Rank 1 compares the index with the prompts too, not only with itself (https://sqlite.org/fts5.html#the_integrity_check_command).
                session.execute(text("INSERT INTO prompts_fts (prompts_fts, rank) VALUES ('integrity-check', 1)"))
        except CorruptError:
            return False
        return True

    def rebuild_search_index(self, session: Session) -> None:
        session.execute(text("INSERT INTO prompts_fts (prompts_fts) VALUES ('rebuild')"))


def _match(query: Query) -> ColumnElement[bool]:
    """Return the MATCH condition for the words of a query; FTS5 reads quoted strings as plain text, not as syntax."""
    expression = " AND ".join(map(_expression, query.wanted))
    unwanted = " OR ".join(_expression(term) for term in query.excluded if not term.literals)
    if unwanted:
        expression = f"({expression}) NOT ({unwanted})"
    return INDEXED.c.prompts_fts.op("MATCH", is_comparison=True)(expression)


def _expression(term: Term) -> str:
    spellings = ['"' + spelling.replace('"', '""') + '"' for spelling in term.spellings]
    return f"{spellings[0]} *" if term.is_prefix else f"({' OR '.join(spellings)})"


def _conditions_from_text(query: Query, text: Any, match: ColumnElement[bool]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that are together equal to `match`, but query the index only if the text cannot decide.

    A query of the index takes 50 µs, a test of the text 1 µs (ADR 23). In an ASCII text, an ASCII word that is no
    substring does not match; a single ASCII word matches exactly if it stands between other characters than letters
    and digits.
    """
    is_ascii = func.length(cast(text, LargeBinary)) == func.length(text)
    folded = func.lower(text)
    terms = [term for term in query.wanted if all(spelling.isascii() for spelling in term.spellings)]
    for term in terms:
        spellings = [and_(*(func.instr(folded, word) > 0 for word in words.split())) for words in term.spellings]
        yield or_(*spellings, ~is_ascii)
    if query.excluded or terms != list(query.wanted) or any(" " in words for term in terms for words in term.spellings):
        yield match
    else:
        spaced = literal(" ").concat(folded).concat(" ")
        patterns = [[_pattern(word, term.is_prefix) for word in term.spellings] for term in terms]
        matches = [or_(*(spaced.op("GLOB", is_comparison=True)(one) for one in any_of)) for any_of in patterns]
        yield case((is_ascii, and_(*matches)), else_=match)


def _pattern(word: str, is_prefix: bool) -> str:
    """Return the GLOB pattern for a whole word, or the prefix of one, in lower-case text between two spaces."""
    return f"*[^a-z0-9]{word}*" if is_prefix else f"*[^a-z0-9]{word}[^a-z0-9]*"
