"""Definitions travel from a real parent process to a real worker process.

Each case is a script. It runs in a process of its own, so that `__main__` is the script, and starts
a worker whose `__main__` is empty. A script that reaches its end prints `ok`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from manyhands import _by_value, _code, _resolve

WORKER = r"""
import struct, sys, types
from _pickle import dumps, loads

def serve():
    sys.modules["__main__"] = types.ModuleType("__main__")
    from manyhands import _resolve
    base = set(sys.modules)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    objects = {}
    while head := source.read(4):
        message = loads(source.read(struct.unpack("I", head)[0]))
        kind, *rest = message
        try:
            if kind == "load":
                number, payload = rest
                objects[number] = _resolve.load(payload)
                answer = ("ok", b"")
            elif kind == "imported":
                answer = ("ok", dumps(sorted(set(sys.modules) - base)))
            else:
                number, arguments = rest
                args, kwargs = loads(arguments)
                result = objects[number](*args, **kwargs)
                try:
                    data = dumps(result, 5)
                except Exception:
                    data = _resolve.dumps(result)
                answer = ("ok", data)
        except BaseException as error:
            answer = ("error", type(error).__name__, str(error), _resolve.note_for(error))
        data = dumps(answer)
        sink.write(struct.pack("I", len(data)) + data)
        sink.flush()
"""

HARNESS = r'''
import pickletools, struct, subprocess, sys
from _pickle import dumps, loads
from manyhands import _core, _diagnose
from manyhands import _definitions as definitions
from manyhands._errors import NotPicklable

class Definition:
    count = 0
    def __init__(self, payload, deps, stored):
        assert type(payload) is bytes and type(deps) is tuple and stored is None
        self.payload, self.deps = payload, deps
        self.number = Definition.count = Definition.count + 1

class Failed(Exception):
    pass

# A machine that stands still would end the search for what cannot be sent.
_diagnose._SECONDS = 60.0
definer = definitions.Definer(Definition, _core.hear_needs)

def main_names(data):
    """The names of `__main__` in a pickle, as the native scanner finds them."""
    found, strings = [], []
    for op, arg, _ in pickletools.genops(data):
        if op.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            strings.append(arg)
        elif op.name == "STACK_GLOBAL" and {"__main__", "__mp_main__"} & set(strings[-12:]):
            found.append(strings[-1])
    main = vars(sys.modules["__main__"])
    return [name for name in dict.fromkeys(found) if name.split(".")[0] in main]

def holds(check):
    if check[0] == "global":
        return check[1].get(check[2], definitions.MISSING) is check[3]
    if check[0] == "cell":
        try:
            return check[1].cell_contents is check[2]
        except ValueError:
            return check[2] is definitions.MISSING
    return getattr(check[1], check[2]) is check[3]

class Worker:
    def __init__(self, *options):
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c",
             f"import sys; sys.path[:] = {sys.path!r}; import worker_main; worker_main.serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.loaded = set()
        self.known = {}
        self.defined = 0

    def ask(self, *message):
        data = dumps(message, 5)
        self.process.stdin.write(struct.pack("I", len(data)) + data)
        self.process.stdin.flush()
        size = struct.unpack("I", self.process.stdout.read(4))[0]
        answer = loads(self.process.stdout.read(size))
        if answer[0] == "error":
            failure = Failed(*answer[1:3])
            failure.note = answer[3]
            raise failure
        return loads(answer[1]) if answer[1] else None

    def load(self, definition):
        for dep in definition.deps:
            self.load(dep)
        if definition.number not in self.loaded:
            self.ask("load", definition.number, definition.payload)
            self.loaded.add(definition.number)

    def define(self, fn):
        known = self.known.get(id(fn))
        if known is None or not all(map(holds, known[2])):
            self.defined += 1
            definition, checks = definer.function(fn)
            assert all(map(holds, checks)), [c for c in checks if not holds(c)]
            known = self.known[id(fn)] = (fn, definition, checks)
        return known[1]

    def call(self, fn, *args, **kwargs):
        definition = self.define(fn)
        try:
            data = dumps((args, kwargs), 5)
            deps = definer.bindings(main_names(data))
        except NotPicklable:
            raise
        except Exception:
            data, deps = definer.dumps((args, kwargs))
        for dep in deps:
            self.load(dep)
        self.load(definition)
        return self.ask("call", definition.number, data)

    def fails(self, fn, *args):
        try:
            self.call(fn, *args)
        except Failed as error:
            return error
        raise AssertionError("did not fail")

    def close(self):
        self.process.stdin.close()
        self.process.wait()

def refused(fn, *args):
    try:
        fn(*args)
    except NotPicklable as error:
        return str(error)
    raise AssertionError("was not refused")

worker = Worker()
call = worker.call
'''


class Scripts:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "worker_main.py").write_text(WORKER)
        (folder / "harness.py").write_text(HARNESS)

    def module(self, name: str, text: str) -> None:
        path = self.folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def run(self, text: str, how: str = "file") -> None:
        text = f"from harness import *\n{textwrap.dedent(text)}\nworker.close()\nprint('ok')\n"
        stdin: str | None = None
        if how == "file":
            self.module("script", text)
            arguments = [str(self.folder / "script.py")]
        elif how == "-m":
            self.module("package.__init__", "")
            self.module("package.script", text)
            arguments = ["-m", "package.script"]
        elif how == "-c":
            arguments = ["-c", text]
        else:
            arguments, stdin = ["-"], text
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1:] == ["ok"]


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


EVERYTHING = """
import math
from dataclasses import dataclass, field
from enum import Enum

