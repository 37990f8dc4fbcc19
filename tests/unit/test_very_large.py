"""Buffers of more than 2 GiB, whose sizes no signed 32-bit number holds."""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import manyhands as mh

Array = np.ndarray[Any, np.dtype[np.uint8]]

SIZE = (1 << 31) + 4097
# Where a size or an offset that is cut to 31 or 32 bits would show.
MARKED = [0, 1 << 20, (1 << 31) - 1, 1 << 31, SIZE - 1]
# The caller's, the store's, what a task writes to, a result, and some beside.
NEEDED = 12 << 30
# How long to wait for so much, in seconds: others may run the same tests, or have just done so.
PATIENCE = 30


def make() -> Array:
    array = np.zeros(SIZE, np.uint8)
    array[MARKED] = range(1, len(MARKED) + 1)
    return array


def marks(array: Array) -> list[int]:
    """The marks, and how many bytes beside them are not zero."""
    found: list[int] = array[MARKED].tolist()
    return [*found, int(np.count_nonzero(array)) - len(MARKED)]


MARKS = [1, 2, 3, 4, 5, 0]


@pytest.fixture(autouse=True)
def _alone_with_enough_memory() -> Iterator[None]:
    """One test at a time on this machine, also of runs side by side: two may be too much."""
    with open(Path(tempfile.gettempdir()) / f"manyhands-test-memory-{os.getuid()}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        until = time.monotonic() + PATIENCE
        while psutil.virtual_memory().available < NEEDED:
            if time.monotonic() > until:
                pytest.skip(f"needs {NEEDED >> 30} GiB of memory that is free")
            time.sleep(0.1)
        yield
        gc.collect()


def test_an_argument() -> None:
    def task(array: Array) -> tuple[list[int], tuple[int, ...]]:
        seen = marks(array)
        array[MARKED] = 9  # it is the task's own
        return seen, array.shape

    array = make()
    with mh.Pool(1) as pool:
        assert pool.submit(task, array).result(120) == (MARKS, (SIZE,))
    assert marks(array) == MARKS


def test_a_result() -> None:
    with mh.Pool(1) as pool:
        for _ in range(2):  # the second is made in the store
            array = pool.submit(make).result(120)
            assert marks(array) == MARKS
            array[-1] = 5
            del array
        assert pool.stats().store.live < SIZE


def test_fortran_order() -> None:
    def task(array: Array) -> tuple[bool, int, int]:
        return array.flags.f_contiguous, int(array[-1, -1]), int(array[0, 0])

    array = make()[: SIZE // 2 * 2].reshape(2, -1)
    array[-1, -1] = 7
    with mh.Pool(1) as pool:
        assert pool.submit(task, array.T).result(120) == (True, 7, 1)


def test_octets() -> None:
    """Top-level `bytes`."""
    octets = bytes(1 << 31) + b"the end"
    with mh.Pool(1) as pool:
        length, end, same = pool.submit(lambda it: (len(it), it[-7:], it), octets).result(120)
        assert (length, end) == ((1 << 31) + 7, b"the end")
        assert same == octets


def test_what_is_put() -> None:
    """A slice past 2 GiB of what was put is a reference."""
    with mh.Pool(1) as pool:
        array = mh.put(make())
        end = pool.submit(lambda tail: tail.tolist(), array[1 << 31 :][:2])
        assert end.result(120) == [4, 0]
        assert pool.submit(marks, array).result(120) == MARKS
