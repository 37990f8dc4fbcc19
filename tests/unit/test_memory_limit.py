"""Pools whose tasks may take only so much memory together: `memory_limit=`. Others wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, pass_through
from manyhands import _core

MB = 1_000_000


class Crowd:
    """How many tasks run at once, by a file for each in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, number: int, megabytes: int = 0, seconds: float = 0.01) -> tuple[int, int]:
        path = self.directory / f"{os.getpid()}-{number}"
        path.touch()
        taken = bytearray(b"x") * (megabytes * MB)
        time.sleep(seconds)
        count = len(os.listdir(self.directory))
        path.unlink()
        return number + len(taken[:0]), count


@pytest.fixture
def crowd(tmp_path: Path) -> Crowd:
    directory = tmp_path / "crowd"
    directory.mkdir()
    return Crowd(directory)


def submit_all(pool: Any, crowd: Crowd, *args: Any) -> list[tuple[int, int]]:
    futures = [pool.submit(crowd, number, *args) for number in range(40)]
    return [future.result(60) for future in futures]


def map_all(pool: Any, crowd: Crowd, *args: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = pool.map(crowd, range(40), *([arg] * 40 for arg in args)).list()
    return found


WAYS = pytest.mark.parametrize("run", [submit_all, map_all])


@WAYS
def test_no_more_start_than_there_is_memory_for(
    crowd: Crowd, gate: Gate, run: Callable[..., Any]
) -> None:
    """P20 (celery#5645, distributed#2130): a limit for each, and one for all; who has no room
    waits."""
    with mh.Pool(6, task_memory="250MB", memory_limit="800MB") as pool:
        found = run(pool, crowd)
        assert [number for number, _ in found] == list(range(40))
        assert max(count for _, count in found) <= 3
        assert_they_run_at_once(pool, gate, 3)
        assert pool.stats().deaths == 0


def assert_they_run_at_once(pool: Any, gate: Gate, count: int) -> None:
    futures = [pool.submit(pass_through, gate.path, number) for number in range(count)]
    gate.wait_arrivals(count)
    gate.open()
    assert [future.result(100) for future in futures] == list(range(count))


def known_memory() -> int:
    """What percentages are of: the machine's memory, or what the control group may have of it."""
    facts = _core.machine_facts()
    known = [facts["memory_limit"], facts["memory_total"]]
    return min(size for size in known if size is not None)


def free_memory() -> int:
    """What could be taken now, at most."""
    available = _core.machine_facts()["memory_available"]
    assert available is not None
    return min(available, known_memory())


@WAYS
def test_a_part_of_what_there_is_holds_back(crowd: Crowd, run: Callable[..., Any]) -> None:
    """Two tasks of 41 % each do not fit into 80 %, whatever is free."""
    with mh.Pool(4, memory_limit="80%", task_memory=known_memory() * 41 // 100) as pool:
        found = run(pool, crowd, 0, 0.001)
        assert [number for number, _ in found] == list(range(40))
        assert {count for _, count in found} == {1}


def test_it_is_the_part_that_holds_back(crowd: Crowd, gate: Gate) -> None:
    """A part so small that it is free in any case: two tasks fit if both are a little less than its
    half, and one alone if they are a little more."""
    total = known_memory()
    if free_memory() < total // 10:
        pytest.skip(f"less than a tenth of the memory is free: {free_memory():,} bytes")
    with mh.Pool(4, memory_limit="4%") as pool:
        more = pool.options(task_memory=total * 21 // 1000)
        assert {count for _, count in submit_all(more, crowd, 0, 0.001)} == {1}
        less = pool.options(task_memory=total * 19 // 1000)
        assert_they_run_at_once(less, gate, 2)
        assert max(count for _, count in submit_all(less, crowd)) <= 2


@WAYS
def test_without_task_memory_each_has_its_share(
    crowd: Crowd, gate: Gate, run: Callable[..., Any]
) -> None:
    with mh.Pool(4, memory_limit="100MB") as pool:
        run(pool, crowd)
        assert_they_run_at_once(pool, gate, 4)
        # One with a limit of its own leaves room for fewer.
        strict = pool.options(task_memory="40MB")
        assert max(count for _, count in run(strict, crowd)) <= 2


@WAYS
def test_one_may_always_run(crowd: Crowd, run: Callable[..., Any]) -> None:
    """However little is really left: 100 % of a machine on which something runs is never free."""
    total = _core.machine_facts()["memory_total"]
    with mh.Pool(3, memory_limit="100%", task_memory=total * 4 // 5) as pool:
        found = run(pool, crowd, 0, 0.001)
        assert [number for number, _ in found] == list(range(40))
        assert {count for _, count in found} == {1}


def test_what_is_really_left_counts(crowd: Crowd) -> None:
    """A budget that the machine does not have."""
    most = 0
    for _ in range(10):
        left = _core.machine_facts()["memory_available"]
        with mh.Pool(4, memory_limit=left * 100, task_memory=left * 2 // 5) as pool:
            most = max(count for _, count in submit_all(pool, crowd))
        # Other programs may have given so much back meanwhile that there was room for three.
        if most <= 2 or _core.machine_facts()["memory_available"] < left * 6 // 5:
            break
    assert most <= 2


def test_large_ones_get_their_turn(crowd: Crowd, gate: Gate) -> None:
    """What waits first starts first, though others behind it would fit."""
    with mh.Pool(4, memory_limit="400MB") as pool:
        small = pool.options(task_memory="100MB")
        large = pool.options(task_memory="400MB")
        futures = []
        for number in range(60):
            view = large if number % 20 == 7 else small
            futures.append(view.submit(crowd, number))
        found = [future.result(60) for future in futures]
        assert [count for number, count in found if number % 20 == 7] == [1, 1, 1]
        assert_they_run_at_once(small, gate, 4)


def test_more_than_there_is_is_refused() -> None:
    words = "task_memory=300000000 is more than memory_limit=200000000 of the pool"
    with pytest.raises(ValueError, match=words):
        mh.Pool(2, task_memory="300MB", memory_limit="200MB")
    with mh.Pool(2, memory_limit="200MB") as pool:
        with pytest.raises(ValueError, match=words):
            pool.options(task_memory="300MB").submit(abs, -1)
        with pytest.raises(ValueError, match=words):
            pool.map(abs, [-1], task_memory="300MB")

        def task() -> str:
            return str(pool.options(task_memory="300MB").submit(abs, -1).exception(60))

        assert "its task_memory is more than the memory_limit" in pool.submit(task).result(60)
        assert pool.options(task_memory="200MB").submit(abs, -1).result(60) == 1


def test_tasks_that_wait_for_tasks() -> None:
    """All that there is is reserved by those that wait; what they wait for runs all the same."""

    def outer(depth: int) -> int:
        if depth == 0:
            return 1
        with_all = pool.options(task_memory="100MB")
        return sum(future.result(60) for future in [with_all.submit(outer, depth - 1)] * 2)

    with mh.Pool(4, task_memory="100MB", memory_limit="200MB") as pool:
        futures = [pool.submit(outer, 2) for _ in range(6)]
        assert [future.result(60) for future in futures] == [4] * 6
        assert pool.map(outer, [1, 2, 1]).list() == [2, 4, 2]


def test_deaths_and_endings_give_memory_back(crowd: Crowd) -> None:
    def work(number: int) -> int:
        if number % 5 == 1:
            os.kill(os.getpid(), 9)
        if number % 5 == 2:
            time.sleep(600)
        if number % 5 == 3:
            kept = bytearray(b"x") * (300 * MB)
            time.sleep(600 + len(kept[:0]))
        return number

    with mh.Pool(4, task_memory="50MB", memory_limit="100MB", grace=0.05) as pool:
        # A limit of time would end the others, too, where the machine stands still.
        sleepers = pool.map(work, [2] * 4, task_timeout=0.2, on_error="return")
        numbers = [number for number in range(20) if number % 5 != 2]
        results = pool.map(work, numbers, on_error="return").list()
        causes = [getattr(result, "cause", "value") for result in results]
        assert causes == ["value", "signal", "memory", "value"] * 4
        assert [getattr(result, "cause", "value") for result in sleepers] == ["timeout"] * 4
        waiting = [pool.submit(time.sleep, 600) for _ in range(10)]
        for future in waiting:
            assert future.cancel()
        assert max(count for _, count in submit_all(pool, crowd)) <= 2


def test_an_initializer_reserves_nothing(crowd: Crowd) -> None:
    with mh.Pool(3, memory_limit="30MB", initializer=time.sleep, initargs=(0.05,)) as pool:
        assert [number for number, _ in submit_all(pool, crowd)] == list(range(40))


def test_parts_of_what_there_is() -> None:
    from manyhands._memory import check_limit

    total = known_memory()
    assert check_limit("50%", "process") == int(total * 0.5)
    assert check_limit(" 12.5 % ", "process") == int(total * 0.125)
    assert check_limit("2 GiB", "process") == 2 << 30
    assert check_limit(10**9, "process") == 10**9


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("0%", ValueError, "memory_limit= must be above 0% and at most 100%, not 0%"),
        ("101%", ValueError, "memory_limit= must be above 0% and at most 100%, not 101%"),
        ("all", ValueError, "memory_limit= must be a size as '8GB' or '512 MiB', not 'all'"),
        (0.8, TypeError, "memory_limit= must be a number of bytes or a text, not float"),
        (80, ValueError, "memory_limit= must be at least 1 MB, not 80 bytes"),
    ],
)
def test_what_is_no_limit_is_refused(value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        mh.Pool(2, memory_limit=value)


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_other_engines_refuse_it(engine: str) -> None:
    with pytest.raises(ValueError, match="memory_limit= is for worker processes alone"):
        mh.Pool(1, engine=engine, memory_limit="1GB")
