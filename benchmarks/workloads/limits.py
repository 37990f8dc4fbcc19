"""What it costs to watch the memory of tasks, and to give each a random stream of its own."""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import identity, nap
from benchmarks.workloads.warm import in_turns, medians, seconds_of

if TYPE_CHECKING:
    import manyhands as mh

TASKS = 2_000
QUICK_TASKS = 600
TURNS = 7
QUICK_TURNS = 3
TASK_SECONDS = 0.001
WORKERS = 2

DRAWS = 20_000
QUICK_DRAWS = 4_000


def watched(_peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    tasks = QUICK_TASKS if settings.quick else TASKS

    naps = [TASK_SECONDS] * tasks

    def seconds(pool: mh.Pool) -> float:
        return seconds_of(pool.map(nap, naps).list, naps)

    with (
        mh.Pool(WORKERS) as plain,
        mh.Pool(WORKERS, task_memory="1GB") as of_tasks,
        mh.Pool(WORKERS, memory_limit="2GB") as of_pool,
    ):
        pools = {"plain": plain, "task": of_tasks, "pool": of_pool}
        for pool in pools.values():
            seconds(pool)
        ways = {name: partial(seconds, pool) for name, pool in pools.items()}
        took = medians(in_turns(ways, QUICK_TURNS if settings.quick else TURNS))
    return Outcome(
        {
            "task": took["plain"] / took["task"],
            "pool": took["plain"] / took["pool"],
            "rate": tasks / took["plain"],
        }
    )


def seeded(_peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    count = QUICK_DRAWS if settings.quick else DRAWS
    numbers = list(range(count))

    def seconds(pool: mh.Pool, seed: int | None) -> float:
        return seconds_of(pool.map(identity, numbers, seed=seed).list, numbers)

    def cost(pool: mh.Pool) -> float:
        """Microseconds of the one worker for each task."""
        ways = {"plain": partial(seconds, pool, None), "drawn": partial(seconds, pool, 7)}
        for warm_up in ways.values():
            warm_up()
        took = in_turns(ways, QUICK_TURNS if settings.quick else TURNS)
        return max(min(took["drawn"]) - min(took["plain"]), 0.0) / count * 1e6

    with (
        mh.Pool(1) as bare,
        mh.Pool(1, initializer=importlib.import_module, initargs=("numpy.random",)) as with_numpy,
    ):
        return Outcome({"bare": cost(bare), "numpy": cost(with_numpy)})


WORKLOADS = (
    Workload(
        name="watched",
        title="Tasks and pools whose memory is limited",
        peers=(OURS,),
        metrics=(
            Metric(
                key="task",
                title="throughput with `task_memory=`, of that without",
                unit="times",
                better="higher",
                must=Bound(0.99),
            ),
            Metric(
                key="pool",
                title="throughput with `memory_limit=`, of that without",
                unit="times",
                better="higher",
                must=Bound(0.99),
            ),
            Metric(key="rate", title="tasks per second without", unit="tasks/s", better="higher"),
        ),
        run=watched,
        note="2,000 tasks that sleep for 1 ms, two workers; in turns, in one process; medians of "
        "seven turns.",
    ),
    Workload(
        name="seeded",
        title="Tasks with random streams of their own",
        peers=(OURS,),
        metrics=(
            Metric(
                key="bare",
                title="cost of `seed=` for each task",
                unit="µs",
                better="lower",
                must=Bound(20.0),
                aim=Bound(10.0),
            ),
            Metric(
                key="numpy",
                title="the same where NumPy's legacy generator is loaded",
                unit="µs",
                better="lower",
            ),
        ),
        run=seeded,
        note="A map of 20,000 numbers on one worker, with and without a seed in turns; the "
        "difference of the best of seven turns.",
    ),
)
