"""A gate that a task stops at, so that tests order events without clocks.

The parent makes a `Gate`; a task calls `pass_through(gate.path)`, which reports its arrival and
waits. Arrivals and the opening are kept, so neither side has to be there first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections.abc import Iterator
from pathlib import Path

# How long tasks may take to come; nothing is asserted about the time.
_WATCHDOG_SECONDS = 120.0


class Gate:
    """The parent's side. A closed gate holds the lock that the tasks wait for."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path + ".arrivals")
        # Open for both, so that neither end waits for the other.
        self._arrivals = os.open(self.path + ".arrivals", os.O_RDWR)
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def wait_arrivals(self, count: int = 1) -> None:
        """Returns when so many tasks have come to the gate since the last call."""
        while count > 0:
            came, _, _ = select.select([self._arrivals], [], [], _WATCHDOG_SECONDS)
            assert came, f"{count} more should have come to the gate"
            count -= len(os.read(self._arrivals, count))

    def open(self) -> None:
        """Lets all tasks through from now on."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close_files(self) -> None:
        """Opens the gate and gives the descriptors back."""
        # A child that a test has forked may have a copy of the descriptor, and with it the lock.
        self.open()
        os.close(self._lock)
        os.close(self._arrivals)


@contextlib.contextmanager
def closed_gate(folder: Path, name: str = "gate") -> Iterator[Gate]:
    """A gate that is open at the latest when the block is left, whatever happens in it."""
    gate = Gate(folder, name)
    try:
        yield gate
    finally:
        gate.close_files()


def report_arrival(path: str) -> None:
    """In a task: says that it is there."""
    descriptor = os.open(path + ".arrivals", os.O_RDWR)  # the parent may be gone
    os.write(descriptor, b".")
    os.close(descriptor)


def pass_through(path: str, value: object = None) -> object:
    """In a task: says that it is there, waits until the gate is open, and returns the value."""
    report_arrival(path)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.close(descriptor)
    return value
