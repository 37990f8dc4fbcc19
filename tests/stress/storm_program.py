# ruff: noqa: PT017 - this program runs without pytest.
"""The storm: everything that can happen to tasks and workers, at random, from several threads.

Arguments: seconds, seed, threads. Each thread does one operation after the other. Which one, on
which pool and with which numbers is decided by the arguments, the thread and the operation's number
alone, so that a seed gives the same storm again; only how the threads meet differs. A watchdog
shows all stacks and ends the program if it hangs.

The promises, each checked by an assertion:

* every future ends, and ends once: its callback is called once, and its outcome stays;
* a value is that of its own task, and a failure is one that may happen to it;
* a map gives each of its items once;
* a task that takes more memory than it may fails so, and no other does;
* tasks wait until there is memory for them, and workers give way or leave as their pool says;
* objects of workers are closed once, but for those of workers that were killed;
* what a seeded task draws is its own, whatever happens;
* an array is the one that was meant, whoever has used its memory before and whoever writes to it;
* when the pools of a round are closed and its arrays are dropped, what they had is gone: processes,
  descriptors, threads, memory files, what is in the object store and who looks at it;
* each operation did happen, and, if there were many, each kind of ending.

The arrays that one operation leaves to others are what came of it, which the seed does not decide.
The operations with arrays are in `storm_arrays`, those with limits, workers that come and go, their
objects, and seeds in `storm_limits`, what may come of tasks in `storm_books`.
"""

from __future__ import annotations

import asyncio
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
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import storm_arrays
import storm_limits
from storm_books import LIMIT, Books, Odd, ending, name_of

import manyhands as mh
import procfs

LARGE = 300_000
ROUND_SECONDS = 5.0
# With so many operations, of all threads, everything has happened: the rarest does in 1 of 200.
ENOUGH = 3000
# For how much longer it goes on, at most, where something has not happened yet.
MORE_SECONDS = 40.0
POOLS = 3
# Of the object store, in turn: where little has room, arrays go in other ways.
BUDGETS = ("4GB", "4GB", "30MB")


class Left(Exception):
    """Leaves a block."""


# ------------------------------------------------------------------------------------------ tasks


def work(kind: str, number: int, data: bytes) -> tuple[int, bytes]:
    if kind == "compute":
        sum(range(20_000))
    elif kind == "sleep":
        time.sleep(0.001 * (number % 5))
    elif kind == "fail":
        raise Odd(number)
    elif kind == "exit":
        os._exit(number % 7)
    elif kind == "large":
        return number, bytes([number % 256]) * LARGE
    return number, data[:8]


def endless(kind: str) -> None:
    """Ends only if it is made to."""
    if kind == "spin":
        while True:
            pass
    elif kind == "sleep":
        time.sleep(600)
    elif kind == "in C":
        sum(itertools.repeat(1))
    while True:  # stubborn
        with contextlib.suppress(BaseException):
            time.sleep(600)


def flaky(number: int, fails: float, dies: float) -> int:
    """Fails or dies now and then; what comes of the next attempt is as random."""
    drawn = random.random()
    if drawn < fails:
        raise Odd(number)
    if drawn < fails + dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def nested(number: int) -> int:
    """A task that uses workers itself."""
    return sum(mh.map(abs, range(-number, 0))) + mh.submit(abs, -number).result()


def item(number: int, kind: str) -> int:
    if kind == "fail" and number % 17 == 5:
        raise Odd(number)
    if kind == "die" and number % 41 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stick" and number % 97 == 11:
        endless("sleep")
    if kind == "sleep":
        time.sleep(0.0005)
    return -number


# -------------------------------------------------------------------------------------- operations


