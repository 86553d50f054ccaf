"""Full-text search on PostgreSQL: a generated tsvector column of `prompts` with a GIN index."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    Text,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, TSVECTOR
from sqlalchemy.orm import Session

from ..conditions import literal_int
from ..search_query import Query, Term
from .base import COMMON_MATCHES, RECENT_PROMPTS

# The models lack the generated column `words`, because SQLite has none.
PROMPTS = table("prompts", column("id", Integer), column("text", Text), column("words", TSVECTOR))
HAS_DRIFTED = PROMPTS.c.words.is_distinct_from(func.prompt_words(PROMPTS.c.text, type_=TSVECTOR))
# Scanning this many prompts takes as long as collecting all matches of a common query among a million prompts from the
# index: 40 ms (ADR 23).
SCAN_BREAK_EVEN = 150_000


class TSVectorSearch:
    """The search dialect of PostgreSQL; see SearchDialect."""

    def select_matches(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        # MATERIALIZED: the planner has no statistics of rare words, and with ORDER BY or LIMIT it would read the whole
        # table instead of the index.
        matches = _prompts(with_text).where(_condition(query, PROMPTS)).cte().prefix_with("MATERIALIZED")
        return select(matches)

    def select_newest_matches(
        self, session: Session, query: Query, limit: int, *, with_text: bool = False
    ) -> Select[Any]:
        recent = session.scalars(select(_count_recent(query))).one()
        if recent < COMMON_MATCHES or recent * SCAN_BREAK_EVEN < limit * RECENT_PROMPTS:
            newest = self.select_matches(query, with_text=with_text)
        else:
            newest = _prompts(with_text).where(_unindexed(query, PROMPTS))
        return newest.order_by(newest.selected_columns[0].desc()).limit(literal_int(limit))

    def match_ids_if_rare(self, query: Query, limit: int) -> Select[Any]:
        ids = self.select_matches(query).limit(literal_int(limit)).scalar_subquery()
        return select(case((_count_recent(query) < COMMON_MATCHES, func.array(ids, type_=ARRAY(Integer)))))

    def match_condition(self, query: Query, prompt_id: Any) -> ColumnElement[bool]:
        prompts = PROMPTS.alias()
        return select(_unindexed(query, prompts)).where(prompts.c.id == prompt_id).scalar_subquery()

    def check_search_index(self, session: Session) -> bool:
        return not session.scalar(select(exists().where(HAS_DRIFTED)))

    def rebuild_search_index(self, session: Session) -> None:
        session.execute(update(PROMPTS).values(text=PROMPTS.c.text).where(HAS_DRIFTED))
        session.execute(text("REINDEX INDEX idx_prompts_words"))


def _prompts(with_text: bool) -> Select[Any]:
    return select(PROMPTS.c.id, PROMPTS.c.text) if with_text else select(PROMPTS.c.id)


def _condition(query: Query, prompts: FromClause) -> ColumnElement[bool]:
    wanted = [_expression(term) for term in query.wanted]
    expression = " & ".join([*wanted, *(f"!{_expression(term)}" for term in query.excluded)])
    # In a subquery, so that PostgreSQL reads the tsquery once: a generic plan would read it for every row.
    return prompts.c.words.op("@@", is_comparison=True)(select(cast(literal(expression), TSQUERY)).scalar_subquery())


def _count_recent(query: Query) -> ScalarSelect[int]:
    recent = select(PROMPTS).order_by(PROMPTS.c.id.desc()).limit(literal_int(RECENT_PROMPTS)).subquery()
    return select(func.count()).select_from(recent).where(_unindexed(query, recent)).scalar_subquery()


def _unindexed(query: Query, prompts: FromClause) -> ColumnElement[bool]:
    """Return the condition inside coalesce(), which stops the planner from using an index for it."""
    return func.coalesce(_condition(query, prompts), false())


def _expression(term: Term) -> str:
    """Return a term as a tsquery; the words are folded already, so no dictionary has to see them."""
    phrases = [" <-> ".join(f"'{word}'" for word in spelling.split()) for spelling in term.spellings]
    return f"({phrases[0]}:*)" if term.is_prefix else f"({' | '.join(f'({phrase})' for phrase in phrases)})"
