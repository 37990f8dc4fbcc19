"""What long programs must not gather: processes, descriptors, threads, memory (P10, P18)."""

from __future__ import annotations

import gc
import io
import itertools
import os
import sys
import threading
import time
import weakref

import pytest

import manyhands as mh
import procfs
from observing import pids_of, until
from programs import Program, program, program_test


@program
def pools_in_a_row(count: int) -> None:
    def facts():
        gc.collect()
        until(procfs.is_quiet)  # what a pool had goes when the supervisor comes to that
        return len(procfs.descriptors()), procfs.thread_count()

    def speak(n):
        print(f"task {n}")
        return n

    out = sys.stdout
    marks = []
    start = time.monotonic()
    for turn in range(count):
        # Standard output is another file each time, as in notebooks and under test runners.
        with open("redirected", "w") as file:
            sys.stdout = file if turn % 2 else io.StringIO()
            with mh.Pool(2) as pool:
                assert pool.submit(speak, turn).result(20) == turn
                if turn % 10 == 0:
                    assert list(pool.map(speak, range(20))) == list(range(20))
            sys.stdout = out
        if turn in (5, count - 1):
            marks.append(facts())
    print(f"{count} pools in {time.monotonic() - start:.1f} s")
    assert marks[0] == marks[1], f"descriptors and threads: {marks}"
    assert set(procfs.children(os.getpid())) == {mh._core.zygote_pid()}
    until(lambda: not procfs.children(mh._core.zygote_pid()))


def run_pools_in_a_row(chosen: Program, count: int, seconds: float) -> None:
    print(chosen.run(count=count, seconds=seconds).check().out.splitlines()[-1])


def test_pools_in_a_row() -> None:
    run_pools_in_a_row(pools_in_a_row, 500, 90)


@program_test
def test_descriptor_1_is_redirected_for_each_pool() -> None:
    for turn in range(20):
        file = os.open(f"out{turn}", os.O_WRONLY | os.O_CREAT)
        saved = os.dup(1)
        os.dup2(file, 1)
        os.close(file)
        with mh.Pool(1) as pool:
            pool.submit(print, "turn", turn, flush=True).result(20)
        os.dup2(saved, 1)
        os.close(saved)
        with open(f"out{turn}") as text:
            assert text.read() == f"turn {turn}\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@program_test
def test_standard_descriptors_that_are_closed(closed: tuple[int, ...]) -> None:
    for descriptor in closed:
        os.close(descriptor)
    try:
        with mh.Pool(2) as pool:
            assert list(pool.map(abs, range(100))) == list(range(100))
            assert pool.submit(os.getpid).result(20) != os.getpid()
    except BaseException as error:
        with open("failure", "w") as file:
            file.write(repr(error))
        os._exit(1)
    os._exit(0)


@program_test
def test_pools_that_nobody_shuts_down() -> None:
    def use(pool):
        return pool.submit(abs, -1).result(20)

    marks = []
    for turn in range(30):
        pool = mh.Pool(2)
        assert use(pool) == 1
        seen = weakref.ref(pool)
        del pool
        gc.collect()
        assert seen() is None
        if turn in (3, 29):
            deadline = time.monotonic() + 15
            while procfs.children(mh._core.zygote_pid()) and time.monotonic() < deadline:
                time.sleep(0.005)
            assert not procfs.children(mh._core.zygote_pid())
            until(procfs.is_quiet)
            marks.append((len(procfs.descriptors()), procfs.thread_count()))
    assert marks[0] == marks[1], marks


@program_test
def test_a_pool_in_a_cycle() -> None:
    class Owner:
        pass

    owner = Owner()
    owner.pool = mh.Pool(2)
    owner.self = owner
    owner.pool.owner = owner
    assert owner.pool.submit(abs, -1).result(20) == 1
    seen = weakref.ref(owner.pool)
    pids = pids_of(owner.pool)
    assert pids
    del owner
    gc.collect()
    assert seen() is None
    deadline = time.monotonic() + 15
    while any(procfs.is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not any(procfs.is_alive(pid) for pid in pids)


@program_test
def test_tasks_of_a_dropped_pool_still_run() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(abs, -n) for n in range(500)]
    del pool
    gc.collect()
    assert [future.result(20) for future in futures] == list(range(500))


@program_test
def test_a_future_that_knows_its_pool() -> None:
    """A future that is kept as an attribute of its own pool, with a callback that knows both."""
    pool = mh.Pool(1)
    pool.future = pool.submit(abs, -1)
    told = threading.Event()
    pool.future.add_done_callback(lambda future, pool=pool: told.set())
    assert told.wait(20)
    seen = weakref.ref(pool)
    # The teller lets go of a future before long, not always before the callback has returned.
    deadline = time.monotonic() + 10
    del pool
    while seen() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.005)
    assert seen() is None, gc.get_referrers(seen())


@program_test
def test_results_are_not_kept() -> None:
    class Big:
        def __init__(self, n):
            self.n = n

    with mh.Pool(2) as pool:
        for ask in ("result", "callback", "map"):
            seen = []
            if ask == "map":
                for big in pool.map(Big, range(50)):
                    assert all(ref() is None for ref in seen[:-1])
                    seen.append(weakref.ref(big))
                del big
            else:
                futures = [pool.submit(Big, n) for n in range(50)]
                if ask == "callback":
                    done = threading.Semaphore(0)
                    for future in futures:
                        future.add_done_callback(lambda future, done=done: done.release())
                    for _ in range(50):
                        assert done.acquire(timeout=20)
                for future in futures:
                    seen.append(weakref.ref(future.result(20)))
                    seen.append(weakref.ref(future))
                del futures, future
            if ask == "callback":
                # One that was told last may still be in the hands of the teller.
                deadline = time.monotonic() + 10
                while any(ref() is not None for ref in seen) and time.monotonic() < deadline:
                    time.sleep(0.001)
            # Without a collection: nothing refers to them, not even a cycle.
            assert all(ref() is None for ref in seen), ask


