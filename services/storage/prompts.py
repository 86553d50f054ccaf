"""Count, read, list and delete prompts. Functions take the session first and never commit."""

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Select, Text, bindparam, delete, select
from sqlalchemy.orm import Session

from .backends import Backend, backend_for
from .defaults import PAGE_SIZE
from .limits import INTEGER_LIMIT
from .models import Generation, Prompt
from .queue.enqueue import count_use
from .row_loading import ALONE, connection_of, find, load
from .validation import is_storable, validate_count, validate_prompt_field


def track_prompt_usage(session: Session, prompt_text: str) -> Prompt:
    """Count one use of a prompt, which is created if it is new, and return it; the database adds up the count.

    create_generation() does this itself. Raises ValueError or TypeError for an invalid text.
    """
    return count_use(session, validate_prompt_field("text", prompt_text))


def get_prompt(session: Session, prompt_id: int) -> Prompt | None:
    """Return the prompt with this id, or None."""
    storable = _storable_id(prompt_id)
    return None if storable is None else session.get(Prompt, storable)


def get_prompt_by_text(session: Session, text: str) -> Prompt | None:
    """Return the prompt with exactly this text, or None."""
    if not is_storable("text", text):
        return None
    row = connection_of(session).execute(_select_by_text(backend_for(session)), {"text": text}).one_or_none()
    return None if row is None else load(session, Prompt, [row])[0]


def get_all_prompts(session: Session, limit: int = PAGE_SIZE, offset: int = 0) -> list[Prompt]:
    """Return prompts, most used first, then by id."""
    parameters = {"limit": validate_count("limit", limit), "offset": validate_count("offset", offset)}
    return find(session, Prompt, _select_by_use(), parameters)[0]


def get_most_used_prompts(session: Session, limit: int = 10) -> list[Prompt]:
    """Return the most frequently used prompts, then by id."""
    return get_all_prompts(session, limit=limit)


def delete_prompt(session: Session, prompt_id: int) -> bool:
    """Delete a prompt, its generations and their attempts; return whether the prompt existed."""
    storable = _storable_id(prompt_id)
    if storable is None:
        return False
    session.flush()
    deleted = session.scalars(delete(Prompt).where(Prompt.id == storable).returning(Prompt.id)).one_or_none()
    for row in list(session.identity_map.values()):
        # Deleted by the database's cascade. Expired objects are skipped: reading prompt_id would query each of them,
        # and they raise ObjectDeletedError when they are read.
        if isinstance(row, Generation) and row.__dict__.get("prompt_id") == storable:
            session.expunge(row)
    return deleted is not None


def _storable_id(prompt_id: int) -> int | None:
    """Return `prompt_id` as an int, or None if it is too large to be stored."""
    number = validate_count("prompt_id", prompt_id, minimum=-INTEGER_LIMIT)
    return number if number <= INTEGER_LIMIT else None


@cache
def _select_by_text(backend: Backend) -> Select[Any]:
    found = select(Prompt.__table__).where(backend.prompt_text_equals(bindparam("text", type_=Text())))
    return found.execution_options(**ALONE)


@cache  # building the statement takes as long as executing it
def _select_by_use() -> Select[Any]:
    ranked = select(Prompt).order_by(Prompt.used_count.desc(), Prompt.id)
    return ranked.limit(bindparam("limit", type_=BigInteger())).offset(bindparam("offset", type_=BigInteger()))
