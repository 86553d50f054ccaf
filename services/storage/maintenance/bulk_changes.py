"""Cancel, retry, delete or mark many generations: those of a list of ids, or all that meet the filters of a list.

Works in short transactions with pauses, so that others write meanwhile, and can be interrupted and run again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, TypedDict, Unpack

from sqlalchemy import ColumnElement, CursorResult, Delete, Update, delete, select, update
from sqlalchemy.orm import Session

from ..conditions import still_has_status
from ..engine import Storage, get_storage
from ..filters import Filters, FiltersButFavorite
from ..generations import list_generations
from ..lifecycle import GenerationStatus
from ..limits import ROWS_PER_STATEMENT
from ..models import Generation
from ..queue.control import update_to_cancelled, update_to_pending
from ..queue.due import announce_due
from ..validation import is_storable
from .pacing import Pace

MOST_ROWS: Final = ROWS_PER_STATEMENT
Progress = Callable[[int], None]


class _Options(TypedDict, total=False):
    ids: Iterable[str] | None
    dry_run: bool
    progress: Progress | None
    storage: Storage | None


class _Arguments(Filters, _Options, total=False):
    pass


class _ArgumentsButFavorite(FiltersButFavorite, _Options, total=False):
    pass


@dataclass(frozen=True)
class _Action:
    """What happens to a batch of ids, and which rows it leaves as they are."""

    statement: Callable[[Session, ColumnElement[bool]], Update | Delete]
    applies: ColumnElement[bool]


def cancel_generations(**arguments: Unpack[_Arguments]) -> int:
    """Cancel many generations as cancel_generation() does, and return their number; finished ones stay as they are.

    `ids` names them, or the filters of list_generations(); without either it is all of them. With `dry_run` nothing
    changes. Calls `progress(number so far)` after each batch of 100 to 1,000, which is one transaction.
    """
    unfinished = still_has_status((GenerationStatus.PENDING.value, GenerationStatus.PROCESSING.value))
    not_requested = Generation.cancel_requested_at.is_(None)
    return _apply(_Action(update_to_cancelled, unfinished & not_requested), **arguments)


def retry_generations(**arguments: Unpack[_Arguments]) -> int:
    """Retry many failed and cancelled generations as retry_generation() does; arguments as in cancel_generations()."""
    ended = still_has_status((GenerationStatus.FAILED.value, GenerationStatus.CANCELLED.value))

    def retry(session: Session, condition: ColumnElement[bool]) -> Update:
        announce_due(session)
        return update_to_pending(session, condition)

    return _apply(_Action(retry, ended), **arguments)


def delete_generations(**arguments: Unpack[_Arguments]) -> int:
    """Delete many generations as delete_generation() does; arguments as in cancel_generations()."""
    return _apply(
        _Action(lambda session, condition: delete(Generation).where(condition), Generation.id.is_not(None)), **arguments
    )


def set_favorites(favorite: bool = True, **arguments: Unpack[_ArgumentsButFavorite]) -> int:
    """Set or clear the favorite mark of many generations; arguments as in cancel_generations()."""

    def mark(session: Session, condition: ColumnElement[bool]) -> Update:
        return update(Generation).where(condition).values(is_favorite=favorite, version=Generation.version + 1)

    return _apply(_Action(mark, Generation.is_favorite.is_not(favorite)), **arguments)


def _apply(
    action: _Action,
    *,
    ids: Iterable[str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    storage: Storage | None = None,
    **filters: Any,
) -> int:
    if ids is not None and filters:
        raise ValueError(f"ids and {min(filters)} cannot be combined: name ids or filters")
    storage = storage or get_storage()
    pace, count = Pace(most_rows=MOST_ROWS), 0
    for batch in _given(ids, pace) if ids is not None else _listed(storage, filters, pace):
        chosen = Generation.id.in_(batch) & action.applies
        if dry_run:
            count += storage.run_in_transaction(partial(_count, condition=chosen), read_only=True)
        else:
            count += pace.run_in_transaction(storage, partial(_execute, action=action, condition=chosen))
        if progress is not None:
            progress(count)
    return count


def _given(ids: Iterable[str], pace: Pace) -> Iterator[Sequence[str]]:
    known = (generation_id for generation_id in ids if is_storable("ids", generation_id))
    while batch := list(islice(known, pace.rows)):
        yield batch


def _listed(storage: Storage, filters: dict[str, Any], pace: Pace) -> Iterator[Sequence[str]]:
    """Yield the ids of a list page by page; what an action changes never moves a row to a later page."""
    cursor: str | None = None
    while True:
        with storage.session(read_only=True) as session:
            page = list_generations(session, limit=pace.rows, after=cursor, **filters)
        if page.items:
            yield [generation.id for generation in page.items]
        if page.next is None:
            return
        cursor = page.next


def _count(session: Session, condition: ColumnElement[bool]) -> int:
    return len(session.scalars(select(Generation.id).where(condition)).all())


def _execute(session: Session, action: _Action, condition: ColumnElement[bool]) -> int:
    changed: CursorResult[Any] = session.connection().execute(action.statement(session, condition))
    return changed.rowcount