@program_test
def test_arguments_are_not_kept() -> None:
    class Big:
        pass

    with mh.Pool(1) as pool:
        big = Big()
        seen = weakref.ref(big)
        future = pool.submit(id, big)
        del big
        assert seen() is None, "it was encoded in submit, and nothing needs it any more"
        future.result(20)

        def items():
            for _ in range(20):
                big = Big()
                refs.append(weakref.ref(big))
                yield big
                del big

        refs: list = []
        for _ in pool.map(id, items()):
            pass
        assert len(refs) == 20
        assert all(ref() is None for ref in refs)


@program_test
def test_exceptions_are_not_kept() -> None:
    class Wrong(Exception):
        pass

    def fail():
        raise Wrong

    with mh.Pool(1) as pool:
        future = pool.submit(fail)
        seen = weakref.ref(future.exception(20))
        del future
        assert seen() is None


@program_test
def test_a_long_map_in_constant_memory() -> None:
    """10^5 results of 10 kB, 1 GB in all: cpython#78349, joblib#1577."""
    large = b"x" * 10_000

    def make(n):
        return large

    with mh.Pool(2) as pool:
        assert sum(map(len, pool.map(make, range(2000)))) == 2000 * 10_000
        base = procfs.resident_bytes()
        count = peak = 0
        for result in pool.map(make, range(100_000)):
            count += len(result)
            if count % 10_000_000 == 0:
                peak = max(peak, procfs.resident_bytes())
        assert count == 100_000 * 10_000
        print(f"{(peak - base) / 1e6:.0f} MB over the base of {base / 1e6:.0f} MB")
        assert peak - base < 200e6
        pids = pids_of(pool)
        assert all(procfs.resident_bytes(pid) < 200e6 for pid in pids)


@program_test
def test_endless_input_in_constant_memory() -> None:
    with mh.Pool(2) as pool:
        taken = 0

        def count():
            nonlocal_taken = globals()
            for n in itertools.count():
                nonlocal_taken["taken"] = n
                yield n

        results = pool.map(abs, count())
        assert [next(results) for _ in range(10_000)] == list(range(10_000))
        assert taken < 250_000, "the window of a map is bounded"
        results.close()


@program_test
def test_slow_reader_of_large_results() -> None:
    """Results that nobody takes yet wait without filling the memory of this process."""

    def make(n):
        return bytes([n % 256]) * 3_000_000

    with mh.Pool(2) as pool:
        base = procfs.resident_bytes()
        results = pool.map(make, range(150))
        for n, result in enumerate(results):
            assert result[0] == n
            if n % 20 == 0:
                time.sleep(0.02)
        print(f"{(procfs.resident_bytes() - base) / 1e6:.0f} MB more than before")


@program_test
def test_definitions_of_many_closures_are_forgotten() -> None:
    def make(n):
        payload = bytes(100_000)
        return lambda: (n, len(payload))

    with mh.Pool(1) as pool:

        def use(count):
            for n in range(count):
                assert pool.submit(make(n)).result(20) == (n, 100_000)

        use(300)
        pid = pool.submit(os.getpid).result(20)
        base, base_worker = procfs.resident_bytes(), procfs.resident_bytes(pid)
        use(2000)
        grown = procfs.resident_bytes() - base
        grown_worker = procfs.resident_bytes(pid) - base_worker
        print(f"{grown / 1e6:.1f} MB here, {grown_worker / 1e6:.1f} MB in the worker")
        # 200 MB went through.
        assert grown < 60e6
        assert grown_worker < 60e6


@program_test
def test_cancelled_tasks_leave_nothing() -> None:
    payload = bytes(500_000)
    with mh.Pool(1) as pool:
        assert pool.submit(abs, -1).result(20) == 1
        [worker] = pool.stats().workers
        # What watches the worker may come after its first result.
        while procfs.watched() != {mh._core.zygote_pid(): 1, worker.pid: 2}:
            pass
        base = procfs.resident_bytes()
        before = procfs.descriptors()
        for _ in range(30):
            hold = pool.submit(time.sleep, 0.01)
            futures = [pool.submit(len, payload) for _ in range(50)]
            for future in futures:
                future.cancel()
            assert hold.result(20) is None
            del futures, future
        assert pool.submit(abs, -1).result(20) == 1
        grown = procfs.resident_bytes() - base
        print(f"{grown / 1e6:.1f} MB after 750 MB of cancelled arguments")
        assert grown < 150e6
        deadline = time.monotonic() + 10
        while len(after := procfs.descriptors()) > len(before) and time.monotonic() < deadline:
            pool.submit(len, payload).result(20)
        assert len(after) == len(before), (before, after)


@program_test
def test_no_processor_time_when_idle() -> None:
    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(1000))) == list(range(1000))
        pids = [
            os.getpid(),
            mh._core.zygote_pid(),
            *pids_of(pool),
        ]

        def ticks():
            total = 0
            for pid in pids:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
            return total

        time.sleep(0.2)
        before = ticks()
        time.sleep(2)
        used = ticks() - before
        print(f"{used} ticks of 10 ms in 2 s")
        assert used <= 4
