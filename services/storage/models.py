"""The mapped classes, except those of retention_models.py; those of queue_models.py are imported. Uses no session."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Unpack

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    ColumnElement,
    FetchedValue,
    ForeignKey,
    Index,
    Integer,
    UniqueConstraint,
    event,
    inspect,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship, validates

from . import validation
from .constructor_arguments import GenerationFields, PromptFields
from .declarative import Base, HasMetadata, next_version, partial_index, stored_number, whole_number
from .defaults import MAX_ATTEMPTS
from .errors import ConflictError, IllegalTransitionError
from .lifecycle import GenerationStatus, Lease, is_legal_move, transition_values, validate_status
from .model_base import Row, SameAs
from .queue_models import Attempt, QueueState, RegisteredWorker
from .retention_models import PrunedFile, UsageTotal
from .serialization import plain
from .status_predicates import StatusPredicates
from .types import BigInt, JSONObject, JSONText, load_json_object, load_read_only, time_form, utcnow, uuid7

__all__ = [
    "TABLES",
    "Attempt",
    "Base",
    "Generation",
    "Lease",
    "Prompt",
    "PrunedFile",
    "QueueState",
    "RegisteredWorker",
    "UsageTotal",
]


class _PendingCount(int):
    """The expected use count; at the flush, the database adds only `added` to the count stored by then."""

    added: int = 0


class Prompt(Row):
    """A distinct text of generations, and how often it was used."""

    __tablename__ = "prompts"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str] = mapped_column()
    used_count: Mapped[int] = mapped_column(default=1, server_onupdate=FetchedValue())  # see increment_usage()
    first_used_at: Mapped[datetime] = mapped_column(default=utcnow)
    last_used_at: Mapped[datetime] = mapped_column(default=SameAs("first_used_at", utcnow))

    generations: Mapped[list["Generation"]] = relationship(viewonly=True, order_by="Generation.created_at")

    __mapper_args__ = {"eager_defaults": True}
    __table_args__ = (
        # get_prompt_by_text and the upsert of create. PostgreSQL refuses b-tree keys over 2.7 kB, so the revisions
        # create a unique index on md5(text) there (ADR 7). It is not in the models, because SQLite has no md5().
        UniqueConstraint("text", info={"only_on": "sqlite"}),
        # get_most_used_prompts
        Index("idx_prompts_used_count", used_count.desc(), id),
        whole_number("used_count", 1, name="used_count_positive"),
        *time_form("first_used_at", "last_used_at"),
    )

    @validates("text", "used_count", "first_used_at", "last_used_at")
    def _validate(self, field: str, value: Any) -> Any:
        if isinstance(value, (ColumnElement, _PendingCount)):
            return value
        valid = validation.validate_prompt_field(field, value)
        if field == "text" and inspect(self).has_identity and valid != self.text:
            raise ValueError("text of a stored prompt cannot change: its generations have the same text")
        return valid

    if TYPE_CHECKING:

        def __init__(self, **values: Unpack[PromptFields]) -> None: ...

    def increment_usage(self) -> None:
        """Count one use now.

        For a stored prompt, the database adds to its own count at the next flush, so concurrent sessions lose no use.
        """
        count = _PendingCount(self.used_count + 1)
        count.added = getattr(self.used_count, "added", 0) + 1
        self.used_count = count if inspect(self).has_identity else int(count)
        self.last_used_at = utcnow()

    def __repr__(self) -> str:
        of = self._get_for_repr
        return f"<Prompt {of('id')} text={of('text')!r} used_count={of('used_count')}>"


@event.listens_for(Prompt, "before_update")
def _add_in_sql(mapper: Any, connection: Any, prompt: Prompt) -> None:
    count: Any = prompt.__dict__.get("used_count")
    if isinstance(count, _PendingCount):
        prompt.used_count = Prompt.used_count + count.added


class Generation(StatusPredicates, HasMetadata, Row):  # type: ignore[misc]  # see ADR 4
    """A music generation job: one row is both the queue entry and the history."""

    __tablename__ = "generations"

    id: Mapped[str] = mapped_column(primary_key=True, default=uuid7)
    prompt: Mapped[str]
    model_name: Mapped[str] = mapped_column()
    model_version: Mapped[str | None]
    duration_seconds: Mapped[float]
    sample_rate: Mapped[int]
    channels: Mapped[int]
    file_path: Mapped[str]
    file_size_bytes: Mapped[int | None] = mapped_column(BigInt)
    status: Mapped[str] = mapped_column(default=GenerationStatus.PENDING.value)
    created_at: Mapped[datetime] = mapped_column(default=utcnow)
    completed_at: Mapped[datetime | None] = mapped_column()
    generation_time_seconds: Mapped[float | None]
    error_message: Mapped[str | None]
    metadata_json: Mapped[str | None] = mapped_column("metadata", JSONText)
    prompt_id: Mapped[int | None] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    priority: Mapped[int] = mapped_column(default=0)
    scheduled_at: Mapped[datetime] = mapped_column(default=SameAs("created_at", utcnow))
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=MAX_ATTEMPTS)
    started_at: Mapped[datetime | None]
    worker_id: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None] = mapped_column()
    progress: Mapped[float | None]
    current_step: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None]
    batch_id: Mapped[str | None] = mapped_column()
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("generations.id", ondelete="SET NULL"))
    idempotency_key: Mapped[str | None] = mapped_column()
    is_favorite: Mapped[bool] = mapped_column(Boolean, default=False)
    parameters: Mapped[Mapping[str, Any] | None] = mapped_column(JSONObject)
    version: Mapped[int] = mapped_column(default=1)
    file_sha256: Mapped[str | None]
    file_format: Mapped[str | None]
    file_missing_since: Mapped[datetime | None]

    # Not viewonly, because a flush inserts prompts before generations only if this relationship can be written.
    prompt_record: Mapped[Prompt | None] = relationship(cascade="")
    parent: Mapped["Generation | None"] = relationship(remote_side=id)
    variations: Mapped[list["Generation"]] = relationship(viewonly=True, order_by=created_at)
    attempts: Mapped[list[Attempt]] = relationship(viewonly=True, order_by=Attempt.number)

    __mapper_args__ = {"version_id_col": version, "version_id_generator": next_version}
    __table_args__ = (
        # count_generations, get_database_stats: the smallest index, so that counting reads few pages
        Index("idx_generations_status", status),
        # get_all_generations, list_generations: newest first
        Index("idx_generations_created_at", created_at.desc(), id.desc()),
        # list_generations(status=…) except for completed, which uses the index above: most rows are completed
        partial_index(
            "idx_generations_status_created_at", "status <> 'completed'", status, created_at.desc(), id.desc()
        ),
        # list_generations(model_name=…)
        Index("idx_generations_model_name", model_name, created_at.desc(), id.desc()),
        # throughput and durations of recently finished generations, pruning
        partial_index("idx_generations_completed_at", "completed_at IS NOT NULL", completed_at),
        # claim, get_pending_generations, queue position; status comes first because SQLite without statistics would
        # otherwise use idx_generations_status and sort the whole backlog
        partial_index("idx_generations_due", "status = 'pending'", status, priority.desc(), scheduled_at, id),
        # claim(model_names=…)
        partial_index(
            "idx_generations_due_model", "status = 'pending'", status, model_name, priority.desc(), scheduled_at, id
        ),
        # reclaim, processing generations; status comes first for the same reason
        partial_index("idx_generations_lease", "status = 'processing'", status, lease_expires_at),
        # the cascade of delete_prompt, list_generations(prompt=…)
        Index("idx_generations_prompt_id", prompt_id, created_at.desc(), id.desc()),
        # list_generations(batch_id=…), cancel_batch
        partial_index("idx_generations_batch_id", "batch_id IS NOT NULL", batch_id, created_at.desc(), id.desc()),
        # ON DELETE SET NULL of a parent
        partial_index("idx_generations_parent_id", "parent_id IS NOT NULL", parent_id),
        # create_generation(idempotency_key=…)
        partial_index("uq_generations_idempotency_key", "idempotency_key IS NOT NULL", idempotency_key, unique=True),
        # list_generations(favorite=True)
        partial_index("idx_generations_favorite", "is_favorite", created_at.desc(), id.desc()),
        CheckConstraint("status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')", name="status_known"),
        CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name="finished_has_time"
        ),
        CheckConstraint("lease_expires_at IS NULL OR status = 'processing'", name="lease_while_processing"),
        # The upper bounds refuse infinities, NaN and, on SQLite, text, which is greater than any number.
        CheckConstraint("duration_seconds > 0 AND duration_seconds <= 1e300", name="duration_positive"),
        whole_number("sample_rate", 1, name="sample_rate_positive"),
        CheckConstraint("channels IN (1, 2)", name="channels_mono_or_stereo"),
        whole_number("file_size_bytes", 0, 9_223_372_036_854_775_807, name="file_size_not_negative"),
        CheckConstraint("generation_time_seconds BETWEEN 0 AND 1e300", name="generation_time_not_negative"),
        CheckConstraint("progress BETWEEN 0 AND 1", name="progress_is_fraction"),
        whole_number("priority", -2_147_483_647, name="priority_whole"),
        whole_number("attempt", 0, name="attempt_not_negative"),
        whole_number("max_attempts", 1, name="max_attempts_positive"),
        whole_number("version", 1, name="version_positive"),
        CheckConstraint("is_favorite IN (0, 1)", name="favorite_is_flag", info={"only_on": "sqlite"}).ddl_if("sqlite"),
        CheckConstraint("length(file_sha256) = 64", name="file_sha256_length"),
        *time_form("created_at", "scheduled_at", "started_at", "completed_at", "lease_expires_at"),
        *time_form("cancel_requested_at", "file_missing_since"),
    )

    @validates(*(field for field in validation.GENERATION_RULES if field not in ("status", "version")))
    def _validate(self, field: str, value: Any) -> Any:
        if field == "id" and value is None and not inspect(self).has_identity:
            return None  # make_transient() and `row.id = None` make a copy: the flush gives it an id
        valid = validation.validate_generation_field(field, value)
        if field == "prompt" and inspect(self).has_identity and valid != self.prompt:
            raise ValueError(
                "prompt of a stored generation cannot change: use clone_generation() to create a variation"
            )
        return valid

    @validates("version")
    def _check_version(self, field: str, value: Any) -> int:
        """Refuse any version but that of the stored row, so a stale form cannot overwrite a newer row. See ADR 8."""
        valid: int = validation.validate_generation_field(field, value)
        if inspect(self).has_identity and valid != self.version:
            raise ConflictError(
                f"version of the stored row is {self.version}, not {valid}: read the row again, then repeat the change"
            )
        return valid

    @validates("prompt_record")
    def _refuse_prompt_record(self, field: str, value: Any) -> None:
        if value is None and not inspect(self).has_identity:
            return  # an empty form; the flush finds the record anyway
        raise ValueError("prompt_record cannot be assigned: assign prompt, the text; the flush finds its record")

    @validates("status")
    def _change_status(self, field: str, value: Any) -> str:
        """Set the columns that depend on the status, so that assigning a status keeps the row valid. See ADR 5."""
        target = validate_status(value)
        current = self.status
        if current is not None and not is_legal_move(current, target):
            raise IllegalTransitionError(current, target)
        if current != target:
            for column, new_value in transition_values(current, target).items():
                if column != "completed_at" or new_value is None or self.completed_at is None:
                    setattr(self, column, new_value)
            if current is not None and target == GenerationStatus.PENDING:
                attempt = stored_number("attempt", self.attempt)
                self.max_attempts = max(stored_number("max_attempts", self.max_attempts), attempt + 1)
        return target

    if TYPE_CHECKING:

        def __init__(self, **values: Unpack[GenerationFields]) -> None: ...

    @property
    def lease(self) -> Lease | None:
        """The current lease, or None without one."""
        if self.lease_expires_at is None or self.worker_id is None:
            return None
        return Lease(self.id, self.worker_id, self.attempt)

    def get_metadata(self) -> dict[str, Any]:
        """Return the metadata as a new dict; {} if there is none or the stored text is not a JSON object."""
        stored = self.metadata_json
        return {} if stored is None else load_json_object(stored) or {}

    @property
    def metadata_dict(self) -> Mapping[str, Any]:
        """The metadata as get_metadata() returns it, but read-only, for tools that read attributes."""
        stored = self.metadata_json
        return {} if stored is None else load_read_only(stored) or {}

    def set_metadata(self, metadata_dict: Mapping[str, Any] | None) -> None:
        """Replace the metadata. Raises ValueError or TypeError for anything but a JSON object of at most 64 KiB."""
        self.metadata_json = metadata_dict  # type: ignore[assignment]  # validation turns it into text

    def mark_processing(self) -> None:
        """Set the status to processing, without a lease. Raises IllegalTransitionError if it is finished."""
        self.status = GenerationStatus.PROCESSING

    def mark_completed(self, generation_time: float) -> None:
        """Set the status to completed, after `generation_time` seconds of work.

        Raises IllegalTransitionError if it has failed or was cancelled, ValueError or TypeError for an invalid time.
        """
        generation_time = validation.validate_generation_field("generation_time_seconds", generation_time)
        self.status = GenerationStatus.COMPLETED
        self.generation_time_seconds = generation_time

    def mark_failed(self, error_message: str) -> None:
        """Set the status to failed. Any message is accepted; it is cut to 8,192 characters.

        Raises IllegalTransitionError if it was completed or cancelled.
        """
        self.status = GenerationStatus.FAILED
        self.error_message = error_message

    def to_dict(self) -> dict[str, Any]:
        """Return the values of all columns by column name, as JSON types; times in ISO 8601 with an offset.

        `metadata` and `parameters` are dicts or None; None also stands for text that is not a JSON object.
        """
        stored = self.metadata_json
        return super().to_dict() | {"metadata": None if stored is None else plain(load_json_object(stored))}

    def __repr__(self) -> str:
        of = self._get_for_repr
        return f"<Generation {of('id')} status={of('status')} prompt={of('prompt')!r}>"


# The library's own tables in the order of their foreign keys: users may add tables of theirs to Base.metadata.
TABLES: Final = tuple(Base.metadata.sorted_tables)
