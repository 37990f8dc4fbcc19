"""What `Results` promises: every item once, in its place, with its input; nothing kept or lost."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import gc
import itertools
import json
import os
import pickle
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, pass_through
from observing import Counted, settle, texts_of_warnings
from programs import output_of, program_test, run_file

EVERY_WAY = ["raise", "return", "skip", "group"]


def same(value: Any) -> Any:
    return value


def square(number: int) -> int:
    return number * number


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


class Stubborn:
    """Can be pickled in a worker, and interrupts who unpickles it elsewhere."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def __getstate__(self) -> Any:
        return {"parent": self.parent}

    def __setstate__(self, state: Any) -> None:
        if os.getpid() == state["parent"]:
            raise KeyboardInterrupt


class InterruptsPickling:
    def __getstate__(self) -> Any:
        raise KeyboardInterrupt


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has nothing to say")


class NoError(BaseException):
    pass


# --------------------------------------------------------------------------------- how it is taken


def test_run_gives_the_summary(pool: mh.Pool) -> None:
    results = pool.map(int, ["1", "x", "3"], on_error="skip")
    summary = results.run()
    assert (summary.total, summary.done, summary.failed) == (3, 3, 1)
    assert (summary.workers, summary.engine) == (2, "process")
    assert summary.wall > 0
    assert summary.sent > 0
    assert summary.received > 0
    assert results.run().done == 3
    assert results.summary.wall == summary.wall, "the clock stops with the last result"
    assert list(results) == []


