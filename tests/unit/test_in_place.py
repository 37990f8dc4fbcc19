"""Results that NumPy has made where they are sent from: nobody can tell, but by the time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from observing import until_released

Array = np.ndarray[Any, Any]

# 8 MB, and above the size from which on results are made in place.
LENGTH = 1_000_000
CALLS = 6

# What tasks keep in their worker.
kept: list[Array] = []


def handler(array: Array) -> str:
    """Who has allocated its memory."""
    from numpy._core.multiarray import get_handler_name

    found: str = get_handler_name(array)
    return found


def is_in_place(array: Array) -> bool:
    """Whether its memory is a block of the store."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return "manyhands-store" in line
    return False


def doubled(n: int) -> tuple[Array, bool]:
    array = np.arange(n, n + LENGTH, dtype=float) * 2.0
    return array, is_in_place(array)


def expected(n: int, factor: float = 2.0) -> Array:
    return np.arange(n, n + LENGTH, dtype=float) * factor


def test_results_are_made_in_place() -> None:
    with mh.Pool(1) as pool:
        found = [pool.submit(doubled, n).result() for n in range(CALLS)]
        for n, (array, _) in enumerate(found):
            assert np.array_equal(array, expected(n))
        assert [place for _, place in found] == [False] + [True] * (CALLS - 1)
        del found, array
        until_released(pool)


def unset(_: int) -> Array:
    return np.empty(LENGTH)


def of_the_first(array: Array) -> float:
    return float(array[0])


def test_memory_that_was_used_shows_nobody_elses_bytes() -> None:
    secret = np.full(LENGTH, 271828.0)
    with mh.Pool(2) as pool:
        for _ in range(3):
            # What functions return is known, so that arrays are made in place.
            [future.result() for future in [pool.submit(unset, 0) for _ in range(4)]]
            futures = [pool.submit(of_the_first, secret) for _ in range(3 * CALLS)]
            assert {future.result() for future in futures} == {271828.0}
            futures.clear()
            until_released(pool)
            # They are kept, so that these take all the memory that there is, and more.
            found = [pool.submit(unset, n).result() for n in range(3 * CALLS)]
            assert not any((array == 271828.0).any() for array in found)
            del found


def test_those_of_maps_are_too() -> None:
    with mh.Pool(1) as pool:
        results = pool.map(doubled, range(CALLS))
        places = []
        for n, (array, place) in enumerate(results):
            assert np.array_equal(array, expected(n))
            places.append(place)
        assert places == [False] + [True] * (CALLS - 1)


def kept_and_changed(n: int) -> Array:
    if kept:
        # What was sent is not what is kept.
        kept[-1][:] = -1.0
    array = np.arange(n, n + LENGTH, dtype=float) * 2.0
    kept.append(array)
    return array


def sums_of_kept() -> list[float]:
    return [float(array.sum()) for array in kept]


def test_what_a_worker_keeps_is_its_own() -> None:
    with mh.Pool(1) as pool:
        found = [pool.submit(kept_and_changed, n).result() for n in range(CALLS)]
        for n, array in enumerate(found):
            assert np.array_equal(array, expected(n))
            array[:] = 7.0
        sums = pool.submit(sums_of_kept).result()
        assert sums == [-float(LENGTH)] * (CALLS - 1) + [float(expected(CALLS - 1).sum())]


def same_again() -> Array:
    if not kept:
        kept.append(np.ones(LENGTH))
    kept[0] += 1.0
    return kept[0]


def test_one_array_sent_again_and_again() -> None:
    with mh.Pool(1) as pool:
        found = [pool.submit(same_again).result() for _ in range(CALLS)]
        for n, array in enumerate(found):
            assert np.array_equal(array, np.full(LENGTH, n + 2.0))


def yielded(n: int) -> Iterator[Array]:
    buffer = np.empty(LENGTH)
    for step in range(n):
        buffer[:] = step
        yield buffer


def test_a_buffer_that_is_yielded_anew() -> None:
    with mh.Pool(1) as pool:
        for _ in range(3):
            found = pool.map(yielded, [3, 2]).list()
            assert len(found) == 5
            for step, array in zip([0, 1, 2, 0, 1], found, strict=True):
                assert np.array_equal(array, np.full(LENGTH, step))


def zeros(n: int) -> tuple[Array, bool]:
    array = np.zeros(LENGTH)
    was_empty = not array.any()
    array[:] = n + 1
    return array, was_empty


def test_zeros_are_zero() -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS):
            array, was_empty = pool.submit(zeros, n).result()
            assert was_empty
            assert np.array_equal(array, np.full(LENGTH, n + 1.0))


def resized(n: int) -> Array:
    array = np.full(LENGTH, float(n))
    array.resize(2 * LENGTH, refcheck=False)
    array[LENGTH:] = -n
    array.resize(LENGTH + LENGTH // 2, refcheck=False)
    return array


def test_arrays_that_grow() -> None:
    wanted = [float(n) for n in range(CALLS)]
    with mh.Pool(1) as pool:
        for n, array in zip(wanted, pool.map(resized, wanted), strict=True):
            assert len(array) == LENGTH + LENGTH // 2
            assert (array[:LENGTH] == n).all()
            assert (array[LENGTH:] == -n).all()


def parts(n: int) -> tuple[Array, Array, Array, Array]:
    array = np.arange(n, n + LENGTH, dtype=float)
    return array, array[10:], array[:10].copy(), array.reshape(1000, -1).T


def test_parts_of_one_array() -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS):
            whole = expected(n, 1.0)
            one, tail, head, turned = pool.submit(parts, n).result()
            assert np.array_equal(one, whole)
            one[:] = 0.0
            assert np.array_equal(tail, whole[10:])
            assert np.array_equal(head, whole[:10])
            assert np.array_equal(turned, whole.reshape(1000, -1).T)


