"""`concurrent.futures.as_completed` over twenty thousand futures of tasks that do nothing."""

from __future__ import annotations

import time
from concurrent.futures import as_completed

from benchmarks.model import (
    DEFAULT_WORKERS,
    EXECUTOR,
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
FEWER_TASKS = {"loky": 10_000}


def run(peer: Peer, settings: Settings) -> Outcome:
    tasks = FEWER_TASKS.get(peer.key, TASKS)
    with peer.open(DEFAULT_WORKERS) as session:
        session.submit_all(*NAPS)
        begin = time.perf_counter()
        futures = session.futures(identity, range(tasks))
        results = [future.result() for future in as_completed(futures)]
        seconds = time.perf_counter() - begin
    expect(sorted(results), list(range(tasks)))
    return Outcome({"rate": tasks / seconds}, details={"tasks": tasks})


WORKLOAD = Workload(
    name="as_completed20k",
    title="as_completed over 20,000 futures",
    peers=(OURS, *EXECUTOR, "loky"),
    metrics=(
        Metric(
            key="rate",
            title="tasks per second",
            unit="tasks/s",
            better="higher",
            must=Bound(3.0, EXECUTOR, "ProcessPoolExecutor"),
            aim=Bound(6.0, EXECUTOR, "ProcessPoolExecutor"),
        ),
    ),
    run=run,
    note="Submitting is counted in; the pool is warm. loky does 10,000.",
)
