"""Tasks that may take only so much memory: `task_memory=`. Whoever keeps to it goes on."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest

import manyhands as mh
import procfs
from gate import Gate, pass_through
from observing import until

MB = 1_000_000


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


def take(megabytes: int, seconds: float = 0.0) -> int:
    """Writes to so much memory, and keeps it for so long."""
    taken = bytearray(megabytes * MB)
    for at in range(0, len(taken), 4096):
        taken[at] = 1
    time.sleep(seconds)
    return os.getpid()


def swallow() -> None:
    """Takes more and more, whatever it is told."""
    taken = []
    while True:
        try:
            taken.append(np.ones(2 * MB // 8))
            time.sleep(0.002)
        except BaseException:
            pass


# ------------------------------------------------------------------------------------ who is ended


def test_a_task_that_takes_too_much_is_ended(pool: mh.Pool) -> None:
    """P20 (celery#5645, plaso#1121): one task takes all there is, and the machine goes down too."""
    strict = pool.options(task_memory="100MB")
    future = strict.submit(swallow)
    others = [pool.submit(pow, number, 2) for number in range(200)]
    error = future.exception(60)
    assert isinstance(error, mh.TaskMemoryExceeded)
    assert isinstance(error, mh.TaskError)
    assert isinstance(error, MemoryError)
    assert (error.limit, error.peak > 100 * MB) == (100 * MB, True)
    text = (
        f"task 0 (swallow) took {error.peak:,} bytes of memory, more than its task_memory of "
        "100,000,000, and was ended with worker "
    )
    assert str(error).startswith(text)
    assert str(error).endswith("; other tasks go on")
    assert [future.result(60) for future in others] == [number**2 for number in range(200)]
    assert [pool.submit(abs, -1).result(60) for _ in range(10)] == [1] * 10
    assert pool.stats().deaths == 0, "nobody's fault"


def test_it_is_looked_at_more_often_the_closer_it_is(pool: mh.Pool) -> None:
    strict = pool.options(task_memory="100MB")
    peaks = []
    for _ in range(10):  # a machine that stands still looks late
        error = strict.submit(swallow).exception(60)
        assert isinstance(error, mh.TaskMemoryExceeded)
        peaks.append(error.peak)
        if peaks[-1] < 400 * MB:
            break
    assert min(peaks) < 400 * MB, peaks


def test_who_grows_in_c_and_holds_the_lock_of_the_interpreter(pool: mh.Pool) -> None:
    """No code in Python runs in its process any more, in no thread, and no signal is handled: who
    looks and ends it is another process."""

    def grow() -> None:
        # One call in C, that writes 400 MB and then looks for a one among zeros without end. So it
        # never comes back, however late it is looked at, and never takes more than a machine has.
        list(chain(repeat(0, 50 * MB), filter(None, repeat(0))))

    strict = pool.options(task_memory="100MB")
    future = strict.submit(grow)
    others = [pool.submit(pow, number, 2) for number in range(200)]
    error = future.exception(100)
    assert isinstance(error, mh.TaskMemoryExceeded)
    assert (error.limit, error.peak > 100 * MB) == (100 * MB, True)
    assert error.peak < 600 * MB, "what it took, with what lists have in reserve"
    assert f".grow) took {error.peak:,} bytes of memory" in str(error)
    assert [other.result(100) for other in others] == [number**2 for number in range(200)]
    assert [strict.submit(abs, -1).result(100) for _ in range(10)] == [1] * 10
    assert pool.stats().deaths == 0, "nobody's fault"


def test_who_keeps_to_it_goes_on(pool: mh.Pool) -> None:
    strict = pool.options(task_memory=200 * MB)
    pids = {strict.submit(take, 60, 0.05).result(60) for _ in range(12)}
    assert len(pids) <= 2, "no worker was ended"
    assert pool.stats().deaths == 0


def test_what_came_before_does_not_count() -> None:
    """The baseline: what an earlier task has left in the worker is not the next one's."""
    with mh.Pool(1) as pool:
        pid = pool.submit(exec, "import sys; sys.kept = bytearray(b'x') * 150_000_000").result(60)
        assert pid is None
        strict = pool.options(task_memory="100MB")
        first = strict.submit(take, 20, 0.3).result(60)
        assert pool.submit(procfs_private, first).result(60) > 150 * MB
        assert strict.map(take, [20] * 3, [0.1] * 3).list() == [first] * 3
        assert pool.stats().workers[0].restarts == 0


def procfs_private(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def test_leaks_of_earlier_tasks_do_not_add_up() -> None:
    """Each counts what it adds by itself, though the worker grows past the limit of one."""

    def leak(megabytes: int) -> int:
        kept = globals().setdefault("_kept", [])
        kept.append(bytearray(b"x") * (megabytes * MB))
        time.sleep(0.02)
        return len(kept)

    with mh.Pool(1) as pool:
        strict = pool.options(task_memory="60MB")
        assert [strict.submit(leak, 20).result(60) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
        assert strict.map(leak, [20] * 4).list() == [7, 8, 9, 10]


def test_what_is_in_the_store_does_not_count(pool: mh.Pool) -> None:
    data = mh.put(np.ones(30 * MB))  # 240 MB
    strict = pool.options(task_memory="100MB")

    def work(array: Any) -> float:
        time.sleep(0.1)
        total = float(array.sum())
        time.sleep(0.1)
        return total

    assert [strict.submit(work, data).result(60) for _ in range(3)] == [30 * MB] * 3


@pytest.mark.parametrize("ordered", [True, False])
def test_items_of_a_map(pool: mh.Pool, ordered: bool) -> None:
    """Each item by itself; what stands behind it in its block goes on."""

    def work(number: int) -> int:
        if number % 20 == 7:
            swallow()
        return number

    assert list(pool.map(abs, range(1000))) == list(range(1000))
    results = pool.map(work, range(60), ordered=ordered, task_memory="50MB", on_error="return")
    got = [-1 if isinstance(result, mh.Failure) else result for result in results]
    assert sorted(n for n in got if n >= 0) == [n for n in range(60) if n % 20 != 7]
    failures = results.failures
    assert sorted(failure.index for failure in failures) == [7, 27, 47]
    assert {failure.cause for failure in failures} == {"memory"}
    assert all(failure.pid > 0 and failure.attempts == 1 for failure in failures)
    assert {type(failure.exception) for failure in failures} == {mh.TaskMemoryExceeded}


def test_a_map_raises_it(pool: mh.Pool) -> None:
    def work(number: int) -> int:
        if number == 3:
            swallow()
        return number

    with pytest.raises(mh.TaskMemoryExceeded, match=r"task 3 \(.*work\) took"):
        pool.map(work, range(9), task_memory="50MB").list()
    with pytest.raises(MemoryError, match=r"task_memory of 50,000,000"):
        mh.map(work, range(9), task_memory="50MB").list()


def test_limits_that_equal_what_is_taken(pool: mh.Pool) -> None:
    """Each ends once, with its value or for its limit; nobody else is hit."""

    def work(number: int) -> int:
        taken = [bytearray(b"x") * MB for _ in range(number % 30)]
        return number + len(taken[:0])

    strict = pool.options(task_memory=15 * MB)
    for _ in range(3):
        futures = [strict.submit(work, number) for number in range(300)]
        others = [pool.submit(abs, -number) for number in range(300)]
        ends = [future.exception(60) for future in futures]
        assert {type(error) for error in ends} <= {type(None), mh.TaskMemoryExceeded}
        values = [future.result() for future in futures if future.exception() is None]
        assert values == [number for number, error in enumerate(ends) if error is None]
        assert [future.result(60) for future in others] == list(range(300))
    assert (pool.stats().deaths, pool.stats().pending) == (0, 0)


def test_its_processes_die_with_it(pool: mh.Pool, tmp_path: Any) -> None:
    def work() -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(child.pid))
        swallow()

    with pytest.raises(mh.TaskMemoryExceeded):
        pool.options(task_memory="50MB").submit(work).result(60)
    pid = int((tmp_path / "pid").read_text())
    while procfs.is_alive(pid):
        time.sleep(0.001)


def test_the_smaller_of_two_limits_ends_it(pool: mh.Pool) -> None:
    both = pool.options(task_memory="50MB", task_timeout=60)
    assert isinstance(both.submit(swallow).exception(60), mh.TaskMemoryExceeded)
    both = pool.options(task_memory="500GB", task_timeout=0.1, grace=0.1)
    assert isinstance(both.submit(swallow).exception(60), mh.TaskTimeout)


# ------------------------------------------------------------------------------------------ retries


def test_it_runs_again_as_retry_says(pool: mh.Pool, tmp_path: Any) -> None:
    def work(name: str, most: int) -> int:
        with (tmp_path / name).open("a") as file:
            file.write("x")
        runs = (tmp_path / name).stat().st_size
        if runs <= most:
            swallow()
        return runs

    strict = pool.options(task_memory="50MB", retry=2)
    assert strict.submit(work, "a", 1).result(60) == 2
    assert strict.submit(work, "b", 2).result(60) == 3
    error = strict.submit(work, "c", 9).exception(60)
    assert isinstance(error, mh.TaskMemoryExceeded)
    assert ", attempt 3; other tasks go on" in str(error)
    assert list(pool.map(work, ["d", "e"], [1, 0], task_memory="50MB", retry=1)) == [2, 1]
    only = mh.Retry(3, on=OSError)
    never = pool.options(task_memory="50MB", retry=only)
    assert isinstance(never.submit(work, "f", 1).exception(60), mh.TaskMemoryExceeded)
    assert (tmp_path / "f").read_text() == "x"
    some = mh.Retry(3, on=(OSError, MemoryError))
    assert pool.options(task_memory="50MB", retry=some).submit(work, "g", 1).result(60) == 2


def test_events_tell_of_it() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append, task_memory="50MB", retry=1) as pool:
        assert isinstance(pool.submit(swallow).exception(60), mh.TaskMemoryExceeded)
    told = [(event.kind, event.outcome) for event in seen if event.outcome is not None]
    assert told == [("retried", "memory"), ("ended", "memory")]
    assert [event.kind for event in seen].count("died") == 0


# -------------------------------------------------------------------------------- where it is given


def test_pools_views_and_maps(pool: mh.Pool) -> None:
    with mh.Pool(1, task_memory="50MB") as strict:
        assert isinstance(strict.submit(swallow).exception(60), mh.TaskMemoryExceeded)
        assert strict.options(task_memory=None).submit(take, 100, 0.2).result(60) > 0
        assert strict.map(take, [100], [0.2], task_memory="1GB").run().done == 1
        assert "task_memory=50000000" in repr(strict.options(task_timeout=60))
    with pytest.raises(mh.TaskMemoryExceeded):
        mh.options(task_memory="50 MB").submit(swallow).result(60)
    error = pool.submit(take, 1, task_memory="50MB").exception(60)  # type: ignore[call-arg]
    assert isinstance(error, TypeError)
    assert any("pool.options(task_memory='50MB')" in note for note in error.__notes__)


def test_nested_tasks(pool: mh.Pool) -> None:
    def task() -> tuple[str, int, int]:
        error = pool.options(task_memory="50MB").submit(swallow).exception(60)
        assert isinstance(error, mh.TaskMemoryExceeded)
        return type(error).__name__, error.limit, pool.submit(abs, -1).result(60)

    assert pool.submit(task).result(60) == ("TaskMemoryExceeded", 50 * MB, 1)


def test_futures_that_are_awaited(pool: mh.Pool) -> None:
    async def main() -> None:
        with pytest.raises(mh.TaskMemoryExceeded):
            await asyncio.wrap_future(pool.options(task_memory="50MB").submit(swallow))

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_other_engines_refuse_it(engine: str) -> None:
    words = "task_memory= is for worker processes alone"
    with pytest.raises(ValueError, match=words):
        mh.Pool(1, engine=engine, task_memory="1GB")
    with mh.Pool(1, engine=engine) as pool:
        with pytest.raises(ValueError, match=words):
            pool.options(task_memory="1GB").submit(abs, -1)
        with pytest.raises(ValueError, match=words):
            pool.map(abs, [-1], task_memory="1GB")
        assert pool.options(task_memory=None).submit(abs, -1).result() == 1


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("many", ValueError, "task_memory= must be a size as '8GB' or '512 MiB', not 'many'"),
        (1000, ValueError, "task_memory= must be at least 1 MB, not 1000 bytes"),
        (True, TypeError, "task_memory= must be a number of bytes or a text, not bool"),
        (1.5, TypeError, "task_memory= must be a number of bytes or a text, not float"),
    ],
)
def test_what_is_no_size_is_refused(
    pool: mh.Pool, value: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        pool.options(task_memory=value)
    with pytest.raises(kind, match=words):
        pool.map(abs, [1], task_memory=value)


def test_it_travels() -> None:
    error = mh.TaskMemoryExceeded("too much", limit=3, peak=4)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.limit, again.peak) == ("too much", 3, 4)


