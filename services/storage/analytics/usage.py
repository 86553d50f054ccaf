"""How many generations were created and finished in each hour, day or week, with those that were pruned."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import BigInteger, Select, cast, func, literal, select, union_all
from sqlalchemy.orm import Session

from ..backends import backend_for
from ..lifecycle import GenerationStatus
from ..models import Generation, UsageTotal
from ..validation import validate_moment
from .report_types import Usage

BUCKETS_LIMIT = 20_000
DEFAULT_BUCKETS = 30

Bucket = Literal["hour", "day", "week"]
BUCKETS: dict[Bucket, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY = timedelta(days=4)  # from the epoch to the first Monday; ISO 8601 weeks start on Monday


def get_usage(session: Session, *, since: datetime | None = None, bucket: Bucket = "day") -> list[Usage]:
    """Return one Usage for each hour, day or week (from Monday) in UTC, from the one of `since` to now, oldest first.

    Without `since`, the last 30. Includes empty buckets, and the generations that were pruned. Raises ValueError for an
    unknown bucket or for 20,000 buckets or more.
    """
    if bucket not in get_args(Bucket):
        raise ValueError(f"bucket must be one of {', '.join(get_args(Bucket))}")
    size = BUCKETS[bucket]
    offset = MONDAY if bucket == "week" else timedelta(0)
    start = None if since is None else _bucket_number(validate_moment("since", since), size, offset)
    clock = backend_for(session).statement_clock()
    width, shift = size // timedelta(microseconds=1), offset // timedelta(microseconds=1)
    number = (backend_for(session).epoch_microseconds(clock(timedelta(0))) - shift) // width
    first: Any = number - (DEFAULT_BUCKETS - 1) if start is None else literal(start)
    start_time = None if start is None else EPOCH + offset + start * size

    def counted(time: Any, subject: Any) -> Select[Any]:
        bucket_number = ((backend_for(session).epoch_microseconds(time) - shift) // width).label("number")
        earliest = start_time if start_time is not None else clock(-size * DEFAULT_BUCKETS)
        recent = select(bucket_number, subject.label("subject")).where(time >= earliest).subquery()
        return select(recent.c.number, recent.c.subject, func.count()).group_by(recent.c.number, recent.c.subject)

    moment = cast(UsageTotal.hour, BigInteger) * (BUCKETS["hour"] // timedelta(microseconds=1))
    pruned_number = ((moment - shift) // width).label("number")
    pruned = select(pruned_number, UsageTotal.event, cast(func.sum(UsageTotal.count), BigInteger))
    statement = union_all(
        select(first, literal("first"), number),
        counted(Generation.created_at, literal("created")),
        counted(Generation.completed_at, Generation.status),
        pruned.where(pruned_number >= first).group_by(pruned_number, UsageTotal.event),
    )
    rows = session.execute(statement, clock.parameters()).all()
    low, high = next((row[0], row[2]) for row in rows if row[1] == "first")
    if high - low >= BUCKETS_LIMIT:
        raise ValueError(f"since must be less than {BUCKETS_LIMIT:,} {bucket}s ago")
    counts: Counter[tuple[int, str]] = Counter()
    for bucket_number, subject, count in rows:
        if subject != "first":
            counts[bucket_number, subject] += count
    subjects = ("created", GenerationStatus.COMPLETED, GenerationStatus.FAILED, GenerationStatus.CANCELLED)
    return [
        Usage(EPOCH + offset + number * size, *(counts[number, subject] for subject in subjects))
        for number in range(low, high + 1)
    ]


def _bucket_number(time: datetime, size: timedelta, offset: timedelta) -> int:
    return (time - EPOCH - offset) // size
