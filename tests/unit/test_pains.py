"""What users of other tools reported, each as a test of maps; issues are by tracker and number."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import itertools
import json
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
import procfs
from gate import Gate, closed_gate, pass_through
from manyhands import _progress
from observing import pids_of, settle, until
from programs import program_test


def square(number: int) -> int:
    return number * number


def warm(pool: mh.Pool) -> None:
    """The pool knows that items are short: they come in large blocks from now on."""
    assert sum(pool.map(square, range(20_000))) == sum(n * n for n in range(20_000))


# ------------------------------------------- P17: the whole input is consumed, memory explodes


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_endless_input_gives_its_first_result_at_once(engine: str) -> None:
    """cpython#74028, cpython#74508, cpython#101586: `map` and `imap` take the whole input first."""
    with mh.Pool(2, engine=engine) as pool:
        with pool.map(square, itertools.count()) as results:
            assert [next(results) for _ in range(3)] == [0, 1, 4]
        with pool.map(square, itertools.count(), ordered=False) as results:
            assert len(list(itertools.islice(results, 1000))) == 1000


@program_test
def test_millions_of_items_take_no_memory() -> None:
    """distributed#2181 (3,123,120 commands that never start), dask#4051, ray#4657, distributed#3691
    ("really choke when > 1,000,000 tasks")."""

    def command(number):
        return number % 1000

    def commands():
        for number in range(3_123_120):
            progress["pulled"] = number + 1
            yield number

    progress = {"pulled": 0}
    with mh.Pool(2) as pool:
        assert pool.map(command, range(200_000)).run().done == 200_000
        base = peak = procfs.resident_bytes()
        results = pool.map(command, commands())
        assert next(results) == 0
        assert progress["pulled"] <= 100_000, "the window is all that is taken before a result is"
        total = 0
        for taken, result in enumerate(results, 2):
            total += result
            if taken % 100_000 == 0:
                assert progress["pulled"] <= taken + 100_000
                peak = max(peak, procfs.resident_bytes())
        assert progress["pulled"] == taken == results.summary.done == 3_123_120
        assert total == sum(range(1000)) * 3123 + sum(range(120))
        pids = pids_of(pool)
        print(f"{(peak - base) / 1e6:.0f} MB, {results.summary.wall:.1f} s")
        assert peak - base < 50e6
        assert all(procfs.resident_bytes(pid) < 100e6 for pid in pids)


@pytest.mark.parametrize("engine", ["process", "thread"])
@pytest.mark.parametrize("large", ["items", "results"])
def test_bytes_in_flight_are_bounded(engine: str, large: str) -> None:
    """cpython#73781, pythonfutures#39: the queue has a limit, and it is not of items alone."""
    megabyte = 1 << 20
    pulled = 0

    def items() -> Iterator[Any]:
        nonlocal pulled
        for pulled in itertools.count(1):  # noqa: B007 - `pulled` is what is looked at
            yield bytes(megabyte) if large == "items" else megabyte

    function: Any = len if large == "items" else bytes
    with mh.Pool(2, engine=engine) as pool, pool.map(function, items()) as results:
        for taken in range(1, 300):
            next(results)
            # 64 MB, the few that are sent before the size of a result is known, and what is
            # being taken.
            assert pulled <= taken + 64 + 64 + 8, taken


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_bytes_in_flight_are_bounded_behind_an_item_that_takes_long(
    tmp_path: Path, engine: str
) -> None:
    """The same: before anything was handed over, too."""
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for pulled in itertools.count(1):  # noqa: UP028 - `pulled` is what is looked at
            yield pulled

    with closed_gate(tmp_path) as gate:

        def megabyte(number: int) -> bytes:
            if number == 1:
                pass_through(gate.path)
            return bytes(1 << 20)

        with mh.Pool(2, engine=engine) as pool, pool.map(megabyte, items()) as results:
            first = threading.Thread(target=next, args=(results,))
            first.start()
            gate.wait_arrivals()
            seen = -1
            while seen != pulled < 1000:  # until it takes no more
                seen = pulled
                time.sleep(0.5)
            seen = pulled
            gate.open()
            first.join()
    assert seen <= 64 + 64 + 8


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_a_consumer_that_stays_away_holds_the_input_up(engine: str) -> None:
    """cpython#136871, pythonfutures#57: back-pressure instead of a list."""
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for pulled in itertools.count(1):  # noqa: UP028 - `pulled` is what is looked at
            yield pulled

    with mh.Pool(2, engine=engine) as pool:
        for buffersize in (1, 10, 500):
            with pool.map(square, items(), buffersize=buffersize) as results:
                for taken in range(1, 1000):
                    next(results)
                    assert pulled <= taken + buffersize


