"""The parent is killed: soon nothing of it is left, whatever its workers were doing (P10).

mloda#1292 and bbot#3207 tell of workers that lived on for weeks and held memory.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

import manyhands as mh
import procfs
from observing import pids_of
from programs import Running, program, seed


@program
def busy() -> None:
    def spin(n):
        while True:
            n += 1

    pool = mh.Pool(2)
    futures = [pool.submit(spin, n) for n in range(10)]
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    futures[0].result()


@program
def idle() -> None:
    pool = mh.Pool(2)
    assert list(pool.map(abs, range(100))) == list(range(100))
    print("READY", flush=True)
    time.sleep(60)


@program
def starting() -> None:
    print("READY", flush=True)
    while True:
        with mh.Pool(3) as pool:
            assert list(pool.map(abs, range(20))) == list(range(20))


@program
def transferring() -> None:
    def echo(data):
        return data

    pool = mh.Pool(2)
    data = os.urandom(3_000_000)
    assert pool.submit(echo, data).result(20) == data
    print("READY", flush=True)
    while True:
        for future in [pool.submit(echo, data) for _ in range(4)]:
            assert future.result(20) == data


@program
def stuck_in_c() -> None:
    def hold(seconds):
        # A foreign call that keeps the interpreter's lock.
        ctypes.PyDLL(None).sleep(seconds)

    pool = mh.Pool(2)
    futures = [pool.submit(hold, 60) for _ in range(2)]
    while not all(future.running() for future in futures):
        pass
    print("READY", flush=True)
    futures[0].result()


@program
def stuck_in_a_regular_expression() -> None:
    def match(text):
        return re.match(r"(a+)+$", text)

    pool = mh.Pool(2)
    futures = [pool.submit(match, "a" * 60 + "b") for _ in range(2)]
    while not all(future.running() for future in futures):
        pass
    print("READY", flush=True)
    futures[0].result()


@program
def with_a_stopped_worker() -> None:
    pool = mh.Pool(2)
    assert list(pool.map(abs, range(100))) == list(range(100))
    for pid in pids_of(pool):
        os.kill(pid, signal.SIGSTOP)
    print("READY", flush=True)
    time.sleep(60)


@program
def ignoring_signals() -> None:
    def stubborn():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        while True:
            pass

    pool = mh.Pool(2)
    futures = [pool.submit(stubborn) for _ in range(2)]
    while not all(future.running() for future in futures):
        pass
    print("READY", flush=True)
    futures[0].result()


@program
def in_a_map_of_short_items() -> None:
    with mh.Pool(2) as pool:
        list(pool.map(abs, range(10_000)))
        print("READY", flush=True)
        for _ in pool.map(abs, itertools.count(), ordered=False):
            pass


@program
def in_a_map_whose_items_yield() -> None:
    def parts(number):
        while True:
            yield number

    with mh.Pool(2) as pool:
        results = pool.map(parts, range(2), ordered=False)
        next(results)
        print("READY", flush=True)
        time.sleep(60)  # nobody takes: the workers wait for room


_PROGRAMS = [
    busy,
    idle,
    starting,
    transferring,
    in_a_map_of_short_items,
    in_a_map_whose_items_yield,
    stuck_in_c,
    stuck_in_a_regular_expression,
    with_a_stopped_worker,
    ignoring_signals,
]


def gone_after(running: Running, kill: Callable[[Running], None]) -> None:
    """Kills the program, and checks that all that it started goes too, and no file stays.

    joblib#198 is of 13 GB that are left in /dev/shm.
    """
    others = running.others()
    for pid in others:
        try:
            opened = procfs.descriptors(pid).values()
        except OSError:
            continue  # it has ended
        # /memfd: and pipes have no name; a file in these would stay behind.
        places = ("/dev/shm/", str(running.directory / "tmp"))
        assert not [path for path in opened if path.startswith(places)]
    kill(running)
    running.process.wait()
    left, took = running.wait_until_alone()
    print(f"{len(others)} processes were gone after {took:.2f} s")
    assert not left, [procfs.describe(pid) for pid in left]
    temporary = running.directory / "tmp"
    assert not list(temporary.rglob("*")), list(temporary.rglob("*"))


@pytest.mark.parametrize("chosen", _PROGRAMS, ids=lambda chosen: chosen.name)
def test_nothing_lives_on(chosen) -> None:
    choose = random.Random(seed())
    for _ in range(3):
        with chosen.start() as running:
            running.until("READY")
            time.sleep(0.05 * choose.random())  # a random instant; this orders nothing
            gone_after(running, lambda running: running.process.kill())


def test_instants_of_the_start() -> None:
    """From the first line of the program on, before and while there are a zygote and workers."""
    choose = random.Random(seed())
    for _ in range(15):
        with idle.start() as running:
            time.sleep(0.15 * choose.random())
            gone_after(running, lambda running: running.process.kill())


@program
def with_a_forked_child() -> None:
    def spin(n):
        while True:
            n += 1

    pool = mh.Pool(2)
    before = os.fork()  # before there are workers
    if before == 0:
        time.sleep(60)
        os._exit(0)
    futures = [pool.submit(spin, n) for n in range(2)]
    while sum(future.running() for future in futures) < 2:
        pass
    after = os.fork()  # a copy of all that the parent has open
    if after == 0:
        time.sleep(60)
        os._exit(0)
    print(f"CHILDREN {before} {after} READY", flush=True)
    futures[0].result()


def test_a_forked_child_does_not_keep_workers_alive() -> None:
    for _ in range(3):
        with with_a_forked_child.start() as running:
            words = running.until("READY").split()
            running.spared = {int(words[1]), int(words[2])}
            assert len(running.others()) >= 3, "a zygote and two workers"
            gone_after(running, lambda running: running.process.kill())
            assert all(procfs.is_alive(pid) for pid in running.spared)


@program
def with_subprocesses() -> None:
    def start_another():
        child = subprocess.Popen(["sleep", "60"])
        child.wait()

    pool = mh.Pool(2)
    futures = [pool.submit(start_another) for _ in range(2)]
    while not all(future.running() for future in futures):
        pass
    while len(procfs.marked(os.environ[procfs.TOKEN])) < 6:  # a zygote, and two of each
        time.sleep(0.001)
    print("READY", flush=True)
    futures[0].result()


def test_children_of_workers_go_too() -> None:
    """Grandchildren included, as long as they stay in their worker's process group."""
    with with_subprocesses.start() as running:
        running.until("READY")
        deadline = time.monotonic() + 20
        while len(running.others()) != 5:  # one that starts a program shows no token for a moment
            assert time.monotonic() < deadline, running.others()
        gone_after(running, lambda running: running.process.kill())


