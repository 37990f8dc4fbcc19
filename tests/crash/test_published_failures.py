# ruff: noqa: PT017 - these programs run without pytest.
"""Published failures of other pools, each by its number: none may be ours.

The list is section 4 of the study of issues behind manyhands. Those that have to do with ending
things are in `test_published_endings.py`, slow and eager maps in `tests/unit/test_pains.py`, and
failures with a file of their own (killed parents, Ctrl-C, leaks, missing /dev/shm) are cited there.
So are, in `tests/unit`, shared memory that goes away under its arrays (`test_shared.py`), arrays
that nobody may write to (`test_large_data.py`, `test_large_layouts.py`), logging in workers
(`test_logs.py`), and workers that are renewed (`test_recycling.py`).
"""

# Of the list these have no test:
#
# | issue                                     | why                                                |
# |-------------------------------------------|----------------------------------------------------|
# | cpython#89240                             | the limit of 61 workers is that of Windows         |
# | cpython#91044 as far as it is of Windows  | there `close` of one destroys it for all; that     |
# |                                           | here the last one frees it is in `test_shared.py`  |
# | ray#5592 as far as it is of `put`         | what was put is read-only here, too; in tasks the  |
# |                                           | error says what to do: `test_put.py`               |
# | ray#51871 as far as it is of scikit-learn | there is no backend for joblib yet; that arguments |
# |                                           | can be written to is in `test_large_layouts.py`    |
# | ray#44063                                 | versions that differ in a cluster: none yet        |
# | celery#8030, #5935, rq#2424, huey#253,    | brokers and queues that outlive a program: none yet|
# | huey#445; rq#2015 as far as it is of      |                                                    |
# | brokers                                   |                                                    |
# | cpython#149452, loky#634                  | quotas of cgroups are tested in Rust, in           |
# |                                           | `crates/manyhands-os/src/cpu.rs`, with made-up     |
# |                                           | trees of groups                                    |

from __future__ import annotations

import atexit
import concurrent.futures
import importlib
import logging
import os
import random
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

import manyhands as mh
from programs import program, program_test


@program_test
def test_bpo_22393_a_killed_worker_hangs_the_pool() -> None:
    """cpython#82265, bpo-22393: `Pool.map` waits for ever for the result of a killed worker."""

    def work(n):
        if n == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with mh.Pool(2) as pool:
        taken = []
        try:
            for result in pool.map(work, range(20)):
                taken.append(result)
        except mh.WorkerDied as error:
            assert error.cause == "signal"
            assert "task 5" in str(error), error
        assert taken == [0, 1, 2, 3, 4]
        assert list(pool.map(abs, range(20))) == list(range(20))


