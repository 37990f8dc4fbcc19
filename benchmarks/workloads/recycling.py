"""What it costs that workers give way to fresh ones."""

from __future__ import annotations

import statistics
import time

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import nap
from benchmarks.workloads.warm import WrongResult, expect

TASKS = 2_000
QUICK_TASKS = 600
TURNS = 7
QUICK_TURNS = 3
TASK_SECONDS = 0.001
SHARE = 100
WORKERS = 2


def recycled(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    tasks = QUICK_TASKS if settings.quick else TASKS

    def seconds(pool: mh.Pool) -> float:
        begin = time.perf_counter()
        results = pool.map(nap, [TASK_SECONDS] * tasks).list()
        took = time.perf_counter() - begin
        expect(results, [TASK_SECONDS] * tasks)
        return took

    ways: dict[str, list[float]] = {"plain": [], "recycled": []}
    with mh.Pool(WORKERS) as plain, mh.Pool(WORKERS, recycle_after_tasks=SHARE) as fresh:
        for pool in (plain, fresh):
            seconds(pool)
        # In turns, so that what else the machine does hits both.
        for _ in range(QUICK_TURNS if settings.quick else TURNS):
            ways["plain"].append(seconds(plain))
            ways["recycled"].append(seconds(fresh))
        count = fresh.stats().recycled
    if count < tasks // SHARE:
        raise WrongResult(f"only {count} workers were recycled")
    plain_time, recycled_time = (statistics.median(times) for times in ways.values())
    return Outcome({"ratio": plain_time / recycled_time, "rate": tasks / plain_time})


WORKLOADS = (
    Workload(
        name="recycled",
        title="Workers that give way to fresh ones every 100 tasks",
        peers=(OURS,),
        metrics=(
            Metric(
                key="ratio",
                title="throughput of `Pool(recycle_after_tasks=100)`, of that without",
                unit="times",
                better="higher",
                must=Bound(0.95),
            ),
            Metric(key="rate", title="tasks per second without", unit="tasks/s", better="higher"),
        ),
        run=recycled,
        note="2,000 tasks that sleep for 1 ms, two workers; in turns, in one process; medians of "
        "seven turns.",
    ),
)
