"""One task, its result, then the next: the latency of a round trip through the pool."""

from __future__ import annotations

import statistics
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
from benchmarks.peers.base import Function, Peer
from benchmarks.tasks import identity, nap
from benchmarks.workloads.warm import expect

CALLS = 5_000
FEWER_CALLS = {"ray": 1_500}
WARM_UP_CALLS = 20


def warm_caller(call_nap: Function, call: Function) -> None:
    # One call at a time cannot occupy all workers, and needs only one of them.
    call_nap(0.05)
    for item in range(WARM_UP_CALLS):
        call(item)


def run(peer: Peer, settings: Settings) -> Outcome:
    calls = FEWER_CALLS.get(peer.key, CALLS)
    clock = time.perf_counter
    times = [0.0] * calls
    results = [0] * calls
    with peer.open(DEFAULT_WORKERS) as session:
        call = session.caller(identity)
        warm_caller(session.caller(nap), call)
        for item in range(calls):
            begin = clock()
            results[item] = call(item)
            times[item] = clock() - begin
    expect(results, list(range(calls)))
    percentiles = statistics.quantiles(times, n=100)
    return Outcome(
        {"p50": percentiles[49] * 1e6, "p99": percentiles[98] * 1e6}, details={"calls": calls}
    )


WORKLOAD = Workload(
    name="one_at_a_time",
    title="One task at a time",
    peers=(OURS, *MP_POOL, *EXECUTOR, "loky", "mpire", "ray"),
    metrics=(
        Metric(
            key="p50",
            title="median round trip",
            unit="us",
            better="lower",
            must=Bound(1 / 4, MP_POOL, "mp.Pool"),
            aim=Bound(8.0),
        ),
        Metric(key="p99", title="99th percentile", unit="us", better="lower"),
    ),
    run=run,
    note="5,000 times `submit(f, i).result()`, or `apply`, each after the other (Ray: 1,500).",
)
