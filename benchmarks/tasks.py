"""The functions that the benchmarks send to workers, in a module that is cheap to import."""

from __future__ import annotations

import itertools
import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Array = NDArray[numpy.float64]


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


def compute_for_ever() -> None:
    while True:
        pass


def sleep_for_ever() -> None:
    time.sleep(600)


def loop_in_c() -> int:
    """Looks at no signal, and keeps the interpreter."""
    return sum(itertools.repeat(1))


ENDLESS: tuple[Callable[[], object], ...] = (compute_for_ever, sleep_for_ever, loop_in_c)


def note_and_run(path: str, function: Callable[[], object]) -> None:
    """Notes when it began: its whole note is there, or none."""
    with open(f"{path}.part", "w") as file:
        file.write(repr(time.monotonic()))
    os.rename(f"{path}.part", path)
    function()


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


def total(array: Array) -> float:
    return float(array.sum())


def doubled(array: Array) -> Array:
    return array * 2.0


def part_total(array: Array, part: tuple[int, int]) -> float:
    """The sum of what lies between the part's bounds."""
    first, end = part
    return float(array[first:end].sum())


def fill_part(array: Array, part: tuple[int, int]) -> None:
    """Every number between the part's bounds becomes the first bound."""
    first, end = part
    array[first:end] = first


def faults_with_reading(array: Array) -> tuple[int, int]:
    """Read all; which process this is, and how many page faults it has had since it began."""
    array.sum()
    return _faults()


def faults_with_writing(job: tuple[Array, int]) -> tuple[int, int]:
    """The same, and write every so many numbers instead."""
    array, step = job
    array[::step] = 1.0
    return _faults()


def _faults() -> tuple[int, int]:
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def multiply(size: int) -> int:
    """Multiply matrices of so many rows, by the library that NumPy has for it."""
    import numpy

    matrix = numpy.ones((size, size))
    for _ in range(10):
        matrix = matrix @ matrix / size
    return round(float(matrix[0, 0]))
