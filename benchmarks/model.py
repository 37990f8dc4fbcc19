"""The nouns of the benchmarks: metrics, bounds and workloads, and what a measured run gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from benchmarks.peers.base import Peer

OURS = "manyhands"
MP_POOL = ("mp-fork", "mp-forkserver")
EXECUTOR = ("ppe-fork", "ppe-forkserver")

DEFAULT_WORKERS = 2


@dataclass(frozen=True)
class Bound:
    """A value that manyhands has to reach in one metric.

    Without `against` it is absolute, in the metric's unit. With it, it is a factor on the best of
    these peers: at least so much of it where higher is better, at most where lower is. With
    `kept_from`, it is the share to be kept of the advantage that the named workload shows.
    """

    limit: float
    against: tuple[str, ...] = ()
    against_label: str = ""
    kept_from: str | None = None


@dataclass(frozen=True)
class Metric:
    """One figure of a workload. Without `must` it is shown for information only."""

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    must: Bound | None = None
    aim: Bound | None = None


@dataclass(frozen=True)
class Settings:
    """What one measured process is told."""

    workload: str
    peer: str
    quick: bool
    cpus: tuple[int, ...] | None
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one measured process tells: a value per metric, and what helps to judge them."""

    values: dict[str, float]
    # Equal over all peers of a workload, or the run is wrong; empty where the workload's own check
    # is complete.
    answer: str = ""
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What is measured. `run` is called in the measured process."""

    name: str
    title: str
    peers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    run: Callable[[Peer, Settings], Outcome]
    note: str = ""
    rounds: int = 5
    quick_rounds: int = 2
    time_limit_seconds: float = 60.0
    # Keep the measured process on the first CPU it may use, as `taskset -c 0` does.
    one_cpu: bool = False
    # Called once in the harness before the first round; the same parameters go to every peer.
    calibrate: Callable[[], dict[str, int]] | None = None


@dataclass(frozen=True)
class Record:
    """One measured run: an outcome, or why there is none."""

    workload: str
    peer: str
    round: int
    wall_seconds: float
    outcome: Outcome | None
    failure: str | None
    # Processes that the run left behind and that had to be killed.
    leftovers: int = 0


class NotOffered(Exception):
    """The peer has no such operation; its name should not be in the workload's list."""


Json = dict[str, Any]
