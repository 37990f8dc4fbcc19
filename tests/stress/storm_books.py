"""What came of the tasks of the storm: each future ends, once, and as it may."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import manyhands as mh

# Nothing that is waited for takes nearly as long; the machine may be busy.
LIMIT = 45.0


class Odd(Exception):
    """What a task raises that is to fail."""


class Entry:
    """A future, and how often it was told of."""

    __slots__ = ("check", "future", "told", "what")

    def __init__(self, what: str, future: mh.Future[Any], check: Callable[[Any], None]) -> None:
        self.what, self.future, self.check = what, future, check
        self.told = 0

    def tell(self, _future: object) -> None:
        self.told += 1


class Books:
    """All futures of a round, or of an operation, and what became of them."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._entries: list[Entry] = []
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def add(
        self, what: str, future: mh.Future[Any], check: Callable[[Any], None], observed: bool
    ) -> mh.Future[Any]:
        entry = Entry(what, future, check)
        if observed:
            future.add_done_callback(entry.tell)
        else:
            entry.told = -1
        with self._lock:
            self._entries.append(entry)
        return future

    @contextlib.contextmanager
    def page(self) -> Iterator[Books]:
        """Books that are settled with the block, so that nothing holds its results any more; if an
        error leaves the block, they are settled with these."""
        page = Books()
        try:
            yield page
        except BaseException:
            with self._lock:
                self._entries += page._entries
            raise
        page.settle()
        with self._lock:
            self.counts += page.counts

    def settle(self) -> None:
        """All have ended, each once, as it may."""
        for entry in self._entries:
            try:
                first = ending(entry.future, LIMIT)
            except AssertionError as error:
                error.add_note(entry.what)
                raise
            assert entry.future.done()
            assert first != "memory" or entry.what == "hog", f"{entry.what} took too much memory"
            if first == "value":
                entry.check(entry.future.result())
                entry.check(entry.future.result())
            self.counts[f"{entry.what}: {first}"] += 1
            self.counts[f"ended: {first}"] += 1
            self.counts["futures"] += 1
        # Who is told by a callback may be told a moment later than who asks.
        deadline = time.monotonic() + LIMIT
        for entry in self._entries:
            while entry.told == 0 and time.monotonic() < deadline:
                time.sleep(0.001)
            assert entry.told in (-1, 1), f"{entry.what} was told of {entry.told} times"
            self.counts["told"] += entry.told == 1
            again = ending(entry.future, 0)
            # A task may also have failed with that of one which it has waited for.
            assert again == "cancelled" or not entry.future.cancelled()
        self._entries = []


def ending(future: mh.Future[Any], limit: float) -> str:
    try:
        error = future.exception(limit)
    except concurrent.futures.CancelledError:
        return "cancelled"
    except TimeoutError:
        raise AssertionError(f"{future} did not end in {limit} s") from None
    return name_of(error)


def name_of(error: BaseException | None) -> str:
    """What may befall a task; anything else is a broken promise."""
    if error is None:
        return "value"
    if isinstance(error, mh.TaskTimeout):
        return "timeout"
    if isinstance(error, mh.TaskMemoryExceeded):
        return "memory"
    if isinstance(error, Odd):
        return "failed"
    if isinstance(error, concurrent.futures.CancelledError):
        return "cancelled"
    if isinstance(error, mh.WorkerDied):
        assert error.cause in ("signal", "exit", "start", "unknown"), repr(error)
        return "died"
    if isinstance(error, RuntimeError) and "shut down" in str(error):
        return "shut down"
    if isinstance(error, mh.RemoteError) and error.type_name == "CancelledError":
        return "cancelled"  # what a nested task waited for
    raise AssertionError(f"this befalls no task: {error!r}") from error
