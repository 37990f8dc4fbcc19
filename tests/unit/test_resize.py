"""Pools that become larger and smaller while they work, also used by many threads at once."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from observing import resizing


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def work(item: int) -> tuple[int, int]:
    time.sleep(0.001)
    return os.getpid(), item


def note(folder: str, item: int) -> int:
    """Says that it ran; a second time is an error."""
    os.close(os.open(os.path.join(folder, str(item)), os.O_CREAT | os.O_EXCL))
    return item


def until_workers(pool: mh.Pool, count: int) -> None:
    for _ in range(3000):
        if len(pool.stats().workers) == count:
            return
        time.sleep(0.01)
    raise AssertionError(f"not {count} workers: {pool.stats()}")


def test_from_two_to_eight_to_two_under_load(tmp_path: Path) -> None:
    """P58 (cpython#83798): a pool that takes and gives back processors while it works.

    Tasks and the items of a map come all the while, and each of them runs exactly once.
    """
    maps, tasks = tmp_path / "maps", tmp_path / "tasks"
    maps.mkdir()
    tasks.mkdir()

    def item(number: int) -> tuple[int, int]:
        note(str(maps), number)
        return work(number)

    last: list[int] = []  # the map's last item, once the pool has been changed twice

    def items() -> Iterator[int]:
        for number in itertools.count():
            if last and number > last[0]:
                return
            yield number

    with mh.Pool(2) as pool:
        got: list[tuple[int, int]] = []
        futures: list[mh.Future[int]] = []
        seen: set[int] = set()
        # How many items had been taken at each change.
        changes = [0]
        for result in pool.map(item, items(), timeout=100):
            got.append(result)
            seen.add(result[0])
            futures.append(pool.submit(note, str(tasks), len(futures)))
            if len(got) < changes[-1] + 100:
                continue
            if len(changes) == 1:
                pool.resize(8)
                assert pool.workers == 8
            elif len(changes) == 2 and len(seen) >= 8:
                assert len(pool.stats().workers) == 8
                pool.resize(2)
                assert pool.workers == 2
                last.append(len(got) + 200)
            else:
                continue
            changes.append(len(got))
        assert len(changes) == 3
        assert len(got) > changes[-1] + 200
        assert [number for _, number in got] == list(range(len(got)))
        assert [future.result(100) for future in futures] == list(range(len(got)))
        for folder in (maps, tasks):
            assert sorted(int(path.name) for path in folder.iterdir()) == list(range(len(got)))
        until_workers(pool, 2)
        assert pool.stats().deaths == 0
        assert pool.stats().recycled == 0


def test_workers_that_are_too_many_finish_what_they_run(gate: Gate) -> None:
    with mh.Pool(3) as pool:
        held = [pool.submit(pass_through, gate.path) for _ in range(3)]
        gate.wait_arrivals(3)
        waiting = [pool.submit(abs, -number) for number in range(50)]
        pool.resize(1)
        assert not any(future.done() for future in held)
        gate.open()
        for future in held:
            future.result(60)
        assert [future.result(60) for future in waiting] == list(range(50))
        until_workers(pool, 1)
        assert pool.stats().deaths == 0


def test_more_workers_start_at_once_what_waits(gate: Gate) -> None:
    with mh.Pool(1) as pool:
        held = [pool.submit(pass_through, gate.path) for _ in range(4)]
        gate.wait_arrivals(1)
        pool.resize(4)
        gate.wait_arrivals(3)
        gate.open()
        for future in held:
            future.result(60)


def test_tasks_that_wait_for_tasks_meanwhile() -> None:
    def task(number: int) -> int:
        return sum(mh.map(abs, range(-number, 0)))

    with mh.Pool(4) as pool:
        results = pool.map(task, range(24), timeout=100)
        for width in (1, 6, 2):
            pool.resize(width)
            next(results)
        assert sum(results) == sum(n * (n + 1) // 2 for n in range(3, 24))
        assert pool.stats().deaths == 0


@pytest.mark.parametrize("recycle_after_tasks", [None, 10])
def test_many_threads_use_a_pool_that_changes(recycle_after_tasks: int | None) -> None:
    """P57 (mpire#74): one pool, and many threads that submit and map at once."""
    with mh.Pool(2, recycle_after_tasks=recycle_after_tasks) as pool:

        def submit(number: int) -> int:
            futures = [pool.submit(work, item) for item in range(100)]
            assert [future.result(60)[1] for future in futures] == list(range(100))
            return number

        def use_map(number: int) -> int:
            got = pool.map(work, range(150), ordered=number % 2 == 0, timeout=100).list()
            assert sorted(item for _, item in got) == list(range(150))
            return number

        with resizing(pool, 0.02), ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(use, n) for n in range(8) for use in (submit, use_map)]
            assert [call.result(100) for call in calls] == [n // 2 for n in range(16)]
        stats = pool.stats()
        assert (stats.deaths, stats.pending, stats.queued) == (0, 0, 0)
        assert stats.done == 8 * 250
        if recycle_after_tasks is not None:
            assert stats.recycled > 0


def test_each_worker_keeps_to_its_share_while_the_pool_changes() -> None:
    with mh.Pool(3, recycle_after_tasks=20) as pool:
        got = []
        for result in pool.map(work, range(1000), timeout=100):
            got.append(result)
            if len(got) % 100 == 0:
                pool.resize(1 + len(got) // 100 % 4)
        assert [item for _, item in got] == list(range(1000))
        assert max(Counter(pid for pid, _ in got).values()) <= 20


def test_an_engine_without_workers_refuses_it_by_name() -> None:
    with mh.Pool(1, engine="inline") as pool:
        with pytest.raises(
            ValueError, match=r'resize\(\) is for workers: engine="inline" has none'
        ):
            pool.resize(2)
        assert pool.workers == 1


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_wrong_sizes_and_closed_pools_are_refused(engine: str) -> None:
    with mh.Pool(1, engine=engine) as pool:
        with pytest.raises(ValueError, match="workers must be at least 1"):
            pool.resize(0)
        with pytest.raises(TypeError, match="workers must be a whole number"):
            pool.resize("2")  # type: ignore[arg-type]
        assert pool.workers == 1
    with pytest.raises(RuntimeError, match="cannot resize: the pool is shut down"):
        pool.resize(2)


def test_a_task_cannot_resize_its_pool() -> None:
    with mh.Pool(1) as pool:

        def task() -> None:
            pool.resize(2)

        with pytest.raises(AttributeError, match="resize"):
            pool.submit(task).result(60)
