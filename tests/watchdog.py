"""What is known of a test that hangs, shortly before the time is up and faulthandler ends the run.

faulthandler shows the stacks, but neither which test it is nor what the processes below wait for.
That is written here, by a thread of its own, in lines that begin with `hang: `, by which
`scripts/log_facts.py` finds them in a long log.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

import procfs

# So many seconds before faulthandler, and at the earliest after half of its time.
_BEFORE = 15.0
# A thread or process is one line; so many of them.
_MOST_LINES = 30


class Watchdog:
    """Writes to the descriptor what goes on when a test has nearly had its time."""

    def __init__(self, descriptor: int, limit: float) -> None:
        self._descriptor = descriptor
        self._patience = max(limit - _BEFORE, limit / 2)
        self._due = float("inf")
        self._test = ""
        # A daemon: it is never told to end, and holds nothing.
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, test: str) -> None:
        """A test begins."""
        self._test = test
        self._due = time.monotonic() + self._patience

    def end(self) -> None:
        """No test runs."""
        self._due = float("inf")

    def _watch(self) -> None:
        while True:
            left = self._due - time.monotonic()
            if left <= 0:
                self.end()
                self._report()
            time.sleep(min(max(left, 1.0), self._patience))

    def _report(self) -> None:
        # With its phase: "tests/unit/test_pool.py::test_exit (teardown)".
        test = os.environ.get("PYTEST_CURRENT_TEST", self._test)
        os.write(self._descriptor, b"\n")  # pytest's line of dots is open
        self._write(f"{test} has taken {self._patience:.0f} s")
        for line in _threads_and_processes()[:_MOST_LINES]:
            self._write(line)
        # Last, since this may wait for what hangs.
        for line in _pools():
            self._write(line)

    def _write(self, line: str) -> None:
        os.write(self._descriptor, f"hang: {line}\n".encode(errors="replace"))


def start(limit: float) -> Watchdog:
    """For tests of which none may take longer than so many seconds."""
    return Watchdog(os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2), limit)


def _threads_and_processes() -> list[str]:
    """The threads of this process and all processes below it, and where each is in the kernel."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    lines = []
    for task in sorted(map(int, os.listdir("/proc/self/task"))):
        if task != threading.get_native_id():
            lines.append(_line(f"/proc/self/task/{task}", f"thread {task}", names.get(task, "")))
    below = [os.getpid()]
    for parent in below:
        below += procfs.children(parent)
    lines += [_line(f"/proc/{pid}", f"process {pid} of {procfs.stat(pid)[1]}") for pid in below[1:]]
    return lines


def _line(path: str, what: str, name: str = "") -> str:
    parts = [what, *([repr(name)] if name else []), procfs.stat_of(path)[0]]
    for file in ("comm", "wchan", "syscall"):
        try:
            with open(f"{path}/{file}", errors="replace") as opened:
                parts.append(f"{file}={opened.read(40).strip()}")
        except OSError:
            parts.append(f"{file}=?")
    return " ".join(parts)


def _pools() -> list[str]:
    """What each living pool says of itself; nothing is imported for it."""
    manyhands = sys.modules.get("manyhands")
    if manyhands is None:
        return ["manyhands is not imported"]
    lines = []
    for pool in [thing for thing in gc.get_objects() if isinstance(thing, manyhands.Pool)]:
        lines.append(f"pool {pool!r}")
        try:
            stats = pool.stats()
        except Exception as error:
            lines.append(f"  {type(error).__name__}: {error}")
            continue
        lines.append(
            f"  pending={stats.pending} queued={stats.queued} done={stats.done} "
            f"deaths={stats.deaths} recycled={stats.recycled} late_wakes={stats.late_wakes}"
        )
        lines += [
            f"  worker {worker.slot} pid={worker.pid} {worker.state} done={worker.done} "
            f"waiting={worker.waiting} task={worker.task} task_age={worker.task_age}"
            for worker in stats.workers
        ]
    return lines