class User(threading.Thread):
    """Does one operation after the other."""

    def __init__(
        self,
        pools: list[mh.Pool],
        books: Books,
        shelf: storm_arrays.Shelf,
        ledger: storm_limits.Ledger,
        folder: Path,
        number: int,
        threads: int,
        seed: int,
    ) -> None:
        super().__init__(daemon=True, name=f"user {number}")
        self.pools, self.books, self.seed = pools, books, seed
        self.number, self.threads = number, threads
        self.shelf, self.ledger, self.folder = shelf, ledger, folder
        self.first = self.last = 0
        self.until = 0.0
        self.problem: str | None = None

    def run(self) -> None:
        names = [*OPERATIONS]
        weights = [weight for weight, _ in OPERATIONS.values()]
        # All threads together begin with each twice, so that it happens on a slow machine, too.
        order = random.Random(str(self.seed)).sample(names * 2, len(names) * 2)
        begin = order[self.number :: self.threads]
        while time.monotonic() < self.until and self.problem is None:
            # A generator of its own for each, so that none depends on how another one went.
            choose = random.Random(f"{self.seed} {self.number} {self.last}")
            [name] = choose.choices(names, weights)
            if self.last < len(begin):
                name = begin[self.last]
            pool = self.pools[choose.randrange(len(self.pools))]
            try:
                OPERATIONS[name][1](self, choose, pool)
                self.books.count(name)
            except BaseException as error:
                if isinstance(error, RuntimeError) and name_of(error) == "shut down":
                    self.books.count(f"{name}: shut down")  # by another thread, in between
                else:
                    at = f"seed {self.seed}, {self.name}, operation {self.last}, {name}:\n"
                    self.problem = at + traceback.format_exc()
            self.last += 1

    def add(
        self, choose: random.Random, what: str, future: mh.Future[Any], expected: Any = None
    ) -> mh.Future[Any]:
        def check(value: Any) -> None:
            assert expected is None or value == expected, (what, str(value)[:100])

        return self.books.add(what, future, check, choose.random() < 0.7)

    def tasks(self, choose: random.Random, pool: Any, most: int) -> list[mh.Future[Any]]:
        futures = []
        for _ in range(choose.randint(1, most)):
            kind = choose.choice(KINDS)
            number = choose.randrange(10**6)
            large = choose.random() < 0.03
            data = bytes([number % 256]) * (LARGE if large else choose.randrange(2000))
            expected = (
                number,
                bytes([number % 256]) * LARGE if kind == "large" else data[:8],
            )
            future = pool.submit(work, kind, number, data)
            futures.append(self.add(choose, kind, future, expected))
        return futures


def submit(user: User, choose: random.Random, pool: mh.Pool) -> None:
    futures = user.tasks(choose, pool, 40)
    if choose.random() < 0.3:
        choose.shuffle(futures)
    if choose.random() < 0.7:
        for future in futures:
            ending(future, LIMIT)


def wait(user: User, choose: random.Random, pool: mh.Pool) -> None:
    futures = user.tasks(choose, pool, 20)
    if choose.random() < 0.5:
        done, waiting = concurrent.futures.wait(futures, choose.random() * 0.005)
        assert len(done) + len(waiting) == len(futures)
    found = list(concurrent.futures.as_completed(futures, timeout=LIMIT))
    assert len(found) == len(futures)
    assert set(found) == set(futures)


def await_in_a_loop(user: User, choose: random.Random, pool: mh.Pool) -> None:
    async def main() -> None:
        futures = user.tasks(choose, pool, 10)
        awaited = [asyncio.wrap_future(future) for future in futures]
        cancelled = choose.sample(awaited, choose.randrange(len(awaited)))
        await asyncio.sleep(choose.random() * 0.002)
        for future in cancelled:
            future.cancel()
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*awaited, return_exceptions=True)

    asyncio.run(main())


