"""What article 001, a survey of tools, says of pools. It has no snippets left: these are ports of
what its sentences describe.

Each is a program of its own. It runs the original and the port, and compares what they give.
"""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import Pool
from pathlib import Path

import pytest

import manyhands as mh
from programs import program_test


@program_test
def test_the_interface_of_threading() -> None:
    """Says "outline the interface for the Threading library": a list that two threads fill."""

    def list_append(count, number, out):
        for n in range(count):
            out.append(n * number % 7919)

    original: list = []
    threads = []
    for number in range(2):
        thread = threading.Thread(target=list_append, args=(5000, number, original))
        threads.append(thread)
        thread.start()
    for thread in threads:
        thread.join()
    # The same list is filled by both, on the engine on which objects are the same.
    port: list = []
    with mh.Pool(2, engine="thread") as pool:
        mine = [pool.submit(list_append, 5000, number, port) for number in range(2)]
        concurrent.futures.wait(mine)
    assert sorted(port) == sorted(original)
    assert len(port) == 10_000
    # Processes have copies, and give back what they made.
    with mh.Pool(2) as pool:

        def appended(count, number):
            out: list = []
            list_append(count, number, out)
            return out

        parts = pool.starmap(appended, [(5000, number) for number in range(2)])
        assert sorted(n for part in parts for n in part) == sorted(original)


@program_test
def test_map_async_does_not_block_and_map_does() -> None:
    """Says "The map_async function is non-blocking, whereas the map function is blocking"."""

    def work(n):
        while not os.path.exists(gate):
            time.sleep(0.001)
        Path(f"{folder}/{n}").touch()
        return n * n

    def check(start):
        global gate, folder
        gate, folder = os.path.abspath(f"gate {start}"), os.path.abspath(f"folder {start}")
        os.mkdir(folder)

    for start in ("original", "port"):
        check(start)
        with Pool(2) if start == "original" else mh.Pool(2) as pool:
            results = (pool.map_async if start == "original" else pool.map)(work, range(10))
            # Here while nothing can have ended.
            assert not os.listdir(folder)
            Path(gate).touch()
            taken = results.get(20) if start == "original" else results.list()
            assert taken == [n * n for n in range(10)]
            # All of it is done when `map` returns, or the list is there.
            os.rename(folder, f"{folder} before")
            os.mkdir(folder)
            again = pool.map(work, range(10))
            assert list(again) == taken
            assert len(os.listdir(folder)) == 10


@program_test
def test_the_ways_to_submit_without_waiting() -> None:
    """Says "the following non-blocking methods of the Pool class": each, and what stands for it."""

    def power(base, exponent):
        return base**exponent

    pairs = [(2, n) for n in range(20)]
    told: list = []
    ours: list = []
    with Pool(2) as pool:
        one = pool.apply_async(power, (2, 10), callback=told.append)
        many = pool.map_async(abs, range(-20, 0))
        pairwise = pool.starmap_async(power, pairs)
        original = (one.get(20), many.get(20), pairwise.get(20))
        lazily = list(pool.imap(abs, range(-5, 0), chunksize=2))
        anyhow = sorted(pool.imap_unordered(abs, range(-5, 0)))
    with mh.Pool(2) as pool:
        future = pool.submit(power, 2, 10)
        future.add_done_callback(lambda future: ours.append(future.result()))
        many = pool.map(abs, range(-20, 0))
        pairwise = pool.starmap(power, pairs)
        assert (future.result(20), many.list(), pairwise.list()) == original
        assert list(pool.map(abs, range(-5, 0), chunksize=2)) == lazily
        assert sorted(pool.map(abs, range(-5, 0), ordered=False)) == anyhow
    assert ours == told == [1024]


@program_test
def test_cpu_count() -> None:
    """Says "cpu_count() function in multiprocessing will show it"; ours knows what it may use."""
    assert 1 <= mh.cpu_count() <= multiprocessing.cpu_count()
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    assert mh.cpu_count() == 1
    with mh.Pool() as pool:
        assert pool.map(abs, [-1]).list() == [1]
        assert len(pool.stats().workers) == 1


@pytest.mark.parametrize("engine", ["process", "thread"])
@program_test
def test_a_common_object(engine: str) -> None:
    """Says "isolated Python processes, therefore they cannot mutate a common Python object"."""
    # joblib's `Parallel()(delayed(collect)(n) for n in …)`, by other names.
    common: set = set()

    def collect(n):
        common.add(n)
        return n

    kind = ProcessPoolExecutor if engine == "process" else ThreadPoolExecutor
    with kind(2) as executor:
        assert list(executor.map(collect, range(100))) == list(range(100))
    original, common = common, set()
    with mh.Pool(2, engine=engine) as pool:
        assert list(pool.map(collect, range(100))) == list(range(100))
    assert common == original
    assert len(common) == (0 if engine == "process" else 100)


@program_test
def test_exclusive_segments_of_an_array() -> None:
    """Says "each task is updating an exclusive segment of the shared result array", on threads."""

    def fill(array, start, stop):
        for n in range(start, stop):
            array[n] = n * n

    bounds = [(start, start + 250) for start in range(0, 1000, 250)]
    original = [0] * 1000
    with ThreadPoolExecutor(4) as executor:
        for future in [executor.submit(fill, original, *bound) for bound in bounds]:
            future.result()
    port = [0] * 1000
    with mh.Pool(4, engine="thread") as pool:
        for future in [pool.submit(fill, port, *bound) for bound in bounds]:
            future.result()
    assert port == original == [n * n for n in range(1000)]


@pytest.mark.parametrize("engine", ["process", "thread"])
@program_test
def test_functional_programming(engine: str) -> None:
    """Says "based on an immutable data structure that you previously transformed using the
    built-in map() function": the same in parallel."""
    Scientist = collections.namedtuple("Scientist", ["name", "field", "born", "nobel"])
    scientists = tuple(
        Scientist(f"scientist {n}", ["math", "physics"][n % 2], 1800 + n, n % 3 == 0)
        for n in range(150)
    )

    def transform(x):
        return {"name": x.name, "age": 2026 - x.born}

    original = list(map(transform, scientists))
    if engine == "process":
        with Pool(2) as pool:
            assert pool.map(transform, scientists) == original
    with mh.Pool(2, engine=engine) as pool:
        assert tuple(pool.map(transform, scientists)) == tuple(original)

        def same(x):
            return x

        back = pool.map(same, scientists).list()
        assert back == list(scientists)
        assert all(type(x) is Scientist for x in back)


@pytest.mark.parametrize("engine", ["process", "thread"])
@program_test
def test_futures_as_they_complete(engine: str) -> None:
    """Says "Something new since Python 3.2 … is the concurrent.futures package"."""

    def work(n):
        if n % 7 == 3:
            raise ValueError(n)
        return n * n

    def outcome(executor):
        found = {}
        futures = {executor.submit(work, n): n for n in range(50)}
        for future in concurrent.futures.as_completed(futures):
            error = future.exception()
            found[futures[future]] = future.result() if error is None else repr(error)
        return found

    kind = ProcessPoolExecutor if engine == "process" else ThreadPoolExecutor
    with kind(3) as executor:
        original = outcome(executor)
    with mh.Pool(3, engine=engine) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert outcome(executor) == original
    assert original[3] == "ValueError(3)"
