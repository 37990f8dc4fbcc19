# ruff: noqa: PT017 - these programs run without pytest.
"""Pools that are used from many threads at once, and the threads of the parent that fork or die."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
import time
from pathlib import Path

import manyhands as mh
import procfs
from gate import closed_gate, pass_through
from programs import program_test


@program_test
def test_many_threads_use_one_pool() -> None:
    def use(number):
        try:
            choose = random.Random(number)
            for turn in range(40):
                kind = choose.randrange(5)
                base = 1000 * number + turn
                if kind == 0:
                    assert pool.submit(abs, -base).result(25) == base
                elif kind == 1:
                    expected = [abs(n) for n in range(-base, -base + 20)]
                    assert list(pool.map(abs, range(-base, -base + 20))) == expected
                elif kind == 2:
                    futures = {pool.submit(abs, -base - n): base + n for n in range(20)}
                    for future in concurrent.futures.as_completed(futures, timeout=25):
                        assert future.result() == futures[future]
                elif kind == 3:
                    futures = [pool.submit(time.sleep, 0.0001) for _ in range(20)]
                    for future in futures[::-2]:
                        future.cancel()
                    assert not concurrent.futures.wait(futures, timeout=25).not_done
                else:
                    assert len(pool.submit(bytes, 1_500_000).result(25)) == 1_500_000
            finished.append(number)
        except BaseException as error:
            problems.append(error)
            raise

    finished: list[int] = []
    problems: list[BaseException] = []
    with mh.Pool(3) as pool:
        threads = [threading.Thread(target=use, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        assert len(finished) == 12
        assert pool.stats().pending == 0
        print(pool.stats())


@program_test
def test_many_threads_wait_for_the_same_future() -> None:
    with mh.Pool(1) as pool:
        for _ in range(20):
            future = pool.submit(time.sleep, 0.005)
            results: list = []
            threads = [
                threading.Thread(target=lambda f=future, r=results: r.append(f.result(20)))
                for _ in range(20)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(25)
            assert results == [None] * 20


@program_test
def test_all_threads_get_the_same_object() -> None:
    with mh.Pool(1) as pool:
        for _ in range(50):
            future = pool.submit(list, range(1000))
            barrier = threading.Barrier(4)
            found: list = []

            def take(future=future, barrier=barrier, found=found):
                barrier.wait()
                found.append(id(future.result(20)))

            threads = [threading.Thread(target=take) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert len(found) == 4
            assert len(set(found)) == 1


@program_test
def test_threads_that_start_and_stop_pools() -> None:
    def use(number):
        for turn in range(8):
            with mh.Pool(1 + turn % 2) as pool:
                assert pool.submit(abs, -turn).result(25) == turn
        finished.append(number)

    finished: list = []
    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(finished) == 6
    assert len(procfs.children(os.getpid())) == 1


@program_test
def test_the_default_pool_is_made_once() -> None:
    barrier = threading.Barrier(8)
    results: list = []

    def use():
        barrier.wait()
        results.append(mh.submit(abs, -1).result(25))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 8
    assert len(procfs.children(os.getpid())) == 1


@program_test
def test_a_pool_that_is_shut_down_while_others_submit() -> None:
    def use():
        taken = 0
        try:
            while True:
                futures.append(pool.submit(abs, -1))
                taken += 1
        except RuntimeError as error:
            assert "shut down" in str(error)
        counts.append(taken)

    for _ in range(10):
        futures: list = []
        counts: list = []
        pool = mh.Pool(2)
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(futures) < 100:
            pass
        pool.shutdown()
        for thread in threads:
            thread.join(25)
        assert len(counts) == 4
        assert len(futures) == sum(counts)
        # What was taken was done.
        assert all(future.result(0) == 1 for future in futures)


@program_test
def test_forks_while_threads_use_a_pool() -> None:
    """A child that was forked in the middle of anything can make pools of its own."""

    def use():
        while not stop.is_set():
            for future in [pool.submit(abs, -n) for n in range(50)]:
                future.result(25)
            for future in concurrent.futures.as_completed([pool.submit(abs, -1)]):
                future.result()

    stop = threading.Event()
    with mh.Pool(2) as pool:
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(15):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    try:
                        pool.submit(abs, -1)
                    except RuntimeError:
                        with mh.Pool(1) as own:
                            if own.submit(abs, -turn).result(20) == turn:
                                code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, turn
        stop.set()
        for thread in threads:
            thread.join(25)
            assert not thread.is_alive()


@program_test
def test_timeouts_of_many_waiters() -> None:
    with mh.Pool(1) as pool, closed_gate(Path.cwd()) as gate:
        assert pool.submit(abs, -1).result(20) == 1
        long = pool.submit(pass_through, gate.path)
        others = [pool.submit(abs, -n) for n in range(10)]
        late: list = []

        def wait(future, seconds):
            try:
                future.result(seconds)
            except TimeoutError:
                late.append(seconds)

        threads = [
            threading.Thread(target=wait, args=(future, 0.01 * n))
            for n, future in enumerate(others)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(late) == 10
        for timeout in (0, 0.0, -1, 0.001):
            try:
                long.result(timeout)
            except TimeoutError:
                pass
            else:
                raise AssertionError("it cannot have ended yet")
        gate.open()
        assert long.result(20) is None
        assert [future.result(20) for future in others] == list(range(10))


@program_test
def test_event_loops_in_several_threads() -> None:
    async def use(number):
        results = await asyncio.gather(*[pool.submit(abs, -number - n) for n in range(50)])
        assert results == [number + n for n in range(50)]
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, abs, -7) == 7
        try:
            await asyncio.wait_for(pool.submit(time.sleep, 3600), 0.01)
        except TimeoutError:
            finished.append(number)

    finished: list = []
    with mh.Pool(2) as pool:
        threads = [threading.Thread(target=lambda n=n: asyncio.run(use(100 * n))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(25)
    assert sorted(finished) == [0, 100, 200, 300]


@program_test
def test_callbacks_that_use_the_pool() -> None:
    def again(future):
        left = future.result()
        if left:
            pool.submit(abs, left - 1).add_done_callback(again)
        else:
            ended.release()

    def wrong(future):
        raise ValueError("in a callback")

    ended = threading.Semaphore(0)
    with mh.Pool(2) as pool:
        first = pool.submit(abs, -3)
        first.add_done_callback(wrong)
        for _ in range(20):
            pool.submit(abs, 30).add_done_callback(again)
        for _ in range(20):
            assert ended.acquire(timeout=25)
        # A callback may wait for another task, too.
        waited: list = []
        pool.submit(abs, -1).add_done_callback(
            lambda _: waited.append(pool.submit(abs, -2).result(20))
        )
        while not waited:
            time.sleep(0.001)
        assert waited == [2]


@program_test
def test_tasks_of_threads_that_meet_are_never_left_beside_an_idle_thread() -> None:
    def meet(barrier):
        barrier.wait(20)

    # On one processor a thread that finds nothing to do is easily overtaken before it sleeps.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    met = 0
    for _ in range(60):
        with mh.Pool(2, engine="thread") as pool:
            for first in [pool.submit(abs, -1) for _ in range(2)]:
                assert first.result(20) == 1
            barrier = threading.Barrier(2)
            for future in [pool.submit(meet, barrier) for _ in range(2)]:
                future.result(25)
            met += 1
    assert met == 60


@program_test
def test_an_idle_thread_is_woken_while_another_has_yet_to_initialize() -> None:
    def initialize():
        born.append(threading.get_ident())
        if len(born) > 1:
            second_begins.set()
            assert second_goes_on.wait(25)

    born: list[int] = []
    second_begins, second_goes_on, first_goes_on = (threading.Event() for _ in range(3))
    with mh.Pool(2, engine="thread", initializer=initialize) as pool:
        long = pool.submit(first_goes_on.wait, 25)
        more = pool.submit(abs, -1)
        assert second_begins.wait(20)
        first_goes_on.set()
        assert long.result(20)
        assert more.result(20) == 1
        for number in range(50):
            assert pool.submit(abs, -number).result(20) == number
        second_goes_on.set()
    assert len(born) == 2