def cancel(user: User, choose: random.Random, pool: mh.Pool) -> None:
    futures = user.tasks(choose, pool, 40)
    picked = choose.sample(futures, choose.randint(1, len(futures)))
    if choose.random() < 0.5:
        kind = choose.choice(ENDLESS)
        future = pool.options(grace=0.05).submit(endless, kind)
        picked.append(user.add(choose, f"endless {kind}", future))
    time.sleep(choose.random() * 0.005)  # a random instant of what they do
    for future in picked:
        if future.cancel():
            assert future.cancelled()
            user.books.count("cancelled in time")


def time_out(user: User, choose: random.Random, pool: mh.Pool) -> None:
    strict = pool.options(task_timeout=choose.uniform(0.002, 0.05), grace=choose.choice((0, 0.03)))
    futures = [
        user.add(choose, f"late {kind}", strict.submit(endless, kind))
        for kind in choose.choices(ENDLESS, k=choose.randint(1, 2))
    ]
    # Some of these end just as their time is up.
    naps = [choose.uniform(0, 0.05) for _ in range(choose.randint(0, 5))]
    futures += [user.add(choose, "nap", strict.submit(time.sleep, nap)) for nap in naps]
    if choose.random() < 0.5:
        for future in futures:
            ending(future, LIMIT)


def retry(user: User, choose: random.Random, pool: mh.Pool) -> None:
    plan = mh.Retry(
        choose.randint(1, 5),
        on=(Odd, mh.TaskTimeout),
        deaths=choose.randint(0, 3),
        backoff=choose.choice((0, 0.002)),
    )
    patient = pool.options(retry=plan)
    if choose.random() < 0.3:
        patient = patient.options(task_timeout=0.05, grace=0.01)
    for _ in range(choose.randint(1, 10)):
        number = choose.randrange(1000)
        future = patient.submit(flaky, number, choose.uniform(0, 0.6), choose.uniform(0, 0.1))
        user.add(choose, "flaky", future, number)


def quarantine(user: User, choose: random.Random, pool: mh.Pool) -> None:
    """What kills worker after worker does not do so for ever."""
    future = pool.options(retry=choose.randint(1, 200)).submit(work, "exit", 3, b"")
    user.add(choose, "poison", future)
    assert ending(future, LIMIT) in ("died", "cancelled", "shut down")


def map_items(user: User, choose: random.Random, pool: mh.Pool) -> None:
    count = choose.randint(0, 400)
    kind = choose.choice(("plain", "sleep", "fail", "die", "stick"))
    ordered = choose.random() < 0.5
    on_error = choose.choice(("return", "skip"))
    options: dict[str, Any] = {"grace": 0.01, "on_error": on_error, "ordered": ordered}
    if kind == "stick" or choose.random() < 0.2:
        options["task_timeout"] = 0.1
    if choose.random() < 0.3:
        options["retry"] = choose.randint(1, 3)
    numbers: Any = range(count)
    if choose.random() < 0.5:
        numbers = (number for number in numbers)
    results = pool.map(item, numbers, itertools.repeat(kind), **options)
    values, failed = [], []
    try:
        for result in results:
            if isinstance(result, mh.Failure):
                failed.append(result.index)
            else:
                values.append(-result)
    except BaseException as error:
        # Another thread has closed the pool.
        assert name_of(error) in ("cancelled", "shut down"), repr(error)
        user.books.count("map cut short")
        return
    for failure in results.failures:
        user.books.count(f"item: {name_of(failure.exception)}")
    if on_error == "skip":
        failed = [failure.index for failure in results.failures]
    assert sorted([*values, *failed]) == list(range(count)), (kind, options)
    assert not ordered or values == sorted(values)


def map_and_raise(user: User, choose: random.Random, pool: mh.Pool) -> None:
    on_error = choose.choice(("raise", "group"))
    count = choose.randint(30, 200)
    results = pool.map(item, range(count), ["fail"] * count, on_error=on_error)
    try:
        for taken, result in enumerate(results):
            assert on_error == "group" or result == -taken
    except Odd as error:
        assert on_error == "raise"
        assert error.args == (5,)
    except ExceptionGroup as group:
        assert on_error == "group"
        for error in group.exceptions:
            name_of(error)
    except (mh.WorkerDied, concurrent.futures.CancelledError) as error:
        user.books.count(f"map: {name_of(error)}")
    else:
        raise AssertionError("nothing was raised")


