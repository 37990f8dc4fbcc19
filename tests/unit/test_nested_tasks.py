"""Tasks in worker processes that submit tasks to the pool that runs them."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from observing import pids_of
from programs import output_of


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def test_what_tasks_submit_runs_in_workers_of_the_same_pool(pool: mh.Pool) -> None:
    def task() -> tuple[int, set[int]]:
        return os.getpid(), set(pool.map(lambda _: os.getpid(), range(20)))

    asker, others = pool.submit(task).result(timeout=60)
    pids = {*pids_of(pool)}
    assert asker not in others
    assert {asker, *others} <= pids


def test_the_module_functions_use_the_pool_that_runs_the_task() -> None:
    def task() -> tuple[int, int]:
        return mh.submit(os.getppid).result(), os.getppid()

    with mh.Pool(1) as pool:
        zygote_of_the_other, own_zygote = pool.submit(task).result(timeout=60)
    assert zygote_of_the_other == own_zygote


def test_few_more_tasks_run_at_once_than_there_are_workers(pool: mh.Pool, tmp_path: Path) -> None:
    def leaf(number: int) -> int:
        running = tmp_path / f"{number}"
        running.touch()
        count = len(list(tmp_path.iterdir()))
        time.sleep(0.02)
        running.unlink()
        return count

    def task(number: int) -> int:
        return max(pool.map(leaf, range(number * 10, number * 10 + 5)))

    # A worker whose calls have ended goes on at once, and a spare may have its next task already.
    assert max(pool.map(task, range(30))) <= 4
    assert len(pool.stats().workers) <= 6


def test_a_worker_that_is_killed_below_costs_that_task(pool: mh.Pool) -> None:
    def task() -> list[object]:
        def die(number: int) -> int:
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        return [type(result).__name__ for result in pool.map(die, range(3), on_error="return")]

    assert pool.submit(task).result(timeout=60) == ["int", "Failure", "int"]
    assert pool.submit(abs, -1).result(timeout=60) == 1


def test_retries_and_limits_hold_below(pool: mh.Pool, tmp_path: Path) -> None:
    def task() -> tuple[str, str]:
        def now_and_then() -> str:
            mark = tmp_path / "mark"
            if not mark.exists():
                mark.touch()
                raise OSError("not yet")
            return "in the end"

        slow = pool.options(task_timeout=0.2, grace=0.1).submit(time.sleep, 60)
        again = pool.options(retry=mh.Retry(2, on=OSError)).submit(now_and_then)
        return again.result(), type(slow.exception()).__name__

    assert pool.submit(task).result(timeout=60) == ("in the end", "TaskTimeout")


def test_a_task_that_is_cancelled_takes_what_it_waits_for_along(pool: mh.Pool, gate: Gate) -> None:
    below = functools.partial(pass_through, gate.path)
    future = pool.submit(lambda: pool.submit(below).result())
    gate.wait_arrivals()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout=60)
    # Its worker and the spare are free again, or new.
    assert pool.map(abs, range(10)).list() == list(range(10))
    deadline = time.monotonic() + 60
    while pool.stats().pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.stats().pending == 0


def test_a_time_limit_counts_the_wait_for_others(pool: mh.Pool) -> None:
    def task() -> None:
        pool.submit(time.sleep, 60).result()

    with pytest.raises(mh.TaskTimeout):
        pool.options(task_timeout=0.3, grace=0.2).submit(task).result(timeout=60)
    assert pool.submit(abs, -1).result(timeout=60) == 1


def test_a_task_cancels_what_it_has_submitted(pool: mh.Pool) -> None:
    def task() -> tuple[bool, bool, int]:
        future = pool.submit(time.sleep, 60)
        while not future.running():
            time.sleep(0.01)
        time.sleep(0.1)
        return future.cancel(), future.cancelled(), pool.submit(abs, -7).result()

    assert pool.submit(task).result(timeout=60) == (True, True, 7)


def test_a_task_that_fails_cancels_what_it_has_submitted(pool: mh.Pool) -> None:
    def task() -> None:
        for _ in range(10):
            pool.submit(time.sleep, 60)
        raise LookupError("before they end")

    assert isinstance(pool.submit(task).exception(timeout=30), LookupError)
    pool.shutdown()  # within the test's time


def test_leaving_the_block_by_an_exception_ends_what_is_nested(gate: Gate) -> None:
    below = functools.partial(pass_through, gate.path)
    with pytest.raises(LookupError), mh.Pool(2) as pool:
        future = pool.submit(lambda: pool.submit(below).result())
        gate.wait_arrivals()
        raise LookupError
    assert future.cancelled()


def test_nesting_has_a_bottom(pool: mh.Pool) -> None:
    def endless() -> int:
        return 1 + pool.submit(endless).result()

    with pytest.raises(mh.TaskError, match="up to 10 deep"):
        pool.submit(endless).result(timeout=60)
    assert pool.submit(abs, -1).result(timeout=60) == 1


def test_another_pool_is_refused_with_a_sentence(pool: mh.Pool) -> None:
    with mh.Pool(1, name="the other") as other:
        future = pool.submit(lambda: other.submit(abs, -1).result())
        with pytest.raises(RuntimeError, match="the pool that runs it, and 'the other' is another"):
            future.result(timeout=60)


def test_a_pool_is_itself_where_it_was_made(pool: mh.Pool) -> None:
    assert pickle.loads(pickle.dumps(pool)) is pool
    view = pickle.loads(pickle.dumps(pool.options(retry=2)))
    assert view.submit(abs, -1).result(timeout=60) == 1
    with mh.Pool(1, engine="thread") as threads, pytest.raises(TypeError, match='engine="thread"'):
        pickle.dumps(threads)


def test_arguments_stay_hidden_below() -> None:
    def below(secret: str) -> None:
        raise LookupError("as it should")

    with mh.Pool(1, show_args=False) as pool:
        error = pool.submit(lambda: mh.submit(below, "hunter2").result()).exception(timeout=60)
    assert isinstance(error, LookupError)
    assert "hunter2" not in "".join(error.__notes__)


def test_large_arguments_and_results(pool: mh.Pool) -> None:
    def task(size: int) -> int:
        text = "x" * size
        return sum(len(result) for result in pool.map(lambda part: part * 2, [text] * 3))

    sizes = [10, 40_000, 100_000, 3_000_000]
    assert pool.map(task, sizes).list() == [6 * size for size in sizes]


def test_what_cannot_be_sent_below_fails_in_its_place(pool: mh.Pool) -> None:
    def task() -> list[str]:
        items = [1, sys._getframe(), 3]
        results = pool.map(lambda item: item, items, on_error="return")
        return [type(result).__name__ for result in results]

    assert pool.submit(task).result(timeout=60) == ["int", "Failure", "int"]


MAIN = """
import manyhands as mh
from dataclasses import dataclass

