"""Eight workers that all need pandas: how long until they have it, and what memory they take."""

from __future__ import annotations

import os
import tempfile
import time

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.processes import descendants, proportional_bytes
from benchmarks.workloads.warm import expect

WORKERS = 8


def run(peer: Peer, settings: Settings) -> Outcome:
    # As in a user's program, the parent has imported the module of its task, and with it pandas.
    from benchmarks.pandas_tasks import EXPECTED_SUM, use_pandas_and_meet

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        begin = time.perf_counter()
        with peer.open(WORKERS, preload=("pandas",)) as session:
            results = session.submit_all(use_pandas_and_meet, [(folder, WORKERS)] * WORKERS)
            seconds = time.perf_counter() - begin
            workers = {pid for pid, _ in results}
            # Whatever the pool started counts, helpers too: all but the program itself.
            started = descendants(os.getpid()) | workers
            pss = proportional_bytes(started)
    expect(len(workers), WORKERS)
    expect([total for _, total in results], [EXPECTED_SUM] * WORKERS)
    return Outcome(
        {"time": seconds * 1e3, "memory": pss / WORKERS / 2**20},
        details={"processes": len(started)},
    )


WORKLOAD = Workload(
    name="pandas_ready",
    title="8 workers that use pandas",
    peers=(OURS, "mp-forkserver", "mp-spawn", "mp-fork", "ppe-forkserver", "loky"),
    metrics=(
        Metric(
            key="time",
            title="time until all are ready",
            unit="ms",
            better="lower",
            must=Bound(1 / 3, ("loky",), "loky"),
            aim=Bound(1 / 4, ("loky",), "loky"),
        ),
        Metric(
            key="memory",
            title="memory per worker",
            unit="MiB",
            better="lower",
            must=Bound(1 / 3, ("loky",), "loky"),
            aim=Bound(1 / 5, ("loky",), "loky"),
        ),
    ),
    run=run,
    note="From the constructor until each of 8 workers has used pandas once. Memory is the "
    "proportional set size of all processes that the pool started, helpers included, divided by 8. "
    "manyhands and forkserver are told to preload pandas; loky and spawn have no such setting; "
    "fork copies the program, which has imported pandas before the clock starts.",
    rounds=3,
    quick_rounds=1,
    time_limit_seconds=90.0,
)
