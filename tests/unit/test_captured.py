"""What functions, partials and methods carry: sent once to each worker, and when it is noticed."""

from __future__ import annotations

import functools
import gc
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from manyhands import _large
from programs import program_test

LARGE = 3_000_000


class Mesh:
    """An object that counts how often it is pickled here, and made in this process."""

    pickled = made = 0

    def __init__(self, data: Any = None) -> None:
        self.data = bytes(LARGE) if data is None else data

    def __getstate__(self) -> Any:
        Mesh.pickled += 1
        return dict(self.__dict__)

    def __setstate__(self, state: Any) -> None:
        Mesh.made += 1
        self.__dict__ |= state

    def size(self, number: int) -> tuple[int, int]:
        return len(self.data) + number, Mesh.made


def size_of(mesh: Mesh, number: int) -> tuple[int, int]:
    return mesh.size(number)


def closure(mesh: Mesh) -> Callable[[int], tuple[int, int]]:
    def function(number: int) -> tuple[int, int]:
        return mesh.size(number)

    return function


def default(mesh: Mesh) -> Callable[[int], tuple[int, int]]:
    def function(number: int, mesh: Mesh = mesh) -> tuple[int, int]:
        return mesh.size(number)

    return function


def partial(mesh: Mesh) -> Callable[[int], tuple[int, int]]:
    return functools.partial(size_of, mesh)


def partial_of_a_method(mesh: Mesh) -> Callable[[int], tuple[int, int]]:
    return functools.partial(mesh.size)


@pytest.fixture
def mesh() -> Mesh:
    Mesh.pickled = 0
    return Mesh()


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("way", [closure, default, partial, partial_of_a_method])
def test_submit_sends_it_once(
    pool: mh.Pool, mesh: Mesh, way: Callable[[Mesh], Callable[[int], tuple[int, int]]]
) -> None:
    function = way(mesh)
    found = [future.result() for future in [pool.submit(function, n) for n in range(200)]]
    assert found == [(LARGE + n, 1) for n in range(200)]
    assert Mesh.pickled <= 3, "with the first call, then alone, and how large it is"


def test_submit_sends_the_object_of_a_method_once(pool: mh.Pool, mesh: Mesh) -> None:
    found = [future.result() for future in [pool.submit(mesh.size, n) for n in range(200)]]
    assert found == [(LARGE + n, 1) for n in range(200)]
    assert Mesh.pickled <= 3
    assert pool.submit(mesh.size, number=5).result() == (LARGE + 5, 1)


def test_an_attribute_that_is_bound_anew_is_noticed(pool: mh.Pool, mesh: Mesh) -> None:
    for _ in range(2):
        assert pool.submit(mesh.size, 0).result()[0] == LARGE
    mesh.data = bytes(2 * LARGE)
    assert pool.submit(mesh.size, 0).result()[0] == 2 * LARGE
    function = functools.partial(mesh.size, 1)
    assert pool.submit(function).result()[0] == 2 * LARGE + 1
    mesh.data = bytes(LARGE)
    assert pool.submit(function).result()[0] == LARGE + 1


@pytest.mark.parametrize("way", [closure, partial, lambda mesh: mesh.size])
def test_a_change_inside_counts_after_refresh(
    pool: mh.Pool, way: Callable[[Mesh], Callable[[int], tuple[int, int]]]
) -> None:
    mesh = Mesh(bytearray(LARGE))
    function = way(mesh)
    assert pool.submit(function, 0).result()[0] == LARGE
    mesh.data.append(0)
    assert pool.submit(function, 0).result()[0] == LARGE
    pool.refresh(function)
    assert pool.submit(function, 0).result()[0] == LARGE + 1
    assert pool.submit(function, 0).result()[0] == LARGE + 1


@program_test
def test_refresh_of_a_function_of_a_script() -> None:
    def price(name):
        return look(name) + len(table)

    def look(name):
        return prices[name]

    def other():
        return sorted(prices)

    prices, table = {"pear": 4}, [1]
    with mh.Pool(2) as pool:
        assert pool.submit(price, "pear").result() == 5
        prices["pear"] = 7
        table.append(2)
        assert pool.submit(price, "pear").result() == 5
        assert list(pool.map(price, ["pear"])) == [5]
        pool.refresh(price)
        assert list(pool.map(price, ["pear"] * 20)) == [9] * 20
        assert pool.submit(other).result() == ["pear"]


