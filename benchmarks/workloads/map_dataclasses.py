"""`map` over instances of a dataclass: of an importable module, and of the script itself."""

from __future__ import annotations

import sys
from dataclasses import make_dataclass
from typing import Any

from benchmarks.model import MP_POOL, OURS, Bound, Metric, Outcome, Settings, Workload
from benchmarks.peers.base import Peer
from benchmarks.tasks import Point
from benchmarks.workloads.map_items import RECORDS, measured


def importable(peer: Peer, settings: Settings) -> Outcome:
    return Outcome({"rate": measured(peer, _points(Point))})


def of_main(peer: Peer, settings: Settings) -> Outcome:
    fields = [("x", int), ("name", str), ("weight", float)]
    main = sys.modules["__main__"]
    here = make_dataclass("PointOfMain", fields, namespace={"__module__": "__main__"})
    here.__module__ = "__main__"
    main.PointOfMain = here  # type: ignore[attr-defined]
    rate = measured(peer, _points(here))
    return Outcome({"rate": rate, "factor": measured(peer, _points(Point)) / rate})


def _points(kind: Any) -> list[Any]:
    return [kind(n, f"name{n}", n * 0.5) for n in range(RECORDS)]


WORKLOADS = (
    Workload(
        name="map_dataclasses",
        title="Map over 300,000 dataclass instances",
        peers=(OURS, *MP_POOL),
        metrics=(
            Metric(
                key="rate",
                title="items per second",
                unit="items/s",
                better="higher",
                must=Bound(0.9, MP_POOL, "mp.Pool"),
            ),
        ),
        run=importable,
        note="The class is of a module that workers can import.",
    ),
    Workload(
        name="map_main_dataclasses",
        title="The same, of a class of the script",
        peers=(OURS, "mp-fork"),
        metrics=(
            Metric(key="rate", title="items per second", unit="items/s", better="higher"),
            Metric(
                key="factor",
                title="time, of that for the importable class",
                unit="times",
                better="lower",
                must=Bound(1.2),
            ),
        ),
        run=of_main,
        note="The class is defined in `__main__`. Both are measured in the same process.",
    ),
)
