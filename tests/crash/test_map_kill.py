"""Maps of short items, which travel in blocks, among deaths and standstills (P1, P2)."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import threading
import time

import pytest

import manyhands as mh
import procfs
from observing import pids_of, until
from programs import program, program_test, seed


@program
def kills_in_a_map_of_short_items(ordered: bool, kills: int, chosen: int) -> None:
    count = 2_000_000
    with open("ran", "wb") as file:
        file.truncate(count)
    path = os.path.abspath("ran")

    def work(n):
        # One byte for each item: how often it was started.
        memory = globals().get("memory")
        if memory is None:
            with open(path, "r+b") as file:
                memory = globals()["memory"] = mmap.mmap(file.fileno(), 0)
        memory[n] += 1
        return n * 3

    def kill():
        choose = random.Random(chosen)
        while done < kills and not over.wait(0.01 * choose.random()):
            workers = [worker.pid for worker in pool.stats().workers if worker.pid]
            if workers:
                try:
                    os.kill(choose.choice(workers), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                globals()["done"] += 1

    done, over = 0, threading.Event()
    with mh.Pool(3) as pool:
        list(pool.map(abs, range(10_000)))
        killer = threading.Thread(target=kill)
        killer.start()
        results = pool.map(work, range(count), ordered=ordered, on_error="return")
        taken = bytearray(count)
        lost = []
        last = -1
        for result in results:
            if isinstance(result, mh.Failure):
                assert isinstance(result.exception, mh.WorkerDied), result
                assert result.cause in ("signal", "unknown"), result
                assert result.input == result.index, result
                lost.append(result.index)
                index = result.index
            else:
                index = result // 3
            taken[index] += 1
            assert not ordered or index == last + 1, (index, last)
            last = index
        over.set()
        killer.join()
        assert taken == b"\1" * count, "each item ends once"
        summary = results.summary
        assert (summary.done, summary.failed) == (count, len(lost))
        with open("ran", "rb") as file:
            ran = file.read()
        gone = set(lost)
        for index, times in enumerate(ran):
            assert times == 1 or (index in gone and times == 0), (index, times)
        assert done > 0
        assert len(lost) <= done, (lost, done)
        assert list(pool.map(abs, range(1000))) == list(range(1000))
    print(f"{done} kills, {len(lost)} items lost")


@pytest.mark.parametrize("ordered", [True, False])
def test_kills_in_a_map_of_short_items(ordered: bool) -> None:
    ended = kills_in_a_map_of_short_items.run(ordered=ordered, kills=60, chosen=seed()).check()
    print(ended.out)


@pytest.mark.parametrize("ordered", [True, False])
@program_test
def test_each_block_loses_one(ordered: bool) -> None:
    """Every thousandth item ends its worker in the middle of a block."""

    def work(n):
        if n % 1000 == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        results = pool.map(work, range(30_000), ordered=ordered, on_error="return")
        taken = [r.index if isinstance(r, mh.Failure) else r for r in results]
        assert sorted(taken) == list(range(30_000))
        assert not ordered or taken == sorted(taken)
        assert sorted(f.index for f in results.failures) == list(range(500, 30_000, 1000))
        assert all((f.cause, f.attempts) == ("signal", 1) for f in results.failures)
        assert pool.stats().deaths == 30


@program_test
def test_a_worker_stands_still_in_the_middle_of_a_block() -> None:
    def work(n):
        return n, os.getpid()

    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        count = 100_000
        results = pool.map(work, range(count), ordered=False)
        first, victim = next(results)
        os.kill(victim, signal.SIGSTOP)
        # What it has not started is taken from it: at most the one that it runs waits.
        taken = [first] + [next(results)[0] for _ in range(count - 2)]
        os.kill(victim, signal.SIGCONT)
        taken += [n for n, _ in results]
        assert sorted(taken) == list(range(count))
        assert pool.stats().deaths == 0


@program_test
def test_all_workers_stand_still_in_an_ordered_map() -> None:
    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        results = pool.map(abs, range(50_000))
        assert next(results) == 0
        pids = pids_of(pool)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        def go_on():
            time.sleep(1)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        threading.Thread(target=go_on).start()
        assert list(results) == list(range(1, 50_000))
        assert pool.stats().deaths == 0


@program_test
def test_the_zygote_is_killed_and_then_the_workers() -> None:
    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        for turn in range(5):
            results = pool.map(abs, range(50_000), on_error="return", ordered=bool(turn % 2))
            taken = [next(results) for _ in range(100)]
            zygote = mh._core.zygote_pid()
            if zygote > 0:
                os.kill(zygote, signal.SIGKILL)
            pids = [worker.pid for worker in pool.stats().workers if worker.pid]
            for pid in pids[: turn % 3]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            taken += results
            lost = [r.index for r in taken if isinstance(r, mh.Failure)]
            assert len(lost) <= turn % 3, lost
            good = [r for r in taken if not isinstance(r, mh.Failure)]
            assert sorted([*good, *lost]) == list(range(50_000))
        until(lambda: not procfs.zombies(os.getpid()))


@program_test
def test_a_map_goes_on_while_the_parent_holds_its_lock() -> None:
    """What was taken from the input needs no Python code of the parent."""

    def work(n):
        time.sleep(0.002)
        return n, time.monotonic()

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))
        results = pool.map(work, iter(range(2000)))
        taken = [next(results) for _ in range(10)]
        on_its_way = results._counts()[0]
        assert on_its_way >= 20
        ctypes.PyDLL(None).usleep(4_000_000)
        freed = time.monotonic()
        taken += results
        assert [n for n, _ in taken] == list(range(2000))
        late = [n for n, ended in taken[:on_its_way] if ended > freed]
        assert not late, late


@program_test
def test_a_map_whose_workers_die_while_the_parent_holds_its_lock() -> None:
    def work(n):
        if n % 50 == 25:
            os._exit(1)
        return n

    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        results = pool.map(work, range(1000), on_error="return")
        next(results)
        ctypes.PyDLL(None).usleep(1_000_000)
        taken = [0, *(r.index if isinstance(r, mh.Failure) else r for r in results)]
        assert taken == list(range(1000))
        assert [f.index for f in results.failures] == list(range(25, 1000, 50))
