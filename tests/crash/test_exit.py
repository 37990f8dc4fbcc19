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

import deaf
import manyhands as mh
import procfs
from deaf import submit_both
from observing import pids_of
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


@program
def with_an_exception_while_tasks_run_that_do_not_hear() -> None:
    pool = mh.Pool(2)
    submit_both(pool, 2)
    raise ValueError("the program's own")


@pytest.mark.parametrize(
    "chosen",
    [
        with_an_exception,
        with_an_exception_in_a_block,
        with_an_exception_and_the_default_pool,
        with_an_exception_while_workers_are_born,
        with_an_exception_while_tasks_run_that_do_not_hear,
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
import os, time
import manyhands as mh

def fetch():
    while not os.fstat(2).st_size:  # until something is said
        time.sleep(0.01)

pool = mh.Pool(2, engine={engine!r}, name="fetching")
futures = [pool.submit(fetch), pool.submit(fetch), pool.submit(time.sleep, 0.1)]
while not (futures[0].running() and futures[1].running()):
    pass
""",
    )
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    place = r"worker \d+" if engine == "process" else "a thread"
    running = r"fetch \(task \d, for (\d+) s, in " + place + r"\)"
    found = re.fullmatch(
        rf"the pool 'fetching' is closed and waits for 3 tasks: {running}, {running}; 1 wait; "
        r"pool.terminate\(\) would end them, and task_timeout= limits each",
        line,
    )
    assert found is not None, line
    assert all(int(seconds) >= 5 for seconds in found.groups()), line


def test_a_block_that_is_left_for_long_tasks_says_so_to_the_log() -> None:
    ended = run(
        "-c",
        """
import logging, os, time
import manyhands as mh

def fetch():
    while not os.fstat(2).st_size:  # until something is said
        time.sleep(0.01)

logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
with mh.Pool(1) as pool:
    pool.submit(fetch)
""",
    )
    assert ended.code == 0
    lines = [line for line in ended.err.splitlines() if "is closed and waits for" in line]
    assert len(lines) == 1
    assert lines[0].startswith("manyhands INFO the pool 'pool of 1' is closed and waits for 1 task")


ENDLESS = {
    "tasks": "futures = once_run(2, [pool.submit(spin) for _ in range(5)])",
    "items": "results = once_run(1, pool.map(spin, range(5)))",
    "input": "results = pool.map(step, itertools.count())",
    "dropped": "pool.map(step, itertools.count())",
}


@pytest.mark.parametrize("way", ["block", "shutdown", "program"])
@pytest.mark.parametrize("work", ENDLESS)
@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_exit_grace_bounds_the_end(engine: str, work: str, way: str) -> None:
    if engine == "inline" and work in ("tasks", "items"):
        return  # an endless task in the calling thread is nobody's to end but by a limit
    body = {
        "block": "with pool: {}",
        "shutdown": "{}; pool.shutdown(); pool.shutdown()",
        "program": "{}",
    }[way].format(ENDLESS[work])
    ended = run(
        "-c",
        f"""
import itertools, logging, time
import manyhands as mh

logging.basicConfig(format="%(levelname)s %(message)s")

def spin(number=0):
    while True:
        number += 1

def step(number):
    time.sleep(0.001)

def once_run(count, given):
    # The time of exit_grace is short for workers that are still to be born.
    while sum(worker.task_age is not None for worker in pool.stats().workers) < count:
        time.sleep(0.001)
    return given

pool = mh.Pool(2, engine={engine!r}, name="mine", exit_grace=0.5, grace=0.5)
{body}
""",
    )
    assert ended.code == 0, ended
    (line,) = ended.err.splitlines()
    start = "WARNING the pool 'mine' has not ended in its exit_grace of 0.5 s: "
    name = "spin" if work in ("tasks", "items") else "step"
    if work == "tasks":
        assert line == f"{start}5 tasks are lost, 2 of them while they ran (functions: spin)"
    elif work == "items":
        assert re.fullmatch(
            re.escape(start) + r"5 tasks are lost, [12] of them while they ran \(functions: spin\)",
            line,
        ), line
    else:
        rest = rf"[\d,]+ tasks? (are|is) lost, \d of them while they ran \(functions: {name}\)"
        rest += "; the input of a map was not taken to its end"
        assert re.fullmatch(re.escape(start) + rest, line), line


@pytest.mark.parametrize("way", ["block", "shutdown", "program"])
@pytest.mark.parametrize("task", ["hold_in_c", "stubborn"])
def test_exit_grace_bounds_tasks_that_do_not_hear(task: str, way: str, tmp_path: Path) -> None:
    """They never end by themselves, nor when they are asked: their workers have to be killed."""
    body = {
        "block": "with pool: main()",
        "shutdown": "main(); pool.shutdown()",
        "program": "main()",
    }
    ended = run(
        "-c",
        f"""
import logging, os, time
import manyhands as mh
from deaf import {task}

logging.basicConfig(format="%(levelname)s %(message)s")
folder = {str(tmp_path)!r}

def main():
    for _ in range(5):
        pool.submit({task}, folder)
    while len(os.listdir(folder)) < 2:
        time.sleep(0.001)

pool = mh.Pool(2, name="mine", exit_grace=1, grace=0.5)
{body[way]}
""",
        env={"PYTHONPATH": str(Path(deaf.__file__).parent)},
    ).check()
    (line,) = ended.err.splitlines()
    assert line == (
        "WARNING the pool 'mine' has not ended in its exit_grace of 1 s: "
        f"5 tasks are lost, 2 of them while they ran (functions: {task})"
    )
    workers = [int(path.suffix[1:]) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    assert not any(procfs.is_alive(pid) for pid in workers)


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_an_end_within_exit_grace_is_as_any_other(engine: str) -> None:
    ended = run(
        "-c",
        f"""
import time
import manyhands as mh

with mh.Pool(2, engine={engine!r}, exit_grace=60) as pool:
    futures = [pool.submit(time.sleep, 0.01) for _ in range(20)]
    pool.map(time.sleep, [0.01] * 20)
print([future.result() for future in futures] == [None] * 20, flush=True)
other = mh.Pool(2, engine={engine!r}, exit_grace=60)
other.submit(print, "ran", flush=True)
""",
    )
    assert (ended.code, ended.out, ended.err) == (0, "True\nran\n", ""), ended


def test_what_exit_grace_may_be() -> None:
    for wrong in ("1", True):
        with pytest.raises(TypeError, match="exit_grace must be a number of seconds"):
            mh.Pool(1, exit_grace=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exit_grace must be from 0"):
        mh.Pool(1, exit_grace=-1)


@pytest.mark.parametrize("engine", ["process", "thread"])
@pytest.mark.parametrize("way", ["block", "program"])
def test_what_runs_is_asked_when_an_exception_ends_it(
    engine: str, way: str, tmp_path: Path
) -> None:
    """It may clean up, as when its time is up; what waits never starts."""
    ended = run(
        "-c",
        f"""
import pathlib, time
import manyhands as mh

folder = pathlib.Path({str(tmp_path)!r})

def work(number):
    begun = folder / f"begun {{number}}"
    try:
        begun.touch()
        while True: time.sleep(0.001)
    finally:
        begun.rename(folder / f"cleaned {{number}}")

def main(pool):
    futures = [pool.submit(work, number) for number in range(5)]
    while not (folder / "begun 0").exists(): time.sleep(0.001)
    raise ValueError("out")

pool = mh.Pool(1, engine={engine!r}, grace=20)
if {way!r} == "block":
    with pool: main(pool)
main(pool)
""",
    )
    assert ended.code == 1, ended
    assert ended.err.rstrip().endswith("ValueError: out"), ended
    assert [path.name for path in tmp_path.iterdir()] == ["cleaned 0"]


@program
def by_sigterm() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(10)]
    while not futures[0].running():
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_the_program_and_its_workers() -> None:
    """Its default action: nothing of Python runs, and workers die with the program."""
    by_sigterm.run().check(-signal.SIGTERM)


@program
def by_a_handler_of_sigterm_in_a_block() -> None:
    def leave(number, frame):
        raise SystemExit(9)

    signal.signal(signal.SIGTERM, leave)
    with mh.Pool(2) as pool:
        futures = [pool.submit(time.sleep, 60) for _ in range(10)]
        while not futures[0].running():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_handler_of_sigterm_leaves_the_block() -> None:
    ended = by_a_handler_of_sigterm_in_a_block.run().check(9)
    assert ended.err == ""


@program
def by_a_handler_of_sigterm_outside_of_blocks() -> None:
    def leave(number, frame):
        sys.exit(9)

    def work(path):
        with open(path, "a") as file:
            file.write("x")

    signal.signal(signal.SIGTERM, leave)
    pool = mh.Pool(2)
    for _ in range(100):
        pool.submit(work, os.path.abspath("done"))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def test_sys_exit_in_a_handler_is_a_normal_end() -> None:
    """What was submitted runs, as with `sys.exit` anywhere; `exit_grace` would bound it."""
    with by_a_handler_of_sigterm_outside_of_blocks.start() as running:
        running.end().check(9)
        assert (running.directory / "done").read_text() == "x" * 100


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
def test_a_block_that_an_exception_leaves_while_tasks_run_that_do_not_hear() -> None:
    """Only SIGKILL ends them; when the block is left their workers are gone."""

    try:
        with mh.Pool(2) as pool:
            running = submit_both(pool, 1)
            queued = [pool.submit(Path("ran").touch) for _ in range(50)]
            pids = pids_of(pool)
            assert len(pids) == 2
            raise KeyError("out")
    except KeyError:
        pass
    assert not any(procfs.is_alive(pid) for pid in pids)
    assert all(future.cancelled() for future in running + queued)
    assert not os.path.exists("ran")


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


def test_a_map_that_goes_with_the_interpreter() -> None:
    """It has a bar and ran long enough for a hint, for which nothing can be imported any more."""
    source = """
import builtins, itertools, time
import manyhands as mh

results = mh.Pool(1).map(time.sleep, itertools.repeat(0.001), progress=True)
assert next(results) is None
time.sleep(1)
builtins.held_for_long = results  # cleared after all modules
"""
    ended = run("-c", source).check()
    assert "items in" in ended.err
    assert "Exception ignored" not in ended.err, ended.err
