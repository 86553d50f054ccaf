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
from .base import COMMON_MATCHES, RECENT_PROMPTS, has_literals

# The models do not have the generated column: there is none on SQLite.
PROMPTS = table("prompts", column("id", Integer), column("text", Text), column("words", TSVECTOR))
# Looking through so many prompts costs about what gathering the others' words in the index does: 40 ms, of a million.
WALKED = 150_000
SIMPLE: ColumnElement[Any] = literal_column("'simple'::regconfig")


class TSVectorSearch:
    """The search dialect of PostgreSQL; see SearchDialect."""

    def select_matches(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        # Fenced in: of a rare word the planner knows nothing, and with an order or a limit it reads the whole table.
        found = _prompts(with_text).where(*_conditions(query, PROMPTS)).cte().prefix_with("MATERIALIZED")
        return select(found)

    def select_newest_matches(
        self, session: Session, query: Query, limit: int, *, with_text: bool = False
    ) -> Select[Any]:
        recent = session.scalars(select(_count_recent(query))).one()
        if recent < COMMON_MATCHES or recent * WALKED < limit * RECENT_PROMPTS:
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
    conditions = [has_literals(prompts.c.text, term) for term in query.wanted if term.literals]
    conditions += [~has_literals(prompts.c.text, term) for term in query.excluded if term.literals]
    wanted = [_expression(term) for term in query.wanted if term.spellings]
    unwanted: list[ColumnElement[Any]] = [
        func.tsquery_not(_expression(term), type_=TSQUERY) for term in query.excluded if not term.literals
    ]
    if not query.is_literal:
        every = reduce(lambda left, right: func.tsquery_and(left, right, type_=TSQUERY), wanted + unwanted)
        # Asked for on its own, so that it is made once: in a plan kept for any words it would be made for every row.
        conditions.append(prompts.c.words.op("@@", is_comparison=True)(select(every).scalar_subquery()))
    else:
        # Looked through, but only the prompts in such languages; the condition has to be the index's own.
        conditions.append(prompts.c.text.op("~", is_comparison=True)(literal_column(f"'[{UNSPACED}]'")))
    return conditions


def _count_recent(query: Query) -> ScalarSelect[int]:
    recent = select(PROMPTS).order_by(PROMPTS.c.id.desc()).limit(literal_int(RECENT_PROMPTS)).subquery()
    return select(func.count()).select_from(recent).where(_unindexed(query, recent)).scalar_subquery()


def _unindexed(query: Query, prompts: FromClause) -> ColumnElement[bool]:
    """Return the conditions for rows met in another order, so that no planner looks for them in an index."""
    return func.coalesce(and_(*_conditions(query, prompts)), false())


def _expression(term: Term) -> ColumnElement[Any]:
    spellings = [func.phraseto_tsquery(SIMPLE, func.prompt_words(one), type_=TSQUERY) for one in term.spellings]
    if term.is_prefix:
        # Of no words at all there is no beginning: NULL, which finds nothing.
        return cast(func.nullif(cast(spellings[0], Text), "").concat(":*"), TSQUERY)
    return reduce(lambda left, right: func.tsquery_or(left, right, type_=TSQUERY), spellings)


def _as_words(prompt_text: Any) -> ColumnElement[Any]:
    return func.to_tsvector(SIMPLE, func.prompt_words(prompt_text), type_=TSVECTOR)
