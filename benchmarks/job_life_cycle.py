"""A job's life: create, claim, complete with metadata; then get by id, and a page. Each in a session of its own."""

from .driver_comparison import Cost, compare_with_driver, databases, open_operations, time_calls
from .timing import Report

SIZE = 1_000
WARM_UP = 20  # calls that fill caches; psycopg prepares a statement at its sixth execution
PAGES = 50


def run(report: Report, *, size: int) -> None:
    for title, place, synchronous in databases():
        compare_with_driver(report, title, JobLifeCycles(size), lambda: place.url(synchronous), synchronous)  # noqa: B023


class JobLifeCycles:
    """measures so many jobs. A class, because a process is sent it with its size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, side: str, url: str, synchronous: str) -> dict[str, Cost]:
        operations = open_operations(side, url, synchronous)
        for number in range(WARM_UP):
            operations.get(operations.create(f"warm up {number % 10}"))
            operations.complete(operations.claim())
            operations.page()
        prompts = [f"slow waltz in D minor, take {number % (self.size // 2)}" for number in range(self.size)]
        costs = {}
        costs["create"], keys = time_calls(operations.create, prompts)
        costs["claim"], leases = time_calls(lambda _: operations.claim(), prompts)
        costs["complete"], _ = time_calls(operations.complete, leases)
        costs["get"], _ = time_calls(operations.get, keys)
        costs["page of 100"], _ = time_calls(lambda _: operations.page(), [None] * PAGES)
        life = [costs[name] for name in ("create", "claim", "complete")]
        costs["life"] = Cost(sum(cost.wall for cost in life), sum(cost.cpu for cost in life))
        operations.close()
        return costs
