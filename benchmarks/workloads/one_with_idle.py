"""One task every ten milliseconds: the latency when the workers have gone to sleep meanwhile."""

from __future__ import annotations

import statistics
import time

from benchmarks.model import (
    DEFAULT_WORKERS,
    MP_POOL,
    OURS,
    Bound,
    Metric,
    Outcome,
    Settings,
    Workload,
)
from benchmarks.peers.base import Peer
from benchmarks.tasks import identity, nap
from benchmarks.workloads.one_at_a_time import warm_caller
from benchmarks.workloads.warm import expect

CALLS = 300
QUICK_CALLS = 60
IDLE_SECONDS = 0.010


def run(peer: Peer, settings: Settings) -> Outcome:
    calls = QUICK_CALLS if settings.quick else CALLS
    clock = time.perf_counter
    times = [0.0] * calls
    results = [0] * calls
    with peer.open(DEFAULT_WORKERS) as session:
        call = session.caller(identity)
        warm_caller(session.caller(nap), call)
        for item in range(calls):
            time.sleep(IDLE_SECONDS)
            begin = clock()
            results[item] = call(item)
            times[item] = clock() - begin
    expect(results, list(range(calls)))
    return Outcome({"p50": statistics.median(times) * 1e6}, details={"calls": calls})


WORKLOAD = Workload(
    name="one_with_idle",
    title="One task after 10 ms of idleness",
    peers=(OURS, *MP_POOL, "ppe-fork", "loky", "mpire", "ray"),
    metrics=(
        Metric(
            key="p50",
            title="median round trip",
            unit="us",
            better="lower",
            must=Bound(0.6, MP_POOL, "mp.Pool"),
            aim=Bound(1 / 3, MP_POOL, "mp.Pool"),
        ),
    ),
    run=run,
    note="300 calls with `time.sleep(0.01)` before each.",
    rounds=3,
)
