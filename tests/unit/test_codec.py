"""The codec against pickle: what comes out of a map is what a pickle round trip would give.

Equal values, of equal types, with the same objects in the same places. What the worker saw is
compared as well as what came back from it.
"""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import enum
import math
import pickle
import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

import manyhands as mh
from programs import output_of

T = TypeVar("T")

# ------------------------------------------------------------------------- classes of many kinds


class Plain:
    def __init__(self, *values: Any) -> None:
        self.first, *self.rest = values or (None,)


class Child(Plain):
    """Has more in it than its parent."""

    extra = "a class attribute"

    @property
    def both(self) -> Any:
        return self.first, self.rest

    @both.setter
    def both(self, value: Any) -> None:
        raise AssertionError("pickle sets no properties")


@dataclasses.dataclass
class Data:
    left: Any
    right: Any = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    left: Any
    right: Any = None


@dataclasses.dataclass(slots=True)
class SlotsData:
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    left: Any


class Slots:
    __slots__ = ("one",)

    def __init__(self, one: Any) -> None:
        self.one = one


class SlotsAndDict:
    """As large as a plain class, on some versions of Python."""

    __slots__ = ("__dict__", "one")

    def __init__(self, one: Any) -> None:
        self.one = one
        self.other = [one]


class SlotsOfTheParent(SlotsAndDict):
    pass


class DictAddedToSlots(Slots):
    def __init__(self, one: Any) -> None:
        super().__init__(one)
        self.more = {"one": one}


class SlotsAddedToDict(Plain):
    __slots__ = ("hidden",)

    def __init__(self, one: Any) -> None:
        super().__init__(one)
        self.hidden = [one]


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