# ---------------------------------------------------------------------------------- what it costs


def test_nobody_looks_while_nothing_has_a_limit(gate: Gate) -> None:
    """A look is one call for one open file, which there is once somebody wanted to know."""
    with mh.Pool(1) as pool:
        pool.submit(take, 1).result(60)
        opened = open_gauges()
        pool.submit(take, 1, 0.3).result(60)
        assert open_gauges() == opened
        future = pool.options(task_memory="1GB").submit(pass_through, gate.path)
        until(lambda: open_gauges() == opened + 1)
        gate.open()
        future.result(60)
        assert open_gauges() == opened + 1, "one file for each worker that was looked at"
        for _ in range(20):
            pool.options(task_memory="1GB").submit(take, 1).result(60)
        assert open_gauges() == opened + 1
    while pool.stats().workers:
        time.sleep(0.001)
    assert open_gauges() <= opened, "and none of one that is gone"


def open_gauges() -> int:
    paths = []
    for name in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the listing's own
    return sum(path.endswith("/statm") for path in paths)


def reads() -> int:
    """How often this process has asked the kernel to read something."""
    with open("/proc/self/io") as file:
        [line] = [line for line in file if line.startswith("syscr:")]
    return int(line.split()[1])


needs_counts = pytest.mark.skipif(
    not os.access("/proc/self/io", os.R_OK), reason="this kernel does not count system calls"
)


