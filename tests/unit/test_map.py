"""`map` and `starmap`: lazy, bounded, in order; errors where they belong."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from observing import Counted, settle

# The most items that may be on their way, which ARCHITECTURE.md promises, with what one step adds.
MOST_ITEMS = 100_000
STEP = 100


def square(number: int) -> int:
    return number * number


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise ValueError(f"item {number}")
    return number


def leave_trace(folder: str, number: int) -> int:
    Path(folder, str(number)).touch()
    return number


# ---------------------------------------------------------------------------------------- basics


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000, 20_000])
def test_results_in_order(pool: mh.Pool, count: int) -> None:
    assert list(pool.map(square, range(count))) == [number**2 for number in range(count)]


def test_in_order_though_later_ones_end_first(pool: mh.Pool, gate: Gate) -> None:
    def first_waits(number: int) -> int:
        if number == 0:
            pass_through(gate.path)
        return number

    results = pool.map(first_waits, range(10))
    gate.wait_arrivals()
    while pool.stats().pending > 1:  # all others are done by the second worker
        time.sleep(0.001)
    gate.open()
    assert list(results) == list(range(10))


def test_several_iterables(pool: mh.Pool) -> None:
    assert list(pool.map(pow, [2, 3], [5, 2])) == [32, 9]
    assert list(pool.map(pow, [2, 3], [5, 2], [7, 7])) == [4, 2]
    assert list(pool.map(lambda *args: sum(args), *[range(5)] * 7)) == [0, 7, 14, 21, 28]


def test_the_shortest_iterable_ends_it(pool: mh.Pool) -> None:
    assert list(pool.map(pow, [1, 2, 3, 4], [2, 2])) == [1, 4]
    assert list(pool.map(pow, itertools.count(), [2, 2, 2])) == [0, 1, 4]
    assert list(pool.map(pow, [], itertools.count())) == []
    rest = iter([2, 2, 2, 2])
    assert list(pool.map(pow, [1, 2], rest)) == [1, 4]
    assert list(rest) == [2, 2]  # as with `zip`: nothing is taken from those behind the shortest


def test_empty_input(pool: mh.Pool) -> None:
    results = pool.map(square, [])
    assert list(results) == []
    assert list(results) == []
    with pytest.raises(StopIteration):
        next(results)


def test_it_is_an_iterator(pool: mh.Pool) -> None:
    results = pool.map(square, range(3))
    assert iter(results) is results
    assert next(results) == 0
    assert list(results) == [1, 4]
    assert list(results) == []


def test_all_kinds_of_iterables(pool: mh.Pool) -> None:
    assert list(pool.map(str.upper, "abc")) == ["A", "B", "C"]
    assert list(pool.map(str, {"a": 1, "b": 2})) == ["a", "b"]
    assert sorted(pool.map(square, {1, 2})) == [1, 4]
    assert list(pool.map(square, (number for number in range(3)))) == [0, 1, 4]
    assert list(pool.map(len, [(1, 2), (), (3,)])) == [2, 0, 1]  # a tuple is one argument


def test_all_kinds_of_callables(pool: mh.Pool) -> None:
    factor = 3

    class Times:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def __call__(self, number: int) -> int:
            return number * self.factor

        def method(self, number: int) -> int:
            return number + self.factor

    assert list(pool.map(lambda number: number * factor, range(3))) == [0, 3, 6]
    assert list(pool.map(Times(2), range(3))) == [0, 2, 4]
    assert list(pool.map(Times(2).method, range(3))) == [2, 3, 4]
    assert list(pool.map(float, ["1", "2.5"])) == [1.0, 2.5]
    assert list(pool.map("-".join, [["a", "b"], ["c"]])) == ["a-b", "c"]


def test_bad_calls(pool: mh.Pool) -> None:
    with pytest.raises(TypeError, match="at least one iterable"):
        pool.map(square)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(square, 5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="callable"):
        list(pool.map(5, [1]))  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        pool.map(square, [1], power=2)  # type: ignore[call-overload]


def test_chunksize_is_accepted(pool: mh.Pool) -> None:
    assert list(pool.map(square, range(100), chunksize=7)) == [n * n for n in range(100)]


def test_items_that_go_by_value(pool: mh.Pool) -> None:
    class Item:
        def __init__(self, number: int) -> None:
            self.number = number

    items = [Item(number) for number in range(50)]
    results = list(pool.map(lambda item: item, items))
    assert [item.number for item in results] == list(range(50))
    assert all(type(item) is Item for item in results)


def test_two_maps_at_once(pool: mh.Pool) -> None:
    pairs = list(zip(pool.map(square, range(500)), pool.map(str, range(500)), strict=True))
    assert pairs == [(n * n, str(n)) for n in range(500)]


def test_a_map_over_a_map(pool: mh.Pool) -> None:
    assert list(pool.map(str, pool.map(square, range(2000)))) == [str(n * n) for n in range(2000)]


def test_maps_and_submits_together(pool: mh.Pool) -> None:
    results = pool.map(square, range(3000))
    futures = [pool.submit(square, number) for number in range(300)]
    assert [future.result() for future in futures] == [n * n for n in range(300)]
    assert list(results) == [n * n for n in range(3000)]


def test_from_many_threads(pool: mh.Pool) -> None:
    wrong: list[int] = []

    def work(start: int) -> None:
        if list(pool.map(square, range(start, start + 500))) != [
            n * n for n in range(start, start + 500)
        ]:
            wrong.append(start)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_default_pool() -> None:
    assert list(mh.map(square, range(5))) == [0, 1, 4, 9, 16]
    assert list(mh.map(pow, [2, 3], [3, 2])) == [8, 9]
    assert list(mh.starmap(pow, [(2, 3), (3, 2)])) == [8, 9]


# -------------------------------------------------------------------------------------- laziness


def test_the_first_items_start_in_the_call(pool: mh.Pool, gate: Gate) -> None:
    results = pool.map(pass_through, [gate.path], ["value"])
    gate.wait_arrivals()
    gate.open()
    assert list(results) == ["value"]


def test_endless_input(pool: mh.Pool) -> None:
    endless = Counted(itertools.count())
    results = pool.map(square, endless)
    assert 0 < endless.taken <= STEP
    assert list(itertools.islice(results, 10)) == [n * n for n in range(10)]
    assert endless.taken <= MOST_ITEMS
    assert list(itertools.islice(results, 5000)) == [n * n for n in range(10, 5010)]
    assert endless.taken <= MOST_ITEMS + 5010


def test_a_consumer_that_stops_stops_the_input(pool: mh.Pool) -> None:
    endless = Counted(itertools.count())
    results = pool.map(square, endless)
    assert next(results) == 0
    taken = endless.taken
    settle(pool)
    assert endless.taken == taken  # nobody takes from the input but `next`


def test_what_is_on_its_way_is_bounded_while_the_first_waits(pool: mh.Pool, gate: Gate) -> None:
    def first_waits(number: int) -> int:
        if number == 0:
            pass_through(gate.path)
        return number

    items = Counted(range(10**7))
    results = pool.map(first_waits, items)
    gate.wait_arrivals()
    opener = threading.Timer(0.2, gate.open)
    opener.start()
    assert next(results) == 0
    assert items.taken <= MOST_ITEMS + STEP
    assert list(itertools.islice(results, 10)) == list(range(1, 11))


def test_bytes_on_their_way_are_bounded(pool: mh.Pool) -> None:
    megabyte = 1 << 20
    items = Counted(bytes(megabyte) for _ in itertools.count())
    results = pool.map(len, items)
    assert list(itertools.islice(results, 200)) == [megabyte] * 200
    assert items.taken <= 200 + 64 + 2


def test_a_dropped_map_takes_no_more_and_cancels(tmp_path: Path, gate: Gate) -> None:
    with mh.Pool(1) as pool, closed_gate(tmp_path, "rest") as rest:
        first_path, rest_path = gate.path, rest.path

        def work(number: int) -> int:
            pass_through(first_path if number == 0 else rest_path)
            return leave_trace(str(tmp_path), number)

        items = Counted(itertools.count())
        results = pool.map(work, items)
        gate.wait_arrivals()
        gate.open()
        assert next(results) == 0
        del results
        rest.open()
        settle(pool)
        assert items.taken <= MOST_ITEMS
        # The second may have started before.
        ran = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
        assert {"0"} <= ran <= {"0", "1"}


def test_close_cancels(pool: mh.Pool) -> None:
    items = Counted(itertools.count())
    results: Any = pool.map(square, items)
    assert next(results) == 0
    results.close()
    settle(pool)
    taken = items.taken
    assert list(results) == []
    assert items.taken == taken


# ---------------------------------------------------------------------------------------- errors


def test_an_exception_of_a_task_comes_in_its_place(pool: mh.Pool) -> None:
    results = pool.map(fail_at, range(1000), itertools.repeat(500))
    assert list(itertools.islice(results, 500)) == list(range(500))
    with pytest.raises(ValueError, match="item 500") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, mh.RemoteTraceback)
    assert "item 500: fail_at(500, 500)" in caught.value.__notes__[0]
    assert list(results) == []  # as a generator that has raised


def test_an_exception_of_a_task_cancels_the_rest(tmp_path: Path) -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return leave_trace(str(tmp_path), number)

    with mh.Pool(1) as pool:
        items = Counted(itertools.count())
        with pytest.raises(ValueError, match="three"):
            list(pool.map(work, items))
        settle(pool)
        assert items.taken <= MOST_ITEMS
        ran = len(list(tmp_path.iterdir()))
        assert 3 <= ran < items.taken or ran == items.taken - 1
        assert pool.submit(square, 3).result() == 9


def test_an_exception_of_the_input_comes_in_its_place(pool: mh.Pool) -> None:
    def items() -> Iterator[int]:
        yield from range(100)
        raise LookupError("no more input")

    results = pool.map(square, items())
    assert list(itertools.islice(results, 100)) == [n * n for n in range(100)]
    with pytest.raises(LookupError, match="no more input"):
        next(results)
    assert list(results) == []


def test_an_input_that_raises_at_once(pool: mh.Pool) -> None:
    def items() -> Iterator[int]:
        raise LookupError("nothing")
        yield 1

    results = pool.map(square, items())
    with pytest.raises(LookupError, match="nothing"):
        next(results)


def test_an_item_that_cannot_be_pickled(pool: mh.Pool) -> None:
    results = pool.map(str, [1, threading.Lock(), 3])
    assert next(results) == "1"
    with pytest.raises(mh.NotPicklable, match="lock"):
        next(results)
    assert list(results) == []


def test_a_worker_that_dies_costs_its_item_alone(pool: mh.Pool) -> None:
    def work(number: int) -> int:
        import os

        if number == 50:
            os._exit(7)
        return number

    results = pool.map(work, range(100))
    assert list(itertools.islice(results, 50)) == list(range(50))
    with pytest.raises(mh.WorkerDied, match=r"status 7 .* task 50 \(.*work\(50\)\)"):
        next(results)
    assert list(pool.map(square, range(100))) == [n * n for n in range(100)]


def test_an_input_that_takes_from_the_same_map(pool: mh.Pool) -> None:
    results: Any = None

    def items() -> Iterator[int]:
        yield from range(64)
        yield next(results)

    results = pool.map(square, items())
    with pytest.raises(RuntimeError, match="from the map itself"):
        list(results)


def test_timeout(pool: mh.Pool, gate: Gate) -> None:
    results = pool.map(pass_through, [gate.path] * 5, timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    assert list(results) == []  # what had not started is cancelled
    gate.open()
    settle(pool)
    assert list(pool.map(square, range(10), timeout=60)) == [n * n for n in range(10)]
    assert list(pool.map(square, range(10), timeout=None)) == [n * n for n in range(10)]


def test_timeout_cancels_what_has_not_started(tmp_path: Path, gate: Gate) -> None:
    def work(number: int) -> None:
        if number == 0:
            pass_through(gate.path)
        leave_trace(str(tmp_path), number)

    with mh.Pool(1) as pool:
        results = pool.map(work, range(30), timeout=0.05)
        gate.wait_arrivals()  # nobody looks at the clock before the first is asked for
        with pytest.raises(TimeoutError):
            list(results)
        gate.open()
    assert [path.name for path in tmp_path.iterdir() if path.name.isdigit()] == ["0"]


def test_leaving_the_block_finishes_what_was_taken() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(square, range(50))
    assert list(results) == [n * n for n in range(50)]


def test_a_clean_end_finishes_what_nobody_has_iterated() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(square, iter(range(10_000)))
    assert list(results) == [n * n for n in range(10_000)]


def test_a_clean_end_does_not_go_on_with_what_was_left() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(square, itertools.count())
        assert next(results) == 0
    got = []
    with pytest.raises(RuntimeError, match="shut down"):
        for result in results:
            got.append(result)
    assert got == [n * n for n in range(1, len(got) + 1)]


def test_map_after_shutdown() -> None:
    pool = mh.Pool(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        list(pool.map(square, range(3)))


# --------------------------------------------------------------------------------------- starmap


@pytest.mark.parametrize("make", [tuple, list, iter], ids=["tuple", "list", "iterator"])
def test_starmap(pool: mh.Pool, make: Callable[[Any], Any]) -> None:
    items = [make((base, power)) for base in range(5) for power in range(3)]
    expected = [base**power for base in range(5) for power in range(3)]
    assert list(pool.starmap(pow, items)) == expected


def test_starmap_with_any_number_of_arguments(pool: mh.Pool) -> None:
    assert list(pool.starmap(lambda *args: args, [(), (1,), (1, 2, 3), "ab"])) == [
        (),
        (1,),
        (1, 2, 3),
        ("a", "b"),
    ]


def test_starmap_is_lazy(pool: mh.Pool) -> None:
    items = Counted((n, 2) for n in itertools.count())
    results = pool.starmap(pow, items)
    assert 0 < items.taken <= STEP
    assert list(itertools.islice(results, 3)) == [0, 1, 4]


def test_starmap_with_an_item_that_is_none(pool: mh.Pool) -> None:
    results = pool.starmap(pow, [(2, 2), 5])  # type: ignore[list-item]
    assert next(results) == 4
    with pytest.raises(TypeError, match="not iterable"):
        next(results)
    with pytest.raises(TypeError, match="not iterable"):
        pool.starmap(pow, 5)  # type: ignore[call-overload]
