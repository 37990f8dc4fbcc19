"""A result of 800 MB that tasks fill in place, each a slice of its own."""

from __future__ import annotations

import time

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import fill_part
from benchmarks.workloads.warm import NAPS, WrongResult

LENGTH = 100_000_000
PARTS = 32
PART_LENGTH = LENGTH // PARTS

_BY_HAND = ("mp-fork",)


def run(peer: Peer, settings: Settings) -> Outcome:
    parts = [(first, first + PART_LENGTH) for first in range(0, LENGTH, PART_LENGTH)]
    with peer.open(DEFAULT_WORKERS) as session:
        session.submit_all(*NAPS)
        # Every worker has done such a task, on little memory.
        with session.filled(fill_part, PARTS, [(part, part + 1) for part in range(PARTS)]):
            pass
        begin = time.perf_counter()
        with session.filled(fill_part, LENGTH, parts) as array:
            seconds = time.perf_counter() - begin
            size = array.nbytes
            for first, end in parts:
                if not (array[first:end] == first).all():
                    raise WrongResult("a slice does not hold what its task has written")
            # The memory cannot go while it is looked at.
            del array
    return Outcome({"rate": size / seconds / 1e9})


WORKLOAD = Workload(
    name="fill_in_place",
    title="800 MB filled in place by slices",
    peers=(OURS, *_BY_HAND, "joblib"),
    metrics=(
        Metric(
            key="rate",
            title="GB per second",
            unit="GB/s",
            better="higher",
            must=Bound(1.0, _BY_HAND, "by hand"),
        ),
    ),
    run=run,
    note="32 tasks, from the making of the array to the last one's end, in a warm pool. "
    "`mh.shared_array`; by hand is mp.Pool, whose tasks open a `SharedMemory` by its name; joblib "
    "is given a writable `numpy.memmap` of a file in `/dev/shm`.",
    rounds=3,
)
