# ruff: noqa: PT017 - these programs run without pytest.
"""Scripts without a guard, and functions that other pools cannot send (P31, P32).

pytorch#20375 calls the guard a loaded footgun; pyBKT-examples#2 hangs without it; dacapo#326,
bayesmark#8, rpyc#412 and multiprocess#19 are about lambdas, closures and local classes.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import os
import sys
import textwrap
from typing import NamedTuple

import pytest

import manyhands as mh
from programs import program, program_test, run_command


@program
def script() -> None:
    # Each start of this program says so; a worker that ran it again would say so, too.
    os.write(1, b"started\n")

    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 0

        def moved(self, by):
            return Point(self.x + by, self.y)

    def double(n):
        return 2 * n

    def outer(n):
        return double(n) + offset

    offset = 100
    with mh.Pool(2) as pool:
        assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
        assert pool.submit(outer, 1).result(20) == 102
        assert pool.submit(lambda n: n - 1, 5).result(20) == 4
        assert pool.submit(Point(1).moved, 5).result(20) == Point(6)
        assert list(pool.map(Point, [1, 2], [3, 4])) == [Point(1, 3), Point(2, 4)]
    assert list(mh.map(double, [21])) == [42]
    os.write(1, b"ended\n")


def _ways(source: str) -> dict[str, tuple[list[str], dict[str, object]]]:
    python = sys.executable
    return {
        "file": ([python, "script.py"], {"files": {"script.py": source}}),
        "file-with-a-strange-name": (
            [python, "a script, version 2.0"],
            {"files": {"a script, version 2.0": source}},
        ),
        "file-elsewhere": ([python, "there/script.py"], {"files": {"there/script.py": source}}),
        "module": ([python, "-m", "script"], {"files": {"script.py": source}}),
        "module-of-a-package": (
            [python, "-m", "package.script"],
            {"files": {"package/__init__.py": "", "package/script.py": source}},
        ),
        "package": ([python, "-m", "package"], {"files": {"package/__main__.py": source}}),
        "directory": ([python, "package"], {"files": {"package/__main__.py": source}}),
        "command": ([python, "-c", source], {}),
        "stdin": ([python], {"stdin": source}),
        "stdin-by-dash": ([python, "-"], {"stdin": source}),
        "isolated": ([python, "-I", "script.py"], {"files": {"script.py": source}}),
        "optimized": ([python, "-OO", "script.py"], {"files": {"script.py": source}}),
        "development-mode": ([python, "-X", "dev", "script.py"], {"files": {"script.py": source}}),
        "warnings-as-errors": (
            [python, "-W", "error", "script.py"],
            {"files": {"script.py": source}},
        ),
        "run-path": (
            [python, "-c", "import runpy; runpy.run_path('script.py', run_name='__main__')"],
            {"files": {"script.py": source}},
        ),
        "exec": (
            [python, "-c", "exec(compile(open('script.py').read(), 'script.py', 'exec'))"],
            {"files": {"script.py": source}},
        ),
    }


@pytest.mark.parametrize("way", list(_ways("")))
def test_a_script_without_a_guard(way: str) -> None:
    command, options = _ways(script.source().strip())[way]
    ended = run_command(command, **options).check()
    assert ended.out.split() == ["started", "ended"], str(ended)
    assert "Error" not in ended.err, ended.err


def test_an_interactive_session() -> None:
    """The functions of a prompt, and of one line after the other."""
    lines = textwrap.dedent(
        """\
        import manyhands as mh
        def double(n):
            return 2 * n

        pool = mh.Pool(2)
        print("first", list(pool.map(double, range(3))))
        def double(n):
            return 3 * n

        print("second", list(pool.map(double, range(3))))
        factor = 10
        scale = lambda n: n * factor
        print("third", pool.submit(scale, 4).result())
        factor = 20
        print("fourth", pool.submit(scale, 4).result())
        class Thing:
            size = 1

        print("fifth", pool.submit(lambda thing: thing.size, Thing()).result())
        1 / 0
        print("sixth", pool.submit(scale, 1).result())
        exit()
        """
    )
    ended = run_command([sys.executable, "-i", "-q"], stdin=lines).check()
    for expected in (
        "first [0, 2, 4]",
        "second [0, 3, 6]",
        "third 40",
        "fourth 80",
        "fifth 1",
        "sixth 20",
    ):
        assert expected in ended.out, str(ended)


@program_test
def test_lambdas_closures_and_partials() -> None:
    def adder(first):
        def add(second):
            return first + second

        return add

    def counter():
        count = 0

        def step():
            nonlocal count
            count += 1
            return count

        return step

    def recursive(n):
        return 1 if n < 2 else n * recursive(n - 1)

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    with mh.Pool(2) as pool:
        assert pool.submit(lambda: 5).result(20) == 5
        assert pool.submit(adder(3), 4).result(20) == 7
        assert [pool.submit(adder(n), 1).result(20) for n in range(5)] == [1, 2, 3, 4, 5]
        assert pool.submit(functools.partial(pow, 2), 5).result(20) == 32
        assert pool.submit(functools.partial(adder(1), second=2)).result(20) == 3
        # Its cell is copied for each task: what a task does with it stays there.
        step = counter()
        assert pool.submit(step).result(20) == 1
        assert step() == 1
        assert pool.submit(recursive, 10).result(20) == 3628800
        assert pool.submit(even, 10).result(20) is True
        assert list(pool.map(lambda f: f(2), [adder(1), lambda n: n * n])) == [3, 4]
        assert pool.submit(lambda: adder(2)).result(20)(3) == 5, "a closure comes back"
        assert pool.submit(functools.reduce, lambda a, b: a * b, [1, 2, 3, 4]).result(20) == 24


@program_test
def test_methods() -> None:
    class Base(abc.ABC):
        unit = "m"

        @abc.abstractmethod
        def area(self): ...

        @classmethod
        def named(cls, name):
            return f"{cls.__name__} {name} {cls.unit}"

        @staticmethod
        def twice(n):
            return 2 * n

        @property
        def double_area(self):
            return 2 * self.area()

    class Square(Base):
        __slots__ = ("side",)

        def __init__(self, side):
            super().__init__()
            self.side = side

        def area(self):
            return self.side**2

        def __call__(self, n):
            return n * self.side

        def __eq__(self, other):
            return type(other) is Square and other.side == self.side

        __hash__ = None

    with mh.Pool(2) as pool:
        assert pool.submit(Square(3).area).result(20) == 9
        assert pool.submit(Square.named, "a").result(20) == "Square a m"
        assert pool.submit(Square.twice, 4).result(20) == 8
        assert pool.submit(Square(5), 3).result(20) == 15
        assert pool.submit(lambda square: square.double_area, Square(2)).result(20) == 8
        assert pool.submit(Square, 7).result(20) == Square(7)
        assert isinstance(pool.submit(Square, 7).result(20), Square), "the class is this very one"
        assert isinstance(pool.submit(lambda: Square(2)).result(20), Base)
        assert pool.submit(str.upper, "a").result(20) == "A"
        assert pool.submit("a-b".split, "-").result(20) == ["a", "b"]
        assert pool.submit([3, 1, 2].index, 1).result(20) == 1


@program_test
def test_classes_of_many_kinds_travel_both_ways() -> None:
    @dataclasses.dataclass(frozen=True, order=True)
    class Point:
        x: int
        tags: tuple = ()

    @dataclasses.dataclass(slots=True)
    class Slotted:
        x: int
        child: object = None

    class Color(enum.Enum):
        RED = 1
        BLUE = 2

    class Flags(enum.Flag):
        A = enum.auto()
        B = enum.auto()

    class Pair(NamedTuple):
        left: int
        right: int = 0

    Old = collections.namedtuple("Old", "a b")

    class Child(dict):
        extra = 1

    class Mine(Exception):
        pass

    def back(value):
        assert value == value
        return value

    values = [
        Point(1, (2, 3)),
        Slotted(1, Slotted(2)),
        Color.RED,
        Flags.A | Flags.B,
        Pair(1),
        Old(1, 2),
        Child(a=1),
        {Point(1): [Color.BLUE, {Pair(1, 2)}]},
        Point,
        Color,
    ]
    with mh.Pool(2) as pool:
        for value, result in zip(values, pool.map(back, values), strict=True):
            assert result == value, (result, value)
            assert type(result) is type(value)
        assert pool.submit(back, Color.RED).result(20) is Color.RED
        assert pool.submit(back, Point).result(20) is Point
        assert sorted(pool.map(Point, [3, 1, 2])) == [Point(1), Point(2), Point(3)]

        def fail():
            raise Mine("its own class")

        try:
            pool.submit(fail).result(20)
        except Mine as error:
            assert error.args == ("its own class",)
        else:
            raise AssertionError("nothing was raised")


@program_test
def test_classes_that_are_local() -> None:
    def run_local(pool):
        class Local:
            def __init__(self, n):
                self.n = n

            def get(self):
                return self.n

        local = pool.submit(Local, 5).result(20)
        return type(local) is Local, local.get(), pool.submit(Local(6).get).result(20)

    with mh.Pool(2) as pool:
        for _ in range(3):
            same, first, second = run_local(pool)
            assert (first, second) == (5, 6)
            assert same


@program_test
def test_an_initializer_that_sets_a_global() -> None:
    def start(value):
        global resource, calls
        resource, calls = value, 0

    def use(n):
        global calls
        calls += 1
        return resource + n, os.getpid(), calls

    with mh.Pool(2, initializer=start, initargs=(1000,)) as pool:
        results = list(pool.map(use, range(100)))
        assert [first for first, _, _ in results] == list(range(1000, 1100))
        assert results[0][1] != os.getpid()
        # State lives as long as the worker.
        for pid in {pid for _, pid, _ in results}:
            assert sorted(count for _, other, count in results if other == pid) == list(
                range(1, 1 + sum(other == pid for _, other, _ in results))
            )
    assert "resource" not in globals()


@program_test
def test_functions_that_are_defined_anew() -> None:
    with mh.Pool(1) as pool:
        for turn in range(5):

            def current(turn=turn):
                return turn

            assert pool.submit(current).result(20) == turn

        def reads():
            return setting

        for setting in ("first", "second"):
            assert pool.submit(reads).result(20) == setting


@program_test
def test_what_a_function_names_is_there() -> None:
    def uses_modules(text):
        return functools.reduce(lambda a, b: a + b, map(ord, text)), os.path.join("a", text)

    def imports_itself():
        import json

        return json.dumps([1])

    with mh.Pool(1) as pool:
        assert pool.submit(uses_modules, "ab").result(20) == (195, "a/ab")
        assert pool.submit(imports_itself).result(20) == "[1]"
        assert pool.submit(eval, "1 + 1").result(20) == 2
        assert pool.submit(lambda: __name__).result(20) == "__main__"
        assert pool.submit(lambda: sys.modules["__main__"].__file__).result(20) == __file__
