"""A program that kills its own workers at random instants under a mixed load, and keeps the books.

Arguments: kills, seed, workers, signals to send, separated by commas. Prints what it did; fails
with an assertion where a promise of the pool was broken:

* every task ends;
* a kill costs at most one task, which is one that ran in the killed worker;
* every other task ran exactly once, and gave its own result;
* afterwards the pool works at full size, and holds no more descriptors, children or threads.
"""

from __future__ import annotations

import collections
import gc
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import manyhands as mh
import procfs

LARGE = 3_000_000
OUTSTANDING = 60
KINDS = ("short", "short", "short", "compute", "sleep", "receive", "publish", "both")


def note(index: int, what: str) -> None:
    """One line in the file of this worker; one write each, so that none is lost or torn."""
    file = os.open(f"log/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, f"{index} {what}\n".encode())
    finally:
        os.close(file)


def task(kind: str, index: int, argument: bytes) -> bytes | int:
    note(index, "start")
    result: bytes | int = index
    if kind == "compute":
        result = index + 0 * sum(range(20_000))
    elif kind == "sleep":
        time.sleep(0.003)
    elif kind == "receive":
        assert len(argument) == LARGE
        assert argument[0] == argument[-1] == index % 256
    elif kind == "publish" or kind == "both":
        result = bytes([index % 256]) * LARGE
    note(index, "end")
    return result


class Killer(threading.Thread):
    def __init__(self, pool: mh.Pool, kills: int, signals: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        self.pool, self.kills, self.signals = pool, kills, signals
        self.random = random.Random(seed)
        self.killed: collections.Counter[int] = collections.Counter()
        self.stopped = 0

    def victims(self) -> list[mh.WorkerStats]:
        workers = self.pool.stats().workers
        return [worker for worker in workers if worker.pid and worker.pid not in self.killed]

    def run(self) -> None:
        token = os.environ[procfs.TOKEN]
        while sum(self.killed.values()) < self.kills:
            # At random instants: this orders nothing.
            time.sleep(self.random.choice((0.0, 0.001, 0.01, 0.05, 0.1)) * self.random.random())
            victims = self.victims()
            if not victims:
                continue
            pid = self.random.choice(victims).pid
            name = self.random.choice(self.signals)
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if token.encode() not in file.read():
                        continue  # ended, or its number is another's now
                if name == "STOP":
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.05 * self.random.random())
                    os.kill(pid, signal.SIGCONT)
                    self.stopped += 1
                else:
                    os.kill(pid, signal.Signals[f"SIG{name}"])
                    self.killed[pid] += 1
            except (ProcessLookupError, FileNotFoundError, PermissionError):
                continue


def load(pool: mh.Pool, killer: Killer, seed: int) -> tuple[dict[int, BaseException], int]:
    """Submits until the killer has done; the tasks that were lost, and how many there were."""
    choose = random.Random(seed + 1)
    waiting: collections.deque[tuple[int, str, mh.Future[bytes | int]]] = collections.deque()
    lost: dict[int, BaseException] = {}
    index = 0

    def settle() -> None:
        number, kind, future = waiting.popleft()
        error = future.exception(timeout=30)
        if error is not None:
            assert isinstance(error, mh.WorkerDied), repr(error)
            lost[number] = error
            return
        result = future.result()
        if kind in ("publish", "both"):
            assert isinstance(result, bytes)
            found = (len(result), result[0], result[-1])
            assert found == (LARGE, number % 256, number % 256), (kind, number, found)
        else:
            assert result == number, (kind, number, result)

    while killer.is_alive():
        kind = choose.choice(KINDS)
        argument = bytes([index % 256]) * LARGE if kind in ("receive", "both") else b""
        waiting.append((index, kind, pool.submit(task, kind, index, argument)))
        index += 1
        if choose.random() < 0.02:  # idle workers die too
            while waiting:
                settle()
            time.sleep(0.01 * choose.random())
        while len(waiting) > OUTSTANDING:
            settle()
    while waiting:
        settle()
    return lost, index


def books(lost: dict[int, BaseException], count: int, killer: Killer) -> str:
    """Checks the logs of the workers against what came back."""
    started: dict[int, list[int]] = collections.defaultdict(list)
    ended: dict[int, list[int]] = collections.defaultdict(list)
    for path in Path("log").iterdir():
        for line in path.read_text().splitlines():
            number, what = line.split()
            (started if what == "start" else ended)[int(number)].append(int(path.name))
    for number in range(count):
        assert len(started[number]) <= 1, f"task {number} ran twice: {started[number]}"
        if number not in lost:
            assert len(started[number]) == len(ended[number]) == 1, f"task {number} did not run"
    culprits: collections.Counter[int] = collections.Counter()
    unseen = 0
    for number, error in lost.items():
        assert isinstance(error, mh.WorkerDied)
        pid = error.pid
        assert pid in killer.killed, f"task {number} died with {pid}, which nobody killed: {error}"
        culprits[pid] += 1
        if started[number]:
            assert started[number] == [pid], f"task {number} ran in {started[number]}, not {pid}"
        else:
            unseen += 1  # killed while it took its arguments
    assert all(count == 1 for count in culprits.values()), f"more than one task lost: {culprits}"
    return f"{count} tasks, {len(lost)} lost, {unseen} of them before their first line"


def facts() -> tuple[int, int]:
    """Open descriptors and threads of this process."""
    gc.collect()
    return len(procfs.descriptors()), procfs.thread_count()


def settled(pool: mh.Pool, workers: int) -> None:
    """Has all workers born and all the dead buried."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        futures = [pool.submit(time.sleep, 0.002) for _ in range(20 * workers)]
        for future in futures:
            future.result(30)
        found = [worker.pid for worker in pool.stats().workers]
        # The zygote tells of a worker late; then there are two descriptors that watch it.
        watched = dict.fromkeys(found, 2)
        if zygote := mh._core.zygote_pid():
            watched[zygote] = 1
        if len(found) == workers and procfs.watched() == watched:
            return
    raise AssertionError(f"the pool is not at full size: {pool.stats()}")


def rate(pool: mh.Pool) -> float:
    start = time.monotonic()
    futures = [pool.submit(abs, -n) for n in range(5000)]
    assert [future.result(30) for future in futures] == list(range(5000))
    return 5000 / (time.monotonic() - start)


def main() -> None:
    kills, seed, workers = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    signals = sys.argv[4].split(",")
    os.mkdir("log")
    with mh.Pool(workers) as pool:
        settled(pool, workers)
        before, rate_before = facts(), rate(pool)
        killer = Killer(pool, kills, signals, seed)
        start = time.monotonic()
        threads = procfs.thread_count()
        killer.start()
        lost, count = load(pool, killer, seed)
        killer.join()
        deadline = time.monotonic() + 10
        while procfs.thread_count() > threads and time.monotonic() < deadline:
            time.sleep(0.001)  # the kernel's part of it may go a little later
        seconds = time.monotonic() - start
        print(f"{sum(killer.killed.values())} kills, {killer.stopped} stops in {seconds:.1f} s")
        print(books(lost, count, killer))
        settled(pool, workers)
        after, rate_after = facts(), rate(pool)
        stats = pool.stats()
        print(f"{rate_before:.0f} tasks/s before, {rate_after:.0f} after")
        print(f"{stats.deaths} deaths, {stats.late_wakes} late wakes")
        # The killer's thread has ended; nothing else may have come.
        assert after == before, f"descriptors and threads: {before} before, {after} after"
        for pid in (os.getpid(), mh._core.zygote_pid()):
            deadline = time.monotonic() + 10
            while procfs.zombies(pid) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not procfs.zombies(pid), procfs.zombies(pid)
        assert stats.pending == 0
    print("all is well")


if __name__ == "__main__":
    main()
