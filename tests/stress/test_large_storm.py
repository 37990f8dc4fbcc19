"""The tests of large data that get better the longer they run, and those of what is very large."""

from __future__ import annotations

import time

import numpy as np
import pytest
import test_large_data

import manyhands as mh
from programs import seed, stress_seconds

pytestmark = pytest.mark.stress

# More than 31 bits count, and not in whole pages.
_HUGE = 2**31 + 4097


def test_workers_die_with_arrays_at_random_instants() -> None:
    end = time.monotonic() + stress_seconds()
    kills, turn, first = 0, 0, seed()
    while kills < 200 or time.monotonic() < end:
        ended = test_large_data.arrays_under_kills.run(
            kills=100, chosen=first + turn, bound=150e6, seconds=240
        ).check()
        print(f"seed {first + turn}: {ended.out}")
        assert ended.out.endswith("all is well\n")
        kills += 100
        turn += 1


def test_large_data_in_many_rounds_leaves_nothing() -> None:
    rounds = max(100, int(3 * stress_seconds()))
    ended = test_large_data.large_data_in_rounds.run(rounds=rounds, seconds=10 * rounds)
    print(ended.check().out)


def test_a_hundred_thousand_arrays() -> None:
    """They are all right, and the memory of 30 GB is that of a few."""
    print(test_large_data.many_arrays.run(count=100_000, seconds=600).check().out)


def test_more_than_2_gib() -> None:
    with mh.Pool(1) as pool:
        array = np.zeros(_HUGE, "u1")
        array[-1] = array[_HUGE // 2] = 7
        assert pool.submit(lambda array: (len(array), array.sum()), array).result() == (_HUGE, 14)
        result = pool.submit(lambda array: array, array).result()
        assert np.array_equal(result, array)
        result[-1] = 8
        assert array[-1] == 7