def leave_a_map(user: User, choose: random.Random, pool: mh.Pool) -> None:
    """Its input is endless, and its consumer goes at some point."""
    results = pool.map(
        abs, itertools.count(), ordered=choose.random() < 0.5, on_error=choose.choice(ON_ERROR)
    )
    try:
        taken = list(itertools.islice(results, choose.randint(0, 3000)))
        assert all(isinstance(result, int | mh.Failure) for result in taken)
        if choose.random() < 0.5:
            results.close()
    except BaseException as error:
        assert name_of(error) in ("died", "cancelled", "shut down"), repr(error)


def nest(user: User, choose: random.Random, pool: mh.Pool) -> None:
    options: dict[str, Any] = {}
    if choose.random() < 0.2:
        options = {"task_timeout": choose.uniform(0.01, 0.3), "grace": 0.02}
    for _ in range(choose.randint(1, 3)):
        number = choose.randint(1, 30)
        future = pool.options(**options).submit(nested, number)
        user.add(choose, "nested", future, sum(range(number + 1)) + number)
        if choose.random() < 0.3:
            time.sleep(choose.random() * 0.05)
            future.cancel()


def kill(user: User, choose: random.Random, pool: mh.Pool) -> None:
    number = choose.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV))
    send(user, pick(choose, pool), number)


def kill_zygote(user: User, _choose: random.Random, _pool: mh.Pool) -> None:
    if send(user, mh._core.zygote_pid(), signal.SIGKILL):
        user.ledger.no_witness = True


def stop(user: User, choose: random.Random, pool: mh.Pool) -> None:
    pid = pick(choose, pool)
    if send(user, pid, signal.SIGSTOP):
        time.sleep(choose.random() * 0.2)  # for how long it stands still
        send(user, pid, signal.SIGCONT)


def pick(choose: random.Random, pool: mh.Pool) -> int:
    """A worker's pid; the place in the list is the seed's."""
    place = choose.random()
    pids = [worker.pid for worker in pool.stats().workers if worker.pid]
    return pids[int(place * len(pids))] if pids else 0


def send(user: User, pid: int, number: signal.Signals) -> bool:
    """A signal for a process of ours; its pid may be another's by now."""
    mark = f"{procfs.TOKEN}={os.environ[procfs.TOKEN]}".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if pid <= 0 or mark not in file.read().split(b"\0"):
                return False
        os.kill(pid, number)
    except OSError:
        return False  # it has ended
    user.books.count(number.name)
    return True


def renew(user: User, choose: random.Random, pool: mh.Pool) -> None:
    """Another pool in its place; what the old one has ends by one of all ways."""
    new = mh.Pool(
        choose.randint(1, 4),
        grace=choose.choice((0.02, 0.2)),
        recycle_after_tasks=choose.choice((None, 3, 50)),
        recycle_rss=choose.choice((None, user.ledger.fresh + storm_limits.LEEWAY * 1_000_000)),
        recycle_age=choose.choice((None, 0.3)),
        idle_timeout=choose.choice((None, 0.05)),
        memory_limit=choose.choice((None, None, "300MB", "50%")),
        on_event=user.ledger.tell,
    )
    place = choose.randrange(len(user.pools))
    old, user.pools[place] = user.pools[place], new
    way = choose.randrange(5)
    if way == 0:
        old.terminate()
    else:
        old.shutdown(wait=way < 3, cancel_futures=choose.random() < 0.5)


def resize(_user: User, choose: random.Random, pool: mh.Pool) -> None:
    with contextlib.suppress(RuntimeError):  # another thread has closed it
        pool.resize(choose.randint(1, 4))


