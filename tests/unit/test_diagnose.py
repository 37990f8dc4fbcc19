"""What `_diagnose.explain` says about objects that cannot be pickled."""

from __future__ import annotations

import copyreg
import functools
import socket
import sqlite3
import threading
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manyhands import _diagnose

LOCK = threading.Lock()
explain = _diagnose.explain


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that stands still a search would be over before it has found anything."""
    monkeypatch.setattr(_diagnose, "_SECONDS", 60.0)
    monkeypatch.setattr(_diagnose, "_TRIAL_SECONDS", 60.0)


class Model:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def run(self) -> None:
        """Does nothing."""


class Slotted:
    __slots__ = ("_handle", "other")

    def __init__(self) -> None:
        self.other = 1
        self._handle = LOCK


@dataclass
class Record:
    name: str
    lock: Any


Pair = namedtuple("Pair", "left right")


class BadReduce:
    def __reduce__(self) -> Any:
        raise ValueError("no thanks")


class BadState:
    def __getstate__(self) -> Any:
        raise KeyError("gone")


class GoodState:
    """Its lock is not part of its state, the generator is."""

    def __init__(self) -> None:
        self.lock = LOCK
        self.rows = (each for each in (1,))

    def __getstate__(self) -> Any:
        return {"rows": self.rows}


class Hostile:
    """Everything about it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hostile")

    def __repr__(self) -> str:
        raise RuntimeError("hostile")


def generator() -> Iterator[int]:
    yield 1


def released() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


async def coroutine() -> None:
    """Does nothing."""


def closure() -> Callable[[], Any]:
    conn = sqlite3.connect(":memory:")
    return lambda: conn


def deep_closure() -> Callable[[], Any]:
    model = Model(inner=[LOCK])
    return lambda: model


class Stateful(dict):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LOCK, "args[0] is a thread lock"),
        (threading.RLock, "args[0] is a thread lock"),
        (generator, "args[0] is a generator"),
        (lambda: [1, {"k": generator()}], "args[0][1]['k'] is a generator"),
        (lambda: Model(_lock=LOCK), "args[0]._lock is a thread lock"),
        (lambda: Model(a=Model(b=(1, LOCK))), "args[0].a.b[1] is a thread lock"),
        (Slotted, "args[0]._handle is a thread lock"),
        (lambda: Record("x", LOCK), "args[0].lock is a thread lock"),
        (lambda: Pair(1, LOCK), "args[0].right is a thread lock"),
        (lambda: {LOCK}, "an element of args[0] is a thread lock"),
        (lambda: {LOCK: 1}, "a key of args[0] is a thread lock"),
        (lambda: functools.partial(print, LOCK), "args[0].args[0] is a thread lock"),
        (lambda: functools.partial(print, end=LOCK), "args[0].keywords['end'] is a thread lock"),
        (lambda: Model(lock=LOCK).run, "args[0].__self__.lock is a thread lock"),
        (closure, "args[0] captures `conn`, a sqlite3.Connection"),
        (deep_closure, "args[0] captures `model`: model.inner[0] is a thread lock"),
        (lambda: sqlite3.connect(":memory:"), "args[0] is a sqlite3.Connection"),
        (BadReduce, "its __reduce__ raised ValueError: no thanks"),
        (lambda: [BadState()], "its __getstate__ raised KeyError: 'gone'"),
        (GoodState, "args[0].rows is a generator"),
        (released, "args[0] is a memoryview that was released"),
        (lambda: [memoryview(b"x"), released()], "args[0][1] is a memoryview that was released"),
        (lambda: weakref.ref(Model), "args[0] is a weak reference"),
        (threading.local, "args[0] is thread-local data"),
        (threading.Condition, "is a thread lock"),
        (threading.Event, "is a thread lock"),
        (lambda: Stateful(a=LOCK), "args[0]['a'] is a thread lock"),
    ],
)
def test_the_culprit_is_named(make: Callable[[], Any], expected: str) -> None:
    text = explain(make(), "args[0]")
    assert text.endswith(expected) if expected[0] != "a" else text == expected, text


def test_a_socket_is_named() -> None:
    with socket.socket() as handle:
        assert explain(Model(handler=handle), "args[0]") == "args[0].handler is a socket"


def test_an_open_file_is_named_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("w") as text, path.open("rb") as binary:
        assert explain(text, "kwargs['f']") == f"kwargs['f'] is an open file ({path})"
        assert explain([binary], "args") == f"args[0] is an open file ({path})"


def test_a_coroutine_is_named() -> None:
    made = coroutine()
    try:
        assert explain(made, "args[0]") == "args[0] is a coroutine"
    finally:
        made.close()


def test_depth_is_named() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert explain(deep, "args[0]") == "args[0] is nested too deeply to be pickled"
    assert "nested too deeply" in explain({"a": deep}, "args[0]")
    while deep:  # a list this deep must be taken apart by hand
        deep = deep.pop()


def test_circles_end() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    circle["list"] = [circle]
    circle["z"] = LOCK
    assert explain(circle, "args[0]") == "args[0]['z'] is a thread lock"


def test_large_graphs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # in the time that it has
    large = [[index, {"k": index}] for index in range(300_000)]
    text = explain([large, LOCK], "args[0]")
    assert text.startswith("args[0]")


def test_a_reducer_in_copyreg_counts_as_its_own() -> None:
    class Registered:
        def __init__(self) -> None:
            self.lock = LOCK

    copyreg.pickle(Registered, lambda obj: (list, ()))  # type: ignore[arg-type, return-value]
    assert explain([Registered(), LOCK], "args[0]") == "args[0][1] is a thread lock"


def test_it_never_raises() -> None:
    assert explain(Hostile(), "args[0]").startswith("args[0]")
    assert explain([Hostile()], "args[0]").startswith("args[0]")
    assert explain({"k": Hostile()}, "args[0]").startswith("args[0]")


def test_what_can_be_pickled_still_gets_a_sentence() -> None:
    assert explain(5, "args[0]") == "args[0] is an int, which cannot be pickled"


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (LOCK, "a thread lock"),
        (5, "an int"),
        (Model(), f"a {__name__}.Model"),
        (lambda: 0, "a lambda"),
        (Model, f"the class {__name__}.Model"),
        (threading, "the module threading"),
        (generator, "the function generator"),
    ],
)
def test_describe(obj: Any, expected: str) -> None:
    assert _diagnose.describe(obj) == expected
