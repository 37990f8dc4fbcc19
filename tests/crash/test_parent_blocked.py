"""Once submit has returned, tasks need no Python thread of the parent (C16 of the design)."""

from __future__ import annotations

import os
import time

import pytest

import blocked
import manyhands as mh
from programs import program_test


@pytest.mark.parametrize("with_callbacks", [False, True])
@program_test
def test_tasks_run_while_the_parent_holds_its_lock(with_callbacks: bool) -> None:
    def work(n):
        time.sleep(0.002)
        ended = time.monotonic()
        blocked.tell()
        return n, ended

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))
        lock, told = blocked.Lock(), []
        futures = [pool.submit(work, n) for n in range(1000)]
        if with_callbacks:
            for future in futures:
                future.add_done_callback(told.append)
        lock.keep_until(futures)
        freed = time.monotonic()
        # As they are now: nothing here waits.
        done = sum(future.done() for future in futures)
        pending = pool.stats().pending
        ends = [future.result(20)[1] for future in futures]
        assert done == 1000, done
        assert pending == 0, pending
        assert max(ends) < freed
        assert [future.result()[0] for future in futures] == list(range(1000))


@program_test
def test_large_results_come_home_while_the_parent_holds_its_lock() -> None:
    def make(n):
        result = bytes([n]) * 200_000
        blocked.tell()
        return result

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))
        lock = blocked.Lock()
        futures = [pool.submit(make, n % 256) for n in range(400)]
        lock.keep_until(futures)
        done = sum(future.done() for future in futures)
        assert done == 400, done
        assert all(
            future.result() == bytes([n % 256]) * 200_000 for n, future in enumerate(futures)
        )


@program_test
def test_deaths_are_replaced_while_the_parent_holds_its_lock() -> None:
    def work(n):
        time.sleep(0.002)
        blocked.tell()
        if n % 100 == 50:
            os._exit(1)
        return n

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))
        lock = blocked.Lock()
        futures = [pool.submit(work, n) for n in range(600)]
        lock.keep_until(futures)
        done = [n for n, future in enumerate(futures) if future.done()]
        assert len(done) == 600, len(done)
        lost = [n for n, future in enumerate(futures) if future.exception() is not None]
        assert lost == list(range(50, 600, 100))


@program_test
def test_the_first_pool_of_a_blocked_program() -> None:
    """Zygote, workers and tasks all come to life while no Python code runs in the parent."""

    def square(n):
        result = n * n
        blocked.tell()
        return result

    lock = blocked.Lock()
    pool = mh.Pool(2)
    futures = [pool.submit(square, n) for n in range(500)]
    lock.keep_until(futures)
    assert sum(future.done() for future in futures) == 500
    assert [future.result() for future in futures] == [n * n for n in range(500)]
    pool.shutdown()
