"""The pool: its arguments, its workers, its end."""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import gc
import json
import logging
import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through, report_arrival
from observing import pids_of, until
from programs import program_test

connection: str | None = None
births = 0


def same(value: Any) -> Any:
    return value


def arguments(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def connect(text: str, number: int = 0) -> None:
    global connection, births
    connection = f"{text} {number}"
    births += 1


def fail_to_connect(text: str) -> None:
    raise ConnectionRefusedError(text)


def pass_and_tell_pid(path: str) -> int:
    pass_through(path)
    return os.getpid()


# ------------------------------------------------------------------------------- its arguments


def test_it_is_an_executor(pool: mh.Pool) -> None:
    assert isinstance(pool, Executor)
    assert repr(pool) == "<manyhands.Pool 'shared': 2 workers, 0 tasks>"


@pytest.mark.parametrize("workers", [0, -1, -(2**40)])
def test_too_few_workers(workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers must be at least 1, not {workers}"):
        mh.Pool(workers)


@pytest.mark.parametrize("workers", [1.5, "2", True, [2], 2.0])
def test_workers_of_the_wrong_type(workers: Any) -> None:
    with pytest.raises(TypeError, match="workers must be a whole number, not"):
        mh.Pool(workers)


@pytest.mark.parametrize("spelling", ["max_workers", "processes", "n_jobs", "num_workers"])
def test_foreign_spellings(spelling: str) -> None:
    with pytest.raises(TypeError, match=rf"no {spelling}=; write workers=4"):
        mh.Pool(**{spelling: 4})  # type: ignore[arg-type]


def test_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        mh.Pool(colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        mh.Pool(2, print)  # type: ignore[misc]


def test_arguments_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="initializer must be callable, not str"):
        mh.Pool(1, initializer="connect")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list of module names"):
        mh.Pool(1, preload="numpy")
    with pytest.raises(TypeError, match="not iterable"):
        mh.Pool(1, initializer=connect, initargs=5)  # type: ignore[arg-type]


def test_name() -> None:
    with mh.Pool(1, name="parsers") as pool:
        assert pool.name == "parsers"
        assert "'parsers'" in repr(pool)
    with mh.Pool(1) as pool:
        assert isinstance(pool.name, str)


def test_an_initializer_that_cannot_be_pickled() -> None:
    with pytest.raises(mh.NotPicklable, match="lock"):
        mh.Pool(1, initializer=connect, initargs=(threading.Lock(),))


# -------------------------------------------------------------------------------------- submit


def test_every_argument_goes_to_the_function(pool: mh.Pool) -> None:
    keywords = {
        "function": 1,
        "self": 2,
        "timeout": 3,
        "fn": 4,
        "args": 5,
        "kwargs": 6,
        "pool": 7,
        "callable": 8,
        "not an identifier": 9,
    }
    assert pool.submit(arguments, 1, 2, **keywords).result() == ((1, 2), keywords)
    assert mh.submit(arguments, 1, 2, **keywords).result() == ((1, 2), keywords)
    assert pool.submit(arguments).result() == ((), {})


def test_keywords_keep_their_order(pool: mh.Pool) -> None:
    result = pool.submit(arguments, **{name: None for name in "zyxab"}).result()
    assert list(result[1]) == list("zyxab")


def test_submit_without_or_with_a_bad_function(pool: mh.Pool) -> None:
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="callable, not int"):
        pool.submit(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pool.submit(function=print)  # type: ignore[call-arg]


class Adder:
    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, number: int) -> int:
        return self.start + number

    def add(self, number: int) -> int:
        return self.start + number

    @classmethod
    def made(cls, number: int) -> int:
        return cls(100)(number)

    @staticmethod
    def plain(number: int) -> int:
        return number


def test_all_kinds_of_callables(pool: mh.Pool) -> None:
    start = 1000

    def closure(number: int) -> int:
        return start + number

    cases: list[tuple[Any, tuple[Any, ...], Any]] = [
        (lambda number: number + 1, (1,), 2),
        (closure, (1,), 1001),
        (Adder(10), (1,), 11),
        (Adder(10).add, (1,), 11),
        (Adder.made, (1,), 101),
        (Adder.plain, (1,), 1),
        (functools.partial(pow, 2), (5,), 32),
        (functools.partial(closure, 5), (), 1005),
        (operator.itemgetter(1), ([1, 2],), 2),
        (int, ("7",), 7),
        (dict.fromkeys, ("ab",), {"a": None, "b": None}),
        ("a,b".split, (",",), ["a", "b"]),
        ([3, 1, 2].index, (1,), 1),
        (str.upper, ("x",), "X"),
        (len, ([1],), 1),
        (functools.lru_cache(Adder.plain), (4,), 4),
        (functools.reduce, (operator.add, [1, 2, 3]), 6),
    ]
    for function, args, expected in cases:
        assert pool.submit(function, *args).result() == expected, function
        assert pool.submit(function, *args).result() == expected, function


def test_many_tasks_in_one_go(pool: mh.Pool) -> None:
    futures = [pool.submit(same, number) for number in range(20_000)]
    assert [future.result() for future in futures] == list(range(20_000))


def test_a_short_task_never_waits_behind_a_long_one(tmp_path: Path, gate: Gate) -> None:
    with mh.Pool(2) as pool:
        for number in range(100):  # one after the other: one worker is enough for these
            assert pool.submit(same, number).result() == number
        held = pool.submit(pass_through, gate.path, "held")
        assert [pool.submit(same, number).result() for number in range(10)] == list(range(10))
        assert not held.done()
        gate.open()
        assert held.result() == "held"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_so_many_tasks_run_at_once_and_no_more(workers: int, gate: Gate, tmp_path: Path) -> None:
    with mh.Pool(workers) as pool:
        futures = [pool.submit(pass_and_tell_pid, gate.path) for _ in range(2 * workers)]
        gate.wait_arrivals(workers)
        assert sum(future.running() for future in futures) == workers
        pids = {*pids_of(pool)}
        gate.open()
        assert {future.result() for future in futures} <= pids
        assert len(pids) == workers
        assert os.getpid() not in pids


# ------------------------------------------------------------------------------- initializers


def test_an_initializer_sets_a_global(gate: Gate) -> None:
    def ask(path: str) -> tuple[Any, int]:
        pass_through(path)
        return connection, births

    with mh.Pool(2, initializer=connect, initargs=["db", 5]) as pool:
        futures = [pool.submit(ask, gate.path) for _ in range(2)]
        gate.wait_arrivals(2)
        gate.open()
        assert [future.result() for future in futures] == [("db 5", 1)] * 2
        assert pool.submit(lambda: births).result() == 1
    assert connection is None  # here nothing was set


def test_initargs_may_be_any_iterable() -> None:
    def start() -> Iterator[Any]:
        yield "text"
        yield 9

    with mh.Pool(1, initializer=connect, initargs=start()) as pool:
        assert pool.submit(lambda: connection).result() == "text 9"


def test_an_initializer_that_is_a_closure() -> None:
    value = {"some": "thing"}

    def initializer() -> None:
        global connection
        connection = str(value)

    with mh.Pool(1, initializer=initializer) as pool:
        assert pool.submit(lambda: connection).result() == "{'some': 'thing'}"


def test_a_replacement_is_initialized_too() -> None:
    with mh.Pool(1, initializer=connect, initargs=("again",)) as pool:
        assert pool.submit(lambda: connection).result() == "again 0"
        with pytest.raises(mh.WorkerDied):
            pool.submit(os._exit, 1).result()
        assert pool.submit(lambda: connection).result() == "again 0"


def test_an_initializer_that_raises_breaks_the_pool(tmp_path: Path) -> None:
    def initializer() -> None:
        (tmp_path / str(os.getpid())).touch()
        raise ConnectionRefusedError("no database")

    with mh.Pool(2, initializer=initializer) as pool:
        first = pool.submit(same, 1)
        with pytest.raises(ConnectionRefusedError, match="no database") as caught:
            first.result()
        assert "the pool's initializer raised this" in "".join(caught.value.__notes__)
        assert isinstance(caught.value.__cause__, mh.RemoteTraceback)
        for _ in range(20):
            try:
                future = pool.submit(same, 1)
            except ConnectionRefusedError:
                continue
            with pytest.raises(ConnectionRefusedError):
                future.result()
    assert 1 <= len(list(tmp_path.iterdir())) <= 2  # each worker once: no respawning


def test_an_initializer_that_raises_ends_all_that_wait() -> None:
    with mh.Pool(2, initializer=fail_to_connect, initargs=("down",)) as pool:
        futures = []
        with pytest.raises(ConnectionRefusedError):
            for _ in range(100_000):
                futures.append(pool.submit(same, 1))
            futures[0].result()
        for future in futures:
            assert isinstance(future.exception(), ConnectionRefusedError)
        with pytest.raises(ConnectionRefusedError):
            list(pool.map(same, range(10)))


def test_an_initializer_that_dies_breaks_the_pool() -> None:
    with mh.Pool(1, initializer=os._exit, initargs=(4,)) as pool:
        with pytest.raises(mh.WorkerDied, match="initializer"):
            pool.submit(same, 1).result()


# ------------------------------------------------------------------------------------- nesting


def nested_sum(numbers: list[int]) -> tuple[int, int]:
    with mh.Pool(2) as inner:
        return sum(inner.map(same, numbers)), os.getpid()


def nested_default(numbers: list[int]) -> int:
    return sum(mh.map(abs, numbers))


def deep(depth: int) -> int:
    if depth == 0:
        return 0
    with mh.Pool(1) as inner:
        return 1 + inner.submit(deep, depth - 1).result()


def test_a_pool_inside_a_task(pool: mh.Pool) -> None:
    results = list(pool.map(nested_sum, [[1, 2], [3, 4], [5, 6]]))
    assert [total for total, _ in results] == [3, 7, 11]
    assert os.getpid() not in {pid for _, pid in results}
    assert pool.submit(nested_default, [-1, -2]).result() == 3
    assert pool.submit(nested_default, [-1, -2]).result() == 3
    assert pool.submit(deep, 3).result() == 3


# ---------------------------------------------------------------------------------------- stats


def test_stats(gate: Gate, tmp_path: Path) -> None:
    with mh.Pool(2, name="counted") as pool:
        empty = pool.stats()
        assert empty == mh.PoolStats(
            workers=(),
            queued=0,
            pending=0,
            done=0,
            deaths=0,
            recycled=0,
            left_behind=0,
            late_wakes=0,
            store=empty.store,
        )
        for number in range(10):
            pool.submit(same, number).result()
        held = [pool.submit(pass_through, gate.path) for _ in range(12)]
        gate.wait_arrivals(2)
        pids_of(pool)  # workers may run before it is told which processes they are
        stats = pool.stats()
        assert stats.done == 10
        assert stats.pending == 12
        assert stats.deaths == 0
        assert stats.queued + sum(worker.waiting for worker in stats.workers) == 10
        assert sorted(worker.slot for worker in stats.workers) == [0, 1]
        assert sum(worker.done for worker in stats.workers) == 10
        for worker in stats.workers:
            assert isinstance(worker, mh.WorkerStats)
            os.kill(worker.pid, 0)
            assert worker.restarts == 0
            assert worker.task_age is not None
            assert worker.task_age >= 0
            assert worker.task_index is not None
            assert 10 <= worker.task_index < 22
            assert (worker.state, worker.task) == ("busy", "pass_through")
            # No interpreter is smaller, and one that has done so little is not much larger.
            assert worker.resident is not None
            assert 1 << 20 < worker.resident < 1 << 30
            assert worker.age >= worker.task_age
            assert worker.busy >= 0
            assert worker.idle >= 0
            assert worker.transfer >= 0
            known = worker.busy + worker.idle + worker.transfer + (worker.task_age or 0)
            assert known <= worker.age + 0.001
        assert "12 tasks" in repr(pool)
        gate.open()
        for future in held:
            future.result()
        stats = pool.stats()
        assert (stats.done, stats.pending, stats.queued) == (22, 0, 0)
        assert all(worker.task_age is None for worker in stats.workers)
        assert all(worker.task_index is None for worker in stats.workers)
        assert all(worker.task is None for worker in stats.workers)
        assert {worker.state for worker in stats.workers} == {"idle"}
        with pytest.raises(mh.WorkerDied):
            pool.submit(os._exit, 1).result()
        with closed_gate(tmp_path, "second") as second:
            for _ in range(2):
                pool.submit(pass_through, second.path)
            second.wait_arrivals(2)  # so the dead one was replaced
            stats = pool.stats()
            assert stats.deaths == 1
            assert sorted(worker.restarts for worker in stats.workers) == [0, 1]


def test_the_time_of_transfers() -> None:
    values = list(range(500_000))
    with mh.Pool(1) as pool:
        for short in (1, "short", None):
            assert pool.submit(same, short).result() == short
        [before] = pool.stats().workers
        assert before.transfer == 0
        assert before.busy > 0
        for _ in range(3):
            assert pool.submit(same, values).result() == values
        assert list(pool.map(same, [values])) == [values]
        [after] = pool.stats().workers
        assert after.transfer > 0.001  # four times two million bytes, there and back
        assert after.busy + after.idle + after.transfer <= after.age + 0.001
    with mh.Pool(1, engine="thread") as pool:
        assert pool.submit(same, values).result() is values
        assert [worker.transfer for worker in pool.stats().workers] == [0]


def test_stats_cannot_be_changed(pool: mh.Pool) -> None:
    stats = pool.stats()
    with pytest.raises(AttributeError):
        stats.done = 5  # type: ignore[misc]


# ------------------------------------------------------------------------------------- shutdown


def test_shutdown_waits_for_all(tmp_path: Path) -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 0.001) for _ in range(50)]
    futures += [pool.submit((tmp_path / str(number)).touch) for number in range(50)]
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert len(list(tmp_path.iterdir())) == 50
    assert pool.stats().workers == ()


