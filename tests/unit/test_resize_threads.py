"""Pools of threads that become larger and smaller, and whose threads leave when they idle."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def until_threads(pool: mh.Pool, count: int) -> None:
    for _ in range(3000):
        if len(pool.stats().workers) == count:
            return
        time.sleep(0.01)
    raise AssertionError(f"not {count} threads: {pool.stats()}")


def work(item: int) -> tuple[int, int]:
    time.sleep(0.001)
    return threading.get_ident(), item


# ----------------------------------------------------------------------------------------- resize


def test_more_threads_start_at_once_what_waits(gate: Gate) -> None:
    with mh.Pool(1, engine="thread") as pool:
        held = [pool.submit(pass_through, gate.path) for _ in range(4)]
        gate.wait_arrivals(1)
        pool.resize(4)
        assert pool.workers == 4
        gate.wait_arrivals(3)
        gate.open()
        for future in held:
            future.result(60)


def test_more_threads_work_on_maps_in_flight(gate: Gate) -> None:
    with mh.Pool(1, engine="thread") as pool:
        results = pool.map(pass_through, [gate.path] * 3)
        gate.wait_arrivals(1)
        pool.resize(3)
        gate.wait_arrivals(2)
        gate.open()
        assert results.list() == [None] * 3


def test_threads_that_are_too_many_finish_what_they_run(gate: Gate) -> None:
    with mh.Pool(3, engine="thread") as pool:
        held = [pool.submit(pass_through, gate.path, n) for n in range(3)]
        gate.wait_arrivals(3)
        waiting = [pool.submit(threading.get_ident) for _ in range(50)]
        pool.resize(1)
        assert not any(future.done() for future in held)
        gate.open()
        assert [future.result(60) for future in held] == [0, 1, 2]
        assert len({future.result(60) for future in waiting}) <= 3
        until_threads(pool, 1)
        # From here on it is one alone.
        later = [pool.submit(threading.get_ident) for _ in range(20)]
        assert len({future.result(60) for future in later}) == 1


def test_threads_that_sleep_leave_at_once(gate: Gate) -> None:
    with mh.Pool(4, engine="thread") as pool:
        held = [pool.submit(pass_through, gate.path) for _ in range(4)]
        gate.wait_arrivals(4)
        gate.open()
        for future in held:
            future.result(60)
        assert len(pool.stats().workers) == 4
        pool.resize(2)
        until_threads(pool, 2)
        pool.resize(1)
        until_threads(pool, 1)
        assert pool.submit(abs, -1).result(60) == 1


def test_a_thread_leaves_between_two_items_that_took_no_time_so_far(gate: Gate) -> None:
    """A thread takes many short items at a time, and comes back before them if it is to leave."""
    here = threading.local()
    later: list[int] = []

    def item(number: int) -> int:
        if number >= 2000:
            if not hasattr(here, "came"):
                here.came = True
                pass_through(gate.path)
            else:
                later.append(threading.get_ident())
                time.sleep(0.001)
        return number

    with mh.Pool(2, engine="thread") as pool:
        results = pool.map(item, range(2400))
        taken = [next(results) for _ in range(2000)]
        gate.wait_arrivals(2)
        pool.resize(1)
        gate.open()
        assert taken + results.list() == list(range(2400))
        assert len(set(later)) == 1
        assert len(later) == 398
        until_threads(pool, 1)


def test_from_two_to_eight_to_two_under_load() -> None:
    with mh.Pool(2, engine="thread") as pool:
        got: list[tuple[int, int]] = []
        seen: set[int] = set()
        waiting = [pool.submit(abs, -number) for number in range(500)]
        for result in pool.map(work, range(3000), timeout=100):
            got.append(result)
            seen.add(result[0])
            if len(got) == 300:
                pool.resize(8)
            elif len(got) >= 1500 and len(seen) >= 8 and pool.workers == 8:
                pool.resize(2)
                assert pool.workers == 2
        assert [item for _, item in got] == list(range(3000))
        assert [future.result(60) for future in waiting] == list(range(500))
        assert len(seen) >= 8
        until_threads(pool, 2)
        assert pool.stats().deaths == 0


def test_tasks_that_wait_for_tasks_meanwhile() -> None:
    with mh.Pool(4, engine="thread") as pool:

        def task(number: int) -> int:
            return sum(pool.map(abs, range(-number, 0)))

        results = pool.map(task, range(24), timeout=100)
        for width in (1, 6, 2):
            pool.resize(width)
            next(results)
        assert sum(results) == sum(n * (n + 1) // 2 for n in range(3, 24))
        until_threads(pool, 2)


def test_a_task_may_resize_the_threads_of_its_pool() -> None:
    with mh.Pool(1, engine="thread") as pool:
        pool.submit(pool.resize, 3).result(60)
        assert pool.workers == 3
        assert pool.map(abs, [-1, -2]).list() == [1, 2]


def test_it_is_told_who_comes_and_who_leaves() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(3, engine="thread", on_event=seen.append) as pool:
        for width in (1, 4, 2):
            pool.resize(width)
            pool.map(work, range(20)).run()
    kinds = [event.kind for event in seen]
    assert kinds.count("born") == kinds.count("left") >= 4


# ------------------------------------------------------------------------------------------- idle


def test_idle_threads_leave_and_come_back() -> None:
    with mh.Pool(3, engine="thread", idle_timeout=0.05) as pool:
        for _ in range(2):
            assert pool.map(abs, range(-20, 0), timeout=60).list() == list(range(20, 0, -1))
            assert pool.submit(abs, -5).result(60) == 5
            until_threads(pool, 0)
        assert pool.workers == 3


def test_a_long_task_is_not_idle(gate: Gate) -> None:
    with mh.Pool(2, engine="thread", idle_timeout=0.01) as pool:
        held = pool.submit(pass_through, gate.path, 7)
        gate.wait_arrivals(1)
        assert pool.submit(abs, -1).result(60) == 1
        until_threads(pool, 1)
        gate.open()
        assert held.result(60) == 7


def test_who_leaves_closes_what_it_has_and_who_comes_makes_it_anew() -> None:
    made: list[int] = []
    closed: list[int] = []
    started: list[int] = []

    class Kept:
        def __init__(self) -> None:
            self.ident = threading.get_ident()
            made.append(self.ident)

        def close(self) -> None:
            assert threading.get_ident() == self.ident
            closed.append(self.ident)

    kept = mh.per_worker(Kept)

    def use() -> int:
        return kept.get().ident

    def start() -> None:
        started.append(threading.get_ident())

    with mh.Pool(1, engine="thread", idle_timeout=0.02, initializer=start) as pool:
        for count in (1, 2, 3):
            assert pool.submit(use).result(60) == made[-1]
            until_threads(pool, 0)
            assert closed == made
            assert len(made) == len(started) == count
    with mh.Pool(2, engine="thread") as pool:
        made.clear()
        closed.clear()
        for _ in range(100):
            pool.map(lambda _: (use(), time.sleep(0.001)), range(100)).run()
            if len(made) == 2:
                break
        pool.resize(1)
        until_threads(pool, 1)
        assert len(closed) == len(made) - 1
    assert sorted(closed) == sorted(made)


def test_work_that_comes_as_threads_leave_is_done() -> None:
    """Tasks and maps at about the time at which threads go, again and again."""
    draw = random.Random(20)
    with mh.Pool(3, engine="thread", idle_timeout=0.001) as pool:
        for round in range(300):
            count = draw.randrange(1, 6)
            futures = [pool.submit(abs, -n) for n in range(count)]
            if round % 3 == 0:
                assert pool.map(abs, range(-9, 0), timeout=60).list() == list(range(9, 0, -1))
            assert [future.result(60) for future in futures] == list(range(count))
            time.sleep(draw.random() * 0.003)
        assert pool.stats().pending == 0


def test_a_pool_ends_while_its_threads_leave() -> None:
    for _ in range(50):
        with mh.Pool(2, engine="thread", idle_timeout=0.001, name="leaving") as pool:
            pool.map(abs, range(-5, 0)).run()
            time.sleep(0.001)
        assert not [t for t in threading.enumerate() if t.name.startswith("manyhands-leaving")]
