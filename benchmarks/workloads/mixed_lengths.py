"""The example of ray#29453: long and short items mixed, results as they come."""

from __future__ import annotations

import time

from benchmarks.model import MP_POOL, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import nap
from benchmarks.workloads.skew import list_schedule
from benchmarks.workloads.warm import expect

WORKERS = 4
UNIT_SECONDS = 0.05
# Seconds there. Dealt out in turn, all the long ones go to one worker.
LENGTHS = (1, 2, 1, 10, 3, 1, 4, 10, 1, 3, 2, 10)


def run(peer: Peer, settings: Settings) -> Outcome:
    items = [length * UNIT_SECONDS for length in LENGTHS]
    ideal = max(sum(share) for share in list_schedule(list(LENGTHS), WORKERS)) * UNIT_SECONDS
    with peer.open(WORKERS) as session:
        session.submit_all(nap, [0.05] * (2 * WORKERS))
        begin = time.perf_counter()
        results = session.map_unordered(nap, items)
        seconds = time.perf_counter() - begin
    expect(sorted(results), sorted(items))
    return Outcome({"factor": seconds / ideal})


WORKLOAD = Workload(
    name="mixed_lengths",
    title="Long and short items mixed (ray#29453)",
    peers=(OURS, *MP_POOL, "ray"),
    metrics=(
        Metric(
            key="factor",
            title="time, of greedy list scheduling",
            unit="times",
            better="lower",
            must=Bound(1.1),
        ),
    ),
    run=run,
    note="Four workers, results in the order in which they come: `imap_unordered` of mp.Pool and "
    "of `ray.util.multiprocessing`. The items sleep; a second of the report is 50 ms here.",
)