def locked(n: int) -> Array:
    array = np.arange(n, n + LENGTH, dtype=float)
    array.flags.writeable = False
    return array


def test_what_is_read_only_stays_so() -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS):
            array = pool.submit(locked, n).result()
            assert np.array_equal(array, expected(n, 1.0))
            assert not array.flags.writeable


def forked(n: int) -> tuple[Array, int]:
    array = np.arange(n, n + LENGTH, dtype=float) * 2.0
    ready, answer = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready[0], 1)
        is_as_it_was = array[0] == 2.0 * n and array[-1] == 2.0 * (n + LENGTH - 1)
        array[:] = -5.0
        os.write(answer[1], b"y" if is_as_it_was else b"n")
        os._exit(0)
    array += 1.0
    os.write(ready[1], b"x")
    said = os.read(answer[0], 1)
    os.waitpid(child, 0)
    for end in (*ready, *answer):
        os.close(end)
    return array, said[0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_has_its_own() -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS):
            array, said = pool.submit(forked, n).result()
            assert np.array_equal(array, expected(n) + 1.0)
            assert said == ord("y")


_STOP = threading.Event()
_THREADS: list[threading.Thread] = []


def still_written(n: int) -> Array:
    for thread in _THREADS:
        _STOP.set()
        thread.join()
    _STOP.clear()
    array = np.full(LENGTH, float(n))

    def write() -> None:
        while not _STOP.is_set():
            array[:1000] = n

    _THREADS[:] = [threading.Thread(target=write, daemon=True)]
    _THREADS[0].start()
    return array


def stop_writing() -> None:
    _STOP.set()
    for thread in _THREADS:
        thread.join()


def test_a_thread_that_goes_on_writing() -> None:
    with mh.Pool(1) as pool:
        found = [pool.submit(still_written, n).result() for n in range(CALLS)]
        pool.submit(stop_writing).result()
        for n, array in enumerate(found):
            assert np.array_equal(array, np.full(LENGTH, float(n)))


def failing(n: int) -> Array:
    array = np.full(LENGTH, float(n))
    if n % 2:
        raise ValueError(f"no {array[0]}")
    return array


def test_tasks_that_fail() -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS):
            future = pool.submit(failing, n)
            if n % 2:
                with pytest.raises(ValueError, match=f"no {n}"):
                    future.result()
            else:
                assert np.array_equal(future.result(), np.full(LENGTH, float(n)))
            del future
        until_released(pool)


def killed(n: int) -> Array:
    array = np.full(LENGTH, float(n))
    if n == CALLS - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return array


def test_a_worker_that_is_killed_leaves_nothing() -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS - 1):
            assert pool.submit(killed, n).result()[0] == n
        with pytest.raises(mh.WorkerDied):
            pool.submit(killed, CALLS - 1).result()
        until_released(pool)


def through_others(n: int) -> tuple[Array, str]:
    """The first array of that size is not the result."""
    first = np.arange(n, n + LENGTH, dtype=float)
    second = first * 3.0
    second -= first
    return second, handler(first)


def of_bytes(n: int) -> tuple[Array, str]:
    """NumPy does not allocate the result, but another array of its size."""
    other = np.empty(LENGTH)
    array = np.frombuffer(bytearray(8 * LENGTH))
    array[:] = n * 2.0
    return array, handler(other)


@pytest.mark.parametrize("function", [through_others, of_bytes])
def test_where_others_are_made_there(function: Callable[[int], tuple[Array, str]]) -> None:
    with mh.Pool(1) as pool:
        for n in range(CALLS + 4):
            array, _ = pool.submit(function, n).result()
            wanted = expected(n) if function is through_others else np.full(LENGTH, 2.0 * n)
            assert np.array_equal(array, wanted)
        del array
        until_released(pool)


def of_length(length: int) -> Array:
    return np.arange(length, dtype=float)


def test_results_of_ever_other_lengths() -> None:
    lengths = [LENGTH, LENGTH - 1, LENGTH // 2, 3 * LENGTH, 10, 0, LENGTH + 1, LENGTH, LENGTH]
    with mh.Pool(1) as pool:
        for array, length in zip(pool.map(of_length, lengths), lengths, strict=True):
            assert np.array_equal(array, np.arange(length, dtype=float))
        del array
        until_released(pool)


def held(n: int) -> int:
    """Keeps what later calls cannot have: the addresses of its block are its own."""
    kept.append(np.arange(n, n + LENGTH, dtype=float) * 2.0)
    return len(kept)


def returned_and_held(n: int) -> Array:
    held(n)
    return kept[-1]


def check_kept() -> bool:
    return all(np.array_equal(array, expected(n)) for n, array in enumerate(kept))


def drop_kept() -> None:
    kept.clear()


def test_many_that_are_kept_and_dropped() -> None:
    with mh.Pool(1) as pool:
        for _ in range(2):
            found = [pool.submit(returned_and_held, n).result() for n in range(2 * CALLS)]
            assert pool.submit(check_kept).result()
            for n, array in enumerate(found):
                assert np.array_equal(array, expected(n))
            del found, array
            until_released(pool)
            pool.submit(drop_kept).result()
