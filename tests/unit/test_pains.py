"""What users of other tools reported, each as a test of maps; issues are by tracker and number."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through


def square(number: int) -> int:
    return number * number


def warm(pool: mh.Pool) -> None:
    """The pool knows that items are short: they come in large blocks from now on."""
    assert sum(pool.map(square, range(20_000))) == sum(n * n for n in range(20_000))


# ------------------------------------------- P17: the whole input is consumed, memory explodes


def test_endless_input_gives_its_first_result_at_once(pool: mh.Pool, gate: Gate) -> None:
    """cpython#74028, cpython#101586: `map` and `imap` take the whole input first."""

    def items() -> Iterator[int]:
        yield from itertools.count()

    results = pool.map(square, items())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert list(itertools.islice(pool.map(square, items(), ordered=False), 1000))
    results.close()


def test_a_consumer_that_stays_away_holds_the_input_up(pool: mh.Pool) -> None:
    """cpython#136871, pythonfutures#57: back-pressure instead of a list."""
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for pulled in itertools.count(1):  # noqa: UP028 - `pulled` is what is looked at
            yield pulled

    for buffersize in (1, 10, 500):
        with pool.map(square, items(), buffersize=buffersize) as results:
            for taken in range(1, 1000):
                next(results)
                assert pulled <= taken + buffersize


# ------------------------------------------------------- P18: results are kept by the library


class Big:
    """Can be looked for when it should be gone."""

    def __init__(self, number: int) -> None:
        self.number = number


def many(numbers: list[int]) -> list[Big]:
    return [Big(number) for number in numbers]


def stream(number: int) -> Iterator[Big]:
    yield Big(number)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["plain", "batch", "yield", "with_input", "run"])
def test_nothing_keeps_a_result_that_was_handed_over(
    pool: mh.Pool, ordered: bool, way: str
) -> None:
    """cpython#78349, joblib#1577, ipyparallel#85."""
    function: Any = {"batch": many, "yield": stream}.get(way, Big)
    batch = 7 if way == "batch" else None
    results: Any = pool.map(function, range(300), batch=batch, ordered=ordered)
    if way == "run":
        results.run()
        gc.collect()
        assert not any(isinstance(thing, Big) for thing in gc.get_objects())
        return
    seen: list[weakref.ref[Big]] = []
    for result in results.with_input() if way == "with_input" else results:
        big = result[1] if way == "with_input" else result
        assert all(ref() is None for ref in seen)
        seen.append(weakref.ref(big))
        del big, result
    assert len(seen) == 300
    # Without a collection: nothing refers to them, not even a cycle.
    assert all(ref() is None for ref in seen)


# ------------------------------------------- P21: what is captured is pickled again for each task


class Mesh:
    """Knows how often it was pickled here."""

    pickled = 0

    def __init__(self) -> None:
        self.data = bytes(3_000_000)

    def __getstate__(self) -> Any:
        type(self).pickled += 1
        return {"data": self.data}

    def size(self, number: int) -> int:
        return len(self.data) + number


@pytest.mark.parametrize("way", ["closure", "partial", "method", "default", "nested"])
def test_what_a_function_captures_is_sent_once(way: str) -> None:
    """joblib#1733, dask#11562: 33 items a second instead of 33,239."""
    mesh = Mesh()

    def with_default(number: int, mesh: Mesh = mesh) -> int:
        return mesh.size(number)

    def closure(number: int) -> int:
        return mesh.size(number)

    function: Any = {
        "closure": closure,
        "partial": functools.partial(Mesh.size, mesh),
        "method": mesh.size,
        "default": with_default,
        "nested": functools.partial(lambda f, number: f(number), mesh.size),
    }[way]
    Mesh.pickled = 0
    with mh.Pool(2) as pool:
        results = pool.map(function, range(10_000))
        assert sum(results) == sum(3_000_000 + n for n in range(10_000))
        assert Mesh.pickled == 1
        assert results.summary.sent < 1_000_000, "items alone"


# -------------------------------------------------- P28: parallel is slower than serial


def switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_short_items_share_their_overhead() -> None:
    """joblib#1830, distributed#3139. Times depend on the machine, waits of workers less."""
    count = 200_000
    with mh.Pool(2) as pool:
        warm(pool)
        pids = [worker.pid for worker in pool.stats().workers]
        before = sum(map(switches, pids))
        start = time.perf_counter()
        assert pool.map(square, range(count)).run().done == count
        each = (time.perf_counter() - start) / count
        slept = sum(map(switches, pids)) - before
        print(f"{each * 1e6:.2f} µs an item, workers slept {slept} times")
        assert slept < count / 20


def test_blocks_delay_no_result(pool: mh.Pool, gate: Gate) -> None:
    """A result is there when its item has ended, not when its block has."""
    warm(pool)

    def work(number: int) -> int:
        if number == 1000:
            pass_through(gate.path)
        return number

    results = pool.map(work, range(3000))
    assert [next(results) for _ in range(1000)] == list(range(1000))
    gate.wait_arrivals()
    gate.open()
    assert list(results) == list(range(1000, 3000))


def test_slow_input_delays_no_result(pool: mh.Pool) -> None:
    """Nor does an item wait for others to fill its block: its result is out before they come."""
    warm(pool)
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for pulled in range(1, 51):
            time.sleep(0.002)
            yield pulled

    behind = []
    for taken, result in enumerate(pool.map(square, items()), 1):
        assert result == taken * taken
        behind.append(pulled - taken)
    assert len(behind) == 50
    # A machine that is busy holds a result up now and then.
    assert sum(behind) / 50 < 8, behind