SCALE = 3

@dataclass
class Point:
    x: int
    y: int = 0
    tags: list = field(default_factory=list)
    def scaled(self):
        return Point(self.x * SCALE, self.y * SCALE)

class Color(Enum):
    RED = 1

def helper(value):
    return value * SCALE

def work(point, color):
    assert type(point) is Point and color is Color.RED
    return Point(helper(point.x), math.floor(point.scaled().y))

got = call(work, Point(1, 2), Color.RED)
assert type(got) is Point and got == Point(3, 6)
assert call(lambda value: helper(value) + 1, 2) == 7
assert call(lambda: __name__) == "__main__"
"""


@pytest.mark.parametrize("how", ["file", "-c", "-m", "stdin"])
def test_everything_however_the_script_is_run(scripts: Scripts, how: str) -> None:
    scripts.run(EVERYTHING, how)


CASES: dict[str, str] = {}

CASES["importable functions, builtins and classes go by reference"] = """
import json, operator, collections
assert call(json.dumps, [1]) == "[1]"
assert call(len, "abc") == 3
assert call(operator.add, 1, 2) == 3
assert call(collections.Counter, "aa") == collections.Counter("aa")
assert call(dict.fromkeys, "ab") == {"a": None, "b": None}
definition, checks = definer.function(json.dumps)
assert definition.deps == ()
assert [check[0] for check in checks] == ["attr", "global"]
"""

CASES["simple definitions import nothing in the worker, nor cloudpickle here"] = """
K = 2
def double(x): return x * K
assert call(double, 4) == 8
assert call(lambda: double(1)) == 2
heavy = {"cloudpickle", "pickle", "inspect", "dis", "typing", "re", "traceback", "enum", "weakref"}
assert not heavy & set(worker.ask("imported")), worker.ask("imported")
assert "cloudpickle" not in sys.modules
"""

CASES["functions call each other in circles"] = """
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
assert call(even, 10) is True
assert call(odd, 10) is False
"""

CASES["a binding is made once and shared"] = """
def helper(x): return x + 1
def f(x): return helper(x)
def g(x): return helper(x) * 2
a, _ = definer.function(f)
b, _ = definer.function(g)
assert set(d.number for d in a.deps) <= set(d.number for d in b.deps)
class C: pass
one = definer.bindings(["C"])
assert definer.bindings(["C"]) == one
assert definer.bindings(["C", "C"]) == one
"""

CASES["a helper defined anew is noticed"] = """
def helper(): return "old"
def f(): return helper()
assert call(f) == "old"
assert call(f) == "old" and worker.defined == 1
def helper(): return "new"
assert call(f) == "new" and worker.defined == 2
def f(): return "other " + helper()
assert call(f) == "other new"
"""

CASES["a constant of a helper bound anew is noticed"] = """
LIMIT = 1
def helper(): return LIMIT
def f(): return helper()
assert call(f) == 1
LIMIT = 2
assert call(f) == 2
class C:
    def get(self): return LIMIT
def through(c): return c.get()
assert call(through, C()) == 2
LIMIT = 3
assert call(through, C()) == 3
assert call(len, [C()]) == 1
"""

CASES["a global that appears or goes is noticed"] = """
def f(): return LATER
error = worker.fails(f)
assert error.args[0] == "NameError"
LATER = 5
assert call(f) == 5
def g(): return len("abc")
assert call(g) == 3
def len(_): return 42
assert call(g) == 42
"""

CASES["defaults, cells and code bound anew are noticed"] = """
def f(x=1, *, y=2): return x + y
assert call(f) == 3
f.__defaults__ = (10,)
assert call(f) == 12
f.__kwdefaults__ = {"y": 20}
assert call(f) == 30
f.__code__ = (lambda x, *, y: x * y).__code__
assert call(f) == 200
def make():
    n = 0
    def get(): return n
    def put(value):
        nonlocal n
        n = value
    return get, put
get, put = make()
assert call(get) == 0
put(7)
assert call(get) == 7
"""

CASES["what an initializer assigned stays"] = """
conn = None
rows = 0
def start():
    global conn
    conn = "connected"
