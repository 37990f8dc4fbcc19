"""`priority=`: which of the tasks that wait starts first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from capabilities import Capabilities
from tasks import fail

import manyhands as mh
from gate import Gate, pass_through

LIMIT = 60.0


def note(path: str, name: object) -> object:
    """Says that it runs, behind whatever ran before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{name}\n".encode())
    os.close(descriptor)
    return name


def notes(path: str) -> list[str]:
    return Path(path).read_text().split()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "order")


@pytest.fixture
def pool(engine: Capabilities) -> Iterator[mh.Pool]:
    """One worker, which knows that tasks are short: it is given many ahead."""
    with mh.Pool(1, engine=engine.name) as pool:
        for future in [pool.submit(abs, -1) for _ in range(50)]:
            future.result(LIMIT)
        yield pool


def hold(pool: mh.Pool, engine: Capabilities, gate: Gate) -> mh.Future[Any] | None:
    """Has the worker run something until the gate is open; inline nothing waits."""
    if not engine.background:
        return None
    future = pool.submit(pass_through, gate.path)
    gate.wait_arrivals()
    return future


def test_the_higher_starts_first_and_equals_as_they_came(
    pool: mh.Pool, engine: Capabilities, gate: Gate, path: str
) -> None:
    hold(pool, engine, gate)
    wanted = [0, 0, 5, -3, 0, 5, 7, -3, 0, 10**9, -(10**9)]
    futures = [
        pool.options(priority=priority).submit(note, path, f"{priority}/{number}")
        for number, priority in enumerate(wanted)
    ]
    gate.open()
    for future in futures:
        future.result(LIMIT)
    came = [f"{priority}/{number}" for number, priority in enumerate(wanted)]
    if engine.background:
        came.sort(key=lambda name: -int(name.split("/")[0]))
    assert notes(path) == came


def test_what_was_given_to_the_worker_gives_way(
    pool: mh.Pool, engine: Capabilities, gate: Gate, path: str
) -> None:
    if not engine.background:
        pytest.skip("nothing waits inline")
    hold(pool, engine, gate)
    low = [pool.submit(note, path, f"low{number}") for number in range(20)]
    high = [pool.options(priority=1).submit(note, path, f"high{number}") for number in range(3)]
    gate.open()
    for future in low + high:
        future.result(LIMIT)
    assert notes(path) == [f"high{n}" for n in range(3)] + [f"low{n}" for n in range(20)]


def test_a_map_gives_way_between_its_items(
    pool: mh.Pool, engine: Capabilities, gate: Gate, tmp_path: Path, path: str
) -> None:
    if not engine.background:
        pytest.skip("nothing waits inline")

    def item(number: int) -> int:
        if number == 10:
            pass_through(gate.path)
        note(path, number)
        return number

    results = pool.map(item, range(60), priority=-1)
    gate.wait_arrivals()
    future = pool.submit(note, path, "task")
    urgent = pool.map(note, [path] * 40, [f"urgent{n}" for n in range(40)], priority=2)
    gate.open()
    assert urgent.list() == [f"urgent{n}" for n in range(40)]
    assert future.result(LIMIT) == "task"
    assert results.list() == list(range(60))
    order = notes(path)
    assert len(order) == 101
    rest = order[order.index("10") + 1 :]
    assert rest[:41] == [f"urgent{n}" for n in range(40)] + ["task"]


def test_a_map_that_is_higher_goes_before_all_that_waits(
    pool: mh.Pool, engine: Capabilities, gate: Gate, path: str
) -> None:
    """Its input is taken as if nothing else waited."""
    hold(pool, engine, gate)
    low = [pool.submit(note, path, "low") for _ in range(2000)]
    results = pool.map(note, [path] * 500, range(500), priority=1)
    gate.open()
    assert results.list() == list(range(500))
    for future in low:
        future.result(LIMIT)
    order = notes(path)
    assert len(order) == 2500
    if engine.background:
        # It is no more ahead than its results are taken; then some of the others may start.
        assert order[:60] == [str(number) for number in range(60)]


