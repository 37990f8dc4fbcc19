"""Thirty-two tasks of a tenth of a second each: what a pool takes away from real computation."""

from __future__ import annotations

import time

from benchmarks.model import (
    DEFAULT_WORKERS,
    EXECUTOR,
    MP_POOL,
    OURS,
    Bound,
    Metric,
    Outcome,
    Settings,
    Workload,
)
from benchmarks.peers.bare import BareProcesses
from benchmarks.peers.base import Peer
from benchmarks.tasks import hits_in_circle
from benchmarks.workloads.warm import NAPS

TASKS = 32
QUICK_TASKS = 10
TASK_SECONDS = 0.100
CALIBRATION_SAMPLES = 200_000


def calibrate() -> dict[str, int]:
    """How many samples take a tenth of a second here; the same number is used for all peers."""
    fastest = float("inf")
    for seed in range(5):
        begin = time.perf_counter()
        hits_in_circle((seed, CALIBRATION_SAMPLES))
        fastest = min(fastest, time.perf_counter() - begin)
    return {"samples": round(CALIBRATION_SAMPLES * TASK_SECONDS / fastest)}


def run(peer: Peer, settings: Settings) -> Outcome:
    tasks = QUICK_TASKS if settings.quick else TASKS
    jobs = [(seed, settings.parameters["samples"]) for seed in range(tasks)]
    if isinstance(peer, BareProcesses):
        seconds, results = peer.run(hits_in_circle, jobs, DEFAULT_WORKERS)
    else:
        with peer.open(DEFAULT_WORKERS) as session:
            session.submit_all(*NAPS)
            begin = time.perf_counter()
            results = session.submit_all(hits_in_circle, jobs)
            seconds = time.perf_counter() - begin
    # The seeds make the answer exact; the harness compares it over all peers and rounds.
    return Outcome({"rate": tasks / seconds}, answer=" ".join(map(str, results)))


WORKLOAD = Workload(
    name="cpu_bound",
    title="Monte Carlo pi, 32 tasks of 100 ms",
    peers=(OURS, "bare", *MP_POOL, *EXECUTOR, "loky", "joblib", "mpire", "ray"),
    metrics=(
        Metric(
            key="rate",
            title="tasks per second",
            unit="tasks/s",
            better="higher",
            must=Bound(0.97, ("bare",), "ideal"),
            aim=Bound(0.99, ("bare",), "ideal"),
        ),
    ),
    run=run,
    calibrate=calibrate,
    note="The ideal is two bare processes that start together and do 16 tasks each, without any "
    "pool. The pools are warm.",
    # The bound is closer than one round's noise.
    rounds=7,
)