def task():
    global rows
    rows += 1
    return conn, rows
call(start)
assert call(task) == ("connected", 1)
assert call(task) == ("connected", 2)
def other(): return conn, rows, 1
assert call(other) == ("connected", 2, 1)
conn = "parent's new value"
rows = 100
assert call(task) == ("connected", 3)
"""

CASES["a newer value replaces only what was installed"] = """
K = 1
def get(): return K
def put(value):
    global K
    K = value
assert call(get) == 1
K = 2
assert call(get) == 2
call(put, 50)
K = 3
assert call(get) == 50
"""

CASES["a function that an initializer assigned stays"] = """
def handler(): return "default"
def start():
    global handler
    handler = lambda: "special"
def task(): return handler()
call(start)
assert call(task) == "special"
def handler(): return "second"
assert call(task) == "special"
"""

CASES["an older definition still is what it was"] = """
def f(): return 1
first = definer.function(f)[0]
def f(): return 2
second = definer.function(f)[0]
worker.load(second)
worker.load(first)
assert worker.ask("call", second.number, dumps(((), {}))) == 2
assert worker.ask("call", first.number, dumps(((), {}))) == 1
assert call(lambda: f()) == 2
"""

CASES["lambdas, closures and recursive closures"] = """
def outer(n):
    def fact(k): return 1 if k == 0 else k * fact(k - 1)
    def even(k): return k == 0 or odd(k - 1)
    def odd(k): return k != 0 and even(k - 1)
    def empty():
        return later
    if n < 0:
        later = 1
    def count():
        nonlocal n
        n += 1
        return n
    def both(): return count(), count(), n
    return fact, even, empty, both
fact, even, empty, both = outer(3)
assert call(fact, 5) == 120
assert call(even, 7) is False
assert worker.fails(empty).args[0] == "NameError"
assert call(both) == (4, 5, 5)
assert call(lambda *a, **k: (a, k), 1, b=2) == ((1,), {"b": 2})
"""

CASES["top-level closures that share a cell share it in the worker"] = """
def make():
    n = 0
    def up():
        nonlocal n
        n += 1
    def get(): return n
    return up, get
up, get = make()
def f():
    up(); up()
    return get()
assert call(f) == 2
"""

CASES["globals that share an object share it in the worker"] = """
class Store: pass
shared = []
store = Store()
store.items = shared
table = {"shared": shared}
def f():
    shared.append(1)
    return store.items is shared and table["shared"] is shared
