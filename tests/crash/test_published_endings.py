"""Published failures of other pools at ending things: cancelling, limits, nesting, closing (P7, P8,
P10, P27, P48, P57); as in `test_published_failures.py`, each by its number.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import concurrent.futures
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import manyhands as mh
import procfs
from gate import closed_gate, pass_through
from observing import until
from programs import program, program_test

# ------------------------------------------------------------------------------------- cancelling


@program_test
def test_pebble_33_what_is_cancelled_before_it_starts() -> None:
    """pebble#33, #144, #21: it is run all the same, for a moment, behind the back of its future."""

    def work(path):
        Path(path).touch()

    told = collections.Counter()
    with mh.Pool(2) as pool, closed_gate(Path.cwd()) as gate:
        running = [pool.submit(pass_through, gate.path) for _ in range(2)]
        gate.wait_arrivals(2)
        # Some of these are already at their worker.
        queued = [pool.submit(work, os.path.abspath(f"ran{n}")) for n in range(300)]
        for future in queued:
            future.add_done_callback(lambda future: told.update([id(future)]))
        assert all(future.cancel() for future in queued)
        gate.open()
        assert [future.result(20) for future in running] == [None, None]
        assert [pool.submit(abs, -n).result(20) for n in range(50)] == list(range(50))
    assert all(future.cancelled() for future in queued)
    assert told == dict.fromkeys(map(id, queued), 1), "each was told of once"
    assert not list(Path.cwd().glob("ran*"))


@program_test
def test_ray_32954_cancelling_a_task_that_sleeps() -> None:
    """ray#32954: `ray.cancel` does nothing to it. dask#1183, loky#176, pebble#25: it runs on and
    its result is dropped."""

    def sleep(path):
        time.sleep(600)
        Path(path).touch()

    with mh.Pool(1) as pool:
        for _ in range(3):
            future = pool.submit(sleep, os.path.abspath("woken"))
            behind = pool.submit(abs, -1)
            while not future.running():
                pass
            assert future.cancel()
            try:
                future.result(20)
            except concurrent.futures.CancelledError:
                pass
            else:
                raise AssertionError("it was cancelled")
            assert behind.result(20) == 1, "its worker is free"
        assert pool.stats().pending == 0
    assert not Path("woken").exists()


@program_test
def test_pebble_154_cancelling_what_an_event_loop_awaits() -> None:
    """pebble#154: `run_in_executor` is cancelled, and its task sleeps on to its end."""

    def wait(started):
        Path(started).touch()
        time.sleep(600)

    async def main(pool):
        loop = asyncio.get_running_loop()
        task = loop.run_in_executor(pool, wait, os.path.abspath("started"))
        while not Path("started").exists():
            await asyncio.sleep(0.001)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return await loop.run_in_executor(pool, abs, -1)
        raise AssertionError("it was cancelled")

    with mh.Pool(1) as pool:
        assert asyncio.run(main(pool)) == 1


@program_test
def test_pebble_147_closing_while_large_results_are_on_their_way() -> None:
    """pebble#147: workers write large results that nobody reads any more, with a lock held, and the
    end of the pool waits for it. Here all workers leave by themselves."""

    def work(argument, seconds):
        if not registered:
            registered.append(Path(f"{folder}/{os.getpid()}"))
            # In this order: a task may be cancelled in between.
            atexit.register(registered[0].unlink, True)
            registered[0].touch()
        time.sleep(seconds)
        return argument

    registered, folder = [], os.path.abspath("alive")
    os.mkdir(folder)
    large = [0] * 1_000_000
    for _ in range(4):
        pool = mh.Pool(8, grace=600)
        futures = [pool.submit(work, large, 0.1 + n / 1000) for n in range(24)]
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in futures:
            future.cancel()
        assert all(future.done() for future in futures)
        pool.shutdown()
        assert pool.stats().workers == ()
        assert not os.listdir(folder), "somebody was killed"
        assert any(not future.cancelled() for future in futures)


