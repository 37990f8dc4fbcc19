"""Twenty-four arrays of 32 MB to tasks: a number back, or as large an array, kept or dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Function, Peer, Session
from benchmarks.tasks import doubled, total
from benchmarks.workloads.warm import NAPS, WrongResult, expect

if TYPE_CHECKING:
    from benchmarks.tasks import Array

ARRAYS = 24
QUICK_ARRAYS = 8
LENGTH = 4_000_000
ITEM_BYTES = 8
# Of arrays that warm the function up in every worker, but not the memory.
SHORT_LENGTH = 100
# One number in each page.
LOOK_EVERY = 512

# Those that are far behind the others would take a minute for each round.
_FOR_NUMBERS = ("mp-fork", "loky", "joblib", "mpire", "ray")
_FOR_KEPT = ("loky", "ray")
_FOR_DROPPED = ("mp-fork", "loky", "ray")
_NOTE = (
    "Gigabytes of the arguments per second, in a warm pool; all are submitted first. A second pass "
    "over new arrays finds the memory that the first has left."
)


def number_back(peer: Peer, settings: Settings) -> Outcome:
    def seconds(session: Session, arrays: list[Array]) -> float:
        begin = time.perf_counter()
        results = session.submit_all(total, arrays)
        took = time.perf_counter() - begin
        expect(results, [total(array) for array in arrays])
        return took

    return Outcome(_rates(settings, _two_passes(peer, settings, total, seconds)))


def arrays_kept(peer: Peer, settings: Settings) -> Outcome:
    def seconds(session: Session, arrays: list[Array]) -> float:
        begin = time.perf_counter()
        results = session.submit_all(doubled, arrays)
        took = time.perf_counter() - begin
        for array, result in zip(arrays, results, strict=True):
            _look(array, result)
        return took

    passes = _two_passes(peer, settings, doubled, seconds)
    return Outcome({**_rates(settings, passes), "time": passes[-1]})


def arrays_dropped(peer: Peer, settings: Settings) -> Outcome:
    def seconds(session: Session, arrays: list[Array]) -> float:
        begin = time.perf_counter()
        results = session.one_by_one(doubled, arrays)
        for array in arrays:
            _look(array, next(results))
        return time.perf_counter() - begin

    return Outcome(_rates(settings, _two_passes(peer, settings, doubled, seconds)))


def _two_passes(
    peer: Peer,
    settings: Settings,
    function: Function,
    seconds: Callable[[Session, list[Array]], float],
) -> list[float]:
    with peer.open(DEFAULT_WORKERS) as session:
        session.submit_all(*NAPS)
        short = [array[:SHORT_LENGTH].copy() for array in _arrays(2 * DEFAULT_WORKERS)]
        session.submit_all(function, short)
        # New arrays each time: some libraries know one again that they have seen.
        return [seconds(session, _arrays(_count(settings))) for _ in range(2)]


def _count(settings: Settings) -> int:
    return QUICK_ARRAYS if settings.quick else ARRAYS


def _arrays(count: int) -> list[Array]:
    import numpy

    return [numpy.arange(first, first + LENGTH, dtype=float) for first in range(count)]


def _look(array: Array, result: Array) -> None:
    import numpy

    if len(result) != LENGTH or not numpy.array_equal(
        result[::LOOK_EVERY], array[::LOOK_EVERY] * 2.0
    ):
        raise WrongResult("the array is not twice the argument")


def _rates(settings: Settings, passes: list[float]) -> dict[str, float]:
    first, second = (_count(settings) * LENGTH * ITEM_BYTES / 1e9 / seconds for seconds in passes)
    return {"rate": second, "first": first}


def _metrics(peers: tuple[str, ...], must: float, aim: float) -> tuple[Metric, ...]:
    return (
        Metric(
            key="rate",
            title="GB per second",
            unit="GB/s",
            better="higher",
            must=Bound(must, peers, "the best peer"),
            aim=Bound(aim, peers, "the best peer"),
        ),
        Metric(key="first", title="GB per second, first pass", unit="GB/s", better="higher"),
    )


WORKLOADS = (
    Workload(
        name="arrays_sum",
        title="24 arrays of 32 MB, their sums back",
        peers=(OURS, *_FOR_NUMBERS),
        metrics=_metrics(_FOR_NUMBERS, 3.0, 5.0),
        run=number_back,
        note=_NOTE,
        rounds=3,
    ),
    Workload(
        name="arrays_kept",
        title="24 arrays of 32 MB, `a * 2.0` back, all kept",
        peers=(OURS, *_FOR_KEPT, "serial"),
        metrics=(
            *_metrics(_FOR_KEPT, 2.0, 3.0),
            Metric(
                key="time",
                title="seconds for all",
                unit="s",
                better="lower",
                must=Bound(1.0, ("serial",), "a loop"),
            ),
        ),
        run=arrays_kept,
        note=f"{_NOTE} The loop is `[a * 2.0 for a in arrays]`.",
        rounds=3,
    ),
    Workload(
        name="arrays_dropped",
        title="24 arrays of 32 MB, `a * 2.0` back, dropped after use",
        peers=(OURS, *_FOR_DROPPED),
        metrics=_metrics(_FOR_DROPPED, 4.0, 6.0),
        run=arrays_dropped,
        note=f"{_NOTE} Results are taken in order; use reads a number in each page.",
        rounds=3,
    ),
)
