"""Futures behave as those of `concurrent.futures`, and can be awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    as_completed,
    wait,
)
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, pass_through


@pytest.fixture
def single() -> Iterator[mh.Pool]:
    """One worker: what is submitted second waits for the first."""
    with mh.Pool(1, name="single") as pool:
        yield pool


def same(value: Any) -> Any:
    return value


def fail(text: str) -> None:
    raise ValueError(text)


# ------------------------------------------------------------------------------ states and results


def test_it_is_a_future_of_the_standard_library(pool: mh.Pool) -> None:
    future = pool.submit(same, 1)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, mh.Future)
    assert future.result() == 1
    assert future.exception() is None


def test_states_of_a_task_that_runs(single: mh.Pool, gate: Gate) -> None:
    running = single.submit(pass_through, gate.path, "value")
    queued = single.submit(same, 2)
    gate.wait_arrivals()
    assert (running.running(), running.done(), running.cancelled()) == (True, False, False)
    assert (queued.running(), queued.done(), queued.cancelled()) == (False, False, False)
    gate.open()
    assert running.result() == "value"
    assert (running.running(), running.done(), running.cancelled()) == (False, True, False)
    assert queued.result() == 2
    assert (queued.running(), queued.done(), queued.cancelled()) == (False, True, False)


def test_states_of_a_task_that_failed(pool: mh.Pool) -> None:
    future = pool.submit(fail, "no")
    error = future.exception()
    assert type(error) is ValueError
    assert error.args == ("no",)
    assert (future.running(), future.done(), future.cancelled()) == (False, True, False)
    with pytest.raises(ValueError, match="no") as caught:
        future.result()
    assert caught.value is error


def test_done_without_asking_for_the_result(pool: mh.Pool, gate: Gate) -> None:
    future = pool.submit(pass_through, gate.path)
    gate.wait_arrivals()
    assert not future.done()
    gate.open()
    while not future.done():
        pass
    assert not future.running()


def test_a_result_is_the_same_object_each_time(pool: mh.Pool) -> None:
    future = pool.submit(list, (1, 2))
    assert future.result() is future.result()


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01, -1])
def test_a_timeout_leaves_the_task_alone(pool: mh.Pool, gate: Gate, timeout: float) -> None:
    future = pool.submit(pass_through, gate.path, 5)
    gate.wait_arrivals()
    with pytest.raises(TimeoutError):
        future.result(timeout)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(timeout=timeout)
    assert future.running()
    gate.open()
    assert future.result(timeout=60) == 5
    assert future.exception(timeout=60) is None
    assert future.result(0) == 5


def test_many_threads_wait_for_one_future(pool: mh.Pool, gate: Gate) -> None:
    future = pool.submit(pass_through, gate.path, ["value"])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(future.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.wait_arrivals()
    gate.open()
    for thread in threads:
        thread.join()
    assert found == [["value"]] * 8
    assert all(item is found[0] for item in found)


def test_threads_wait_for_different_futures(pool: mh.Pool) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        for step in range(100):
            if pool.submit(same, (number, step)).result() != (number, step):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_dropped_future_still_runs(pool: mh.Pool, tmp_path: Path) -> None:
    for number in range(20):
        pool.submit((tmp_path / str(number)).touch)
    while pool.stats().pending:
        wait([pool.submit(same, None)])
    assert len(list(tmp_path.iterdir())) == 20


def test_a_finished_future_is_let_go(pool: mh.Pool) -> None:
    future = pool.submit(same, 1)
    future.add_done_callback(lambda future: None)
    future.result()
    told = threading.Event()
    future.add_done_callback(lambda future: told.set())
    told.wait()
    reference = weakref.ref(future)
    # The thread that tells may be in its last steps with the future.
    barrier = pool.submit(same, 2)
    wait([barrier])
    del future
    while reference() is not None:
        gc.collect()
        wait([pool.submit(same, 3)])


def test_only_the_pool_moves_its_futures(pool: mh.Pool) -> None:
    future = pool.submit(same, 1)
    with pytest.raises(RuntimeError, match="pool alone"):
        future.set_result(2)
    with pytest.raises(RuntimeError, match="pool alone"):
        future.set_exception(ValueError())
    with pytest.raises(RuntimeError, match="pool alone"):
        future.set_running_or_notify_cancel()
    assert future.result() == 1


def test_one_cannot_make_futures() -> None:
    future: mh.Future[int] = mh.Future()
    for ask in (future.result, future.exception, future.done, future.cancel, future.running):
        with pytest.raises(RuntimeError, match="made by submit"):
            ask()


def test_a_future_cannot_be_pickled(pool: mh.Pool) -> None:
    future = pool.submit(same, 1)
    with pytest.raises(TypeError):
        pickle.dumps(future)
    with pytest.raises(mh.NotPicklable, match=r"args\[0\]"):
        pool.submit(same, future)


def test_repr_tells_the_state(single: mh.Pool, gate: Gate) -> None:
    running = single.submit(pass_through, gate.path)
    queued = single.submit(same, 1)
    cancelled = single.submit(same, 2)
    gate.wait_arrivals()
    cancelled.cancel()
    assert "running" in repr(running)
    assert "pending" in repr(queued)
    assert "cancelled" in repr(cancelled)
    gate.open()
    wait([running, queued])
    assert "finished" in repr(running)
    assert repr(running).startswith("<manyhands.Future at 0x")


# ------------------------------------------------------------------------------------ cancelling


def test_cancel_what_is_queued(single: mh.Pool, gate: Gate, tmp_path: Path) -> None:
    running = single.submit(pass_through, gate.path)
    trace = tmp_path / "trace"
    queued = [single.submit(trace.touch) for _ in range(100)]
    gate.wait_arrivals()
    assert all(future.cancel() for future in queued)
    assert all(future.cancel() for future in queued)  # and once more
    for future in queued:
        assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception()
    gate.open()
    running.result()
    assert single.submit(same, 1).result() == 1
    assert not trace.exists()


def test_cancel_what_is_over(single: mh.Pool) -> None:
    """What runs is ended: test_stopping.py."""
    done = single.submit(same, 3)
    assert done.result() == 3
    assert done.cancel() is False
    assert done.result() == 3
    failed = single.submit(fail, "x")
    failed.exception()
    assert failed.cancel() is False


def test_cancel_while_threads_wait(single: mh.Pool, gate: Gate) -> None:
    single.submit(pass_through, gate.path)
    queued = single.submit(same, 1)
    gate.wait_arrivals()
    caught: list[BaseException] = []
    waiting = threading.Barrier(3)

    def ask() -> None:
        waiting.wait()
        try:
            queued.result()
        except BaseException as error:
            caught.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait()
    assert queued.cancel()
    for thread in threads:
        thread.join()
    assert [type(error) for error in caught] == [CancelledError] * 2


def test_every_second_one_cancelled(single: mh.Pool, gate: Gate) -> None:
    single.submit(pass_through, gate.path)
    futures = [single.submit(same, number) for number in range(1000)]
    gate.wait_arrivals()
    cancelled = [future.cancel() for future in futures[::2]]
    assert all(cancelled)
    gate.open()
    assert [future.result() for future in futures[1::2]] == list(range(1, 1000, 2))
    assert all(future.cancelled() for future in futures[::2])


# --------------------------------------------------------------------- wait and as_completed


def test_wait_for_all(pool: mh.Pool) -> None:
    futures = [pool.submit(same, number) for number in range(50)]
    done, pending = wait(futures, return_when=ALL_COMPLETED)
    assert done == set(futures)
    assert pending == set()
    assert wait(futures) == (set(futures), set())  # all are over already


def test_wait_for_the_first(pool: mh.Pool, gate: Gate) -> None:
    held = pool.submit(pass_through, gate.path)
    quick = pool.submit(same, 1)
    done, pending = wait([held, quick], return_when=FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {held})


def test_wait_for_the_first_exception(pool: mh.Pool, gate: Gate) -> None:
    held = pool.submit(pass_through, gate.path)
    good = pool.submit(same, 1)
    bad = pool.submit(fail, "x")
    done, pending = wait([held, good, bad], return_when=FIRST_EXCEPTION)
    assert bad in done
    assert held in pending
    assert wait([good, bad], return_when=FIRST_EXCEPTION).done >= {bad}


def test_wait_first_exception_without_one(pool: mh.Pool) -> None:
    futures = [pool.submit(same, number) for number in range(5)]
    assert wait(futures, return_when=FIRST_EXCEPTION) == (set(futures), set())


def test_wait_with_a_timeout(pool: mh.Pool, gate: Gate) -> None:
    held = pool.submit(pass_through, gate.path)
    quick = pool.submit(same, 1)
    quick.result()
    assert wait([held, quick], timeout=0.01) == ({quick}, {held})
    assert wait([held], timeout=0) == (set(), {held})


def test_wait_with_cancelled_ones(single: mh.Pool, gate: Gate) -> None:
    held = single.submit(pass_through, gate.path)
    before = single.submit(same, 1)
    during = single.submit(same, 2)
    gate.wait_arrivals()
    before.cancel()
    assert wait([held, before], return_when=FIRST_COMPLETED).done == {before}
    waited: list[Any] = []
    thread = threading.Thread(
        target=lambda: waited.append(wait([held, during], return_when=FIRST_COMPLETED))
    )
    thread.start()
    during.cancel()
    thread.join()
    assert waited[0].done == {during}
    gate.open()
    assert wait([held, before, during]).not_done == set()


def test_as_completed(pool: mh.Pool) -> None:
    futures = {pool.submit(same, number): number for number in range(500)}
    seen = [(futures[future], future.result()) for future in as_completed(futures)]  # type: ignore[index]
    assert sorted(seen) == [(number, number) for number in range(500)]


def test_as_completed_gives_the_quick_ones_first(pool: mh.Pool, gate: Gate) -> None:
    held = pool.submit(pass_through, gate.path, "held")
    gate.wait_arrivals()
    quick = [pool.submit(same, number) for number in range(10)]
    order = []
    for future in as_completed([held, *quick]):
        order.append(future.result())
        if len(order) == 10:
            gate.open()
    assert sorted(order[:10]) == list(range(10))
    assert order[10] == "held"


def test_as_completed_with_cancelled_and_failed_ones(single: mh.Pool, gate: Gate) -> None:
    held = single.submit(pass_through, gate.path)
    cancelled = single.submit(same, 1)
    failed = single.submit(fail, "x")
    gate.wait_arrivals()
    iterator = as_completed([held, cancelled, failed])
    assert cancelled.cancel()
    assert next(iterator) is cancelled
    gate.open()
    assert list(iterator) == [held, failed]


def test_as_completed_with_a_timeout(pool: mh.Pool, gate: Gate) -> None:
    held = pool.submit(pass_through, gate.path)
    iterator = as_completed([held], timeout=0.01)
    with pytest.raises(TimeoutError):
        next(iterator)


def test_as_completed_over_several_pools_and_a_thread_pool(pool: mh.Pool) -> None:
    with mh.Pool(1) as other, concurrent.futures.ThreadPoolExecutor(1) as threads:
        futures = [executor.submit(same, 1) for executor in (pool, other, threads)]
        assert {future.result() for future in as_completed(futures)} == {1}
        assert wait(futures).done == set(futures)


def test_observed_and_not_observed(pool: mh.Pool) -> None:
    futures = [pool.submit(same, number) for number in range(200)]
    for future in futures[::2]:
        future.add_done_callback(lambda future: None)
    assert [future.result() for future in futures] == list(range(200))
    assert wait(futures).not_done == set()


# ------------------------------------------------------------------------------------- callbacks


def called(register: Callable[[Callable[[Any], object]], None]) -> Any:
    """What a callback gets."""
    ready = threading.Event()
    found: list[Any] = []

    def callback(argument: Any) -> None:
        found.append(argument)
        ready.set()

    register(callback)
    ready.wait()
    return found[0]


def test_a_callback_before_the_end(pool: mh.Pool, gate: Gate) -> None:
    future = pool.submit(pass_through, gate.path, 1)
    gate.wait_arrivals()

    def register(callback: Callable[[Any], object]) -> None:
        future.add_done_callback(callback)
        gate.open()

    assert called(register) is future
    assert future.done()
    assert future.result() == 1


def test_a_callback_after_the_end_runs_at_once(pool: mh.Pool) -> None:
    future = pool.submit(same, 1)
    future.result()
    threads: list[Any] = []
    future.add_done_callback(lambda future: threads.append(threading.current_thread()))
    future.add_done_callback(lambda future: threads.append(future.result()))
    assert threads[-1] == 1
    assert threads[0] is threading.current_thread()


def test_callbacks_in_order(pool: mh.Pool, gate: Gate) -> None:
    future = pool.submit(pass_through, gate.path)
    order: list[int] = []
    over = threading.Event()
    for number in range(10):
        future.add_done_callback(lambda future, number=number: order.append(number))
    future.add_done_callback(lambda future: over.set())
    gate.open()
    over.wait()
    assert order == list(range(10))


def test_callbacks_of_cancelled_and_failed_tasks(single: mh.Pool, gate: Gate) -> None:
    single.submit(pass_through, gate.path)
    cancelled = single.submit(same, 1)
    failed = single.submit(fail, "x")
    gate.wait_arrivals()

    def cancel(callback: Callable[[Any], object]) -> None:
        cancelled.add_done_callback(callback)
        cancelled.cancel()

    assert called(cancel).cancelled()
    gate.open()
    assert isinstance(called(failed.add_done_callback).exception(), ValueError)


def test_a_callback_that_raises_is_logged(
    pool: mh.Pool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(future: Any) -> None:
        raise LookupError("in the callback")

    future = pool.submit(pass_through, gate.path)
    over = threading.Event()
    future.add_done_callback(bad)
    future.add_done_callback(lambda future: over.set())
    with caplog.at_level(logging.ERROR, "manyhands"):
        gate.open()
        over.wait()  # the next callback runs nevertheless
        future.add_done_callback(bad)
    records = [record for record in caplog.records if record.name == "manyhands"]
    assert len(records) == 2
    assert all("in the callback" in str(record.exc_info) for record in records)
    assert repr(future) in records[0].getMessage()


def test_a_callback_may_submit_and_wait(pool: mh.Pool) -> None:
    found: list[Any] = []
    over = threading.Event()

    def callback(future: Any) -> None:
        found.append(pool.submit(same, future.result() + 1).result())
        over.set()

    pool.submit(same, 1).add_done_callback(callback)
    over.wait()
    assert found == [2]


def test_a_callback_may_add_a_callback(pool: mh.Pool, gate: Gate) -> None:
    over = threading.Event()
    future = pool.submit(pass_through, gate.path)
    future.add_done_callback(lambda future: future.add_done_callback(lambda future: over.set()))
    gate.open()
    over.wait()


# ------------------------------------------------------------------------------------- asyncio


def test_await(pool: mh.Pool) -> None:
    async def main() -> Any:
        return await pool.submit(same, 1) + await pool.submit(same, 2)

    assert asyncio.run(main()) == 3


def test_await_raises_what_the_task_raised(pool: mh.Pool) -> None:
    async def main() -> None:
        await pool.submit(fail, "awaited")

    with pytest.raises(ValueError, match="awaited") as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, mh.RemoteTraceback)


def test_the_loop_goes_on_while_a_task_runs(pool: mh.Pool, gate: Gate) -> None:
    async def open_later() -> None:
        await asyncio.to_thread(gate.wait_arrivals)
        gate.open()

    async def main() -> Any:
        opener = asyncio.create_task(open_later())
        result = await pool.submit(pass_through, gate.path, "through")
        await opener
        return result

    assert asyncio.run(main()) == "through"


def test_gather_and_wrap_future(pool: mh.Pool) -> None:
    async def main() -> Any:
        gathered = await asyncio.gather(*[pool.submit(same, number) for number in range(100)])
        wrapped = await asyncio.wrap_future(pool.submit(same, "wrapped"))
        mixed = await asyncio.gather(pool.submit(fail, "x"), return_exceptions=True)
        return gathered, wrapped, mixed

    gathered, wrapped, mixed = asyncio.run(main())
    assert gathered == list(range(100))
    assert wrapped == "wrapped"
    assert isinstance(mixed[0], ValueError)


def test_run_in_executor(pool: mh.Pool) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *[loop.run_in_executor(pool, pow, 2, number) for number in range(20)]
        )

    assert asyncio.run(main()) == [2**number for number in range(20)]


def test_wait_for(pool: mh.Pool, gate: Gate) -> None:
    async def main() -> None:
        assert await asyncio.wait_for(pool.submit(same, 1), 60) == 1
        held = pool.submit(pass_through, gate.path, 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(held)), 0.01)
        gate.open()
        assert await held == 2

    asyncio.run(main())


def test_wait_for_cancels_what_it_waited_for(single: mh.Pool, gate: Gate) -> None:
    async def main() -> None:
        held = single.submit(pass_through, gate.path, 1)
        queued = single.submit(same, 2)
        await asyncio.to_thread(gate.wait_arrivals)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queued, 0.01)
        assert queued.cancelled()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(held, 0.01)
        assert held.cancelled()
        assert await single.submit(same, 3) == 3

    asyncio.run(main())


async def cancel_who_awaits(future: mh.Future[Any]) -> None:
    async def ask() -> Any:
        return await future

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


def test_cancelling_the_awaiting_task_cancels_the_queued_one(single: mh.Pool, gate: Gate) -> None:
    async def main() -> None:
        single.submit(pass_through, gate.path)
        queued = single.submit(same, 2)
        await asyncio.to_thread(gate.wait_arrivals)
        await cancel_who_awaits(queued)
        assert queued.cancelled()

    asyncio.run(main())


def test_cancelling_the_awaiting_task_ends_the_running_one(gate: Gate, tmp_path: Path) -> None:
    """It is asked to end and may clean up; its worker goes on with the next."""
    heard = tmp_path / "heard"

    def work(path: str) -> Any:
        try:
            return pass_through(path)
        except mh.TaskStopped as asked:
            heard.write_text(str(asked))
            raise

    async def main(pool: mh.Pool) -> None:
        pid = await pool.submit(os.getpid)
        running = pool.submit(work, gate.path)
        await asyncio.to_thread(gate.wait_arrivals)
        assert running.running()
        await cancel_who_awaits(running)
        assert running.cancelled()
        # There is one worker: when it runs this, it has done with the other.
        assert await asyncio.wait_for(pool.submit(os.getpid), 60) == pid
        assert "is to end" in heard.read_text()

    # Nobody is killed: there is time enough to hear it.
    with mh.Pool(1, grace=600) as pool:
        asyncio.run(main(pool))


def test_a_cancelled_task_is_cancelled_for_who_awaits_it(single: mh.Pool, gate: Gate) -> None:
    async def main() -> None:
        single.submit(pass_through, gate.path)
        queued = single.submit(same, 2)
        await asyncio.to_thread(gate.wait_arrivals)
        wrapped = asyncio.wrap_future(queued)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        with pytest.raises(asyncio.CancelledError):
            await queued

    asyncio.run(main())


def test_await_a_second_time_and_in_another_loop(pool: mh.Pool) -> None:
    future = pool.submit(same, 4)

    async def main() -> Any:
        return await future, await future

    assert asyncio.run(main()) == (4, 4)
    assert asyncio.run(main()) == (4, 4)


def test_await_outside_a_loop(pool: mh.Pool) -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        next(pool.submit(same, 1).__await__())


def test_the_default_pool_from_a_loop() -> None:
    async def main() -> Any:
        return await mh.submit(same, 9)

    assert asyncio.run(main()) == 9
