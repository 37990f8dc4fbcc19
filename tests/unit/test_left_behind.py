"""Threads whose tasks do not end when they are asked to: nothing kills them, nobody waits."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any

import pytest

import manyhands as mh
from observing import until
from programs import run

LOG = "manyhands"


class Gate:
    """`os.read(gate.end, 1)` stays in C code from its call on, until the gate is open."""

    def __init__(self) -> None:
        self.end, self._other = os.pipe()

    def open(self) -> None:
        os.write(self._other, b"." * 100)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()  # its descriptors stay: a thread that is left behind may be about to read
    yield gate
    gate.open()


def running(*futures: mh.Future[Any]) -> None:
    for future in futures:
        until(future.running)


def threads_of(pool: mh.Pool) -> list[str]:
    prefix = f"manyhands-{pool.name}-"
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_a_task_in_c_code(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits goes on at once, and the pool keeps its width."""
    with mh.Pool(1, engine="thread", name="gated", grace=0.05) as pool:
        strict = pool.options(task_timeout=0.5)  # it has to get to its C code
        future = strict.submit(os.read, gate.end, 1)
        behind = [pool.submit(abs, -number) for number in range(100)]
        error = future.exception(60)
        assert isinstance(error, mh.TaskTimeout)
        assert str(error) == (
            "task 0 (read) took longer than its task_timeout of 0.5 s in thread "
            "manyhands-gated-0; it was asked to end, and runs until it does: a thread cannot be "
            "killed; other tasks go on"
        )
        assert [one.result(60) for one in behind] == list(range(100))
        assert pool.stats().left_behind == 1
        assert [worker.slot for worker in pool.stats().workers] == [1]
        assert threads_of(pool) == ["manyhands-gated-0", "manyhands-gated-1"]
        assert caplog.messages == [
            "task 0 (read) has not ended 0.05 s after it was asked to, and a thread cannot "
            "be killed: manyhands-gated-0 is left behind with it, and the pool goes on without "
            "that thread"
        ]
        gate.open()
        until(lambda: threads_of(pool) == ["manyhands-gated-1"])
        assert future.exception() is error, "what comes late is dropped"
        assert pool.submit(abs, -1).result() == 1
    assert pool.stats().pending == 0
    assert pool.stats().done == 102


def test_cancelling_one_in_c_code(gate: Gate) -> None:
    with mh.Pool(2, engine="thread", name="cancelled", grace=0.05) as pool:
        futures = [pool.submit(os.read, gate.end, 1) for _ in range(2)]
        running(*futures)
        assert all(future.cancel() for future in futures)
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(0)
        both = threading.Barrier(2)
        waiting = [pool.submit(both.wait) for _ in range(2)]
        assert {future.result(60) for future in waiting} == {0, 1}, "it is two threads wide still"
        assert pool.stats().left_behind == 2
    gate.open()
    until(lambda: threads_of(pool) == [])


def test_one_that_hears_and_goes_on() -> None:
    begun, heard, leave = threading.Event(), threading.Event(), threading.Event()

    def work() -> str:
        while True:
            # All of the loop is inside: it may hear at any of its steps.
            try:
                begun.set()
                while not leave.wait(0.001):
                    pass
                return "late"
            except mh.TaskStopped:
                heard.set()

    for _ in range(10):
        with mh.Pool(1, engine="thread", grace=0.05) as pool:
            future = pool.options(task_timeout=0.5).submit(work)
            with pytest.raises(mh.TaskTimeout):
                future.result(60)
            if not begun.is_set():
                continue  # its thread stood still for so long before
            assert heard.wait(60)
            assert pool.submit(abs, -1).result(60) == 1
        break
    assert pool.stats().left_behind == 1
    leave.set()


def test_one_that_ends_in_its_grace_keeps_its_thread() -> None:
    with mh.Pool(1, engine="thread", grace=60, task_timeout=0.05) as pool:
        for _ in range(3):
            with pytest.raises(mh.TaskTimeout):
                pool.submit(os.read, (gate := Gate()).end, 1).result()
            gate.open()  # not before it was asked
        assert pool.options(task_timeout=None).submit(abs, -1).result() == 1
        assert (pool.stats().left_behind, pool.stats().workers[0].slot) == (0, 0)


def test_a_request_that_nobody_heard_hits_no_later_task() -> None:
    """C code hears of nothing: what is asked of it must not be raised in the next task."""

    def work(number: int) -> int:
        return sum(range(number))

    with mh.Pool(1, engine="thread", grace=60) as pool:
        late = 0
        for _ in range(200):
            asked = pool.options(task_timeout=0.001).submit(time.sleep, 0.003)
            later = [pool.submit(work, 50) for _ in range(3)]
            late += isinstance(asked.exception(), mh.TaskTimeout)
            assert [future.result() for future in later] == [1225] * 3
        assert late > 0, "the clock may be late itself, but not always"
        assert pool.stats().left_behind == 0


@pytest.mark.parametrize("ordered", [True, False])
def test_items_of_a_map(ordered: bool) -> None:
    # C code from its first step on, however late a thread is: what waits has no bytecode at which
    # it would hear, and what does not lets nobody ask, since it keeps the interpreter.
    items: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(30)]
    for number, item in enumerate(items):
        if number % 10 != 3:
            item.put(number)
    with mh.Pool(2, engine="thread", name=f"items-{ordered}", grace=0.05) as pool:
        results: list[Any] = pool.map(
            SimpleQueue.get, items, ordered=ordered, task_timeout=0.2, on_error="return"
        ).list()
        late = [result for result in results if isinstance(result, mh.Failure)]
        assert sorted(failure.index for failure in late) == [3, 13, 23]
        assert {failure.cause for failure in late} == {"timeout"}
        rest = [result for result in results if not isinstance(result, mh.Failure)]
        assert sorted(rest) == [n for n in range(30) if n % 10 != 3]
        until(lambda: pool.stats().left_behind == 3)
        assert pool.stats().pending == 0
        assert pool.map(abs, range(100)).list() == list(range(100))
    for item in items:
        item.put(0)
    until(lambda: threads_of(pool) == [])