# ----------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("ordered", [True, False])
@program_test
def test_joblib_1221_one_of_many_is_stuck(ordered: bool) -> None:
    """joblib#1221: 140,000 tasks, one stuck in a library: "the other 139999 tasks did not get to
    finish". joblib#522, #367: a placeholder for it. joblib#1551: what the limit is counted from."""

    def work(n):
        if n == 700:
            sum(itertools.repeat(1))  # never looks at anything
        return n

    with mh.Pool(2) as pool:
        strict = pool.map(
            work, range(14_000), ordered=ordered, task_timeout=5, grace=0.1, on_error="return"
        )
        results = strict.list()
        [failure] = strict.failures
        assert (failure.index, failure.input, failure.cause) == (700, 700, "timeout")
        assert isinstance(failure.exception, TimeoutError)
        values = [result for result in results if result is not failure]
        assert sorted(values) == [n for n in range(14_000) if n != 700]
        assert not ordered or results[700] is failure
        assert pool.stats().deaths == 0


# ------------------------------------------------------------------------------------ what is lost


@program_test
def test_joblib_1249_a_pool_after_a_crash() -> None:
    """apscheduler#362 "No further jobs can be executed in the pool until manual intervention";
    temporalio/sdk-python#245; joblib#1249, #812: one crash costs the whole pool."""

    def work(n):
        if n % 20 == 7:
            os.kill(os.getpid(), signal.SIGKILL if n % 40 == 7 else signal.SIGSEGV)
        return n

    with mh.Pool(2) as pool:
        futures = [pool.submit(work, n) for n in range(200)]
        lost = [n for n, future in enumerate(futures) if future.exception(20) is not None]
        assert lost == [n for n in range(200) if n % 20 == 7]
        for n in lost:
            error = futures[n].exception()
            assert isinstance(error, mh.WorkerDied)
            assert (error.cause, error.code) == ("signal", 9 if n % 40 == 7 else 11)
            assert f"(work({n}))" in str(error), "it names the culprit"
        assert pool.stats().deaths == len(lost)
        assert list(pool.map(abs, range(100))) == list(range(100))


@program_test
def test_rq_2015_a_task_whose_worker_is_killed_runs_again() -> None:
    """rq#2015: a retry is not made after a kill; distributed#2078: nor does what kills worker after
    worker run for ever."""

    def work(path, kills):
        with open(path, "ab", buffering=0) as file:
            file.write(b"x")
        if os.path.getsize(path) <= kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.path.getsize(path)

    with mh.Pool(2) as pool:
        patient = pool.options(retry=10)
        assert patient.submit(work, os.path.abspath("once"), 1).result(20) == 2
        error = patient.submit(work, os.path.abspath("always"), 100).exception(20)
        assert isinstance(error, mh.WorkerDied)
        assert Path("always").read_text() == "xx", "quarantined after two deaths"
        assert pool.submit(abs, -1).result(20) == 1


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
@program_test
def test_distributed_5497_work_after_work_that_failed(engine: str) -> None:
    """distributed#5497: after a computation whose tasks failed, the next one never ends."""

    def fail(n):
        raise RuntimeError(n)

    with mh.Pool(2, engine=engine) as pool:
        for _ in range(20):
            try:
                list(pool.map(fail, range(200)))
            except RuntimeError:
                pass
            else:
                raise AssertionError("nothing was raised")
            assert pool.submit(lambda x: x + 1, 1).result(20) == 2


# ----------------------------------------------------------------------------------------- nesting


@program_test
def test_pebble_76_maps_in_tasks_of_maps() -> None:
    """pebble#31, #76, simpletransformers#1247: "daemonic processes are not allowed to have
    children". Three levels, each wider than there are workers."""

    def leaf(n):
        return n

    def branch(n):
        return sum(mh.map(leaf, range(n, n + 4)))

    def root(n):
        return sum(mh.map(branch, range(n, n + 3)))

    expected = [sum(4 * (n + m) + 6 for m in range(3)) for n in range(4)]
    with mh.Pool(2) as pool:
        assert list(pool.map(root, range(4))) == expected
        assert [pool.submit(root, n).result(60) for n in range(4)] == expected


