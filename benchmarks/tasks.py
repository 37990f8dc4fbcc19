"""The functions that the benchmarks send to workers, in a module that is cheap to import."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass


def identity(value: int) -> int:
    return value


def nap(seconds: float) -> float:
    """Keep a worker busy for so long that the next task starts another worker."""
    time.sleep(seconds)
    return seconds


@dataclass
class Point:
    x: int
    name: str
    weight: float


def count_up(steps: int) -> int:
    """Keep a processor busy for so many steps."""
    count = 0
    for _ in range(steps):
        count += 1
    return count


def hits_in_circle(job: tuple[int, int]) -> int:
    """Monte Carlo pi: how many of `samples` random points of the unit square hit the circle."""
    seed, samples = job
    draw = random.Random(seed).random
    hits = 0
    for _ in range(samples):
        x = draw()
        y = draw()
        if x * x + y * y <= 1.0:
            hits += 1
    return hits
