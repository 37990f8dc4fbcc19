"""Tasks that are ended: their time is up, or they are cancelled. Whoever was not meant goes on."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
import procfs
from gate import Gate, closed_gate, pass_through
from observing import pids_of, settle, until
from programs import program, seed


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def spin() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(600)


def hold_in_c() -> int:
    """Keeps the interpreter and looks for no signal."""
    return sum(itertools.repeat(1))


def stubborn() -> None:
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass


def ignore_all() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    spin()


ENDLESS = [spin, sleep, hold_in_c, stubborn, ignore_all]


def until_running(future: mh.Future[Any]) -> None:
    until(future.running)


# ------------------------------------------------------------------------------------- time limits


@pytest.mark.parametrize("task", ENDLESS)
def test_a_task_that_takes_too_long_is_ended(pool: mh.Pool, task: Callable[[], Any]) -> None:
    strict = pool.options(task_timeout=0.1, grace=0.1)
    future = strict.submit(task)
    others = [pool.submit(pow, number, 2) for number in range(200)]
    error = future.exception(60)
    assert isinstance(error, mh.TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert f"({task.__name__}) took longer than its task_timeout of 0.1 s" in str(error)
    assert [future.result(60) for future in others] == [number**2 for number in range(200)]
    assert [pool.submit(abs, -1).result(60) for _ in range(10)] == [1] * 10
    assert pool.stats().deaths == 0, "nobody's fault"


def test_a_task_that_is_asked_to_end_can_clean_up(pool: mh.Pool, tmp_path: Path) -> None:
    path = tmp_path / "cleaned"

    def work() -> str:
        try:
            time.sleep(600)
        except mh.TaskStopped as asked:
            path.write_text(str(asked))
            return "too late"
        return "never"

    before = {future.result() for future in [pool.submit(os.getpid) for _ in range(50)]}
    with pytest.raises(mh.TaskTimeout):
        # Time enough for it to get to where it cleans up.
        pool.options(task_timeout=1, grace=30).submit(work).result()
    assert "is to end" in path.read_text()
    after = {future.result() for future in [pool.submit(os.getpid) for _ in range(50)]}
    assert after <= before | {*pids_of(pool)}
    assert all(worker.restarts == 0 for worker in pool.stats().workers)


def test_a_task_is_asked_in_the_middle_of_an_import(tmp_path: Path) -> None:
    """What asks imports nothing: modules that are half imported would be in its way."""
    said = tmp_path / "said"
    task = f"""
import sys, time, types
for name in list(sys.modules):
    if name.startswith(("concurrent", "logging", "manyhands._errors")):
        del sys.modules[name]
sys.modules["logging"] = types.ModuleType("logging")
try:
    time.sleep(60)
except BaseException as error:
    open({str(said)!r}, "w").write(type(error).__name__)
    raise
