"""A store without room holds nobody up: what finds none in it travels in another way.

Each of these waits for something that only the waiting thread itself could bring about.
"""

from __future__ import annotations

import os
import threading

import numpy as np

import manyhands as mh
from programs import program_test


@program_test
def test_two_arguments_that_have_no_room_together() -> None:
    with mh.Pool(1, store="20MB") as pool:
        one, two = np.full(2_000_000, 1.0), np.full(2_000_000, 2.0)
        assert pool.submit(lambda one, two: one[0] + two[-1], one, two).result() == 3


@program_test
def test_threads_with_two_arguments_each() -> None:
    """Each has room for the first, and none for the second."""

    def use():
        for number in range(20):
            one, two = np.full(1_500_000, 1.0), np.full(1_500_000, float(number))
            found = pool.submit(lambda one, two: one[0] + two[-1], one, two).result()
            good.append(found == number + 1)

    good = []
    with mh.Pool(1, store="40MB") as pool:
        users = [threading.Thread(target=use, daemon=True) for _ in range(4)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert len(good) == 80
    assert all(good)


@program_test
def test_items_of_a_map_that_have_no_room_together() -> None:
    with mh.Pool(1, store="20MB") as pool:
        items = (np.full(500_000, float(number)) for number in range(40))
        assert pool.map(np.max, items).list() == list(range(40))


@program_test
def test_a_map_whose_results_nobody_takes_yet() -> None:
    with mh.Pool(1, store="20MB") as pool:
        results = pool.map(np.max, [np.full(2_000_000, 1.0)])
        assert pool.submit(np.max, np.full(2_000_000, 2.0)).result() == 2
        assert results.list() == [1]


@program_test
def test_a_task_that_waits_for_what_comes_after_it() -> None:
    """It waits until this program writes to it, and that comes after the next `submit`."""

    def wait(array, path):
        with open(path) as file:
            file.read()
        return array[0]

    os.mkfifo("line")
    with mh.Pool(1, store="20MB") as pool:
        first = pool.submit(wait, np.full(2_000_000, 1.0), os.path.abspath("line"))
        second = pool.submit(np.max, np.full(2_000_000, 2.0))
        with open("line", "w") as file:
            file.write("go")
        assert (first.result(), second.result()) == (1, 2)
