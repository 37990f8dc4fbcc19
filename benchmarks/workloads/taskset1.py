"""The first three workloads on one CPU: a pool must not fall apart where it cannot spin."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.model import EXECUTOR, MP_POOL, OURS, Bound, Workload
from benchmarks.workloads import as_completed20k, one_at_a_time, submit20k

KEPT_SHARE = 0.5


def _on_one_cpu(base: Workload, reference: tuple[str, ...], label: str) -> Workload:
    (metric, *_) = base.metrics
    bound = Bound(KEPT_SHARE, reference, label, kept_from=base.name)
    # The base's other metrics are measured along and shown.
    return replace(
        base,
        name=f"taskset1_{base.name}",
        title=f"{base.title}, on one CPU",
        peers=(OURS, *reference),
        metrics=(replace(metric, must=bound, aim=None), *base.metrics[1:]),
        one_cpu=True,
        note=f"As {base.name}, the program and its 2 workers kept on one CPU, as by `taskset`. "
        f"At least half of the advantage over {label} must stay.",
    )


WORKLOADS = (
    _on_one_cpu(submit20k.WORKLOAD, MP_POOL, "mp.Pool"),
    _on_one_cpu(as_completed20k.WORKLOAD, EXECUTOR, "ProcessPoolExecutor"),
    _on_one_cpu(one_at_a_time.WORKLOAD, MP_POOL, "mp.Pool"),
)
