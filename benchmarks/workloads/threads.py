"""The thread engine beside `ThreadPoolExecutor`, and the inline engine beside a loop."""

from __future__ import annotations

import time

from benchmarks.model import DEFAULT_WORKERS, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.processes import resident_megabytes
from benchmarks.tasks import identity
from benchmarks.workloads.warm import expect

TASKS = 20_000
ITEMS = 1_000_000
# ThreadPoolExecutor takes fifteen seconds for a million.
FEWER_ITEMS = {"tpe": 200_000}
INLINE_ITEMS = 200_000


def submit(peer: Peer, settings: Settings) -> Outcome:
    with peer.open_threads(DEFAULT_WORKERS) as session:
        session.submit_all(identity, range(100))
        begin = time.perf_counter()
        results = session.submit_all(identity, range(TASKS))
        seconds = time.perf_counter() - begin
    expect(results, list(range(TASKS)))
    return Outcome({"rate": TASKS / seconds})


def map_items(peer: Peer, settings: Settings) -> Outcome:
    count = FEWER_ITEMS.get(peer.key, ITEMS)
    with peer.open_threads(DEFAULT_WORKERS) as session:
        session.submit_all(identity, range(100))
        before = resident_megabytes()
        begin = time.perf_counter()
        total = 0
        for result in session.stream(identity, range(count)):
            total += result
        seconds = time.perf_counter() - begin
        growth = resident_megabytes() - before
    expect(total, count * (count - 1) // 2)
    return Outcome({"rate": count / seconds, "growth": growth})


def inline(peer: Peer, settings: Settings) -> Outcome:
    import manyhands as mh

    items = range(INLINE_ITEMS)
    # The fastest of a few: a loop this short is easily disturbed.
    loop = ours = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        expected = [identity(item) for item in items]
        loop = min(loop, time.perf_counter() - begin)
        begin = time.perf_counter()
        results = list(mh.map(identity, items, engine="inline", copy=False))
        ours = min(ours, time.perf_counter() - begin)
        expect(results, expected)
    return Outcome({"more": (ours - loop) / INLINE_ITEMS * 1e6})


WORKLOADS = (
    Workload(
        name="thread_submit",
        title="Threads: submit 20,000 empty tasks",
        peers=(OURS, "tpe"),
        metrics=(
            Metric(
                key="rate",
                title="tasks per second",
                unit="tasks/s",
                better="higher",
                must=Bound(2.0, ("tpe",), "ThreadPoolExecutor"),
                aim=Bound(4.0, ("tpe",), "ThreadPoolExecutor"),
            ),
        ),
        run=submit,
        note="`mh.Pool(2, engine='thread')`; all are submitted first.",
    ),
    Workload(
        name="thread_map",
        title="Threads: map over 1,000,000 integers",
        peers=(OURS, "tpe"),
        metrics=(
            Metric(
                key="rate",
                title="items per second",
                unit="items/s",
                better="higher",
                must=Bound(10.0, ("tpe",), "ThreadPoolExecutor"),
            ),
            Metric(
                key="growth",
                title="growth of resident memory",
                unit="MB",
                better="lower",
                must=Bound(50.0),
            ),
        ),
        run=map_items,
        note="ThreadPoolExecutor does 200,000, at which it is faster than with a million.",
    ),
    Workload(
        name="inline",
        title="Inline, without copies: cost of an item",
        peers=(OURS,),
        metrics=(
            Metric(
                key="more",
                title="more than a loop, per item",
                unit="us",
                better="lower",
                must=Bound(1.0),
            ),
        ),
        run=inline,
        note="`mh.map(f, items, engine='inline', copy=False)` beside a list comprehension.",
    ),
)