@program
def ended_by_a_signal() -> None:
    pool = mh.Pool(2)
    futures = [pool.submit(time.sleep, 60) for _ in range(4)]
    while sum(future.running() for future in futures) < 2:
        pass
    print("READY", flush=True)
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGSEGV])
def test_other_ways_to_end_it(number: signal.Signals) -> None:
    with ended_by_a_signal.start() as running:
        running.until("READY")
        gone_after(running, lambda running: running.process.send_signal(number))
        assert running.process.returncode == -number


def test_the_zygote_is_killed_before_its_parent() -> None:
    with busy.start() as running:
        running.until("READY")
        zygotes = [pid for pid in running.others() if procfs.stat(pid)[1] == running.pid]
        assert zygotes
        for pid in zygotes:
            os.kill(pid, signal.SIGKILL)
        gone_after(running, lambda running: running.process.kill())


@program
def with_nested_pools() -> None:
    def outer():
        with mh.Pool(1) as inner:
            return inner.submit(time.sleep, 60).result()

    pool = mh.Pool(1)
    future = pool.submit(outer)
    while len(procfs.marked(os.environ[procfs.TOKEN])) < 5:  # two zygotes, two workers, the program
        time.sleep(0.001)
    print("READY", flush=True)
    future.result()


def test_pools_in_workers_go_too() -> None:
    with with_nested_pools.start() as running:
        running.until("READY")
        gone_after(running, lambda running: running.process.kill())
