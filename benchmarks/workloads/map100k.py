"""`map` over a hundred thousand integers, for information: it has no target yet."""

from __future__ import annotations

import time

from benchmarks.model import (
    DEFAULT_WORKERS,
    EXECUTOR,
    MP_POOL,
    OURS,
    Metric,
    Outcome,
    Settings,
    Workload,
)
from benchmarks.peers.base import Peer
from benchmarks.tasks import identity
from benchmarks.workloads.warm import expect

ITEMS = 100_000
WARM_UP_ITEMS = 1_000


def run(peer: Peer, settings: Settings) -> Outcome:
    with peer.open(DEFAULT_WORKERS) as session:
        expect(session.map(identity, range(WARM_UP_ITEMS)), list(range(WARM_UP_ITEMS)))
        begin = time.perf_counter()
        results = session.map(identity, range(ITEMS))
        seconds = time.perf_counter() - begin
    expect(results, list(range(ITEMS)))
    return Outcome({"rate": ITEMS / seconds})


WORKLOAD = Workload(
    name="map100k",
    title="Map over 100,000 integers",
    peers=(OURS, *MP_POOL, *EXECUTOR, "loky", "joblib", "mpire"),
    metrics=(Metric(key="rate", title="items per second", unit="items/s", better="higher"),),
    run=run,
    note="For information, without a target yet. Chunks are those each library is best used with: "
    "its own choice where it makes one, else an eighth of the items.",
)