FACTOR = 3

@dataclass
class Point:
    x: int

def scale(point):
    return Point(point.x * FACTOR)

def task(n):
    points = mh.map(scale, [Point(i) for i in range(n)]).list()
    assert all(isinstance(point, Point) for point in points)
    return points

def rebinds(n):
    global FACTOR
    FACTOR = n
    return mh.map(scale, [Point(1)]).list()[0].x

for _ in range(3):
    results = mh.map(task, [2, 3]).list()
    assert all(isinstance(point, Point) for points in results for point in points)
print(results)
FACTOR = 7
print(mh.submit(task, 2).result())
print(mh.submit(rebinds, 5).result())
"""


def test_functions_and_classes_of_the_script(tmp_path: Path) -> None:
    out = output_of(tmp_path, MAIN)
    assert out.splitlines() == [
        "[[Point(x=0), Point(x=3)], [Point(x=0), Point(x=3), Point(x=6)]]",
        "[Point(x=0), Point(x=7)]",
        "5",
    ]


def test_a_task_runs_again_whose_worker_rests_by_then(tmp_path: Path) -> None:
    gates = {name: Gate(tmp_path, name) for name in ("warm", "asked", "asker", "fails")}
    paths = {name: gate.path for name, gate in gates.items()}
    has_run = tmp_path / "has_run"

    def ask() -> None:
        pool.submit(pass_through, paths["asked"]).result()
        pass_through(paths["asker"])

    def fail_once() -> str:
        is_first = not has_run.exists()
        has_run.touch()
        pass_through(paths["fails"])
        if is_first:
            raise OSError
        return "ran again"

    try:
        with mh.Pool(2) as pool:
            warm = [pool.submit(pass_through, paths["warm"]) for _ in range(2)]
            gates["warm"].wait_arrivals(2)
            gates["warm"].open()
            assert [task.result() for task in warm] == [None, None]
            asker = pool.submit(ask)
            gates["asked"].wait_arrivals()  # it runs on the other worker
            failing = pool.options(retry=1).submit(fail_once)
            gates["fails"].wait_arrivals()  # on a third, which is there while the asker waits
            gates["asked"].open()
            gates["asker"].wait_arrivals()  # it waits no more, so one of the three rests
            gates["fails"].open()
            assert failing.result(timeout=60) == "ran again"
            gates["asker"].open()
            assert asker.result() is None
    finally:
        for gate in gates.values():
            gate.close_files()