# ------------------------------------------------------- P18: results are kept by the library


class Big:
    """Can be looked for when it should be gone."""

    def __init__(self, number: int) -> None:
        self.number = number


def many(numbers: list[int]) -> list[Big]:
    return [Big(number) for number in numbers]


def stream(number: int) -> Iterator[Big]:
    yield Big(number)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["plain", "batch", "yield", "with_input", "run"])
@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_nothing_keeps_a_result_that_was_handed_over(engine: str, ordered: bool, way: str) -> None:
    """cpython#78349, joblib#1577, ipyparallel#85."""
    with mh.Pool(2, engine=engine) as pool:
        check_that_nothing_is_kept(pool, ordered, way)


def check_that_nothing_is_kept(pool: mh.Pool, ordered: bool, way: str) -> None:
    function: Any = {"batch": many, "yield": stream}.get(way, Big)
    batch = 7 if way == "batch" else None
    results: Any = pool.map(function, range(300), batch=batch, ordered=ordered)
    if way == "run":
        results.run()
        gc.collect()
        assert not any(isinstance(thing, Big) for thing in gc.get_objects())
        return
    seen: list[weakref.ref[Big]] = []
    for result in results.with_input() if way == "with_input" else results:
        big = result[1] if way == "with_input" else result
        assert all(ref() is None for ref in seen)
        seen.append(weakref.ref(big))
        del big, result
    assert len(seen) == 300
    # Without a collection: nothing refers to them, not even a cycle.
    assert all(ref() is None for ref in seen)


def test_futures_that_were_completed_are_not_kept() -> None:
    """pythonfutures#77: `as_completed` over 200,000 tasks keeps them all to its end."""
    with mh.Pool(2) as pool:
        warm(pool)
        futures: set[mh.Future[Big]] = {pool.submit(Big, number) for number in range(200_000)}
        seen: list[weakref.ref[Any]] = []
        for future in concurrent.futures.as_completed(futures):
            futures.remove(future)
            result = future.result()
            if result.number % 1000 == 0:
                seen += [weakref.ref(future), weakref.ref(result)]
            del future, result
            if len(futures) % 50_000 == 0:
                # The iterator may hold those that it has found done, and the last.
                gone = sum(ref() is None for ref in seen)
                assert len(seen) - gone <= 2, (len(seen), gone)
        assert len(seen) == 400


@program_test
def test_large_results_stream_in_constant_memory() -> None:
    """joblib#167, joblib#223, joblib#682, joblib#781: 2 GB by results of 1 MB."""
    with mh.Pool(2) as pool:
        assert sum(map(len, pool.map(bytes, [1_000_000] * 100))) == 100_000_000
        base = peak = procfs.resident_bytes()
        count = 0
        for result in pool.map(bytes, itertools.repeat(1_000_000, 2000)):
            count += len(result)
            if count % 100_000_000 == 0:
                peak = max(peak, procfs.resident_bytes())
        assert count == 2_000_000_000
        print(f"{(peak - base) / 1e6:.0f} MB over {base / 1e6:.0f} MB")
        assert peak - base < 100e6
        pids = pids_of(pool)
        assert all(procfs.resident_bytes(pid) < 100e6 for pid in pids)


# ------------------------------------------- P21: what is captured is pickled again for each task


class Mesh:
    """Knows how often it was pickled here."""

    pickled = 0

    def __init__(self) -> None:
        self.data = bytes(3_000_000)

    def __getstate__(self) -> Any:
        type(self).pickled += 1
        return {"data": self.data}

    def size(self, number: int) -> int:
        return len(self.data) + number