class AnyAttribute:
    """Has an attribute of every name that is no special one."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"made up: {name}"


class SetsNothing:
    """Pickle does not call it."""

    def __init__(self, one: Any) -> None:
        self.__dict__["one"] = one

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("nothing is set")


class Reduces:
    def __init__(self, one: Any) -> None:
        self.one = one

    def __reduce__(self) -> Any:
        return Reduces, ((self.one, "reduced"),)


class ReducesEx:
    def __init__(self, one: Any) -> None:
        self.one = one

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ReducesEx, ((self.one, "reduced"),)


class GetsState:
    def __init__(self, one: Any) -> None:
        self.one = one
        self.cache = "not sent"

    def __getstate__(self) -> Any:
        return {"one": self.one}


class SetsState:
    def __init__(self, one: Any) -> None:
        self.one = one

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state, was_set=True)


class NewArguments:
    def __new__(cls, one: Any) -> NewArguments:
        made = super().__new__(cls)
        made.from_new = one
        return made

    from_new: Any

    def __getnewargs__(self) -> Any:
        return (self.from_new,)


class OwnNew:
    def __new__(cls, *args: Any) -> OwnNew:
        made = super().__new__(cls)
        made.born = True
        return made

    born: bool

    def __init__(self, one: Any = None) -> None:
        self.one = one


class Registered:
    """Pickled by a function that `copyreg` knows."""

    def __init__(self, one: Any) -> None:
        self.one = one


def _reduce_registered(registered: Registered) -> Any:
    return Registered, ((registered.one, "by copyreg"),)


copyreg.pickle(Registered, _reduce_registered)


class InstanceReduces:
    """The instance itself has a say."""

    def __init__(self, one: Any) -> None:
        self.one = one
        self.__reduce_ex__ = lambda protocol: (InstanceReduces._made, (one,))  # type: ignore[method-assign]

    @staticmethod
    def _made(one: Any) -> Any:
        made = Plain(one)
        made.made_by_instance = True  # type: ignore[attr-defined]
        return made


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.called = True
        return made


class WithMeta(metaclass=Meta):
    def __init__(self, one: Any) -> None:
        self.one = one


class EqualToAll:
    def __init__(self, one: Any) -> None:
        self.one = one

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Outer:
    class Inner:
        def __init__(self, one: Any) -> None:
            self.one = one


class MyDict(dict[Any, Any]):
    pass


class MyList(list[Any]):
    pass


class MyInt(int):
    pass


class MyStr(str):
    pass


class MyTuple(tuple[Any, ...]):
    pass


class Point(NamedTuple):
    x: Any
    y: Any


class Colour(enum.Enum):
    RED = "red"
    BLUE = (1, 2)


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


_MAKERS: list[Callable[[Any], Any]] = [
    Plain,
    Child,
    Data,
    Frozen,
    SlotsData,
    FrozenSlots,
    Slots,
    SlotsAndDict,
    SlotsOfTheParent,
    DictAddedToSlots,
    SlotsAddedToDict,
    Box,
    Box[int],
    AnyAttribute,
    SetsNothing,
    Reduces,
    ReducesEx,
    GetsState,
    SetsState,
    NewArguments,
    OwnNew,
    Registered,
    InstanceReduces,
    WithMeta,
    EqualToAll,
    Outer.Inner,
    lambda one: MyDict(one=one),
    lambda one: MyList([one]),
    lambda one: MyTuple([one]),
    lambda one: MyInt(7),
    lambda one: MyStr("text"),
    lambda one: Point(one, 2),
    lambda one: Colour.BLUE,
    lambda one: Level.LOW | Level.HIGH,
    lambda one: types.SimpleNamespace(one=one),
    lambda one: collections.OrderedDict(b=one, a=one),
    lambda one: collections.defaultdict(list, one=one),
    lambda one: ValueError(one, "text"),
]

# ------------------------------------------------------------------------------- what is compared


def shape(value: Any) -> str:
    """A value in words: types, contents, and which objects are met again."""
    words: list[str] = []
    met: dict[int, int] = {}
    kept: list[Any] = []  # an object that goes would leave its id to another

    def walk(value: Any) -> None:
        kind = type(value)
        if value is None or kind in (bool, int, str, bytes) or isinstance(value, enum.Enum):
            words.append(f"{kind.__qualname__}:{value!r}")
            return
        if isinstance(value, type) or kind.__module__ == "typing":
            words.append(repr(value))
            return
        if kind is float:
            words.append(f"float:{value.hex()}")
            return
        if kind is tuple and not value:
            words.append("()")
            return
        if id(value) in met:
            words.append(f"#{met[id(value)]}")
            return
        met[id(value)] = len(met)
        kept.append(value)
        words.append(f"{kind.__module__}.{kind.__qualname__}(")
        if isinstance(value, dict):
            for key, content in dict.items(value):
                walk(key)
                walk(content)
        elif isinstance(value, (list, tuple)):
            for content in tuple(value):
                walk(content)
        elif isinstance(value, (int, str)):
            words.append(repr(value))
        elif isinstance(value, BaseException):
            walk(value.args)
        for base in kind.__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(base, name):
                    words.append(f"slot {name}")
                    walk(getattr(value, name, "<nothing>"))
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            for name, content in attributes.items():
                words.append(f".{name}")
                walk(content)
        words.append(")")

    walk(value)
    return " ".join(words)


def same(value: Any) -> Any:
    return value


def check(pool: mh.Pool, values: list[Any]) -> None:
    """The worker sees of each value, and gives back, what pickle would."""
    expected = [shape(pickle.loads(pickle.dumps(value, 5))) for value in values]
    seen = list(pool.map(shape, values))
    for value, wanted, got in zip(values, expected, seen, strict=True):
        assert got == wanted, repr(value)
    # What pickle changes, it changes a second time on the way back.
    expected = [
        shape(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(value, 5)), 5)))
        for value in values
    ]
    back = list(pool.map(same, values))
    for value, wanted, result in zip(values, expected, back, strict=True):
        assert shape(result) == wanted, repr(value)


# ----------------------------------------------------------------------------- values at random


class Values:
    """Makes values, the same ones for the same seed."""

    def __init__(self, seed: int, makers: list[Callable[[Any], Any]]) -> None:
        self._choose = random.Random(seed)
        self._makers = makers
        self._made: list[Any] = []

    def scalar(self) -> Any:
        choose = self._choose
        return choose.choice(
            [
                None,
                True,
                False,
                0,
                choose.randint(-10, 10),
                choose.randint(-(2**31) - 2, -(2**31) + 2),
                choose.randint(2**31 - 2, 2**31 + 2),
                choose.randint(2**63 - 2, 2**63 + 2),
                choose.randint(-(2**63) - 2, -(2**63) + 2),
                choose.getrandbits(300),
                choose.uniform(-1e300, 1e300),
                -0.0,
                math.inf,
                -math.inf,
                math.nan,
                5e-324,
                "",
                "".join(map(chr, choose.sample(range(0xD7FF), choose.randint(0, 40)))),
                chr(choose.randint(0xD800, 0xDFFF)),
                "\0",
                "𝒳" * choose.randint(1, 5),
                b"",
                choose.randbytes(choose.randint(1, 60)),
            ]
        )

    def key(self) -> Any:
        choose = self._choose
        kind = choose.randrange(4)
        if kind == 0:
            return choose.choice(["id", "name", "a" * 32, "a" * 33, "ключ", "\ud800", ""])
        if kind == 1:
            return (choose.randint(0, 5), choose.choice(["x", "y"]))
        return self.scalar()

    def value(self, depth: int = 5) -> Any:
        choose = self._choose
        if self._made and choose.random() < 0.12:
            return choose.choice(self._made)  # met again
        kind = choose.randrange(9) if depth else 0
        made: Any
        if kind < 3:
            return self.scalar()
        some = range(choose.choice([0, 1, 2, 2, 3, 5]))
        if kind < 5:
            made = [self.value(depth - 1) for _ in some]
        elif kind == 5:
            made = tuple(self.value(depth - 1) for _ in some)
        elif kind < 8 or not self._makers:
            made = {self.key(): self.value(depth - 1) for _ in some}
        else:
            made = choose.choice(self._makers)(self.value(depth - 1))
        if choose.random() < 0.3:
            self._made.append(made)
        return made

    def some(self, count: int) -> Iterator[Any]:
        for _ in range(count):
            self._made.clear()  # items share nothing with each other
            yield self.value()


@pytest.mark.parametrize("seed", range(6))
def test_trees_at_random(pool: mh.Pool, seed: int) -> None:
    check(pool, list(Values(seed, []).some(400)))


@pytest.mark.parametrize("seed", range(6))
def test_instances_at_random(pool: mh.Pool, seed: int) -> None:
    check(pool, list(Values(seed, _MAKERS).some(400)))


@pytest.mark.parametrize("make", _MAKERS, ids=lambda make: getattr(make, "__qualname__", str(make)))
def test_each_kind_of_class(pool: mh.Pool, make: Callable[[Any], Any]) -> None:
    shared = ["shared"]
    twice = make(shared)
    check(pool, [make(1), [make("a"), make([2])], [twice, twice], [shared, make(shared)]])


# -------------------------------------------------------------------------------- values by hand


def test_objects_that_refer_to_themselves(pool: mh.Pool) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    ring: dict[str, Any] = {}
    ring["ring"] = [ring]
    plain = Plain(1)
    plain.me = plain  # type: ignore[attr-defined]
    in_a_tuple: Any = ([],)
    in_a_tuple[0].append(in_a_tuple)
    its_own_dict = Plain(1)
    its_own_dict.attributes = its_own_dict.__dict__  # type: ignore[attr-defined]
    check(pool, [loop, ring, plain, in_a_tuple, its_own_dict, [plain, plain.__dict__]])


def test_objects_that_share_their_attributes(pool: mh.Pool) -> None:
    one, other = Plain([1]), Plain([2])
    other.__dict__ = one.__dict__
    check(pool, [[one, other], [other, one.__dict__]])


def test_the_same_object_in_one_item(pool: mh.Pool) -> None:
    row, pair = [1], (1, [2])
    table = {"row": row}
    check(
        pool,
        [
            [row, row],
            (row, row),
            {"a": row, "b": row},
            [pair, pair],
            [table, table],
            [table, row],
            [[[row]], (row,)],
            [Plain(row), Plain(row)],
            Data(row, row),
            [row] * 1000,
        ],
    )


def test_many_objects_that_others_hold_too(pool: mh.Pool) -> None:
    """More of them in one item than the codec looks out for."""
    rows = [[number] for number in range(500)]
    check(
        pool, [rows, [*rows, rows[499]], [*rows, rows[0]], {n: row for n, row in enumerate(rows)}]
    )


@pytest.mark.parametrize("depth", [1, 30, 61, 62, 63, 64, 65, 66, 100, 150])
def test_values_in_values(pool: mh.Pool, depth: int) -> None:
    def nested(wrap: Callable[[Any], Any], inner: Any) -> Any:
        for _ in range(depth):
            inner = wrap(inner)
        return inner

    values = [
        nested(wrap, inner)
        for wrap in (
            lambda inner: [inner],
            lambda inner: (inner,),
            lambda inner: {"inner": inner},
            Plain,
            lambda inner: [Plain(inner)],
        )
        for inner in (1, [], (), {}, Plain(1), {"a": [1]})
    ]
    check(pool, values)


def test_dicts_keep_their_order(pool: mh.Pool) -> None:
    orders = [list("abc"), list("cab"), [3, 1, 2], [None, True, 0.5, "x", b"x", (1,)]]
    values = [dict.fromkeys(order, 1) for order in orders]
    assert [list(value) for value in pool.map(same, values)] == orders
    assert list(pool.map(list, values)) == orders


def test_keys_that_are_equal_to_others(pool: mh.Pool) -> None:
    """NaN is not equal to itself, and 1, 1.0 and True are one key."""
    check(pool, [{math.nan: 1, float("nan"): 2}, {1: "one"}, {1.0: "one"}, {True: "one"}])


def test_sizes_around_the_limits(pool: mh.Pool) -> None:
    sizes = [0, 1, 16_374, 16_379, 16_380, 16_384, 32_767, 32_768, 32_769, 70_000]
    check(pool, [make(size) for size in sizes for make in (bytes, lambda size: "é" * size)])
    check(pool, [[bytes(size)] * 3 for size in sizes])
    check(pool, [list(range(size // 4)) for size in sizes])
    check(pool, [{number: str(number) for number in range(size // 8)} for size in sizes])


def test_attributes_of_odd_names(pool: mh.Pool) -> None:
    values = []
    for name in ("", "a b", "__x", "__dict__", "\ud800", "ü", "_Plain__mangled", "__setstate"):
        plain = Plain(1)
        plain.__dict__[name] = [name]
        values.append(plain)
    numbered = Plain(1)
    numbered.__dict__[5] = "five"  # type: ignore[index]
    check(pool, [*values, numbered])


def test_attributes_that_are_no_plain_dict(pool: mh.Pool) -> None:
    plain = Plain(1)
    plain.__dict__ = MyDict(one=[1])
    check(pool, [plain])


def test_a_class_that_gets_a_say_between_two_maps(
    pool: mh.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [Plain(number) for number in range(100)]
    check(pool, values)
    monkeypatch.setattr(Plain, "__getstate__", lambda self: {"first": "replaced"})
    assert {value.first for value in pool.map(same, values)} == {"replaced"}
    monkeypatch.undo()
    check(pool, values)
    monkeypatch.setitem(copyreg.dispatch_table, Plain, lambda plain: (str, ("reduced",)))
    assert set(pool.map(same, values)) == {"reduced"}
    monkeypatch.undo()
    check(pool, values)


def test_classes_that_only_the_parent_has(pool: mh.Pool) -> None:
    class Local:
        def __init__(self, one: Any) -> None:
            self.one = one

        def double(self) -> Any:
            return self.one * 2

    values = [Local(number) for number in range(50)]
    assert list(pool.map(Local.double, values)) == [2 * number for number in range(50)]
    assert all(type(value) is Local for value in pool.map(same, values))
    mixed = [value for number in range(50) for value in (number, Local(number), Plain(number))]
    results = list(pool.map(same, mixed))
    assert [type(result) for result in results] == [int, Local, Plain] * 50


def test_classes_of_main_that_are_defined_anew(tmp_path: Path) -> None:
    """Each map runs with the class as it is then, as a task does."""
    program = """
        import manyhands as mh

        def look(item):
            return item.look(), type(item).__name__

        with mh.Pool(2) as pool:
            for version in range(4):
                class Item:
                    version = version
                    def __init__(self, number):
                        self.number = number
                    def look(self):
                        return self.version, self.number

                items = [Item(number) for number in range(300)]
                wanted = [((version, number), "Item") for number in range(300)]
                assert list(pool.map(look, items)) == wanted
                results = list(pool.map(lambda item: item, items))
                assert all(type(result) is Item for result in results)
                assert [result.look() for result in results] == [look for look, _ in wanted]
                mixed = [5, Item(1), "x", [Item(2)], {"a": Item(3)}]
                assert [type(result) for result in pool.map(lambda item: item, mixed)] == [
                    int, Item, str, list, dict]
        print("fine")
    """
    assert output_of(tmp_path, program) == "fine\n"


def test_a_class_of_main_that_cannot_be_sent_fails_its_items_alone(tmp_path: Path) -> None:
    program = """
        import threading
        import manyhands as mh
        from manyhands import _diagnose

        _diagnose._SECONDS = 60.0  # a machine may stand still

        class Bad:
            lock = threading.Lock()

        class Good:
            pass

        def kind(item):
            return type(item).__name__

        with mh.Pool(2) as pool:
            items = [1, Good(), Bad(), Good(), [Bad(), {3}], 5] * 20
            results = list(pool.map(kind, items, on_error="return"))
            for index, (item, result) in enumerate(zip(items, results, strict=True)):
                if index % 6 in (2, 4):
                    assert isinstance(result, mh.Failure), result
                    assert (result.index, result.cause) == (index, "not_picklable"), result
                    assert "Bad.lock is a thread lock" in str(result.exception)
                else:
                    assert result == kind(item), (index, result)
        print("fine")
    """
    assert output_of(tmp_path, program) == "fine\n"
