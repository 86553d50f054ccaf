"""Full-text search on PostgreSQL: a generated tsvector column of `prompts` with a GIN index."""

from functools import reduce
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal_column,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, TSVECTOR
from sqlalchemy.orm import Session

from ..conditions import literal_int
from ..search_query import UNSPACED, Query, Term
from .base import COMMON_MATCHES, RECENT_PROMPTS, literal_conditions

# The models lack the generated column `words`, because SQLite has none.
PROMPTS = table("prompts", column("id", Integer), column("text", Text), column("words", TSVECTOR))
# Scanning this many prompts takes as long as collecting all matches of a common query among a million prompts from the
# index: 40 ms (ADR 23).
SCAN_BREAK_EVEN = 150_000
SIMPLE: ColumnElement[Any] = literal_column("'simple'::regconfig")


class TSVectorSearch:
    """The search dialect of PostgreSQL; see SearchDialect."""

    def select_matches(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        # MATERIALIZED: the planner has no statistics of rare words, and with ORDER BY or LIMIT it would read the whole
        # table instead of the index.
        matches = _prompts(with_text).where(*_conditions(query, PROMPTS)).cte().prefix_with("MATERIALIZED")
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
        drifted = exists().where(PROMPTS.c.words.is_distinct_from(_as_words(PROMPTS.c.text)))
        return not session.scalar(select(drifted))

    def rebuild_search_index(self, session: Session) -> None:
        drifted = PROMPTS.c.words.is_distinct_from(_as_words(PROMPTS.c.text))
        session.execute(update(PROMPTS).values(text=PROMPTS.c.text).where(drifted))
        session.execute(text("REINDEX INDEX idx_prompts_words"))


def _prompts(with_text: bool) -> Select[Any]:
    return select(PROMPTS.c.id, PROMPTS.c.text) if with_text else select(PROMPTS.c.id)


def _conditions(query: Query, prompts: FromClause) -> list[ColumnElement[bool]]:
    conditions = literal_conditions(query, prompts.c.text)
    wanted = [_expression(term) for term in query.wanted if term.spellings]
    unwanted: list[ColumnElement[Any]] = [
        func.tsquery_not(_expression(term), type_=TSQUERY) for term in query.excluded if not term.literals
    ]
    if not query.is_literal:
        every = reduce(lambda left, right: func.tsquery_and(left, right, type_=TSQUERY), wanted + unwanted)
        # In a subquery, so that PostgreSQL builds the tsquery once: a generic plan would build it for every row.
        conditions.append(prompts.c.words.op("@@", is_comparison=True)(select(every).scalar_subquery()))
    else:
        # A scan of the prompts in languages without spaces. The condition has to be the one of the partial index
        # idx_prompts_unspaced, so that PostgreSQL uses that index.
        conditions.append(prompts.c.text.op("~", is_comparison=True)(literal_column(f"'[{UNSPACED}]'")))
    return conditions


def _count_recent(query: Query) -> ScalarSelect[int]:
    recent = select(PROMPTS).order_by(PROMPTS.c.id.desc()).limit(literal_int(RECENT_PROMPTS)).subquery()
    return select(func.count()).select_from(recent).where(_unindexed(query, recent)).scalar_subquery()


def _unindexed(query: Query, prompts: FromClause) -> ColumnElement[bool]:
    """Return the conditions inside coalesce(), which stops the planner from using an index for them."""
    return func.coalesce(and_(*_conditions(query, prompts)), false())


def _expression(term: Term) -> ColumnElement[Any]:
    spellings = [func.phraseto_tsquery(SIMPLE, func.prompt_words(one), type_=TSQUERY) for one in term.spellings]
    if term.is_prefix:
        # Text without any word gives an empty tsquery, which has no prefix form: NULL matches nothing.
        return cast(func.nullif(cast(spellings[0], Text), "").concat(":*"), TSQUERY)
    return reduce(lambda left, right: func.tsquery_or(left, right, type_=TSQUERY), spellings)


def _as_words(prompt_text: Any) -> ColumnElement[Any]:
    return func.to_tsvector(SIMPLE, func.prompt_words(prompt_text), type_=TSVECTOR)