def leave_a_block(user: User, choose: random.Random, _pool: mh.Pool) -> None:
    with contextlib.suppress(Left):
        with mh.Pool(choose.randint(1, 3)) as own:
            user.tasks(choose, own, 20)
            if choose.random() < 0.3:
                user.add(choose, "endless spin", own.submit(endless, "spin"))
                raise Left
            if choose.random() < 0.3:
                raise Left


def look(_user: User, _choose: random.Random, pool: mh.Pool) -> None:
    stats = pool.stats()
    assert stats.pending >= 0
    slots = [worker.slot for worker in stats.workers]
    assert len(set(slots)) == len(slots)
    repr(stats)


KINDS = ("plain",) * 20 + ("compute",) * 10 + ("sleep",) * 10 + ("fail",) * 5 + ("large", "exit")
ENDLESS = ("spin", "sleep", "in C", "stubborn")
ON_ERROR = ("raise", "return", "skip", "group")
# How often each is chosen, compared to the others.
OPERATIONS: dict[str, tuple[int, Callable[[User, random.Random, mh.Pool], None]]] = {
    "submit": (18, submit),
    "wait": (8, wait),
    "await": (5, await_in_a_loop),
    "cancel": (10, cancel),
    "time out": (10, time_out),
    "retry": (8, retry),
    "quarantine": (2, quarantine),
    "map": (10, map_items),
    "map and raise": (4, map_and_raise),
    "resize": (3, resize),
    "leave a map": (4, leave_a_map),
    "nest": (3, nest),
    "kill": (6, kill),
    "kill the zygote": (1, kill_zygote),
    "stop": (4, stop),
    "renew": (2, renew),
    "leave a block": (2, leave_a_block),
    "look": (3, look),
    **storm_arrays.OPERATIONS,
    **storm_limits.OPERATIONS,
}
MUST_HAPPEN = [
    *OPERATIONS,
    *(f"ended: {name}" for name in ("value", "failed", "timeout", "died", "cancelled")),
    *(f"late {kind}: timeout" for kind in ENDLESS),
    *(f"item: {name}" for name in ("failed", "timeout", "died")),
    *("flaky: value", "poison: died", "nested: value", "cancelled in time", "told"),
    *("SIGKILL", "SIGSTOP", "SIGCONT"),
    *storm_arrays.MUST_HAPPEN,
    *storm_limits.MUST_HAPPEN,
]
# Of these what happens in any storm; the others take luck, and so a storm of many operations.
SURE = {*OPERATIONS, "ended: value", *storm_limits.SURE}


# ------------------------------------------------------------------------------------------ rounds


def facts() -> tuple[int, int, list[str]]:
    """Descriptors, threads and memory files of this process."""
    gc.collect()
    descriptors = procfs.descriptors()
    files = sorted(name for name in descriptors.values() if name.startswith("/memfd:"))
    return len(descriptors), procfs.thread_count(), files


def until_gone(base: tuple[int, int, list[str]] | None) -> None:
    """Waits until nothing is left of the pools; the zygote stays for those to come.

    Without `base`, what there was before, only files and processes count.
    """
    deadline = time.monotonic() + LIMIT

    def left() -> Iterator[str]:
        here = facts()
        if base is None:
            yield from [name for name in here[2] if "manyhands-pool" in name]
        elif here > base or here[1:] != base[1:]:
            yield f"descriptors, threads, memory files: {base} before, {here} after"
        store = mh._core.store_stats()
        if store["live"] or store["in_flight"]:
            yield f"in the store: {store}"
        zygote = mh._core.zygote_pid()
        for pid, state in procfs.children(os.getpid()).items():
            if pid != zygote:
                yield f"{state} {procfs.describe(pid)}"
        # The one that was killed may have no successor yet.
        for pid in procfs.children(zygote) if zygote else ():
            yield procfs.describe(pid)

    while found := list(left()):
        assert time.monotonic() < deadline, "\n".join(["left behind:", *found])
        time.sleep(0.01)


