"""Large arrays that functions capture, or that are broadcast: in the store, once for all."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyhands as mh
import procfs
from gate import closed_gate, pass_through
from observing import pids_of, until_released
from programs import program_test

Array = np.ndarray[Any, Any]

# 32 MB.
COUNT = 4_000_000
SIZE = 8 * COUNT
# How long releases may take to arrive; nothing is asserted about the time.
_WATCHDOG_SECONDS = 30.0


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    """Two workers that have seen nothing yet; nothing is left when they are gone."""
    with mh.Pool(2) as pool:
        yield pool
    until_released(pool)


def make(number: float) -> Array:
    return np.full(COUNT, float(number))


def turn(array: Array, path: str, number: float | None = None) -> tuple[int, float]:
    """The sum of the array, in which a number is written over it after that."""
    total = float(array.sum())
    if number is not None:
        array[:] = number
    pass_through(path)
    return os.getpid(), total


Turn = Callable[..., tuple[int, float]]


class Mesh:
    def __init__(self, array: Array) -> None:
        self.array = array

    def turn(self, path: str, number: float | None = None) -> tuple[int, float]:
        return turn(self.array, path, number)


def method(array: Array) -> Turn:
    return Mesh(array).turn


def partial(array: Array) -> Turn:
    return functools.partial(turn, array)


def closure(array: Array) -> Turn:
    return lambda path, number=None: turn(array, path, number)


def broadcast(array: Array) -> Turn:
    value = mh.broadcast(array)
    return lambda path, number=None: turn(value.value, path, number)


WAYS = [closure, partial, method, broadcast]


@pytest.fixture(params=WAYS, ids=[way.__name__ for way in WAYS])
def way(request: pytest.FixtureRequest) -> Callable[[Array], Turn]:
    chosen: Callable[[Array], Turn] = request.param
    return chosen


def on_both(pool: mh.Pool, folder: Path, function: Any, *args: Any) -> list[Any]:
    """What the function gives in each of two workers, where it runs at the same time."""
    with closed_gate(folder, f"gate{time.monotonic_ns()}") as gate:
        futures = [pool.submit(function, gate.path, *args) for _ in range(2)]
        gate.wait_arrivals(2)
        gate.open()
        return [future.result() for future in futures]


def warm(pool: mh.Pool, folder: Path) -> None:
    """Workers that know NumPy, and how to look at an array."""
    on_both(pool, folder, closure(np.ones(10)))


def test_workers_copy_nothing(pool: mh.Pool, tmp_path: Path, way: Callable[[Array], Turn]) -> None:
    warm(pool, tmp_path)
    function = way(make(3))
    pids = pids_of(pool)
    before = sum(map(procfs.anonymous_bytes, pids))
    seen = on_both(pool, tmp_path, function)
    assert dict(seen) == dict.fromkeys(pids, 3.0 * COUNT)
    assert sum(map(procfs.anonymous_bytes, pids)) - before < SIZE // 4
    store = pool.stats().store
    assert SIZE <= store.live < 1.5 * SIZE
    assert store.leases == dict.fromkeys(pids, 1)
    assert all(size == 3.0 * COUNT for _, size in on_both(pool, tmp_path, function))


def test_what_a_task_writes_nobody_else_sees(
    pool: mh.Pool, tmp_path: Path, way: Callable[[Array], Turn]
) -> None:
    """Each worker's copy is its own, from the first write on, and stays writable."""
    array = make(3)
    function = way(array)
    # Both have written before either looks again.
    for number, total in [(8.0, 3.0), (5.0, 8.0), (7.0, 5.0)]:
        assert [seen for _, seen in on_both(pool, tmp_path, function, number)] == [
            total * COUNT
        ] * 2
    assert (array == 3).all()
    for pid in pids_of(pool):
        os.kill(pid, signal.SIGKILL)
    # Their successors get it as it was.
    assert [size for _, size in on_both(pool, tmp_path, function)] == [3.0 * COUNT] * 2
    assert (array == 3).all()


def test_one_worker_writes(pool: mh.Pool, tmp_path: Path) -> None:
    array = make(3)

    def write_in(path: str, pid: int) -> tuple[int, float]:
        return turn(array, path, 8.0 if os.getpid() == pid else None)

    pid = pool.submit(os.getpid).result()
    on_both(pool, tmp_path, write_in, pid)
    found = dict(on_both(pool, tmp_path, write_in, pid))
    assert found.pop(pid) == 8.0 * COUNT
    assert list(found.values()) == [3.0 * COUNT]


def test_all_is_free_when_it_is_dropped(
    pool: mh.Pool, tmp_path: Path, way: Callable[[Array], Turn]
) -> None:
    function = way(make(3))
    assert len(on_both(pool, tmp_path, function)) == 2
    first = pool.stats().workers[0].pid
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while first in pool.stats().store.leases:
        assert time.monotonic() < deadline, f"{pool.stats().store}"
        time.sleep(0.005)
    assert pool.stats().store.live >= SIZE, "it may be needed again"
    del function
    until_released(pool)


def test_maps_drop_it_too(pool: mh.Pool, tmp_path: Path) -> None:
    array = make(3)
    assert set(pool.map(lambda number: float(array[number]), range(1000))) == {3.0}
    assert pool.map(array.item, [5, 6]).list() == [3.0, 3.0]
    until_released(pool)


def test_a_function_is_only_looked_at(pool: mh.Pool) -> None:
    """What a task costs does not depend on what its function captured."""
    array = make(3)

    def item(number: int) -> float:
        return float(array[number])

    assert pool.submit(item, 5).result() == 3.0
    live = pool.stats().store.live
    assert [future.result() for future in [pool.submit(item, n) for n in range(500)]] == [3.0] * 500
    assert pool.stats().store.live == live
    # It is as it was; a change inside counts after refresh, another array at once.
    array[:] = 4
    assert pool.submit(item, 5).result() == 3.0
    pool.refresh(item)
    assert pool.submit(item, 5).result() == 4.0
    array = make(5)
    assert pool.submit(item, 5).result() == 5.0
    del item


