"""Tasks that run for much longer than others like them are told of; pools that stand still end."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

import manyhands as mh
import procfs
from gate import Gate, closed_gate, pass_through, report_arrival
from manyhands import _pool
from observing import until

SOON = 0.2
# For what has to get to its place before.
LATER = 5 * SOON


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the logger has warned of."""
    caplog.set_level(logging.WARNING, "manyhands")
    return lambda: [record.getMessage() for record in caplog.records]


# ------------------------------------------------------------------------------------- stuck tasks


def test_a_task_is_told_of_once_with_its_stack(
    gate: Gate, warnings: Callable[[], list[str]]
) -> None:
    def held(path: str) -> None:  # its own: how long others took counts
        pass_through(path)

    with mh.Pool(1, stuck_after=LATER) as pool:
        future = pool.submit(held, gate.path)
        (pid,) = wait_for_pids(pool)
        # Whoever waits hears of it.
        while not warnings():
            with pytest.raises(TimeoutError):
                future.result(0.01)
        (text,) = warnings()
        headline, *stack = text.splitlines()
        name = "test_a_task_is_told_of_once_with_its_stack.held"
        begin, seconds = headline.split(" has run for ")
        assert begin == f"task 0 ({name})"
        assert float(seconds.split(" s ")[0]) >= LATER
        assert f" s in worker {pid} and goes on; none like it has ended yet. " in headline
        assert "task_timeout= would end it" in headline
        assert headline.endswith(" Its stack:")
        assert stack[0].endswith(", in held")
        assert stack[-1].strip().startswith("fcntl.flock(")
        with pytest.raises(TimeoutError):
            future.result(2 * LATER)
        gate.open()
        assert future.result() is None
    assert len(warnings()) == 1


def wait_for_pids(pool: mh.Pool) -> list[int]:
    while True:
        pids = [worker.pid for worker in pool.stats().workers if worker.task is not None]
        if pids and all(pids):
            return pids


def test_it_is_told_while_a_pool_is_left(gate: Gate, warnings: Callable[[], list[str]]) -> None:
    def held(path: str) -> None:  # its own: how long others took counts
        pass_through(path)

    def open_when_told() -> None:
        try:
            until(warnings)
        finally:
            gate.open()

    opener = threading.Thread(target=open_when_told)
    with mh.Pool(1, stuck_after=SOON) as pool:
        pool.submit(held, gate.path)
        opener.start()
    opener.join()
    assert [".held)" in text for text in warnings()] == [True]


def hold_in_c(path: str) -> int:
    """Keeps the interpreter and looks for no signal."""
    report_arrival(path)
    return sum(itertools.repeat(1))


def test_c_code_that_keeps_the_interpreter(gate: Gate, warnings: Callable[[], list[str]]) -> None:
    pool = mh.Pool(1, stuck_after=LATER)
    pool.submit(hold_in_c, gate.path)
    until(lambda: pool.stats().pending and warnings())
    assert ", in hold_in_c" in warnings()[0]
    pool.terminate()


def test_a_worker_that_does_not_answer(gate: Gate, warnings: Callable[[], list[str]]) -> None:
    def stop_itself(path: str) -> None:  # its own: how long others took counts
        report_arrival(path)
        os.kill(os.getpid(), signal.SIGSTOP)

    with mh.Pool(1, stuck_after=LATER) as pool:
        future = pool.submit(stop_itself, gate.path)
        gate.wait_arrivals()
        (pid,) = wait_for_pids(pool)
        until(lambda: procfs.stat(pid)[0] == "T")
        until(lambda: pool.stats() and warnings())
        assert "It does not say what it does; for the kernel it is in state T" in warnings()[0]
        os.kill(pid, signal.SIGCONT)
        future.result()


def test_tasks_that_take_as_long_as_others_are_not_told_of(
    gate: Gate, warnings: Callable[[], list[str]]
) -> None:
    def rest(path: str | None, seconds: float) -> None:  # its own: how long others took counts
        if path is not None:
            pass_through(path)
        time.sleep(seconds)

    def rest_elsewhere(path: str) -> None:
        pass_through(path)

    with mh.Pool(1, stuck_after=SOON) as pool:
        future = pool.submit(rest, gate.path, 5 * SOON)
        until(lambda: pool.stats() and warnings())
        gate.open()
        future.result()
        pool.submit(rest, None, 5 * SOON).result()
        pool.stats()
        assert len(warnings()) == 1
        # Of another function nothing is known.
        with closed_gate(Path(gate.path).parent, "elsewhere") as other:
            pool.submit(rest_elsewhere, other.path)
            until(lambda: pool.stats() and len(warnings()) == 2)


