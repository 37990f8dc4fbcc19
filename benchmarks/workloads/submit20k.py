"""Twenty thousand tasks that do nothing: what one task costs a pool that is kept busy."""

from __future__ import annotations

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
from benchmarks.peers.base import Peer
from benchmarks.tasks import identity
from benchmarks.workloads.warm import NAPS, expect

TASKS = 20_000
# The rate is the same with fewer tasks, and the slow ones would take long.
FEWER_TASKS = {"loky": 10_000, "mpire": 10_000, "ray": 4_000}


def run(peer: Peer, settings: Settings) -> Outcome:
    tasks = FEWER_TASKS.get(peer.key, TASKS)
    with peer.open(DEFAULT_WORKERS) as session:
        session.submit_all(*NAPS)
        begin = time.perf_counter()
        results = session.submit_all(identity, range(tasks))
        seconds = time.perf_counter() - begin
    expect(results, list(range(tasks)))
    return Outcome({"rate": tasks / seconds}, details={"tasks": tasks})


WORKLOAD = Workload(
    name="submit20k",
    title="Submit 20,000 empty tasks",
    peers=(OURS, *MP_POOL, *EXECUTOR, "loky", "mpire", "ray"),
    metrics=(
        Metric(
            key="rate",
            title="tasks per second",
            unit="tasks/s",
            better="higher",
            must=Bound(5.0, MP_POOL, "mp.Pool"),
            aim=Bound(10.0, MP_POOL, "mp.Pool"),
        ),
    ),
    run=run,
    note="All tasks are submitted first, then the results are collected in order, in a warm pool: "
    "`submit`, mp.Pool's and mpire's `apply_async`, Ray's `remote`. loky and mpire do 10,000 of "
    "them and Ray 4,000, which does not change their rate.",
)
