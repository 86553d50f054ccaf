"""Intervals of estimate_completion() on simulated queues: how often the truth falls inside; 80 of 100 should."""

import heapq
import random

from services.storage.analytics.estimates import percentile, times_alike, total_time, waiting_time

from .timing import Report

LENGTHS = (8.0, 16.0, 30.0)
SIZE = 20_000


def run(report: Report, *, size: int) -> None:
    """Report the share of `size` queues for each number of workers."""
    for workers in (1, 2, 4, 8):
        report(f"inside the interval, {workers} at work", 100 * share_inside(workers, size), "%")


def share_inside(workers: int, rounds: int) -> float:
    """Return how often the truth fell between p10 and p90, of so many queues.

    Times are lognormal in proportion to length and a start-up, jobs are taken in order by whoever is free, and up to
    all of the workers are in the middle of one.
    """
    dice = random.Random(7)
    inside = 0
    for _ in range(rounds):
        spread = dice.choice([0.1, 0.3, 0.6])
        history = {"m": [(length, _render(dice, length, spread)) for length in dice.choices(LENGTHS, k=200)]}
        ahead = dice.choices(LENGTHS, k=dice.choice([0, 1, 3, 10, 40]))
        grouped = [("m", len(ahead), sum(ahead), sum(length**2 for length in ahead))] if ahead else []
        running, free_at = [], []
        for length in dice.choices(LENGTHS, k=dice.randint(0, workers)):
            whole = _render(dice, length, spread)
            elapsed = dice.random() * whole
            running.append(("m", 1, length, elapsed))
            free_at.append(whole - elapsed)
        own = times_alike(history["m"], 16.0)
        expected = total_time(waiting_time(history, own, 16.0, workers, grouped, running), own, 0.0)
        free_at += [0.0] * (workers - len(free_at))
        heapq.heapify(free_at)
        for length in ahead:
            heapq.heapreplace(free_at, free_at[0] + _render(dice, length, spread))
        truth = free_at[0] + _render(dice, 16.0, spread)
        inside += percentile(expected, 0.1) <= truth <= percentile(expected, 0.9)
    return inside / rounds


def _render(dice: random.Random, length: float, spread: float) -> float:
    return (2.0 + length) * dice.lognormvariate(0.0, spread)