@program_test
def test_simpletransformers_1247_other_pools_in_a_task() -> None:
    """simpletransformers#1247, fastapi#12936: a library that a task calls has a pool of its own."""

    def standard(n):
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as inner:
            first = list(inner.map(abs, range(-n, 0)))
        with context.Pool(2) as inner:
            return first, inner.map(abs, range(-n, 0))

    with mh.Pool(2) as pool:
        for n, found in enumerate(pool.map(standard, range(1, 4)), start=1):
            assert found == (list(range(n, 0, -1)),) * 2


@program_test
def test_mpire_74_maps_at_the_same_time() -> None:
    """P57 (mpire#74): while a lazy map is open, another one on the same pool is refused."""

    def count(start):
        futures = [pool.submit(abs, -n) for n in range(start, start + 100)]
        assert list(pool.map(abs, range(start, start + 1000))) == list(range(start, start + 1000))
        assert [future.result(20) for future in futures] == list(range(start, start + 100))
        counted.append(start)

    counted = []
    with mh.Pool(2) as pool:
        first = pool.map(abs, range(5000))
        second = pool.map(abs, itertools.count(), ordered=False)
        threads = [threading.Thread(target=count, args=(n * 10_000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        seen = set()
        for expected, result in enumerate(first):
            assert result == expected
            seen.add(next(second))
        assert len(seen) == 5000
        second.close()
        for thread in threads:
            thread.join()
    assert sorted(counted) == [0, 10_000, 20_000, 30_000]


# ------------------------------------------------------------------------------------ what remains


@program_test
def test_joblib_1786_what_is_left_when_pools_are_closed() -> None:
    """joblib#945: idle workers stay. joblib#1786, #1153: so do helpers, with 800 MB.

    Of ours one process stays until the program ends, for the pools to come: the one that workers
    are forked from. It has what was preloaded, and here that is nothing.
    """
    for _ in range(3):
        with mh.Pool(4) as pool:
            assert list(pool.map(len, [bytes(1_000_000)] * 50)) == [1_000_000] * 50
        deadline = time.monotonic() + 20
        while procfs.children(mh._core.zygote_pid()) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not procfs.children(mh._core.zygote_pid())
        assert set(procfs.children(os.getpid())) == {mh._core.zygote_pid()}
        assert procfs.resident_bytes(mh._core.zygote_pid()) < 64e6
    del pool
    # What the next worker would find, and the addresses of the store, without memory.
    kept = ["/memfd:manyhands-birth (deleted)", "/memfd:manyhands-store (deleted)"]

    def memory():
        return sorted(name for name in procfs.descriptors().values() if "memfd" in name)

    until(lambda: memory() == kept, memory)  # the pool's own goes when its supervisor comes to that
    assert mh.Pool(1).stats().store.live == 0


@program
def a_logger_with_handlers() -> None:
    logger = logging.getLogger()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)

    def work(n):
        logger.warning("calling %d", n)
        return n

    with mh.Pool(2) as pool:
        assert list(pool.map(work, range(10))) == list(range(10))
        assert [pool.submit(work, n).result(20) for n in range(10, 20)] == list(range(10, 20))
    print("fine")


def test_joblib_634_a_logger_that_has_handlers() -> None:
    """P49 (joblib#634): a function cannot be sent because its global logger writes to a file.

    The handlers are the parent's and stay there: they handle what workers log.
    """
    ended = a_logger_with_handlers.run().check()
    assert ended.err == ""
    *lines, last = ended.out.splitlines()
    assert last == "fine"
    lines.sort(key=lambda line: int(line.split()[-1]))
    assert lines == [f"WARNING: calling {n}" for n in range(20)]
