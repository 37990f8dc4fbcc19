"""What `pool.stats().store` says, and that it is nothing once nothing is held."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from arrays import describe, drop_kept, keep, kept, same
from gate import Gate, pass_through
from observing import until_released
from programs import program

Array = np.ndarray[Any, Any]

# Bytes of an array that goes by the store, and how many numbers these are.
SIZE = 2_000_000
COUNT = SIZE // 8
# How long releases may take to arrive; nothing is asserted about the time.
_WATCHDOG_SECONDS = 30.0


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    """Each test has a pool of its own, whose workers hold nothing yet."""
    with mh.Pool(2) as pool:
        yield pool
        until_released(pool)


def make(number: float) -> Array:
    return np.full(COUNT, float(number))


def fail(array: Array) -> None:
    raise ValueError("no")


def sleep(array: Array) -> None:
    time.sleep(600)


def die(array: Array) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_are_live_while_they_are_held(pool: mh.Pool) -> None:
    until_released(pool)
    results = [pool.submit(make, number).result() for number in range(10)]
    assert pool.stats().store.live >= 10 * SIZE
    part = results[3][10:20]
    del results
    # A view holds all of its block, and no other.
    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while pool.stats().store.live >= 2 * SIZE:
        assert time.monotonic() < deadline, f"{pool.stats().store}"
        time.sleep(0.005)
    assert pool.stats().store.live >= SIZE
    assert part.tolist() == [3] * 10
    del part
    until_released(pool)


def test_arguments_are_in_flight_until_their_tasks_end(pool: mh.Pool, gate: Gate) -> None:
    array = make(1)
    blocked = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    futures = [pool.submit(np.sum, array) for _ in range(5)]
    stats = pool.stats().store
    assert stats.in_flight >= 5 * SIZE
    assert stats.live >= 5 * SIZE
    gate.open()
    assert [future.result() for future in futures] == [COUNT] * 5
    assert [future.result() for future in blocked] == [None] * 2
    until_released(pool)


def test_leases_of_what_tasks_keep(pool: mh.Pool) -> None:
    def keep_part(array: Array) -> int:
        kept.append(array[10:20])
        return os.getpid()

    def first_kept() -> list[float]:
        return list(kept[0])

    with mh.Pool(1) as single:
        pid = single.submit(keep_part, make(3)).result()
        until_released(single, "in_flight")
        for number in range(20):
            assert single.submit(np.max, make(number)).result() == number
        deadline = time.monotonic() + _WATCHDOG_SECONDS
        while single.stats().store.leases != {pid: 1}:
            assert time.monotonic() < deadline, f"{single.stats().store}"
            time.sleep(0.005)
        assert single.stats().store.live >= SIZE
        assert single.submit(first_kept).result() == [3] * 10
        single.submit(drop_kept).result()
        until_released(single)


def test_a_worker_dies_with_leases(pool: mh.Pool) -> None:
    with mh.Pool(1) as single:
        single.submit(keep, make(3)).result()
        until_released(single, "in_flight")
        assert single.stats().store.leases
        assert single.stats().store.live >= SIZE
        assert isinstance(single.submit(die, make(4)).exception(), mh.WorkerDied)
        until_released(single)
        assert single.submit(same, 5).result() == 5


@pytest.mark.parametrize("end", ["exception", "cancelled", "time-out", "death", "dropped"])
def test_every_end_of_a_task_releases_its_arguments(pool: mh.Pool, end: str) -> None:
    array = make(1)
    for _ in range(5):
        if end == "exception":
            futures = [pool.submit(fail, array) for _ in range(10)]
            assert all(isinstance(future.exception(), ValueError) for future in futures)
        elif end == "cancelled":
            futures = [pool.submit(sleep, array) for _ in range(10)]
            for future in futures:
                future.cancel()
        elif end == "time-out":
            limited = pool.options(task_timeout=0.02)
            futures = [limited.submit(sleep, array) for _ in range(4)]
            assert all(isinstance(future.exception(), mh.TaskTimeout) for future in futures)
        elif end == "death":
            futures = [pool.submit(die, array) for _ in range(2)]
            assert all(isinstance(future.exception(), mh.WorkerDied) for future in futures)
        else:
            futures = [pool.submit(np.negative, array) for _ in range(10)]
        del futures
    until_released(pool)


def test_maps_release_what_nobody_takes(pool: mh.Pool) -> None:
    results = pool.map(make, range(1000))
    assert next(results)[0] == 0
    assert next(results)[0] == 1
    results.close()
    del results
    until_released(pool)


def test_the_pool_ends_before_its_results() -> None:
    with mh.Pool(2) as pool:
        results = [pool.submit(make, number).result() for number in range(5)]
    assert pool.stats().store.live >= 5 * SIZE
    for number, result in enumerate(results):
        assert (result == number).all()
        result[:] = 7
    del results, result
    until_released(pool)


def test_memory_is_used_again(pool: mh.Pool) -> None:
    """What a thousand tasks need is what a few need."""

    def use(tasks: int) -> int:
        most = 0
        for number in range(tasks):
            result = pool.submit(np.negative, make(number)).result()
            assert float(result[-1]) == -number
            stats = pool.stats().store
            most = max(most, stats.live + stats.warm)
        return most

    stats = pool.stats().store
    before = stats.live + stats.warm
    assert use(50) <= before + 30 * SIZE
    assert use(300) <= before + 30 * SIZE


def test_memory_goes_back_when_idle(pool: mh.Pool) -> None:
    results = [pool.submit(make, number).result() for number in range(200)]
    assert pool.stats().store.live >= 200 * SIZE
    del results
    until_released(pool)
    deadline = time.monotonic() + 2 * _WATCHDOG_SECONDS
    while pool.stats().store.warm > 100 * SIZE:
        assert time.monotonic() < deadline, f"{pool.stats().store}"
        time.sleep(0.05)
    assert pool.submit(make, 3).result()[-1] == 3


def test_passing_a_result_on_moves_nothing(pool: mh.Pool, gate: Gate) -> None:
    result = pool.submit(make, 3).result()
    future = pool.submit(pass_through, gate.path)
    other = pool.submit(pass_through, gate.path)
    gate.wait_arrivals(2)
    before = pool.stats().store.live
    futures = [pool.submit(describe, result) for _ in range(10)]
    futures += [pool.submit(describe, result[5:]) for _ in range(10)]
    assert pool.stats().store.live == before
    # What was written to is sent as it is now.
    result[7] = 4
    futures.append(pool.submit(describe, result))
    assert pool.stats().store.live >= before + SIZE
    gate.open()
    assert futures[-1].result() == describe(result)
    result[7] = 3
    assert [one.result() for one in futures[:10]] == [describe(result)] * 10
    assert [one.result() for one in futures[10:20]] == [describe(result[5:])] * 10
    assert future.result() is other.result() is None
    del result
    until_released(pool)


@pytest.mark.parametrize("size", [10, SIZE])
def test_memoryviews(pool: mh.Pool, size: int) -> None:
    for memory in (bytes(range(10)) * (size // 10), bytearray(range(10)) * (size // 10)):
        result = pool.submit(same, memoryview(memory)).result()
        assert result == memory
        assert (
            pool.submit(lambda view: bytes(view[-5:]), memoryview(memory)).result() == memory[-5:]
        )


# --------------------------------------------------------------------------------------- the budget


@program
def three_budgets(way: str, options: dict[str, Any]) -> None:
    """Three times the budget is held: nothing blocks, all is right, and all is released."""

    def make(number):
        return np.full(1_000_000, float(number))

    budget, held = 64_000_000, 24
    with mh.Pool(2, **options) as pool:
        if way == "results":
            values = [pool.submit(make, number).result(20) for number in range(held)]
        else:
            values = list(pool.map(make, range(held)))
        assert 0 < pool.stats().store.live <= budget
        for number, value in enumerate(values):
            assert (value == number).all()
            assert pool.submit(np.sum, value).result(20) == number * 1e6
        del values, value
        until_released(pool)
        assert pool.submit(abs, -1).result(20) == 1
    print("all is well")


@pytest.mark.parametrize("way", ["results", "map"])
def test_three_times_the_budget(way: str) -> None:
    by_option = three_budgets.run(way=way, options={"store": "64MB"}, seconds=90)
    assert by_option.check().out == "all is well\n"
    environment = {"MANYHANDS_STORE": "64MB"}
    by_variable = three_budgets.run(way=way, options={}, seconds=90, environment=environment)
    assert by_variable.check().out == "all is well\n"


@pytest.mark.parametrize("budget", ["8 parrots", "-1GB", "", 0, -5, 1.5])
def test_a_budget_that_is_none(budget: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="store"):
        mh.Pool(1, store=budget)  # type: ignore[call-arg]