def test_an_item_of_a_map_among_short_ones(gate: Gate, warnings: Callable[[], list[str]]) -> None:
    with mh.Pool(2, stuck_after=LATER) as pool:  # than any of the short ones takes
        items = [None] * 500 + [gate.path] + [None] * 500
        results = pool.map(pass_some, items, ordered=False)
        taken = list(itertools.islice(results, 1000))
        # On a machine that stands still for so long a short one may be told of, too.
        told = "task 500 (pass_some) has run for "
        until(lambda: pool.stats() and any(text.startswith(told) for text in warnings()))
        (text,) = [text for text in warnings() if text.startswith(told)]
        assert "the longest like it took " in text
        gate.open()
        assert len(taken) + len(list(results)) == 1001


def pass_some(path: str | None) -> None:
    if path is not None:
        pass_through(path)


def test_an_item_that_yields_is_not_told_of(warnings: Callable[[], list[str]]) -> None:
    def count_slowly(to: int) -> Iterator[int]:
        for number in range(begin, to):
            time.sleep(SOON / 10)
            yield number

    for begin in range(20):  # each time another function: how long others took counts
        told, times = len(warnings()), []
        with mh.Pool(1, stuck_after=5 * SOON) as pool:
            for result in pool.map(count_slowly, [begin + 100]):
                assert result == begin + len(times)
                times.append(time.monotonic())
        # The machine may stand still for so long that the item seems to do so.
        if max(later - sooner for sooner, later in itertools.pairwise(times)) < 2 * SOON:
            assert len(warnings()) == told
            return
    pytest.fail("results came in fits and starts in 20 rounds")


def test_an_item_whose_results_nobody_takes_is_not_told_of(
    warnings: Callable[[], list[str]],
) -> None:
    with mh.Pool(1, stuck_after=5 * SOON) as pool:
        results = pool.map(yield_much, [40])
        assert len(next(results)) == 1 << 20
        time.sleep(10 * SOON)
        pool.stats()
        assert warnings() == []
        assert len(list(results)) == 39


def yield_much(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(1 << 20)


def test_never(warnings: Callable[[], list[str]]) -> None:
    with mh.Pool(1, stuck_after=None) as pool:
        pool.submit(time.sleep, 5 * SOON).result()
    assert warnings() == []


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_what_stuck_after_may_be(wrong: float) -> None:
    with pytest.raises(ValueError, match="stuck_after is seconds above 0, or None for never"):
        mh.Pool(1, stuck_after=wrong)


# ------------------------------------------------------------------------- pools that stand still


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pool, "_stalled_after", SOON)