def test_it_does_not_run_again_while_it_still_runs(gate: Gate) -> None:
    with mh.Pool(1, engine="thread", grace=0.05) as pool:
        view = pool.options(task_timeout=0.5, retry=3)  # it has to get to its C code
        with pytest.raises(mh.TaskTimeout):
            view.submit(os.read, gate.end, 1).result(60)
        [failure] = view.map(os.read, [gate.end], [1], on_error="return")
        assert isinstance(failure, mh.Failure)
        assert (failure.attempts, failure.cause) == (1, "timeout")
    assert pool.stats().left_behind == 2


def test_leaving_the_block_does_not_wait_for_it(gate: Gate) -> None:
    with pytest.raises(LookupError), mh.Pool(2, engine="thread") as pool:
        future = pool.submit(os.read, gate.end, 1)
        results = pool.map(os.read, [gate.end] * 5, [1] * 5)
        until(lambda: [w.state for w in pool.stats().workers] == ["busy"] * 2)
        raise LookupError
    assert future.cancelled()
    assert (pool.stats().left_behind, pool.stats().pending) == (2, 0)
    with pytest.raises(CancelledError):
        next(results)


def test_a_block_that_is_left_while_a_limit_runs(gate: Gate) -> None:
    with mh.Pool(1, engine="thread", task_timeout=1, grace=0.1) as pool:
        future = pool.submit(os.read, gate.end, 1)
    assert isinstance(future.exception(0), mh.TaskTimeout)
    assert pool.stats().left_behind == 1


def test_inline_c_code_ends_late_and_is_a_time_out() -> None:
    with mh.Pool(engine="inline", task_timeout=0.05) as pool:
        for _ in range(5):
            error = pool.submit(time.sleep, 1).exception()
            if error is not None:  # else who looks at the clock was later than that
                break
        assert isinstance(error, mh.TaskTimeout)
        assert "what runs in the calling thread can be asked to end" in str(error)
        assert pool.options(task_timeout=None).submit(abs, -1).result() == 1


def test_a_task_that_runs_another_inline() -> None:
    """Each has its own time: what one of them is asked the other is not."""

    def spin() -> None:
        while True:
            pass

    def outer(pool: mh.Pool, then: Any) -> str:
        error = pool.options(task_timeout=0.05).submit(spin).exception()
        return f"{type(error).__name__} {then()}"

    inline = mh.Pool(engine="inline", copy=False)
    with mh.Pool(1, engine="thread", grace=60) as pool:
        patient = pool.options(task_timeout=60)
        assert patient.submit(outer, inline, lambda: "well").result() == "TaskTimeout well"
        strict = pool.options(task_timeout=0.3)
        assert isinstance(strict.submit(outer, inline, spin).exception(), mh.TaskTimeout)
        assert pool.submit(abs, -1).result() == 1


# What it goes on with, also after it was asked to end, but for what spins.
ENDINGS = {
    "spins": "while True: pass",
    "hears nothing": "while True: sum(n for n in range(100_000))",
    "naps": "while True: time.sleep(0.001)",
    "sleeps": "time.sleep(600)",
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_program_ends_with_a_thread_left_behind(kind: str) -> None:
    """As with a daemon thread: nobody waits for it, and it takes nobody along."""
    grace = 60 if kind == "spins" else 0.05  # what spins ends as soon as it is asked
    source = f"""
import sys, time
import manyhands as mh

begun = set()

def work(number):
    while True:
        try:
            begun.add(number)
            {ENDINGS[kind]}
        except BaseException:
            if {kind == "spins"}: raise

with mh.Pool(2, engine="thread", grace={grace}) as pool:
    for number in range(2):
        future = pool.submit(work, number)
        while number not in begun: time.sleep(0.001)
        time.sleep(0.05)
        assert future.cancel()
    for _ in range(10):
        late = pool.options(task_timeout=0.5).submit(work, 2)
        assert isinstance(late.exception(), mh.TaskTimeout)
        if 2 in begun: break
        print("it stood still before")
sys.exit(7)
"""
    ended = run("-c", source)
    assert ended.code == 7, ended
    lines = ended.err.splitlines()
    # One that stood still before it began may have been left behind, too, and has ended then.
    most = 3 + len(ended.out.splitlines())
    assert 3 <= len(lines) <= most if kind != "spins" else not lines, ended.err
    assert all("a thread cannot be killed" in line for line in lines)


def test_the_end_of_the_program_leaves_what_its_limit_ends() -> None:
    ended = run(
        "-c",
        """
import time
import manyhands as mh

pool = mh.Pool(2, engine="thread", task_timeout=1, grace=0.1)
future = pool.submit(time.sleep, 600)
""",
    )
    assert ended.code == 0, ended
    assert "is left behind with it" in ended.err
    assert "Traceback" not in ended.err


def test_the_log(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A task that is asked and ends is nobody's business but of who waits for it."""
    with caplog.at_level(logging.DEBUG, LOG), mh.Pool(1, engine="thread", grace=60) as pool:
        with pytest.raises(mh.TaskTimeout):
            pool.options(task_timeout=0.05).submit(os.read, gate.end, 1).result()
        gate.open()  # not before it was asked
        assert pool.submit(abs, -1).result() == 1
    assert caplog.messages == []