def test_shutdown_twice_and_with_a_block() -> None:
    with mh.Pool(1) as pool:
        future = pool.submit(same, 1)
        pool.shutdown()
        pool.shutdown()
        pool.shutdown(wait=False)
    assert future.result() == 1


def test_a_pool_that_was_never_used() -> None:
    with mh.Pool(2) as pool:
        pass
    assert pool.stats().workers == ()
    mh.Pool(1).shutdown()
    mh.Pool(1).shutdown(wait=False, cancel_futures=True)


def test_submit_after_shutdown() -> None:
    pool = mh.Pool(1)
    pool.submit(same, 1).result()
    pool.shutdown()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot schedule new tasks: the pool is shut down"):
            pool.submit(same, 1)


def test_shutdown_without_waiting(gate: Gate) -> None:
    pool = mh.Pool(1)
    held = pool.submit(pass_through, gate.path, 1)
    queued = pool.submit(same, 2)
    pool.shutdown(wait=False)
    assert not held.done()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(same, 3)
    gate.open()
    assert (held.result(), queued.result()) == (1, 2)
    pool.shutdown()


def test_shutdown_that_cancels(gate: Gate) -> None:
    pool = mh.Pool(1)
    held = pool.submit(pass_through, gate.path, 1)
    queued = [pool.submit(same, number) for number in range(100)]
    gate.wait_arrivals()
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    gate.open()
    pool.shutdown()
    assert held.result() == 1