# ------------------------------------------------- P30: one long task holds others up


@pytest.mark.parametrize("long", [0, 1, 250, 498, 499])
def test_nothing_waits_behind_a_long_item(pool: mh.Pool, tmp_path: Path, long: int) -> None:
    """ray#29453, ray#29466: items dealt out in advance wait behind a long one, workers idle."""
    warm(pool)
    with closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number == long:
                pass_through(gate.path)
            return number

        results = pool.map(work, range(500), ordered=False)
        # All others end while it runs, also those that came to its worker in one block with it.
        others = [next(results) for _ in range(499)]
        assert sorted(others) == [n for n in range(500) if n != long]
        gate.open()
        assert list(results) == [long]


def test_long_items_run_at_once(pool: mh.Pool, tmp_path: Path) -> None:
    """Two long ones that stand together do not wait for each other."""
    warm(pool)
    with closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number in (100, 101):
                pass_through(gate.path)
            return number

        results = pool.map(work, range(200))
        taken = [next(results) for _ in range(100)]
        gate.wait_arrivals(2)
        gate.open()
        assert [*taken, *results] == list(range(200))


# ------------------------------------------------------------------------ P50: progress


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["plain", "generator", "batch", "yield", "failing"])
def test_progress_is_right_at_the_end(pool: mh.Pool, ordered: bool, way: str) -> None:
    """joblib#972, NiMARE#846: a bar that stands still, or counts what was sent."""
    told: list[Any] = []

    def work(item: Any) -> Any:
        if way == "batch":
            return item
        if way == "yield":
            return (part for part in range(item % 3))
        if way == "failing" and item % 10 == 3:
            raise ValueError(item)
        return item

    items: Any = iter(range(1000)) if way == "generator" else range(1000)
    results = pool.map(
        work,
        items,
        ordered=ordered,
        batch=10 if way == "batch" else None,
        on_error="skip",
        progress=told.append,
    )
    results.run()
    last = told[-1]
    count = 100 if way == "batch" else 1000
    assert (last.done, last.total, last.ended) == (count, count, True)
    assert last.failed == (100 if way == "failing" else 0)
    done = [counts.done for counts in told]
    assert done == sorted(done)
    assert all(counts.taken <= counts.done for counts in told)


# -------------------------------------------------------- P51: which item failed, and where


class Needy(Exception):
    """Has to be rebuilt with two arguments, which tools that send its `args` alone cannot do."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> Any:
        return functools.partial(Needy, reason=self.reason), (self.code,)


def deep(number: int, path: str) -> int:
    def deeper() -> int:
        if number == 700:
            raise Needy(number, reason=path)
        return number

    return deeper()


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_an_exception_names_its_item_and_shows_its_frames(pool: mh.Pool, on_error: str) -> None:
    """git-code-debt#75 "Multiprocessing eats tracebacks", billiard#368, pathos#83, fundus#662."""
    warm(pool)
    results = pool.map(
        deep,
        range(1000),
        itertools.repeat("x" * 500),
        on_error=on_error,  # type: ignore[call-overload]
    )
    if on_error == "raise":
        with pytest.raises(Needy) as caught:
            list(results)
        error: Any = caught.value
    else:
        [failure] = [result for result in results if isinstance(result, mh.Failure)]
        assert (failure.index, failure.input) == (700, (700, "x" * 500))
        assert failure.pid in {worker.pid for worker in pool.stats().workers}
        assert failure.attempts == 1
        error = failure.exception
    assert type(error) is Needy
    assert (error.code, error.reason) == (700, "x" * 500)
    assert isinstance(error.__cause__, mh.RemoteTraceback)
    text = str(error.__cause__)
    assert "in deep" in text
    assert "in deeper" in text
    assert __file__ in text
    assert "manyhands" not in text.replace(__file__, ""), "the user's frames alone"
    [note] = error.__notes__
    assert " 700: deep(700, 'xxx" in note
    assert len(note) < 400, "shortened"
    assert "worker " in note
    assert "attempt 1" in note
    assert on_error == "return" or "700 of 1,000 items were done" in note


# ------------------------------------------------ P60: order, partial results, streaming


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", ["return", "skip"])
def test_results_stream_with_failures_in_their_places(
    pool: mh.Pool, tmp_path: Path, ordered: bool, on_error: str
) -> None:
    """joblib gives lists alone; ray#29466. Results come while others run, by either order."""
    with closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number == 300:
                pass_through(gate.path)
            if number % 50 == 49:
                raise ValueError(number)
            return number

        results = pool.map(work, range(600), ordered=ordered, on_error=on_error)
        before = list(itertools.islice(results, 250))  # while item 300 runs
        gate.open()
        taken = before + list(results)
    values = [result for result in taken if isinstance(result, int)]
    assert sorted(values) == [n for n in range(600) if n % 50 != 49]
    assert sorted(failure.index for failure in results.failures) == list(range(49, 600, 50))
    assert sum(isinstance(result, mh.Failure) for result in taken) == (
        12 if on_error == "return" else 0
    )
    if ordered:
        places = [result.index if isinstance(result, mh.Failure) else result for result in taken]
        assert places == sorted(places)
    for failure in results.failures:
        json.dumps(failure.to_dict())
