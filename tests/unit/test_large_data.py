"""Large data goes by value: nobody sees what another writes, and nothing is left of it."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import manyhands as mh
import procfs
from arrays import describe, drop_kept, keep, kept, same
from gate import Gate, pass_through
from observing import pids_of
from programs import program, program_test

Array = np.ndarray[Any, Any]

# Numbers in an array: one that goes in a message, and larger ones.
COUNTS = [500, 40_000, 140_000]
# Enough for memory to have been used again by then.
MANY = 300


@pytest.fixture
def single() -> Iterator[mh.Pool]:
    """One worker, which has seen no task."""
    with mh.Pool(1) as pool:
        yield pool


@pytest.fixture(params=COUNTS)
def count(request: pytest.FixtureRequest) -> int:
    chosen: int = request.param
    return chosen


def make(count: int, number: float) -> Array:
    """All the same number, but the last, which tells whether the end is there."""
    array = np.full(count, float(number))
    array[-1] = -number
    return array


def is_made(array: Array, count: int, number: float) -> bool:
    return len(array) == count and bool((array == make(count, number)).all())


def churn(pool: mh.Pool, count: int, tasks: int = MANY) -> None:
    """Tasks with arrays of their own, in and out, that are all written over after use."""

    def turn(array: Array) -> tuple[float, Array]:
        seen = float(array[0])
        array[:] = -99.0
        return seen, make(len(array), seen + 1)

    for start in range(0, tasks, 20):
        futures = [pool.submit(turn, make(count, number)) for number in range(start, start + 20)]
        for number, future in enumerate(futures, start):
            seen, result = future.result()
            assert seen == number
            assert is_made(result, count, number + 1)
            result[:] = -77.0


# ------------------------------------------------------------------------------- what callers write


def test_one_array_is_filled_again_for_each_task(single: mh.Pool, gate: Gate, count: int) -> None:
    """What is passed is what it was when it was submitted."""
    single.submit(pass_through, gate.path)
    gate.wait_arrivals()
    array, octets, frame = make(count, 0), bytearray(8 * count), pd.DataFrame({"a": make(count, 0)})
    futures = []
    for number in range(20):
        array[:] = make(count, number)
        octets[:] = array.tobytes()
        frame.loc[:, "a"] = array
        futures.append(single.submit(describe, array, octets, frame))
        futures.append(single.submit(describe, [array[5:], {"octets": octets}], frame["a"]))
    array[:] = -1
    octets[:] = bytes(8 * count)
    frame.loc[:, "a"] = -1.0
    gate.open()
    seen = [future.result() for future in futures]
    expected = []
    for number in range(20):
        array[:] = make(count, number)
        octets[:] = array.tobytes()
        frame.loc[:, "a"] = array
        expected.append(describe(array, octets, frame))
        expected.append(describe([array[5:], {"octets": octets}], frame["a"]))
    assert seen == expected
    assert len(set(seen)) == 40


@pytest.mark.parametrize("ordered", [True, False])
def test_one_array_is_filled_again_for_each_item(pool: mh.Pool, count: int, ordered: bool) -> None:
    array = np.zeros(count)

    def items() -> Iterator[Array]:
        for number in range(60):
            array[:] = make(count, number)
            yield array

    results = list(pool.map(same, items(), ordered=ordered))
    results.sort(key=lambda result: float(result[0]))
    assert all(is_made(result, count, number) for number, result in enumerate(results))
    assert len(results) == 60


# --------------------------------------------------------------------------------- what tasks write


def write_over(array: Array, number: float) -> float:
    """The sum before it is all the number."""
    total = float(array.sum())
    array[:] = number
    return total


@pytest.mark.parametrize("origin", ["made here", "a result"])
def test_tasks_with_one_array_write_to_it(pool: mh.Pool, count: int, origin: str) -> None:
    """P22 (ray#9673): tasks may not write to arrays that were not copied for them."""
    array = make(count, 3)
    if origin == "a result":
        array = pool.submit(same, array).result()
    total = float(array.sum())
    futures = [pool.submit(write_over, array, number) for number in range(40)]
    assert [future.result() for future in futures] == [total] * 40
    assert list(pool.map(write_over, [array] * 40, range(40))) == [total] * 40
    assert is_made(array, count, 3)


@pytest.mark.parametrize("origin", ["made here", "a result"])
def test_tasks_keep_one_array_and_write_to_it_later(
    single: mh.Pool, count: int, origin: str
) -> None:
    """The array of each is its own, in one worker too."""

    def write_to_last(number: float) -> None:
        kept[-1][:] = number

    def firsts() -> list[float]:
        return [float(array[0]) for array in kept]

    array = make(count, 3)
    if origin == "a result":
        array = single.submit(same, array).result()
    before = describe(array)
    for number in range(5):
        single.submit(keep, array).result()
        single.submit(write_to_last, number).result()
        assert single.submit(describe, array).result() == before
    assert single.submit(firsts).result() == [0, 1, 2, 3, 4]
    single.submit(drop_kept).result()
    churn(single, count, 20)
    assert single.submit(describe, array).result() == before
    assert describe(array) == before


@pytest.mark.parametrize("origin", ["made here", "a result"])
def test_views_in_one_call_are_arrays_of_their_own(
    single: mh.Pool, count: int, origin: str
) -> None:
    def write(whole: Array, parts: list[Array], again: Array) -> list[float]:
        assert whole is again
        whole[:] = 8
        parts[0][:] = 9
        return [float(whole[0]), float(again[150]), *(float(part[-1]) for part in parts)]

    array = make(count, 3)
    if origin == "a result":
        array = single.submit(same, array).result()
    for _ in range(3):
        parts = [array[100:200], array[150:250], array[:1]]
        assert single.submit(write, array, parts, array).result() == [8, 8, 9, 3, 3]
    assert is_made(array, count, 3)


def test_memory_that_was_used_holds_what_is_new(pool: mh.Pool) -> None:
    """Of changing sizes, so that one lies where two were."""
    choose = random.Random(5)

    def turn(array: Array, number: int, count: int) -> tuple[bool, Array]:
        good = is_made(array, len(array), number)
        array[:] = -99.0
        return good, np.zeros(count)

    for number in range(150):
        counts = [choose.choice([300, 9_000, 40_000, 131_072, 200_000]) for _ in range(3)]
        futures = [pool.submit(turn, make(n, number), number, n) for n in counts]
        for n, future in zip(counts, futures, strict=True):
            good, result = future.result()
            assert good
            assert len(result) == n
            assert not result.any()
            result[:] = -77.0


# ---------------------------------------------------------------------------------- what tasks keep

PARTS: dict[str, Callable[[Array], Any]] = {
    "whole": same,
    "slice": lambda array: array[10:20],
    "steps": lambda array: array[::7],
    "rows": lambda array: array[:200].reshape(20, 10).T,
    "buffer": lambda array: array.data[5:],
    "frame": lambda array: pd.DataFrame({"a": array}, copy=False),
    "iterator": lambda array: (array, iter(array)),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_a_task_keeps_of_its_argument_stays(single: mh.Pool, count: int, name: str) -> None:
    part_of = PARTS[name]

    def keep_part(array: Array) -> None:
        kept.append(part_of(array))

    def contents() -> list[Array]:
        found = []
        for part in kept:
            if isinstance(part, tuple):
                part = part[0]
            found.append(np.array(part["a"] if isinstance(part, pd.DataFrame) else part))
        return found

    for number in (5, 6):
        single.submit(keep_part, make(count, number)).result()
    before = single.submit(contents).result()
    churn(single, count)
    after = single.submit(contents).result()
    expected = [PARTS[name](make(count, number)) for number in (5, 6)]
    for first, second, wanted in zip(before, after, expected, strict=True):
        if isinstance(wanted, tuple):
            wanted = wanted[0]
        wanted = np.array(wanted["a"] if isinstance(wanted, pd.DataFrame) else wanted)
        assert (first == wanted).all()
        assert (second == wanted).all()
        assert first.shape == second.shape == wanted.shape


# ------------------------------------------------------------------------------------------ results


def test_results_that_are_kept_stay(pool: mh.Pool, count: int) -> None:
    results = [pool.submit(make, count, number).result() for number in range(10)]
    results += pool.map(make, [count] * 10, range(10, 20))
    parts = [pool.submit(make, count, number).result()[10:20] for number in range(10)]
    churn(pool, count)
    for number, result in enumerate(results):
        assert is_made(result, count, number)
        assert result.flags.writeable
    for number, part in enumerate(parts):
        assert part.tolist() == [number] * 10


def test_results_are_written_to(pool: mh.Pool, count: int) -> None:
    """P22 (ray#369, ray#5592): results may not be written to, as there is no copy on write.

    Here they may, and two results share nothing, whatever they came from.
    """
    array = make(count, 1)
    results = [pool.submit(same, array).result() for _ in range(3)]
    results += pool.map(same, [array] * 3)
    for number, result in enumerate(results):
        result[:] = make(count, number + 10)
    churn(pool, count, 40)
    for number, result in enumerate(results):
        assert is_made(result, count, number + 10)
    assert is_made(array, count, 1)


def test_results_are_handed_on(pool: mh.Pool, count: int) -> None:
    """A task sees what they are when it is submitted: as they came, or with what was written."""
    result = pool.submit(make, count, 3).result()
    for _ in range(3):
        assert is_made(pool.submit(same, result).result(), count, 3)
        assert pool.submit(describe, result[5:50]).result() == describe(result[5:50])
    middle = count // 2
    result[middle] = 17
    for view in (result, result[middle - 5 :], [result], {"a": (result, result[3:])}):
        assert pool.submit(describe, view).result() == describe(view)
    assert list(pool.map(describe, [result, result[middle:]])) == [
        describe(result),
        describe(result[middle:]),
    ]
    # Through a view that is older than what was handed on.
    view = result[:100]
    pool.submit(same, result).result()
    view[:] = 23
    assert float(pool.submit(np.sum, result[:100]).result()) == 2300
    assert pool.submit(describe, view).result() == describe(view)
    # By way of a task that writes to it as well.
    returned = pool.submit(lambda array: array + 1, result).result()
    assert (returned == result + 1).all()


def test_results_are_written_to_after_they_were_handed_on(
    single: mh.Pool, gate: Gate, count: int
) -> None:
    result = single.submit(make, count, 3).result()
    expected = describe(result)
    single.submit(pass_through, gate.path)
    gate.wait_arrivals()
    first = single.submit(describe, result)
    result[:] = 4
    second = single.submit(describe, result)
    wanted = describe(result)
    result[:] = 5
    gate.open()
    assert [first.result(), second.result()] == [expected, wanted]


def test_chains_of_tasks(pool: mh.Pool, count: int) -> None:
    """Each gets the result of the one before, and the last result is not the first."""

    def step(array: Array) -> Array:
        array += 1
        return array

    start = np.zeros(count)
    results = [start]
    for _ in range(30):
        results.append(pool.submit(step, results[-1]).result())
    for number, result in enumerate(results):
        assert (result == number).all()


def test_tasks_return_their_arguments(pool: mh.Pool, count: int) -> None:
    def write(array: Array) -> Array:
        array[10:20] = 5
        return array

    def both(array: Array) -> tuple[Array, Array]:
        return array, array[10:20]

    array = make(count, 3)
    whole = pool.submit(same, array).result()
    part = pool.submit(lambda array: array[10:20], array).result()
    steps = pool.submit(lambda array: array[::-3], array).result()
    written = pool.submit(write, array).result()
    pair = pool.submit(both, array).result()
    again = pool.submit(lambda array: [array, array], array).result()
    churn(pool, count, 40)
    assert is_made(array, count, 3)
    assert is_made(whole, count, 3)
    assert part.tolist() == [3] * 10
    assert (steps == array[::-3]).all()
    assert written[10:20].tolist() == [5] * 10
    written[10:20] = 3
    assert is_made(written, count, 3)
    # As after a pickle round trip: a view is an array of its own, an object stays one.
    pair[1][:] = 6
    assert is_made(pair[0], count, 3)
    assert again[0] is again[1]
    assert is_made(again[0], count, 3)


@pytest.mark.parametrize("origin", ["its argument", "made there"])
def test_tasks_keep_what_they_return(single: mh.Pool, count: int, origin: str) -> None:
    """And change it later; callers have what was returned."""

    def keep_and_return(array: Array) -> Array:
        array = array if origin == "its argument" else array.copy()
        kept.append(array)
        return array

    def write(number: float) -> Array:
        array: Array = kept[0]
        array[:] = number
        return array

    array = make(count, 3)
    first = single.submit(keep_and_return, array).result()
    second = single.submit(write, 4).result()
    third = single.submit(write, 5).result()
    assert is_made(first, count, 3)
    assert (second == 4).all()
    assert (third == 5).all()
    # Nor does a worker see what callers write.
    first[:] = second[:] = third[:] = 6
    assert (single.submit(lambda: kept[0]).result() == 5).all()
    single.submit(drop_kept).result()
    churn(single, count, 20)
    assert (third == 6).all()
    assert is_made(array, count, 3)


def test_tasks_of_tasks(pool: mh.Pool, count: int) -> None:
    """A task passes its argument on, writes to it, and returns what came back."""

    def outer(array: Array) -> list[Any]:
        futures = [mh.submit(write_over, array, number) for number in range(3)]
        array[:] = 2
        made = mh.submit(make, len(array), 9).result()
        return [*(future.result() for future in futures), float(array[0]), array, made]

    array = make(count, 3)
    total = float(array.sum())
    for _ in range(3):
        *numbers, written, made = pool.submit(outer, array).result()
        assert numbers == [total, total, total, 2]
        assert (written == 2).all()
        assert is_made(made, count, 9)
    assert is_made(array, count, 3)


def memory_of(value: Any) -> str:
    """What kind of object has the memory of an array."""
    while isinstance(value, np.ndarray | memoryview):
        value = value.base if isinstance(value, np.ndarray) else value.obj
    return type(value).__name__


def test_tasks_hand_on_what_came(pool: mh.Pool) -> None:
    """By reference, unless the task has written to it; what is its own is in the message."""

    def look(array: Array) -> tuple[str, float, bool]:
        seen = memory_of(array), float(array[5]), array.flags.writeable
        if array.flags.writeable:
            array[:] = 9
        return seen

    def outer(*arrays: Array) -> list[Any]:
        futures = [mh.submit(look, array) for array in arrays for _ in range(3)]
        futures += [mh.submit(look, array[3:]) for array in arrays]
        seen = [future.result() for future in futures]
        seen += mh.map(look, arrays).list()
        return seen

    def write_first(*arrays: Array) -> list[Any]:
        early = [mh.submit(look, array) for array in arrays]
        for array in arrays:
            array[:] = 4
        late = [mh.submit(look, array) for array in arrays]
        return [future.result() for future in (*early, *late)]

    def make_first(number: float) -> tuple[str, float, bool]:
        seen: tuple[str, float, bool] = mh.submit(look, np.full(140_000, number)).result()
        return seen

    array, result = make(140_000, 3), pool.submit(make, 140_000, 3).result()
    put = mh.put(array)
    for _ in range(3):
        for one, may in ((array, True), (result, True), (put, False)):
            assert pool.submit(outer, one).result() == [("StoredBuffer", 3, may)] * 5
        *early, first, second = pool.submit(write_first, array, result).result()
        assert early == [("StoredBuffer", 3, True)] * 2
        assert first == second == ("bytearray", 4, True)
        assert pool.submit(make_first, 7.0).result() == ("bytearray", 7, True)
    assert is_made(result, 140_000, 3)
    assert is_made(put, 140_000, 3)
    del result, put, one
    deadline = time.monotonic() + 30
    while pool.stats().store.live and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.005)
    assert not pool.stats().store.live


def test_exceptions_carry_arrays(pool: mh.Pool, count: int) -> None:
    def fail(array: Array) -> None:
        array += 1
        raise ValueError("some text", array)

    errors = [pool.submit(fail, make(count, number)).exception() for number in range(5)]
    churn(pool, count, 40)
    for number, error in enumerate(errors):
        assert isinstance(error, ValueError)
        assert is_made(error.args[1] - 1, count, number)


# ------------------------------------------------------------------------------------ what is left


@program
def large_data_in_rounds(rounds: int) -> None:
    """Tasks that end in all ways; 100 MB go through in each round."""

    def fail(array):
        raise ValueError(len(array))

    def sleep(array):
        time.sleep(60)

    def use(pool, limited, rounds):
        for _ in range(rounds):
            array = np.ones(250_000)
            futures = [pool.submit(np.multiply, array, number) for number in range(10)]
            assert [float(future.result()[-1]) for future in futures] == list(range(10))
            assert [float(one[0]) for one in pool.map(np.negative, [array] * 5)] == [-1.0] * 5
            failures = [pool.submit(fail, array) for _ in range(5)]
            assert all(isinstance(future.exception(), ValueError) for future in failures)
            waiting = [pool.submit(sleep, array) for _ in range(10)]
            cancelled = [future.cancel() for future in waiting]
            assert all(cancelled)
            late = limited.submit(sleep, array)
            assert isinstance(late.exception(), mh.TaskTimeout)
            while pool.stats().pending:
                time.sleep(0.001)

    def files(pid="self"):
        names = procfs.descriptors(pid).values()
        return sum(name.startswith(("/memfd:", "/dev/shm")) for name in names)

    def rest(pool):
        # Who was to end a task and stood still for its grace is killed, and another comes.
        while any(worker.state != "idle" for worker in pool.stats().workers):
            time.sleep(0.001)

    with mh.Pool(2) as pool:
        limited = pool.options(task_timeout=0.02)
        use(pool, limited, 3)
        rest(pool)
        pids = [os.getpid(), mh._core.zygote_pid()]
        base, before = procfs.resident_bytes(), [files(pid) for pid in pids]
        use(pool, limited, rounds)
        rest(pool)
        gc.collect()
        grown = procfs.resident_bytes() - base
        print(f"{grown / 1e6:.0f} MB over the base of {base / 1e6:.0f} MB")
        assert grown < 100e6
        workers = pids_of(pool)
        assert workers
        assert all(procfs.resident_bytes(pid) < 400e6 for pid in workers)
        # What was in a message is closed when whoever closes it comes to it.
        deadline = time.monotonic() + 30
        while [files(pid) for pid in pids] != before and time.monotonic() < deadline:
            assert pool.submit(abs, -1).result(20) == 1
        assert [files(pid) for pid in pids] == before
        most = max(files(pid) for pid in workers)
    assert most <= max(before) + 4, "files of memory in a worker"


def test_large_data_leaves_nothing() -> None:
    print(large_data_in_rounds.run(rounds=10, seconds=90).check().out)


@program
def arrays_under_kills(kills: int, chosen: int, bound: float) -> None:
    """Workers are killed at random instants; a result is right, or its worker has died."""
    choose = random.Random(chosen)
    dead: set[int] = set()
    good: list[int] = []

    def turn(array, number):
        assert (array == number).all()
        array += 1
        return array

    def row(number, size=40_000):
        return np.full(size, float(number))

    def files():
        names = procfs.descriptors().values()
        return sum(name.startswith(("/memfd:", "/dev/shm")) for name in names)

    def kill(pool):
        known = in_a_row = 0
        while len(dead) < kills:
            # At random instants: this orders nothing.
            time.sleep(choose.choice((0.02, 0.1, 0.3)) * choose.random())
            if (now := len(good)) != known:
                known, in_a_row = now, 0
            if in_a_row == 8:
                continue  # a pool gives up if 20 are killed before any of them has done something
            pids = [worker.pid for worker in pool.stats().workers if worker.pid]
            pids = [pid for pid in pids if pid not in dead]
            if pids:
                in_a_row += 1
                dead.add(pid := choose.choice(pids))
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it was dead already, of another cause

    def rounds(pool, go_on):
        count = lost = 0
        handed = row(0)
        while go_on():
            size = choose.choice([300, 9_000, 40_000, 300_000])
            futures = [pool.submit(turn, row(count + n, size), count + n) for n in range(12)]
            last = float(handed[0])
            futures.append(pool.submit(turn, handed, last))
            for number, future in enumerate(futures, count):
                error = future.exception(60)
                if error is None:
                    result = future.result()
                    wanted = number + 1 if future is not futures[-1] else last + 1
                    assert (result == wanted).all()
                    good.append(number)
                    handed = result
                else:
                    assert isinstance(error, mh.WorkerDied), repr(error)
                    lost += 1
            count += 12
        return count, lost

    with mh.Pool(2) as pool:
        turns = iter(range(10))
        rounds(pool, lambda: next(turns, None) is not None)
        base, before = procfs.resident_bytes(), files()
        killer = threading.Thread(target=kill, args=(pool,), daemon=True)
        killer.start()
        count, lost = rounds(pool, killer.is_alive)
        turns = iter(range(10))
        assert rounds(pool, lambda: next(turns, None) is not None)[1] <= 2  # of the last kill
        gc.collect()
        grown = procfs.resident_bytes() - base
        print(f"{count} tasks, {lost} lost, {len(dead)} kills, {grown / 1e6:.0f} MB more")
        assert grown < bound
        deadline = time.monotonic() + 30
        while files() > before and time.monotonic() < deadline:
            assert pool.submit(abs, -1).result(20) == 1
        assert files() <= before
    assert len(dead) == kills
    print("all is well")


def test_workers_die_with_arrays() -> None:
    ended = arrays_under_kills.run(kills=40, chosen=11, bound=150e6, seconds=90).check()
    print(ended.out)
    assert ended.out.endswith("all is well\n")


@program
def many_arrays(count: int) -> None:
    def turn(array):
        array += 1
        return array

    def items():
        for number in range(count):
            yield np.full(20_000, float(number))

    with mh.Pool(2) as pool:
        results = pool.map(turn, items())
        for index in range(count // 10):
            assert next(results)[0] == index + 1
        base = procfs.resident_bytes()
        for index, result in enumerate(results, count // 10):
            assert result[0] == result[-1] == index + 1
        assert results.summary.done == count
        grown = procfs.resident_bytes() - base
        print(f"{grown / 1e6:.0f} MB over the base of {base / 1e6:.0f} MB")
        assert grown < 100e6
        workers = pids_of(pool)
        assert workers
        assert all(procfs.resident_bytes(pid) < 300e6 for pid in workers)


def test_many_arrays_leave_nothing() -> None:
    print(many_arrays.run(count=3000, seconds=90).check().out)


@program_test
def test_workers_with_few_addresses() -> None:
    """The whole of the store does not fit into what they may map; what they need does."""

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    def double(array):
        array *= 2
        return array

    with mh.Pool(2, initializer=limit) as pool:
        for number in range(5):
            array = np.full(500_000, float(number))
            assert (pool.submit(double, array).result() == 2 * number).all()
            assert (pool.map(double, [array, array]).list()[1] == 2 * number).all()


def sums(array: Array) -> tuple[float, int]:
    return float(array.sum()), len(array)


def with_a_pool_of_its_own(array: Array) -> tuple[tuple[float, int], Array, Array]:
    with mh.Pool(1) as own:
        made = own.submit(make, len(array), 3).result(60)
        seen = own.submit(sums, array).result(60)
    return seen, made, array


def test_a_task_with_a_pool_of_its_own(pool: mh.Pool, count: int) -> None:
    """Its store is another: what is in one is copied to the other."""
    array = np.full(count, 2.0)
    for _ in range(3):
        seen, made, back = pool.submit(with_a_pool_of_its_own, array).result(130)
        assert seen == (2.0 * count, count)
        assert is_made(made, count, 3)
        assert (back == 2.0).all()


@program
def fork_with_results() -> None:
    def double(array):
        return array * 2

    with mh.Pool(1) as pool:
        first, second = (pool.submit(np.full, 140_000, number).result() for number in (1.0, 2.0))
        child = os.fork()
        if child == 0:
            with mh.Pool(1) as own:
                for number, array in ((2.0, second), (1.0, first)):
                    doubled = own.submit(double, array).result()
                    assert (doubled == 2 * number).all(), doubled
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert (pool.submit(double, second).result() == 4.0).all()
    print("all is well")


def test_results_in_a_child_of_fork() -> None:
    """The child's pool has a store of its own, in which they are not."""
    assert fork_with_results.run(seconds=60).check().out == "all is well\n"


def test_arrays_on_their_way_in_a_map_are_bounded(pool: mh.Pool) -> None:
    """They count as much as what is in the message; references to what is there already do not."""
    taken = 0

    def arrays() -> Iterator[Array]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros(1 << 17)  # 1 MiB

    results = pool.map(len, arrays())
    assert list(itertools.islice(results, 100)) == [1 << 17] * 100
    assert taken <= 100 + 64 + 2
    results.close()

    table = mh.put(np.zeros(10 << 17))
    results = pool.map(len, [table] * 1000)
    next(results)
    assert results._counts()[0] >= 64, "all that a map takes at first"
    results.close()
