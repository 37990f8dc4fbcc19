"""The thread that looks at running maps now and then, for as long as there are any.

It wakes when the first of them is due. While none runs it sleeps without limit; a map that is added
then wakes it, and so does one that is due before those it sleeps for. Maps that come and go in the
meantime cost it nothing.
"""

from __future__ import annotations

import atexit
import os
import threading
from math import inf
from time import monotonic
from typing import Protocol

__all__ = ["add", "remove"]

# How long the thread may take to end with the program.
_STOP_SECONDS = 1.0

# How often those that wait for the line are looked at.
_TURN_SECONDS = 0.5


class Ticked(Protocol):
    """What the thread looks at."""

    due: float
    has_line: bool

    def tick(self, now: float) -> None: ...
    def finish(self) -> None: ...


class _Ticker:
    def __init__(self) -> None:
        # In the order of their start.
        self._running: dict[int, Ticked] = {}
        self._bell = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        #: When the thread wakes by itself. Infinite while it works that out: whoever adds something
        #: then rings, and is heard, since the thread has the bell's lock until it sleeps.
        self._wakes_at = inf

    def add(self, ticked: Ticked) -> bool:
        """Has it looked at from now on; False where the program is about to end."""
        self._running[id(ticked)] = ticked
        if self._stopping or (self._thread is None and not self._start()):
            self.remove(ticked)
            return False
        if ticked.due < self._wakes_at:
            with self._bell:
                self._bell.notify()
        return True

    def remove(self, ticked: Ticked) -> None:
        self._running.pop(id(ticked), None)

    def _start(self) -> bool:
        with self._bell:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="manyhands-progress", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False  # no thread is to be had, or the interpreter ends
                self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._bell:
                if self._stopping:
                    return
                self._wakes_at = inf
                self._wakes_at = min((one.due for one in list(self._running.values())), default=inf)
                pause = self._wakes_at - monotonic()
                if pause > 0:
                    self._bell.wait(pause if pause < inf else None)
                    continue
            self.tick(monotonic())

    def tick(self, now: float) -> None:
        """Looks at all that are due, and of those that have the line at the first alone."""
        line_taken = False
        for one in list(self._running.values()):
            if one.has_line and line_taken:
                one.due = max(one.due, now + _TURN_SECONDS)
                continue
            line_taken |= one.has_line
            if one.due <= now:
                one.tick(now)

    def stop(self) -> None:
        """At the end of the program: ends the thread and all that is shown."""
        with self._bell:
            self._stopping = True
            self._bell.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_SECONDS)
        for one in list(self._running.values()):
            one.finish()


_ticker = _Ticker()


def add(ticked: Ticked) -> bool:
    """Has it looked at when it is due; whether that is possible."""
    return _ticker.add(ticked)


def remove(ticked: Ticked) -> None:
    """Has it no longer looked at."""
    _ticker.remove(ticked)


def _stop() -> None:
    _ticker.stop()


def _after_fork_in_child() -> None:
    global _ticker
    _ticker = _Ticker()


atexit.register(_stop)
os.register_at_fork(after_in_child=_after_fork_in_child)