assert call(f)
"""

CASES["attributes of functions survive"] = """
import functools
def deco(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return ("wrapped", fn(*args))
    return wrapper
@deco
def f(x: int) -> str:
    "text"
    return x
f.extra = [1]
def look():
    return (f.__name__, f.__qualname__, f.__module__, f.__doc__, f.__annotations__, f.extra,
            f.__wrapped__(1))
assert call(look) == ("f", "f", "__main__", "text", {"x": int, "return": str}, [1], 1)
assert call(f, 3) == ("wrapped", 3)
class Odd:
    def __reduce__(self): raise ValueError
def g(x: Odd() = None): return "fine"
assert call(g) == "fine"
import threading
class Locked:
    lock = threading.Lock()
def h(x: Locked = None): return "fine"
assert call(h) == "fine"
"""

CASES["lru_cache, singledispatch and partial"] = """
import functools
@functools.lru_cache(maxsize=17, typed=True)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def info(): return fib(30), fib.cache_parameters()
assert call(info) == (832040, {"maxsize": 17, "typed": True})
assert call(fib, 10) == 55
def local():
    @functools.cache
    def f(n): return 1 if n == 0 else n * f(n - 1)
    return f
assert call(lambda: 0) == 0
inner = local()
assert call(lambda n: inner(n), 5) == 120
@functools.singledispatch
def show(x): return "any"
@show.register
def _(x: int): return "int"
def dispatch(): return show(1), show("a")
assert call(dispatch) == ("int", "any")
def add(a, b): return a + b
assert call(functools.reduce, functools.partial(add), [1, 2, 3]) == 6
assert call(map, add, [1], [2]).__next__() == 3
"""

CASES["classes of all kinds"] = """
import abc, collections, dataclasses, enum, typing, functools
class Base(abc.ABC):
    registry = {}
    def __init_subclass__(cls, *, key, **kwargs):
        super().__init_subclass__(**kwargs)
        Base.registry[key] = cls
    @abc.abstractmethod
    def run(self): ...
    @property
    def name(self): return "base"
    @classmethod
    def make(cls): return cls()
    @staticmethod
    def plain(x): return x + 1
class Child(Base, key="child"):
    __slots__ = ("value", "__hidden")
    def __init__(self):
        self.value = 1
        self.__hidden = 2
    def run(self): return super().name, self.value, self.__hidden
    @functools.cached_property
    def never(self): return 1
    class Inner:
        def who(self): return __class__.__qualname__
class Virtual: pass
Base.register(Virtual)
@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Data:
    a: int
    b: list = dataclasses.field(default_factory=list, compare=False)
    c: dataclasses.KW_ONLY = None
    d: int = 5
@dataclasses.dataclass
class Initialised:
    a: dataclasses.InitVar[int]
    b: typing.ClassVar[int] = 3
    c: int = 0
    def __post_init__(self, a): self.c = a
class Tuple(typing.NamedTuple):
    x: int
    y: str = "z"
Plain = collections.namedtuple("Plain", "p q", defaults=[1])
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    def __init__(self, item: T): self.item = item
IntBox = Box[int]
class Meta(type):
    def __call__(cls, *args): return ("meta", super().__call__(*args))
class WithMeta(metaclass=Meta): pass
class Node:
    next = None
Node.root = Node()
class Proto(typing.Protocol):
    def run(self): ...
class Hashed:
    def __init__(self, k): self.k = k
    def __eq__(self, other): return self.k == other.k
    def __hash__(self): return hash(self.k)
class Typed(typing.TypedDict):
    a: int
UserId = typing.NewType("UserId", int)
class Problem(Exception):
    def __init__(self, code): super().__init__(code); self.code = code

def f(child, inner, data, point, plain, box, node, hashed):
    assert type(child) is Child and isinstance(child, Base)
    assert child.run() == ("base", 1, 2), child.run()
    assert Base.registry == {"child": Child}
    assert Child.make().plain(1) == 2
    assert type(inner) is Child.Inner and inner.who() == "Child.Inner"
    assert isinstance(Virtual(), Base)
    try:
        Base()
    except TypeError:
        pass
    else:
        raise AssertionError("abstract")
    assert data == Data(1) and Data(1) < Data(2) and Data(1).b == [] and Data(1, d=6).d == 6
    assert dataclasses.replace(data, a=3).a == 3 and dataclasses.asdict(data)["d"] == 5
    assert [x.name for x in dataclasses.fields(Data)] == ["a", "b", "d"]
    try:
        data.a = 2
    except dataclasses.FrozenInstanceError:
        pass
    assert Initialised(9).c == 9 and [x.name for x in dataclasses.fields(Initialised)] == ["c"]
    assert point == Tuple(1) and point._replace(x=2) == (2, "z") and Tuple._fields == ("x", "y")
    assert plain == Plain(5) and plain.q == 1
    assert type(box) is Box and IntBox(1).item == 1 and Box[str].__origin__ is Box
    assert Box.__parameters__ == (T,)
    assert WithMeta()[0] == "meta"
    assert type(Node.root) is Node and type(node) is Node
    assert {hashed: 1}[Hashed("k")] == 1
    assert Typed(a=1) == {"a": 1} and UserId(4) == 4
    assert Child.__module__ == Box.__module__ == "__main__"
    assert Child.run.__globals__ is globals()
    return child, inner, data, point, plain, box, node, hashed, Problem(3)

args = (Child(), Child.Inner(), Data(1), Tuple(1), Plain(5), Box(2), Node(), Hashed("k"))
got = call(f, *args)
assert [type(x) for x in got[:-1]] == [type(x) for x in args]
assert got[2:5] == args[2:5] and got[-1].code == 3 and type(got[-1]) is Problem
"""

CASES["enums of all kinds"] = """
import enum
class Planet(enum.Enum):
    EARTH = (5.9, 6.3)
    MARS = (6.4, 3.3)
    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius
    @property
    def density(self): return self.mass / self.radius
    @classmethod
    def biggest(cls): return max(cls, key=lambda p: p.radius)
class Number(enum.IntEnum):
    ONE = 1
    UN = 1
    TWO = enum.auto()
class Perm(enum.Flag):
    R = 4
    W = 2
    RW = R | W
class Word(str, enum.Enum):
    A = "a"
    def __str__(self): return "word " + self.value
class Text(enum.StrEnum):
    B = "b"
class Coord(bytes, enum.Enum):
    def __new__(cls, value, label):
        obj = bytes.__new__(cls, [value])
        obj._value_ = value
        obj.label = label
        return obj
    PX = (0, "x")
    PY = (1, "y")
    @classmethod
    def _missing_(cls, value): return cls.PX
class Lazy(enum.Enum):
    def _generate_next_value_(name, start, count, last): return name.lower()
    ALPHA = enum.auto()
def f(planet, number, perm, word, coord):
    assert planet is Planet.EARTH and planet.mass == 5.9 and planet.density > 0
    assert Planet.biggest() is Planet.EARTH and Planet((6.4, 3.3)) is Planet.MARS
    assert number is Number.UN is Number.ONE and number + 1 == 2 and list(Number) == [1, 2]
    assert perm == Perm.RW and Perm.R in perm and (Perm.R | Perm.W) is Perm.RW
    assert str(word) == "word a" and word == "a" and Text.B == "b" and str(Text.B) == "b"
    assert coord is Coord.PX and coord.label == "x" and Coord(99) is Coord.PX
    assert coord == bytes([0]) and Coord(1) is Coord.PY
    assert Lazy.ALPHA.value == "alpha" and Lazy["ALPHA"] is Lazy.ALPHA
    assert len(Planet) == 2 and repr(Planet.EARTH).startswith("<Planet.EARTH")
    return planet, number, perm, word, coord
args = (Planet.EARTH, Number.ONE, Perm.RW, Word.A, Coord.PX)
got = call(f, *args)
assert all(a is b for a, b in zip(got, args))
def local():
    class Mode(enum.Enum):
        ON = 1
        OFF = 0
    return Mode
Mode = local()
assert call(lambda m: m is Mode.ON, Mode.ON)
assert call(lambda m: m, Mode.OFF) is Mode.OFF
"""

CASES["classes refer to each other and to functions"] = """
class A:
    def make(self): return B()
    items = []
class B(A):
    partner = A
A.children = [B]
A.default = B()
def use(b=A.default): return type(b).__mro__[1] is A, type(b.make()) is B, A.children == [B]
assert call(use) == (True, True, True)
assert type(call(A.make, A())) is B
assert type(call(B)) is B
"""

CASES["local classes keep their identity"] = """
def scope():
    class Local:
        count = 0
        def __init__(self, x): self.x = x
        def me(self): return Local
    class Sub(Local):
        def __init__(self, x): super().__init__(x)
    return Local, Sub
Local, Sub = scope()
got = call(lambda o: o, Local(1))
assert type(got) is Local and got.x == 1
got = call(lambda: Sub(3))
assert type(got) is Sub and isinstance(got, Local)
def count():
    Local.count += 1
    return Local.count
assert [call(count), call(count)] == [1, 2]
assert call(lambda o: type(o).count, Local(2)) == 2
assert call(lambda o: o.me() is type(o), Local(2))
"""

CASES["a class defined anew"] = """
class C:
    def who(self): return 1
old = C()
def ask(c): return c.who()
def new(): return C().who()
assert call(ask, old) == 1 and call(new) == 1
class C:
    def who(self): return 2
assert call(ask, C()) == 2 and call(new) == 2
assert call(ask, old) == 1
assert type(call(lambda c: c, old)) is type(old)
"""

CASES["results that plain pickle refuses"] = """
def f():
    class Local:
        def __init__(self): self.x = 5
    return lambda y: y + 1, Local()
fn, obj = call(f)
assert fn(1) == 2 and obj.x == 5
def be_patient():
    from manyhands import _diagnose
    _diagnose._SECONDS = 60.0
call(be_patient)
def g(): return (i for i in range(3))
error = worker.fails(g)
assert error.args == ("NotPicklable", "the result is a generator"), error.args
K = 10
def h(): return lambda: K
assert call(h)() == 10
"""

CASES["callables in arguments"] = """
import functools
def apply(fn, *args): return fn(*args)
K = 5
def add(a, b): return a + b + K
class C:
    def __init__(self, n): self.n = n
    def method(self, x): return self.n + x + K
    def __call__(self, x): return x
assert call(apply, add, 1, 2) == 8
assert call(apply, functools.partial(add, 1), 2) == 8
assert call(apply, C(1).method, 1) == 7
assert call(apply, C(1), 1) == 1
assert call(apply, lambda x: x + K, 1) == 6
assert call(apply, [C, add][0], 3).n == 3
K = 6
assert call(apply, add, 1, 2) == 9
assert call(apply, lambda: add(0, 0)) == 6
"""

CASES["modules as globals"] = """
import json, os.path as path, xml.dom.minidom, collections.abc
import xml.sax as sax
def f():
    return (json.dumps(1), path.basename("a/b"), sax.__name__,
            xml.dom.minidom.parseString("<a/>").documentElement.tagName,
            issubclass(list, collections.abc.Sequence))
assert call(f) == ("1", "b", "xml.sax", "a", True)
import types
dynamic = types.ModuleType("dynamic")
exec("state = []\\ndef add(x):\\n    state.append(x)\\n    return len(state)", dynamic.__dict__)
def g(): return dynamic.add(1), dynamic.state
assert call(g) == (1, [1])
"""

CASES["functions of namespaces that cannot be imported"] = """
space = {"__name__": "somewhere", "K": 2}
exec('''
counter = 0
def up():
    global counter
    counter += K
    return counter
def get(): return counter
def again(): return up()
''', space)
assert call(space["up"]) == 2
assert call(space["up"]) == 4
assert call(space["get"]) == 4
assert call(space["again"]) == 6
space["K"] = 10
assert call(space["up"]) == 16
"""

CASES["globals that cannot be sent"] = """
import sqlite3, threading, sys, logging
conn = sqlite3.connect(":memory:")
lock = threading.Lock()
log = logging.getLogger("x")
class Holder: pass
holder = Holder()
holder.deep = [lock]
def fine(use=False):
    log.debug("x")
    if use:
        return conn
    return "fine"
assert call(fine) == "fine"
error = worker.fails(fine, True)
assert error.args[0] == "NameError", error.args
assert error.note == ("the global 'conn' is a sqlite3.Connection, which cannot be sent to a "
                      "worker; create it in an initializer"), error.note
def locked():
    with lock: pass
assert "'lock' is a thread lock" in worker.fails(locked).note
def deep(): return holder
assert "'holder' is a Holder (holder.deep[0] is a thread lock)" in worker.fails(deep).note
def start():
    global conn
    conn = "made here"
call(start)
assert call(fine, True) == "made here"
conn = "sendable now"
assert call(fine, True) == "made here"
out = sys.stdout
assert call(lambda: out is sys.stdout)
"""

CASES["what cannot be sent is refused by name"] = """
import threading
lock = threading.Lock()
def make():
    guard = threading.Lock()
    def f(): return guard
    return f
message = refused(definer.function, make())
assert "captures `guard`, a thread lock" in message, message
def bad(x=lock): return x
message = refused(definer.function, bad)
assert "thread lock" in message, message
class C:
    shared = lock
message = refused(definer.bindings, ["C"])
assert message == "C.shared is a thread lock", message
message = refused(definer.dumps, [1, {"a": lock}], "args")
assert message == "args[1]['a'] is a thread lock", message
def uses(): return C
assert "'C' is" in worker.fails(uses).note
assert call(lambda: 1) == 1
"""

CASES["modules to preload"] = """
import json, functools, decimal
from xml.etree import ElementTree
from manyhands._code import modules_named_by
def helper(x): return ElementTree.fromstring(x)
def f(x): return json.dumps(helper(x))
value = decimal.Decimal(1)
named = modules_named_by(f)
assert named[0] == "json" and "xml.etree.ElementTree" in named, named
assert "__main__" not in named and "builtins" not in named
assert "json" in modules_named_by(functools.partial(f, value))
assert "decimal" in modules_named_by(functools.partial(f, value))
assert "decimal" in modules_named_by(lambda: value)
class C:
    def run(self): return json.loads("1")
    def __call__(self): return value
assert "json" in modules_named_by(C().run)
assert "decimal" in modules_named_by(C())
assert modules_named_by(json.dumps)[0] == "json"
assert modules_named_by(len) == []
assert modules_named_by(5) == []
"""

CASES["async functions and generators"] = """
async def f(x): return x + K
K = 1
def run(x):
    try:
        f(x).send(None)
    except StopIteration as stop:
        return stop.value
assert call(run, 1) == 2
def gen(n):
    yield from range(n)
assert call(lambda n: list(gen(n)), 3) == [0, 1, 2]
"""

CASES["the script's file name is known"] = """
def f(): return __file__
assert call(f) == __file__
"""

CASES["names reached through EXTENDED_ARG"] = """
lines = [f"v{i} = {i}" for i in range(700)]
exec("\\n".join(lines))
exec("def f(): return [" + ", ".join(f"v{i}" for i in range(700)) + "]")
assert call(f) == list(range(700))
"""

CASES["an object that pickles as a global name"] = """
class Sentinel:
    def __reduce__(self): return "UNSET"
UNSET = Sentinel()
def f(x=UNSET): return x is UNSET
assert call(f) is True
assert call(f, UNSET) is True
assert call(f, 1) is False
"""

CASES["data that holds functions"] = """
K = 1
class Keeper: pass
keeper = Keeper()
keeper.fn = lambda: K
class C:
    handlers = {str(i): (lambda i=i: i + K) for i in range(100)}
def helper(): return K
TABLE = {"a": helper}
def f(): return keeper.fn(), C.handlers["7"](), TABLE["a"]()
assert call(f) == (1, 8, 1)
K = 2
assert call(f) == (2, 9, 2)
"""

CASES["code that runs while data is unpickled finds its globals"] = """
import threading
DEFAULT = {"a": 1}
def fresh(): return threading.Lock()
class Guarded:
    def __init__(self): self.lock = fresh()
    def __getstate__(self): return {}
    def __setstate__(self, state): self.lock, self.d = fresh(), DEFAULT
class Key:
    def __init__(self, n): self.n = n
    def __hash__(self): return salted(self.n)
    def __eq__(self, other): return self.n == other.n
def salted(n): return hash((SALT, n))
SALT = 7
keyed = {Key(1): "one"}
guarded = Guarded()
def f(): return guarded.d is DEFAULT, keyed[Key(1)]
assert call(f) == (True, "one")
assert call(len, {Key(3): 1}) == 1
"""

CASES["a class whose base cannot be sent"] = """
import threading
class Base:
    lock = threading.Lock()
class Child(Base): pass
def f(flag): return Child() if flag else "fine"
assert call(f, False) == "fine"
note = worker.fails(f, True).note
assert note == ("the global 'Child' cannot be sent (it needs Base of __main__, and Base.lock is "
                "a thread lock); create it in an initializer"), note
message = refused(call, f, Child())
assert message == "Child cannot be sent: it needs Base of __main__, and Base.lock is a thread lock"
"""

CASES["a child of multiprocessing"] = """
main = sys.modules["__main__"]
sys.modules["__mp_main__"] = main
main.__name__ = "__mp_main__"
class C:
    def get(self): return K
K = 3
def helper(c): return c.get()
def f(c): return helper(c), c
number, got = call(lambda c: (helper(c), c), C())
assert number == 3 and type(got) is C
assert call(f, C())[0] == 3
"""

CASES["weak collections and mapping proxies in globals"] = """
import types, weakref
class Key: pass
key = Key()
seen = weakref.WeakKeyDictionary({key: 1})
every = weakref.WeakSet([key])
proxy = types.MappingProxyType({"a": 1})
def f(): return proxy["a"], seen[key], key in every
assert call(f) == (1, 1, True)
"""


@pytest.mark.parametrize("name", CASES)
def test_case(scripts: Scripts, name: str) -> None:
    scripts.run(CASES[name])


def test_an_edited_module_is_never_run_stale(scripts: Scripts) -> None:
    """The worker imports what is on disk now; the parent has what was there at its import."""
    text = "def helper():\n    return {0!r}\ndef f():\n    return {0!r}, helper()\n"
    scripts.module("mod", text.format("old"))
    scripts.run(
        f"""
        import os, pathlib, mod
        path = pathlib.Path(mod.__file__)
        path.write_text({text.format("newer")!r})
        assert call(mod.f) == ("old", "old")
        """
    )


def test_a_reloaded_module_is_never_run_stale(scripts: Scripts) -> None:
    text = "def helper():\n    return {0!r}\ndef f():\n    return 'f', helper()\n"
    scripts.module("mod", text.format("old"))
    scripts.run(
        f"""
        import importlib, pathlib, mod
        assert call(mod.f) == ("f", "old")
        pathlib.Path(mod.__file__).write_text({text.format("newer")!r})
        importlib.reload(mod)
        assert call(mod.f) == ("f", "newer")
        """
    )


def test_a_reloaded_module_may_have_new_names(scripts: Scripts) -> None:
    scripts.module("mod", "def f():\n    return 'old'\n")
    newer = (
        "import json\nK = 5\ndef added(x):\n    return json.dumps(x)\n"
        "def f():\n    return added([K]), json.loads('1')\n"
    )
    scripts.run(
        f"""
        import importlib, pathlib, mod
        assert call(mod.f) == "old"
        pathlib.Path(mod.__file__).write_text({newer!r})
        importlib.reload(mod)
        assert call(mod.f) == ("[5]", 1)
        """
    )


def test_a_stale_function_that_cannot_be_sent_is_an_error(scripts: Scripts) -> None:
    text = "import threading\ndef f(x=threading.Lock()):\n    return {0!r}\n"
    scripts.module("mod", text.format("old"))
    scripts.run(
        f"""
        import pathlib, mod
        pathlib.Path(mod.__file__).write_text({text.format("newer")!r})
        error = worker.fails(mod.f)
        assert error.args[0] == "RuntimeError" and "mod.f" in error.args[1], error.args
        assert "Restart" in error.args[1]
        """
    )


def test_a_patched_function_is_sent_as_what_it_is(scripts: Scripts) -> None:
    scripts.module("mod", "def f():\n    return 'f'\ndef g():\n    return 'g'\n")
    scripts.run(
        """
        import mod
        original = mod.f
        assert call(mod.f) == "f"
        mod.f = mod.g
        assert call(mod.f) == "g"
        assert call(original) == "f"
        mod.f = lambda: "patched"
        assert call(mod.f) == "patched"
        mod.f = original
        assert call(mod.f) == "f"
        """
    )


def test_closures_of_a_module_run_in_its_globals(scripts: Scripts) -> None:
    scripts.module(
        "mod",
        """
        import functools
        STATE = []
        def adder(n):
            def add(x):
                STATE.append(x)
                return x + n, len(STATE)
            return add
        def size():
            return len(STATE)
        def deco(fn):
            @functools.wraps(fn)
            def wrapper(*args):
                STATE.append(args)
                return fn(*args)
            return wrapper
        """,
    )
    scripts.run(
        """
        import mod
        assert call(mod.adder(10), 1) == (11, 1)
        assert call(mod.size) == 1
        @mod.deco
        def f(x): return x
        assert call(f, 1) == 1
        assert call(mod.size) == 2
        """
    )


def test_a_base_class_of_a_module_is_not_told_of_subclasses_twice(scripts: Scripts) -> None:
    scripts.module(
        "mod",
        """
        class Base:
            def __init_subclass__(cls, *, key):
                cls.key = key
        """,
    )
    scripts.run(
        """
        import mod
        class Child(mod.Base, key=5):
            pass
        def f(child): return child.key, Child.__bases__ == (mod.Base,)
        assert call(f, Child()) == (5, True)
        """
    )


def test_a_relative_import_inside_a_function(scripts: Scripts) -> None:
    scripts.module("package.other", "VALUE = 3\n")
    scripts.run(
        """
        def f():
            from .other import VALUE
            return VALUE
        assert call(f) == 3
        """,
        "-m",
    )


def test_a_module_the_worker_cannot_import(scripts: Scripts) -> None:
    scripts.run(
        """
        import importlib.util, pathlib
        path = pathlib.Path("elsewhere.src")
        path.mkdir()
        (path / "hidden.py").write_text("def f(): return 1\\n")
        sys.path.append(str(path))
        import hidden
        error = worker.fails(hidden.f)
        assert error.args[0] == "ModuleNotFoundError" and "hidden.f" in error.args[1], error.args
        """
    )


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text(
        "def f(x):\n    return x in {'a', 'b', 'c', 1, None}, (lambda: 'text' * 3)\n"
    )
    program = "import mod; from manyhands import _resolve; print(_resolve.fingerprint(mod.f).hex())"
    found = set()
    for seed in ("0", "1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_the_fingerprint_knows_behaviour_only() -> None:
    def compiled(text: str, name: str = "a.py") -> Any:
        namespace: dict[str, Any] = {}
        exec(compile(text, name, "exec"), namespace)
        return _resolve.fingerprint(namespace["f"])

    base = compiled("def f(x):\n    return x + 1\n")
    assert compiled("\n\n# moved\ndef f(x):\n    return x + 1\n", "b.py") == base
    assert compiled("def f(x=3):\n    return x + 1\n") == base
    for other in (
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(y):\n    return y + 1\n",
        "def f(x):\n    return x + 1.0\n",
        "def f(*x):\n    return x + 1\n",
    ):
        assert compiled(other) != base
    nested = "def f(x):\n    return lambda: {}\n"
    assert compiled(nested.format(1)) != compiled(nested.format(2))
    assert _resolve.fingerprint(len) is None


def test_private_names_of_the_standard_library_that_we_rely_on() -> None:
    import _abc  # type: ignore[import-not-found, unused-ignore]
    import abc
    import dataclasses

    for name in _by_value._SENTINEL_NAMES:
        assert hasattr(dataclasses, name), name
    assert isinstance(abc.ABC.__dict__["_abc_impl"], object)
    assert len(_abc._get_dump(abc.ABC)) >= 1
    cloudpickle = pytest.importorskip("cloudpickle")
    assert len(cloudpickle.CloudPickler.dispatch_table) > 5
    assert _by_value.cloudpickle_reducers()


def test_the_names_a_function_loads() -> None:
    def f() -> Any:
        import os

        class Inner(Base):  # type: ignore[name-defined, misc]  # noqa: F821
            value = CONSTANT  # type: ignore[name-defined]  # noqa: F821

        return os.path, [each.attribute for each in items], Inner  # type: ignore[name-defined]  # noqa: F821

    assert set(_code.global_names(f.__code__)) >= {"Base", "CONSTANT", "items"}
    assert not {"os", "path", "attribute", "each"} & set(_code.global_names(f.__code__))


def test_the_workers_module_imports_next_to_nothing() -> None:
    program = (
        "import sys; before = set(sys.modules); path = sys.argv[1]\n"
        "space = {'__name__': 'resolve'}\n"
        "exec(compile(open(path).read(), path, 'exec'), space)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", program, str(_resolve.__file__)],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.split())
    assert "_pickle" in imported
    assert not imported & {"typing", "re", "enum", "pickle", "inspect", "weakref", "traceback"}


def test_note_for_is_only_about_missing_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_resolve.MISSING_GLOBALS, "conn", "is a sqlite3.Connection")
    assert _resolve.note_for(ValueError("x")) is None
    assert _resolve.note_for(NameError("x", name="other")) is None
    note = _resolve.note_for(NameError("x", name="conn"))
    assert note is not None
    assert note.startswith("the global 'conn' is a sqlite3.Connection, ")
