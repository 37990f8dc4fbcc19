"""Progress: who is shown how far a map is, and when.

A bar is for a person who waits. So it is shown on a terminal or in a notebook, for maps that the
main thread started, once they are two seconds old, and it is gone when the map has ended. Maps that
a task starts show none. Of several maps at a time the one that was started first has the bar.
Elsewhere nothing is shown, unless `progress=` or `MANYHANDS_PROGRESS=1` asks for it.

One thread per process, "manyhands-progress", looks at all maps; it is started for the first that
may show something, and sleeps while there are none. It reads numbers that the map keeps anyway, and
holds nothing that would keep a map alive. Whatever goes wrong here is logged and ends the showing,
never the map.

**Threads.** What was given as `progress=` is called by that thread, one call at a time, and a last
time, with the final counts, by the thread that ends the map, before the loop over it goes on. (The
thread that takes results would not do: it may wait minutes for one, and showing that is the point.)
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from manyhands._snapshot import Snapshot
from manyhands._ticker import add, remove

if TYPE_CHECKING:
    from collections.abc import Callable

    from manyhands._progress_show import Display
    from manyhands._progress_text import Pace

__all__ = ["Counts", "Progress", "Reading", "start"]

PATIENCE_SECONDS = 2.0
TICK_SECONDS = 0.125  # eight times a second

# How long the end of a map waits for a call of the user's own that is still under way.
_LAST_CALL_SECONDS = 2.0

_log = logging.getLogger("manyhands")

# done, failed, taken, workers, busy: as in `Counts`.
Reading: TypeAlias = tuple[int, int, int, int, int]


class Counts(Snapshot):
    """How far a map is, at one moment: what a function given as `progress=` is called with."""

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "done": "items that have ended, failed ones among them",
        "failed": "items that ended with an error",
        "taken": "items whose results were handed over",
        "total": "items there are, or None as long as that is not known",
        "workers": "workers that the map may use",
        "busy": "workers that run an item of it now",
        "elapsed": "seconds since the map was started",
        "rate": "items that end per second, over the last ten seconds or so, or None",
        "left": "seconds until the end if that goes on, or None",
        "ended": "whether these are the final counts",
    }

    done: int
    failed: int
    taken: int
    total: int | None
    workers: int
    busy: int
    elapsed: float
    rate: float | None
    left: float | None
    ended: bool


def start(
    read: Callable[[], Reading | None], *, total: int | None, label: str, target: Any = None
) -> Progress | None:
    """Shows the progress of a map that was just started; None where nothing will ever be shown.

    Args:
        read: gives the numbers; any thread calls it. None from it means that the map is gone, so it
            must not keep the map alive.
        total: how many items there are, if known; can be set on the result later.
        label: what the map runs.
        target: what `progress=` is: True, False, a function of `Counts`, a bar of tqdm, a
            `rich.progress.Progress`; None for what is usual where the program runs.

    Raises:
        TypeError: the target is nothing of that.
        ValueError: `MANYHANDS_PROGRESS` is neither 0 nor 1.
    """
    asked = target
    if target is None:
        setting = os.environ.get("MANYHANDS_PROGRESS")
        if setting:
            target = _meant(setting)
    if target is False:
        return None
    if target is None or target is True:
        kind = _place(sys.stderr, target is True)
        if kind is None or "MANYHANDS_DEPTH" in os.environ:
            return None  # nobody to look at it, or a worker, or a program that a task runs
        target = sys.stderr
    else:
        from manyhands._progress_show import kind_of

        kind = kind_of(target)
    progress = Progress(read, total=total, label=label, kind=kind, target=target)
    progress.always_ends = asked is True or not progress.has_line
    if not add(progress):
        return None
    return progress


def _meant(setting: str) -> bool:
    if setting.strip() not in ("0", "1"):
        raise ValueError(f"MANYHANDS_PROGRESS must be 0 or 1, not {setting!r}")
    return setting.strip() == "1"


def _place(stream: Any, asked: bool) -> str | None:
    """How a bar is shown here: "terminal", "notebook", "lines", or None for not at all."""
    if not asked and threading.get_ident() != threading.main_thread().ident:
        return None
    if "ipykernel" in sys.modules and _has_kernel():
        return "notebook"
    if stream is None or stream.closed:
        return None
    if stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return "terminal"
    return "lines" if asked else None


def _has_kernel() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Progress:
    """The progress of one map, from its start to `finish`."""

    __slots__ = (
        "__weakref__",
        "_context",
        "_display",
        "_ended",
        "_is_told",
        "_kind",
        "_last",
        "_lock",
        "_pace",
        "_pid",
        "_read",
        "_started",
        "_target",
        "always_ends",
        "due",
        "has_line",
        "label",
        "total",
    )

    def __init__(
        self,
        read: Callable[[], Reading | None],
        *,
        total: int | None,
        label: str,
        kind: str,
        target: Any,
    ) -> None:
        self.label = label
        self.total = total
        #: Whether it is of those of which one is shown at a time.
        self.has_line = kind in ("terminal", "notebook", "lines")
        #: Whether its end is told, however soon it comes.
        self.always_ends = False
        self._read = read
        self._started = monotonic()
        #: When the ticker has to look at it.
        self.due = self._started + (PATIENCE_SECONDS if self.has_line else 0.0)
        self._kind = kind
        self._target = target
        # A notebook tells by it which cell an output belongs to.
        self._context = contextvars.copy_context() if kind == "notebook" else None
        self._display: Display | None = None
        self._pace: Pace | None = None
        self._last: Reading = (0, 0, 0, 0, 0)
        # Reentrant: the collector may end this map wherever it likes.
        self._lock = threading.RLock()
        self._ended = False
        # Whether its end was told, or is not to be; with the lock.
        self._is_told = False
        self._pid = os.getpid()

    def finish(self) -> None:
        """The map has ended, was closed or dropped: tells the final counts, or takes the bar away.

        Any thread may call it, and more than once.
        """
        if self._ended or self._pid != os.getpid():
            return  # a child of fork has the object, but neither the thread nor the bar
        self._ended = True
        remove(self)
        if self._display is None and not self.always_ends:
            return  # over before anything was shown; where the ticker is just about to, it ends it
        if not self._lock.acquire(timeout=_LAST_CALL_SECONDS):
            _log.warning("%s: a call of what was given as progress= does not end", self.label)
            return  # if it does, the ticker tells the end
        try:
            self._tell_end()
        finally:
            self._lock.release()

    def _tell_end(self) -> None:
        if self._is_told or not self._ended:
            return
        self._is_told = True
        try:
            self._last = self._read() or self._last
            self._open().end(self._counts(monotonic(), ended=True))
        except Exception:
            self._give_up()

    def tick(self, now: float) -> None:
        """Shows how far the map is; the ticker calls it."""
        with self._lock:
            if self._ended:
                return
            self.due = now + TICK_SECONDS
            try:
                reading = self._read()
                if reading is None:
                    self.finish()
                    return
                self._last = reading
                self._open().show(self._counts(now, ended=False))
                self._tell_end()  # if it has come meanwhile
            except BaseException:  # a SystemExit would end the thread that shows all others
                self._give_up()

    def _give_up(self) -> None:
        """In an except clause: from here on nothing is shown, and the map goes on."""
        self._ended = self._is_told = True
        remove(self)
        _log.exception("the progress of %s is no longer shown", self.label)

    def _open(self) -> Display:
        if self._display is None:
            from manyhands._progress_show import open_display

            self._display = open_display(self._kind, self._target, self.label, self._context)
        return self._display

    def _counts(self, now: float, *, ended: bool) -> Counts:
        done, failed, taken, workers, busy = self._last
        if self._pace is None:
            from manyhands._progress_text import Pace

            self._pace = Pace(self._started)
        rate, left = self._pace.measure(now, done, taken, self.total, busy)
        return Counts(
            done=done,
            failed=failed,
            taken=taken,
            total=self.total,
            workers=workers,
            busy=busy,
            elapsed=now - self._started,
            rate=rate,
            left=left,
            ended=ended,
        )
