"""Pools that many threads use at once, for anything (P57), and that change meanwhile (P58)."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from observing import resizing

LIMIT = 100.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def run(folder: str, name: str) -> str:
    """Says that it ran; a second time is an error."""
    os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL))
    return name


def note(path: str, number: int) -> None:
    """Says that it runs, behind whatever ran before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)


def notes(path: str) -> list[int]:
    return [int(line) for line in Path(path).read_text().split()]


def pid_of(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_eight_threads_do_all_at_once_and_all_is_told_once(engine: str, tmp_path: Path) -> None:
    """P57 (mpire#74): "mixing (i)map calls" of several threads on one pool is refused there.

    P58 (cpython#83798): an executor's size is fixed; here it changes all the time.
    """
    told: collections.Counter[str] = collections.Counter()
    folder = str(tmp_path)
    with mh.Pool(2, engine=engine) as pool:

        def use(number: int) -> collections.Counter[str]:
            draw = random.Random(number)
            mine: collections.Counter[str] = collections.Counter()
            for round in range(12):
                name = f"{number}-{round}"
                priority = draw.randrange(-2, 3)
                view = pool.options(priority=priority, task_timeout=LIMIT)
                futures = [view.submit(run, folder, f"{name}-v{n}") for n in range(8)]
                futures += [pool.submit(run, folder, f"{name}-s{n}") for n in range(8)]
                names = [f"{name}-m{n}" for n in range(25)]
                results = pool.map(
                    run, [folder] * 25, names, ordered=bool(draw.randrange(2)), priority=-priority
                )
                pairs = [(folder, f"{name}-t{n}") for n in range(10)]
                mine.update(view.starmap(run, pairs))
                mine.update(results)
                mine.update(future.result(LIMIT) for future in futures)
            return mine

        with resizing(pool, 0.01), ThreadPoolExecutor(8) as threads:
            for mine in [threads.submit(use, number) for number in range(8)]:
                told.update(mine.result(LIMIT))
        stats = pool.stats()
        assert (stats.pending, stats.queued, stats.deaths) == (0, 0, 0)
        assert stats.done == 8 * 12 * 51
    assert set(told.values()) == {1}
    assert len(told) == 8 * 12 * 51
    assert sorted(told) == sorted(os.listdir(folder))


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_one_pool_after_another(engine: str) -> None:
    """P57 (pebble#126): the second pool of a session is stuck."""
    for _ in range(5):
        with mh.Pool(2, engine=engine) as pool:
            assert pool.submit(abs, -1).result(LIMIT) == 1
            assert pool.map(abs, range(-5, 0), timeout=LIMIT).list() == [5, 4, 3, 2, 1]
    with mh.Pool(1, engine=engine) as outer, mh.Pool(1, engine=engine) as inner:
        assert outer.map(abs, [-1]).list() == inner.map(abs, [-1]).list() == [1]


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_what_a_worker_keeps_is_there_for_each_call(engine: str) -> None:
    """P57 (mpire#15, mpire#46): what a worker keeps is lost between two maps."""
    kept = mh.per_worker(object)

    def identity(_: int) -> tuple[int, int]:
        return (threading.get_ident() if engine == "thread" else os.getpid(), id(kept.get()))

    with mh.Pool(2, engine=engine) as pool:
        seen = set(pool.map(identity, range(50))) | set(pool.map(identity, range(50)))
        seen |= {pool.submit(identity, 1).result(LIMIT) for _ in range(20)}
        assert len(seen) == len({worker for worker, _ in seen}) <= 2


def test_it_is_made_anew_by_who_comes_after_a_death() -> None:
    kept = mh.per_worker(object)

    def identity() -> int:
        kept.get()
        return os.getpid()

    with mh.Pool(1) as pool:
        first = pool.submit(identity).result(LIMIT)
        os.kill(first, signal.SIGKILL)
        again = pool.options(retry=mh.Retry(0, deaths=3))
        assert again.submit(identity).result(LIMIT) != first


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_what_came_last_can_start_first(engine: str, gate: Gate, tmp_path: Path) -> None:
    """P58 (cpython#118852, hydrus#781): what came last is to start first; priorities are wished."""
    path = str(tmp_path / "order")
    with mh.Pool(1, engine=engine) as pool:
        pool.submit(pass_through, gate.path)
        gate.wait_arrivals(1)
        for number in range(30):
            pool.options(priority=number).submit(note, path, number)
        gate.open()
    assert notes(path) == list(range(29, -1, -1))


def test_a_death_costs_what_ran_and_no_order(gate: Gate, tmp_path: Path) -> None:
    """What was given to the worker that dies returns to where its priority is."""
    path = str(tmp_path / "order")
    with mh.Pool(1) as pool:
        # Tasks are short: the worker is given many ahead.
        pid = pool.map(pid_of, range(100)).list()[0]
        held = pool.options(priority=5).submit(pass_through, gate.path)
        gate.wait_arrivals(1)
        for priority in (0, 5, -5, 2):
            for number in range(20):
                pool.options(priority=priority).submit(note, path, 100 * priority + number)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(mh.WorkerDied):
            held.result(LIMIT)
        assert pool.submit(abs, -1).result(LIMIT) == 1
        assert pool.stats().deaths == 1
    ranks = (5, 2, 0, -5)
    assert notes(path) == [100 * rank + number for rank in ranks for number in range(20)]


def test_workers_die_while_many_priorities_wait() -> None:
    draw = random.Random(4)
    again = mh.Retry(0, deaths=50)
    with mh.Pool(2) as pool:
        futures = []
        for number in range(600):
            view = pool.options(priority=draw.randrange(-3, 4), retry=again)
            futures.append(view.submit(pid_of, number))
            if number % 100 == 50:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(futures[-1].result(LIMIT), signal.SIGKILL)
        results = pool.map(abs, range(-300, 0), priority=1, retry=again)
        assert results.list() == list(range(300, 0, -1))
        assert all(future.result(LIMIT) > 0 for future in futures)
        stats = pool.stats()
        assert (stats.pending, stats.done) == (0, 900)
        assert stats.deaths >= 1
