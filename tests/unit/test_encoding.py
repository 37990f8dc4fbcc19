"""Values come back from a worker as they went: equal, of the same type, as often the same."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
from typing import Any, NamedTuple

import pytest

import manyhands as mh


def same(value: Any) -> Any:
    return value


def describe(value: Any) -> tuple[str, str]:
    """What the worker sees: the type and the text of the value."""
    return type(value).__name__, ascii(value)


class Whole(int):
    pass


class Real(float):
    pass


class Text(str):
    pass


class Raw(bytes):
    pass


class Pair(tuple):
    pass


class Items(list):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.IntEnum):
    RED = 1


class Word(str, enum.Enum):  # noqa: UP042
    YES = "yes"


def nested(depth: int) -> Any:
    value: Any = (1, "one")
    for _ in range(depth):
        value = (value, None)
    return value


PLAIN = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31 - 1,
    2**31,
    -(2**31),
    -(2**31) - 1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    2**64,
    2**200,
    -(2**200),
    0.0,
    1.5,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    "",
    "ascii",
    "ümläut € 😀",
    "nul\0inside",
    "lone \ud800 surrogate",
    "\udcff from surrogateescape",
    b"",
    b"\0\xff",
    (),
    (None,),
    ((), ((),)),
    (1, 2.0, "three", b"four", (True, (False, None))),
]
TREES = [
    [],
    [1, [2, [3]]],
    {},
    {"a": 1, 2: "b", (3,): [4]},
    {"nested": {"dict": {"of": ["lists", ("and", "tuples")]}}},
    set(),
    {1, 2},
    {"a"},
    frozenset({1, 2}),
    bytearray(b"abc"),
    1 + 2j,
    range(3, 9, 2),
    slice(1, None, 2),
    Ellipsis,
    NotImplemented,
    int,
    len,
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    decimal.Decimal("1.10"),
    collections.OrderedDict(b=1, a=2),
    collections.deque([1, 2], maxlen=5),
]
# Around what travels inside a queue entry (22 bytes), the codec's limits (32 KiB of text, tuples 16
# deep), what a ring takes as one record (48 KiB), a message file of its own (1 MiB), and beyond.
SIZES = [
    *range(30),
    127,
    128,
    255,
    256,
    4096,
    32 * 1024 - 1,
    32 * 1024,
    32 * 1024 + 1,
    *(48 * 1024 + step for step in (-129, -64, -33, -17, -16, -9, -8, -1, 0, 1, 8, 64)),
    64 * 1024,
    1024 * 1024 - 1,
    1024 * 1024,
    3_000_000,
    10_000_000,
]


@pytest.mark.parametrize("value", PLAIN + TREES, ids=ascii)
def test_round_trip(pool: mh.Pool, value: Any) -> None:
    returned = pool.submit(same, value).result()
    assert type(returned) is type(value)
    assert returned == value
    assert pool.submit(describe, value).result() == describe(value)


def test_round_trip_of_all_in_one_call(pool: mh.Pool) -> None:
    values = PLAIN + TREES
    returned = pool.submit(same, values).result()
    assert returned == values
    assert [type(value) for value in returned] == [type(value) for value in values]


def test_not_a_number(pool: mh.Pool) -> None:
    value = pool.submit(same, math.nan).result()
    assert type(value) is float
    assert math.isnan(value)
    assert math.copysign(1, pool.submit(same, math.copysign(math.nan, -1)).result()) == -1


def test_negative_zero(pool: mh.Pool) -> None:
    assert math.copysign(1, pool.submit(same, -0.0).result()) == -1
    assert math.copysign(1, pool.submit(same, (-0.0, 0.0)).result()[0]) == -1
    assert math.copysign(1, pool.submit(same, (-0.0, 0.0)).result()[1]) == 1


@pytest.mark.parametrize(
    "value",
    [
        Whole(3),
        Real(1.5),
        Text("x"),
        Raw(b"x"),
        Pair((1, 2)),
        Items([1]),
        Point(1, 2),
        Colour.RED,
        Word.YES,
        collections.Counter("aab"),
    ],
    ids=ascii,
)
def test_subclasses_keep_their_type(pool: mh.Pool, value: Any) -> None:
    for wrapped in (value, (value,), (1, (value, "x")), [value], {"key": value}):
        returned = pool.submit(same, wrapped).result()
        assert returned == wrapped
        assert type(returned) is type(wrapped)
    assert type(pool.submit(same, (0, value)).result()[1]) is type(value)
    assert pool.submit(describe, value).result()[0] == type(value).__name__


def test_a_subclass_with_attributes_keeps_them(pool: mh.Pool) -> None:
    value = Whole(7)
    value.unit = "m"  # type: ignore[attr-defined]
    returned = pool.submit(same, value).result()
    assert (returned, returned.unit) == (7, "m")


@pytest.mark.parametrize("depth", [0, 1, 13, 14, 15, 16, 17, 30, 100])
def test_nested_tuples(pool: mh.Pool, depth: int) -> None:
    assert pool.submit(same, nested(depth)).result() == nested(depth)


@pytest.mark.parametrize("count", [0, 1, 3, 255, 256, 32767, 32768, 32769, 100_000])
def test_long_tuples(pool: mh.Pool, count: int) -> None:
    value = tuple(range(count))
    assert pool.submit(same, value).result() == value
    assert pool.submit(lambda *args: args, *value[:300]).result() == value[:300]


def test_identity_within_one_call(pool: mh.Pool) -> None:
    def check(first: list[int], second: list[int], both: Any, *, named: list[int]) -> Any:
        assert first is second
        assert both["x"] is first
        assert both["y"] is named
        assert first is not named
        first.append(1)
        return second, both, named

    shared: list[int] = []
    other: list[int] = []
    both = {"x": shared, "y": other}
    second, back, named = pool.submit(check, shared, shared, both, named=other).result()
    assert second == [1]
    assert back["x"] is second
    assert back["y"] is named
    assert shared == []


def test_a_list_that_contains_itself(pool: mh.Pool) -> None:
    ring: list[Any] = [1]
    ring.append(ring)

    def turns(value: list[Any]) -> list[Any]:
        assert value[1] is value
        return value

    returned = pool.submit(turns, ring).result()
    assert returned[1] is returned


def test_calls_share_nothing(pool: mh.Pool) -> None:
    def grow(items: list[int]) -> list[int]:
        items.append(len(items))
        return items

    items: list[int] = []
    assert [future.result() for future in [pool.submit(grow, items) for _ in range(20)]] == [
        [0]
    ] * 20
    assert list(pool.map(grow, [items] * 20)) == [[0]] * 20
    assert items == []


def test_arguments_are_as_they_were_at_submit(pool: mh.Pool) -> None:
    buffer = bytearray(4)
    futures = []
    for number in range(50):
        buffer[0] = number
        futures.append(pool.submit(bytes, buffer))
    assert [future.result()[0] for future in futures] == list(range(50))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(pool: mh.Pool, size: int) -> None:
    data = bytes(index * 7 % 251 for index in range(min(size, 251)))
    data = (data * (size // 251 + 1))[:size] if size else b""
    assert pool.submit(same, data).result() == data
    assert pool.submit(len, data).result() == size
    if size <= 4 << 20:
        text = "é" * (size // 2) + "x" * (size % 2)
        assert pool.submit(same, text).result() == text
        assert pool.submit(same, [data, text]).result() == [data, text]
        assert pool.submit(bytes, size).result() == bytes(size)


def test_every_size_of_a_small_result(pool: mh.Pool) -> None:
    assert list(pool.map(bytes, range(2000))) == [bytes(size) for size in range(2000)]
    assert list(pool.map(len, map(bytes, range(2000)))) == list(range(2000))


def test_many_large_ones_at_once(pool: mh.Pool) -> None:
    futures = [pool.submit(same, bytes([number]) * 1_500_000) for number in range(40)]
    for number, future in enumerate(futures):
        data = future.result()
        assert (len(data), data[0], data[-1]) == (1_500_000, number, number)


def test_large_arrays(pool: mh.Pool) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(500_000, dtype="f8").reshape(500, 1000)
    returned = pool.submit(lambda a: a * 2, array).result()
    assert (returned == array * 2).all()
    assert pool.submit(lambda a: a.flags.writeable, array).result() is True
    assert returned.flags.writeable
