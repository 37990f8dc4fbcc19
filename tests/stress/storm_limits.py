# ruff: noqa: PT017 - this module is part of a program that runs without pytest.
"""The storm's operations with limits, workers that come and go, objects of workers, and seeds.

Tasks that take more memory than they may end with `TaskMemoryExceeded`, and no others do; where
there is memory for one task at a time, no two run at once. Workers give way for each reason, and
leave when they idle. Objects of workers are booked in a file when they are opened and closed: none
is closed twice, and none is left open by a worker that was not killed. Seeded tasks draw what
belongs to them, whatever happens.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from storm_books import LIMIT, ending, name_of

import manyhands as mh

_LEDGER = "MANYHANDS_STORM_LEDGER"
# In megabytes. What a hog takes in the end, the machine has.
HOG_MAY, HOG_TAKES = 20, 120
MODEST_MAY, MODEST_TAKES = 80, 4
# What a leak takes each time, and how often at most in one worker.
LEAK, MOST_LEAKS = 8, 12
# What a worker may have more than a fresh one, before it gives way.
LEEWAY = 40
# What workers do that is counted.
_EVENTS = ("born", "died", "stopped", "left", "recycled")

_leaked: list[bytearray] = []


# ------------------------------------------------------------------------------------------ tasks


def hog() -> None:
    taken = []
    for _ in range(HOG_TAKES):
        taken.append(bytearray(b"x") * 1_000_000)
        time.sleep(0.0005)  # else it is past its limit by much before anybody looks
    time.sleep(600)


def modest(number: int) -> int:
    taken = [bytearray(b"x") * 1_000_000 for _ in range(MODEST_TAKES)]
    time.sleep(0.001 * (number % 5))
    return number + len(taken)


def leak(number: int) -> int:
    if len(_leaked) < MOST_LEAKS:
        _leaked.append(bytearray(b"x") * (LEAK * 1_000_000))
    time.sleep(0.001)
    return number


def own_memory() -> int:
    """How many bytes this process has for itself."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        _, resident, shared, *_ = map(int, statm.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def from_to(number: int) -> tuple[float, float]:
    """When it ran; all processes have this clock."""
    start = time.monotonic()
    time.sleep(0.001 * (number % 5))
    return start, time.monotonic()


def draw(number: int, dies: bool) -> tuple[int, float, float, float]:
    """What belongs to the task; its death does not."""
    if dies and os.urandom(1)[0] < 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, random.random(), float(np.random.random()), float(mh.rng().random())


def drawn(seed: int, number: int, index: int) -> tuple[int, float, float, float]:
    """The same, as the guide says that it can be made again."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index,))
    return (
        number,
        random.Random(f"{seed}/{index}").random(),
        float(np.random.RandomState(sequence.generate_state(8)).random()),  # type: ignore[arg-type]
        float(np.random.default_rng(sequence).random()),
    )


# ----------------------------------------------------------------------------- objects of workers


class Opened:
    """An object of a worker; its end is booked."""

    def __init__(self, kind: str) -> None:
        self.token = f"{os.getpid()} {kind}-{os.urandom(6).hex()}"
        if not _leaves:
            # After what is open was closed: who gets here has closed all.
            _leaves.append(atexit.register(book, f"left {os.getpid()} -"))
        book(f"opened {self.token}")

    def close(self) -> None:
        book(f"closed {self.token}")


_leaves: list[object] = []


def book(line: str) -> None:
    """One write of a short line: no other comes in between."""
    descriptor = os.open(os.environ[_LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _open_plain() -> Opened:
    return Opened("plain")


@contextlib.contextmanager
def _open_managed() -> Iterator[Opened]:
    opened = Opened("managed")
    yield opened
    opened.close()


@contextlib.asynccontextmanager
async def _open_asynchronous() -> AsyncIterator[Opened]:
    await asyncio.sleep(0)
    opened = Opened("asynchronous")
    yield opened
    await asyncio.sleep(0)
    opened.close()


HANDLES = (
    mh.per_worker(_open_plain),
    mh.per_worker(_open_managed),
    mh.per_worker(_open_asynchronous),
)
plain, managed, asynchronous = HANDLES


async def _token_of(opened: Opened) -> str:
    await asyncio.sleep(0)
    return opened.token


def use(number: int, which: int, twice: bool) -> int:
    """The objects are those of this process, each time."""
    handle = HANDLES[which]
    opened = handle.get()
    token = handle.run(_token_of(opened)) if which == 2 else opened.token
    assert token.startswith(f"{os.getpid()} "), (token, os.getpid())
    if twice:
        HANDLES[(which + 1) % 3].get()
    assert handle.get() is opened
    return number


class Ledger:
    """What was opened and closed, and which workers were killed, of the whole program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # What a fresh worker has for itself, in bytes.
        self.fresh = 0
        self._lock = threading.Lock()
        self.killed: set[int] = set()
        # Whose parent is killed dies without anybody who could tell how.
        self.no_witness = False
        # What was told of each worker.
        self.told: dict[int, list[str]] = collections.defaultdict(list)
        self.counts: collections.Counter[str] = collections.Counter()
        os.environ[_LEDGER] = str(path)
        path.touch()

    def tell(self, event: mh.Event) -> None:
        """Listens to a pool."""
        if event.kind in _EVENTS:
            what = f"worker {event.kind}"
            if event.kind == "recycled":
                what += f" by {event.cause}"
            with self._lock:
                self.counts[what] += 1
        if event.pid:
            self.told[event.pid].append(f"{event.kind} {event.cause or event.task or ''}")
            if event.kind in ("died", "stopped"):
                self.killed.add(event.pid)

    def counted(self) -> collections.Counter[str]:
        """What was counted so far; who listens may be told of more."""
        with self._lock:
            return self.counts.copy()

    def check(self) -> None:
        """All workers are gone."""
        opened: dict[str, int] = {}
        closed: collections.Counter[str] = collections.Counter()
        left: set[int] = set()
        for line in self.path.read_text().splitlines():
            what, pid, token = line.split()
            if what == "opened":
                assert token not in opened, f"{token} was opened twice"
                opened[token] = int(pid)
            elif what == "closed":
                closed[token] += 1
                assert opened[token] == int(pid), f"{token} was closed by {pid}"
            else:
                left.add(int(pid))
        twice = [token for token, count in closed.items() if count > 1]
        assert not twice, f"closed twice: {twice}"
        forgotten = [token for token, pid in opened.items() if pid in left and not closed[token]]
        assert not forgotten, f"left open by workers that came to their end: {forgotten}"
        # Who listens may be told a moment later. Whose end nobody could tell has "left".
        deadline = time.monotonic() + LIMIT
        while lost := {
            token: pid
            for token, pid in opened.items()
            if not closed[token] and pid not in self.killed and not self.no_witness
        }:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        told = {pid: self.told.get(pid, [])[-8:] for pid in lost.values()}
        assert not lost, f"left open by workers that nobody has killed: {lost}; {told}"
        for token in opened:
            kind = token.partition("-")[0]
            end = "closed" if closed[token] else "of a killed worker"
            with self._lock:
                self.counts[f"{kind} object {end}"] += 1
        self.path.write_text("")
        self.killed.clear()
        with self._lock:
            self.counts["rounds with witnesses"] += not self.no_witness
        self.no_witness = False
        self.told.clear()


