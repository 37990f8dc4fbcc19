"""`map` over very many short items: integers, small dicts, small tuples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

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
from benchmarks.peers.base import Peer
from benchmarks.tasks import identity
from benchmarks.workloads.warm import expect

INTEGERS = 1_000_000
RECORDS = 300_000
WARM_UP_ITEMS = 1_000

_CHUNKS = (
    "Chunks are those each library is best used with: its own choice where it makes one, else an "
    "eighth of the items."
)


def integers() -> Sequence[Any]:
    return range(INTEGERS)


def dicts() -> Sequence[Any]:
    return [
        {"id": n, "name": f"name{n}", "score": n * 0.5, "tags": [f"tag{n % 7}", "all"]}
        for n in range(RECORDS)
    ]


def tuples() -> Sequence[Any]:
    return [(n, f"name{n}", n * 0.5, (f"tag{n % 7}", "all")) for n in range(RECORDS)]


def measured(peer: Peer, items: Sequence[Any]) -> float:
    """Items per second in a warm pool; the results are checked."""
    with peer.open(DEFAULT_WORKERS) as session:
        warm = items[:WARM_UP_ITEMS]
        expect(session.map(identity, warm), list(warm))
        begin = time.perf_counter()
        results = session.map(identity, items)
        seconds = time.perf_counter() - begin
    expect(results, list(items))
    return len(items) / seconds


def _workload(
    name: str, title: str, make: Callable[[], Sequence[Any]], peers: tuple[str, ...]
) -> Workload:
    def run(peer: Peer, settings: Settings) -> Outcome:
        return Outcome({"rate": measured(peer, make())})

    return Workload(
        name=name,
        title=title,
        peers=peers,
        metrics=(
            Metric(
                key="rate",
                title="items per second",
                unit="items/s",
                better="higher",
                must=Bound(1.0, MP_POOL, "mp.Pool"),
                aim=Bound(1.5, MP_POOL, "mp.Pool"),
            ),
        ),
        run=run,
        note=_CHUNKS,
    )


WORKLOADS = (
    _workload(
        "map1m",
        "Map over 1,000,000 integers",
        integers,
        (OURS, *MP_POOL, *EXECUTOR, "loky", "joblib", "mpire"),
    ),
    _workload(
        "map_dicts", "Map over 300,000 small dicts", dicts, (OURS, *MP_POOL, *EXECUTOR, "joblib")
    ),
    _workload(
        "map_tuples", "Map over 300,000 small tuples", tuples, (OURS, *MP_POOL, *EXECUTOR, "joblib")
    ),
)