@pytest.mark.parametrize("way", ["closure", "partial", "method", "default", "nested"])
def test_what_a_function_captures_is_sent_once(way: str) -> None:
    """joblib#1733, dask#11562: 33 items a second instead of 33,239."""
    mesh = Mesh()

    def with_default(number: int, mesh: Mesh = mesh) -> int:
        return mesh.size(number)

    def closure(number: int) -> int:
        return mesh.size(number)

    function: Any = {
        "closure": closure,
        "partial": functools.partial(Mesh.size, mesh),
        "method": mesh.size,
        "default": with_default,
        "nested": functools.partial(lambda f, number: f(number), mesh.size),
    }[way]
    Mesh.pickled = 0
    with mh.Pool(2) as pool:
        results = pool.map(function, range(10_000))
        assert sum(results) == sum(3_000_000 + n for n in range(10_000))
        assert Mesh.pickled == 1
        assert results.summary.sent < 1_000_000, "items alone"


@pytest.mark.parametrize("way", ["map", "submit"])
@program_test
def test_a_global_of_a_script_is_sent_once_per_worker(way: str) -> None:
    """joblib#1733: the mesh is a global of the script; lkpy#150 leaves joblib for initializers."""

    class Mesh:
        pickled = unpickled = 0

        def __init__(self):
            self.data = bytes(3_000_000)

        def __getstate__(self):
            Mesh.pickled += 1
            return {"data": self.data}

        def __setstate__(self, state):
            Mesh.unpickled += 1
            self.__dict__ |= state

    def work(n):
        return len(mesh.data) + n, Mesh.unpickled, os.getpid()

    mesh = Mesh()
    with mh.Pool(2) as pool:
        for _ in range(2):
            if way == "map":
                found = pool.map(work, range(5000)).list()
            else:
                found = [future.result() for future in [pool.submit(work, n) for n in range(5000)]]
            assert [n for n, _, _ in found] == [3_000_000 + n for n in range(5000)]
            assert {unpickled for _, unpickled, _ in found} == {1}
            assert len({pid for _, _, pid in found}) <= 2
        # A map takes what it captures anew, at most; nobody pickles it for each task.
        assert Mesh.pickled <= 2, Mesh.pickled


def test_what_is_captured_goes_to_a_replacement_too() -> None:
    """plantcv#1773, PrefectHQ#12967: nobody has to scatter anything, whatever dies."""
    mesh = Mesh()

    def work(number: int) -> int:
        if number % 1000 == 999:
            os._exit(1)
        return mesh.size(number)

    Mesh.pickled = 0
    with mh.Pool(2) as pool:
        results = pool.map(work, range(5000), on_error="skip")
        assert list(results) == [3_000_000 + n for n in range(5000) if n % 1000 != 999]
        assert len(results.failures) == 5
        assert Mesh.pickled == 1


# -------------------------------------------------- P28: parallel is slower than serial


def switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_short_items_share_their_overhead() -> None:
    """joblib#1830, distributed#3139. Times depend on the machine, waits of workers less."""
    count = 200_000
    with mh.Pool(2) as pool:
        warm(pool)
        pids = pids_of(pool)
        before = sum(map(switches, pids))
        start = time.perf_counter()
        assert pool.map(square, range(count)).run().done == count
        each = (time.perf_counter() - start) / count
        slept = sum(map(switches, pids)) - before
        print(f"{each * 1e6:.2f} µs an item, workers slept {slept} times")
        assert slept < count / 20


def own_switches() -> dict[str, int]:
    """By the threads of this process."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[thread] = switches(int(thread))
    return found


def own_switches_since(before: dict[str, int]) -> int:
    return sum(count - before.get(thread, 0) for thread, count in own_switches().items())


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_short_items_share_their_overhead_without_processes(engine: str) -> None:
    """joblib#1830 (282 µs a call on threads), joblib#317, joblib#374, joblib#1400."""
    count = 200_000
    with mh.Pool(2, engine=engine) as pool:
        warm(pool)
        before = own_switches()
        start = time.perf_counter()
        assert pool.map(square, range(count)).run().done == count
        each = (time.perf_counter() - start) / count
        slept = own_switches_since(before)
        print(f"{each * 1e6:.2f} µs an item, threads slept {slept} times")
        assert slept < count / 20


def test_one_worker_costs_no_more() -> None:
    """joblib#1400: `n_jobs=1` is ten times as slow as a loop. Here no item is waited for alone."""
    with mh.Pool(1) as pool:
        warm(pool)
        [worker] = pids_of(pool)
        before, own = switches(worker), own_switches()
        assert list(pool.map(square, range(50_000))) == [n * n for n in range(50_000)]
        slept = switches(worker) - before + own_switches_since(own)
        print(f"{slept} waits for 50,000 items")
        assert slept < 50_000 / 20


