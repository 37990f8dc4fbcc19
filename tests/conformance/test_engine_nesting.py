"""Tasks that submit tasks to the pool that runs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import as_completed, wait

import pytest
from capabilities import Capabilities

import manyhands as mh


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    if number == 2:
        raise LookupError(f"no {number}")
    return number


def spell(count: int) -> Iterator[str]:
    yield from "abc"[:count]


def test_a_task_submits_to_its_pool(pool: mh.Pool) -> None:
    def task() -> tuple[int, list[int], list[int]]:
        return (
            pool.submit(square, 3).result(),
            pool.map(square, range(4)).list(),
            list(pool.starmap(pow, [(2, 3), (3, 2)])),
        )

    assert pool.submit(task).result(timeout=60) == (9, [0, 1, 4, 9], [8, 9])


def test_the_pool_may_be_an_argument(engine: Capabilities) -> None:
    def total(own: mh.Pool, numbers: list[int]) -> int:
        return sum(own.map(square, numbers))

    with mh.Pool(2, engine=engine.name, copy=not engine.shares_on_request) as pool:
        assert pool.submit(total, pool, [1, 2]).result(timeout=60) == 5


def test_depth_times_width_beyond_the_workers_never_deadlocks(pool: mh.Pool) -> None:
    def tree(depth: int, width: int) -> int:
        if depth == 0:
            return 1
        return sum(pool.starmap(tree, [(depth - 1, width)] * width))

    assert pool.map(lambda _: tree(3, 3), range(3)).list() == [27, 27, 27]
    futures = [pool.submit(tree, 4, 2) for _ in range(4)]
    assert [future.result(timeout=60) for future in futures] == [16] * 4


def test_a_chain_of_tasks_that_wait_for_each_other(pool: mh.Pool) -> None:
    def chain(left: int) -> int:
        return 0 if left == 0 else 1 + pool.submit(chain, left - 1).result()

    assert pool.map(chain, [8, 8, 8]).list() == [8, 8, 8]


def test_what_fails_below_is_raised_above(pool: mh.Pool) -> None:
    def task() -> list[int]:
        return pool.map(fail, range(4)).list()

    error = pool.submit(task).exception(timeout=60)
    assert isinstance(error, LookupError)
    assert str(error) == "no 2"


def test_failures_are_returned_with_their_place_and_item(pool: mh.Pool) -> None:
    def task() -> tuple[list[object], int, object]:
        results = list(pool.map(fail, range(4), on_error="return"))
        failure = results[2]
        assert isinstance(failure, mh.Failure)
        return [*results[:2], results[3]], failure.index, failure.input

    assert pool.submit(task).result(timeout=60) == ([0, 1, 3], 2, 2)


def test_any_order_batches_and_generators(pool: mh.Pool) -> None:
    def task() -> tuple[list[int], list[int], list[str]]:
        return (
            sorted(pool.map(square, range(20), ordered=False)),
            list(pool.map(lambda batch: [len(batch)] * len(batch), range(5), batch=2)),
            pool.map(spell, [2, 0, 3]).list(),
        )

    squares, sizes, letters = pool.submit(task).result(timeout=60)
    assert squares == [square(number) for number in range(20)]
    assert sizes == [2, 2, 2, 2, 1]
    assert letters == ["a", "b", "a", "b", "c"]


def test_futures_below_are_waited_for_as_above(pool: mh.Pool) -> None:
    def task() -> tuple[int, list[int], int]:
        futures = [pool.submit(square, number) for number in range(5)]
        done, open_ = wait(futures, timeout=60)
        assert len(done) == 5
        assert not open_
        called: list[int] = []
        futures[4].add_done_callback(lambda future: called.append(future.result()))
        deadline = time.monotonic() + 60
        while not called and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(done), sorted(future.result() for future in as_completed(futures)), called[0]

    assert pool.submit(task).result(timeout=60) == (5, [0, 1, 4, 9, 16], 16)


def test_futures_below_can_be_awaited(pool: mh.Pool) -> None:
    async def all_of() -> list[int]:
        futures = [asyncio.wrap_future(pool.submit(square, number)) for number in range(4)]
        return list(await asyncio.gather(*futures))

    assert pool.submit(lambda: asyncio.run(all_of())).result(timeout=60) == [0, 1, 4, 9]


def test_the_end_of_a_task_waits_for_what_it_has_submitted(
    pool: mh.Pool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mark = tmp_path_factory.mktemp("nesting") / "mark"

    def later() -> None:
        time.sleep(0.2)
        mark.touch()

    pool.submit(lambda: pool.submit(later) and None).result(timeout=60)
    pool.shutdown()
    assert mark.exists()


def test_the_shared_functions_use_the_pool_of_the_task(engine: Capabilities) -> None:
    def task(number: int) -> list[int]:
        return mh.map(square, range(number)).list()

    assert mh.map(task, [2, 3], engine=engine.name).list() == [[0, 1], [0, 1, 4]]