def test_refresh_wants_a_callable(pool: mh.Pool) -> None:
    with pytest.raises(TypeError, match="must be callable, not int"):
        pool.refresh(5)  # type: ignore[arg-type]


def test_small_ones_go_with_each_call_as_they_are(pool: mh.Pool) -> None:
    mesh = Mesh(bytearray(10))
    assert pool.submit(mesh.size, 0).result()[0] == 10
    mesh.data.append(0)
    assert pool.submit(mesh.size, 0).result()[0] == 11


def test_large_arguments_make_nothing_be_kept(pool: mh.Pool) -> None:
    texts = ["a"]
    joined = functools.partial(str.join, "-")
    assert pool.submit(joined, [*texts, "b" * LARGE]).result()[:3] == "a-b"
    reference = weakref.ref(joined)
    del joined
    assert reference() is None


def test_nothing_keeps_what_was_captured_alive(pool: mh.Pool) -> None:
    class Node(Mesh):
        def __init__(self) -> None:
            super().__init__()
            self.child = Mesh(b"")
            self.child.parent = self  # type: ignore[attr-defined]

    node = Node()
    function = partial(node)
    assert pool.submit(node.size, 1).result()[0] == LARGE + 1
    assert pool.submit(function, 1).result()[0] == LARGE + 1
    gone = [weakref.ref(node), weakref.ref(function)]
    del node, function
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_workers_drop_what_is_not_needed_any_more(pool: mh.Pool) -> None:
    def meshes() -> int:
        gc.collect()
        return sum(type(found) is Mesh for found in gc.get_objects())

    mesh = Mesh()
    assert pool.submit(mesh.size, 0).result()[0] == LARGE
    assert pool.submit(meshes).result() == 1
    del mesh
    assert pool.submit(meshes).result() == 0


def test_a_successor_gets_it_too(pool: mh.Pool, mesh: Mesh) -> None:
    assert pool.submit(mesh.size, 0).result() == (LARGE, 1)
    with pytest.raises(mh.WorkerDied):
        pool.submit(os._exit, 1).result()
    assert pool.submit(mesh.size, 0).result() == (LARGE, 1)
    assert Mesh.pickled <= 3


def test_each_map_takes_a_method_as_it_is(pool: mh.Pool) -> None:
    mesh = Mesh(bytearray(LARGE))
    assert pool.submit(mesh.size, 0).result()[0] == LARGE
    mesh.data.append(0)
    assert [size for size, _ in pool.map(mesh.size, [0])] == [LARGE + 1]


def test_people_are_told_once_of_a_function_with_much_data(
    pool: mh.Pool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyhands._encoding._LARGE", LARGE)
    monkeypatch.setattr(_large, "_told", set())
    table = bytes(2 * LARGE)

    def make() -> Callable[[], int]:
        return lambda: len(table)

    with caplog.at_level(logging.WARNING, logger="manyhands.hints"):
        for _ in range(2):
            assert pool.submit(make()).result() == 2 * LARGE
    [record] = caplog.records
    assert record.name == "manyhands.hints"
    text = record.getMessage()
    assert "carries 6 MB of data to each worker: table (bytes, 6 MB)" in text
    assert "mh.put" in text
    assert "mh.broadcast" in text


def test_people_are_told_of_arrays_that_workers_share(
    pool: mh.Pool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyhands._encoding._LARGE", LARGE)
    monkeypatch.setattr(_large, "_told", set())
    mesh = np.ones(LARGE)
    put = mh.put(mesh)
    with caplog.at_level(logging.WARNING, logger="manyhands.hints"):
        assert pool.submit(lambda: put.size).result() == LARGE
        assert not caplog.records  # its user has seen to it
        assert pool.submit(lambda: mesh.size).result() == LARGE
    [record] = caplog.records
    text = record.getMessage()
    size = f"{8 * LARGE / 1e6:,.0f}"
    assert f"carries {size} MB of data to each worker, {size} of them in memory" in text
    assert f"mesh (ndarray, {size} MB)" in text