def test_leaving_the_block_by_an_exception(gate: Gate) -> None:
    with pytest.raises(LookupError):
        with mh.Pool(1) as pool:
            held = pool.submit(pass_through, gate.path)
            queued = [pool.submit(same, number) for number in range(100)]
            gate.wait_arrivals()
            raise LookupError
    # What ran got a moment, and was killed then; all that had not ended is cancelled.
    assert all(future.cancelled() for future in [held, *queued])
    assert pool.stats().workers == ()


def test_a_dropped_pool_finishes_and_goes(tmp_path: Path) -> None:
    pool = mh.Pool(1)
    pid = pool.submit(os.getpid).result()
    futures = [pool.submit((tmp_path / str(number)).touch) for number in range(50)]
    del pool
    gc.collect()
    for future in futures:
        future.result()
    assert len(list(tmp_path.iterdir())) == 50
    while True:  # the worker leaves
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.001)


def test_shutdown_again_with_cancel(tmp_path: Path) -> None:
    # A worker that leaves when it is asked runs its exit handlers; one that is killed does not.
    for number in range(5):
        left = tmp_path / str(number)
        pool = mh.Pool(1)
        pool.submit(atexit.register, left.touch).result()
        pool.shutdown(wait=False)
        pool.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(cancel_futures=True)
        assert left.exists()


