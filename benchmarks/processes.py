"""Processes as /proc shows them: who descends from whom, their memory, and ending them."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Self

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01


def adopt_orphans() -> None:
    """Become the parent of whatever the measured processes leave behind, so that it is found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants(root: int) -> set[int]:
    """The living processes below `root`, without it and without zombies."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    zombies: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        # The command's name stands in parentheses and may itself contain some.
        state, parent = stat.rpartition(")")[2].split()[:2]
        children[int(parent)].append(int(entry))
        if state in "ZX":
            zombies.add(int(entry))
    found: set[int] = set()
    unvisited = [root]
    while unvisited:
        for child in children[unvisited.pop()]:
            if child not in found:
                found.add(child)
                unvisited.append(child)
    return found - zombies


class Load:
    """What goes on below this process while a block runs, looked at again and again.

    Processes that end between two looks are known as they were at the last one.
    """

    def __init__(self) -> None:
        self._ticks: dict[int, int] = {}
        self._threads: dict[int, int] = {}
        self._running: list[int] = []
        self._end = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._begin = time.perf_counter()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        self._end.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._end.wait(_POLL_SECONDS):
            running = 0
            for pid in descendants(os.getpid()):
                states, ticks = _threads(pid)
                if states:
                    self._ticks[pid] = ticks
                    self._threads[pid] = max(self._threads.get(pid, 0), len(states))
                running += states.count("R")
            self._running.append(running)

    def threads(self) -> int:
        """The most threads that each process had, all together."""
        return sum(self._threads.values())

    def running(self) -> float:
        """How many threads ran or could have run, in the mean."""
        return sum(self._running) / max(1, len(self._running))

    def used(self, cores: int) -> float:
        """The share of these processors' time that was used."""
        seconds = sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")
        return seconds / (self.seconds * cores)


def _threads(pid: int) -> tuple[list[str], int]:
    """The states of the threads of a process, and the time they have used, in ticks."""
    states, ticks = [], 0
    try:
        for entry in Path(f"/proc/{pid}/task").iterdir():
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            states.append(fields[0])
            ticks += int(fields[11]) + int(fields[12])
    except OSError:
        pass  # it, or one of them, ended meanwhile
    return states, ticks


def end_descendants(grace_seconds: float) -> int:
    """Wait for our descendants to end, then kill the rest; returns how many had to be killed."""
    deadline = time.monotonic() + grace_seconds
    while _reap() and descendants(os.getpid()):
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    killed: set[int] = set()
    # Until none is left: one may be forking while we look.
    while _reap() and (rest := descendants(os.getpid())):
        for pid in rest:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(_POLL_SECONDS)
    return len(killed)


def _reap() -> bool:
    """Collect ended children; False when there are no children at all."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def proportional_bytes(pids: Iterable[int]) -> int:
    """Their proportional set size: what is shared counts for each sharer in part."""
    return _sum_over(pids, "Pss:")


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Their memory that belongs to no file, neither a real one nor one in memory.

    What a forked process inherited is part of it from its birth, copied or not.
    """
    return _sum_over(pids, "Anonymous:")


def _sum_over(pids: Iterable[int], field: str) -> int:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(field):
                total += int(line.split()[1]) * 1024
    return total


def resident_megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
