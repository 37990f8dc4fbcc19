# ruff: noqa: PT017 - this module is part of a program that runs without pytest.
"""The storm's operations with arrays, whose memory is used again and again.

All numbers of an array follow from one number, and no two arrays have a number in common: whoever
looks at an array sees whether it is the one that was meant, the whole of it, and nothing else.
Tasks write over what they got, callers over what they sent, and nobody may see it but in what they
share on purpose.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from storm_books import LIMIT, Odd, ending, name_of

import manyhands as mh

Array = np.ndarray[Any, Any]
# An array, its number, and where in the array that was made it starts.
Part = tuple[Array, int, int]

# Elements: from 200 KB to 8 MB.
LEAST, MOST = 25_000, 1_000_000
_RAMP = np.arange(float(MOST))
_STEP = float(2**21)

# What tasks keep in their worker.
_kept: list[Part] = []


def made(number: int, count: int, start: int = 0) -> Array:
    return _RAMP[start : start + count] + _STEP * number


def check_made(array: Array, number: int, start: int = 0) -> None:
    different = array != made(number, len(array), start)
    if different.any():
        place = int(different.argmax())
        raise AssertionError(
            f"{int(different.sum())} of {len(array)} numbers from {start} on are not those of "
            f"{number}; at {place} is {array[place]!r}, which is {array[place] / _STEP} steps"
        )


# ------------------------------------------------------------------------------------------ tasks


def look_at_kept() -> None:
    for part, number, start in _kept:
        check_made(part, number, start)


def keep(array: Array, number: int, start: int) -> None:
    """A few elements hold the memory of all of them."""
    if len(_kept) == 5:
        del _kept[number % 5]
    _kept.append((array[10:20], number, start + 10))


def turn(array: Array, number: int, kind: str) -> Any:
    """Writes over its argument; returns what it says, or ends in another way."""
    look_at_kept()
    check_made(array, number)
    array[:] = -1.0
    if kind == "fail":
        raise Odd(number)
    if kind == "exit":
        os._exit(number % 7)
    if kind == "flaky":
        drawn = random.random()
        if drawn < 0.3:
            raise Odd(number)
        if drawn < 0.4:
            os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(0.001 * (number % 5))
    if kind == "number":
        return number
    if kind == "keep":
        array[:] = made(number, len(array))
        keep(array, number, 0)
        return number
    if kind in ("own", "part"):
        array[:] = made(number + 1, len(array))
        return array if kind == "own" else array[10:]
    return made(number + 1, len(array))


def read(array: Array, number: int, start: int, keeps: bool) -> int:
    look_at_kept()
    check_made(array, number, start)
    if keeps:
        keep(array, number, start)
    return number


def read_parts(parts: list[Part]) -> int:
    return sum(read(*part, keeps=False) for part in parts)


def write_to_what_was_put(array: Array, number: int) -> int:
    check_made(array, number)
    try:
        array[:] = -1.0
    except ValueError:
        return number
    raise AssertionError("what was put is writable")


def read_broadcast(holder: mh.Broadcast[dict[str, Array]], number: int) -> int:
    check_made(holder.value["array"], number)
    return number


def fill(part: Array, number: int, start: int, kind: str) -> int:
    """Writes a part of a shared array, piece by piece."""
    for place in range(0, len(part), 10_000):
        piece = part[place : place + 10_000]
        piece[:] = made(number, len(piece), start + place)
        if kind == "fail" and place >= len(part) // 2:
            raise Odd(number)
        if kind == "exit" and place >= len(part) // 2:
            os._exit(3)
        if kind == "sleep":
            time.sleep(0.001)
    return number


def endless(array: Array, number: int, kind: str) -> None:
    check_made(array, number)
    keep(array, number, 0)
    if kind == "sleep":
        time.sleep(600)
    while True:
        array[20:] = -3.0


def nested(array: Array, number: int) -> Array:
    """Hands its argument on to tasks of its own, then writes over it."""
    futures = [mh.submit(turn, array, number, kind) for kind in ("own", "new", "part")]
    array[:] = -4.0
    for future, start in zip(futures, (0, 0, 10), strict=True):
        check_made(future.result(), number + 1, start)
    array[:] = made(number + 2, len(array))
    return array


# ------------------------------------------------------------------------------------------- shelf


class Shelf:
    """Arrays that outlive their operations, for all threads. Nobody writes to them any more."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._lock = threading.Lock()

    def add(self, choose: random.Random, part: Part) -> None:
        place = choose.random()
        with self._lock:
            if len(self._parts) >= 8:
                del self._parts[int(place * len(self._parts))]
            self._parts.append(part)

    def pick(self, choose: random.Random) -> Part | None:
        place = choose.random()
        with self._lock:
            return self._parts[int(place * len(self._parts))] if self._parts else None


