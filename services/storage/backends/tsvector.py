"""What PostgreSQL says about the contents of rows: full-text search through tsvector, JSON members, exact times."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import reduce
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    ScalarSelect,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    extract,
    false,
    func,
    literal,
    literal_column,
    select,
    table,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSQUERY, TSVECTOR
from sqlalchemy.orm import Session

from ..terms import UNSPACED, Query, Term
from ..types import UTCDateTime
from .base import OFTEN, RECENT, JSONKind, has_literals, inline

# The models do not have the generated column: there is none on SQLite.
PROMPTS = table("prompts", column("id", Integer), column("text", Text), column("words", TSVECTOR))
# Looking through so many prompts costs about what gathering the others' words in the index does: 40 ms, of a million.
WALKED = 150_000
SIMPLE: ColumnElement[Any] = literal_column("'simple'::regconfig")


class TSVectorSearch:
    """The part of the PostgreSQL backend that looks into texts; see Backend."""

    def clock(self) -> Callable[[timedelta], ColumnElement[datetime]]:
        # Not clock_timestamp(): it may change between two rows, so no index would be asked.
        return lambda offset: type_coerce(func.statement_timestamp() + offset, UTCDateTime())

    def microseconds(self, time: Any) -> ColumnElement[int]:
        return cast(extract("epoch", time) * 1_000_000, BigInteger)

    def json_member(self, document: Any, key: str, kind: JSONKind) -> ColumnElement[Any]:
        value = type_coerce(document, JSONB)[key]
        its_kind = func.jsonb_typeof(value)
        if kind == "any":
            return func.nullif(its_kind, "null")
        plain = cast(value.astext, Numeric) if kind == "number" else value.astext
        if kind == "boolean":
            plain = case((value.astext == "true", 1), else_=0)
        return case((its_kind == ("string" if kind == "text" else kind), plain))

    def json_number(self, value: float) -> ColumnElement[Any]:
        # As written: a number stored as 0.1 is the numeric 0.1, not the nearest double.
        return literal(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), Numeric)

    def matching_prompts(self, query: Query, *, with_text: bool = False) -> Select[Any]:
        # Fenced in: of a rare word the planner knows nothing, and with an order or a limit it reads the whole table.
        found = _prompts(with_text).where(*_conditions(query, PROMPTS)).cte().prefix_with("MATERIALIZED")
        return select(found)

    def newest_matches(self, session: Session, query: Query, limit: int, *, with_text: bool = False) -> Select[Any]:
        recent = session.scalars(select(_count_recent(query))).one()
        if recent < OFTEN or recent * WALKED < limit * RECENT:
            newest = self.matching_prompts(query, with_text=with_text)
        else:
            newest = _prompts(with_text).where(_unindexed(query, PROMPTS))
        return newest.order_by(newest.selected_columns[0].desc()).limit(inline(limit))

    def few_matches(self, query: Query, limit: int) -> Select[Any]:
        ids = self.matching_prompts(query).limit(inline(limit)).scalar_subquery()
        return select(case((_count_recent(query) < OFTEN, func.array(ids, type_=ARRAY(Integer)))))

    def prompt_matches(self, query: Query, prompt_id: Any) -> ColumnElement[bool]:
        prompts = PROMPTS.alias()
        return select(_unindexed(query, prompts)).where(prompts.c.id == prompt_id).scalar_subquery()

    def numbers(self, numbers: Sequence[int]) -> FromClause:
        return func.unnest(literal(list(numbers), ARRAY(Integer))).table_valued("value").render_derived()

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
    recent = select(PROMPTS).order_by(PROMPTS.c.id.desc()).limit(inline(RECENT)).subquery()
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