"""
    # Time enough for it to get to its nap.
    with mh.Pool(1, task_timeout=1) as pool, pytest.raises(mh.TaskTimeout):
        pool.submit(exec, task, {}).result(30)
    assert said.read_text() == "TaskStopped"


@pytest.fixture
def far(pool: mh.Pool, gate: Gate) -> Iterator[None]:
    """A task with a limit of hours runs, so that nothing has to be looked at before."""
    future = pool.options(task_timeout=36_000).submit(pass_through, gate.path)
    gate.wait_arrivals()
    time.sleep(0.5)  # the next look is planned by then
    yield
    gate.open()
    future.result(60)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("task", [spin, sleep, stubborn], ids=lambda task: task.__name__)
def test_a_short_limit_beside_a_long_one(pool: mh.Pool, task: Callable[[], Any]) -> None:
    future = pool.options(task_timeout=0.1, grace=0.1).submit(task)
    assert isinstance(future.exception(30), mh.TaskTimeout)


@pytest.mark.usefixtures("far")
def test_what_is_cancelled_beside_a_long_limit_is_killed(pool: mh.Pool, tmp_path: Path) -> None:
    future = pool.options(grace=0.1).submit(stubborn)
    until_running(future)
    pids = {worker.pid for worker in pool.stats().workers}
    assert future.cancel()
    deadline = time.monotonic() + 30
    while {worker.pid for worker in pool.stats().workers} == pids:
        assert time.monotonic() < deadline, "its worker lives"
        time.sleep(0.01)


@pytest.mark.usefixtures("far")
def test_a_pause_beside_a_long_limit(pool: mh.Pool, tmp_path: Path) -> None:
    def fail_once() -> str:
        if not (tmp_path / "here").exists():
            (tmp_path / "here").touch()
            raise ValueError
        return "again"

    plan = mh.Retry(1, backoff=0.1, jitter=0)
    assert pool.options(retry=plan).submit(fail_once).result(30) == "again"


def test_what_is_being_ended_by_its_time_is_cancelled(pool: mh.Pool, tmp_path: Path) -> None:
    """Else it would run again."""

    def hear_and_go_on() -> None:
        with open(tmp_path / "runs", "a") as file:
            file.write("x")
        while True:
            try:
                time.sleep(600)
            except BaseException:
                (tmp_path / "heard").touch()

    patient = pool.options(task_timeout=0.1, grace=20, retry=mh.Retry(1, on=mh.TaskTimeout))
    future = patient.submit(hear_and_go_on)
    deadline = time.monotonic() + 60
    while not (tmp_path / "heard").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert future.cancel()
    assert future.cancelled()
    pool.terminate()
    assert (tmp_path / "runs").read_text() == "x"


def test_except_exception_does_not_catch_it(pool: mh.Pool) -> None:
    def work() -> str:
        try:
            spin()
        except Exception:
            time.sleep(600)
        return "caught"

    with pytest.raises(mh.TaskTimeout):
        pool.options(task_timeout=0.05, grace=600).submit(work).result(60)


def write_whole(path: Path, text: str) -> None:
    """Whoever sees the file sees all of it."""
    written = path.with_name("written")
    written.write_text(text)
    written.rename(path)


def test_a_worker_that_was_stopped_from_outside(pool: mh.Pool, tmp_path: Path) -> None:
    def stop_itself() -> None:
        write_whole(path, str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    path = tmp_path / "pid"
    while not path.exists():  # its time may be up before it comes to that
        future = pool.options(task_timeout=0.5, grace=0.05).submit(stop_itself)
        assert isinstance(future.exception(60), mh.TaskTimeout)
    assert not procfs.is_alive(int(path.read_text()))


def test_its_child_processes_die_with_it(pool: mh.Pool, tmp_path: Path) -> None:
    """pebble#139, celery#6198: what a task has started lives on and holds ports and memory."""
    path = tmp_path / "pids"

    def work(stubbornly: bool) -> None:
        children = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        write_whole(path, " ".join(str(child.pid) for child in children))
        if stubbornly:
            stubborn()
        time.sleep(600)

    for stubbornly in (False, True):
        while not path.exists():  # its time may be up before it comes to that
            with pytest.raises(mh.TaskTimeout):
                pool.options(task_timeout=1, grace=0.1).submit(work, stubbornly).result(60)
        for pid in map(int, path.read_text().split()):
            while procfs.is_alive(pid):
                time.sleep(0.001)
        path.unlink()


def cancel(_pool: mh.Pool, future: mh.Future[Any]) -> None:
    assert future.cancel()


def cancel_who_awaits(_pool: mh.Pool, future: mh.Future[Any]) -> None:
    async def wait() -> None:
        await future

    async def main() -> None:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)  # it awaits now
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def terminate(pool: mh.Pool, _future: mh.Future[Any]) -> None:
    pool.terminate()


@pytest.mark.parametrize("stubbornly", [False, True])
@pytest.mark.parametrize("end", [cancel, cancel_who_awaits, terminate])
def test_its_child_processes_die_with_it_whoever_ends_it(
    tmp_path: Path, end: Callable[[mh.Pool, mh.Future[Any]], None], stubbornly: bool
) -> None:
    path = tmp_path / "pids"

    def work() -> None:
        children = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        write_whole(path, " ".join(str(child.pid) for child in children))
        if stubbornly:
            stubborn()
        time.sleep(600)

    with mh.Pool(2, grace=0.1) as pool:
        future = pool.submit(work)
        until(path.exists)
        children = [int(pid) for pid in path.read_text().split()]
        assert all(procfs.is_alive(pid) for pid in children)
        end(pool, future)
        assert future.cancelled()
        until(
            lambda: not any(procfs.is_alive(pid) for pid in children),
            lambda: [procfs.describe(pid) for pid in children],
        )
        if end is not terminate:
            assert [pool.submit(abs, -1).result(60) for _ in range(4)] == [1] * 4


