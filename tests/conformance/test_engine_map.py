"""`map` and `starmap` on every engine, on a pool and on the module: results, options, input."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from capabilities import Capabilities, Mapping
from tasks import (
    Explodes,
    Fatal,
    Unpicklable,
    append,
    collect,
    count_to,
    fail_at_3,
    leave_trace,
    odd_fail,
    same,
    square,
    traces,
)

import manyhands as mh
from gate import Gate, pass_through
from observing import Counted, settle, texts_of_warnings

ON_ERROR = ["raise", "return", "skip", "group"]

# The most items that are on their way, with what one step adds.
MOST_ITEMS = 100_100
# The most that the call of a map takes.
FIRST_ITEMS = 64


def squares(count: int) -> list[int]:
    return [number * number for number in range(count)]


# -------------------------------------------------------------------------------- results, in order


@pytest.mark.parametrize("count", [0, 1, 2, 65, 3000])
def test_results_in_order(mapping: Mapping, count: int) -> None:
    assert list(mapping.map(square, range(count))) == squares(count)
    assert mapping.map(square, iter(range(count))).list() == squares(count)
    assert list(mapping.starmap(square, [(n,) for n in range(count)])) == squares(count)


def test_several_iterables(mapping: Mapping) -> None:
    assert list(mapping.map(pow, [2, 3], [5, 2])) == [32, 9]
    assert list(mapping.map(pow, [2, 3, 9], itertools.count(1))) == [2, 9, 729]
    assert list(mapping.map(lambda *args: sum(args), *[range(4)] * 6)) == [0, 6, 12, 18]
    assert list(mapping.map(pow, [], itertools.count())) == []
    rest = iter([2, 2, 2, 2])
    assert list(mapping.map(pow, [1, 2], rest)) == [1, 4]
    assert list(rest) == [2, 2], "nothing is taken from those behind the shortest, as with zip"


def test_starmap(mapping: Mapping) -> None:
    assert list(mapping.starmap(pow, [(2, 3), [3, 2], iter((5, 1))])) == [8, 9, 5]
    assert list(mapping.starmap(collect, [(), (1,), (1, 2)])) == [
        ((), {}),
        ((1,), {}),
        ((1, 2), {}),
    ]
    results = mapping.starmap(pow, [(2, 3), (1,), (3, 2)], on_error="return")
    good, failure, better = results
    assert (good, better) == (8, 9)
    assert (failure.index, failure.input) == (1, (1,))
    assert isinstance(failure.exception, TypeError)


def test_items_of_all_kinds(mapping: Mapping) -> None:
    items = [None, 1, "a", b"b", 1.5, (1, [2]), {"key": {3}}, [[]], range(3), square]
    assert list(mapping.map(same, items)) == items
    assert list(mapping.map(type, items)) == [type(item) for item in items]
    assert list(mapping.map(len, [(1, 2), (), (3,)])) == [2, 0, 1], "a tuple is one argument"
    assert list(mapping.map(str.upper, "abc")) == ["A", "B", "C"]
    assert sorted(mapping.map(square, {1, 2})) == [1, 4]
    assert list(mapping.map(str, {"a": 1})) == ["a"]


def test_it_is_an_iterator(mapping: Mapping) -> None:
    results = mapping.map(square, range(5))
    assert isinstance(results, mh.Results)
    assert iter(results) is results
    assert next(results) == 0
    assert list(itertools.islice(results, 2)) == [1, 4]
    assert results.list() == [9, 16]
    assert (list(results), results.list()) == ([], [])
    with pytest.raises(StopIteration):
        next(results)


def test_maps_within_maps_and_side_by_side(mapping: Mapping) -> None:
    assert list(mapping.map(str, mapping.map(square, range(500)))) == [str(n) for n in squares(500)]
    both = zip(mapping.map(square, range(300)), mapping.map(str, range(300)), strict=True)
    assert list(both) == [(n * n, str(n)) for n in range(300)]


# -------------------------------------------------------------------------------------- its options


def test_without_order(mapping: Mapping) -> None:
    assert sorted(mapping.map(square, range(2000), ordered=False)) == squares(2000)
    pairs = dict(mapping.map(square, range(2000), ordered=False).with_input())
    assert pairs == {n: n * n for n in range(2000)}


def test_without_order_nothing_waits_for_the_first(mapping: Mapping, gate: Gate) -> None:
    def first_waits(number: int) -> int:
        if number == 0:
            pass_through(gate.path)
        return number

    if not mapping.engine.parallel:
        gate.open()  # what waits holds everybody up
    results = mapping.map(first_waits, range(500), ordered=False)
    if mapping.engine.parallel:
        assert sorted(itertools.islice(results, 499)) == list(range(1, 500))
        gate.open()
        assert list(results) == [0]
    else:
        assert next(results) == 0
        assert sorted(results) == list(range(1, 500))


def test_in_order_though_the_first_comes_last(mapping: Mapping, gate: Gate) -> None:
    def first_waits(number: int) -> int:
        if number == 0:
            pass_through(gate.path)
        elif number == 9:
            gate_open(gate_path)
        return number

    # Whoever is at work on the last item lets the first one go on.
    gate_path = gate.path + ".last"
    if not mapping.engine.parallel:
        gate.open()
    results = mapping.map(first_waits, range(10))
    if mapping.engine.parallel:
        wait_for_file(gate_path)
        gate.open()
    assert list(results) == list(range(10))


def gate_open(path: str) -> None:
    Path(path).touch()


def wait_for_file(path: str) -> None:
    while not os.path.exists(path):
        threading.Event().wait(0.001)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 64, 1000])
@pytest.mark.parametrize("ordered", [True, False])
def test_buffersize(mapping: Mapping, size: int, ordered: bool) -> None:
    items = Counted(range(3000))
    results = mapping.map(square, items, buffersize=size, ordered=ordered)
    assert items.taken <= size
    got = []
    for result in results:
        got.append(result)
        # This one has been handed over.
        assert items.taken <= size + len(got)
    assert sorted(got) == squares(3000)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("ordered", [True, False])
def test_batch(mapping: Mapping, size: int, ordered: bool) -> None:
    def lengths(numbers: list[int]) -> list[tuple[int, int]]:
        assert type(numbers) is list
        return [(number, len(numbers)) for number in numbers]

    got = list(mapping.map(lengths, range(50), batch=size, ordered=ordered))
    assert [number for number, _ in (got if ordered else sorted(got))] == list(range(50))
    assert max(length for _, length in got) == min(size, 50)
    assert list(mapping.map(lengths, [], batch=size)) == []


def test_batches_of_several_iterables_and_of_starmap(mapping: Mapping) -> None:
    def sums(pairs: list[tuple[int, int]]) -> list[int]:
        return [sum(pair) for pair in pairs]

    assert list(mapping.map(sums, range(5), range(5), batch=2)) == [0, 2, 4, 6, 8]
    assert list(mapping.starmap(sums, zip(range(5), range(5), strict=True), batch=2)) == [
        0,
        2,
        4,
        6,
        8,
    ]


def test_batches_that_yield_and_with_input(mapping: Mapping) -> None:
    def twice(numbers: list[int]) -> Iterator[int]:
        for number in numbers:
            yield number
            yield number

    assert list(mapping.map(twice, range(3), batch=2)) == [0, 0, 1, 1, 2, 2]

    def each(numbers: list[int]) -> list[int]:
        return [number * number for number in numbers]

    pairs = list(mapping.map(each, range(7), batch=3).with_input())
    assert pairs == [(number, number * number) for number in range(7)]


def test_a_batch_of_the_wrong_length(mapping: Mapping) -> None:
    def one_less(numbers: list[int]) -> list[int]:
        return numbers[1:]

    failure, *rest = mapping.map(one_less, range(4), batch=4, on_error="return")
    assert rest == []
    assert isinstance(failure, mh.Failure)
    assert (failure.index, failure.input, failure.cause) == (0, [0, 1, 2, 3], "exception")
    text = str(failure.exception)
    assert "3" in text
    assert "4" in text
    with pytest.raises(type(failure.exception)):
        list(mapping.map(one_less, range(4), batch=4))


def test_failures_of_batches(mapping: Mapping) -> None:
    def picky(numbers: list[int]) -> list[int]:
        if 4 in numbers:
            raise ValueError(numbers)
        return numbers

    results = mapping.map(picky, range(9), batch=3, on_error="return")
    got = results.list()
    assert got[:3] + got[4:] == [0, 1, 2, 6, 7, 8]
    assert (got[3].index, got[3].input, got[3].attempts) == (1, [3, 4, 5], 1)
    assert (results.summary.total, results.summary.done, results.summary.failed) == (3, 3, 1)


@pytest.mark.parametrize("ordered", [True, False])
def test_generators_are_flattened(mapping: Mapping, ordered: bool) -> None:
    counts = [3, 0, 2, 1] * 20
    got = list(mapping.map(count_to, counts, ordered=ordered))
    expected = [number for count in counts for number in range(count)]
    assert (got if ordered else sorted(got)) == (expected if ordered else sorted(expected))
    pairs = list(mapping.map(count_to, counts).with_input())
    assert pairs == [(count, number) for count in counts for number in range(count)]
    assert list(mapping.map(lambda count: (n for n in range(count)), [2])) == [0, 1]
    summary = mapping.map(count_to, counts).run()
    assert (summary.total, summary.done) == (80, 80), "items, and not what they yielded"


def test_a_generator_that_raises_half_way(mapping: Mapping) -> None:
    def two_then_raise(number: int) -> Iterator[int]:
        yield number
        yield number
        if number == 1:
            raise ValueError("half-way")

    got = list(mapping.map(two_then_raise, range(3), on_error="return"))
    assert got[:4] == [0, 0, 1, 1]
    assert got[5:] == [2, 2]
    assert (got[4].index, got[4].input, str(got[4].exception)) == (1, 1, "half-way")
    results = mapping.map(two_then_raise, range(3))
    assert list(itertools.islice(results, 4)) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="half-way"):
        next(results)


def test_a_generator_that_is_left_half_way(mapping: Mapping) -> None:
    with mapping.map(count_to, [100_000]) as results:
        assert list(itertools.islice(results, 1000)) == list(range(1000))
    assert list(results) == []
    assert list(mapping.map(count_to, [2])) == [0, 1]


def test_iterators_that_are_no_generators_are_values(mapping: Mapping) -> None:
    assert [list(result) for result in mapping.map(iter, [[1], [2, 3]])] == [[1], [2, 3]]
    assert list(mapping.map(range, [2, 3])) == [range(2), range(3)]
    assert list(mapping.map(count_list, [2, 1])) == [[0, 1], [0]]


def count_list(number: int) -> list[int]:
    return list(range(number))


def test_chunksize_and_total_change_no_result(mapping: Mapping) -> None:
    assert list(mapping.map(square, range(100), chunksize=7)) == squares(100)
    results = mapping.map(square, iter(range(100)), total=200)
    assert results.summary.total == 200
    assert "of 200" in repr(results)
    assert results.run().total == 100, "what there was, and not what was said"


@pytest.mark.parametrize("on_error", ["skip", "return"])
def test_progress_is_told(mapping: Mapping, on_error: str) -> None:
    told: list[Any] = []
    list(mapping.map(odd_fail, range(10), on_error=on_error, progress=told.append))
    assert told
    last = told[-1]
    assert (last.done, last.total, last.failed) == (10, 10, 5)
    assert list(mapping.map(square, range(5), progress=False)) == squares(5)


def test_timeout(engine: Capabilities, gate: Gate) -> None:
    with mh.Pool(2, engine=engine.name) as pool:
        for timeout in (None, 1000, 1e30, float("inf")):
            assert list(pool.map(square, range(5), timeout=timeout)) == squares(5)
        if engine.background:
            results = pool.map(pass_through, [gate.path] * 3, timeout=0.01)
        else:
            # The clock is looked at between items.
            results = pool.map(square, itertools.count(), timeout=0.01)
        with pytest.raises(TimeoutError):
            list(results)
        assert list(results) == []
        gate.open()
        assert list(pool.map(square, range(5))) == squares(5)


# ----------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", ON_ERROR)
@pytest.mark.parametrize("taken_by", ["iteration", "list", "run"])
def test_on_error(mapping: Mapping, on_error: str, ordered: bool, taken_by: str) -> None:
    results = mapping.map(odd_fail, range(10), on_error=on_error, ordered=ordered)
    got: list[Any] = []
    caught: BaseException | None = None
    try:
        if taken_by == "iteration":
            for result in results:
                got.append(result)
        elif taken_by == "list":
            got = results.list()
        else:
            results.run()
    except (ValueError, ExceptionGroup) as error:
        caught = error
    if on_error == "raise":
        assert isinstance(caught, ValueError)
        if taken_by == "iteration" and ordered:
            assert got == [0]
        assert results.failures == []
        assert list(results) == []
        return
    assert [failure.index for failure in sorted(results.failures, key=index_of)] == [1, 3, 5, 7, 9]
    summary = results.summary
    assert (summary.total, summary.done, summary.failed) == (10, 10, 5)
    if on_error == "group":
        assert isinstance(caught, ExceptionGroup)
        assert caught.message == "5 of 10 items of odd_fail failed"
        assert list(caught.exceptions) == [failure.exception for failure in results.failures]
        if taken_by != "iteration":
            return
    else:
        assert caught is None
    if taken_by == "run":
        return
    failures = [result for result in got if isinstance(result, mh.Failure)]
    assert failures == (results.failures if on_error == "return" else [])
    values = [result for result in got if not isinstance(result, mh.Failure)]
    assert sorted(values) == [0, 2, 4, 6, 8]
    if ordered:
        assert values == sorted(values)
        if on_error == "return":
            assert [isinstance(result, mh.Failure) for result in got] == [False, True] * 5


def index_of(failure: mh.Failure) -> int:
    return failure.index


def test_a_failure(engine: Capabilities, mapping: Mapping) -> None:
    results = mapping.map(odd_fail, [0, 1], on_error="return")
    zero, failure = results
    assert zero == 0
    assert isinstance(failure, mh.Failure)
    assert results.failures == [failure]
    assert isinstance(failure.exception, ValueError)
    assert str(failure.exception) == "odd 1"
    assert (failure.index, failure.input, failure.attempts) == (1, 1, 1)
    assert failure.cause == "exception"
    assert (failure.pid == os.getpid()) == (not engine.own_pids)
    assert failure.pid > 0
    with pytest.raises(AttributeError):
        failure.index = 5
    found = failure.to_dict()
    assert json.loads(json.dumps(found)) == found
    fields = ["index", "type", "message", "traceback", "attempts", "pid", "cause", "output"]
    assert list(found) == fields
    assert found["output"] is None
    assert (found["type"], found["message"]) == ("ValueError", "odd 1")
    assert "in odd_fail" in found["traceback"]


def test_the_note_of_what_is_raised(engine: Capabilities, mapping: Mapping) -> None:
    results = mapping.map(fail_at_3, range(10))
    assert list(itertools.islice(results, 3)) == [0, 1, 4]
    with pytest.raises(ValueError, match="item 3") as caught:
        next(results)
    [note] = caught.value.__notes__
    assert note.startswith("manyhands: item 3: fail_at_3(3), in ")
    assert note.endswith(
        '; 3 of 10 items were done; on_error="return" goes on and gives failures in their place'
    )
    assert isinstance(caught.value.__cause__, mh.RemoteTraceback) == (not engine.own_exceptions)
    assert list(results) == [], "as a generator that has raised"


def test_what_is_raised_cancels_the_rest(engine: Capabilities, tmp_path: Path) -> None:
    def work(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        leave_trace(str(tmp_path), number)

    items = Counted(itertools.count())
    with mh.Pool(1, engine=engine.name) as pool:
        with pytest.raises(ValueError, match="three"):
            list(pool.map(work, items))
        settle(pool)
        ran = traces(tmp_path)
        assert ran[:3] == [0, 1, 2]
        assert len(ran) < items.taken <= MOST_ITEMS
        if not engine.background:
            assert (ran, items.taken) == ([0, 1, 2], 4), "nothing runs before it is asked for"
        assert pool.submit(square, 3).result() == 9


def base_exception(number: int) -> int:
    if number == 1:
        raise Fatal("no Exception")
    return number


@pytest.mark.parametrize("on_error", ON_ERROR)
def test_a_base_exception_of_the_tasks_own(mapping: Mapping, on_error: str) -> None:
    results = mapping.map(base_exception, range(3), on_error=on_error)
    if on_error == "raise":
        assert next(results) == 0
        with pytest.raises(Fatal):
            next(results)
    elif on_error == "group":
        with pytest.raises(BaseExceptionGroup) as caught:
            results.list()
        assert not isinstance(caught.value, ExceptionGroup)
        assert [type(error) for error in caught.value.exceptions] == [Fatal]
    else:
        assert len(results.list()) == (3 if on_error == "return" else 2)
        assert [type(failure.exception) for failure in results.failures] == [Fatal]


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt])
@pytest.mark.parametrize("on_error", ON_ERROR)
def test_what_would_end_the_program(
    mapping: Mapping, on_error: str, kind: type[BaseException]
) -> None:
    def ends(number: int) -> int:
        if number == 1:
            raise kind("now")
        return number

    results = mapping.map(ends, range(3), on_error=on_error)
    if kind is KeyboardInterrupt and mapping.engine.interrupts_caller:
        with pytest.raises(KeyboardInterrupt) as interrupted:
            results.list()
        assert "stopped after" in interrupted.value.__notes__[-1]
        assert results.failures == []
        assert list(results) == []
        return
    if on_error == "raise":
        assert next(results) == 0
        with pytest.raises(mh.RemoteError, match="kept from ending this program"):
            next(results)
        return
    if on_error == "group":
        with pytest.raises(ExceptionGroup):
            results.list()
    else:
        values = [value for value in results if not isinstance(value, mh.Failure)]
        assert values == [0, 2]
    [failure] = results.failures
    assert isinstance(failure.exception, mh.RemoteError)
    assert failure.exception.type_name == kind.__name__
    assert failure.cause == "exception"


def endless(number: int) -> int:
    return endless(number)


def test_a_recursion_without_end(mapping: Mapping) -> None:
    with pytest.raises(RecursionError):
        list(mapping.map(endless, range(3)))
    results = mapping.map(endless, range(3), on_error="skip")
    assert results.list() == []
    assert [type(failure.exception) for failure in results.failures] == [RecursionError] * 3


def stop(number: int) -> int:
    if number == 2:
        raise StopIteration(number)
    return number


def test_stop_iteration_does_not_look_like_the_end(mapping: Mapping) -> None:
    results = mapping.map(stop, range(5))
    assert list(itertools.islice(results, 2)) == [0, 1]
    with pytest.raises(RuntimeError, match=r"^stop raised StopIteration") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, StopIteration)
    got = list(mapping.map(stop, range(5), on_error="return"))
    assert [type(getattr(one, "exception", one)) for one in got] == [
        int,
        int,
        StopIteration,
        int,
        int,
    ]


def make_odd_unpicklable(number: int) -> Any:
    return Unpicklable() if number % 2 else number


def test_an_item_that_cannot_be_pickled_fails_alone(mapping: Mapping) -> None:
    bad = Unpicklable()
    results = mapping.map(type, [1, bad, 2, bad], on_error="skip")
    got = results.list()
    if not mapping.engine.copies:
        assert got == [int, Unpicklable, int, Unpicklable]
        return
    assert got == [int, int]
    assert [failure.index for failure in results.failures] == [1, 3]
    for failure in results.failures:
        assert isinstance(failure.exception, mh.NotPicklable)
        assert str(failure.exception) == "args[0].lock is a thread lock"
        assert failure.cause == "not_picklable"
        assert failure.input is bad
    with pytest.raises(mh.NotPicklable, match="is a thread lock"):
        list(mapping.map(type, [bad]))
    with pytest.raises(mh.NotPicklable, match=r"^args\[1\]\.lock is a thread lock"):
        list(mapping.starmap(collect, [(1, bad)]))


def test_a_result_that_cannot_be_pickled_fails_alone(mapping: Mapping) -> None:
    results = mapping.map(make_odd_unpicklable, range(4), on_error="skip")
    got = results.list()
    if not mapping.engine.copies:
        assert [type(value) for value in got] == [int, Unpicklable, int, Unpicklable]
        return
    assert got == [0, 2]
    for failure in results.failures:
        assert isinstance(failure.exception, mh.NotPicklable)
        assert str(failure.exception) == "the result.lock is a thread lock"
        assert (failure.cause, failure.input % 2, failure.attempts) == ("not_picklable", 1, 1)


def make_odd_explosive(number: int) -> Any:
    return Explodes() if number % 2 else number


def test_a_result_that_raises_when_it_is_unpickled_fails_alone(mapping: Mapping) -> None:
    results = mapping.map(make_odd_explosive, range(4), on_error="skip")
    got = results.list()
    if not mapping.engine.copies:
        assert [type(value) for value in got] == [int, Explodes, int, Explodes]
        return
    assert got == [0, 2]
    assert [failure.index for failure in results.failures] == [1, 3]
    for failure in results.failures:
        text = str(failure.exception)
        assert "it explodes" in text
        assert failure.attempts == 1


def test_an_item_that_raises_when_it_is_unpickled_fails_alone(mapping: Mapping) -> None:
    results = mapping.map(type, [1, Explodes(), 2], on_error="skip")
    got = results.list()
    if not mapping.engine.copies:
        assert got == [int, Explodes, int]
        return
    assert got == [int, int]
    [failure] = results.failures
    assert isinstance(failure.exception, LookupError)
    assert (failure.index, failure.cause) == (1, "exception")


def test_a_function_that_cannot_be_pickled(mapping: Mapping) -> None:
    lock = threading.Lock()
    function = functools.partial(try_lock, lock)
    if mapping.engine.copies_functions:
        with pytest.raises(mh.NotPicklable, match="is a thread lock"):
            list(mapping.map(function, [1]))
    else:
        assert list(mapping.map(function, [1, 2])) == [True, False]
        assert lock.locked()


def try_lock(lock: threading.Lock, _number: int) -> bool:
    return lock.acquire(blocking=False)


# ------------------------------------------------------------------------------- taking the results


def test_with_input(mapping: Mapping) -> None:
    items = [[number] for number in range(100)]
    results = mapping.map(len, items)
    for (item, result), original in zip(results.with_input(), items, strict=True):
        assert item is original
        assert result == 1
    assert list(mapping.map(pow, [2, 3], [3, 2]).with_input()) == [((2, 3), 8), ((3, 2), 9)]
    assert list(mapping.starmap(pow, [(2, 3), [3, 2]]).with_input()) == [((2, 3), 8), ((3, 2), 9)]
    pairs = list(mapping.map(odd_fail, [1, 2], on_error="return").with_input())
    assert pairs[1] == (2, 2)
    item, failure = pairs[0]
    assert (item, failure.input, failure.index) == (1, 1, 0)
    assert list(mapping.map(odd_fail, [1, 2], on_error="skip").with_input()) == [(2, 2)]
    late = mapping.map(square, range(5))
    next(late)
    with pytest.raises(TypeError, match="before the first result"):
        late.with_input()
    assert list(late) == [1, 4, 9, 16]


def test_run_and_summary(mapping: Mapping) -> None:
    results = mapping.map(odd_fail, iter(range(1000)), on_error="skip")
    assert results.summary.total is None
    assert dataclass_like(results.summary) == [
        "total",
        "done",
        "failed",
        "wall",
        "busy",
        "cpu",
        "sent",
        "received",
        "workers",
        "engine",
        "hints",
    ]
    summary = results.run()
    assert isinstance(summary, mh.Summary)
    assert (summary.total, summary.done, summary.failed) == (1000, 1000, 500)
    assert summary.engine == mapping.engine.name
    assert summary.workers == (2 if mapping.engine.background else 1)
    assert summary.wall > 0
    assert summary.busy >= 0
    assert summary.cpu >= 0
    # Bytes are counted where some are sent.
    assert (summary.sent > 0) == mapping.engine.own_pids
    assert (summary.received > 0) == mapping.engine.own_pids
    assert results.summary == summary, "the clock has stopped"
    assert results.run().done == 1000
    assert list(results) == []


def test_a_summary_stays_as_it_is(mapping: Mapping) -> None:
    for _ in range(300):
        results = mapping.map(square, iter(range(300)))
        summary = results.run()
        time.sleep(0.001)
        assert results.summary == summary


def test_processor_time(mapping: Mapping) -> None:
    """It tells items that compute from those that wait."""
    waiting = mapping.map(time.sleep, [0.01] * 20).run()
    assert waiting.busy > 0.1
    assert waiting.cpu < waiting.busy / 2
    computing = mapping.map(use_processor, [0.01] * 20).run()
    assert computing.cpu > 0.1
    large = mapping.map(use_processor_for, [(0.05, bytes(100_000))] * 4).run()
    assert large.cpu > 0.1


def use_processor_for(item: tuple[float, bytes]) -> None:
    use_processor(item[0])


def use_processor(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def dataclass_like(snapshot: object) -> list[str]:
    return list(type(snapshot).__slots__)  # type: ignore[attr-defined]


def test_close_and_the_context(mapping: Mapping) -> None:
    items = Counted(itertools.count())
    with mapping.map(square, items) as results:
        assert next(results) == 0
    taken = items.taken
    results.close()
    assert list(results) == []
    assert results.run().done == 1
    assert "nothing more comes" in repr(results)
    assert items.taken == taken
    with pytest.raises(ZeroDivisionError), mapping.map(square, itertools.count()) as results:
        raise ZeroDivisionError
    assert list(results) == []


def test_repr_says_where_it_is_and_what_to_do(mapping: Mapping) -> None:
    results = mapping.map(square, [1, 2, 3])
    assert repr(results) == (
        "<manyhands.Results of square: 0 of 3 taken; iterate it, or call .list() or .run()>"
    )
    next(results)
    assert "1 of 3 taken; go on iterating, or call .run() to finish" in repr(results)
    list(results)
    assert "3 of 3 taken; nothing more comes" in repr(results)
    endless = mapping.map(square, itertools.count())
    assert "of square: 0 taken; iterate" in repr(endless)
    assert list(itertools.islice(endless, 1234))[-1] == 1233**2
    assert "1,234 taken" in repr(endless)
    endless.close()
    assert "nothing more comes" in repr(endless)
    failing = mapping.map(int, ["1", "x", "y"], on_error="skip")
    assert failing.list() == [1]
    assert "3 of 3 taken, 2 failed" in repr(failing)


def test_await_and_async_for(mapping: Mapping) -> None:
    async def main() -> None:
        results = mapping.map(square, range(3000))
        assert await results == squares(3000)
        assert await results == []
        assert [result async for result in mapping.map(square, iter(range(3000)))] == squares(3000)
        assert await mapping.map(count_to, [2, 3]) == [0, 1, 0, 1, 2]
        with pytest.raises(ValueError, match="item 3"):
            await mapping.map(fail_at_3, range(10))
        got = []
        with pytest.raises(ValueError, match="item 3"):
            async for result in mapping.map(fail_at_3, range(10)):
                got.append(result)
        assert got == [0, 1, 4]
        failed = await mapping.map(odd_fail, range(4), on_error="return")
        assert [getattr(one, "index", None) for one in failed] == [None, 1, None, 3]
        pairs = [pair async for pair in mapping.map(square, [2, 3]).with_input()]  # type: ignore[attr-defined]
        assert pairs == [(2, 4), (3, 9)]

    asyncio.run(main())


def test_async_for_that_is_left_loses_nothing(mapping: Mapping) -> None:
    """Whoever goes on, by whatever means, finds what comes next."""

    async def main() -> None:
        results = mapping.map(square, range(5000))
        got = []
        async for result in results:
            got.append(result)
            if len(got) == 10:
                break
        gc.collect()
        await asyncio.sleep(0)
        async for result in results:
            got.append(result)
            if len(got) == 20:
                break
        got += itertools.islice(results, 10)
        got.append(next(results))
        async for result in results:
            got.append(result)
            if len(got) == 2000:
                break
        got += await results
        assert got == squares(5000)
        assert results.summary.done == 5000

    asyncio.run(main())


def test_several_threads_take_each_result_once(mapping: Mapping) -> None:
    results = mapping.map(square, iter(range(30_000)))
    taken: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=mine.extend, args=(results,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in taken)
    assert sorted(itertools.chain(*taken)) == squares(30_000)
    assert results.summary.done == 30_000


# -------------------------------------------------------------------------------------------- input


def test_input_is_taken_as_results_are(mapping: Mapping) -> None:
    items = Counted(itertools.count())
    with mapping.map(square, items) as results:
        if mapping.engine.background:
            assert 0 < items.taken <= FIRST_ITEMS, "the first start in the call"
        else:
            assert items.taken == 0, "whoever takes results runs them"
        assert list(itertools.islice(results, 10)) == squares(10)
        if mapping.engine.background:
            assert 10 <= items.taken <= MOST_ITEMS
        else:
            assert items.taken == 10
        taken = items.taken
        assert items.taken == taken
        assert list(itertools.islice(results, 2000)) == [n * n for n in range(10, 2010)]
        assert items.taken <= MOST_ITEMS + 2010


def test_the_first_items_start_in_the_call(mapping: Mapping, gate: Gate) -> None:
    if not mapping.engine.background:
        gate.open()
    results = mapping.map(pass_through, [gate.path], ["value"])
    if mapping.engine.background:
        gate.wait_arrivals()
        gate.open()
    assert list(results) == ["value"]


def test_the_input_is_taken_by_who_takes_results(mapping: Mapping) -> None:
    def items() -> Iterator[int]:
        for number in range(300):
            threads.add(threading.get_ident())
            yield number

    threads: set[int] = set()
    assert list(mapping.map(square, items())) == squares(300)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("before", [0, 1, 100, 300])
@pytest.mark.parametrize("on_error", ON_ERROR)
@pytest.mark.parametrize("ordered", [True, False])
def test_input_that_raises(mapping: Mapping, before: int, on_error: str, ordered: bool) -> None:
    """It is raised in its place, and whatever is done with failures of items."""

    def items() -> Iterator[int]:
        yield from range(before)
        raise LookupError("no more input")

    results = mapping.map(square, items(), on_error=on_error, ordered=ordered)
    got = []
    with pytest.raises(LookupError, match="no more input"):
        for result in results:
            got.append(result)
    assert sorted(got) == squares(before)
    assert list(results) == []
    assert results.failures == []


def test_input_that_interrupts(mapping: Mapping) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(mapping.map(square, items()))
    assert list(mapping.map(square, range(3))) == [0, 1, 4]


def test_input_that_uses_the_same_map(mapping: Mapping) -> None:
    def items() -> Iterator[int]:
        for number in range(20):
            yield from mapping.map(square, [number])

    assert list(mapping.map(square, items())) == [n**4 for n in range(20)]


def test_what_cannot_be_iterated(mapping: Mapping) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        mapping.map(square, 5)
    with pytest.raises(TypeError, match="not iterable"):
        mapping.map(pow, [1], None)
    with pytest.raises(TypeError, match="not iterable"):
        list(mapping.starmap(square, [5]))


# ----------------------------------------------------------------------------------- whose they are


def test_who_has_which_object(mapping: Mapping) -> None:
    rows = [[0], [0], [0]]
    results = list(mapping.map(append, rows))
    assert results == [[0, 1]] * 3
    if mapping.engine.copies:
        assert rows == [[0]] * 3
    else:
        assert [result is row for result, row in zip(results, rows, strict=True)] == [True] * 3


def test_one_object_in_many_items(mapping: Mapping) -> None:
    row = [0]
    lengths = [len(result) for result in mapping.map(append, [row] * 10)]
    if mapping.engine.copies:
        assert (lengths, row) == ([2] * 10, [0])
    else:
        assert len(row) == 11
        assert max(lengths) == 11


def test_a_row_that_the_input_uses_again(mapping: Mapping) -> None:
    """A copy is as the item was when it was taken; else it is the one row that there is."""

    def items() -> Iterator[list[int]]:
        for number in range(500):
            row[0] = number
            yield row

    row = [0]
    results = list(mapping.map(same, items()))
    if mapping.engine.copies:
        assert results == [[number] for number in range(500)]
    else:
        assert all(result is row for result in results)


def test_copy_false() -> None:
    for engine in ("thread", "inline"):
        row = [0]
        assert list(mh.map(append, [row] * 3, engine=engine, workers=2, copy=False)) == [row] * 3
        assert row == [0, 1, 2, 3]
        results = mh.map(type, [threading.Lock()], engine=engine, copy=False)
        assert list(results) == [type(threading.Lock())]


class Adder:
    def __init__(self) -> None:
        self.start = 10
        self.seen: list[int] = []

    def __call__(self, number: int) -> int:
        self.seen.append(number)
        return self.start + number


def test_what_a_function_holds(mapping: Mapping) -> None:
    adder = Adder()
    results = mapping.map(adder, iter(range(300)))
    adder.start = 1000
    got = results.list()
    if mapping.engine.copies_functions:
        assert got == [10 + number for number in range(300)], "as it was when the map was made"
        assert adder.seen == []
    else:
        assert [value % 10 for value in got] == [number % 10 for number in range(300)]
        assert got[-1] == 1299
        assert sorted(adder.seen) == list(range(300))


# ---------------------------------------------------------------------------- what nobody has taken


def test_a_dropped_map_of_the_module_warns(engine: Capabilities) -> None:
    lines = functools.partial(texts_of_warnings, __file__)
    start = functools.partial(mh.map, square, engine=engine.name, workers=2)
    taken = FIRST_ITEMS if engine.background else 0
    [text] = lines(lambda: start(range(1000)))
    assert text == (
        f"a map of square was never iterated: at least {1000 - taken:,} of its 1,000 items did "
        "not run. Iterate it, or call .run()"
    )
    counts = set()
    for _ in range(20):  # an input that was slow for a moment is left to wait earlier
        [text] = lines(lambda: start(itertools.count()))
        [count] = re.findall(r"what its input has after (\d+) items did not run", text)
        counts.add(int(count))
        if taken in counts:
            break
    assert max(counts) == taken
    [text] = lines(lambda: mh.starmap(square, [(1,)], engine=engine.name))
    assert "its 1 items" in text
    assert lines(lambda: start([])) == []
    assert lines(lambda: next(start(itertools.count()))) == []
    assert lines(lambda: start(range(1000)).close()) == []
    assert lines(lambda: start(range(1000)).run()) == []


@pytest.mark.parametrize("kept", [True, False])
def test_a_clean_end_of_the_block_finishes_what_nobody_has_taken(
    engine: Capabilities, tmp_path: Path, kept: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mh.Pool(2, engine=engine.name) as pool:
            results: Any = pool.map(leave_trace, itertools.repeat(str(tmp_path)), range(200))
            if not kept:
                del results
                gc.collect()
    assert traces(tmp_path) == list(range(200))
    if kept:
        assert list(results) == [None] * 200


@pytest.mark.parametrize("kept", [True, False])
def test_an_exception_cancels_what_nobody_has_taken(
    engine: Capabilities, tmp_path: Path, kept: bool
) -> None:
    items = Counted(range(10_000))
    with pytest.raises(ZeroDivisionError):
        with mh.Pool(2, engine=engine.name) as pool:
            results: Any = pool.map(leave_trace, itertools.repeat(str(tmp_path)), items)
            if not kept:
                del results
                gc.collect()
            raise ZeroDivisionError
    assert items.taken <= FIRST_ITEMS
    assert len(traces(tmp_path)) <= FIRST_ITEMS


def test_a_map_that_is_dropped_half_way_takes_no_more(engine: Capabilities) -> None:
    items = Counted(itertools.count())
    with mh.Pool(2, engine=engine.name) as pool:
        results = pool.map(square, items)
        assert next(results) == 0
        del results
        gc.collect()
        taken = items.taken
        settle(pool)
        assert items.taken == taken
        assert list(pool.map(square, range(3))) == [0, 1, 4]


# ----------------------------------------------------------------------------------- wrong keywords

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"max_workers": 4},
        TypeError,
        "map() has no max_workers=; workers belong to a pool: mh.Pool(4), or "
        "mh.map(..., workers=4)",
    ),
    (
        {"n_jobs": -1},
        TypeError,
        "map() has no n_jobs=; workers belong to a pool: mh.Pool(-1), or mh.map(..., workers=-1)",
    ),
    ({"chunk_size": 4}, TypeError, "map() has no chunk_size=; write chunksize="),
    ({"batch_size": 4}, TypeError, "map() has no batch_size=; write batch="),
    (
        {"return_exceptions": True},
        TypeError,
        'map() has no return_exceptions=; write on_error="ret',
    ),
    ({"number": 4}, TypeError, "number= is an argument of square, and map() takes its own option"),
    (
        {"buffrsize": 4},
        TypeError,
        "map() got an unexpected keyword argument 'buffrsize'; did you mean buffersize=?",
    ),
    (
        {"zzz": 4},
        TypeError,
        "map() got an unexpected keyword argument 'zzz'; its options are order",
    ),
    (
        {"on_error": "ignore"},
        ValueError,
        'on_error is one of "raise", "return", "skip", "group"; not \'ignore\'',
    ),
    ({"on_error": None}, ValueError, "on_error is one of"),
    ({"buffersize": 0}, ValueError, "buffersize must be at least 1, not 0"),
    ({"buffersize": 1.5}, TypeError, "buffersize must be a whole number, not float"),
    ({"batch": 0}, ValueError, "batch must be at least 1, not 0"),
    ({"batch": True}, TypeError, "batch must be a whole number, not bool"),
    ({"chunksize": -1}, ValueError, "chunksize must be at least 1, not -1"),
    ({"total": -1}, ValueError, "total must be at least 0, not -1"),
    ({"total": 2.5}, TypeError, "total must be a whole number, not float"),
    ({"total": "5"}, TypeError, "total must be a whole number, not str"),
    ({"total": True}, TypeError, "total must be a whole number, not bool"),
]


@pytest.mark.parametrize(("options", "kind", "text"), WRONG, ids=[next(iter(w[0])) for w in WRONG])
def test_wrong_keywords(
    mapping: Mapping, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """The same words on each engine, before anything was taken."""
    items = Counted(range(3))
    with pytest.raises(kind) as caught:
        mapping.map(square, items, **options)
    assert str(caught.value).startswith(text)
    assert items.taken == 0
    with pytest.raises(kind) as caught:
        mapping.starmap(square, zip(items, strict=True), **options)
    assert str(caught.value).startswith(text.replace("map() ", "starmap() "))


def test_timeout_is_for_pool_map_alone(mapping: Mapping) -> None:
    text = r"^starmap\(\) has no timeout=: it exists on Pool\.map alone$"
    with pytest.raises(TypeError, match=text):
        mapping.starmap(square, [(1,)], timeout=5)
    if isinstance(mapping.map, functools.partial):
        with pytest.raises(TypeError, match=r"^map\(\) has no timeout="):
            mapping.map(square, [1], timeout=5)


def test_bad_calls(mapping: Mapping) -> None:
    with pytest.raises(TypeError, match=r"^map\(\) needs at least one iterable besides the func"):
        mapping.map(square)
    text = r"^map\(\) takes the function first, then iterables; list is not callable$"
    with pytest.raises(TypeError, match=text):
        mapping.map([1, 2], square)
