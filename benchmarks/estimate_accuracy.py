"""The share of simulated queues whose true time lies in the interval of estimate_completion(); 80 % is expected."""

import heapq
import random

from services.storage.analytics.estimates import percentile, times_alike, total_time, waiting_time

from .timing import Report

LENGTHS = (8.0, 16.0, 30.0)
SIZE = 20_000


def run(report: Report, *, size: int) -> None:
    """Report the share of `size` queues for each number of workers."""
    for workers in (1, 2, 4, 8):
        report(f"inside the interval, {workers} workers", 100 * share_inside(workers, size), "%")


def share_inside(workers: int, rounds: int) -> float:
    """Return the share of `rounds` queues whose true time lies between p10 and p90.

    Rendering times are a start-up time plus a time in proportion to the length, multiplied by lognormal noise. Free
    workers claim jobs in order. At the start, any number of the workers are in the middle of a job.
    """
    generator = random.Random(7)
    inside = 0
    for _ in range(rounds):
        spread = generator.choice([0.1, 0.3, 0.6])
        history = {"m": [(length, _render(generator, length, spread)) for length in generator.choices(LENGTHS, k=200)]}
        ahead = generator.choices(LENGTHS, k=generator.choice([0, 1, 3, 10, 40]))
        grouped = [("m", len(ahead), sum(ahead), sum(length**2 for length in ahead))] if ahead else []
        running, free_at = [], []
        for length in generator.choices(LENGTHS, k=generator.randint(0, workers)):
            whole = _render(generator, length, spread)
            elapsed = generator.random() * whole
            running.append(("m", 1, length, elapsed))
            free_at.append(whole - elapsed)
        own = times_alike(history["m"], 16.0)
        expected = total_time(waiting_time(history, own, 16.0, workers, grouped, running), own, 0.0)
        free_at += [0.0] * (workers - len(free_at))
        heapq.heapify(free_at)
        for length in ahead:
            heapq.heapreplace(free_at, free_at[0] + _render(generator, length, spread))
        truth = free_at[0] + _render(generator, 16.0, spread)
        inside += percentile(expected, 0.1) <= truth <= percentile(expected, 0.9)
    return inside / rounds


def _render(generator: random.Random, length: float, spread: float) -> float:
    return (2.0 + length) * generator.lognormvariate(0.0, spread)
