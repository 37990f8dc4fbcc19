# ruff: noqa: PT017 - these programs run without pytest.
"""Workers that are killed or stopped: one task lost at most, everything else done once (P1, P2)."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

import manyhands as mh
import procfs
from observing import pids_of
from programs import program_test, run_command, seed

# Workers that are ended by SIGSEGV have nothing to say of it.
_QUIET = {"PYTHONFAULTHANDLER": ""}
_CHAOS = Path(__file__).with_name("chaos_program.py")


@pytest.mark.parametrize("workers", [1, 3])
def test_kills_at_random_instants(workers: int) -> None:
    kills = 50 if workers == 1 else 150
    command = [sys.executable, str(_CHAOS), str(kills), str(seed()), str(workers), "KILL"]
    ended = run_command(command, 60, environment=_QUIET).check()
    print(ended.out)
    assert "all is well" in ended.out


def test_other_fatal_signals_and_stops() -> None:
    signals = "KILL,TERM,STOP,STOP,SEGV,ABRT,HUP"
    command = [sys.executable, str(_CHAOS), "40", str(seed()), "2", signals]
    ended = run_command(command, 60, environment=_QUIET).check()
    print(ended.out)
    assert "all is well" in ended.out


@pytest.mark.parametrize("workers", [1, 2])
@program_test
def test_the_third_item_of_a_chunk_is_killed(workers: int) -> None:
    log = os.path.abspath("log")
    gate = os.path.abspath("gate")
    os.mkfifo(gate)

    def item(n):
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{n}\n".encode())
        os.close(file)
        if n == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    def hold(path):
        with open(path) as file:  # until somebody writes
            return file.read()

    with mh.Pool(workers) as pool:
        # The pool learns that these tasks are short, so that they come in chunks.
        assert list(pool.map(abs, range(2000))) == list(range(2000))
        held = [pool.submit(hold, gate) for _ in range(workers)]
        while pool.stats().queued or not all(future.running() for future in held):
            pass
        futures = [pool.submit(item, n) for n in range(50)]
        for _ in held:
            with open(gate, "w") as file:
                file.write("go")
            if workers == 2:
                break
        errors = {n: future.exception(20) for n, future in enumerate(futures)}
        if workers == 2:
            while not all(future.done() for future in held):
                try:
                    os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
                except OSError:
                    pass
        lost = [n for n, error in errors.items() if error is not None]
        assert lost == [2], errors
        assert isinstance(errors[2], mh.WorkerDied)
        assert (errors[2].cause, errors[2].code) == ("signal", signal.SIGKILL)
        assert [future.result() for n, future in enumerate(futures) if n != 2] == [
            0,
            1,
            *range(3, 50),
        ]
        ran = sorted(map(int, Path(log).read_text().split()))
        assert ran == list(range(50)), ran
        assert pool.stats().deaths == 1


@program_test
def test_large_arguments_that_are_taken_back() -> None:
    def work(n, data, seconds):
        time.sleep(seconds)
        return n, len(data), data[0]

    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(2000))) == list(range(2000))
        for _ in range(10):
            # Tasks of uneven length, so that work moves from one worker to the other.
            futures = [
                pool.submit(work, n, bytes([n]) * 3_000_000, 0.0 if n % 7 else 0.02)
                for n in range(40)
            ]
            assert [future.result(20) for future in futures] == [
                (n, 3_000_000, n) for n in range(40)
            ]


@program_test
def test_large_arguments_that_are_cancelled() -> None:
    def work(n, data):
        return n, len(data), data[0]

    with mh.Pool(1) as pool:
        assert list(pool.map(abs, range(2000))) == list(range(2000))
        cancelled = 0
        for _ in range(30):
            hold = pool.submit(time.sleep, 0.02)
            futures = [pool.submit(work, n, bytes([n]) * 3_000_000) for n in range(10)]
            for future in futures[::2]:
                cancelled += future.cancel()
            for n, future in enumerate(futures):
                if not future.cancelled():
                    assert future.result(20) == (n, 3_000_000, n)
            hold.result(20)
        assert cancelled > 0


@program_test
def test_a_stopped_worker_goes_on_later() -> None:
    def work(n):
        time.sleep(0.002)
        return os.getpid(), n

    with mh.Pool(2) as pool:
        pids = {pool.submit(work, 0).result(20)[0] for _ in range(50)}
        pids |= {pid for pid, _ in pool.map(work, range(200))}
        victim = pids.pop()
        futures = [pool.submit(work, n) for n in range(200)]
        os.kill(victim, signal.SIGSTOP)
        # What it has not started is taken from it: only the one that it runs waits.
        while sum(future.done() for future in futures) < 199:
            time.sleep(0.001)
        time.sleep(2)
        os.kill(victim, signal.SIGCONT)
        assert [future.result(20)[1] for future in futures] == list(range(200))
        assert pool.stats().deaths == 0


@program_test
def test_all_workers_stand_still_for_a_while() -> None:
    large = os.urandom(1 << 20) * 3

    def both(data):
        return data

    with mh.Pool(2) as pool:
        assert list(pool.map(len, [b"12"] * 10)) == [2] * 10
        pids = pids_of(pool)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        futures = [pool.submit(both, large) for _ in range(20)]
        small = [pool.submit(abs, -n) for n in range(5000)]
        time.sleep(2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert all(future.result(20) == large for future in futures)
        assert [future.result(20) for future in small] == list(range(5000))
        assert pool.stats().deaths == 0


@program_test
def test_a_stopped_worker_can_be_killed() -> None:
    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result(20)
        os.kill(pid, signal.SIGSTOP)
        future = pool.submit(abs, -5)
        os.kill(pid, signal.SIGKILL)
        try:
            assert future.result(20) == 5
        except mh.WorkerDied as error:
            assert error.pid == pid
        assert pool.submit(os.getpid).result(20) != pid


@program_test
def test_the_error_says_who_died_how_and_of_what() -> None:
    def fatal(number, data):
        os.kill(os.getpid(), number)

    with mh.Pool(1) as pool:
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT):
            pid = pool.submit(os.getpid).result(20)
            error = pool.submit(fatal, int(number), "x").exception(20)
            assert isinstance(error, mh.WorkerDied)
            assert (error.pid, error.cause, error.code) == (pid, "signal", number)
            for part in (str(pid), number.name, "fatal", "other tasks go on"):
                assert part in str(error), (part, str(error))


@program_test
def test_a_crash_in_c() -> None:
    with mh.Pool(1) as pool:
        error = pool.submit(ctypes.string_at, 8).exception(20)
        assert isinstance(error, mh.WorkerDied), repr(error)
        assert error.code in (signal.SIGSEGV, signal.SIGBUS)
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_every_task_kills_its_worker() -> None:
    with mh.Pool(2) as pool:
        futures = [pool.submit(os._exit, n % 5) for n in range(60)]
        for n, future in enumerate(futures):
            error = future.exception(25)
            assert isinstance(error, mh.WorkerDied), repr(error)
            assert (error.cause, error.code) == ("exit", n % 5)
        assert list(pool.map(abs, range(100))) == list(range(100))


@program_test
def test_idle_workers_die_and_the_next_tasks_know_nothing() -> None:
    choose = random.Random(7)
    with mh.Pool(2) as pool:
        assert list(pool.map(abs, range(100))) == list(range(100))
        for _ in range(10):
            pids = [worker.pid for worker in pool.stats().workers if worker.pid]
            for pid in pids[: choose.randint(1, 2)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # killed the last time, and not buried yet
                while procfs.is_alive(pid):
                    pass
            error = pool.submit(abs, -3).exception(20)
            # It may have been given to the dying worker, but not been started there.
            assert error is None, repr(error)


@program_test
def test_a_worker_dies_while_the_pool_shuts_down() -> None:
    for _ in range(10):
        pool = mh.Pool(2)
        futures = [pool.submit(time.sleep, 0.001) for _ in range(50)]
        victim = pool.submit(os._exit, 1)
        pool.shutdown(wait=False)
        for worker in pool.stats().workers:
            if worker.pid:
                try:
                    os.kill(worker.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        lost = [future for future in [*futures, victim] if future.exception(25) is not None]
        assert 1 <= len(lost) <= 4
        pool.shutdown()
        assert pool.stats().workers == ()