@needs_counts
@pytest.mark.parametrize("way", ["map", "submit"])
def test_a_worker_looks_seldom(way: str) -> None:
    """Once in 200 microseconds, a look takes about one: less than a hundredth."""
    last = 3000

    def work(number: int) -> tuple[int, int] | None:
        return (time.monotonic_ns(), reads()) if number in (0, last) else None

    with mh.Pool(1, task_memory="1GB") as pool:
        pool.map(work, range(100)).run()
        if way == "map":
            found = pool.map(work, range(last + 1)).list()
        else:
            futures = [pool.submit(work, number) for number in range(last + 1)]
            found = [future.result(60) for future in futures]
    [(start, before), (end, after)] = [pair for pair in found if pair is not None]
    looks, intervals = after - before, (end - start) // 200_000
    print(f"{looks} reads, {intervals} intervals")
    assert looks < intervals + 200


@needs_counts
def test_the_supervisor_looks_seldom() -> None:
    with mh.Pool(1, task_memory="1GB") as pool:
        pool.submit(abs, -1).result(60)
        before, start = reads(), time.monotonic()
        pool.submit(time.sleep, 1).result(60)
        looks, passed = reads() - before, time.monotonic() - start
    print(f"{looks} reads in {passed:.1f} s")
    # One in 200 milliseconds far from the limit, and what it takes to wait.
    assert looks < 5 * passed + 40