class Odd:
    """Its length cannot be had."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


def test_input_whose_length_cannot_be_had(pool: mh.Pool) -> None:
    assert list(pool.map(square, Odd())) == [1, 4]
    with pool.map(square, range(10**30)) as results:
        assert next(results) == 0
    assert list(pool.map(pow, range(10**30), [2, 2])) == [0, 1]


def test_list_takes_what_is_left(pool: mh.Pool) -> None:
    results = pool.map(square, range(1000))
    assert next(results) == 0
    assert results.list() == [n * n for n in range(1, 1000)]
    assert results.list() == []


def test_close_twice_and_as_a_context(pool: mh.Pool) -> None:
    with pool.map(square, itertools.count()) as results:
        assert next(results) == 0
    results.close()
    results.close()
    assert list(results) == []
    assert results.run().done == 1
    with pytest.raises(ZeroDivisionError), pool.map(square, itertools.count()) as results:
        raise ZeroDivisionError
    assert list(results) == []
    settle(pool)


def test_nobody_makes_them_but_map() -> None:
    with pytest.raises(TypeError):
        mh.Results()
    with pytest.raises(TypeError):
        mh.Results(1, 2)


def test_they_are_not_copied(pool: mh.Pool) -> None:
    with pool.map(square, [1]) as results, pytest.raises(TypeError):
        pickle.dumps(results)


def test_no_items(pool: mh.Pool) -> None:
    for results in (
        pool.map(square, []),
        pool.map(square, iter(())),
        pool.starmap(square, []),
        pool.map(square, [], batch=3),
        pool.map(square, [], ordered=False),
        pool.map(square, [], on_error="group"),
        pool.map(square, [], buffersize=1),
    ):
        assert list(results) == []
        assert results.summary.total == 0
    assert list(pool.map(square, []).with_input()) == []


def test_close_from_another_thread_ends_the_wait(pool: mh.Pool, gate: Gate) -> None:
    results = pool.map(pass_through, [gate.path] * 20)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(results))
    thread.start()
    gate.wait_arrivals()
    results.close()
    thread.join()
    assert got == []
    gate.open()
    settle(pool)


def test_the_input_cannot_take_close_or_list_the_map_itself(pool: mh.Pool) -> None:
    maps: dict[str, Any] = {}

    def items(method: str) -> Iterator[int]:
        yield from range(200)
        getattr(maps[method], method)()

    for method in ("__next__", "list", "run", "close"):
        maps[method] = pool.map(square, items(method))
        with pytest.raises(RuntimeError, match="from the map itself"):
            list(maps[method])


def test_input_that_uses_the_same_pool(pool: mh.Pool) -> None:
    def items() -> Iterator[int]:
        for number in range(200):
            yield pool.submit(square, number).result()
        yield from pool.map(square, range(100))

    expected = [n**4 for n in range(200)] + [n**4 for n in range(100)]
    assert list(pool.map(square, items())) == expected


def test_a_child_of_fork_has_no_part_in_it(pool: mh.Pool) -> None:
    results = pool.map(square, itertools.count())
    next(results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            for _ in results:
                pass
        except RuntimeError as error:
            results.close()
            os._exit(0 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert list(itertools.islice(results, 100)) == [n * n for n in range(1, 101)]
    results.close()


# -------------------------------------------------------------------------------------- with_input


@pytest.mark.parametrize("ordered", [True, False])
def test_with_input(pool: mh.Pool, ordered: bool) -> None:
    pairs = list(pool.map(square, iter(range(5000)), ordered=ordered).with_input())
    assert sorted(pairs) == [(n, n * n) for n in range(5000)]
    if ordered:
        assert pairs == sorted(pairs)


def test_with_input_of_generators(pool: mh.Pool) -> None:
    def count(number: int) -> Iterator[int]:
        yield from range(number)

    for ordered in (True, False):
        pairs = list(pool.map(count, [3, 0, 2, 1] * 50, ordered=ordered).with_input())
        expected = [(n, k) for n in [3, 0, 2, 1] * 50 for k in range(n)]
        assert sorted(pairs) == sorted(expected)
        if ordered:
            assert pairs == expected


def test_with_input_of_batches(pool: mh.Pool) -> None:
    def squares(numbers: list[int]) -> list[int]:
        return [n * n for n in numbers]

    assert list(pool.map(squares, range(10), batch=4).with_input()) == [
        (n, n * n) for n in range(10)
    ]
    pairs = list(pool.map(squares, range(1000), batch=7, ordered=False).with_input())
    assert sorted(pairs) == [(n, n * n) for n in range(1000)]


def test_with_input_and_failures(pool: mh.Pool) -> None:
    for ordered in (True, False):
        results = pool.map(int, ["1", "x", "3"] * 30, on_error="return", ordered=ordered)
        for item, result in results.with_input():
            if item == "x":
                assert isinstance(result, mh.Failure)
                assert result.input == "x"
            else:
                assert result == int(item)
    results = pool.map(int, ["1", "x", "3"], on_error="skip")
    assert list(results.with_input()) == [("1", 1), ("3", 3)]


def test_inputs_are_not_kept_for_nobody(pool: mh.Pool) -> None:
    class Item:
        pass

    def items() -> Iterator[Item]:
        for _ in range(500):
            item = Item()
            seen.append(weakref.ref(item))
            yield item

    for with_input in (False, True):
        seen: list[weakref.ref[Item]] = []
        results: Any = pool.map(lambda item: 1, items())
        if with_input:
            results = results.with_input()
        for _ in results:
            del _
            alive = sum(ref() is not None for ref in seen)
            assert not with_input or alive <= len(seen) - results.summary.done + 1
        assert all(ref() is None for ref in seen[:-1])


# ------------------------------------------------------------------------------------ asynchronous


def test_async_for_lets_others_run(pool: mh.Pool, gate: Gate) -> None:
    async def main() -> None:
        async def open_later() -> None:
            await asyncio.sleep(0.01)
            gate.open()

        opener = asyncio.create_task(open_later())
        results = pool.map(pass_through, [gate.path] * 3, [1, 2, 3])
        assert [result async for result in results] == [1, 2, 3]
        await opener

    asyncio.run(main())


def test_async_for_gives_what_came_before_an_exception(pool: mh.Pool) -> None:
    def work(number: int) -> float:
        return 1 / (number - 40)

    async def main() -> None:
        results = pool.map(work, range(50))
        settle(pool)  # so that good and bad ones come at once
        got = []
        with pytest.raises(ZeroDivisionError):
            async for result in results:
                got.append(result)
        assert len(got) == 40
        assert [result async for result in results] == []
        with pytest.raises(ZeroDivisionError):
            await pool.map(work, range(50))

    asyncio.run(main())


def test_async_for_with_inputs_failures_and_batches(pool: mh.Pool) -> None:
    async def main() -> None:
        results = pool.map(int, ["1", "x"], on_error="return").with_input()
        (_, one), (item, failure) = [pair async for pair in results]  # type: ignore[attr-defined]
        assert (one, item, failure.index) == (1, "x", 1)
        assert await pool.map(sorted, range(10), batch=3) == list(range(10))
        with pytest.raises(ExceptionGroup) as caught:
            await pool.map(int, "1x2y", on_error="group")
        assert len(caught.value.exceptions) == 2

    asyncio.run(main())


def test_cancelled_in_the_middle(pool: mh.Pool, gate: Gate) -> None:
    def work(number: int) -> int:
        if number == 100:
            pass_through(gate.path)
        return number

    async def main() -> None:
        items = Counted(itertools.count())
        results = pool.map(work, items)
        got: list[int] = []

        async def take() -> None:
            async for result in results:
                got.append(result)

        task = asyncio.create_task(take())
        while len(got) < 100:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(gate.wait_arrivals)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert got == list(range(100))
        assert "nothing more comes" in repr(results)
        assert [result async for result in results] == []
        assert await results == []
        taken = items.taken
        gate.open()
        while pool.stats().pending:
            await asyncio.sleep(0.001)
        assert items.taken == taken
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.map(time.sleep, [0.5] * 4), 0.01)

    asyncio.run(main())
    settle(pool)


@pytest.mark.parametrize("engine", ["process", "thread"])
@pytest.mark.parametrize("ordered", [True, False])
def test_async_for_gives_what_is_there(gate: Gate, engine: str, ordered: bool) -> None:
    """What comes next may take long, or be left out: it holds up nothing before it."""

    def work(number: int) -> int:
        if number == 1:
            raise ValueError(number)
        if number == 2:
            pass_through(gate.path)
        return number

    async def main(pool: mh.Pool) -> None:
        results = pool.map(work, range(3), ordered=ordered, on_error="skip")
        gate.wait_arrivals()  # with one worker, all before has ended
        assert await asyncio.wait_for(anext(results), 20) == 0
        results.close()

    with mh.Pool(1, engine=engine) as pool:
        asyncio.run(main(pool))
        gate.open()


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_async_for_gives_what_is_there_of_batches(gate: Gate, engine: str) -> None:
    def work(numbers: list[int]) -> list[int]:
        if numbers == [3]:
            pass_through(gate.path)
        yields = {0: [0], 1: [], 2: [], 3: [3]}
        return yields[numbers[0]]

    def stream(numbers: list[int]) -> Iterator[int]:
        yield from work(numbers)

    async def main(pool: mh.Pool) -> None:
        results = pool.map(stream, range(4), batch=1)
        gate.wait_arrivals()
        assert await asyncio.wait_for(anext(results), 20) == 0
        results.close()

    with mh.Pool(1, engine=engine) as pool:
        asyncio.run(main(pool))
        gate.open()


def test_async_for_leaves_no_threads(pool: mh.Pool) -> None:
    def waiting() -> int:
        return sum(thread.name.startswith("manyhands-results") for thread in threading.enumerate())

    async def main() -> None:
        assert len(await pool.map(square, range(10))) == 10
        async for _ in pool.map(square, itertools.count()):
            break

    asyncio.run(main())
    gc.collect()
    while waiting():
        time.sleep(0.001)
    settle(pool)


def test_several_tasks_take_each_result_once(pool: mh.Pool) -> None:
    async def main() -> None:
        results = pool.map(square, range(5000))

        async def take() -> list[int]:
            return [result async for result in results]

        taken = await asyncio.gather(*[take() for _ in range(4)])
        assert sorted(itertools.chain(*taken)) == [n * n for n in range(5000)]

    asyncio.run(main())


# -------------------------------------------------------------------------------------- failures


def failing(kind: str) -> tuple[Callable[[Any], Any], list[Any], str]:
    """A function and items of which every seventh fails, and the cause."""
    items: list[Any] = list(range(70))
    bad: Any = -1
    function: Callable[[Any], Any]
    if kind == "raises":

        def function(item: Any) -> Any:
            if item == -1:
                raise ValueError(item)
            return item

        cause = "exception"
    elif kind == "exits":

        def function(item: Any) -> Any:
            if item == -1:
                os._exit(5)
            return item

        cause = "exit"
    elif kind == "killed":

        def function(item: Any) -> Any:
            if item == -1:
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        cause = "signal"
    elif kind == "item":
        function, bad, cause = same, threading.Lock(), "not_picklable"
    elif kind == "fatal item":
        function, bad, cause = same, Fatal(), "exit"
    elif kind == "result":

        def function(item: Any) -> Any:
            return threading.Lock() if item == -1 else item

        cause = "not_picklable"
    else:

        def function(item: Any) -> Any:
            def stream() -> Iterator[Any]:
                if item == -1:
                    raise ValueError(item)
                yield item

            return stream()

        cause = "exception"
    for index in range(3, 70, 7):
        items[index] = bad
    return function, items, cause


FAILURES = ["raises", "exits", "killed", "item", "fatal item", "result", "yields"]


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", EVERY_WAY)
def test_each_failure_costs_its_item_alone(
    pool: mh.Pool, kind: str, ordered: bool, on_error: str
) -> None:
    function, items, cause = failing(kind)
    bad = list(range(3, 70, 7))
    good = [item for index, item in enumerate(items) if index not in bad]
    results = pool.map(function, items, ordered=ordered, on_error=on_error)
    got: list[Any] = []
    caught: BaseException | None = None
    try:
        for result in results:
            got.append(result)
    except Exception as error:
        caught = error
    assert list(results) == []
    if on_error == "raise":
        assert caught is not None
        assert not isinstance(caught, ExceptionGroup)
        assert set(got) <= set(good)
        if ordered:
            assert got == [0, 1, 2]
            assert any("item 3" in note for note in caught.__notes__), caught.__notes__
        assert results.failures == []
        settle(pool)
        return
    failures = list(results.failures)
    assert sorted(failure.index for failure in failures) == bad
    assert {failure.cause for failure in failures} == {cause}
    if on_error == "return":
        assert caught is None
        assert sorted(got, key=lambda result: getattr(result, "index", -1))[-10:] == sorted(
            failures, key=lambda failure: failure.index
        )
        if ordered:
            assert [isinstance(result, mh.Failure) for result in got] == [
                index in bad for index in range(70)
            ]
        got = [result for result in got if not isinstance(result, mh.Failure)]
    elif on_error == "skip":
        assert caught is None
    else:
        assert isinstance(caught, ExceptionGroup)
        assert [id(error) for error in caught.exceptions] == [id(f.exception) for f in failures]
        assert "10 of 70 items of" in str(caught)
    assert sorted(got) == good
    if ordered:
        assert got == good
    for failure in failures:
        if kind == "item":
            assert failure.input is items[3]
            assert (failure.attempts, failure.pid) == (0, 0)
        elif kind == "fatal item":
            assert failure.input is None, "to unpickle it would end this process"
            assert failure.attempts == 1
        else:
            assert failure.input == -1
            assert failure.attempts == 1
            assert failure.pid > 0
        assert failure.exception.__traceback__ is None or failure.exception.__traceback__
        json.dumps(failure.to_dict())
    summary = results.summary
    assert (summary.total, summary.done, summary.failed) == (70, 70, 10)


def test_a_failure_does_not_change(pool: mh.Pool) -> None:
    [failure] = pool.map(int, ["x"], on_error="return")
    assert isinstance(failure, mh.Failure)
    with pytest.raises(AttributeError, match="snapshot"):
        failure.index = 5  # type: ignore[misc]
    with pytest.raises(AttributeError, match="snapshot"):
        del failure.input
    with pytest.raises(AttributeError):
        failure.more = 1  # type: ignore[attr-defined]
    assert "ValueError" in repr(failure)
    again = pickle.loads(pickle.dumps(failure))
    assert (again.index, again.input, again.cause) == (0, "x", "exception")
    assert failure.to_dict() == {
        "index": 0,
        "type": "ValueError",
        "message": "invalid literal for int() with base 10: 'x'",
        "traceback": failure.to_dict()["traceback"],
        "output": None,
        "attempts": 1,
        "pid": failure.pid,
        "cause": "exception",
    }
    assert "RemoteTraceback" in failure.to_dict()["traceback"]


def test_a_failure_with_an_exception_that_has_no_text(pool: mh.Pool) -> None:
    def work(number: int) -> None:
        raise Silent(number)

    [failure] = pool.map(work, [1], on_error="return")
    told = failure.to_dict()  # type: ignore[attr-defined]
    assert json.dumps(told)
    assert told["message"] == "<its str() raised RuntimeError>"


def test_a_failure_with_surrogates(pool: mh.Pool) -> None:
    def work(text: str) -> None:
        raise ValueError(text)

    [failure] = pool.map(work, ["\udcff"], on_error="return")
    assert json.loads(json.dumps(failure.to_dict()))["message"] == "\udcff"  # type: ignore[attr-defined]


def test_a_group_of_all_kinds(pool: mh.Pool) -> None:
    def work(number: int) -> int:
        if number == 1:
            raise ValueError(number)
        if number == 2:
            raise NoError(number)
        if number == 3:
            raise SystemExit(number)
        if number == 4:
            raise KeyboardInterrupt
        if number == 5:
            raise asyncio.CancelledError
        if number == 6:
            raise StopIteration(number)
        if number == 7:
            raise GeneratorExit
        return number

    results = pool.map(work, range(9), on_error="group")
    with pytest.raises(BaseExceptionGroup) as caught:
        list(results)
    assert not isinstance(caught.value, ExceptionGroup)
    assert [type(error) for error in caught.value.exceptions] == [
        ValueError,
        NoError,
        mh.RemoteError,
        mh.RemoteError,
        asyncio.CancelledError,
        StopIteration,
        mh.RemoteError,
    ]
    assert [failure.cause for failure in results.failures] == ["exception"] * 7
    assert str(caught.value).startswith("7 of 9 items of ")


def test_what_the_function_raises_is_its_own_exception(pool: mh.Pool) -> None:
    """Also where it looks like what befalls tasks: the function may use pools itself."""

    def work(number: int) -> None:
        raise [concurrent.futures.CancelledError(), mh.WorkerDied("inner", cause="signal")][number]

    failures: Any = list(pool.map(work, [0, 1], on_error="return"))
    assert [failure.cause for failure in failures] == ["exception"] * 2
    assert all(failure.pid for failure in failures)


def test_items_that_are_cancelled_with_their_pool(gate: Gate) -> None:
    pool = mh.Pool(1)
    results = pool.map(pass_through, [gate.path] * 20, range(20), on_error="return")
    gate.wait_arrivals()
    pool.shutdown(wait=False, cancel_futures=True)
    gate.open()
    first, *others = results
    assert first == 0
    assert [failure.index for failure in others] == list(range(1, 20))
    assert {failure.cause for failure in others} == {"cancelled"}
    assert {failure.attempts for failure in others} == {0}


def test_failures_are_kept_up_to_a_bound(pool: mh.Pool) -> None:
    results = pool.map(int, itertools.repeat("x", 12_000), on_error="skip")
    assert results.run().failed == 12_000
    assert len(results.failures) == 10_000
    assert [failure.index for failure in results.failures] == list(range(10_000))


def test_the_note_shows_the_item_also_where_its_result_was_the_problem(pool: mh.Pool) -> None:
    def stream(number: int) -> Iterator[int]:
        yield number
        raise ValueError(number)

    for work in (stream, lambda number: threading.Lock()):
        with pytest.raises((ValueError, mh.NotPicklable)) as caught:
            list(pool.map(work, [41]))
        assert "(41), in worker" in caught.value.__notes__[-1]


@pytest.mark.parametrize("on_error", EVERY_WAY)
def test_a_ctrl_c_is_nobodys_failure(pool: mh.Pool, on_error: str) -> None:
    """It may come while an item is pickled, a result is unpickled or the input runs."""

    def items() -> Iterator[int]:
        yield from range(100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(pool.map(Stubborn, [os.getpid()] * 3, on_error=on_error))
    with pytest.raises(KeyboardInterrupt):
        list(pool.map(Stubborn, [os.getpid(), bytes(20_000)], on_error=on_error))
    with pytest.raises(KeyboardInterrupt):
        list(pool.map(same, [1, InterruptsPickling(), 2], on_error=on_error))
    with pytest.raises(KeyboardInterrupt):
        list(pool.map(same, itertools.chain(range(200), [InterruptsPickling()]), on_error=on_error))
    with pytest.raises(KeyboardInterrupt):
        list(pool.map(same, items(), on_error=on_error))
    with pytest.raises(KeyboardInterrupt):
        pool.map(same, itertools.chain([1], (items() for _ in ()), _interrupting()))
    assert list(pool.map(square, [3])) == [9]


def _interrupting() -> Iterator[int]:
    raise KeyboardInterrupt
    yield 0


@program_test
def test_a_ctrl_c_ends_what_runs_and_hits_no_other_map() -> None:
    folder = Path("held")
    folder.mkdir()

    def hold(n):
        Path(folder, str(os.getpid())).touch()
        time.sleep(600)

    def interrupt():
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)

    with mh.Pool(2) as pool:
        other = pool.map(lambda n: n * n, range(5000))
        threading.Thread(target=interrupt).start()
        try:
            list(pool.map(hold, range(100)))
        except KeyboardInterrupt as interruption:
            print(interruption.__notes__)
        else:
            raise AssertionError
        assert list(other) == [n * n for n in range(5000)]
        assert list(pool.map(abs, range(100))) == list(range(100))
        assert pool.stats().deaths == 0, "nobody's fault"
        while pool.stats().pending:
            time.sleep(0.001)


def test_a_broken_pool_ends_endless_input() -> None:
    def initialize() -> None:
        raise ValueError("the initializer's own")

    with mh.Pool(1, initializer=initialize) as pool:
        with pytest.raises(ValueError, match="the initializer's own"):
            list(pool.map(square, itertools.count(), on_error="skip"))


def test_bad_options(pool: mh.Pool) -> None:
    with pytest.raises(ValueError, match='"raise", "return", "skip", "group"'):
        pool.map(square, [1], on_error="ignore")
    for name in ("batch", "buffersize", "chunksize"):
        for value in (0, -1, 1.5, True):
            with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
                pool.map(square, [1], **{name: value})  # type: ignore[call-overload]


# ----------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 100])
@pytest.mark.parametrize("ordered", [True, False])
def test_batches(pool: mh.Pool, size: int, ordered: bool) -> None:
    def work(numbers: list[int]) -> list[int]:
        assert type(numbers) is list
        assert 1 <= len(numbers) <= size
        return [n * n for n in numbers]

    results = pool.map(work, iter(range(50)), batch=size, ordered=ordered)
    assert sorted(results) == [n * n for n in range(50)]
    summary = results.summary
    assert summary.total == summary.done == -(-50 // size), "an item is a batch"


def test_batches_of_several_iterables(pool: mh.Pool) -> None:
    def work(rows: list[Any]) -> list[Any]:
        return [repr(row) for row in rows]

    assert list(pool.map(work, [1, 2, 3], [4, 5, 6], batch=2)) == ["(1, 4)", "(2, 5)", "(3, 6)"]
    assert list(pool.starmap(work, [(1, 4), [2, 5]], batch=2)) == ["(1, 4)", "(2, 5)"]


@pytest.mark.parametrize("make", [tuple, iter, dict.fromkeys, lambda numbers: map(abs, numbers)])
def test_batches_may_come_back_as_any_iterable_that_travels(
    pool: mh.Pool, make: Callable[[list[int]], Any]
) -> None:
    assert list(pool.map(make, range(10), batch=4)) == list(range(10))


def test_batches_that_yield(pool: mh.Pool) -> None:
    """What a generator yields are results, as many as it likes."""

    def stream(numbers: list[int]) -> Iterator[int]:
        for number in numbers:
            if number % 2:
                yield number

    assert list(pool.map(stream, range(10), batch=4)) == [1, 3, 5, 7, 9]
    assert sorted(pool.map(stream, range(100), batch=4, ordered=False)) == list(range(1, 100, 2))
    assert list(pool.map(stream, range(4), batch=2).with_input()) == [([0, 1], 1), ([2, 3], 3)]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("with_input", [True, False])
def test_failures_of_batches(pool: mh.Pool, ordered: bool, with_input: bool) -> None:
    """A batch is an item: the index of its failure counts batches, and its input is the list."""

    def work(numbers: list[int]) -> Any:
        match numbers[0]:
            case 2:
                raise ValueError(numbers)
            case 4:
                return numbers[:1]
            case 6:
                return 6
            case 8:
                os._exit(1)
            case 10:
                return [threading.Lock(), 1]
            case 12:
                return [12, 13, 14]
        return numbers

    results: Any = pool.map(work, range(15), batch=2, on_error="return", ordered=ordered)
    taken = list(results.with_input() if with_input else results)
    failures = {failure.index: failure for failure in results.failures}
    assert sorted(failures) == [1, 2, 3, 4, 5, 6]
    assert [failures[index].input for index in range(1, 7)] == [
        [2 * index, 2 * index + 1] for index in range(1, 7)
    ]
    assert [type(failures[index].exception) for index in range(1, 7)] == [
        ValueError,
        ValueError,
        TypeError,
        mh.WorkerDied,
        mh.NotPicklable,
        ValueError,
    ]
    assert "it returned 1 for a batch of 2" in str(failures[2].exception)
    assert "returns a list of as many results, not int" in str(failures[3].exception)
    assert "it returned 3 for a batch of 2" in str(failures[6].exception)
    if with_input:
        assert all(result.input == item for item, result in taken if isinstance(result, mh.Failure))
        taken = [result for _, result in taken]
    assert sorted(result for result in taken if isinstance(result, int)) == [0, 1, 14]
    assert results.summary.failed == 6


def test_a_last_batch_of_the_wrong_length(pool: mh.Pool) -> None:
    def work(numbers: list[int]) -> list[int]:
        return [0] * 3

    results = pool.map(work, range(8), batch=3, on_error="return")
    *good, failure = results
    assert good == [0] * 6
    assert "it returned 3 for a batch of 2" in str(failure.exception)  # type: ignore[attr-defined]


def test_a_batch_that_raises_ends_the_map(pool: mh.Pool) -> None:
    results = pool.map(lambda numbers: 5, range(100), batch=2)
    with pytest.raises(TypeError, match="not int") as caught:
        next(results)
    assert "item 0" in caught.value.__notes__[-1]
    assert list(results) == []
    settle(pool)


# -------------------------------------------------------------------------- what generators yield


@pytest.mark.parametrize("ordered", [True, False])
def test_what_a_task_yields_streams(pool: mh.Pool, gate: Gate, ordered: bool) -> None:
    def stream(path: str) -> Iterator[int]:
        yield 1
        yield 2
        pass_through(path)
        yield 3

    results = pool.map(stream, [gate.path], ordered=ordered)
    assert [next(results), next(results)] == [1, 2]  # while the task goes on
    gate.open()
    assert list(results) == [3]
    assert results.summary.done == 1


def test_generators_that_yield_nothing_or_raise(pool: mh.Pool) -> None:
    def stream(number: int) -> Iterator[int]:
        yield from range(number)
        if number % 3 == 2:
            raise ValueError(number)

    for ordered in (True, False):
        results = pool.map(stream, range(60), on_error="return", ordered=ordered)
        taken = list(results)
        values = [result for result in taken if not isinstance(result, mh.Failure)]
        assert sorted(values) == sorted(k for n in range(60) for k in range(n))
        assert sorted(f.index for f in results.failures) == list(range(2, 60, 3))
        assert all(f.input == f.index for f in results.failures)
        assert results.summary.done == 60
        if ordered:
            assert values == [k for n in range(60) for k in range(n)]
    results = pool.map(stream, [0] * 500)
    assert list(results) == []
    assert results.summary.done == 500


def test_generators_with_results_of_all_sizes(pool: mh.Pool) -> None:
    sizes = [0, 1, 15_000, 16_384, 17_000, 60_000, 2_000_000]

    def stream(number: int) -> Iterator[bytes]:
        for size in sizes[number % 3 :]:
            yield bytes([number]) * size

    expected = [(n, size) for n in range(30) for size in sizes[n % 3 :]]
    taken = list(pool.map(stream, range(30)))
    assert [len(data) for data in taken] == [size for _, size in expected]
    assert all(data == bytes([n]) * size for data, (n, size) in zip(taken, expected, strict=True))


def test_a_worker_that_dies_between_two_yields(pool: mh.Pool) -> None:
    def stream(number: int) -> Iterator[int]:
        yield number
        if number % 10 == 5:
            os._exit(1)
        yield number

    for ordered in (True, False):
        results = pool.map(stream, range(50), on_error="return", ordered=ordered)
        counts = collections.Counter(
            result for result in results if not isinstance(result, mh.Failure)
        )
        assert counts == {n: 1 if n % 10 == 5 else 2 for n in range(50)}
        assert sorted(f.index for f in results.failures) == [5, 15, 25, 35, 45]


# ------------------------------------------------------------------------------------ the window


def test_buffersize_counts_batches(pool: mh.Pool) -> None:
    items = Counted(range(200))
    results = pool.map(same, items, batch=10, buffersize=2)
    assert items.taken <= 20
    for count, _ in enumerate(results, 1):
        assert items.taken <= 20 + 10 * -(-count // 10)


def test_the_window_while_the_first_item_waits(pool: mh.Pool, gate: Gate) -> None:
    def work(number: int) -> int:
        if number == 0:
            pass_through(gate.path)
        return number

    items = Counted(range(2000))
    results = pool.map(work, items, buffersize=50)
    gate.wait_arrivals()
    thread = threading.Timer(0.3, gate.open)
    thread.start()
    assert next(results) == 0
    assert items.taken <= 51
    assert list(results) == list(range(1, 2000))


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
@pytest.mark.parametrize("on_error", EVERY_WAY)
def test_the_time_is_up(pool: mh.Pool, gate: Gate, timeout: Any, on_error: Any) -> None:
    results = pool.map(pass_through, [gate.path] * 9, timeout=timeout, on_error=on_error)
    with pytest.raises(TimeoutError):
        list(results)
    assert list(results) == []
    gate.open()
    settle(pool)


# ------------------------------------------------------------------------------- no order, deaths


@pytest.mark.parametrize("ordered", [True, False])
def test_nothing_is_lost_when_work_moves_and_workers_die(ordered: bool) -> None:
    def work(number: int) -> int:
        if number % 500 == 250:
            time.sleep(0.02)  # what is behind it moves to others
        if number % 1000 == 999:
            os._exit(1)
        return number

    with mh.Pool(3) as pool:
        list(pool.map(square, range(5000)))  # blocks are large from the beginning
        results = pool.map(work, range(10_000), on_error="return", ordered=ordered)
        taken = [r.index if isinstance(r, mh.Failure) else r for r in results]
        assert sorted(taken) == list(range(10_000))
        if ordered:
            assert taken == sorted(taken)
        assert sorted(f.index for f in results.failures) == list(range(999, 10_000, 1000))
        assert all(f.input == f.index for f in results.failures)
        assert pool.stats().deaths == 10


# ------------------------------------------------------------------------------- what nobody takes


def test_a_map_of_the_default_pool_that_nobody_takes_warns() -> None:
    lines = functools.partial(texts_of_warnings, __file__)
    [text] = lines(lambda: mh.map(square, range(1000)))
    assert text == (
        "a map of square was never iterated: at least 936 of its 1,000 items did not run. "
        "Iterate it, or call .run()"
    )
    [text] = lines(lambda: mh.map(square, itertools.count()))
    assert "what its input has after 64 items did not run" in text
    [text] = lines(lambda: mh.map(square, list(range(64))))
    assert "the results of its 64 items are lost, and some may not have run" in text
    [text] = lines(lambda: mh.starmap(square, [(1,)]))
    assert "the results of its 1 items are lost" in text
    [text] = lines(lambda: mh.map(square, [1]).with_input())
    assert "lost" in text
    assert lines(lambda: mh.map(square, [])) == []
    assert lines(lambda: next(mh.map(square, itertools.count()))) == []
    assert lines(lambda: mh.map(square, range(1000)).close()) == []
    assert lines(lambda: mh.map(square, range(1000)).run()) == []
    assert lines(lambda: asyncio.run(_gather(mh.map(square, [1])))) == []


async def _gather(results: Any) -> Any:
    return await results


def test_the_end_of_a_program_warns_too(tmp_path: Path) -> None:
    ended = run_file(
        tmp_path,
        """
        import manyhands as mh
        results = mh.map(abs, range(1000))
        more = mh.map(abs, range(10))
        more.close()
        used = mh.map(abs, range(1000))
        next(used)
        """,
    )
    assert ended.code == 0, ended.err
    [warning] = [line for line in ended.err.splitlines() if "Warning" in line]
    assert "script.py:3: RuntimeWarning: a map of abs was never iterated: at least 936" in warning


@pytest.mark.parametrize("kept", [True, False])
def test_a_clean_end_of_the_block_finishes_what_nobody_has_taken(
    tmp_path: Path, kept: bool
) -> None:
    def work(number: int) -> None:
        with open(tmp_path / "ran", "a") as file:
            file.write(f"{number}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mh.Pool(2) as pool:
            results: Any = pool.map(work, iter(range(1000)))
            if not kept:
                del results
                gc.collect()
    ran = sorted(map(int, (tmp_path / "ran").read_text().split()))
    assert ran == list(range(1000))


@pytest.mark.parametrize("kept", [True, False])
def test_an_exception_cancels_what_nobody_has_taken(tmp_path: Path, kept: bool) -> None:
    def work(number: int) -> None:
        with open(tmp_path / "ran", "a") as file:
            file.write("x")
        time.sleep(0.01)

    items = Counted(range(10_000))
    with pytest.raises(ZeroDivisionError):
        with mh.Pool(2) as pool:
            results: Any = pool.map(work, items)
            if not kept:
                del results
                gc.collect()
            raise ZeroDivisionError
    assert items.taken <= 100
    path = tmp_path / "ran"
    assert not path.exists() or len(path.read_text()) <= 100


def test_what_a_clean_end_finishes_can_still_be_taken() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(square, iter(range(2000)))
        closed = pool.map(square, itertools.count())
        closed.close()
    assert list(results) == [n * n for n in range(2000)]
    assert list(closed) == []


def test_a_map_that_nobody_has_kept_keeps_no_pool_that_has_ended() -> None:
    with mh.Pool(1) as pool:
        pool.map(square, range(200))
        late = pool.map(square, range(10))
    del late
    seen = weakref.ref(pool)
    del pool
    gc.collect()
    assert seen() is None
    pool = mh.Pool(1)
    pool.map(square, range(200))
    pool.shutdown(cancel_futures=True)
    seen = weakref.ref(pool)
    del pool
    gc.collect()
    assert seen() is None


def test_a_pool_of_ones_own_at_the_end_of_the_program(tmp_path: Path) -> None:
    program = """
        import manyhands as mh
        pool = mh.Pool(2)
        def work(n):
            with open("ran", "a") as file:
                file.write("x")
        pool.map(work, range(1000))
        results = pool.map(work, range(1000))
    """
    assert output_of(tmp_path, program, cwd=tmp_path) == ""
    assert len((tmp_path / "ran").read_text()) == 2000


# ------------------------------------------------------------------------------- what travels


def test_items_of_all_sizes_in_one_map(pool: mh.Pool) -> None:
    choose = __import__("random").Random(5)
    sizes = [choose.choice([0, 1, 15 << 10, 17 << 10, 60 << 10]) for _ in range(200)]
    sizes[50], sizes[51], sizes[150] = 2 << 20, 2 << 20, 3 << 20
    items = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    assert list(pool.map(same, items)) == items
    assert sorted(pool.map(same, items, ordered=False)) == sorted(items)
    assert [data for _, data in pool.map(same, items).with_input()] == items
    wrapped = [(item, {item[:3]}) for item in items]
    assert list(pool.map(same, wrapped)) == wrapped


def test_items_with_needs_among_others(tmp_path: Path) -> None:
    program = """
        import itertools, random, sys
        import manyhands as mh

        class Plain:
            def __init__(self, n): self.n = n
        class Odd(Plain):
            def __reduce__(self): return Odd, (self.n,)
        class Late(Plain):
            def __getstate__(self): return {"n": self.n}
        def helper(n): return n + 1

        makers = [
            lambda n: n, lambda n: str(n), Plain, Odd, Late,
            lambda n: [Plain(n), {n}], lambda n: bytes(20_000) + bytes([n % 256]),
            lambda n: Plain("x" * 20_000), lambda n: Odd("y" * 20_000), lambda n: helper,
            lambda n: (lambda: n), lambda n: {"key": Odd(n)}, lambda n: Plain,
        ]
        def kind(item):
            return type(item).__name__, getattr(item, "n", None)
        def same(item): return item

        choose = random.Random(3)
        with mh.Pool(2) as pool:
            for turn in range(4):
                items = [choose.choice(makers)(n) for n in range(500)]
                expected = [kind(item) for item in items]
                assert list(pool.map(kind, items)) == expected
                back = list(pool.map(same, items))
                assert [kind(item) for item in back] == expected
                assert all(type(a) is type(b) for a, b in zip(items, back, strict=True))
        print("fine")
    """
    assert output_of(tmp_path, program) == "fine\n"


class Adder:
    def __init__(self, start: int) -> None:
        self.start = start
        self.seen: list[int] = []

    def add(self, number: int) -> int:
        return self.start + number

    def __call__(self, number: int) -> tuple[int, int]:
        self.seen.append(number)
        return self.start + number, len(self.seen)


def test_callables_are_taken_as_they_are_when_the_map_is_made(pool: mh.Pool) -> None:
    adder = Adder(10)
    table = {"factor": 2}
    bound = pool.map(adder.add, iter(range(300)))
    partial = pool.map(functools.partial(lambda t, n: t["factor"] * n, table), iter(range(300)))
    closure = pool.map(lambda n: table["factor"] * n, iter(range(300)))
    adder.start, table["factor"] = 1000, 1000
    assert list(bound) == [10 + n for n in range(300)]
    assert list(partial) == [2 * n for n in range(300)]
    assert list(closure) == [2 * n for n in range(300)]
    assert list(pool.map(adder.add, [1])) == [1001]
    assert adder.seen == []


def test_a_callable_with_a_memory_is_one_object_per_worker() -> None:
    """Its copy is made once per worker and map, not per item: items see what those before left."""
    adder = Adder(0)
    with mh.Pool(1) as pool:
        assert list(pool.map(adder, range(50))) == [(n, n + 1) for n in range(50)]
        assert list(pool.map(adder, range(3))) == [(n, n + 1) for n in range(3)]
    assert adder.seen == []


def append_to_all(item: Any) -> Any:
    rows, table, plain = item
    rows[0].append(len(rows[1]))
    rows[1].append(sum(rows[0]))
    table["rows"].append(-1)
    table[len(table)] = rows
    plain.append(table["rows"] is rows[0])
    return item, rows[0] is rows[1], table["rows"] is rows[0]


def shared_items(count: int) -> list[Any]:
    """Items that share in every way: within themselves, and with each other."""
    common = [0]
    items = []
    for n in range(count):
        mine = [n]
        first = common if n % 3 == 0 else mine
        second = first if n % 2 else list(mine)
        table = {"rows": first if n % 5 else common}
        items.append(([first, second], table, [n]))
    items += items[:10]  # the same item, again
    return items


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("ordered", [True, False])
def test_mutations_are_those_of_private_copies(workers: int, ordered: bool) -> None:
    """The answer of the serial program that gives the function a deep copy of each item."""
    items = shared_items(1000)
    before = pickle.dumps(items)
    expected = [pickle.dumps(append_to_all(pickle.loads(pickle.dumps(item)))) for item in items]
    with mh.Pool(workers) as pool:
        results = pool.map(append_to_all, items, ordered=ordered)
        taken = [pickle.dumps(result) for result in results]
        streamed = pool.map(lambda item: iter_of(append_to_all(item)), items, ordered=ordered)
        assert sorted(pickle.dumps(result) for result in streamed) == sorted(taken)
        batched = pool.map(lambda many: [append_to_all(item) for item in many], items[:7], batch=1)
        assert len(list(batched)) == 7
    canonical = [pickle.dumps(pickle.loads(data)) for data in expected]
    assert sorted(pickle.dumps(pickle.loads(data)) for data in taken) == sorted(canonical)
    if ordered:
        assert [pickle.dumps(pickle.loads(data)) for data in taken] == canonical
    assert pickle.dumps(items) == before, "the parent's objects are as they were"


def iter_of(value: Any) -> Iterator[Any]:
    yield value
