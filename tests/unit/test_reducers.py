"""Tensors of PyTorch, frames of Polars, arrays with gaps: their buffers go through the store."""

from __future__ import annotations

import copyreg
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from gate import Gate, pass_through
from observing import live

LARGE = 400_000


@pytest.fixture(scope="module")
def pool() -> Iterator[mh.Pool]:
    with mh.Pool(2) as pool:
        yield pool


def same(value: Any) -> Any:
    return value


# ---- Polars ---------------------------------------------------------------------------------


def a_frame(rows: int) -> Any:
    polars = pytest.importorskip("polars")
    names = [f"name {number}" for number in range(rows)]
    frame = polars.DataFrame({"number": range(rows), "name": names, "none": [None] * rows})
    return frame.with_columns(
        frame["name"].cast(polars.Categorical).alias("category"),
        polars.struct("number", "name").alias("both"),
        polars.concat_list("number", "number").alias("list"),
    )


def test_frames_come_back_as_they_are(pool: mh.Pool) -> None:
    frame = a_frame(LARGE // 8)
    assert len(pickle.dumps(frame)) > LARGE
    back = pool.submit(same, frame).result()
    assert back.schema == frame.schema
    assert back.equals(frame)
    series = pool.submit(same, frame["name"]).result()
    assert series.equals(frame["name"])
    assert series.name == "name"


def test_frames_travel_through_the_store(pool: mh.Pool, tmp_path: Path) -> None:
    frame = a_frame(LARGE // 8)
    opened = tmp_path / "opened"

    def wait(frame: Any) -> None:
        while not opened.exists():
            time.sleep(0.01)

    waits = pool.submit(wait, [frame])
    assert pool.stats().store.in_flight > LARGE
    opened.touch()
    waits.result()


def test_small_and_empty_frames(pool: mh.Pool) -> None:
    for rows in (0, 1, 10):
        frame = a_frame(rows)
        assert pool.submit(same, frame).result().equals(frame)


def test_a_frame_that_was_put(pool: mh.Pool) -> None:
    frame = a_frame(LARGE // 8)
    assert mh.put(frame).equals(frame)
    assert pool.submit(same, mh.put(frame)).result().equals(frame)


def test_what_others_pickle_is_none_of_our_business(pool: mh.Pool) -> None:
    polars = pytest.importorskip("polars")
    frame = a_frame(10)
    before = pickle.dumps(frame)
    pool.submit(same, frame).result()
    assert pickle.dumps(frame) == before
    assert polars.DataFrame not in copyreg.dispatch_table


def test_a_captured_frame_travels_through_the_store(pool: mh.Pool) -> None:
    frame = a_frame(LARGE // 8)

    def height() -> int:
        return len(frame)

    before = live(pool)
    assert pool.submit(height).result() == LARGE // 8
    assert live(pool) > before + LARGE


# ---- PyTorch --------------------------------------------------------------------------------


def tensors() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    plain = torch.arange(LARGE, dtype=torch.float32).reshape(400, -1)
    return {
        "plain": plain,
        "half": plain.to(torch.bfloat16),
        "complex": plain.to(torch.complex64),
        "truth": plain > 3,
        "transposed": plain.t(),
        "channels last": plain.reshape(2, 5, 8, -1).to(memory_format=torch.channels_last),
        "every second": plain[::2],
        "expanded": plain[:1].expand(300, -1),
        "conjugate": torch.complex(plain, plain).conj(),
        "sparse": plain.to_sparse(),
        "with a gradient": plain.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(plain.clone()),
        "empty": torch.zeros(3, 0),
        "a number": torch.tensor(3.0),
    }


def test_tensors_come_back_as_they_are(pool: mh.Pool) -> None:
    torch = pytest.importorskip("torch")
    for name, tensor in tensors().items():
        back = pool.submit(same, tensor).result()
        assert type(back) is type(tensor), name
        assert (back.dtype, back.shape, back.requires_grad, back.layout) == (
            tensor.dtype,
            tensor.shape,
            tensor.requires_grad,
            tensor.layout,
        ), name
        assert torch.equal(back.to_dense(), tensor.to_dense()), name
        if name in ("transposed", "channels last"):
            assert back.stride() == tensor.stride()


def test_tensors_are_by_value_and_writable(pool: mh.Pool) -> None:
    torch = pytest.importorskip("torch")

    def write(tensor: Any) -> Any:
        tensor += 1
        return tensor

    tensor = torch.zeros(LARGE)
    before = live(pool)
    back = pool.submit(write, tensor).result()
    assert live(pool) > before, "the result is in the store"
    assert torch.equal(back, torch.ones(LARGE))
    assert torch.equal(tensor, torch.zeros(LARGE))
    back += 1
    assert torch.equal(pool.submit(same, back).result(), torch.full((LARGE,), 2.0))
    kept = mh.put(tensor)
    kept += 1
    assert torch.equal(mh.put(tensor), torch.zeros(LARGE))


def test_a_model(pool: mh.Pool) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.ReLU(), torch.nn.Linear(400, 2))
    sample = torch.ones(3, 400)
    with torch.no_grad():
        assert torch.equal(pool.submit(model, sample).result().detach(), model(sample))
    state = pool.submit(same, model.state_dict()).result()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


# ---- NumPy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["itself", "in a list", "in a dict", "a keyword"])
@pytest.mark.parametrize(
    "cut",
    [
        lambda array: array[:, ::2],
        lambda array: array[:, 100:300],
        lambda array: array[::-1],
        lambda array: array.reshape(20, 20, -1)[:, 1:].transpose(1, 0, 2),
    ],
    ids=["steps", "columns", "backwards", "transposed"],
)
def test_arrays_with_gaps_are_not_in_the_pickle(
    gate: Gate, within: str, cut: Callable[[Any], Any]
) -> None:
    """What NumPy writes into the pickle would be copied from hand to hand."""

    def task(value: Any) -> Any:
        array = value[0] if isinstance(value, list) else value
        array = array["it"] if isinstance(array, dict) else array
        total = int(array.sum())
        array += 1
        return total, array.flags.c_contiguous, array[::2]

    array = cut(np.arange(160_000).reshape(400, 400))
    with mh.Pool(1) as pool:
        held = pool.submit(pass_through, gate.path)
        gate.wait_arrivals(1)
        before = pool.stats().store.in_flight
        if within == "a keyword":
            future = pool.submit(task, value=array)
        else:
            value = {"itself": array, "in a list": [array], "in a dict": {"it": array}}[within]
            future = pool.submit(task, value)
        assert pool.stats().store.in_flight - before >= array.nbytes
        expected = array + 1
        gate.open()
        held.result(60)
        total, is_contiguous, half = future.result(60)
    assert (total, is_contiguous) == (array.sum(), True)
    assert (half == expected[::2]).all()
    assert (array == cut(np.arange(160_000).reshape(400, 400))).all()


@dataclass
class Measured:
    name: str
    values: Any


def array_in(value: Any) -> Any:
    if isinstance(value, Measured):
        return value.values
    if isinstance(value, list):
        return value[-1]
    if isinstance(value, dict):
        return value["a"][1][1]["d"][1][0]
    return value.to_numpy()


@pytest.mark.parametrize("within", ["an object", "a frame", "many", "deep"])
def test_arrays_with_gaps_in_whatever_holds_them(gate: Gate, within: str) -> None:
    array = np.arange(160_000.0).reshape(400, 400)[:, 100:300]
    value: Any
    if within == "a frame":
        pandas = pytest.importorskip("pandas")
        value = pandas.DataFrame(np.arange(160_000.0).reshape(400, 400)).iloc[100:300]
    elif within == "many":
        value = [*range(100), array]
    elif within == "deep":
        value = {"a": ["b", ("c", {"d": ["e", (array, 1)]})]}
    else:
        value = Measured("here", array)
    with mh.Pool(1) as pool:
        held = pool.submit(pass_through, gate.path)
        gate.wait_arrivals(1)
        futures = []
        # The second time it is known that such objects hold some.
        for _ in range(2):
            before = pool.stats().store.in_flight
            futures.append(pool.submit(same, value))
            assert pool.stats().store.in_flight - before >= array.nbytes
        gate.open()
        held.result(60)
        results = [future.result(60) for future in futures]
        results += pool.map(same, [value] * 3)
    assert len(results) == 5
    for result in results:
        assert type(result) is type(value)
        assert (array_in(result) == array_in(value)).all()


def test_arrays_of_objects_with_gaps() -> None:
    array = np.array([[number, str(number)] for number in range(40_000)], dtype=object)[::2]
    with mh.Pool(1) as pool:
        assert (pool.submit(np.asarray, array).result(60) == array).all()
