"""What it costs that workers give way to fresh ones."""

from __future__ import annotations

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import nap
from benchmarks.workloads.warm import WrongResult, in_turns, medians, seconds_of

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

    naps = [TASK_SECONDS] * tasks

    def seconds(pool: mh.Pool) -> float:
        return seconds_of(pool.map(nap, naps).list, naps)

    with mh.Pool(WORKERS) as plain, mh.Pool(WORKERS, recycle_after_tasks=SHARE) as fresh:
        for pool in (plain, fresh):
            seconds(pool)
        ways = {"plain": lambda: seconds(plain), "recycled": lambda: seconds(fresh)}
        took = medians(in_turns(ways, QUICK_TURNS if settings.quick else TURNS))
        count = fresh.stats().recycled
    if count < tasks // SHARE:
        raise WrongResult(f"only {count} workers were recycled")
    return Outcome({"ratio": took["plain"] / took["recycled"], "rate": tasks / took["plain"]})


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