# -------------------------------------------------------------------------------------- operations


def returns(number: Any) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        assert value == number, (value, number)

    return check


def take_memory(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    careful = pool.options(task_memory=f"{MODEST_MAY}MB")
    futures = []
    for _ in range(choose.randint(1, 6)):
        number = choose.randrange(1000)
        future = careful.submit(modest, number)
        user.books.add("modest", future, returns(number + MODEST_TAKES), choose.random() < 0.5)
        futures.append(future)
    for _ in range(choose.randint(0, 2)):
        future = pool.options(task_memory=f"{HOG_MAY}MB").submit(hog)
        user.books.add("hog", future, never, choose.random() < 0.5)
        futures.append(future)
    for future in futures:
        ending(future, LIMIT)


def never(value: Any) -> None:
    raise AssertionError(f"a task that takes too much has returned {value!r}")


def map_with_memory(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """Of its items only some take too much."""
    count = choose.randint(1, 12)
    hogs = {index for index in range(count) if choose.random() < 0.15}
    results = pool.map(
        modest_or_hog,
        [(index, index in hogs) for index in range(count)],
        task_memory=f"{HOG_MAY if hogs else MODEST_MAY}MB",
        on_error="return",
    )
    try:
        for index, result in enumerate(results):
            if isinstance(result, mh.Failure):
                name = name_of(result.exception)
                assert name != "memory" or index in hogs, (index, hogs)
                user.books.count(f"item with a limit: {name}")
            else:
                assert index not in hogs
                assert result == index + MODEST_TAKES
                user.books.count("item with a limit: value")
    except BaseException as error:
        if isinstance(error, AssertionError):
            raise
        # Another thread has closed the pool.
        assert name_of(error) in ("cancelled", "shut down"), repr(error)
        user.books.count("map with limits cut short")


def modest_or_hog(item: tuple[int, bool]) -> int | None:
    number, is_hog = item
    return hog() if is_hog else modest(number)


def wait_for_memory(user: Any, choose: random.Random, _pool: mh.Pool) -> None:
    """There are more workers than tasks for which there is memory."""
    count = choose.randint(2, 8)
    numbers = [choose.randrange(1000) for _ in range(count)]
    with (
        user.books.page() as page,
        mh.Pool(2, memory_limit="100MB", task_memory="60MB", on_event=user.ledger.tell) as own,
    ):
        futures = [own.submit(from_to, number) for number in numbers]
        for future in futures:
            page.add("waits for memory", future, lambda _: None, choose.random() < 0.3)
        ran = sorted(future.result() for future in futures if ending(future, LIMIT) == "value")
        for (_, end), (start, _) in itertools.pairwise(ran):
            assert end <= start, f"two ran at once, with memory for one: {ran}"
            user.books.count("waited for memory")


def give_way(user: Any, choose: random.Random, _pool: mh.Pool) -> None:
    """Workers are replaced, for each reason that there is."""
    options = {
        "recycle_after_tasks": choose.randint(1, 5),
        "recycle_rss": user.ledger.fresh + LEEWAY * 1_000_000,
        "recycle_age": choose.uniform(0.01, 0.1),
    }
    for option in choose.sample([*options], 3):
        wanted: dict[str, Any] = {option: options[option]}
        with mh.Pool(choose.randint(1, 2), on_event=user.ledger.tell, **wanted) as own:
            deadline = time.monotonic() + LIMIT
            while not own.stats().recycled:
                assert time.monotonic() < deadline, (wanted, own.stats())
                future = own.submit(leak, 3)
                user.books.add("leak", future, returns(3), choose.random() < 0.3)
                ending(future, LIMIT)
        user.books.count(f"gave way by {option}")


def idle(user: Any, choose: random.Random, _pool: mh.Pool) -> None:
    """Workers leave that have nothing to do, and there are others for what comes."""
    left: list[int | None] = []

    def tell(event: mh.Event) -> None:
        user.ledger.tell(event)
        if event.kind == "left":
            left.append(event.pid)

    with mh.Pool(choose.randint(1, 2), idle_timeout=0.02, on_event=tell) as own:
        for _ in range(choose.randint(1, 2)):
            for future in user.tasks(choose, own, 5):
                ending(future, LIMIT)
            deadline = time.monotonic() + LIMIT
            while own.stats().workers:
                assert time.monotonic() < deadline, own.stats()
                time.sleep(0.005)
    # Nobody was there any more when the pool ended.
    if left:
        user.books.count("left since it idled")


def use_objects(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    for _ in range(choose.randint(1, 10)):
        number = choose.randrange(1000)
        future = pool.submit(use, number, choose.randrange(3), choose.random() < 0.3)
        user.books.add("object", future, returns(number), choose.random() < 0.3)
    if choose.random() < 0.3:
        results = pool.map(
            use, range(30), itertools.repeat(choose.randrange(3)), [False] * 30, on_error="skip"
        )
        try:
            values = list(results)
        except BaseException as error:
            assert name_of(error) in ("cancelled", "shut down"), repr(error)
            return
        for failure in results.failures:
            name_of(failure.exception)
        assert sorted([*values, *(failure.index for failure in results.failures)]) == [*range(30)]


def seed(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    number, dies = choose.randrange(10**6), choose.random() < 0.5
    retry = mh.Retry(0, deaths=choose.randint(0, 5))
    if choose.random() < 0.5:
        seeded = pool.options(seed=number, retry=retry)
        for index in range(choose.randint(1, 10)):
            future = seeded.submit(draw, index, dies)
            check = returns(drawn(number, index, index))
            user.books.add("seeded", future, check, choose.random() < 0.3)
        return
    count = choose.randint(1, 100)
    results = pool.map(
        draw,
        range(count),
        [dies] * count,
        seed=number,
        retry=retry,
        on_error="return",
        ordered=choose.random() < 0.5,
    )
    try:
        for result in results:
            if isinstance(result, mh.Failure):
                user.books.count(f"seeded item: {name_of(result.exception)}")
            else:
                assert result == drawn(number, result[0], result[0]), (number, result)
                user.books.count("seeded item: value")
    except BaseException as error:
        if isinstance(error, AssertionError):
            raise
        assert name_of(error) in ("cancelled", "shut down"), repr(error)
        user.books.count("seeded map cut short")


# How often each is chosen, as in `storm_program`.
OPERATIONS: dict[str, tuple[int, Callable[[Any, random.Random, mh.Pool], None]]] = {
    "take memory": (4, take_memory),
    "map with memory": (3, map_with_memory),
    "wait for memory": (2, wait_for_memory),
    "give way": (2, give_way),
    "idle": (2, idle),
    "use objects": (10, use_objects),
    "seed": (8, seed),
}
# What comes of these operations each time.
SURE = [
    *("waited for memory", "left since it idled"),
    *(f"gave way by recycle_{what}" for what in ("after_tasks", "rss", "age")),
]
MUST_HAPPEN = [
    *OPERATIONS,
    *SURE,
    "rounds with witnesses",
    *(f"worker {kind}" for kind in ("born", "died", "stopped", "left")),
    "worker recycled by recycle_after_tasks",
    *("modest: value", "hog: memory", "item with a limit: value", "item with a limit: memory"),
    *("object: value", "seeded: value", "seeded item: value"),
    *(f"{kind} object closed" for kind in ("plain", "managed", "asynchronous")),
    *(f"{kind} object of a killed worker" for kind in ("plain", "managed", "asynchronous")),
]
