"""The import alone, in a fresh interpreter."""

from __future__ import annotations

from benchmarks.model import OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.program import run_import


def run(peer: Peer, settings: Settings) -> Outcome:
    return Outcome({"time": run_import(peer) * 1e3})


WORKLOAD = Workload(
    name="import_time",
    title="Import in a fresh interpreter",
    peers=(OURS, "mp-fork", "ppe-fork", "loky", "joblib", "mpire", "ray"),
    metrics=(
        Metric(
            key="time",
            title="time of the import",
            unit="ms",
            better="lower",
            must=Bound(30.0),
            aim=Bound(15.0),
        ),
    ),
    run=run,
    note="manyhands and multiprocessing import most of themselves only when they are used; see "
    "`first_result`.",
    rounds=7,
)
