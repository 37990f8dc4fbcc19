"""Daemon threads that use a pool while the program ends: it ends in time, and none crashes it.

Up to CPython 3.13 such a thread is ended by unwinding its stack: native frames do not survive it.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

import manyhands as mh
from programs import program_test, run

_KINDS = [
    "submit",
    "map",
    "threads",
    "inline",
    "inline computes",
    "inline sleeps",
    "pickle",
    "wait",
]


@pytest.mark.parametrize("kind", _KINDS)
def test_the_program_ends(kind: str) -> None:
    source = f"""
import itertools, sys, threading, time
import manyhands as mh

class Slow:
    def __reduce__(self):
        return Slow, () if sum(range(2000)) else (1,)

def use():
    while True:
        try:
            if kind == "submit":
                pool.submit(abs, -1).result()
            elif kind == "map":
                list(pool.map(abs, range(1000)))
            elif kind == "threads":
                list(threads.map(abs, range(1000)))
            elif kind == "inline":
                mh.map(abs, itertools.count(), engine="inline").run()
            elif kind == "inline computes":
                mh.map(lambda n: [n for n in range(10**9)], range(9), engine="inline").run()
            elif kind == "inline sleeps":
                mh.map(time.sleep, [600], engine="inline").run()
            elif kind == "pickle":
                pool.submit(id, [Slow() for _ in range(100)]).result()
            else:
                pool.submit(time.sleep, 600).exception(timeout=0.001)
        except Exception:
            pass

kind = {kind!r}
pool, threads = mh.Pool(2), mh.Pool(2, engine="thread")
for _ in range(3):
    threading.Thread(target=use, daemon=True).start()
time.sleep(0.3)
sys.exit("as it should")
"""
    if kind == "wait":
        source = source.replace("sys.exit(", "pool.terminate(); sys.exit(")
    for _ in range(4):
        ended = run("-c", source)
        assert ended.code == 1, ended
        assert ended.err.splitlines() == ["as it should"], ended.err
        # An inline task that computes is given a moment to hear that it is to end.
        assert ended.seconds < 20, ended.seconds


@pytest.mark.parametrize("kind", ["submit", "map", "wait"])
def test_exit_handlers_that_run_later_can_join_them(kind: str) -> None:
    source = f"""
import atexit, sys, threading, time

def join():
    for thread in threads:
        thread.join()
    print("joined", flush=True)

atexit.register(join)  # before manyhands registers its own, and so after that
import manyhands as mh

def use():
    while True:
        try:
            if {kind!r} == "submit":
                pool.submit(abs, -1).result()
            elif {kind!r} == "map":
                list(pool.map(abs, range(1000)))
            else:
                future.result()
                return
        except Exception:
            pass

pool = mh.Pool(2)
future = pool.submit(time.sleep, 1)
threads = [threading.Thread(target=use, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
time.sleep(0.1)
sys.exit(3)
"""
    ended = run("-c", source)
    assert (ended.code, ended.out, ended.err) == (3, "joined\n", ""), ended


@program_test
def test_what_was_submitted_runs_while_daemon_threads_wait_for_it() -> None:
    def wait(number):
        assert future.result() == 0.5
        seen.append(number)

    def later():
        time.sleep(0.5)
        return 0.5

    seen: list[int] = []
    future = mh.submit(later)
    for number in range(3):
        threading.Thread(target=wait, args=(number,), daemon=True).start()
    future.result()
    while len(seen) < 3:
        time.sleep(0.001)


@pytest.mark.parametrize(
    "kind",
    ["left behind", "inline", "input", "input of threads", "pickling", "unpickling", "stopped"],
)
@program_test
def test_c_code_that_ends_during_finalization(kind: str) -> None:
    """The interpreter ends such a thread at the end of its sleep, with frames of ours below."""

    class Ends:
        """Finalization comes to this, and takes as long."""

        def __del__(self, sleep=time.sleep, write=os.write) -> None:
            write(1, b"it ends\n")
            sleep(2)
            write(1, b"it has ended\n")

    class Slow:
        def __reduce__(self):
            time.sleep(1.5)
            return int, ()

    class Read:
        def __reduce__(self):
            return sleep_in, (parent,)

    def sleep_in(pid):
        if os.getpid() == pid:
            time.sleep(1.5)

    def give(made):
        return made

    parent = os.getpid()
    vars(sys)["ends"] = Ends()
    pool = mh.Pool(1, engine="process" if "pick" in kind else "thread", grace=0.1)
    pool.submit(abs, -1).result()
    uses = {
        "left behind": lambda: pool.options(task_timeout=0.1).submit(time.sleep, 1.5).result(),
        "inline": lambda: mh.map(time.sleep, [1.5], engine="inline").run(),
        "input": lambda: mh.map(abs, map(time.sleep, [1.5])).run(),
        "input of threads": lambda: pool.map(abs, map(time.sleep, [1.5])).run(),
        "pickling": lambda: pool.submit(give, Slow()),
        "unpickling": lambda: pool.submit(Read).result(),
        "stopped": lambda: pool.submit(time.sleep, 1.5).result(),
    }
    threading.excepthook = lambda told: None
    threading.Thread(target=uses[kind], daemon=True).start()
    time.sleep(0.3)