def test_blocks_delay_no_result(pool: mh.Pool, gate: Gate) -> None:
    """A result is there when its item has ended, not when its block has."""
    warm(pool)

    def work(number: int) -> int:
        if number == 1000:
            pass_through(gate.path)
        return number

    results = pool.map(work, range(3000))
    assert [next(results) for _ in range(1000)] == list(range(1000))
    gate.wait_arrivals()
    gate.open()
    assert list(results) == list(range(1000, 3000))


def test_slow_input_delays_no_result(tmp_path: Path) -> None:
    """Nor does an item wait for others to fill its block: its result is out before they come."""
    pulled = 0
    seen = tmp_path / "seen"
    seen.touch()

    def note(number: int) -> int:
        if number > 0:
            with seen.open("ab") as file:
                file.write(b".")
        return number

    def has_noted(count: int) -> bool:
        return seen.stat().st_size == count

    def items() -> Iterator[int]:
        nonlocal pulled
        for pulled in range(1, 51):
            time.sleep(0.002)
            # The one before runs, so the result of the one before that is out.
            until(functools.partial(has_noted, pulled - 1))
            yield pulled

    behind = []
    with mh.Pool(1) as pool:
        pool.map(note, [0] * 20_000).run()  # it is known to be short
        for taken, result in enumerate(pool.map(note, items()), 1):
            assert result == taken
            behind.append(pulled - taken)
    assert len(behind) == 50
    assert max(behind) <= 2, behind


# ------------------------------------------------- P30: one long task holds others up


@pytest.mark.parametrize("long", [0, 1, 250, 498, 499])
def test_nothing_waits_behind_a_long_item(pool: mh.Pool, tmp_path: Path, long: int) -> None:
    """ray#29453, ray#29466: items dealt out in advance wait behind a long one, workers idle."""
    warm(pool)
    with closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number == long:
                pass_through(gate.path)
            return number

        results = pool.map(work, range(500), ordered=False)
        # All others end while it runs, also those that came to its worker in one block with it.
        others = [next(results) for _ in range(499)]
        assert sorted(others) == [n for n in range(500) if n != long]
        gate.open()
        assert list(results) == [long]


def test_long_items_run_at_once(pool: mh.Pool, tmp_path: Path) -> None:
    """Two long ones that stand together do not wait for each other."""
    warm(pool)
    with closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number in (100, 101):
                pass_through(gate.path)
            return number

        results = pool.map(work, range(200))
        taken = [next(results) for _ in range(100)]
        gate.wait_arrivals(2)
        gate.open()
        assert [*taken, *results] == list(range(200))


def test_what_was_handed_out_early_is_taken_back(pool: mh.Pool, tmp_path: Path) -> None:
    """celery#6500, celery#4537, celery#3434: tasks that a worker has prefetched wait behind a long
    one while others idle."""
    warm(pool)
    for turn in range(3):
        with closed_gate(tmp_path, f"gate {turn}") as gate:
            long = pool.submit(pass_through, gate.path)
            short = [pool.submit(square, number) for number in range(500)]
            assert [future.result(60) for future in short] == [n * n for n in range(500)]
            gate.wait_arrivals()
            assert not long.done()
            gate.open()
            assert long.result(60) is None


@pytest.mark.parametrize(
    ("engine", "first"), [("process", 0), ("process", 100), ("process", 392), ("thread", 0)]
)
def test_no_worker_idles_while_long_items_wait(tmp_path: Path, engine: str, first: int) -> None:
    """datacube-core#325 ("75% of workers will sit idle"), antenna#1323: eight long items that stand
    together among short ones are run by all four workers at once."""
    with mh.Pool(4, engine=engine) as pool, closed_gate(tmp_path) as gate:
        if engine == "process":
            warm(pool)

        def work(number: int) -> int:
            if first <= number < first + 8:
                pass_through(gate.path)
            return number

        results = pool.map(work, range(400))
        taken = [next(results) for _ in range(first)]
        taker = threading.Thread(target=lambda: taken.extend(results))
        taker.start()
        gate.wait_arrivals(4)
        gate.open()
        taker.join(60)
        assert taken == list(range(400))


