"""From raw rounds to medians, and from medians to what was reached of what had to be."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks import peers
from benchmarks.model import OURS, Bound, Metric, Record, Workload

Verdict = Literal["aim met", "must met", "missed", "failed", "no reference", "for information"]


@dataclass(frozen=True)
class Figure:
    """One metric of one peer over the rounds. The numbers are None when every round failed."""

    median: float | None
    minimum: float | None
    maximum: float | None
    rounds: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """A bound, and the value that counts against it; None where there is nothing to compare."""

    bound: Bound
    value: float | None
    met: bool


@dataclass(frozen=True)
class Judgement:
    """One metric of one workload: everybody's figures, and the verdict on manyhands."""

    workload: Workload
    metric: Metric
    figures: dict[str, Figure]
    best_peer: str | None
    # How many times better than the best peer; below 1 where we lose.
    advantage: float | None
    must: Check | None
    aim: Check | None
    verdict: Verdict


def judge(workloads: Sequence[Workload], records: Sequence[Record]) -> list[Judgement]:
    """One judgement for each metric of each workload."""
    figures = {
        (workload.name, metric.key): _figures(workload, metric, records)
        for workload in workloads
        for metric in workload.metrics
    }
    return [
        _judge(workload, metric, figures) for workload in workloads for metric in workload.metrics
    ]


def advantage(metric: Metric, ours: float, theirs: float) -> float | None:
    """How many times better we are; none where somebody has nothing to compare with."""
    if ours == 0 or theirs == 0:
        return None
    return ours / theirs if metric.better == "higher" else theirs / ours


def _figures(workload: Workload, metric: Metric, records: Iterable[Record]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    of_workload = [record for record in records if record.workload == workload.name]
    for key in workload.peers:
        runs = [record for record in of_workload if record.peer == key]
        if not runs:
            continue
        values = [run.outcome.values[metric.key] for run in runs if run.outcome is not None]
        found[key] = Figure(
            median=statistics.median(values) if values else None,
            minimum=min(values, default=None),
            maximum=max(values, default=None),
            rounds=len(runs),
            failures=tuple(run.failure for run in runs if run.failure is not None),
        )
    return found


def _judge(
    workload: Workload, metric: Metric, all_figures: dict[tuple[str, str], dict[str, Figure]]
) -> Judgement:
    figures = all_figures[workload.name, metric.key]
    competitors = [key for key in figures if key != OURS and peers.by_key(key).competes]
    best_peer = _best(metric, figures, competitors)
    must = _check(workload, metric, metric.must, all_figures)
    aim = _check(workload, metric, metric.aim, all_figures)
    ours = figures.get(OURS)
    verdict: Verdict
    if ours is None or ours.median is None or ours.failures:
        verdict = "failed"
    elif must is None:
        verdict = "for information"
    elif must.value is None:
        verdict = "no reference"
    elif not must.met:
        verdict = "missed"
    else:
        verdict = "aim met" if aim is not None and aim.met else "must met"
    return Judgement(
        workload=workload,
        metric=metric,
        figures=figures,
        best_peer=best_peer,
        advantage=_advantage_over(metric, figures, competitors),
        must=must,
        aim=aim,
        verdict=verdict,
    )


def _best(metric: Metric, figures: dict[str, Figure], keys: Iterable[str]) -> str | None:
    medians = {key: figures[key].median for key in keys if key in figures}
    known = {key: median for key, median in medians.items() if median is not None}
    if not known:
        return None
    choose = max if metric.better == "higher" else min
    return choose(known, key=lambda key: known[key])


def _advantage_over(
    metric: Metric, figures: dict[str, Figure], keys: Iterable[str]
) -> float | None:
    best = _best(metric, figures, keys)
    ours = figures[OURS].median if OURS in figures else None
    theirs = figures[best].median if best is not None else None
    if ours is None or theirs is None:
        return None
    return advantage(metric, ours, theirs)


def _check(
    workload: Workload,
    metric: Metric,
    bound: Bound | None,
    all_figures: dict[tuple[str, str], dict[str, Figure]],
) -> Check | None:
    if bound is None:
        return None
    figures = all_figures[workload.name, metric.key]
    value: float | None
    if bound.kept_from is not None:
        here = _advantage_over(metric, figures, bound.against)
        there = _advantage_over(metric, all_figures[bound.kept_from, metric.key], bound.against)
        value = here / there if here is not None and there is not None else None
        return Check(bound, value, value is not None and value >= bound.limit)
    if bound.against:
        ratio = _advantage_over(metric, figures, bound.against)
        # As a factor on the reference: of a time, a half is twice as good.
        value = 1 / ratio if ratio is not None and metric.better == "lower" else ratio
    else:
        value = figures[OURS].median if OURS in figures else None
    if value is None:
        return Check(bound, None, False)
    met = value >= bound.limit if metric.better == "higher" else value <= bound.limit
    return Check(bound, value, met)
