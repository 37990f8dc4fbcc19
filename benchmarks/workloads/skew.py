"""Two thousand items of a millisecond and one of 400, at the first, a middle and the last place."""

from __future__ import annotations

import heapq
import time

from benchmarks.model import (
    DEFAULT_WORKERS,
    EXECUTOR,
    MP_POOL,
    OURS,
    Bound,
    Metric,
    Outcome,
    Settings,
    Workload,
)
from benchmarks.peers.bare import BareProcesses
from benchmarks.peers.base import Peer
from benchmarks.tasks import count_up
from benchmarks.workloads.warm import NAPS, expect

SHORT_ITEMS = 2_000
LONG_ITEM = 400
PLACES = {"first": 0, "middle": SHORT_ITEMS // 2, "last": SHORT_ITEMS}
CALIBRATION_STEPS = 200_000


def calibrate() -> dict[str, int]:
    """How many steps take a millisecond here; the same number is used for all peers."""
    fastest = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        count_up(CALIBRATION_STEPS)
        fastest = min(fastest, time.perf_counter() - begin)
    return {"steps": round(CALIBRATION_STEPS * 0.001 / fastest)}


def list_schedule(items: list[int], workers: int) -> list[list[int]]:
    """Each item goes to whoever is free first: the shares of the workers."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    free = [(0, worker) for worker in range(workers)]
    for item in items:
        at, worker = heapq.heappop(free)
        shares[worker].append(item)
        heapq.heappush(free, (at + item, worker))
    return shares


def run(peer: Peer, settings: Settings) -> Outcome:
    steps = settings.parameters["steps"]
    values: dict[str, float] = {}
    for place, position in PLACES.items():
        items = [steps] * SHORT_ITEMS
        items.insert(position, LONG_ITEM * steps)
        if isinstance(peer, BareProcesses):
            seconds, _ = peer.run_shares(count_up, list_schedule(items, DEFAULT_WORKERS))
        else:
            with peer.open(DEFAULT_WORKERS) as session:
                session.submit_all(*NAPS)
                begin = time.perf_counter()
                results = session.map(count_up, items)
                seconds = time.perf_counter() - begin
            expect(results, items)
        values[place] = seconds
    return Outcome(values)


def _metric(place: str) -> Metric:
    return Metric(
        key=place,
        title=f"seconds, the long item {place}",
        unit="s",
        better="lower",
        must=Bound(1.05, ("bare",), "greedy ideal"),
        aim=Bound(1.03, ("bare",), "greedy ideal"),
    )


WORKLOAD = Workload(
    name="skew",
    title="2,000 items of 1 ms and one of 400 ms, ordered",
    peers=(OURS, "bare", *MP_POOL, *EXECUTOR, "joblib", "mpire"),
    metrics=tuple(_metric(place) for place in PLACES),
    run=run,
    calibrate=calibrate,
    note="The ideal is two bare processes that do what greedy list scheduling gives them.",
)
