"""The workloads, each in its own module; `ALL` is their order in every table."""

from __future__ import annotations

from benchmarks.model import Workload
from benchmarks.workloads import (
    arrays,
    as_completed20k,
    captured,
    cpu_bound,
    endings,
    fill_in_place,
    first_result,
    forwarding,
    frames,
    import_time,
    inner_threads,
    limits,
    map_dataclasses,
    map_items,
    mixed_lengths,
    one_at_a_time,
    one_with_idle,
    page_faults,
    pandas_ready,
    put_once,
    recycling,
    second_pool,
    seeing,
    skew,
    streams,
    submit20k,
    taskset1,
    threads,
)

ALL: tuple[Workload, ...] = (
    submit20k.WORKLOAD,
    as_completed20k.WORKLOAD,
    one_at_a_time.WORKLOAD,
    one_with_idle.WORKLOAD,
    cpu_bound.WORKLOAD,
    first_result.WORKLOAD,
    second_pool.WORKLOAD,
    import_time.WORKLOAD,
    pandas_ready.WORKLOAD,
    *taskset1.WORKLOADS,
    *map_items.WORKLOADS,
    *map_dataclasses.WORKLOADS,
    skew.WORKLOAD,
    mixed_lengths.WORKLOAD,
    *streams.WORKLOADS,
    *endings.WORKLOADS,
    *recycling.WORKLOADS,
    *limits.WORKLOADS,
    *forwarding.WORKLOADS,
    *seeing.WORKLOADS,
    inner_threads.WORKLOAD,
    *threads.WORKLOADS,
    *arrays.WORKLOADS,
    *put_once.WORKLOADS,
    captured.WORKLOAD,
    frames.WORKLOAD,
    fill_in_place.WORKLOAD,
    page_faults.WORKLOAD,
)


def by_name(name: str) -> Workload:
    return next(workload for workload in ALL if workload.name == name)
