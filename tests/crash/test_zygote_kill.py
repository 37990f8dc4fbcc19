"""The process that workers are forked from is killed: what runs goes on, and it is started anew."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

import manyhands as mh
import procfs
from programs import program_test


@program_test
def test_running_tasks_finish_without_it() -> None:
    gate = os.path.abspath("gate")
    os.mkfifo(gate)

    def hold(path):
        with open(path) as file:
            return file.read(), os.getpid()

    with mh.Pool(2) as pool:
        running = pool.submit(hold, gate)
        while not running.running():
            pass
        waiting = [pool.submit(abs, -n) for n in range(500)]
        first = mh._core.zygote_pid()
        os.kill(first, signal.SIGKILL)
        while procfs.is_alive(first):
            pass
        assert [future.result(20) for future in waiting] == list(range(500))
        with open(gate, "w") as file:
            file.write("go")
        text, pid = running.result(20)
        assert text == "go"
        assert procfs.is_alive(pid), "a worker died with the process that it was forked from"
        # A worker that dies now needs another one.
        os.kill(pid, signal.SIGKILL)
        error = pool.submit(abs, -1).exception(20)
        assert error is None or isinstance(error, mh.WorkerDied)
        assert list(pool.map(abs, range(1000))) == list(range(1000))
        while mh._core.zygote_pid() == first:  # who notices may come late
            time.sleep(0.001)


@pytest.mark.parametrize("workers", [1, 3])
@program_test
def test_again_and_again(workers: int) -> None:
    with mh.Pool(workers) as pool:
        for turn in range(8):
            zygote = 0
            while not zygote:
                pool.submit(abs, -1).result(20)
                zygote = mh._core.zygote_pid()
                if not zygote:  # asks for a worker, and so for a zygote
                    pool.submit(os._exit, 0).exception(20)
            futures = [pool.submit(abs, -n) for n in range(300)]
            os.kill(zygote, signal.SIGKILL)
            dead = pool.submit(os._exit, 3)
            futures += [pool.submit(abs, -n) for n in range(300)]
            assert isinstance(dead.exception(20), mh.WorkerDied)
            assert [future.result(20) for future in futures] == [*range(300), *range(300)], turn
        assert not procfs.zombies(os.getpid())


@program_test
def test_workers_and_zygote_at_once() -> None:
    def settled():
        """Descriptors with a zygote and three workers, all born and watched."""
        while True:
            list(pool.map(time.sleep, [0.002] * 6))
            zygote = mh._core.zygote_pid()
            pids = [worker.pid for worker in pool.stats().workers]
            if not zygote:  # asks for a worker, and so for a zygote
                pool.submit(os._exit, 0).exception(20)
            elif len(pids) == 3 and procfs.watched() == {zygote: 1, **dict.fromkeys(pids, 2)}:
                return procfs.descriptors()

    choose = random.Random(11)
    with mh.Pool(3) as pool:
        before = settled()
        for _ in range(10):
            futures = [pool.submit(time.sleep, 0.001) for _ in range(100)]
            victims = [worker.pid for worker in pool.stats().workers] + [mh._core.zygote_pid()]
            choose.shuffle(victims)
            for pid in victims:
                if pid:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            errors = [future.exception(20) for future in futures]
            lost = [error for error in errors if error is not None]
            assert all(isinstance(error, mh.WorkerDied) for error in lost), lost
            assert len(lost) <= 3, lost
        assert list(pool.map(abs, range(1000))) == list(range(1000))
        for _ in range(5):
            zygote = mh._core.zygote_pid()
            if zygote > 0:
                os.kill(zygote, signal.SIGKILL)
            for worker in pool.stats().workers:
                if worker.pid:
                    try:
                        os.kill(worker.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            done = 0
            while done < 50:
                done += pool.submit(abs, -1).exception(20) is None
            assert list(pool.map(time.sleep, [0.002] * 60)) == [None] * 60
        after = settled()
        assert len(after) == len(before), (before, after)


@program_test
def test_it_dies_while_a_pool_starts() -> None:
    for turn in range(10):
        pool = mh.Pool(2)
        future = pool.submit(abs, -turn)
        # It may be there already, just be started, or have ended.
        zygote = mh._core.zygote_pid()
        if zygote > 0:
            os.kill(zygote, signal.SIGKILL)
        assert future.result(20) == turn
        assert list(pool.map(abs, range(100))) == list(range(100))
        pool.shutdown()


@pytest.mark.parametrize("pause", [30, 0.5])
@program_test
def test_a_worker_dies_while_it_stands_still(pause: float) -> None:
    def hold(path, code):
        with open(path, "w"):
            pass
        if code is None:
            time.sleep(3600)
        os._exit(code)

    ends = [(None, ("signal", 9)), (3, ("exit", 3)), (0, ("exit", 0))]
    if pause > 1:
        ends.pop()  # what the kernel tells of it may mean that it does not tell
    for turn, (code, expected) in enumerate(ends):
        with mh.Pool(1) as pool:
            pid = pool.submit(os.getpid).result(20)
            zygote = mh._core.zygote_pid()
            os.kill(zygote, signal.SIGSTOP)
            while procfs.stat(zygote)[0] != "T":
                pass
            goes_on = threading.Timer(pause, os.kill, (zygote, signal.SIGCONT))
            goes_on.start()
            try:
                future = pool.submit(hold, f"begun {turn}", code)
                while not os.path.exists(f"begun {turn}"):
                    time.sleep(0.001)
                if code is None:
                    os.kill(pid, signal.SIGKILL)
                error = future.exception(20)
            finally:
                goes_on.cancel()
                os.kill(zygote, signal.SIGCONT)
            assert isinstance(error, mh.WorkerDied)
            assert (error.cause, error.code, error.pid) == (*expected, pid), error


@program_test
def test_the_one_that_forked_it_is_gone() -> None:
    """Another forks already, and cannot know how a worker of the first one ended."""
    with mh.Pool(2) as pool:
        for _ in range(5):
            while not (first := mh._core.zygote_pid()):
                pool.submit(os._exit, 0).exception(20)  # asks for a worker, and so for a zygote
            old = set()
            while len(old) < 2:
                old |= set(pool.map(lambda _: (time.sleep(0.01), os.getpid())[1], range(4)))
                old = {pid for pid in old if procfs.is_alive(pid)}
            os.kill(first, signal.SIGKILL)
            while mh._core.zygote_pid() == first:
                time.sleep(0.001)
            pool.submit(os._exit, 0).exception(20)
            while not mh._core.zygote_pid():
                time.sleep(0.001)
            futures = [pool.submit(time.sleep, 3600) for _ in range(2)]
            while not all(future.running() for future in futures):
                time.sleep(0.001)
            for worker in pool.stats().workers:
                os.kill(worker.pid, signal.SIGKILL)
            errors = [future.exception(20) for future in futures]
            assert all(isinstance(error, mh.WorkerDied) for error in errors)
            assert {error.cause for error in errors if error.pid in old} <= {"signal", "unknown"}
            assert [error.cause for error in errors if error.pid not in old] == ["signal"]
