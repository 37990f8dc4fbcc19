"""Workers that give way to fresh ones (P19): after tasks, above a size, at an age; when idle."""

from __future__ import annotations

import atexit
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from observing import until
from programs import output_of

_LEAKED: list[bytearray] = []


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def pid_of(item: int) -> tuple[int, int]:
    return os.getpid(), item


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def leak(size: int) -> int:
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    _LEAKED.append(block)
    return os.getpid()


def borrow(size: int) -> int:
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.15)  # for the supervisor to come by
    return os.getpid()


def until_recycled(pool: mh.Pool, count: int) -> None:
    for _ in range(3000):
        if pool.stats().recycled >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"not {count} workers were recycled: {pool.stats()}")


# --------------------------------------------------------------------------------- after tasks


@pytest.mark.parametrize("way", ["submit", "map", "unordered"])
@pytest.mark.parametrize("most", [1, 7])
def test_no_worker_runs_more_than_its_share(way: str, most: int) -> None:
    """P19 (loky#373): nothing is lost or repeated, and each worker keeps to its share."""
    with mh.Pool(2, recycle_after_tasks=most) as pool:
        if way == "submit":
            got = [future.result(60) for future in [pool.submit(pid_of, n) for n in range(100)]]
        else:
            got = pool.map(pid_of, range(100), ordered=way == "map", timeout=60).list()
        items = [item for _, item in got]
        assert sorted(items) == list(range(100))
        assert way == "unordered" or items == list(range(100))
        counts = Counter(pid for pid, _ in got)
        assert max(counts.values()) <= most
        assert len(counts) >= 100 / most
        until_recycled(pool, 100 // most - 2)
        assert pool.stats().deaths == 0


def test_one_worker_with_short_shares() -> None:
    """P3 (cpython#115634): one worker and `max_tasks_per_child=2`: "prints 0 and 1, then hangs"."""
    with mh.Pool(1, recycle_after_tasks=2) as pool:
        futures = [pool.submit(pid_of, number) for number in range(10)]
        got = [future.result(60) for future in futures]
        assert [item for _, item in got] == list(range(10))
        assert len({pid for pid, _ in got}) == 5


def test_a_block_is_cut_where_a_share_ends() -> None:
    with mh.Pool(1, recycle_after_tasks=100) as pool:
        got = pool.map(pid_of, range(2050), timeout=60).list()
    counts = Counter(pid for pid, _ in got)
    assert [item for _, item in got] == list(range(2050))
    assert max(counts.values()) == 100
    assert len(counts) == 21


def test_the_initializer_is_no_task(tmp_path: Path) -> None:
    def start() -> None:
        Path(tmp_path, str(os.getpid())).touch()

    with mh.Pool(2, initializer=start, recycle_after_tasks=5) as pool:
        got = pool.map(pid_of, range(60), timeout=60).list()
    counts = Counter(pid for pid, _ in got)
    assert max(counts.values()) == 5
    assert set(map(str, counts)) <= {path.name for path in tmp_path.iterdir()}


def test_what_was_registered_with_atexit_runs(tmp_path: Path) -> None:
    def task(number: int) -> int:
        import atexit

        atexit.register(Path(tmp_path, str(os.getpid())).touch)
        return os.getpid()

    with mh.Pool(2, recycle_after_tasks=3) as pool:
        pids = set(pool.map(task, range(30), timeout=60))
    assert {path.name for path in tmp_path.iterdir()} == set(map(str, pids))
    assert len(pids) >= 10


def test_tasks_that_wait_for_tasks() -> None:
    """P19 (negmas#91): recycling has to be switched off, since it deadlocks."""

    def task(number: int) -> int:
        return sum(mh.map(abs, range(-number, 0)))

    with mh.Pool(2, recycle_after_tasks=2) as pool:
        got = pool.map(task, range(12), timeout=100).list()
        assert got == [number * (number + 1) // 2 for number in range(12)]
        assert pool.stats().deaths == 0


def test_a_worker_that_dies_is_no_worker_that_was_recycled() -> None:
    def die(number: int) -> int:
        if number == 5:
            os._exit(3)
        return number

    with mh.Pool(2, recycle_after_tasks=4) as pool:
        got = pool.map(die, range(20), on_error="return", timeout=60).list()
        assert [type(item).__name__ for item in got] == ["int"] * 5 + ["Failure"] + ["int"] * 14
        assert pool.stats().deaths == 1


def test_limits_retries_and_cancelling_go_on(tmp_path: Path) -> None:
    def once(number: int) -> int:
        path = Path(tmp_path, str(number))
        if number % 3 == 0 and not path.exists():
            path.touch()
            raise OSError(number)
        if number % 10 == 9 and not path.exists():
            path.touch()
            time.sleep(600)
        return number

    with mh.Pool(2, recycle_after_tasks=3, task_timeout=0.3, retry=mh.Retry(2)) as pool:
        again = pool.map(once, range(40), on_error="return", timeout=100).list()
        values = [item for item in again if isinstance(item, int)]
        assert len(values) >= 36  # those that hang are ended, and not run again
        assert set(values) >= {n for n in range(40) if n % 10 != 9}
        waiting = [pool.submit(pid_after, 0.01) for _ in range(50)]
        cancelled = [future.cancel() for future in waiting[::2]]
        assert all(
            future.cancelled() for future, was in zip(waiting[::2], cancelled, strict=True) if was
        )
        assert all(future.result(60) for future in waiting[1::2])


@pytest.mark.parametrize(
    ("option", "value"),
    [("recycle_after_tasks", 2), ("recycle_rss", 40_000_000), ("recycle_age", 0.05)],
)
def test_listeners_hear_of_it(option: str, value: Any) -> None:
    seen: list[mh.Event] = []
    wanted: dict[str, Any] = {option: value}
    if option == "recycle_rss":
        wanted[option] = more_than_a_worker(value)
    with mh.Pool(1, on_event=seen.append, **wanted) as pool:
        for _ in range(1000):
            pool.submit(leak, 4_000_000 if option == "recycle_rss" else 10).result(60)
            if pool.stats().recycled:
                break
        until_recycled(pool, 1)
    recycled = [event for event in seen if event.kind == "recycled"]
    assert {event.cause for event in recycled} == {option}
    # How much memory it has is told as well, where a look comes in time.
    kinds = {event.kind for event in seen if event.task is None} - {"memory"}
    assert kinds <= {"born", "left", "recycled"}


# ------------------------------------------------------------------------------------ memory, age


def own_memory() -> int:
    """How many bytes this process has for itself."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        _, resident, shared, *_ = map(int, statm.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def more_than_a_worker(size: int) -> int:
    """So many bytes more than a fresh worker has: that depends on what was imported for it."""
    with mh.Pool(1) as pool:
        return pool.submit(own_memory).result(60) + size


def test_a_worker_that_keeps_memory_gives_way() -> None:
    """P19 (celery#4843, celery#2927): memory that tasks leak goes with their worker."""
    with mh.Pool(2, recycle_rss=more_than_a_worker(60_000_000)) as pool:
        pids = set(pool.map(leak, [5_000_000] * 100, timeout=100))
        until_recycled(pool, 1)
        pids |= {pool.submit(leak, 5_000_000).result(60) for _ in range(40)}
        assert len(pids) >= 3
        assert pool.stats().deaths == 0


def test_memory_that_a_task_gives_back_is_no_reason() -> None:
    with mh.Pool(1, recycle_rss=more_than_a_worker(40_000_000)) as pool:
        pids = {pool.submit(borrow, 80_000_000).result(60) for _ in range(4)}
        assert len(pids) == 1
        assert pool.stats().recycled == 0


def test_a_fresh_worker_that_is_too_large_breaks_the_pool() -> None:
    """P16 (celery#4125, celery#4809): workers start for ever, each above the limit at once."""

    def fill() -> None:
        leak(40_000_000)

    with mh.Pool(1, initializer=fill, recycle_rss="30MB") as pool:
        with pytest.raises(mh.WorkerDied, match=r"recycle_rss=30000000.*raise recycle_rss") as info:
            for _ in range(1000):
                pool.submit(time.sleep, 0.01).result(60)
        assert "bytes of memory of its own before its first task" in str(info.value)
        assert pool.stats().deaths == 0
        assert pool.stats().recycled <= 2


def test_a_worker_that_is_old_gives_way() -> None:
    with mh.Pool(2, recycle_age=0.2) as pool:
        first = set(pool.map(pid_after, [0.01] * 4, timeout=60))
        for _ in range(1000):
            got = set(pool.map(pid_after, [0.01] * 4, timeout=60))
            if not got & first:
                break
        assert not got & first
        # One of the two may have been born too late to be among the first.
        for _ in range(1000):
            if pool.stats().recycled >= 2:
                break
            pool.map(pid_after, [0.01] * 4, timeout=60).run()
        assert pool.stats().recycled >= 2
        assert pool.stats().deaths == 0


# ------------------------------------------------------------------------------------------- warm


@pytest.mark.parametrize("option", ["recycle_after_tasks", "recycle_rss", "recycle_age"])
def test_the_fresh_worker_is_warm_before_the_old_one_leaves(
    option: str, gate: Gate, tmp_path: Path
) -> None:
    """As long as the initializer of the fresh worker takes, the old one goes on."""
    log, path = tmp_path / "log", gate.path

    def say(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def said() -> list[str]:
        return log.read_text().splitlines()

    def start() -> None:
        is_first = not log.exists()
        say("starts")
        atexit.register(say, "leaves")
        if not is_first:
            pass_through(path)
        say("warm")

    values = {"recycle_after_tasks": 20, "recycle_rss": 0, "recycle_age": 0.1}
    if option == "recycle_rss":
        values[option] = more_than_a_worker(40_000_000)
    wanted: dict[str, Any] = {option: values[option]}
    seen: list[mh.Event] = []
    with (
        closed_gate(tmp_path, "task") as task,
        mh.Pool(1, initializer=start, on_event=seen.append, **wanted) as pool,
    ):

        def ask() -> int:
            pid: int = pool.submit(os.getpid).result(100)
            return pid

        def next_one_is_there() -> bool:
            assert ask() == old
            return len(said()) > 2

        # Half of the tasks that a worker may run, and more memory than one may have.
        futures = [pool.submit(leak, 6_000_000) for _ in range(10)]
        if option == "recycle_after_tasks":
            # What is left of the share is not used up before the next worker is there.
            held = pool.submit(pass_through, task.path)
            gate.wait_arrivals()
            task.open()
            held.result(100)
        [old] = {future.result(100) for future in futures}
        until(next_one_is_there, pool.stats)
        if option != "recycle_after_tasks":
            gate.wait_arrivals()
        assert [ask() for _ in range(5)] == [old] * 5
        assert [line.split()[0] for line in said()] == ["starts", "warm", "starts"]
        assert pool.stats().recycled == 0
        gate.open()
        until(lambda: ask() != old, pool.stats)
    lines = said()
    new = int(lines[2].split()[1])
    assert new != old
    # One that is killed because it takes too long does not say that it leaves.
    if f"leaves {old}" in lines:
        assert lines.index(f"warm {new}") < lines.index(f"leaves {old}")
    told = [(event.kind, event.pid) for event in seen if event.task is None]
    assert told[0] == ("born", old)
    [end] = [told.index((kind, old)) for kind in ("recycled", "stopped") if (kind, old) in told]
    assert 0 < told.index(("born", new)) < end


# ------------------------------------------------------------------------------------------- idle


def test_idle_workers_leave_and_come_back() -> None:
    """P19 (ray#44438): workers that have nothing to do stay for ever."""
    with mh.Pool(2, idle_timeout=0.1) as pool:
        for _ in range(2):
            assert pool.map(abs, range(-20, 0), timeout=60).list() == list(range(20, 0, -1))
            for _ in range(3000):
                if not pool.stats().workers:
                    break
                time.sleep(0.01)
            assert pool.stats().workers == ()
        assert pool.stats().deaths == 0
        assert pool.stats().recycled == 0


def test_a_long_task_is_not_idle() -> None:
    with mh.Pool(1, idle_timeout=0.05) as pool:
        assert pool.submit(pid_after, 0.5).result(60) > 0
        assert pool.stats().done == 1


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("engine", ["thread", "inline"])
@pytest.mark.parametrize("option", ["recycle_after_tasks", "recycle_rss", "recycle_age"])
def test_engines_without_processes_refuse_it_by_name(engine: str, option: str) -> None:
    wanted: dict[str, Any] = {option: "2GB" if option == "recycle_rss" else 10}
    with pytest.raises(ValueError, match=f'{option}= is for engine="process".*{engine}'):
        mh.Pool(2, engine=engine, **wanted)


def test_an_engine_without_workers_has_none_that_idle() -> None:
    with pytest.raises(ValueError, match='idle_timeout= is for workers: engine="inline" has none'):
        mh.Pool(2, engine="inline", idle_timeout=1)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"recycle_after_tasks": 0}, ValueError, "recycle_after_tasks must be at least 1"),
        ({"recycle_after_tasks": 2.5}, TypeError, "recycle_after_tasks must be a whole number"),
        ({"recycle_rss": "much"}, ValueError, "recycle_rss= must be a size as '8GB'"),
        ({"recycle_rss": 10}, ValueError, "recycle_rss= must be at least 1 MB"),
        ({"recycle_age": 0}, ValueError, "recycle_age must be above 0"),
        ({"recycle_age": "1h"}, TypeError, "recycle_age must be a number of seconds"),
        ({"idle_timeout": -1}, ValueError, "idle_timeout must be from 0"),
        ({"maxtasksperchild": 5}, TypeError, "write recycle_after_tasks=5"),
        ({"max_tasks_per_child": 5}, TypeError, "write recycle_after_tasks=5"),
        ({"worker_lifespan": 5}, TypeError, "write recycle_after_tasks=5"),
    ],
)
def test_wrong_values_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        mh.Pool(2, **options)


def test_a_program_ends_while_its_pool_recycles(tmp_path: Path) -> None:
    program = """
import manyhands as mh
pool = mh.Pool(2, recycle_after_tasks=2)
futures = [pool.submit(abs, -n) for n in range(40)]
print(sum(future.result() for future in futures), flush=True)
[pool.submit(abs, -n) for n in range(40)]
"""
    assert output_of(tmp_path, program) == "780\n"
