"""Bytes, bytearrays and memoryviews as arguments and results: equal, and by the store if large."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from arrays import drop_kept, keep, kept, same
from gate import Gate, pass_through
from observing import until_released
from programs import program

# From this size on they go by the store.
LARGE = 128 * 1024
SIZE = 1_000_000
SIZES = [0, 1, 1000, LARGE - 1, LARGE, SIZE]


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


@pytest.fixture
def single() -> Iterator[mh.Pool]:
    with mh.Pool(1) as pool:
        yield pool


class Named(bytes):
    pass


class NamedArray(bytearray):
    pass


def made(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "writable memoryview": lambda content: memoryview(bytearray(content)),
    "subclass of bytes": Named,
    "subclass of bytearray": NamedArray,
}


def seen(*values: Any, **named: Any) -> list[Any]:
    """All there is to see of them."""
    found: list[Any] = []
    for value in [*values, *named.values()]:
        if isinstance(value, memoryview):
            found.append((value.readonly, value.format, value.shape, value.tobytes()))
        elif isinstance(value, list | tuple):
            found.append(seen(*value))
        elif isinstance(value, dict):
            found.append((list(value), seen(*value.values())))
        else:
            found.append((type(value).__name__, value))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(pool: mh.Pool, kind: str, size: int) -> None:
    value = KINDS[kind](made(size))
    before = seen(value)
    assert pool.submit(seen, value).result() == before
    assert pool.submit(seen, 1, value, named=value).result() == [("int", 1), *before, *before]
    assert pool.submit(value.__class__.__len__, value).result() == size
    assert seen(pool.submit(same, value).result()) == before
    assert list(pool.map(seen, [value, value])) == [before] * 2
    assert list(pool.starmap(seen, [(value, 2)])) == [[*before, ("int", 2)]]
    assert [seen(one) for one in pool.map(same, [value] * 3)] == [before] * 3
    assert seen(value) == before
    until_released(pool, "live")


@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_others(pool: mh.Pool, kind: str) -> None:
    for size in SIZES:
        value = KINDS[kind](made(size))
        for held in ([value], (value, 1), {"a": {"b": value}}, [value, value]):
            assert pool.submit(seen, held).result() == seen(held)
            assert seen(pool.submit(same, held).result()) == seen(held)


MEMORY: dict[str, Callable[[], memoryview]] = {
    "array": lambda: memoryview(array.array("i", range(100_000))),
    "NumPy array": lambda: memoryview(np.arange(100_000.0)),
    "table": lambda: memoryview(np.arange(100_000).reshape(100, 10, -1)),
    "booleans": lambda: memoryview(np.arange(300_000) % 3 == 0),
    "read-only": lambda: memoryview(np.arange(100_000.0)).toreadonly(),
    "0-d": lambda: memoryview(np.array(2.5)),
    "small": lambda: memoryview(array.array("d", [1, 2])),
    "without items": lambda: memoryview(array.array("d")),
    "part": lambda: memoryview(made(SIZE))[10:-10],
    # Which become contiguous.
    "every second": lambda: memoryview(made(SIZE))[::2],
    "backwards": lambda: memoryview(np.arange(100_000.0)[::-1]),
    "Fortran order": lambda: memoryview(np.asfortranarray(np.arange(100_000).reshape(100, -1))),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memoryviews(pool: mh.Pool, name: str) -> None:
    view = MEMORY[name]()
    assert pool.submit(seen, view).result() == seen(view)
    assert pool.submit(seen, [view]).result() == seen([view])
    result = pool.submit(same, view).result()
    assert seen(result) == seen(view)
    assert result.c_contiguous


@pytest.mark.parametrize("dtype", [">f8", "f4,i4", "c16"])
def test_what_memoryviews_cannot_make_comes_as_bytes(pool: mh.Pool, dtype: str) -> None:
    for count in (0, 10, SIZE):
        view = memoryview(np.ones(count, dtype))
        assert seen(pool.submit(same, view).result()) == seen(view.tobytes())


@pytest.mark.parametrize("size", [10, SIZE])
def test_a_released_memoryview_is_refused(pool: mh.Pool, size: int) -> None:
    view = memoryview(bytes(size))
    view.release()
    with pytest.raises(mh.NotPicklable, match=r"args\[0\] is a memoryview that was released"):
        pool.submit(same, view)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "writable memoryview"])
def test_they_go_by_the_store(pool: mh.Pool, gate: Gate, kind: str) -> None:
    """With the workers held up, what was sent is in the store, once for each argument."""
    blocked = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    value = KINDS[kind](made(SIZE))
    futures = [pool.submit(seen, value, named=value) for _ in range(3)]
    assert 3 * SIZE <= pool.stats().store.live < 4 * SIZE
    gate.open()
    for future in futures:
        assert future.result() == seen(value, value)
    assert [future.result() for future in blocked] == [None, None]
    until_released(pool, "live")
    result = pool.submit(same, value).result()
    # Bytes are copied out of it; a memoryview looks at it.
    until_released(pool, "live", most=SIZE + LARGE if isinstance(result, memoryview) else 0)
    assert seen(result) == seen(value)


def test_they_are_snapshots(single: mh.Pool, gate: Gate) -> None:
    single.submit(pass_through, gate.path)
    gate.wait_arrivals()
    value = bytearray(made(SIZE))
    future = single.submit(seen, value, memoryview(value))
    value[:] = bytes(SIZE)
    gate.open()
    value[:] = made(SIZE)
    assert future.result() == seen(value, memoryview(value))


def test_nobody_sees_what_a_task_writes(single: mh.Pool) -> None:
    def write(*values: Any) -> list[Any]:
        for value in values:
            value[5] = 200
        return list(values)

    value = bytearray(made(SIZE))
    result = single.submit(same, memoryview(value)).result()
    for _ in range(3):
        written = single.submit(write, value, memoryview(value), result).result()
        assert [one[5] for one in written] == [200] * 3
        assert value[5] == result[5] == made(10)[5]
    result[5] = 7
    assert single.submit(bytes, result).result()[:7] == made(5) + bytes([7, 6])
    error = single.submit(write, memoryview(bytes(SIZE))).exception()
    assert isinstance(error, TypeError)
    assert "read-only" in str(error)


def test_one_object_stays_one_object(pool: mh.Pool) -> None:
    def write(first: Any, second: Any) -> list[int]:
        first[0] = 77
        if not hasattr(second, "hex"):
            second = next(iter(second))
        return [first[0], second[0]]

    for value in (bytearray(SIZE), memoryview(bytearray(SIZE))):
        for held in (value, [value], (value,)):
            assert pool.submit(write, value, held).result() == [77, 77]
            assert pool.submit(write, value, second=held).result() == [77, 77]
            assert list(pool.starmap(write, [(value, held)])) == [[77, 77]]


def test_what_they_are_copied_from_is_no_put_array(pool: mh.Pool) -> None:
    def lock(data: Any) -> None:
        np.frombuffer(bytes(data), np.uint8)[0] = 1

    error = pool.submit(lock, made(SIZE)).exception()
    assert isinstance(error, ValueError)
    assert "share()" not in "\n".join(getattr(error, "__notes__", []))


def test_put(pool: mh.Pool) -> None:
    for size in SIZES:
        for kind in ("bytes", "bytearray", "memoryview", "writable memoryview"):
            value = KINDS[kind](made(size))
            put = mh.put(value)
            assert type(put) is type(value)
            assert put == value
            assert pool.submit(bytes, put).result() == made(size)
    view = mh.put(memoryview(array.array("d", range(100_000))))
    assert view.readonly
    before = pool.stats().store.live
    assert before >= view.nbytes
    assert list(pool.map(sum, [view, view[10:], view])) == [sum(view), sum(view[10:]), sum(view)]
    pool.submit(keep, view).result()
    assert pool.stats().store.live < before + LARGE
    pool.submit(drop_kept).result()


def test_a_memoryview_is_kept(single: mh.Pool) -> None:
    """It holds its block, in whatever process it is."""
    result = single.submit(lambda: memoryview(made(SIZE))).result()
    single.submit(keep, memoryview(made(SIZE))).result()
    for number in range(30):
        assert single.submit(set, bytes([number]) * SIZE).result() == {number}
    assert result == made(SIZE)
    assert single.submit(lambda: kept[0] == made(SIZE)).result()
    single.submit(drop_kept).result()
    del result
    until_released(single, "live")


def test_tasks_that_yield_them(pool: mh.Pool) -> None:
    def parts(number: int) -> Iterator[Any]:
        for kind in (bytes, bytearray, memoryview):
            yield kind(bytes([number]) * SIZE)

    expected = [part for number in range(3) for part in parts(number)]
    found = list(pool.map(parts, range(3)))
    assert found == expected
    assert [type(part) for part in found] == [type(part) for part in expected]


@program
def past_the_budget(size: int) -> None:
    """Where the store has no room they go in the message."""

    def kind(value):
        return type(value), bytes(value[:10]), bytes(value[-10:]), len(value)

    content = bytes(range(250)) * (size // 250)
    with mh.Pool(1, store="1MB") as pool:
        for value in (content, bytearray(content), memoryview(content)):
            assert pool.submit(kind, value).result(20) == kind(value)
            result = pool.submit(lambda value: value, value).result(20)
            assert type(result) is type(value)
            assert result == value
    print("all is well")


def test_past_the_budget() -> None:
    assert past_the_budget.run(size=5_000_000, seconds=60).check().out == "all is well\n"