def test_pools_and_views_have_one_of_their_own(engine: Capabilities, gate: Gate, path: str) -> None:
    with mh.Pool(1, engine=engine.name, priority=3) as pool:
        hold(pool, engine, gate)
        view = pool.options(priority=2)
        futures = [
            view.submit(note, path, "view"),
            pool.options(task_timeout=60).submit(note, path, "pool"),
            view.options(priority=4).submit(note, path, "higher"),
        ]
        results = [view.map(note, [path], ["map"], priority=5), pool.map(note, [path], ["own"])]
        gate.open()
        for future in futures:
            future.result(LIMIT)
        for result in results:
            result.run()
    expected = ["map", "higher", "pool", "own", "view"]
    assert sorted(notes(path)) == sorted(expected)
    if engine.background:
        assert notes(path) == expected


def test_the_shared_pool_takes_it(engine: Capabilities, path: str) -> None:
    assert mh.map(abs, [-1, -2], engine=engine.name, priority=3).list() == [1, 2]
    assert mh.starmap(max, [(1, 2)], engine=engine.name, priority=-3).list() == [2]
    assert mh.options(priority=7).submit(abs, -7).result(LIMIT) == 7
    assert "priority=7" in repr(mh.options(priority=7))


def test_a_retry_keeps_it(
    pool: mh.Pool, engine: Capabilities, gate: Gate, tmp_path: Path, path: str
) -> None:
    def fail_once(name: str) -> None:
        if len(notes(path)) < 1 or name not in notes(path):
            note(path, name)
            raise OSError(name)
        note(path, f"{name}-again")

    hold(pool, engine, gate)
    low = [pool.submit(note, path, "low") for _ in range(5)]
    Path(path).touch()
    high = pool.options(priority=1, retry=2).submit(fail_once, "high")
    gate.open()
    high.result(LIMIT)
    for future in low:
        future.result(LIMIT)
    order = notes(path)
    assert sorted(order) == ["high", "high-again"] + ["low"] * 5
    if engine.background:
        assert order[:2] == ["high", "high-again"]


def test_cancelled_tasks_hold_nobody_up(
    pool: mh.Pool, engine: Capabilities, gate: Gate, path: str
) -> None:
    if not engine.background:
        pytest.skip("nothing waits inline")
    hold(pool, engine, gate)
    low = [pool.submit(note, path, "low") for _ in range(5)]
    high = [pool.options(priority=9).submit(note, path, "high") for _ in range(5)]
    assert all(future.cancel() for future in high)
    middle = pool.options(priority=5).submit(note, path, "middle")
    assert low[2].cancel()
    gate.open()
    middle.result(LIMIT)
    pool.shutdown()
    assert notes(path) == ["middle"] + ["low"] * 4


def test_failures_and_results_are_told_whatever_the_priority(
    pool: mh.Pool, engine: Capabilities
) -> None:
    futures = {n: pool.options(priority=n % 7 - 3).submit(abs, -n) for n in range(300)}
    failing = pool.options(priority=2).submit(fail, 1)
    assert {n: future.result(LIMIT) for n, future in futures.items()} == {n: n for n in range(300)}
    with pytest.raises(ValueError, match="item 1"):
        failing.result(LIMIT)
    maps = [pool.map(abs, range(-50, 0), priority=n) for n in (3, -3, 0)]
    assert [results.list() for results in maps] == [list(range(50, 0, -1))] * 3
    assert pool.stats().pending == 0


# ---------------------------------------------------------------------------------------- nesting


