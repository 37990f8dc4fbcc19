"""Tasks over a mesh of 1 GB that is a global of the script: what comes after the first result."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.processes import anonymous_bytes, descendants
from benchmarks.tasks import total
from benchmarks.workloads.warm import NAPS, expect

LENGTH = 125_000_000
TASKS = 2_000
# Of an array with which every worker has come to know NumPy.
SHORT_LENGTH = 100
# Once, and a hundredth for what a worker needs besides.
COPIED_LIMIT = 1.01

# As it stands in a user's script.
_SCRIPT = """\
import numpy

mesh = numpy.arange({length}, dtype=float)


def look(number):
    length = len(mesh) // 1_000
    first = number * length % len(mesh)
    return float(mesh[first : first + length].sum())
"""


def run(peer: Peer, settings: Settings) -> Outcome:
    script = vars(sys.modules["__main__"])
    exec(_SCRIPT.format(length=LENGTH), script)
    look, mesh = script["look"], script["mesh"]
    with peer.open(DEFAULT_WORKERS) as session:
        session.submit_all(*NAPS)
        session.submit_all(total, [mesh[:SHORT_LENGTH].copy()] * 2 * DEFAULT_WORKERS)
        workers = descendants(os.getpid())
        before = anonymous_bytes(workers)
        futures = session.futures(look, range(TASKS))
        futures[0].result()
        begin = time.perf_counter()
        left = sum(not future.done() for future in futures)
        results = [future.result() for future in futures]
        seconds = time.perf_counter() - begin
        copied = anonymous_bytes(workers) - before
    expect(results, [look(number) for number in range(TASKS)])
    # Below a thousandth it is what a worker needs besides.
    share = round(copied / DEFAULT_WORKERS / mesh.nbytes, 3)
    return Outcome(
        {"rate": left / seconds, "copied": share},
        details={"left": left},
    )


WORKLOAD = Workload(
    name="captured1gb",
    title="2,000 tasks over a global of 1 GB",
    peers=(OURS, "ppe-fork"),
    metrics=(
        Metric(
            key="rate",
            title="tasks per second after the first result",
            unit="tasks/s",
            better="higher",
            must=Bound(1.0, ("ppe-fork",), "ProcessPoolExecutor (fork)"),
        ),
        Metric(
            key="copied",
            title="bytes copied per worker, of the global's",
            unit="times",
            better="lower",
            must=Bound(COPIED_LIMIT),
        ),
    ),
    run=run,
    note="Function and array are of `__main__`, and exist before the pool, so that fork inherits "
    "them. Copied is by how much the workers' anonymous memory grew.",
    rounds=3,
)