@pytest.mark.parametrize("count", [2, 3, 8, 9, 60])
def test_few_items_do_not_wait_behind_the_first(pool: mh.Pool, tmp_path: Path, count: int) -> None:
    """All of them fit in the first block, which one worker gets while the other idles."""
    warm(pool)
    with closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number == 0:
                pass_through(gate.path)
            return number

        results = pool.map(work, range(count), ordered=False)
        assert sorted(next(results) for _ in range(count - 1)) == list(range(1, count))
        gate.open()
        assert list(results) == [0]


def test_a_worker_that_stands_still_keeps_nothing_waiting(pool: mh.Pool) -> None:
    """What it has not started goes to the other one."""
    pids = started(pool)
    stopped = pids.pop()
    os.kill(stopped, signal.SIGSTOP)
    try:
        until(lambda: procfs.stat(stopped)[0] == "T")
        for _ in range(10):
            assert pool.submit(os.getpid).result(60) in pids
            assert set(pool.map(pid_of, range(5))) == pids
    finally:
        os.kill(stopped, signal.SIGCONT)


def pid_of(_number: int) -> int:
    return os.getpid()


def started(pool: mh.Pool) -> set[int]:
    """Both workers, which are there and have nothing to do."""
    while len({*pool.map(pid_of, range(1000))}) < 2:
        pass
    settle(pool)
    return {*pids_of(pool)}


@pytest.mark.parametrize("how", ["map", "unordered", "submit"])
@pytest.mark.parametrize("before", [0, 1, 20_000])
def test_all_threads_work_after_earlier_work(tmp_path: Path, how: str, before: int) -> None:
    """Eight tasks meet at a gate, on eight threads; some idle, others are yet to come."""
    with mh.Pool(8, engine="thread") as pool, closed_gate(tmp_path) as gate:
        assert len(list(pool.map(square, range(before)))) == before

        def run() -> None:
            if how == "submit":
                futures = [pool.submit(pass_through, gate.path, n) for n in range(8)]
                concurrent.futures.wait(futures)
            else:
                pool.map(pass_through, [gate.path] * 8, range(8), ordered=how == "map").run()

        taker = threading.Thread(target=run)
        taker.start()
        gate.wait_arrivals(8)
        gate.open()
        taker.join(60)


# ------------------------------------------------------------------------ P50: progress


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a map waits for a call that is under way, for as long as that takes."""
    monkeypatch.setattr(_progress, "_LAST_CALL_SECONDS", 60.0)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["plain", "generator", "batch", "yield", "failing"])
def test_progress_is_right_at_the_end(pool: mh.Pool, ordered: bool, way: str) -> None:
    """joblib#972, NiMARE#846: a bar that stands still, or counts what was sent."""
    told: list[Any] = []

    def work(item: Any) -> Any:
        if way == "batch":
            return item
        if way == "yield":
            return (part for part in range(item % 3))
        if way == "failing" and item % 10 == 3:
            raise ValueError(item)
        return item

    items: Any = iter(range(1000)) if way == "generator" else range(1000)
    results = pool.map(
        work,
        items,
        ordered=ordered,
        batch=10 if way == "batch" else None,
        on_error="skip",
        progress=told.append,
    )
    results.run()
    last = told[-1]
    count = 100 if way == "batch" else 1000
    assert (last.done, last.total, last.ended) == (count, count, True)
    assert last.failed == (100 if way == "failing" else 0)
    done = [counts.done for counts in told]
    assert done == sorted(done)
    assert all(counts.taken <= counts.done for counts in told)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("engine", ["process", "thread"])
def test_progress_moves_while_the_first_item_runs(
    tmp_path: Path, engine: str, ordered: bool
) -> None:
    """NiMARE#846 (stuck at 0/10), sbi#421: it counts what has ended, not what was sent."""
    told: list[Any] = []
    moved = threading.Event()

    def tell(counts: Any) -> None:
        told.append(counts)
        if counts.done == 99:
            moved.set()

    with mh.Pool(2, engine=engine) as pool, closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number == 0:
                pass_through(gate.path)
            return number

        results = pool.map(work, range(100), ordered=ordered, progress=tell)
        taker = threading.Thread(target=results.run)
        taker.start()
        assert moved.wait(60), told[-1]
        gate.open()
        taker.join(60)
    done = [counts.done for counts in told]
    assert done == sorted(done)
    assert (told[-1].done, told[-1].ended) == (100, True)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("engine", ["process", "thread"])