def test_shutdown_from_several_threads() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(same, number) for number in range(1000)]
    threads = [threading.Thread(target=pool.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [future.result() for future in futures] == list(range(1000))


def test_submit_while_another_thread_shuts_down() -> None:
    for _ in range(5):
        pool = mh.Pool(2)
        accepted = [pool.submit(same, -1)]
        thread = threading.Thread(target=pool.shutdown)
        thread.start()
        try:
            while True:
                accepted.append(pool.submit(same, -1))
        except RuntimeError:
            pass
        thread.join()
        assert all(future.result() == -1 for future in accepted)


def test_many_pools_one_after_the_other() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        with mh.Pool(2) as pool:
            assert pool.submit(same, number).result() == number
    # The supervisor may still be about to let go of some.
    until(lambda: len(os.listdir("/proc/self/fd")) < before + 20)


def test_many_pools_at_once() -> None:
    pools = [mh.Pool(1) for _ in range(10)]
    futures = [pool.submit(same, number) for number, pool in enumerate(pools)]
    assert [future.result() for future in futures] == list(range(10))
    for pool in pools:
        pool.shutdown()


# ------------------------------------------------------------------------------------ fork, etc.


def in_a_fork(work: Any) -> Any:
    """What the function gives in a child that was forked from here, or the text of its error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                answer = work()
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    return json.loads(data)


# Forking a process with threads is what these tests are about.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestFork:
    def test_a_pool_belongs_to_its_process(self, pool: mh.Pool) -> None:
        pool.submit(same, 1).result()
        message = in_a_fork(lambda: pool.submit(same, 1).result())
        assert message.startswith("RuntimeError: this pool belongs to the process that made it")
        assert in_a_fork(lambda: list(pool.map(same, [1]))) == message
        assert in_a_fork(pool.stats) == message
        in_a_fork(pool.shutdown)
        assert pool.submit(same, 2).result() == 2  # here it goes on

    def test_a_child_makes_its_own(self, pool: mh.Pool) -> None:
        pool.submit(same, 1).result()
        mh.submit(same, 1).result()

        def work() -> list[int]:
            with mh.Pool(2) as own:
                found = list(own.map(same, range(5)))
            return found + list(mh.map(same, [6, 7]))

        assert in_a_fork(work) == [0, 1, 2, 3, 4, 6, 7]
        assert pool.submit(same, 3).result() == 3
        assert mh.submit(same, 4).result() == 4

    def test_a_result_that_is_known_is_known_in_the_child(self, pool: mh.Pool) -> None:
        future = pool.submit(same, 5)
        assert future.result() == 5
        assert in_a_fork(future.result) == 5


def test_a_pool_inside_a_thread_pool(pool: mh.Pool) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(lambda n=number: pool.submit(same, n).result()) for number in range(200)
        ]
        assert [future.result() for future in asked] == list(range(200))


def test_tasks_may_start_programs_and_threads(pool: mh.Pool) -> None:
    def run_program() -> str:
        return subprocess.run(
            [sys.executable, "-c", "print('from a child')"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def run_threads() -> int:
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            return sum(threads.map(same, range(10)))

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert pool.submit(run_program).result() == "from a child\n"
    assert pool.submit(run_threads).result() == 45
    assert pool.submit(fork).result() == 3


def test_cancelled_ones_leave_the_pool_usable(gate: Gate) -> None:
    with mh.Pool(1) as pool:
        pool.submit(pass_through, gate.path)
        futures = [pool.submit(same, b"x" * 100_000) for _ in range(50)]
        for future in futures[:40]:
            future.cancel()
        gate.open()
        assert [future.result() for future in futures[40:]] == [b"x" * 100_000] * 10
        with pytest.raises(CancelledError):
            futures[0].result()


def test_a_worker_that_was_killed_while_idle_costs_nothing(pool: mh.Pool) -> None:
    pool.submit(same, 1).result()
    for pid in pids_of(pool):
        os.kill(pid, 9)
    assert [pool.submit(same, number).result() for number in range(10)] == list(range(10))


def test_who_is_being_started_has_no_process() -> None:
    """Signals to a pid of 0 would go to all of one's own."""
    with mh.Pool(1) as pool:
        seen = set()
        for _ in range(20):
            future = pool.submit(abs, -1)
            while not future.done():
                seen.update((worker.state, worker.pid) for worker in pool.stats().workers)
            assert future.result() == 1
            for pid in pids_of(pool):
                os.kill(pid, 9)
        assert ("starting", None) in seen
        assert all(pid > 1 if pid is not None else state == "starting" for state, pid in seen)


def test_a_task_may_kill_the_worker_after_its_result(gate: Gate, tmp_path: Path) -> None:
    def leave_later(path: str) -> int:
        # As a library's thread that crashes: the result is out, the worker dies afterwards.
        threading.Thread(target=lambda: (pass_through(path), os._exit(1)), daemon=True).start()
        return 1

    with mh.Pool(1) as pool:
        assert pool.submit(leave_later, gate.path).result() == 1
        gate.wait_arrivals()
        gate.open()
        while pool.stats().deaths == 0:
            time.sleep(0.001)
        assert pool.submit(same, 2).result() == 2


def test_logging_is_quiet(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with caplog.at_level(logging.WARNING):
        with mh.Pool(2) as pool:
            assert list(pool.map(same, range(10))) == list(range(10))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_arrivals_of_a_gate(gate: Gate) -> None:
    # The tool of these tests: what is reported is kept until somebody asks.
    report_arrival(gate.path)
    report_arrival(gate.path)
    gate.wait_arrivals(2)


@program_test
def test_tasks_use_the_package_after_a_part_of_it() -> None:
    """The first task names a private module, which workers have before the package itself."""
    from manyhands import _pool

    with mh.Pool(1) as pool:
        assert pool.submit(_pool._refuse_unknown, {}).result() is None
        assert pool.submit(lambda: mh.Pool.__name__).result() == "Pool"
