"""Pages, most used prompts and statistics on a long history, compared with the same statements in the driver alone."""

import tempfile
from pathlib import Path

from services.storage import (
    Storage,
    get_database_stats,
    get_failure_reasons,
    get_most_used_prompts,
    get_performance_stats,
    get_queue_stats,
    get_usage,
    list_generations,
)
from services.storage.pagination import PagePosition, encode_cursor

from .example_history import build, median_ms, raw, time_of
from .search import main
from .timing import Report

NEWEST = "SELECT * FROM generations ORDER BY created_at DESC, id DESC LIMIT 101"
STATS = "SELECT status, count(*) FROM generations GROUP BY status UNION ALL SELECT NULL, count(*) FROM prompts"
SIZE = 1_000_000


def run(report: Report, *, size: int, url: str | None = None, prompts: str | None = None) -> None:
    """Report milliseconds and ratios; `url` names an empty database or one that an earlier run has filled."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(url or f"sqlite:///{Path(folder) / 'history.db'}")
        if storage.read_revision() is None:
            report("build", build(storage, size, prompts), "s")
        with storage.session(read_only=True) as session:
            asked = dict.fromkeys(
                "status model_name prompt batch_id favorite created_after created_before metadata".split()
            )
            number = size // 10
            at = time_of(number) if storage.backend.name == "sqlite" else f"{time_of(number)}+00:00"
            deep = encode_cursor(PagePosition(at, f"01a00000-0000-7000-8000-{number:012d}"), asked)

            def page(**conditions: object) -> None:
                found = list_generations(session, **conditions)  # type: ignore[arg-type]
                assert len(found.items) == 100
                session.expunge_all()

            first = median_ms(page, 31)
            far = median_ms(lambda: page(after=deep), 31)
            report("first page of 100", first, "ms")
            report(f"page {size - number:,} rows deep", far, "ms")
            report("deep page / first page", far / first, "x")
            report("first page / driver alone", first / median_ms(raw(storage.engine, NEWEST), 31), "x")
            for name, conditions in {
                "completed": {"status": "completed"},
                "failed": {"status": "failed"},
                "pending": {"status": "pending"},
                "one model": {"model_name": "model-1"},
                "favorites": {"favorite": True},
                "bpm 120 to 140": {"metadata": {"bpm": (120, 140)}},
            }.items():
                report(f"first page, {name}", median_ms(lambda conditions=conditions: page(**conditions)), "ms")
            report("10 most used prompts", median_ms(lambda: get_most_used_prompts(session), 31), "ms")
            stats = median_ms(lambda: get_database_stats(session), 5)
            report("get_database_stats", stats, "ms")
            report("get_database_stats / driver alone", stats / median_ms(raw(storage.engine, STATS), 5), "x")
            report("get_queue_stats", median_ms(lambda: get_queue_stats(session), 5), "ms")
            report("get_usage, 30 days", median_ms(lambda: get_usage(session), 3), "ms")
            report("get_performance_stats", median_ms(lambda: get_performance_stats(session), 1), "ms")
            report("get_failure_reasons", median_ms(lambda: get_failure_reasons(session), 1), "ms")
        storage.dispose()


if __name__ == "__main__":
    main(run)
