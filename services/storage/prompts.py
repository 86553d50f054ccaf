"""Count, read, list and delete prompts. Takes the session first; never commits."""

from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Select, bindparam, delete, select
from sqlalchemy.orm import Session

from .backends import backend_for
from .limits import INTEGER_LIMIT, PAGE_SIZE
from .models import Generation, Prompt
from .queue.enqueue import count_use
from .validation import is_storable, validate_count, validate_prompt_field


def track_prompt_usage(session: Session, prompt_text: str) -> Prompt:
    """Count one use of a prompt, new or known, and return it; the sum is made by the database.

    create_generation() has done so already for its own. Raises ValueError or TypeError for a text that is no prompt.
    """
    return count_use(session, validate_prompt_field("text", prompt_text))


def get_prompt(session: Session, prompt_id: int) -> Prompt | None:
    """Return the prompt with this id, or None."""
    prompt_id = validate_count("prompt_id", prompt_id, minimum=-INTEGER_LIMIT)
    return session.get(Prompt, prompt_id) if prompt_id <= INTEGER_LIMIT else None


def get_prompt_by_text(session: Session, text: str) -> Prompt | None:
    """Return the prompt with exactly this text, or None."""
    if not is_storable("text", text):
        return None
    return session.scalars(select(Prompt).where(backend_for(session).prompt_text_equals(text))).one_or_none()


def get_all_prompts(session: Session, limit: int = PAGE_SIZE, offset: int = 0) -> list[Prompt]:
    """Return prompts, most used first, ties broken by age."""
    portion = {"limit": validate_count("limit", limit), "offset": validate_count("offset", offset)}
    return list(session.scalars(_select_by_use(), portion))


def get_most_used_prompts(session: Session, limit: int = 10) -> list[Prompt]:
    """Return the most frequently used prompts, ties broken by age."""
    return get_all_prompts(session, limit=limit)


def delete_prompt(session: Session, prompt_id: int) -> bool:
    """Delete a prompt with all its generations and their attempts; tell whether there was one."""
    prompt_id = validate_count("prompt_id", prompt_id, minimum=-INTEGER_LIMIT)
    if prompt_id > INTEGER_LIMIT:
        return False
    session.flush()
    deleted = session.scalars(delete(Prompt).where(Prompt.id == prompt_id).returning(Prompt.id)).one_or_none()
    for row in list(session.identity_map.values()):
        # The database has deleted it too; an expired one would be looked for, and finds out by itself when it is read.
        if isinstance(row, Generation) and row.__dict__.get("prompt_id") == prompt_id:
            session.expunge(row)
    return deleted is not None


@cache  # building it takes as long as executing it
def _select_by_use() -> Select[Any]:
    ranked = select(Prompt).order_by(Prompt.used_count.desc(), Prompt.id)
    return ranked.limit(bindparam("limit", type_=BigInteger())).offset(bindparam("offset", type_=BigInteger()))