def freeze_own_queue() -> None:
    """Breaks the protocol: this worker starts nothing any more, and its parent does not know."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    block = next(line for line in maps if "manyhands-control" in line)
    queue_word = int(block.split("-")[0], 16) + 64
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(queue_word)
        word = int.from_bytes(memory.read(8), "little")
        memory.seek(queue_word)
        memory.write((word | 1 << 63).to_bytes(8, "little"))


@pytest.mark.usefixtures("impatient")
def test_all_tasks_of_a_pool_that_stands_still_end(gate: Gate) -> None:
    def freeze(path: str) -> None:
        pass_through(path)
        freeze_own_queue()

    pool = mh.Pool(1, name="still")
    frozen = pool.submit(freeze, gate.path)
    gate.wait_arrivals()
    # Before it stands still: once it does, it may take no more at any moment.
    futures = [pool.submit(abs, number) for number in range(10)]
    results = pool.map(abs, range(1000))
    gate.open()
    frozen.result()
    for future in futures:
        with pytest.raises(mh.PoolStalled, match="This is a mistake of manyhands") as caught:
            future.result()
        assert isinstance(caught.value, BrokenExecutor)
        dump = caught.value.dump
        assert isinstance(dump, mh.PoolDump)
        assert dump.pending >= 10
        (worker,) = dump.workers
        assert worker.stack == ""
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.dump) == (str(caught.value), dump)
    with pytest.raises(mh.PoolStalled):
        list(results)
    with pytest.raises(mh.PoolStalled):
        pool.submit(abs, 1)
    pool.terminate()
    assert pool.stats().workers == ()


@pytest.mark.usefixtures("impatient")
def test_workers_that_are_stopped_are_no_stall() -> None:
    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGSTOP)
        until(lambda: procfs.stat(pid)[0] == "T")
        future = pool.submit(abs, -1)
        with pytest.raises(TimeoutError):
            future.result(15 * SOON)
        os.kill(pid, signal.SIGCONT)
        assert future.result() == 1


@pytest.mark.usefixtures("impatient")
def test_a_consumer_that_takes_its_time_is_no_stall() -> None:
    with mh.Pool(1) as pool:
        results = pool.map(yield_much, [40, 40])
        assert len(next(results)) == 1 << 20
        time.sleep(10 * SOON)
        assert len(list(results)) == 79


@pytest.mark.usefixtures("impatient")
def test_tasks_that_take_long_are_no_stall() -> None:
    with mh.Pool(1) as pool:
        futures = [pool.submit(time.sleep, 5 * SOON) for _ in range(3)]
        assert [future.result() for future in futures] == [None] * 3


@pytest.mark.usefixtures("impatient")
def test_a_pause_before_the_next_attempt_is_no_stall(tmp_path: Path) -> None:
    with mh.Pool(1, retry=mh.Retry(1, backoff=5 * SOON, jitter=0)) as pool:
        assert pool.submit(fail_once, str(tmp_path / "failed")).result() == "done"


def fail_once(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        raise OSError("once")
    return "done"


@pytest.mark.usefixtures("impatient")
def test_a_birth_that_takes_long_is_no_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"slow_to_import_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(f"import time\ntime.sleep({5 * SOON})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with mh.Pool(1, preload=[name]) as pool:
        assert pool.submit(abs, -1).result() == 1


@pytest.mark.usefixtures("impatient")
def test_a_worker_whose_output_nobody_reads_is_no_stall() -> None:
    """It stands in the flush between two tasks, and goes on when somebody does."""
    program = f"""if True:
        import manyhands as mh, os, sys, time
        from manyhands import _pool
        _pool._stalled_after = {SOON}

        def fill():
            # Some is left for the flush after the task.
            os.set_blocking(1, False)
            try:
                while True:
                    os.write(1, b"x")
            except BlockingIOError:
                pass
            os.set_blocking(1, True)
            sys.stdout.write("rest")

        with mh.Pool(1) as pool:
            pool.submit(fill).result()
            print(pool.submit(abs, -7).result(), file=sys.stderr, flush=True)
        """
    started = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(15 * SOON)
    output, errors = started.communicate()
    assert errors == b"7\n"
    assert output.endswith(b"xrest")


def lose_the_next_wake_up(begin: str, done: str) -> None:
    """Takes the mark away by which the parent sees that this worker sleeps, once it does.

    It waits for the file `begin` and makes `done` then: how many threads there are says nothing,
    since those of libraries come and go.
    """
    maps = Path("/proc/self/maps").read_text().splitlines()
    block = next(line for line in maps if "manyhands-control" in line)
    park_word = int(block.split("-")[0], 16) + 128

    def take_mark() -> None:
        while not Path(begin).exists():
            time.sleep(0.001)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            # It is asleep there once the kernel says so, and for good if that has no limit: before,
            # it sleeps for a time, after which it gives memory back and sleeps anew.
            while True:
                _, word, _, _, limit, *_ = [
                    *Path("/proc/self/syscall").read_text().split(),
                    *"-----",
                ]
                if (word, limit) == (hex(park_word), "0x0"):
                    break
                time.sleep(0.001)
            memory.seek(park_word)
            memory.write(bytes(4))
        Path(done).touch()

    threading.Thread(target=take_mark).start()


@pytest.mark.usefixtures("impatient")
def test_a_wake_up_that_was_lost_is_made_good(
    warnings: Callable[[], list[str]], tmp_path: Path
) -> None:
    begin, done = tmp_path / "begin", tmp_path / "done"
    with mh.Pool(1) as pool:
        pool.submit(lose_the_next_wake_up, str(begin), str(done)).result()
        # Not before: who submitted it may have yet to wake the worker, which would sleep anew then.
        begin.touch()
        until(done.exists)
        assert pool.submit(abs, -1).result() == 1
        until(lambda: pool.stats() and warnings())
        assert "a wake-up was lost, which is a mistake of manyhands" in warnings()[0]