@program
def limits_that_equal_the_duration(count: int, grace: float, chosen: int) -> None:
    def nap(number, seconds):
        time.sleep(seconds)
        with open("ran", "ab", buffering=0) as file:
            file.write(b"%d\n" % number)
        return number

    def begin():
        with open("born", "ab", buffering=0) as file:
            file.write(b"%d\n" % os.getpid())
        if not grace:  # what hears that it is to end would end before it is killed
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])

    choose = random.Random(chosen)
    told = []
    with mh.Pool(2, initializer=begin) as pool:
        strict = pool.options(task_timeout=0.003, grace=grace)
        durations = [0.002 + 0.002 * choose.random() for _ in range(count)]
        if not grace:
            durations[::50] = [600] * len(durations[::50])  # none of these ends by itself
        futures = [strict.submit(nap, *call) for call in enumerate(durations)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: told.append(number))
        ends = [future.exception() for future in futures]
        assert all(error is None or type(error) is mh.TaskTimeout for error in ends)
        assert [future.result() for future in futures if future.exception() is None] == [
            number for number, error in enumerate(ends) if error is None
        ]
        with open("ran", "rb") as file:
            ran = [int(line) for line in file]
        assert len(ran) == len(set(ran)), "none ran twice"
        assert set(ran) >= {number for number, error in enumerate(ends) if error is None}
        late = sum(error is not None for error in ends)
        stats = pool.stats()
        assert (stats.pending, stats.deaths) == (0, 0)
        with open("born", "rb") as file:
            born = len(file.readlines())
        print(f"{late} of {count} were ended, {born} workers were born")
        assert late > 0
        if not grace:
            assert all(ends[::50]), "they never end by themselves"
            assert born > 2, "workers were killed"
    # Who waits for a result may go on before its callbacks are called.
    deadline = time.monotonic() + 60
    while len(told) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(told) == list(range(count)), "each ends once"


@pytest.mark.parametrize(("count", "grace"), [(3000, 0.5), (300, 0)])
def test_limits_that_equal_the_duration(count: int, grace: float) -> None:
    """pebble#153: the wrong task is killed when one ends just as its time is up."""
    ended = limits_that_equal_the_duration.run(
        seconds=90, count=count, grace=grace, chosen=seed()
    ).check()
    print(ended.out)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("form", ["short", "long", "batch"])
def test_items_of_a_map(pool: mh.Pool, form: str, ordered: bool) -> None:
    """Each item has its own time; what stands behind it in its block goes on."""
    filler = b"x" * 20_000 if form == "long" else b""

    def work(item: Any) -> Any:
        numbers = [number for number, _ in item] if form == "batch" else [item[0]]
        for number in numbers:
            if number % 20 == 7:
                spin()
        return numbers if form == "batch" else numbers[0]

    assert list(pool.map(abs, range(1000))) == list(range(1000))
    results = pool.map(
        work,
        [(number, filler) for number in range(60)],
        ordered=ordered,
        batch=2 if form == "batch" else None,
        task_timeout=0.4,  # what is quick has to be so on a busy machine, too
        on_error="return",
    )
    got = [-1 if isinstance(result, mh.Failure) else result for result in results]
    late = {6, 7, 26, 27, 46, 47} if form == "batch" else {7, 27, 47}
    assert sorted(n for n in got if n >= 0) == [n for n in range(60) if n not in late]
    assert not ordered or [n for n in got if n >= 0] == sorted(n for n in got if n >= 0)
    assert {failure.cause for failure in results.failures} == {"timeout"}
    assert len(results.failures) == got.count(-1) == 3
    assert all(failure.pid > 0 and failure.attempts == 1 for failure in results.failures)
    assert results.failures[0].input is not None


