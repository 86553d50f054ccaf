"""Many generations at once: create_generations() beside executemany on the driver."""

from .driver_comparison import Cost, compare_with_driver, databases, open_operations, time_calls
from .timing import Report

SIZE = 100_000


def run(report: Report, *, size: int) -> None:
    for title, place, synchronous in databases():
        compare_with_driver(report, title, Bulk(size), lambda: place.url(synchronous), synchronous)  # noqa: B023


class Bulk:
    """Measures one call of so many rows, half of them of a prompt of their own."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, side: str, url: str, synchronous: str) -> dict[str, Cost]:
        operations = open_operations(side, url, synchronous)
        operations.create_many(["warm up"] * 10)
        prompts = [f"slow waltz in D minor, take {number % (self.size // 2)}" for number in range(self.size)]
        cost, _ = time_calls(operations.create_many, [prompts])
        operations.close()
        return {"a row": Cost(*(microseconds / self.size for microseconds in cost))}
