"""How tests see what a map and its pool have done so far."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

import manyhands as mh

# How long releases may take to arrive; nothing is asserted about the time.
_WATCHDOG_SECONDS = 30.0
# What `pool.stats().store` says is held.
_HELD = ("live", "in_flight", "spilled", "leases")


class Counted:
    """An iterator that knows how many items were taken from it."""

    def __init__(self, items: Any) -> None:
        self._items = iter(items)
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self.taken += 1
        return item


@contextlib.contextmanager
def resizing(pool: mh.Pool, pause: float) -> Iterator[None]:
    """Meanwhile the pool is resized again and again, with so many seconds in between."""
    stop, has_changed = threading.Event(), threading.Event()

    def change() -> None:
        for width in (4, 1, 3, 2) * 1000:
            if stop.wait(pause):
                break
            pool.resize(width)
            has_changed.set()

    with ThreadPoolExecutor(1) as thread:
        changes = thread.submit(change)
        try:
            yield
            # Its thread may have come late.
            assert has_changed.wait(_WATCHDOG_SECONDS)
        finally:
            stop.set()
        changes.result(_WATCHDOG_SECONDS)


def until(
    condition: Callable[[], object], state: Callable[[], object] = lambda: "it takes too long"
) -> None:
    """Returns when the condition holds; fails after a long time, with how things are then."""
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, state()
        time.sleep(0.001)


def settle(pool: mh.Pool) -> None:
    """Returns when the pool has nothing to do."""
    until(lambda: not pool.stats().pending, pool.stats)


def stop_once(condition: Callable[[], object], future: mh.Future[Any]) -> None:
    """Cancels a task that runs, when that holds."""
    until(condition)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()


def pids_of(pool: mh.Pool) -> list[int]:
    """The processes of all workers of the pool, when those that are being started have one."""
    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while not all(pids := [worker.pid for worker in pool.stats().workers]):
        assert time.monotonic() < deadline, pool.stats()
        time.sleep(0.001)
    return [pid for pid in pids if pid is not None]


def live(pool: mh.Pool) -> int:
    """How many bytes the object store holds."""
    found: int = pool.stats().store.live
    return found


def until_released(pool: mh.Pool, *what: str, most: int = 0) -> None:
    """Waits until these figures of the store are at most that; by default, all that is held."""

    def is_held(name: str) -> bool:
        found = getattr(pool.stats().store, name)
        return (found if isinstance(found, int) else len(found)) > most

    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while any(is_held(name) for name in what or _HELD):
        gc.collect()
        assert time.monotonic() < deadline, f"it stays: {pool.stats().store}"
        time.sleep(0.005)


def texts_of_warnings(file: str, make: Callable[[], Any]) -> list[str]:
    """What is told, as from this file, when something is made there and dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
        gc.collect()
    assert all(warning.category is RuntimeWarning for warning in caught)
    assert all(warning.filename == file for warning in caught)
    return [str(warning.message) for warning in caught]