def test_generators_are_ended_too(pool: mh.Pool) -> None:
    def work(number: int) -> Iterator[int]:
        yield number
        if number == 2:
            spin()
        yield -number

    got: list[Any] = list(pool.map(work, range(4), task_timeout=0.4, on_error="return"))
    assert [x.cause if isinstance(x, mh.Failure) else x for x in got] == [
        *(0, 0, 1, -1, 2, "timeout", 3, -3)
    ]
    with pytest.raises(mh.TaskTimeout, match="took longer"):
        list(pool.map(work, range(4), task_timeout=0.4))


def test_the_first_task_of_a_pool_has_its_whole_time(tmp_path: Path) -> None:
    """Starting a worker is no part of it."""
    with mh.Pool(1, initializer=time.sleep, initargs=(0.8,), task_timeout=0.5) as pool:
        assert pool.submit(abs, -1).result(60) == 1
        with pytest.raises(mh.TaskTimeout):
            pool.submit(spin).result(60)


# ----------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("task", ENDLESS)
def test_a_running_task_is_cancelled(task: Callable[[], Any]) -> None:
    with mh.Pool(1, grace=0.1) as pool:
        running, queued = pool.submit(task), pool.submit(task)
        behind = pool.submit(abs, -1)
        until_running(running)
        assert queued.cancel()
        assert running.cancel()
        assert running.cancelled()
        assert running.done()
        assert not running.running()
        with pytest.raises(CancelledError):
            running.result()
        assert behind.result(60) == 1
        assert running.cancel(), "again is no harm"
        assert not behind.cancel()
        settle(pool)
        assert pool.stats().deaths == 0


def test_a_late_result_is_dropped(gate: Gate) -> None:
    def work() -> str:
        try:
            pass_through(gate.path)
        except mh.TaskStopped:
            return "late"
        return "never"

    with mh.Pool(1, grace=60) as pool:
        future = pool.submit(work)
        gate.wait_arrivals()
        assert future.cancel()
        assert pool.submit(abs, -1).result(60) == 1
        assert future.cancelled()
        assert pool.stats().workers[0].restarts == 0


def test_cancelled_before_its_worker_is_born() -> None:
    """It runs tasks before its pool has been told who it is."""
    for delay in range(30):
        with mh.Pool(1, grace=600) as pool:
            future = pool.submit(spin)
            time.sleep(delay / 2000)  # an instant of its start; this orders nothing
            assert future.cancel()
            assert pool.submit(abs, -1).result(60) == 1


def test_an_event_loop_cancels_the_task(pool: mh.Pool) -> None:
    async def main() -> mh.Future[None]:
        future = pool.submit(sleep)
        while not future.running():
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.01)
        return future

    future = asyncio.run(main())
    assert future.cancelled()
    assert [pool.submit(abs, -1).result(60) for _ in range(4)] == [1] * 4


def test_cancelling_at_any_instant(pool: mh.Pool) -> None:
    """Each ends once: with its value, or cancelled; and the others are not hit."""
    chosen = random.Random(7)
    cancelled = 0
    for _ in range(300):
        future = pool.submit(time.sleep, 0.0005)
        other = pool.submit(pow, 3, 2)
        time.sleep(0.001 * chosen.random())  # a random instant
        if future.cancel():
            assert future.cancelled()
            cancelled += 1
        else:
            assert future.result() is None
        assert other.result(60) == 9
    assert cancelled > 0
    settle(pool)
    assert pool.stats().deaths == 0


def test_many_queued_tasks_are_cancelled(pool: mh.Pool, gate: Gate) -> None:
    blocking = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    futures = [pool.submit(abs, 1) for _ in range(20_000)]
    start = time.perf_counter()
    assert all(future.cancel() for future in futures)
    print(f"{time.perf_counter() - start:.3f} s")
    gate.open()
    assert all(future.exception(60) is None for future in blocking)


