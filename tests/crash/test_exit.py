"""How programs end with work in their pools: what was submitted runs, nothing stays (P10, P35)."""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import manyhands as mh
import procfs
from programs import Program, program, program_test, run


@program
def with_queued_tasks() -> None:
    def work(path):
        time.sleep(0.002)
        with open(path, "a") as file:
            file.write("x")

    pool = mh.Pool(2)
    for _ in range(200):
        pool.submit(work, os.path.abspath("done"))


@program
def with_queued_tasks_on_the_default_pool() -> None:
    def work(path):
        with open(path, "a") as file:
            file.write("x")

    for _ in range(200):
        mh.submit(work, os.path.abspath("done"))


@program
def after_a_shutdown_that_did_not_wait() -> None:
    def work(path):
        time.sleep(0.001)
        with open(path, "a") as file:
            file.write("x")

    pool = mh.Pool(2)
    for _ in range(200):
        pool.submit(work, os.path.abspath("done"))
    pool.shutdown(wait=False)


@program
def from_an_exit_handler() -> None:
    def work(path):
        with open(path, "a") as file:
            file.write("x")

    def late():
        futures = [pool.submit(work, os.path.abspath("done")) for _ in range(200)]
        concurrent.futures.wait(futures)

    pool = mh.Pool(2)
    assert pool.submit(abs, -1).result() == 1
    atexit.register(late)


@program
def from_a_thread_that_is_left() -> None:
    def work(path):
        with open(path, "a") as file:
            file.write("x")

    def later():
        time.sleep(0.2)  # the main thread has ended, most likely
        futures = [pool.submit(work, os.path.abspath("done")) for _ in range(200)]
        for future in futures:
            future.result()

    pool = mh.Pool(2)
    threading.Thread(target=later).start()


@pytest.mark.parametrize(
    "chosen",
    [
        with_queued_tasks,
        with_queued_tasks_on_the_default_pool,
        after_a_shutdown_that_did_not_wait,
        from_an_exit_handler,
        from_a_thread_that_is_left,
    ],
    ids=lambda chosen: chosen.name,
)
def test_what_was_submitted_runs(chosen: Program) -> None:
    with chosen.start() as running:
        ended = running.end().check()
        assert not ended.err, str(ended)
        assert (running.directory / "done").read_text() == "x" * 200


@program
def with_an_exception() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(10)]
    while not futures[0].running():
        pass
    raise ValueError("the program's own")


@program
def with_an_exception_in_a_block() -> None:
    with mh.Pool(2) as pool:
        futures = [pool.submit(time.sleep, 60) for _ in range(10)]
        while not futures[0].running():
            pass
        raise ValueError("the program's own")


@program
def with_an_exception_and_the_default_pool() -> None:
    results = mh.map(time.sleep, [60] * 10)
    raise ValueError("the program's own")
    next(results)


@program
def with_an_exception_while_workers_are_born() -> None:
    pool = mh.Pool(4)
    pool.submit(time.sleep, 60)
    raise ValueError("the program's own")


@pytest.mark.parametrize(
    "chosen",
    [
        with_an_exception,
        with_an_exception_in_a_block,
        with_an_exception_and_the_default_pool,
        with_an_exception_while_workers_are_born,
    ],
    ids=lambda chosen: chosen.name,
)
def test_an_exception_does_not_wait_for_long_tasks(chosen: Program) -> None:
    ended = chosen.run().check(1)
    print(f"it ended after {ended.seconds:.2f} s")
    assert ended.err.count("Traceback") == 1, str(ended)
    assert ended.err.rstrip().endswith("ValueError: the program's own")


@program
def by_os_exit() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(10)]
    while not futures[0].running():
        pass
    os._exit(5)


def test_os_exit() -> None:
    by_os_exit.run().check(5)


@program
def by_sys_exit() -> None:
    pool = mh.Pool(2)
    pool.submit(time.sleep, 0.05)
    sys.exit(6)


def test_sys_exit() -> None:
    by_sys_exit.run().check(6)


@program
def by_a_fatal_signal() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(10)]
    while not futures[0].running():
        pass
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crash_of_the_program() -> None:
    by_a_fatal_signal.run().check(-signal.SIGSEGV)


@program
def with_daemon_threads() -> None:
    def use():
        while True:
            assert pool.submit(abs, -1).result() == 1
            assert list(mh.map(abs, [-1, -2])) == [1, 2]

    def wait():
        pool.submit(time.sleep, 0.2).result()

    pool = mh.Pool(2)
    for target in (use, use, wait):
        threading.Thread(target=target, daemon=True).start()
    assert pool.submit(abs, -1).result() == 1
    time.sleep(0.1)


def test_daemon_threads_that_use_pools() -> None:
    for _ in range(5):
        ended = with_daemon_threads.run().check()
        # They may hear that their pool is shut down, and nothing worse.
        assert "Fatal" not in ended.err, ended.err
        assert "internal error" not in ended.err, ended.err