def test_progress_moves_while_the_consumer_is_busy(engine: str, ordered: bool) -> None:
    """What was sent ends while the body of the loop runs."""
    all_done = threading.Event()

    def tell(counts: Any) -> None:
        if counts.done == 20:
            all_done.set()

    with mh.Pool(2, engine=engine) as pool:
        results = pool.map(abs, range(20), ordered=ordered, progress=tell)
        assert all_done.wait(60)
        assert sorted(results) == list(range(20))


# -------------------------------------------------------- P51: which item failed, and where


class Needy(Exception):
    """Has to be rebuilt with two arguments, which tools that send its `args` alone cannot do."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> Any:
        return functools.partial(Needy, reason=self.reason), (self.code,)


def deep(number: int, path: str) -> int:
    def deeper() -> int:
        if number == 700:
            raise Needy(number, reason=path)
        return number

    return deeper()


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_an_exception_names_its_item_and_shows_its_frames(pool: mh.Pool, on_error: str) -> None:
    """git-code-debt#75 "Multiprocessing eats tracebacks", billiard#368, pathos#83, fundus#662."""
    warm(pool)
    results = pool.map(
        deep,
        range(1000),
        itertools.repeat("x" * 500),
        on_error=on_error,  # type: ignore[call-overload]
    )
    if on_error == "raise":
        with pytest.raises(Needy) as caught:
            list(results)
        error: Any = caught.value
    else:
        [failure] = [result for result in results if isinstance(result, mh.Failure)]
        assert (failure.index, failure.input) == (700, (700, "x" * 500))
        assert failure.pid in {*pids_of(pool)}
        assert failure.attempts == 1
        error = failure.exception
    assert type(error) is Needy
    assert (error.code, error.reason) == (700, "x" * 500)
    assert isinstance(error.__cause__, mh.RemoteTraceback)
    text = str(error.__cause__)
    assert "in deep" in text
    assert "in deeper" in text
    assert __file__ in text
    assert "manyhands" not in text.replace(__file__, ""), "the user's frames alone"
    [note] = error.__notes__
    assert " 700: deep(700, 'xxx" in note
    assert len(note) < 400, "shortened"
    assert "worker " in note
    assert "attempt 1" in note
    assert on_error == "return" or "700 of 1,000 items were done" in note


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_an_exception_names_its_item_on_other_engines(engine: str) -> None:
    """pathos#238: the same note, and the very frames."""
    with mh.Pool(2, engine=engine) as pool:
        with pytest.raises(Needy) as caught:
            list(pool.map(deep, range(1000), itertools.repeat("x")))
        assert (caught.value.code, caught.value.reason) == (700, "x")
        text = "".join(traceback.format_exception(caught.value))
        assert "in deeper" in text
        [note] = caught.value.__notes__
        assert " 700: deep(700, 'x')" in note


# ------------------------------------------------ P60: order, partial results, streaming


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", ["return", "skip"])
@pytest.mark.parametrize("engine", ["process", "thread"])
def test_results_stream_with_failures_in_their_places(
    tmp_path: Path, engine: str, ordered: bool, on_error: str
) -> None:
    """joblib gives lists alone; ray#29466. Results come while others run, by either order."""
    with mh.Pool(2, engine=engine) as pool, closed_gate(tmp_path) as gate:

        def work(number: int) -> int:
            if number == 300:
                pass_through(gate.path)
            if number % 50 == 49:
                raise ValueError(number)
            return number

        results = pool.map(work, range(600), ordered=ordered, on_error=on_error)
        before = list(itertools.islice(results, 250))  # while item 300 runs
        gate.open()
        taken = before + list(results)
    values = [result for result in taken if isinstance(result, int)]
    assert sorted(values) == [n for n in range(600) if n % 50 != 49]
    assert sorted(failure.index for failure in results.failures) == list(range(49, 600, 50))
    assert sum(isinstance(result, mh.Failure) for result in taken) == (
        12 if on_error == "return" else 0
    )
    if ordered:
        places = [result.index if isinstance(result, mh.Failure) else result for result in taken]
        assert places == sorted(places)
    for failure in results.failures:
        json.dumps(failure.to_dict())
