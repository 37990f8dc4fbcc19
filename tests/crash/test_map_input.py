# ruff: noqa: PT017 - these programs run without pytest.
"""The input and the iterator of `map`: exceptions, abandonment, reentry."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
import weakref
from pathlib import Path

import pytest

import manyhands as mh
from programs import program_test


@pytest.mark.parametrize("after", [0, 1, 63, 64, 65, 500])
@program_test
def test_an_exception_of_the_input_comes_in_its_place(after: int) -> None:
    def items():
        yield from range(after)
        raise LookupError("the input's own")

    with mh.Pool(2) as pool:
        results = pool.map(abs, items())
        taken = []
        try:
            for result in results:
                taken.append(result)
        except LookupError as error:
            assert str(error) == "the input's own"
        else:
            raise AssertionError("nothing was raised")
        assert taken == list(range(after))
        assert list(results) == [], "an iterator that has ended stays so"
        assert list(pool.map(abs, [-1])) == [1]
        assert pool.stats().pending == 0


@program_test
def test_items_that_are_no_arguments() -> None:
    with mh.Pool(1) as pool:
        results = pool.starmap(pow, [(2, 3), 5, (2, 4)])
        assert next(results) == 8
        try:
            next(results)
        except TypeError as error:
            assert "iterable" in str(error)
        else:
            raise AssertionError("5 is no tuple of arguments")
        assert list(pool.starmap(pow, [[2, 5], (n for n in (2, 6))])) == [32, 64]
        assert list(pool.map(pow, [2, 3, 4], [2, 2])) == [4, 9]
        assert list(pool.map(abs, [])) == []
        assert list(pool.starmap(abs, [])) == []


@program_test
def test_a_map_that_is_dropped_cancels_the_rest() -> None:
    ran = os.path.abspath("ran")

    def work(n):
        while n > 100 and not os.path.exists(dropped):
            time.sleep(0.001)
        time.sleep(0.005)
        with open(ran, "a") as file:
            file.write("x")
        return n

    def items():
        try:
            yield from range(10_000)
        finally:
            closed.append(True)

    closed: list = []
    dropped = os.path.abspath("dropped")
    with mh.Pool(2) as pool:
        results = pool.map(work, items())
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        seen = weakref.ref(pool)
        del results
        Path(dropped).touch()
        gc.collect()
        assert closed == [True]
        deadline = time.monotonic() + 20
        while pool.stats().pending and time.monotonic() < deadline:
            time.sleep(0.001)
        assert pool.stats().pending == 0
        print(f"{len(Path(ran).read_text())} of 10000 had run")
        assert len(Path(ran).read_text()) < 200
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    del pool
    gc.collect()
    assert seen() is None


@program_test
def test_a_loop_that_is_left_early() -> None:
    with mh.Pool(2) as pool:
        for result in pool.map(time.sleep, itertools.repeat(0.001)):
            assert result is None
            break
        for turn in range(20):
            for result in pool.map(abs, itertools.count()):
                if result == 10 * turn:
                    break
        deadline = time.monotonic() + 20
        while pool.stats().pending and time.monotonic() < deadline:
            time.sleep(0.001)
        assert pool.stats().pending == 0


@program_test
def test_an_exception_of_a_task_cancels_the_rest() -> None:
    ran = os.path.abspath("ran")

    def work(n):
        while n > 3 and not os.path.exists(raised):
            time.sleep(0.001)
        time.sleep(0.003)
        with open(ran, "a") as file:
            file.write("x")
        if n == 3:
            Path(raised).touch()
            raise ValueError(n)
        return n

    raised = os.path.abspath("raised")
    with mh.Pool(2) as pool:
        results = pool.map(work, range(10_000))
        try:
            list(results)
        except ValueError as error:
            assert error.args == (3,)
        else:
            raise AssertionError("nothing was raised")
        assert list(results) == []
        deadline = time.monotonic() + 20
        while pool.stats().pending and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(Path(ran).read_text()) < 200


@program_test
def test_a_map_that_runs_out_of_time() -> None:
    def work(waits):
        while waits and not os.path.exists("go on"):
            time.sleep(0.001)

    with mh.Pool(1) as pool:
        assert pool.submit(abs, -1).result(20) == 1
        for timeout in 2, 8, 32:  # a machine that is late gets more
            results, taken = pool.map(work, [False, False, True, False], timeout=timeout), []
            try:
                for result in results:
                    taken.append(result)
            except TimeoutError:
                pass
            else:
                raise AssertionError("it cannot have ended yet")
            assert list(results) == []
            if len(taken) >= 2:
                break
        assert taken == [None, None]
        Path("go on").touch()
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_maps_within_maps() -> None:
    with mh.Pool(2) as pool:
        # The input of one is the output of another, on the same pool.
        first = pool.map(abs, range(-500, 0))
        second = pool.map(str, first)
        third = pool.map(len, second)
        assert sum(third) == sum(len(str(n)) for n in range(1, 501))
        # Several at once, taken in turns.
        maps = [pool.map(abs, itertools.count(-n)) for n in range(5)]
        for turn in range(100):
            assert [next(results) for results in maps] == [abs(turn - n) for n in range(5)]


@program_test
def test_an_input_that_takes_from_its_own_output() -> None:
    def items():
        yield 1
        yield 2
        try:
            seen.append(next(results))
        except (RuntimeError, NameError) as error:
            seen.append(type(error).__name__)
        yield 3

    seen: list = []
    with mh.Pool(1) as pool:
        results = pool.map(abs, items())
        taken = list(results)
        assert taken + [n for n in seen if isinstance(n, int)] == [1, 2, 3] or len(taken) == 3
        assert len(seen) == 1


@program_test
def test_an_iterator_that_several_threads_take_from() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(abs, range(-2000, 0))
        taken: list = []

        def take():
            while True:
                try:
                    taken.append(next(results))
                except StopIteration:
                    return
                except (RuntimeError, ValueError):
                    continue  # another thread is at it, as with generators

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(25)
            assert not thread.is_alive()
        assert sorted(taken) == list(range(1, 2001))


@program_test
def test_a_slow_input_does_not_hold_results_up() -> None:
    def items():
        yield from range(200)
        gate.wait(20)
        yield 200

    gate = threading.Event()
    with mh.Pool(2) as pool:
        results = pool.map(abs, items())
        # The first ones come while the input has not ended: at the latest when it blocks.
        assert next(results) == 0
        gate.set()
        assert list(results) == list(range(1, 201))


@program_test
def test_a_map_that_outlives_its_pool() -> None:
    pool = mh.Pool(2)
    results = pool.map(abs, range(20))
    pool.shutdown()
    assert list(results) == list(range(20))
    pool = mh.Pool(2)
    results = pool.map(abs, range(20))
    del pool
    gc.collect()
    assert list(results) == list(range(20))
    with mh.Pool(2) as pool:
        results = pool.map(abs, itertools.count())
        assert next(results) == 0
    taken = 0
    try:
        for _ in results:
            taken += 1
    except RuntimeError as error:
        assert "shut down" in str(error)
    assert taken >= 1


@program_test
def test_a_killed_worker_in_a_map() -> None:
    def work(n):
        if n == 100:
            os._exit(1)
        return n

    with mh.Pool(2) as pool:
        taken = []
        try:
            for result in pool.map(work, range(1000)):
                taken.append(result)
        except mh.WorkerDied:
            pass
        assert taken == list(range(100))
