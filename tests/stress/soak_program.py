# ruff: noqa: PT017 - these programs run without pytest.
"""A program that does everything at once with pools, from many threads, for as long as it is told.

Arguments: seconds, seed, threads. Submits, maps, cancels, waits, forks, kills, stops and closes at
random; a watchdog ends it with a stack of each thread if anything takes 30 s.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import faulthandler
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time

import manyhands as mh
import procfs

LARGE = 1_500_000


class Odd(Exception):
    pass


def work(kind: str, number: int, data: bytes) -> tuple[int, bytes]:
    if kind == "sleep":
        time.sleep(0.002)
    elif kind == "fail":
        raise Odd(number)
    elif kind == "exit":
        os._exit(number % 7)
    elif kind == "large":
        return number, bytes([number % 256]) * LARGE
    elif kind == "compute":
        sum(range(20_000))
    return number, data[:8]


class User(threading.Thread):
    """Uses the pools, and checks each of its results."""

    def __init__(self, pools: list[mh.Pool], number: int, seed: int, until: float) -> None:
        super().__init__(daemon=True)
        self.pools, self.number, self.until = pools, number, until
        self.random = random.Random(seed * 1000 + number)
        self.counts: collections.Counter[str] = collections.Counter()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                action = self.random.choice(ACTIONS)
                self.counts[action.__name__] += 1
                try:
                    action(self, self.random.choice(self.pools))
                except RuntimeError as error:
                    if "shut down" not in str(error):
                        raise
                    self.counts["shut down"] += 1
        except BaseException as error:
            self.problem = error
            raise

    def check(self, kind: str, number: int, data: bytes, future: mh.Future) -> None:
        try:
            result = future.result(30)
        except (mh.WorkerDied, concurrent.futures.CancelledError) as error:
            self.counts[type(error).__name__] += 1
            return
        except Odd as error:
            assert kind == "fail"
            assert error.args == (number,)
            return
        assert kind not in ("fail", "exit"), kind
        expected = bytes([number % 256]) * LARGE if kind == "large" else data[:8]
        assert result == (number, expected), (kind, number, result[0], result[1][:8])

    def submit(self, pool: mh.Pool) -> None:
        tasks = []
        for _ in range(self.random.randint(1, 60)):
            kind = self.random.choice(KINDS)
            number = self.random.randrange(10**6)
            large = self.random.random() < 0.05
            data = bytes([number % 256]) * (LARGE if large else self.random.randrange(2000))
            tasks.append((kind, number, data, pool.submit(work, kind, number, data)))
        if self.random.random() < 0.3:
            self.random.shuffle(tasks)
        if self.random.random() < 0.3:
            for _, _, _, future in tasks[:: self.random.randint(1, 5)]:
                future.cancel()
        if self.random.random() < 0.3:
            futures = [future for _, _, _, future in tasks]
            done = list(concurrent.futures.as_completed(futures, timeout=30))
            assert len(done) == len(futures)
        if self.random.random() < 0.1:
            return  # nobody waits for these
        for kind, number, data, future in tasks:
            self.check(kind, number, data, future)

    def map(self, pool: mh.Pool) -> None:
        count = self.random.randint(0, 300)
        # Another thread may kill a worker or shut the pool down meanwhile.
        with contextlib.suppress(mh.WorkerDied, concurrent.futures.CancelledError):
            for taken, result in enumerate(pool.map(abs, itertools.count(-count))):
                assert result == abs(taken - count)
                if taken >= count or self.random.random() < 0.001:
                    break

    def wait_briefly(self, pool: mh.Pool) -> None:
        future = pool.submit(work, "sleep", 1, b"")
        with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
            future.exception(self.random.random() * 0.005)
        self.check("sleep", 1, b"", future)

    def call_back(self, pool: mh.Pool) -> None:
        told = threading.Semaphore(0)
        futures = [pool.submit(work, "compute", n, b"") for n in range(self.random.randint(1, 20))]
        for future in futures:
            future.add_done_callback(lambda future: told.release())
        for _ in futures:
            assert told.acquire(timeout=30)

    def kill(self, pool: mh.Pool) -> None:
        pids = [worker.pid for worker in pool.stats().workers if worker.pid]
        if self.random.random() < 0.05:
            pids = [mh._core.zygote_pid()]
        if pids:
            pid = self.random.choice(pids)
            if pid > 0 and pid in procfs.marked(os.environ[procfs.TOKEN]):
                number = self.random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    if number == signal.SIGSTOP:
                        time.sleep(0.02 * self.random.random())
                        os.kill(pid, signal.SIGCONT)

    def renew(self, pool: mh.Pool) -> None:
        place = self.pools.index(pool)
        self.pools[place] = mh.Pool(self.random.randint(1, 4))
        pool.shutdown(wait=self.random.random() < 0.5, cancel_futures=self.random.random() < 0.5)

    def fork(self, pool: mh.Pool) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    pool.submit(abs, -1)
                except RuntimeError:
                    with mh.Pool(1) as own:
                        code = 0 if own.submit(abs, -5).result(20) == 5 else 2
            os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


KINDS = ("plain",) * 20 + ("compute",) * 10 + ("sleep",) * 5 + ("fail",) * 5 + ("large", "exit")
ACTIONS = (
    [User.submit] * 20
    + [User.map] * 8
    + [User.wait_briefly] * 8
    + [User.call_back] * 8
    + [User.kill] * 6
    + [User.renew] * 2
    + [User.fork]
)


def facts() -> tuple[int, int]:
    gc.collect()
    return len(procfs.descriptors()), procfs.thread_count()


def main() -> None:
    seconds, seed, count = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    faulthandler.dump_traceback_later(seconds + 60, exit=True)
    marks = []
    rounds = 0
    end = time.monotonic() + seconds
    total: collections.Counter[str] = collections.Counter()
    while time.monotonic() < end:
        pools = [mh.Pool(3), mh.Pool(2)]
        until = min(end, time.monotonic() + max(3.0, seconds / 10))
        users = [User(pools, number, seed + rounds, until) for number in range(count)]
        for user in users:
            user.start()
        for user in users:
            user.join()
            assert user.problem is None, user.problem
            total += user.counts
        for pool in pools:
            pool.shutdown()
        for pool in list(mh._pool._pools):
            pool.shutdown()
        del pools, users, user, pool
        rounds += 1
        marks.append(facts())
    print(f"{rounds} rounds: {dict(total)}")
    print(f"descriptors and threads after each: {marks}")
    settled = marks[1:] or marks
    assert max(settled) <= (marks[0][0] + 4, marks[0][1] + 1), marks
    assert not procfs.zombies(os.getpid())
    print("all is well")


if __name__ == "__main__":
    main()
