"""Estimate pi: `submit` and `as_completed`, which give each result as soon as it is there."""

import random
from concurrent.futures import as_completed

import manyhands as mh

TASKS = 32
POINTS = 20_000


def hits(seed: int) -> int:
    """How many random points of the square lie in the circle; the seed makes it repeatable."""
    source = random.Random(seed)
    return sum(source.random() ** 2 + source.random() ** 2 <= 1 for _ in range(POINTS))


with mh.Pool() as pool:
    futures = [pool.submit(hits, seed) for seed in range(TASKS)]
    inside = 0
    for done, future in enumerate(as_completed(futures), start=1):
        inside += future.result()
        if done % 8 == 0:
            print(f"{done:3} of {TASKS} tasks: {4 * inside / (done * POINTS):.2f}")

print(f"pi is about {4 * inside / (TASKS * POINTS):.3f}")