def test_a_pool_that_is_closed_while_cancelled_tasks_end(tmp_path: Path, gate: Gate) -> None:
    """Its workers leave by themselves: one that is killed runs no exit handler."""
    alive = tmp_path / "alive"
    alive.mkdir()

    def work(at_once: bool) -> None:
        path = alive / str(os.getpid())
        atexit.register(path.unlink)
        try:
            path.touch()
            sleep()
        except mh.TaskStopped:
            if not at_once:
                pass_through(gate.path)

    pool = mh.Pool(4, grace=600)
    futures = [pool.submit(work, n == 0) for n in range(4)]
    while len(list(alive.iterdir())) < 4:
        time.sleep(0.001)
    assert all(future.cancel() for future in reversed(futures))
    pool.shutdown(wait=False)
    gate.wait_arrivals(3)
    while len(list(alive.iterdir())) > 3:
        time.sleep(0.001)
    until(lambda: len(pool.stats().workers) <= 3)
    time.sleep(0.2)  # the supervisor asks them again meanwhile; no new worker may come of it
    assert len(pool.stats().workers) <= 3
    gate.open()
    pool.shutdown()
    assert not list(alive.iterdir())


def test_terminate(gate: Gate) -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(task) for task in (*ENDLESS, *ENDLESS)]
    until_running(futures[0])
    pids = pids_of(pool)
    pool.terminate()
    assert all(future.cancelled() for future in futures)
    assert not any(procfs.is_alive(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(abs, 1)


# ---------------------------------------------------------------------------------------- options


def test_options_are_a_view(pool: mh.Pool) -> None:
    strict = pool.options(task_timeout=0.5)
    patient = strict.options(task_timeout=None)
    assert list(strict.map(abs, [-1, -2])) == [1, 2]
    assert list(strict.starmap(pow, [(2, 3)])) == [8]
    assert patient.submit(time.sleep, 0.7).result() is None
    with pytest.raises(mh.TaskTimeout):
        strict.map(time.sleep, [600]).run()
    assert strict.map(time.sleep, [0.7], task_timeout=None).run().done == 1
    assert "task_timeout=0.5, grace=0.5" in repr(strict)
    assert not hasattr(strict, "shutdown")
    assert not hasattr(strict, "__enter__")
    with pytest.raises(TypeError, match="at least one iterable"):
        strict.map(abs)


def test_defaults_of_a_pool() -> None:
    with mh.Pool(1, task_timeout=0.1, grace=0.05) as pool:
        with pytest.raises(mh.TaskTimeout):
            pool.submit(stubborn).result(60)
        with pytest.raises(mh.TaskTimeout):
            pool.map(sleep_for, [600]).run()
        assert pool.options(task_timeout=None).submit(sleep_for, 0.2).result() == 0.2


def sleep_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_options_of_the_default_pool() -> None:
    with pytest.raises(mh.TaskTimeout):
        mh.options(task_timeout=0.1).submit(spin).result(60)
    with pytest.raises(mh.TaskTimeout):
        mh.map(sleep_for, [600], task_timeout=0.1).run()
    assert mh.options(task_timeout=60).map(abs, [-1]).list() == [1]


@pytest.mark.parametrize("name", ["task_timeout", "grace"])
def test_bad_values(pool: mh.Pool, name: str) -> None:
    for value in ("1", True, [1]):
        with pytest.raises(TypeError, match=f"{name} must be a number of seconds"):
            pool.options(**{name: value})
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} must be from 0 to a billion seconds"):
            pool.options(**{name: value})
        with pytest.raises(ValueError, match=f"{name} must be from 0"):
            pool.map(abs, [1], **{name: value})
    with pytest.raises(ValueError, match="task_timeout must be above 0"):
        pool.options(task_timeout=0)


def test_an_option_that_went_to_the_function(pool: mh.Pool) -> None:
    """It is the function's argument; the note names the way to say what was meant."""
    error = pool.submit(sleep_for, 0, task_timeout=3).exception()  # type: ignore[call-arg]
    assert isinstance(error, TypeError)
    assert any("pool.options(task_timeout=3)" in note for note in error.__notes__)
    error = pool.submit(sleep_for, 0, colour=3).exception()  # type: ignore[call-arg]
    assert isinstance(error, TypeError)
    assert not any("options(" in note for note in error.__notes__)
