"""From the first line of a script to the first result of its pool."""

from __future__ import annotations

from benchmarks.model import EXECUTOR, MP_POOL, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.program import run_program
from benchmarks.workloads.warm import expect


def run(peer: Peer, settings: Settings) -> Outcome:
    times = run_program(peer)
    expect(times["results"], [2, 2])
    return Outcome({"time": times["first"] * 1e3})


WORKLOAD = Workload(
    name="first_result",
    title="First result of a fresh program",
    peers=(OURS, *MP_POOL, "mp-spawn", *EXECUTOR, "loky", "joblib", "mpire", "ray"),
    metrics=(
        Metric(
            key="time",
            title="time in the program",
            unit="ms",
            better="lower",
            must=Bound(60.0),
            aim=Bound(30.0),
        ),
    ),
    run=run,
    note="A script of its own, with a function of `__main__` and 2 workers: from before its first "
    "import to the first result. The interpreter's own start is not counted.",
)
