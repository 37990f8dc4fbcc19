"""Eight workers, with threads of a library and a pool of their own: what they do to the machine."""

from __future__ import annotations

import os
from functools import partial

from benchmarks.model import OURS, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.processes import Load
from benchmarks.tasks import multiply
from benchmarks.workloads.warm import expect

WORKERS = 8
TASKS = 16
QUICK_TASKS = 8
ITEMS = 4
SIZE = 600


def matrices(key: str, size: int) -> int:
    """A task that computes, and has others compute."""
    from benchmarks import peers

    below: list[int] = peers.by_key(key).nested(multiply, [size] * ITEMS)
    return multiply(size) + sum(below)


def run(peer: Peer, settings: Settings) -> Outcome:
    tasks = QUICK_TASKS if settings.quick else TASKS
    cores = len(os.sched_getaffinity(0))
    with Load() as load, peer.open(WORKERS, ("numpy",)) as session:
        results = session.submit_all(partial(matrices, peer.key), [SIZE] * tasks)
    expect(results, [1 + ITEMS] * tasks)
    return Outcome(
        {
            "seconds": load.seconds,
            "threads": load.threads(),
            "running": load.running() / cores,
            "used": load.used(cores),
        }
    )


WORKLOAD = Workload(
    name="inner_threads",
    title="Eight workers with matrices, and a pool in each task",
    peers=(OURS, "ppe-forkserver", "loky", "joblib"),
    metrics=(
        Metric(key="seconds", title="time", unit="s", better="lower"),
        Metric(key="threads", title="threads that there were", unit="threads", better="lower"),
        Metric(
            key="running",
            title="threads that ran or waited for a core, in the mean, for each core",
            unit="threads",
            better="lower",
        ),
        Metric(key="used", title="CPU time, of wall x cores", unit="times", better="higher"),
    ),
    run=run,
    note="16 tasks, each with ten products of matrices of 600 x 600 and the same four times in a "
    "pool of its own, of which no number of workers is said.",
)
