"""The futures of every engine are those of `concurrent.futures`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from capabilities import Capabilities
from tasks import Fatal, fail, leave_trace, square, traces

import manyhands as mh
from gate import Gate, pass_through


def test_it_is_one_of_the_standard_library(pool: mh.Pool) -> None:
    future = pool.submit(square, 3)
    assert isinstance(future, mh.Future)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(pool, concurrent.futures.Executor)
    assert future.result() == 9
    assert future.result() is future.result()
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert "state=finished" in repr(future)


def test_one_that_failed(pool: mh.Pool) -> None:
    future = pool.submit(fail, 1)
    error = future.exception()
    assert isinstance(error, ValueError)
    assert future.exception() is error
    for _ in range(2):
        with pytest.raises(ValueError, match="item 1") as caught:
            future.result()
        assert caught.value is error
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)


def test_one_that_runs(engine: Capabilities, gate: Gate) -> None:
    with mh.Pool(1, engine=engine.name) as pool:
        if not engine.background:
            gate.open()
            future = pool.submit(pass_through, gate.path, "value")
            assert future.done(), "it ran in the call"
            assert future.result(timeout=0) == "value"
            assert future.cancel() is False
            return
        future = pool.submit(pass_through, gate.path, "value")
        waiting = pool.submit(square, 3)
        gate.wait_arrivals()
        assert (future.done(), future.running(), future.cancelled()) == (False, True, False)
        assert (waiting.done(), waiting.running()) == (False, False)
        assert "state=running" in repr(future)
        if not engine.kill:
            assert future.cancel() is False
        for timeout in (0, 0.01, -1):
            with pytest.raises(TimeoutError):
                future.result(timeout)
            with pytest.raises(TimeoutError):
                future.exception(timeout=timeout)
        gate.open()
        assert future.result(timeout=60) == "value"
        assert waiting.result() == 9
        assert future.cancel() is False, "it is over"


def test_cancel_what_runs(engine: Capabilities, gate: Gate) -> None:
    if not engine.background:
        return  # nothing runs between two calls
    with mh.Pool(1, engine=engine.name) as pool:
        future = pool.submit(pass_through, gate.path, "value")
        waiting = pool.submit(square, 3)
        gate.wait_arrivals()
        assert future.cancel() is engine.kill
        assert future.cancelled() is engine.kill
        if not engine.kill:
            gate.open()
            assert future.result() == "value"
        assert waiting.result() == 9


def test_cancel_what_waits(engine: Capabilities, gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "ran").mkdir()
    folder = str(tmp_path / "ran")
    with mh.Pool(1, engine=engine.name) as pool:
        if not engine.background:
            future = pool.submit(leave_trace, folder, 1)
            assert (future.cancel(), future.cancelled()) == (False, False), "nothing ever waits"
            assert traces(tmp_path / "ran") == [1]
            return
        held = pool.submit(pass_through, gate.path)
        gate.wait_arrivals()
        futures = [pool.submit(leave_trace, folder, number) for number in range(10)]
        for future in futures[::2]:
            assert future.cancel() is True
            assert future.cancel() is True
            assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
            assert "state=cancelled" in repr(future)
            with pytest.raises(concurrent.futures.CancelledError):
                future.result()
            with pytest.raises(concurrent.futures.CancelledError):
                future.exception()
        gate.open()
        held.result()
        concurrent.futures.wait(futures)
    assert traces(tmp_path / "ran") == [1, 3, 5, 7, 9]


def test_callbacks(engine: Capabilities, pool: mh.Pool, gate: Gate) -> None:
    told: list[tuple[str, Any, bool]] = []
    all_told = threading.Event()

    def tell(name: str) -> Any:
        def callback(future: Any) -> None:
            told.append((name, future, future.done()))
            if len(told) == 2:
                all_told.set()

        return callback

    if not engine.background:
        gate.open()
    future = pool.submit(pass_through, gate.path, 1)
    future.add_done_callback(tell("one"))
    future.add_done_callback(tell("two"))
    if engine.background:
        assert told == []
        gate.open()
    assert future.result() == 1
    assert all_told.wait(60)
    assert told == [("one", future, True), ("two", future, True)]
    future.add_done_callback(tell("three"))
    assert told[2:] == [("three", future, True)], "at once, where it is over"


@pytest.mark.parametrize("end", ["block", "shutdown", "terminate"])
def test_all_callbacks_have_run_when_a_pool_has_ended(engine: Capabilities, end: str) -> None:
    told: list[int] = []

    def tell(future: Any) -> None:
        time.sleep(0.05)
        told.append(future.result())

    pool = mh.Pool(2, engine=engine.name)
    with pool if end == "block" else contextlib.nullcontext():
        futures = [pool.submit(abs, -number) for number in range(5)]
        for future in futures:
            future.add_done_callback(tell)
        if end != "block":
            concurrent.futures.wait(futures)
            getattr(pool, end)()
    assert sorted(told) == list(range(5))


def test_a_callback_of_what_failed_or_was_cancelled(
    engine: Capabilities, pool: mh.Pool, gate: Gate
) -> None:
    told: list[Any] = []
    done = threading.Semaphore(0)

    def callback(future: Any) -> None:
        told.append(future)
        done.release()

    failed = pool.submit(fail, 1)
    failed.add_done_callback(callback)
    expected = [failed]
    assert done.acquire(timeout=60)
    if engine.background:
        held = [pool.submit(pass_through, gate.path) for _ in range(2)]
        gate.wait_arrivals(2)
        cancelled = pool.submit(square, 3)
        cancelled.add_done_callback(callback)
        cancelled.cancel()
        assert done.acquire(timeout=60)
        expected.append(cancelled)
        gate.open()
        concurrent.futures.wait(held)
    assert told == expected


def test_a_callback_that_raises_is_logged(pool: mh.Pool, caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    def raises(future: Any) -> None:
        raise Fatal("in a callback")

    def tells(future: Any) -> None:
        told.set()

    with caplog.at_level(logging.ERROR, "manyhands"):
        future = pool.submit(square, 3)
        future.add_done_callback(raises)
        future.add_done_callback(tells)
        assert told.wait(60)
    assert future.result() == 9
    [record] = caplog.records
    assert record.name == "manyhands"
    assert "raised" in record.getMessage()


def test_wait_and_as_completed(pool: mh.Pool) -> None:
    futures = [pool.submit(square, number) for number in range(20)]
    bad = pool.submit(fail, 1)
    done, not_done = concurrent.futures.wait([*futures, bad])
    assert (len(done), len(not_done)) == (21, 0)
    again = concurrent.futures.as_completed([*futures, bad])
    assert {id(future) for future in again} == {id(future) for future in [*futures, bad]}
    assert concurrent.futures.wait([bad], return_when="FIRST_EXCEPTION").done == {bad}
    fresh = [pool.submit(square, number) for number in range(20)]
    results = [future.result() for future in concurrent.futures.as_completed(fresh)]
    assert sorted(results) == [number**2 for number in range(20)]


def test_wait_for_the_first(engine: Capabilities, pool: mh.Pool, gate: Gate) -> None:
    if not engine.background:
        gate.open()
    slow = pool.submit(pass_through, gate.path)
    if engine.background:
        gate.wait_arrivals()
    quick = pool.submit(square, 3)
    done, not_done = concurrent.futures.wait([slow, quick], return_when="FIRST_COMPLETED")
    assert quick in done
    assert (slow in not_done) == engine.background
    if engine.background:
        assert concurrent.futures.wait([slow], timeout=0.01).not_done == {slow}
        with pytest.raises(TimeoutError):
            list(concurrent.futures.as_completed([slow], timeout=0.01))
    gate.open()
    assert concurrent.futures.wait([slow]).done == {slow}


def test_futures_of_other_executors_beside_them(pool: mh.Pool) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        futures: list[concurrent.futures.Future[int]] = [
            pool.submit(square, 2),
            other.submit(square, 3),
            mh.submit(square, 4),
        ]
        done = concurrent.futures.as_completed(futures)
        assert sorted(future.result() for future in done) == [4, 9, 16]


def test_await(pool: mh.Pool) -> None:
    async def main() -> None:
        assert await pool.submit(square, 3) == 9
        future = pool.submit(square, 4)
        assert [await future, await future] == [16, 16]
        assert await asyncio.gather(*map(asyncio.wrap_future, [future])) == [16]
        with pytest.raises(ValueError, match="item 1"):
            await pool.submit(fail, 1)
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, square, 5) == 25
        many = [pool.submit(square, number) for number in range(50)]
        assert [await one for one in many] == [number**2 for number in range(50)]

    asyncio.run(main())


def test_the_loop_goes_on_where_tasks_run_elsewhere(
    engine: Capabilities, pool: mh.Pool, gate: Gate
) -> None:
    async def main() -> list[str]:
        order = []

        async def opens() -> None:
            order.append("other")
            gate.open()

        if not engine.background:
            gate.open()
        other = asyncio.create_task(opens())
        future = pool.submit(pass_through, gate.path)
        order.append("submitted")
        await future
        order.append("awaited")
        await other
        return order

    order = asyncio.run(main())
    # Inline the task holds the loop up: it has run before `submit` returned.
    assert order[0] == "submitted"
    assert sorted(order) == ["awaited", "other", "submitted"]
    if engine.background:
        assert order == ["submitted", "other", "awaited"]


def test_cancelling_who_awaits_cancels_what_waits(engine: Capabilities, gate: Gate) -> None:
    async def main(pool: mh.Pool) -> None:
        held = pool.submit(pass_through, gate.path)
        gate.wait_arrivals()
        waits = pool.submit(square, 3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(waits), 0.01)
        assert waits.cancelled()
        gate.open()
        assert await held is None

    with mh.Pool(1, engine=engine.name) as pool:
        if engine.background:
            asyncio.run(main(pool))
        else:
            future = pool.submit(square, 3)
            assert asyncio.run(asyncio.wait_for(awaited(future), 60)) == 9
            assert not future.cancelled()


async def awaited(future: mh.Future[Any]) -> Any:
    return await future


def test_only_the_pool_moves_them(pool: mh.Pool) -> None:
    future = pool.submit(square, 3)
    for move in (
        lambda: future.set_result(1),
        lambda: future.set_exception(ValueError()),
        future.set_running_or_notify_cancel,
    ):
        with pytest.raises(RuntimeError, match="moved by their pool alone"):
            move()
    assert future.result() == 9


def test_many_threads_ask_one_future(engine: Capabilities, pool: mh.Pool, gate: Gate) -> None:
    if not engine.background:
        gate.open()
    future = pool.submit(pass_through, gate.path, 7)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(future.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join()
    assert got == [7] * 8


def test_a_dropped_future_still_runs(engine: Capabilities, tmp_path: Path) -> None:
    with mh.Pool(2, engine=engine.name) as pool:
        for number in range(20):
            pool.submit(leave_trace, str(tmp_path), number)
    assert traces(tmp_path) == list(range(20))
