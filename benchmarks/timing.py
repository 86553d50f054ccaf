"""Compare the times of several calls. They run in turns, so other load on the machine slows all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping

Report = Callable[[str, float, str], None]


def compare(
    report: Report, title: str, calls: Mapping[str, Callable[[], object]], *, rounds: int = 20, each: int = 10
) -> None:
    """Report the median time of every call in microseconds, and its ratio to that of the first call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # not timed: the first call compiles statements, connects and reads pages
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(each):
                started = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - started) * 1e6)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    first, unit = next(iter(medians)), medians[next(iter(medians))]
    report(f"{title}, {first}", unit, "us")
    for name, median in list(medians.items())[1:]:
        report(f"{title}, {name}", median, "us")
        report(f"  / {first}", median / unit, "x")