@program_test
def test_cpython_96062_a_killed_worker_keeps_the_lock_of_the_queue() -> None:
    """cpython#96062: a worker that is killed while it reads leaves a lock that nobody can take."""
    with mh.Pool(4) as pool:
        assert list(pool.map(time.sleep, [0.001] * 200)) == [None] * 200
        for _ in range(10):
            for worker in pool.stats().workers:
                if worker.pid:
                    try:
                        os.kill(worker.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            futures = [pool.submit(abs, -n) for n in range(200)]
            lost = 0
            for n, future in enumerate(futures):
                try:
                    assert future.result(20) == n
                except mh.WorkerDied:
                    lost += 1
            assert lost <= 4


@program_test
def test_cpython_115634_many_submits_while_workers_come_and_go() -> None:
    """cpython#115634: an executor that recycles its workers stops after some tasks."""

    def work(n):
        if n % 10 == 9:
            os._exit(0)
        return n

    with mh.Pool(1) as pool:
        futures = [pool.submit(work, n) for n in range(100)]
        ends = [future.exception(20) for future in futures]
        assert [n for n, error in enumerate(ends) if error is not None] == list(range(9, 100, 10))


@program_test
def test_cpython_105829_a_great_many_tasks() -> None:
    """cpython#105829: so many tasks that the pipe to the workers is full, on all start methods."""
    with mh.Pool(2) as pool:
        futures = [pool.submit(abs, -n) for n in range(100_000)]
        assert sum(future.result(20) for future in futures) == sum(range(100_000))
        large = bytes(100_000)
        futures = [pool.submit(len, large) for _ in range(3000)]
        assert all(future.result(20) == 100_000 for future in futures)


@program_test
def test_cpython_103061_an_exception_with_its_own_constructor() -> None:
    """cpython#103061, #79492: such an exception cannot be rebuilt, and the pool hangs."""

    class Custom(Exception):
        def __init__(self, first, second):
            super().__init__(f"{first} and {second}")

    def fail():
        raise Custom(1, 2)

    with mh.Pool(2) as pool:
        for _ in range(5):
            error = pool.submit(fail).exception(20)
            assert "1 and 2" in str(error), repr(error)
        assert list(pool.map(abs, [-1])) == [1]


@program_test
def test_cpython_101081_base_exceptions() -> None:
    """cpython#101081: a BaseException ends the worker, and map waits for ever."""

    def fail(n):
        raise BaseException("this one")

    with mh.Pool(2) as pool:
        try:
            list(pool.map(fail, range(3)))
        except BaseException as error:
            assert str(error) == "this one"
        else:
            raise AssertionError("nothing was raised")


@program_test
def test_cpython_87472_an_initializer_that_fails() -> None:
    """cpython#87472: workers whose initializer raises are born and die for ever."""

    def start(path):
        with open(path, "a") as file:
            file.write("x")
        raise ValueError("cannot start")

    path = os.path.abspath("births")
    with mh.Pool(2, initializer=start, initargs=(path,)) as pool:
        try:
            list(pool.map(abs, range(10)))
        except ValueError as error:
            assert str(error) == "cannot start"
        else:
            raise AssertionError("nothing was raised")
    assert len(Path(path).read_text()) <= 2


@program_test
def test_cpython_116685_cancel_and_unpicklable_work() -> None:
    """cpython#116685: unpicklable work, with other work cancelled, stops the executor's thread."""
    with mh.Pool(1) as pool:
        for _ in range(20):
            futures = [pool.submit(time.sleep, 0.001) for _ in range(10)]
            refused = 0
            for _ in range(5):
                try:
                    pool.submit(id, threading.Lock())
                except mh.NotPicklable:
                    refused += 1
            assert refused == 5
            for future in reversed(futures):
                future.cancel()
            concurrent.futures.wait(futures, timeout=20)
            assert all(future.done() for future in futures)
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_cpython_155890_submit_from_the_body_of_a_module() -> None:
    """cpython#155890: a worker imports the module that is just being imported, and hangs."""
    Path("importing.py").write_text(
        "import manyhands as mh\n"
        "def double(n):\n"
        "    return 2 * n\n"
        "class Thing:\n"
        "    pass\n"
        "try:\n"
        "    with mh.Pool(2) as pool:\n"
        "        results = [pool.submit(double, 21).result(20), *pool.map(double, range(3))]\n"
        "        kind = pool.submit(type, Thing()).result(20)\n"
        "except RuntimeError as error:\n"
        "    results = error\n"
    )
    sys.path.insert(0, os.getcwd())
    module = importlib.import_module("importing")
    print(module.results)
    if not isinstance(module.results, RuntimeError):
        assert module.results == [42, 0, 2, 4]


@program
def ends_with_work_to_do() -> None:
    def write(path):
        time.sleep(0.05)
        Path(path).touch()

    for n in range(8):
        mh.submit(write, os.path.abspath(f"written{n}"))


def test_cpython_80961_the_end_of_the_program_waits_for_what_was_submitted() -> None:
    """cpython#80961: what was submitted before the end still runs; no more than that is waited."""
    with ends_with_work_to_do.start() as running:
        running.end().check()
        assert len(list(running.directory.glob("written*"))) == 8


@program
def uses_pools_after_the_main_thread() -> None:
    def later():
        threading.main_thread().join()
        with mh.Pool(1) as pool:
            print(pool.submit(abs, -1).result(20))
        print(list(mh.map(abs, [-1, -2])))

    threading.Thread(target=later).start()


def test_cpython_148280_threads_that_outlive_the_main_thread() -> None:
    """cpython#148280: a pool is unusable once the main thread has ended."""
    ended = uses_pools_after_the_main_thread.run().check()
    assert ended.out.splitlines() == ["1", "[1, 2]"], str(ended)


@program_test
def test_pebble_163_a_worker_that_exits_while_it_holds_the_channel() -> None:
    """pebble#163: a worker exits with the channel's lock held; everybody else waits for ever."""

    def leave(n):
        # While the main thread's result is on its way.
        threading.Thread(target=os._exit, args=(0,)).start()
        return bytes(5_000_000)

    with mh.Pool(2) as pool:
        futures = [pool.submit(leave, n) for n in range(30)]
        for future in futures:
            try:
                assert future.result(20) == bytes(5_000_000)
            except mh.WorkerDied as error:
                assert error.cause == "exit"
        dying = 5
        while dying:
            dying -= pool.submit(abs, -1).exception(20) is None


@program_test
def test_pebble_153_cancelling_at_any_moment() -> None:
    """pebble#153, #147: a task that is cancelled as it starts never ends."""
    with mh.Pool(2) as pool:
        for turn in range(300):
            futures = [pool.submit(time.sleep, 0.0002) for _ in range(10)]
            cancelled = [future.cancel() for future in futures[turn % 10 :]]
            for future, was in zip(futures[turn % 10 :], cancelled, strict=True):
                assert future.cancelled() == was
            assert not concurrent.futures.wait(futures, timeout=20).not_done
        assert pool.stats().pending == 0


@program_test
def test_pebble_126_a_second_pool_in_a_session() -> None:
    """pebble#126: the second pool of a program gets stuck."""
    pools = [mh.Pool(1) for _ in range(4)]
    for turn in range(3):
        assert [pool.submit(abs, -turn).result(20) for pool in pools] == [turn] * 4
    pools[0].shutdown()
    assert pools[1].submit(abs, -1).result(20) == 1
    for pool in pools:
        pool.shutdown()
    with mh.Pool(1) as pool:
        assert pool.submit(abs, -1).result(20) == 1


@program
def exceptions_that_nobody_looks_at() -> None:
    def fail(n):
        raise ValueError(n)

    logging.basicConfig(level=logging.INFO)
    pool = mh.Pool(2)
    futures = [pool.submit(fail, n) for n in range(50)]
    concurrent.futures.wait(futures)
    for _ in range(50):
        pool.submit(fail, 0)
    pool.submit(os._exit, 1)
    seen = weakref.ref(futures[0])
    del futures
    assert seen() is None
    pool.shutdown()
    mh.submit(fail, 1)
    print("fine")


def test_cpython_120508_exceptions_that_nobody_looks_at() -> None:
    """cpython#120508: they are lost; here they do at least no harm."""
    assert "fine" in exceptions_that_nobody_looks_at.run().check().out


@program_test
def test_joblib_1378_a_module_that_shadows_the_library() -> None:
    """joblib#1378: a script's own `signal.py` lets workers die as if memory were short."""
    for name in ("signal", "random", "tempfile", "marshal_", "types_"):
        Path(f"{name}.py").write_text("raise ImportError('the wrong module')\n")
    sys.path.insert(0, os.getcwd())
    with mh.Pool(1) as pool:
        try:
            assert pool.submit(abs, -1).result(20) == 1
        except ImportError as error:
            assert "the wrong module" in str(error)


@program_test
def test_numpy_9650_workers_have_random_streams_of_their_own() -> None:
    """numpy#9650: forked workers all draw the same numbers."""

    def draw():
        Path(f"drawing {os.getpid()}").touch()
        while len(list(Path().glob("drawing *"))) < 2:  # so that both take part
            time.sleep(0.001)
        time.sleep(0.02)
        return os.getpid(), random.random()

    random.seed(1)
    with mh.Pool(2) as pool:
        drawn = [future.result(20) for future in [pool.submit(draw) for _ in range(40)]]
        assert len({pid for pid, _ in drawn}) == 2
        assert len({number for _, number in drawn}) == 40


@program_test
def test_distributed_2181_a_task_that_starts_tasks() -> None:
    """A task uses a pool of its own, and the default pool."""

    def outer(n):
        with mh.Pool(1) as inner:
            first = inner.submit(abs, -n).result(20)
        return first, list(mh.map(abs, [-n, -n]))

    with mh.Pool(2) as pool:
        assert list(pool.map(outer, range(4))) == [(n, [n, n]) for n in range(4)]


@pytest.mark.parametrize("how", ["exit", "map", "submit"])
@program_test
def test_use_of_a_pool_at_the_end_of_the_program(how: str) -> None:
    """cpython#80961 and relatives: pools in exit handlers work, or say at once that they do not."""

    def late():
        try:
            if how == "exit":
                pool.shutdown()
            elif how == "map":
                print(list(mh.map(abs, [-1])))
            else:
                print(pool.submit(abs, -1).result(20))
        except RuntimeError as error:
            print("refused:", error)

    # Registered before and after the library's own.
    atexit.register(late)
    pool = mh.Pool(1)
    assert pool.submit(abs, -1).result(20) == 1
