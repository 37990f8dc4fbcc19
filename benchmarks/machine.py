"""The machine and the versions that the figures belong to."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.base import Peer

BUSY_SHARE = 0.10
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Machine:
    cpu_model: str
    cpus: int
    memory_gib: float
    kernel: str
    python: str
    # The share of all CPU time that others used in the second before the first run.
    busy_share: float

    @property
    def is_busy(self) -> bool:
        return self.busy_share > BUSY_SHARE

    @property
    def slug(self) -> str:
        """The CPU's name as part of a file name."""
        words = re.sub(r"\(.*?\)|@.*|\bCPU\b|\bProcessor\b", " ", self.cpu_model)
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unknown-cpu"

    def __str__(self) -> str:
        return (
            f"{self.cpu_model}, {self.cpus} CPUs, {self.memory_gib:.0f} GiB, "
            f"Linux {self.kernel}, Python {self.python}"
        )


def look() -> Machine:
    cpu_model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            cpu_model = " ".join(value.split())
            break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu_model=cpu_model,
        cpus=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        busy_share=round(_busy_share(), 3),
    )


def versions(peers: Iterable[Peer]) -> dict[str, str | None]:
    """By module; the standard library's peers have Python's version. None: not installed."""
    return {peer.module or "python": peer.version() for peer in peers}


def _busy_share() -> float:
    idle_before, total_before = _cpu_ticks()
    time.sleep(_LOOK_SECONDS)
    idle, total = _cpu_ticks()
    return 1 - (idle - idle_before) / max(total - total_before, 1)


def _cpu_ticks() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle_and_waiting = ticks[3] + ticks[4]
    return idle_and_waiting, sum(ticks)
