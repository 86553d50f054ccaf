"""Full-text search on SQLite: an FTS5 index that reads the texts of `prompts` and that triggers keep up to date."""

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
from .base import COMMON_MATCHES, RECENT_PROMPTS, has_literals

INDEXED = table("prompts_fts", column("rowid", Integer), column("prompts_fts", Text), column("text", Text))


class FTS5Search:
    """The search dialect of SQLite; see SearchDialect."""

    def select_matches(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        literals = _literal_conditions(query, Prompt)
        if query.is_literal:
            # Looked through, but only the prompts in such languages; the condition has to be the index's own.
            columns: list[Any] = [Prompt.id, Prompt.text] if with_text else [Prompt.id]
            return select(*columns).where(literal_column(f"prompts.text GLOB '*[{UNSPACED}]*'"), *literals)
        identity = INDEXED.c.rowid.label("id")
        found = select(identity, INDEXED.c.text) if with_text else select(identity)
        found = found.where(_match(query))
        return found.join(Prompt, Prompt.id == INDEXED.c.rowid).where(*literals) if literals else found

    def select_newest_matches(
        self, session: Session, query: Query, limit: int, *, with_text: bool = False
    ) -> Select[Any]:
        matching = self.select_matches(query, with_text=with_text)
        return matching.order_by(matching.selected_columns[0].desc()).limit(limit)

    def match_ids_if_rare(self, query: Query, limit: int) -> Select[Any]:
        matching = self.select_matches(query)
        recent = matching.where(
            matching.selected_columns[0] > select(func.max(Prompt.id) - RECENT_PROMPTS).scalar_subquery()
        )
        count = select(func.count()).select_from(recent.subquery()).scalar_subquery()
        ids = select(func.json_group_array(matching.limit(limit).subquery().c.id, type_=JSON()))
        return select(case((count < COMMON_MATCHES, ids.scalar_subquery())))

    def match_condition(self, query: Query, prompt_id: Any) -> ColumnElement[bool]:
        prompt = aliased(Prompt)
        conditions = _literal_conditions(query, prompt)
        if not query.is_literal:
            found: ColumnElement[bool] = exists().where(_match(query), INDEXED.c.rowid == prompt.id)
            if any(term.is_prefix for term in query.wanted):
                # The words that begin so are merged for each question: ask once, for all. Plus nothing, so that no
                # planner begins with the answers.
                found = (prompt.id + 0).in_(select(INDEXED.c.rowid).where(_match(query)))
            conditions = [*_known_from_text(query, prompt.text, found), *conditions]
        return exists().where(prompt.id == prompt_id, *conditions)

    def check_search_index(self, session: Session) -> bool:
        try:
            with session.begin_nested():
                # Without the 1 the index is compared with itself only.
                session.execute(text("INSERT INTO prompts_fts (prompts_fts, rank) VALUES ('integrity-check', 1)"))
        except CorruptError:
            return False
        return True

    def rebuild_search_index(self, session: Session) -> None:
        session.execute(text("INSERT INTO prompts_fts (prompts_fts) VALUES ('rebuild')"))


def _match(query: Query) -> ColumnElement[bool]:
    """Return FTS5's condition for the words of a query; it reads each quoted string as text, whatever is in it."""
    expression = " AND ".join(map(_expression, query.wanted))
    unwanted = " OR ".join(_expression(term) for term in query.excluded if not term.literals)
    if unwanted:
        expression = f"({expression}) NOT ({unwanted})"
    return INDEXED.c.prompts_fts.op("MATCH", is_comparison=True)(expression)


def _expression(term: Term) -> str:
    spellings = ['"' + spelling.replace('"', '""') + '"' for spelling in term.spellings]
    return f"{spellings[0]} *" if term.is_prefix else f"({' OR '.join(spellings)})"


def _literal_conditions(query: Query, prompt: Any) -> list[ColumnElement[bool]]:
    wanted = [has_literals(prompt.text, term) for term in query.wanted if term.literals]
    return [*wanted, *(~has_literals(prompt.text, term) for term in query.excluded if term.literals)]


def _known_from_text(query: Query, text: Any, found: ColumnElement[bool]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that are together the same as `found`, but ask the index only where the text leaves a doubt.

    A look into the index costs 50 µs, a look at the text one. Of words in ASCII a text in ASCII tells which are not
    there, and of single words also which are.
    """
    is_ascii = func.length(cast(text, LargeBinary)) == func.length(text)
    folded = func.lower(text)
    terms = [term for term in query.wanted if all(spelling.isascii() for spelling in term.spellings)]
    for term in terms:
        spellings = [and_(*(func.instr(folded, word) > 0 for word in words.split())) for words in term.spellings]
        yield or_(*spellings, ~is_ascii)
    if query.excluded or terms != list(query.wanted) or any(" " in words for term in terms for words in term.spellings):
        yield found
    else:
        spaced = literal(" ").concat(folded).concat(" ")
        patterns = [[_pattern(word, term.is_prefix) for word in term.spellings] for term in terms]
        alone = [or_(*(spaced.op("GLOB", is_comparison=True)(one) for one in any_of)) for any_of in patterns]
        yield case((is_ascii, and_(*alone)), else_=found)


def _pattern(word: str, is_prefix: bool) -> str:
    """Return the GLOB pattern of a text in lower case, a space on both sides, in which `word` stands alone."""
    return f"*[^a-z0-9]{word}*" if is_prefix else f"*[^a-z0-9]{word}[^a-z0-9]*"
