"""End an attempt under a lease in one step: its row of history and its generation together. SQL only; never commits.

The statements are built once, for the usual case: the lease is held, nobody asked to cancel, and the metadata can be
merged. In any other case they write nothing, and leases.py finds out what to do, statement by statement. See ADR 25.
"""

from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Text, bindparam, case, literal_column, null, select, update
from sqlalchemy.orm import Session

from ..backends import Backend, backend_for
from ..conditions import HAS_ATTEMPTS_LEFT, PROCESSING, literal_int
from ..errors import LeaseLostError
from ..lifecycle import AttemptOutcome, GenerationStatus, transition_values
from ..models import Base, Generation, Lease
from ..row_loading import GENERATIONS, connection_of, execute_directly, load_generations, require_transaction
from ..validation import is_storable, validate_generation_field

ATTEMPTS: Final = Base.metadata.tables["attempts"]
LEASE_HELD: Final = (
    Generation.id == bindparam("lease_generation_id"),
    Generation.worker_id == bindparam("lease_worker_id"),
    Generation.attempt == bindparam("lease_attempt"),
    PROCESSING,
)
NEXT_VERSION: Final = Generation.version + literal_int(1)
STORED_METADATA: Final = select(GENERATIONS.c.metadata).where(GENERATIONS.c.id == bindparam("lease_generation_id"))


def lease_parameters(lease: Lease) -> dict[str, Any]:
    """Return the parameters of LEASE_HELD.

    Raises TypeError for anything but a lease, LeaseLostError for ids that cannot be stored.
    """
    if not isinstance(lease, Lease):
        raise TypeError(f"lease must be a Lease, such as generation.lease, not {type(lease).__name__}")
    if not (is_storable("generation_id", lease.generation_id) and is_storable("worker_id", lease.worker_id)):
        raise LeaseLostError
    return {
        "lease_generation_id": lease.generation_id,
        "lease_worker_id": lease.worker_id,
        "lease_attempt": validate_generation_field("attempt", lease.attempt),
    }


def complete_at_once(
    session: Session, lease: Lease, result: dict[str, Any], changes: Mapping[str, Any] | None
) -> Generation | None:
    """Complete the generation, with `changes` merged into its metadata; or do nothing and return None."""
    backend, connection = backend_for(session), connection_of(session)
    parameters = lease_parameters(lease) | result
    if changes is not None:
        stored = None
        if not backend.merges_metadata:
            # Before the first write, so that SQLite's write lock is held for two statements only.
            stored = connection.execute(STORED_METADATA, parameters).scalar()
        try:
            parameters |= backend.merge_parameters(stored, changes)
        except ValueError:
            return None
    return _execute(session, connection, _completion(backend, changes is not None), parameters)


def fail_at_once(session: Session, lease: Lease, message: str, retry_after: float | None) -> Generation | None:
    """Fail the generation, or make it pending again after so many seconds; or do nothing and return None."""
    parameters = lease_parameters(lease) | {"message": message}
    if retry_after is not None:
        parameters["retry_after"] = timedelta(seconds=retry_after)
    statements = _failure(backend_for(session), retry_after is not None)
    return _execute(session, connection_of(session), statements, parameters)


def _execute(
    session: Session, connection: Connection, statements: Any, parameters: Mapping[str, Any]
) -> Generation | None:
    *history, end = statements
    if history:
        require_transaction(session)
    for record in history:
        if execute_directly(connection, record, parameters).rowcount != 1:
            return None
    ended = load_generations(session, connection.execute(end, parameters))
    return ended[0] if ended else None


@cache
def _completion(backend: Backend, merges: bool) -> list[Any]:
    values: dict[str, Any] = {
        "generation_time_seconds": bindparam("generation_time_seconds"),
        "file_size_bytes": bindparam("file_size_bytes"),
        "file_sha256": bindparam("file_sha256"),
        "file_format": bindparam("file_format"),
    }
    conditions: list[ColumnElement[bool]] = []
    if merges:
        merged, condition = backend.merge_metadata(Generation.metadata_json)
        values["metadata_json"] = merged
        conditions.append(condition)
    values |= _transition(backend, GenerationStatus.COMPLETED)
    return _statements(backend, AttemptOutcome.COMPLETED, literal_column("NULL", Text), conditions, values)


@cache
def _failure(backend: Backend, retries: bool) -> list[Any]:
    message = bindparam("message", type_=Text())
    values = _transition(backend, GenerationStatus.FAILED) | {"error_message": message}
    if retries:
        pending = _transition(backend, GenerationStatus.PENDING)
        pending |= {"error_message": message, "scheduled_at": backend.now_after("retry_after")}
        values = {field: _if_attempts_left(field, pending, values) for field in values | pending}
    return _statements(backend, AttemptOutcome.FAILED, message, [], values)


def _if_attempts_left(field: str, pending: Mapping[str, Any], failed: Mapping[str, Any]) -> Any:
    """Return the value of a column in the UPDATE that makes a row pending if it has attempts left, else failed."""
    unchanged = getattr(Generation, field)
    retried, ended = pending.get(field, unchanged), failed.get(field, unchanged)
    return ended if retried is ended else case((HAS_ATTEMPTS_LEFT, retried), else_=ended)


def _transition(backend: Backend, target: GenerationStatus) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(transition_values(GenerationStatus.PROCESSING, target), null())
    if "completed_at" in values:
        values["completed_at"] = backend.now()
    return values | {"status": literal_column(f"'{target}'"), "version": NEXT_VERSION}


def _statements(
    backend: Backend,
    outcome: AttemptOutcome,
    message: Any,
    conditions: list[ColumnElement[bool]],
    values: Mapping[str, Any],
) -> list[Any]:
    """Return the statements that record an attempt and end it: one where an INSERT can be part of an UPDATE, else two.

    The INSERT comes first: the row lock that its query takes decides which caller ends the attempt.
    """
    history = {
        "generation_id": Generation.id,
        "number": Generation.attempt,
        "worker_id": Generation.worker_id,
        "started_at": Generation.started_at,
        "finished_at": backend.now(),
        "outcome": literal_column(f"'{outcome}'", Text),
        "error_message": message,
    }
    leased = select(*history.values()).where(*LEASE_HELD, Generation.cancel_requested_at.is_(None), *conditions)
    record = backend.insert(ATTEMPTS).from_select(list(history), leased.with_for_update()).on_conflict_do_nothing()
    end = update(Generation).values(values).returning(GENERATIONS)
    if not backend.has_writing_ctes:
        return [record, end.where(Generation.id == bindparam("lease_generation_id"))]
    recorded = record.returning(ATTEMPTS.c.generation_id).cte("recorded")
    return [end.where(Generation.id == select(recorded.c.generation_id).scalar_subquery())]
