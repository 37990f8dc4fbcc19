"""`put` of one array of 400 MB, and tasks that each read a thousandth of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer, Session
from benchmarks.tasks import part_total
from benchmarks.workloads.warm import NAPS, expect

if TYPE_CHECKING:
    from benchmarks.tasks import Array

LENGTH = 50_000_000
PART_LENGTH = LENGTH // 1_000
TASKS = 200


def put(peer: Peer, settings: Settings) -> Outcome:
    array = _array()
    with peer.open(DEFAULT_WORKERS) as session:
        _warm_up(session, array)
        begin = time.perf_counter()
        given = session.put(array)
        seconds = time.perf_counter() - begin
        expect(session.submit_with(part_total, given, _parts()), _totals(array))
    return Outcome({"rate": array.nbytes / seconds / 1e9})


def read(peer: Peer, settings: Settings) -> Outcome:
    array = _array()
    with peer.open(DEFAULT_WORKERS) as session:
        _warm_up(session, array)
        given = session.put(array)
        begin = time.perf_counter()
        results = session.submit_with(part_total, given, _parts())
        seconds = time.perf_counter() - begin
    expect(results, _totals(array))
    return Outcome({"rate": TASKS / seconds})


def _array() -> Array:
    import numpy

    return numpy.arange(LENGTH, dtype=float)


def _warm_up(session: Session, array: Array) -> None:
    """Every worker has done such a task; of the large array, nobody knows."""
    session.submit_all(*NAPS)
    part = array[:PART_LENGTH].copy()
    session.submit_with(part_total, session.put(part), [(0, PART_LENGTH)] * 2 * DEFAULT_WORKERS)


def _parts() -> list[tuple[int, int]]:
    bounds = range(0, TASKS * PART_LENGTH, PART_LENGTH)
    return [(first, first + PART_LENGTH) for first in bounds]


def _totals(array: Array) -> list[float]:
    return [part_total(array, part) for part in _parts()]


WORKLOADS = (
    Workload(
        name="put400",
        title="Put an array of 400 MB",
        peers=(OURS, "ray"),
        metrics=(
            Metric(
                key="rate",
                title="GB per second",
                unit="GB/s",
                better="higher",
                must=Bound(1.0, ("ray",), "Ray"),
                aim=Bound(2.0, ("ray",), "Ray"),
            ),
        ),
        run=put,
        note="`mh.put` and `ray.put`, once, in a warm pool.",
        rounds=3,
    ),
    Workload(
        name="read_put",
        title="200 tasks that read a thousandth of 400 MB each",
        peers=(OURS, "ray", "joblib", "serial"),
        metrics=(
            Metric(
                key="rate",
                title="tasks per second",
                unit="tasks/s",
                better="higher",
                must=Bound(6.0, ("ray",), "Ray"),
                aim=Bound(10.0, ("ray",), "Ray"),
            ),
        ),
        run=read,
        note="After `put`, which is not counted. joblib has none: it writes the array to a "
        "memory-mapped file by itself, with the first task.",
    ),
)