def play(
    number: int,
    until: float,
    seed: int,
    first: list[int],
    folder: Path,
    ledger: storm_limits.Ledger,
) -> collections.Counter[str]:
    """One round; nothing here holds anything of it afterwards."""
    books, shelf = Books(), storm_arrays.Shelf()
    store = BUDGETS[number % len(BUDGETS)]
    pools = [
        mh.Pool(
            workers,
            grace=0.1,
            store=store,
            recycle_after_tasks=most,
            memory_limit=limit,
            on_event=ledger.tell,
        )
        for workers, most, limit in ((3, 20, None), (2, None, "400MB"), (1, 5, None))[:POOLS]
    ]
    threads = len(first)
    users = [
        User(pools, books, shelf, ledger, folder, place, threads, seed) for place in range(threads)
    ]
    for user in users:
        user.until, user.last = until, first[user.number]
        user.start()
    for user in users:
        user.join()
        assert user.problem is None, user.problem
        first[user.number] = user.last
    ended = [*pools, *mh._pool._pools]
    for pool in ended:
        # Endless tasks that nobody has ended yet are ended here.
        pool.terminate() if number % 2 else mh._pool._end(pool)
    books.settle()
    deadline = time.monotonic() + LIMIT
    for pool in ended:
        while leases := pool.stats().store.leases:
            assert time.monotonic() < deadline, f"{pool} has leases: {leases}"
            time.sleep(0.01)
    return books.counts


def storm(seconds: float, seed: int, threads: int, ledger: storm_limits.Ledger) -> None:
    with mh.Pool(1) as pool:
        # All that comes with the first pool and stays is there: with the zygote also the teller
        # and the object store.
        told = threading.Event()
        pool.submit(len, bytes(LARGE)).add_done_callback(lambda _future: told.set())
        assert told.wait(LIMIT)
        ledger.fresh = pool.submit(storm_limits.own_memory).result(LIMIT)
    del pool
    until_gone(None)
    base = facts()
    end = time.monotonic() + seconds
    total: collections.Counter[str] = collections.Counter()
    first = [0] * threads
    rounds = 0
    missing = MUST_HAPPEN
    # In a few rounds of a slow machine not everything happens.
    while (now := time.monotonic()) < end or (missing and now < end + MORE_SECONDS - ROUND_SECONDS):
        with tempfile.TemporaryDirectory() as folder:
            until = now + (min(end - now, ROUND_SECONDS) if now < end else ROUND_SECONDS)
            total += play(rounds, until, seed, first, Path(folder), ledger)
        until_gone(base)
        ledger.check()
        rounds += 1
        so_far = total + ledger.counted()
        missing = [name for name in MUST_HAPPEN if not so_far[name]]
    total += ledger.counted()
    print(f"{rounds} rounds; operations of each thread: {first}")
    for name, count in sorted(total.items()):
        print(f"{count:8} {name}")
    if sum(first) < ENOUGH:
        missing = [name for name in missing if name in SURE]
    assert not missing, f"this did not happen: {missing}"


def show_pools() -> None:
    """For a storm that hangs: what the workers do."""
    for pool in list(mh._pool._pools):
        print(pool.dump(), pool.stats(), sep="\n", flush=True)


def main() -> None:
    seconds, seed, threads = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(f"MANYHANDS_STORM_SEED={seed}", flush=True)
    watchdog = threading.Timer(seconds + MORE_SECONDS + 55, show_pools)
    watchdog.daemon = True
    watchdog.start()
    faulthandler.dump_traceback_later(seconds + MORE_SECONDS + 60, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        storm(seconds, seed, threads, storm_limits.Ledger(Path(folder) / "ledger"))
    faulthandler.cancel_dump_traceback_later()
    watchdog.cancel()
    print("all is well")


if __name__ == "__main__":
    main()