@pytest.mark.parametrize("origin", ["a result", "put", "a part"])
def test_what_is_in_the_store_is_not_copied(pool: mh.Pool, tmp_path: Path, origin: str) -> None:
    array = pool.submit(make, 3).result()
    if origin == "put":
        array = mh.put(array)
    live = pool.stats().store.live
    if origin == "a part":
        array = array[5:]
    function = closure(array)
    assert [size for _, size in on_both(pool, tmp_path, function)] == [3.0 * len(array)] * 2
    assert pool.stats().store.live == live
    if origin == "put":
        with pytest.raises(ValueError, match="read-only"):
            pool.submit(function, "nowhere", 5.0).result()
        return
    # It is as it was at first use.
    array[:] = 4
    assert [size for _, size in on_both(pool, tmp_path, function)] == [3.0 * len(array)] * 2
    assert pool.stats().store.live == live


def test_a_task_returns_what_its_function_captured(pool: mh.Pool) -> None:
    array = make(3)

    def own() -> Array:
        return array

    def written() -> Array:
        array[7] = 9
        return array

    result = pool.submit(own).result()
    assert (result == 3).all()
    result[:] = 5
    assert (pool.submit(own).result() == 3).all()
    changed = pool.submit(written).result()
    assert changed[7] == 9
    assert (array == 3).all()


def test_unpersist_drops_the_views(pool: mh.Pool, tmp_path: Path) -> None:
    value = mh.broadcast(make(3))

    def look(path: str) -> float:
        pass_through(path)
        return float(value.value.sum())

    assert on_both(pool, tmp_path, look) == [3.0 * COUNT] * 2
    value.unpersist()
    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while pool.stats().store.leases:
        assert time.monotonic() < deadline, f"{pool.stats().store}"
        time.sleep(0.02)
    assert pool.stats().store.live >= SIZE, "it is kept to be sent again"
    assert on_both(pool, tmp_path, look) == [3.0 * COUNT] * 2


def test_a_task_captures_for_its_own_tasks(pool: mh.Pool) -> None:
    """The store is the program's: what a task hands on is copied."""
    array = make(3)

    def outer() -> tuple[float, float]:
        def inner() -> float:
            return float(array.sum())

        with mh.Pool(1) as own:
            there = own.submit(inner).result()
        return mh.submit(inner).result(), there

    assert pool.submit(outer).result() == (3.0 * COUNT, 3.0 * COUNT)


@program_test
def test_globals_of_a_script() -> None:
    def total():
        return os.getpid(), float(mesh.sum())

    def write():
        mesh[:] = 8
        return float(mesh[0])

    mesh = np.full(4_000_000, 3.0)
    with mh.Pool(1) as pool:
        pool.submit(np.ones, 5).result()
        [worker] = pool.stats().workers
        before = procfs.anonymous_bytes(worker.pid)
        assert pool.submit(total).result() == (worker.pid, 12_000_000)
        assert procfs.anonymous_bytes(worker.pid) - before < 8_000_000
        assert mesh.nbytes <= pool.stats().store.live < 1.5 * mesh.nbytes
        assert pool.submit(write).result() == 8
        assert (mesh == 3).all()
        mesh = np.full(4_000_000, 4.0)
        assert pool.submit(total).result() == (worker.pid, 16_000_000)


@program_test
def test_a_store_without_room() -> None:
    array = np.full(500_000, 3.0)
    value = mh.broadcast(np.full(500_000, 5.0))

    def look(number):
        array[0] += number
        return float(array.sum() + value.value.sum())

    with mh.Pool(2, store=1_000_000) as pool:
        late = np.full(500_000, 2.0)
        assert pool.submit(functools.partial(np.dot, late), late).result() == 2_000_000
        assert pool.map(lambda n: float(late[n]), [1, 2]).list() == [2.0, 2.0]
        live = pool.stats().store.live
        again = mh.broadcast(late)
        assert pool.submit(lambda: float(again.value.sum())).result() == 1_000_000
        assert pool.submit(look, 0).result() == 4_000_000
        assert pool.stats().store.live == live


@program_test
def test_workers_with_few_addresses() -> None:
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    array = np.full(500_000, 3.0)

    def double():
        array[0] += 1
        return float(array[0] + array[1])

    with mh.Pool(1, initializer=limit) as pool:
        assert [pool.submit(double).result() for _ in range(2)] == [7.0, 8.0]


@program_test
def test_a_program_with_few_addresses() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    array = np.full(500_000, 3.0)

    def total():
        return float(array.sum())

    with mh.Pool(1) as pool:
        assert [pool.submit(total).result() for _ in range(2)] == [1_500_000] * 2


@program_test
def test_a_child_that_the_program_forked() -> None:
    """It has a store of its own."""
    array, value = np.full(500_000, 3.0), mh.broadcast(np.full(500_000, 5.0))

    def look():
        return float(array.sum() + value.value.sum())

    def run():
        # What its parent's blocks are written over with it must not see.
        with mh.Pool(1) as own:
            for number in range(5):
                assert own.submit(np.sum, np.full(600_000, float(number))).result() == 6e5 * number
            assert own.submit(look).result() == 4_000_000

    with mh.Pool(1) as pool:
        assert pool.submit(look).result() == 4_000_000
        child = multiprocessing.get_context("fork").Process(target=run)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert pool.submit(look).result() == 4_000_000
