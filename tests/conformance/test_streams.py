"""Streams that are slow, endless or left: nobody waits for what nobody will take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from capabilities import Capabilities

import manyhands as mh
from programs import run_file


def test_a_result_does_not_wait_for_all_of_a_slow_input(engine: Capabilities) -> None:
    pulled = 0

    def rows() -> Iterator[int]:
        nonlocal pulled
        for number in range(100):
            time.sleep(0.01)  # a source that is slow, not an order of events
            pulled += 1
            yield number

    async def first() -> int:
        async for _ in mh.map(abs, rows(), engine=engine.name):
            return pulled
        raise AssertionError

    assert asyncio.run(first()) < 50


_ENDLESS = """
import itertools, signal, sys
import manyhands as mh

def count(start):
    try:
        yield from itertools.count(start)
    finally:
        print("closed", flush=True)

signal.alarm(20)
engine, how = sys.argv[1:]
with mh.Pool(2, engine=engine) as pool:
    results = pool.map(count, [5])
    print(list(itertools.islice(results, 1000))[-1], flush=True)
    if how == "closed":
        results.close()
    elif how == "dropped":
        del results
if how == "left":
    # What is there can still be taken, and why it ends is told.
    try:
        for number in results:
            pass
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_an_endless_generator_ends_with_its_map(
    tmp_path: Path, engine: Capabilities, how: str
) -> None:
    ended = run_file(tmp_path, _ENDLESS, engine.name, how)
    assert (ended.code, ended.out) == (0, "1004\nclosed\n"), str(ended)


def test_an_endless_generator_ends_when_its_consumer_leaves_the_pool(
    tmp_path: Path, engine: Capabilities
) -> None:
    if not engine.background:
        return  # nothing runs while nobody takes
    ended = run_file(tmp_path, _ENDLESS, engine.name, "left")
    why = "the pool was left while this item had more to yield, and nobody took it"
    assert (ended.code, ended.out) == (0, f"1004\nclosed\n{why}\n"), str(ended)


def test_a_generator_that_is_left_and_has_little_more_to_yield_ends(engine: Capabilities) -> None:
    with mh.Pool(2, engine=engine.name) as pool:
        results = pool.map(range_of, [5000])
        assert next(results) == 0
    if engine.background:
        assert list(results) == list(range(1, 5000))


def range_of(number: int) -> Iterator[int]:
    yield from range(number)


@pytest.mark.parametrize("cancel", [True, False])
def test_a_map_after_shutdown_is_refused_in_the_call(engine: Capabilities, cancel: bool) -> None:
    pool = mh.Pool(2, engine=engine.name)
    assert pool.submit(abs, -1).result() == 1
    pool.shutdown(cancel_futures=cancel)
    with pytest.raises(RuntimeError, match="the pool is shut down"):
        pool.map(abs, [-1, 2])
