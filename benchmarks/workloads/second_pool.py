"""A second pool in the same program, after the first one was closed."""

from __future__ import annotations

from benchmarks.model import EXECUTOR, MP_POOL, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.program import run_program
from benchmarks.workloads.warm import expect


def run(peer: Peer, settings: Settings) -> Outcome:
    times = run_program(peer)
    expect(times["results"], [2, 2])
    return Outcome({"time": times["second"] * 1e3})


WORKLOAD = Workload(
    name="second_pool",
    title="First result of a second pool",
    peers=(OURS, *MP_POOL, "mp-spawn", *EXECUTOR, "loky", "joblib", "mpire"),
    metrics=(
        Metric(
            key="time",
            title="time from the constructor",
            unit="ms",
            better="lower",
            must=Bound(10.0),
            aim=Bound(5.0),
        ),
    ),
    run=run,
    note="From the constructor to the first result, in the script of `first_result`. joblib keeps "
    "its workers from one `Parallel` to the next, so its figure is that of a pool in use.",
)
