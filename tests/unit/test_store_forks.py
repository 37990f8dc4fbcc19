"""Children that a program or a task forks keep what they see of the store."""

from __future__ import annotations

import os
import time

import numpy as np

import manyhands as mh
from programs import program_test

COUNT = 300_000


def make(number: float) -> np.ndarray:
    return np.full(COUNT, float(number))


@program_test
def test_memory_that_a_child_sees_is_not_used_again() -> None:
    def make(number):
        return np.full(300_000, float(number))

    with mh.Pool(2) as pool:
        result = pool.submit(make, 7).result()
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            os._exit(0 if (result == 7).all() else 1)
        del result
        # Whatever is recycled is written over.
        for number in range(20):
            assert (pool.submit(make, number).result() == number).all()
        assert pool.stats().store.live > 0
        os.write(told, b"x")
        assert os.waitpid(child, 0)[1] == 0
        # Once it has ended, its memory is free.
        deadline = time.monotonic() + 20
        while pool.stats().store.live:
            assert time.monotonic() < deadline, pool.stats().store
            pool.submit(make, 1).result()
            time.sleep(0.01)


def test_memory_that_the_child_of_a_task_sees(pool: mh.Pool) -> None:
    def fork_and_keep(array: np.ndarray) -> int:
        child = os.fork()
        if child == 0:
            time.sleep(0.3)
            os._exit(0 if (array == 7).all() else 1)
        return child

    def wait_for(child: int) -> int:
        return os.waitpid(child, 0)[1]

    with mh.Pool(1) as single:
        child = single.submit(fork_and_keep, make(7)).result()
        for number in range(30):
            assert (single.submit(np.negative, make(number)).result() == -number).all()
        assert single.submit(wait_for, child).result() == 0
