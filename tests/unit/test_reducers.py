"""Tensors of PyTorch, frames of Polars and pandas, Arrow data, arrays with gaps: their buffers go
through the store."""

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


# ---- pandas ---------------------------------------------------------------------------------


def frame_of_pandas(kind: str) -> Any:
    pandas = pytest.importorskip("pandas")
    rows = 100_000
    if kind == "one type":
        return pandas.DataFrame(np.arange(6.0 * rows).reshape(rows, 6), columns=list("abcdef"))
    if kind == "objects":
        return pandas.DataFrame({"a": np.array([str(row) for row in range(rows)], dtype=object)})
    pytest.importorskip("pyarrow")
    text = [None if row % 7 == 0 else f"text of row {row}" for row in range(rows)]
    if kind == "many pieces":
        pieces = [pandas.Series(text[at : at + 1000], dtype="str") for at in range(0, rows, 1000)]
        return pandas.concat(pieces).to_frame("text")
    if kind == "none":
        return pandas.DataFrame({"text": pandas.Series([], dtype="str")})
    return pandas.DataFrame(
        {
            "number": range(rows),
            "text": pandas.Series(text, dtype="str"),
            "large": pandas.Series(text, dtype="string[pyarrow]"),
            "date": pandas.Series(range(rows), dtype="timestamp[s][pyarrow]"),
        },
        index=pandas.Index([f"row {row}" for row in range(rows)], name="name"),
    )


@pytest.mark.parametrize("kind", ["one type", "arrow", "many pieces", "none", "objects"])
def test_frames_come_back(pool: mh.Pool, kind: str) -> None:
    frame = frame_of_pandas(kind)
    for value in frame, frame.iloc[10:-10:3], frame.iloc[20_000:50_000], mh.put(frame):
        result = pool.submit(same, value).result(60)
        assert type(result) is type(value)
        assert result.equals(value)
        assert (result.dtypes == value.dtypes).all()
        assert result.index.equals(value.index)
        assert pickle.loads(pickle.dumps(result)).equals(value)


@pytest.mark.parametrize("kind", ["one type", "arrow"])
@pytest.mark.parametrize("within", ["itself", "an object"])
def test_frames_that_were_put_are_not_copied(pool: mh.Pool, kind: str, within: str) -> None:
    """pandas pickles a copy of Arrow columns, and of rows of columns of one type."""
    frame = frame_of_pandas(kind)
    kept = mh.put(frame)
    size = frame.memory_usage(index=False).sum()
    before = live(pool)
    assert before >= size
    results = []
    for first in range(0, 20_000, 2000):
        part = kept.iloc[first : first + 70_000]
        value = part if within == "itself" else Measured("part", part)
        result = pool.submit(same, value).result(60)
        results.append(result.values if isinstance(result, Measured) else result)
        assert results[-1].equals(frame.iloc[first : first + 70_000])
        # What came back is in the store, too.
        assert pool.submit(len, results[-1]).result(60) == 70_000
    assert live(pool) < before + size // 4


# ---- Arrow ----------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["a table", "a batch", "a column", "an array", "an object"])
def test_a_part_of_arrow_data_is_sent_alone(gate: Gate, within: str) -> None:
    """Arrow pickles all of the memory that the part lies in (apache/arrow#26685)."""
    arrow = pytest.importorskip("pyarrow")
    text = [f"text of row {row}" for row in range(100_000)]
    whole = arrow.table({"number": range(len(text)), "text": text, "list": [[1, None]] * len(text)})
    part: Any = whole.slice(50_000, 5000)
    if within == "a batch":
        part = part.to_batches()[0]
    elif within == "a column":
        part = part["text"]
    elif within == "an array":
        part = part["text"].chunk(0)
    value = Measured("part", part) if within == "an object" else part
    with mh.Pool(1) as pool:
        held = pool.submit(pass_through, gate.path)
        gate.wait_arrivals(1)
        futures = []
        # The second time it is known what such objects hold.
        for _ in range(2):
            before = pool.stats().store.in_flight
            futures.append(pool.submit(same, value))
            assert pool.stats().store.in_flight - before < whole.nbytes // 4
        gate.open()
        held.result(60)
        for future in futures:
            result = future.result(60)
            assert (result.values if within == "an object" else result).equals(part)


def test_many_arrow_types_are_cut(pool: mh.Pool) -> None:
    arrow = pytest.importorskip("pyarrow")
    count = 30_000
    numbers = arrow.array(range(count))
    arrays = [
        numbers,
        arrow.array([number % 3 == 0 for number in range(count)]),
        arrow.array([str(number) for number in range(count)], arrow.large_string()),
        arrow.array([str(number) * 9 for number in range(count)], arrow.string_view()),
        arrow.array([b"ab"] * count, arrow.binary(2)),
        arrow.array([{"a": number, "b": [str(number)]} for number in range(count)]),
        arrow.array([[("key", number)] for number in range(count)], arrow.map_("str", "int64")),
        arrow.array([str(number % 7) for number in range(count)]).dictionary_encode(),
        arrow.nulls(count),
        arrow.RunEndEncodedArray.from_arrays(arrow.array(range(1, count + 1), "int32"), numbers),
        arrow.array([[number] for number in range(count)], arrow.list_view(arrow.int64())),
        arrow.array([bytes(16)] * count, arrow.uuid()),
    ]
    parts = [array.slice(at, size) for array in arrays for at, size in ((0, 0), (20_000, 3))]
    for part, result in zip(parts, pool.map(same, parts), strict=True):
        assert result.type == part.type
        assert result.equals(part)