def test_what_a_task_waits_for_goes_before_what_is_higher(
    engine: Capabilities, gate: Gate, path: str
) -> None:
    """It runs already, and would wait for ever behind tasks that go on coming."""
    with mh.Pool(1, engine=engine.name) as pool:

        def ask(name: str) -> int:
            pass_through(gate.path)
            mine = pool.options(priority=-5).submit(note, path, name)
            mine.result(LIMIT)
            return sum(pool.map(abs, [-1, -2], priority=-7))

        if not engine.background:
            gate.open()
        asks = pool.submit(ask, "nested")
        if engine.background:
            gate.wait_arrivals()
        others = [pool.options(priority=9).submit(note, path, f"{n}") for n in range(5)]
        gate.open()
        assert asks.result(LIMIT) == 3
        for other in others:
            other.result(LIMIT)
    assert notes(path) == ["nested", "0", "1", "2", "3", "4"]


def test_tasks_of_tasks_are_as_urgent_as_these(
    engine: Capabilities, gate: Gate, tmp_path: Path, path: str
) -> None:
    """Two tasks that submit one after another: what the higher has submitted goes first."""
    if not engine.background:
        pytest.skip("nothing waits inline")
    inner = Gate(tmp_path, "inner")
    try:
        with mh.Pool(2, engine=engine.name) as pool:

            def ask(name: str) -> None:
                # Both take the workers that come for those that ask.
                held = pool.submit(pass_through, inner.path)
                pass_through(gate.path)
                mine = [pool.submit(note, path, name) for _ in range(3)]
                own = pool.options(priority=3).submit(note, path, "given")
                for future in [held, *mine, own]:
                    future.result(LIMIT)

            asks = [
                pool.options(priority=priority).submit(ask, name)
                for name, priority in (("low", 1), ("high", 5))
            ]
            gate.wait_arrivals(2)
            inner.wait_arrivals(2)
            gate.open()
            for _ in range(3000):
                if pool.stats().queued == 8:
                    break
                time.sleep(0.01)
            assert pool.stats().queued == 8
            inner.open()
            for future in asks:
                future.result(LIMIT)
    finally:
        inner.close_files()
    order = notes(path)
    assert sorted(order) == ["given"] * 2 + ["high"] * 3 + ["low"] * 3
    # Two run at a time, so neighbours may change places.
    assert order.index("low") >= 4
    assert order[:2] == ["high"] * 2


def test_a_pool_inside_of_its_tasks_counts_as_the_task_does(
    engine: Capabilities, gate: Gate, path: str
) -> None:
    """The pool's own priority is for those who submit from outside."""
    with mh.Pool(1, engine=engine.name, priority=4) as pool:

        def ask() -> int:
            return pool.submit(abs, -3).result(LIMIT) + sum(pool.map(abs, [-1], priority=1))

        assert pool.options(priority=-2).submit(ask).result(LIMIT) == 4


# ------------------------------------------------------------------------------------- what is not


@pytest.mark.parametrize("value", [1.5, "1", None, True])
def test_other_types_are_refused(engine: Capabilities, value: Any) -> None:
    said = rf"priority must be a whole number, not {type(value).__name__}"
    with mh.Pool(1, engine=engine.name) as pool:
        with pytest.raises(TypeError, match=said):
            pool.options(priority=value)
        with pytest.raises(TypeError, match=said):
            pool.map(abs, [1], priority=value)
    with pytest.raises(TypeError, match=said):
        mh.Pool(1, engine=engine.name, priority=value)
    with pytest.raises(TypeError, match=said):
        mh.options(priority=value)


@pytest.mark.parametrize("value", [10**9 + 1, -(10**9) - 1])
def test_numbers_that_are_too_large_are_refused(engine: Capabilities, value: int) -> None:
    said = rf"priority must be from minus a billion to a billion, not {value}"
    with mh.Pool(1, engine=engine.name) as pool, pytest.raises(ValueError, match=said):
        pool.starmap(abs, [(1,)], priority=value)
    with pytest.raises(ValueError, match=said):
        mh.Pool(1, engine=engine.name, priority=value)