@program
def with_callbacks_under_way() -> None:
    def slow(future):
        time.sleep(0.001)
        with open("told", "a") as file:
            file.write("x")

    pool = mh.Pool(2)
    for n in range(100):
        pool.submit(abs, n).add_done_callback(slow)


def test_callbacks_are_called_before_the_end() -> None:
    """As with the standard library's executors, whose threads are waited for."""
    with with_callbacks_under_way.start() as running:
        running.end().check()
        assert (running.directory / "told").read_text() == "x" * 100


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_program_that_waits_at_its_end_says_what_for(engine: str) -> None:
    ended = run(
        "-c",
        f"""
import time
import manyhands as mh

pool = mh.Pool(2, engine={engine!r}, name="fetching")
futures = [pool.submit(time.sleep, seconds) for seconds in (8, 8, 0.1)]
""",
    )
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    name, place = ("sleep", r"worker \d+") if engine == "process" else ("a task", "a thread")
    running = rf"{name} \(task \d, for [567] s, in {place}\)"
    assert re.fullmatch(
        rf"the pool 'fetching' is closed and waits for 3 tasks: {running}, {running}; 1 wait; "
        r"pool.terminate\(\) would end them, and task_timeout= limits each",
        line,
    ), line


def test_a_block_that_is_left_for_long_tasks_says_so_to_the_log() -> None:
    ended = run(
        "-c",
        """
import logging, time
import manyhands as mh

logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
with mh.Pool(1) as pool:
    pool.submit(time.sleep, 7)
""",
    )
    assert ended.code == 0
    lines = [line for line in ended.err.splitlines() if "is closed and waits for" in line]
    assert len(lines) == 1
    assert lines[0].startswith("manyhands INFO the pool 'pool of 1' is closed and waits for 1 task")


@program_test
def test_cancelling_twice_while_workers_are_born() -> None:
    with mh.Pool(2) as pool:
        assert pool.submit(abs, -1).result(20) == 1
        while not procfs.is_quiet():  # as it is where workers wait and nobody tells them to leave
            pass
    for turn in range(30):
        pool = mh.Pool(2)
        futures = [pool.submit(time.sleep, 60) for _ in range(10)]
        time.sleep(0.0003 * turn)
        if any(future.running() for future in futures):
            pool._close(True, True)
        pool.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(wait=False, cancel_futures=True)
        running = [future for future in futures if not future.done()]
        if running:
            pool._close(True, True)
        pool.shutdown(wait=False)
        # One that was never told is killed after a time, and would be gone all the same.
        while pool.stats().workers:
            if procfs.is_quiet():
                workers = pool.stats().workers
                assert not workers, f"turn {turn}: nobody moves, and yet there are {workers}"
        pool.shutdown()
        assert pool.stats().workers == ()


@program_test
def test_shutdown_in_all_its_forms() -> None:
    for wait in (True, False):
        for cancel in (True, False):
            pool = mh.Pool(2)
            futures = [pool.submit(time.sleep, 0.001) for _ in range(100)]
            pool.shutdown(wait, cancel_futures=cancel)
            done, waiting = concurrent.futures.wait(futures, timeout=20)
            assert not waiting
            if not cancel:
                assert not any(future.cancelled() for future in done)
            pool.shutdown()
            assert pool.stats().workers == ()
            assert pool.stats().pending == 0


@program_test
def test_many_threads_shut_one_pool_down() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 0.001) for _ in range(200)]
    threads = [threading.Thread(target=pool.shutdown) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert all(future.done() for future in futures)


@program_test
def test_a_block_that_an_exception_leaves() -> None:
    try:
        with mh.Pool(2) as pool:
            running = pool.submit(time.sleep, 60)
            short = pool.submit(abs, -1)
            queued = [pool.submit(time.sleep, 60) for _ in range(50)]
            assert short.result(20) == 1
            while not running.running():
                pass
            raise KeyError("out")
    except KeyError:
        pass
    assert running.done()
    assert all(future.done() for future in queued)
    try:
        running.result(0)
    except (concurrent.futures.CancelledError, mh.TaskError) as error:
        print(repr(error))


@program_test
def test_tasks_that_do_not_leave() -> None:
    """A worker whose exit handler or thread never ends is killed after its time."""

    def stay():
        atexit.register(time.sleep, 60)
        threading.Thread(target=time.sleep, args=(60,)).start()
        Path("registered").touch()

    with mh.Pool(1) as pool:
        pool.submit(stay).result(20)
    assert Path("registered").exists()


@program_test
def test_exit_handlers_of_workers_run() -> None:
    def register(path):
        atexit.register(Path(path).touch)

    path = os.path.abspath("left")
    with mh.Pool(1) as pool:
        pool.submit(register, path).result(20)
    assert Path(path).exists()
