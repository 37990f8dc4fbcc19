"""Around the clock: start every worker before it, check the results after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from benchmarks.model import DEFAULT_WORKERS
from benchmarks.tasks import identity, nap

if TYPE_CHECKING:
    import manyhands as mh

# A function and its items: while each worker naps, a pool that starts workers one by one starts the
# next. Twice as many as workers, so that all have also taken a second task.
NAPS = (nap, [0.05] * (2 * DEFAULT_WORKERS))


class WrongResult(Exception):
    """The peer gave results other than the ones asked for."""


def expect(results: object, expected: object) -> None:
    if results != expected:
        raise WrongResult("the results are not the ones expected")


def submit_and_wait(submit: Callable[..., mh.Future[int]], tasks: int) -> list[int]:
    """The numbers of so many tasks, each of which gives its own."""
    futures = [submit(identity, number) for number in range(tasks)]
    return [future.result() for future in futures]


def seconds_of(run: Callable[[], object], expected: object) -> float:
    """How long it takes; its results are checked after the clock has stopped."""
    begin = time.perf_counter()
    results = run()
    took = time.perf_counter() - begin
    expect(results, expected)
    return took


def in_turns(ways: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """What each way of doing the same gives, so many times.

    They take turns, forwards and backwards, so that what else the machine does hits all alike.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        order: Iterable[str] = ways if turn % 2 == 0 else reversed(ways)
        for name in order:
            found[name].append(ways[name]())
    return found


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in found.items()}
