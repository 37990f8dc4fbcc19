"""What a long stream needs: memory that stays flat, and workers that a slow consumer keeps busy."""

from __future__ import annotations

import itertools
import time

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.processes import resident_megabytes
from benchmarks.tasks import identity, nap
from benchmarks.workloads.warm import WrongResult

ITEMS = 10_000_000
QUICK_ITEMS = 1_000_000
LOOK_EVERY = 100_000
TAKEN = 1_500
PAUSE_SECONDS = 0.001


def flat(peer: Peer, settings: Settings) -> Outcome:
    count = QUICK_ITEMS if settings.quick else ITEMS
    with peer.open(DEFAULT_WORKERS) as session:
        before = peak = 0.0
        begin = time.perf_counter()
        seen = 0
        for result in session.stream(identity, range(count)):
            if result != seen:
                raise WrongResult(f"{result} came in the place of {seen}")
            seen += 1
            if seen % LOOK_EVERY == 0:
                now = resident_megabytes()
                before = before or now
                peak = max(peak, now)
        seconds = time.perf_counter() - begin
    if seen != count:
        raise WrongResult(f"{seen} of {count} results came")
    return Outcome({"growth": peak - before, "rate": count / seconds})


def busy(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    with mh.Pool(DEFAULT_WORKERS) as pool:
        pool.map(nap, [0.05] * (2 * DEFAULT_WORKERS)).run()
        results = pool.map(nap, itertools.repeat(PAUSE_SECONDS))
        before = sum(worker.busy for worker in pool.stats().workers)
        begin = time.perf_counter()
        for _ in itertools.islice(results, TAKEN):
            time.sleep(PAUSE_SECONDS)
        seconds = time.perf_counter() - begin
        after = sum(worker.busy for worker in pool.stats().workers)
        results.close()
    return Outcome({"share": (after - before) / seconds / DEFAULT_WORKERS})


WORKLOADS = (
    Workload(
        name="flat10m",
        title="A consumer that drops 10,000,000 results",
        peers=(OURS,),
        metrics=(
            Metric(
                key="growth",
                title="growth of resident memory",
                unit="MB",
                better="lower",
                must=Bound(50.0),
            ),
            Metric(key="rate", title="items per second", unit="items/s", better="higher"),
        ),
        run=flat,
        rounds=3,
        note="Between the first 100,000 results and the end, in the program itself.",
    ),
    Workload(
        name="busy_consumer",
        title="A consumer that takes 1 ms per result",
        peers=(OURS,),
        metrics=(
            Metric(
                key="share",
                title="share of the time that workers are busy",
                unit="times",
                better="higher",
                must=Bound(0.95),
            ),
        ),
        run=busy,
        note="Items of 1 ms, two workers; the window is not full before the end.",
    ),
)