# -------------------------------------------------------------------------------------- operations


def draw(choose: random.Random) -> tuple[int, int]:
    """A number, and how many elements its array has: many small ones, few large ones."""
    return choose.randrange(10**6), int(LEAST * (MOST / LEAST) ** (choose.random() ** 3))


def options(choose: random.Random, pool: mh.Pool) -> Any:
    """The pool, with limits and further attempts now and then."""
    chosen: dict[str, Any] = {}
    if choose.random() < 0.3:
        chosen["retry"] = mh.Retry(3, on=(Odd, mh.TaskTimeout), deaths=2)
    if choose.random() < 0.15:
        chosen["task_timeout"] = choose.uniform(0.002, 0.1)
        chosen["grace"] = choose.choice((0, 0.02))
    return pool.options(**chosen) if chosen else pool


def cancel_some(choose: random.Random, futures: list[mh.Future[Any]]) -> None:
    if choose.random() < 0.2:
        time.sleep(choose.random() * 0.01)  # a random instant of what they do
        for future in choose.sample(futures, choose.randint(1, len(futures))):
            future.cancel()


def returns(number: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        assert value == number, (number, str(value)[:100])

    return check


def any_value(_value: Any) -> None:
    """For arrays, which are checked when they are received: then callers write to them."""


def check_turned(result: Any, number: int, count: int, kind: str) -> None:
    if kind in ("number", "keep"):
        returns(number)(result)
        return
    start = 10 if kind == "part" else 0
    assert len(result) == count - start
    assert result.flags.writeable
    check_made(result, number + 1, start)


def hand_on(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """Results are the arguments of the next tasks, as they came or with what was written."""
    drawn = [draw(choose) for _ in range(choose.randint(1, 6))]
    arrays = [(number, made(number, count)) for number, count in drawn]
    with user.books.page() as page:
        for _ in range(choose.randint(1, 4)):
            sent = []
            for number, array in arrays:
                kind = choose.choice(TURNS)
                future = options(choose, pool).submit(turn, array, number, kind)
                page.add(f"turn {kind}", future, any_value, choose.random() < 0.5)
                sent.append((future, number, len(array), kind))
                if choose.random() < 0.5:
                    array[:] = -2.0  # the task has it as it was
            if sent:
                cancel_some(choose, [future for future, *_ in sent])
            arrays = [turned for one in sent if (turned := receive(user, choose, *one))]


def receive(
    user: Any, choose: random.Random, future: mh.Future[Any], number: int, count: int, kind: str
) -> tuple[int, Array] | None:
    """What comes back, if it is to be handed on."""
    writes, shelves = choose.random() < 0.3, choose.random() < 0.2
    if ending(future, LIMIT) != "value":
        return None
    result = future.result()
    check_turned(result, number, count, kind)
    if kind in ("number", "keep"):
        return None
    number += 1
    if shelves:
        user.shelf.add(choose, (result, number, 10 if kind == "part" else 0))
        return None
    if writes or kind == "part":
        number += 7
        result[:] = made(number, len(result))
        user.books.count("written and handed on")
    return number, result


def put(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """One object for tasks of all pools, whole and in parts."""
    number, count = draw(choose)
    try:
        array = mh.put(made(number, count))
    except MemoryError:
        user.books.count("no room to put")
        return
    user.books.count("was put")
    with user.books.page() as page:
        futures = [pool.submit(write_to_what_was_put, array, number)]
        for _ in range(choose.randint(1, 8)):
            start = choose.randrange(count - 100)
            one = choose.choice(user.pools)
            arguments = (array[start:], number, start, choose.random() < 0.3)
            futures.append(options(choose, one).submit(read, *arguments))
        for future in futures:
            page.add("read what was put", future, returns(number), choose.random() < 0.5)
        if choose.random() < 0.7:
            user.shelf.add(choose, (array, number, 0))
        del array
        cancel_some(choose, futures)


def read_the_shelf(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """What other operations left."""
    parts = [part for _ in range(choose.randint(1, 4)) if (part := user.shelf.pick(choose))]
    for part in parts:
        check_made(*part)
    with user.books.page() as page:
        futures = []
        for array, number, start in parts:
            future = options(choose, pool).submit(read, array, number, start, keeps=True)
            futures.append(page.add("read the shelf", future, returns(number), True))
        total = sum(number for _, number, _ in parts)
        future = pool.submit(read_parts, parts)
        futures.append(page.add("read the shelf", future, returns(total), False))
        cancel_some(choose, futures)


def map_arrays(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    numbers = choose.sample(range(10**6), choose.randint(0, 25))
    drawn = [(number, draw(choose)[1]) for number in numbers]
    kinds = choose.choices(TURNS, k=len(drawn))
    ordered, leaves = choose.random() < 0.5, choose.random() < 0.2
    chosen: dict[str, Any] = {"ordered": ordered, "on_error": "return", "grace": 0.01}
    if choose.random() < 0.3:
        chosen["retry"] = choose.randint(1, 3)
    if choose.random() < 0.2:
        chosen["task_timeout"] = 0.05
    # One array, filled again for each item.
    buffer = np.empty(MOST)

    def items() -> Any:
        for (number, count), kind in zip(drawn, kinds, strict=True):
            buffer[:count] = made(number, count)
            yield buffer[:count], number, kind

    values = pool.map(turn_item, items(), **chosen)
    # By what they are to begin with; of those without an order each is met once.
    left = list(enumerate(drawn))
    try:
        for index, result in enumerate(values):
            if isinstance(result, mh.Failure):
                user.books.count(f"array of a map: {name_of(result.exception)}")
                left.remove((result.index, drawn[result.index]))
                continue
            if ordered:
                place = index
            else:
                found = int(result if isinstance(result, int) else result[0] // _STEP - 1)
                place = next(place for place, (number, _) in left if number == found)
            check_turned(result, *drawn[place], kinds[place])
            left.remove((place, drawn[place]))
            user.books.count("array of a map: value")
            if leaves and index >= len(drawn) // 2:
                values.close()
                return
    except BaseException as error:
        # Another thread has closed the pool.
        assert name_of(error) in ("cancelled", "shut down"), repr(error)
        user.books.count("map of arrays cut short")
        return
    assert not left, left


def turn_item(item: tuple[Array, int, str]) -> Any:
    return turn(*item)


def share_a_broadcast(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    number, count = draw(choose)
    holder = mh.broadcast({"array": made(number, count)})
    with user.books.page() as page:
        for _ in range(choose.randint(1, 3)):
            futures = []
            for _ in range(choose.randint(1, 5)):
                one = options(choose, choose.choice(user.pools))
                future = one.submit(read_broadcast, holder, number)
                futures.append(page.add("read a broadcast", future, returns(number), True))
            cancel_some(choose, futures)
            if choose.random() < 0.5:
                holder.unpersist()
                user.books.count("unpersist")


def capture(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """What a function carries is sent once, and not with each task."""
    number, count = draw(choose)
    carrier = functools.partial(read, made(number, count), number, 0, keeps=False)
    with user.books.page() as page:
        futures = [options(choose, pool).submit(carrier) for _ in range(choose.randint(1, 8))]
        for future in futures:
            page.add("captured", future, returns(number), choose.random() < 0.5)
        cancel_some(choose, futures)


def fill_a_shared_array(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """Each task fills a part. Who does not come to its end has written its own numbers or none."""
    number, count = draw(choose)
    path = user.folder / f"{user.number} {user.last}" if choose.random() < 0.5 else None
    out = mh.shared_array(count, path=path)
    step = count // choose.randint(2, 8)
    sent = []
    with user.books.page() as page:
        for start in range(0, count, step):
            part, kind = out[start : start + step], choose.choice(FILLS)
            one = options(choose, choose.choice(user.pools))
            if choose.random() < 0.3:
                future = one.submit(functools.partial(fill, part), number, start, kind)
            else:
                future = one.submit(fill, part, number, start, kind)
            page.add(f"fill {kind}", future, returns(number), choose.random() < 0.5)
            sent.append((future, part, start))
        cancel_some(choose, [future for future, *_ in sent])
        for future, part, start in sent:
            if ending(future, LIMIT) == "value":
                check_made(part, number, start)
            else:
                # Looked at once: who is being stopped may write a moment longer.
                seen = np.array(part)
                assert ((seen == made(number, len(part), start)) | (seen == 0)).all()
    if path is not None:
        path.unlink()
        user.books.count("shared array in a file")


def end_with_arrays(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    """Tasks that hold arrays, or write to them, are ended at a random instant."""
    futures = []
    with user.books.page() as page:
        try:
            for _ in range(choose.randint(1, 3)):
                number, count = draw(choose)
                kind = choose.choice(("write", "sleep"))
                late = choose.random() < 0.5
                limit, grace = choose.uniform(0.002, 0.1), choose.choice((0, 0.02))
                one = pool.options(task_timeout=limit if late else None, grace=grace)
                future = one.submit(endless, made(number, count), number, kind)
                what = f"endless with an array, {'late' if late else 'cancelled'}"
                page.add(what, future, any_value, choose.random() < 0.5)
                if not late:
                    futures.append(future)
            time.sleep(choose.random() * 0.02)
        finally:
            # Also if another thread has closed the pool, which then waits for them.
            for future in futures:
                future.cancel()


def nest_arrays(user: Any, choose: random.Random, pool: mh.Pool) -> None:
    with user.books.page() as page:
        sent = []
        for _ in range(choose.randint(1, 3)):
            number, count = draw(choose)
            future = options(choose, pool).submit(nested, made(number, count), number)
            page.add("nested with an array", future, any_value, choose.random() < 0.5)
            sent.append((future, number))
        cancel_some(choose, [future for future, _ in sent])
        for future, number in sent:
            if ending(future, LIMIT) == "value":
                check_made(future.result(), number + 2)


TURNS = ("new",) * 5 + ("own",) * 5 + ("keep", "number", "sleep", "part", "flaky") * 2
TURNS += ("fail", "exit")
FILLS = ("plain",) * 4 + ("sleep", "fail", "exit") * 2
# How often each is chosen, as in `storm_program`.
OPERATIONS: dict[str, tuple[int, Callable[[Any, random.Random, mh.Pool], None]]] = {
    "hand arrays on": (10, hand_on),
    "put": (6, put),
    "read the shelf": (6, read_the_shelf),
    "map arrays": (5, map_arrays),
    "broadcast": (3, share_a_broadcast),
    "capture": (3, capture),
    "fill a shared array": (5, fill_a_shared_array),
    "end with arrays": (5, end_with_arrays),
    "nest arrays": (4, nest_arrays),
}
MUST_HAPPEN = [
    *OPERATIONS,
    *(f"turn {kind}: value" for kind in ("new", "own", "keep", "number", "part", "flaky")),
    *(f"array of a map: {name}" for name in ("value", "failed", "died")),
    *("turn exit: died", "turn fail: failed", "written and handed on", "unpersist"),
    *("shared array in a file", "was put"),
    *("fill plain: value", "fill exit: died", "nested with an array: value"),
    *("endless with an array, late: timeout", "endless with an array, cancelled: cancelled"),
    *("read what was put: value", "read the shelf: value", "read a broadcast: value"),
]
