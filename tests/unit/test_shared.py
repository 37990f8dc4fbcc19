"""`mh.shared_array` and `mh.share`: one memory that the program and all tasks write to."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from arrays import Sample, drop_kept, keep, kept, same
from gate import Gate, pass_through, report_arrival
from manyhands import _shared
from programs import program_test

Array = np.ndarray[Any, Any]

# How long memory may take to be gone, and a task to see what is written; nothing is asserted about
# the time.
_WATCHDOG_SECONDS = 30.0

VIEWS: dict[str, Callable[[Array], Array]] = {
    "all": lambda a: a,
    "a row": lambda a: a[2],
    "rows": lambda a: a[1:4],
    "a column": lambda a: a[:, 1],
    "columns": lambda a: a[:, 1:3],
    "steps": lambda a: a[::2, 1::2],
    "transposed": lambda a: a.T,
    "reversed": lambda a: a[::-1, ::-1],
    "reversed steps": lambda a: a[::-3, ::-2].T,
    "one element": lambda a: a[3, 2:3],
    "0-d": lambda a: a[3, 2, ...],
    "flat": lambda a: a.reshape(-1)[5:],
    "more dimensions": lambda a: a.reshape(5, 2, 2)[:, 1],
    "bytes": lambda a: a.view(np.uint8)[:, 3:17],
    "a diagonal": lambda a: np.lib.stride_tricks.as_strided(a, (4,), (40,), subok=True),
}


def fill(array: Array, value: Any) -> tuple[Any, ...]:
    """What it was, and how it lies."""
    before = array.copy()
    array[...] = value
    return before, array.shape, array.strides, array.dtype


def count_up() -> Array:
    array = mh.shared_array((5, 4))
    array[...] = np.arange(20.0).reshape(5, 4)
    return array


def maps() -> int:
    """How often this process has memory without a file mapped that is shared."""
    return Path("/proc/self/maps").read_text().count("memfd:manyhands-shared")


def list_kept() -> Any:
    return kept[0].tolist()


def pop_kept() -> Any:
    return kept.pop()


def until_unmapped(look: Callable[[], int]) -> None:
    deadline = time.monotonic() + _WATCHDOG_SECONDS
    while look() > 0:
        gc.collect()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module", params=["process", "thread", "inline"])
def any_pool(request: pytest.FixtureRequest) -> Iterator[mh.Pool]:
    with mh.Pool(2, engine=request.param) as pool:
        yield pool


# ------------------------------------------------------------------------------------- one memory


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_the_same_memory_in_a_task(any_pool: mh.Pool, name: str) -> None:
    array, expected = count_up(), np.arange(20.0).reshape(5, 4)
    view, expected_view = VIEWS[name](array), VIEWS[name](expected)
    before = expected_view.copy()
    seen, *layout = any_pool.submit(fill, view, 77).result()
    assert layout == [view.shape, view.strides, view.dtype]
    assert np.array_equal(seen, before)
    expected_view[...] = 77
    assert np.array_equal(array, expected)


@pytest.mark.parametrize("name", VIEWS)
def test_a_result_is_the_same_memory(any_pool: mh.Pool, name: str) -> None:
    array = count_up()
    result = any_pool.submit(VIEWS[name], array).result()
    expected = VIEWS[name](array)
    assert result.__array_interface__ == expected.__array_interface__
    result[...] = 99
    assert (expected == 99).all()


def test_disjoint_slices_by_map(any_pool: mh.Pool) -> None:
    """P22 (ray#23988): many tasks are to write to slices of one array."""
    array = mh.shared_array((40, 7), np.int32)
    assert not array.any()
    for _ in any_pool.map(fill, array, range(40)):
        pass
    assert np.array_equal(array, np.repeat(np.arange(40), 7).reshape(40, 7))


def test_an_array_that_a_function_captures(any_pool: mh.Pool) -> None:
    array = mh.shared_array(20)

    def put(index: int) -> None:
        array[index] = index

    any_pool.map(put, range(20)).list()
    any_pool.submit(lambda rest: fill(array[15:], rest), -1).result()
    assert list(array) == [*range(15), -1, -1, -1, -1, -1]


def test_in_structures(any_pool: mh.Pool) -> None:
    array = count_up()

    def write(parts: dict[str, Any], sample: Sample) -> Any:
        parts["rows"][0][...] = 1
        sample.data[...] = 2
        return [parts["whole"], sample]

    nested = {"rows": [array[0], array[1]], "whole": array}
    whole, sample = any_pool.submit(write, nested, Sample("column", array[1:, 3])).result()
    assert (array[0] == 1).all()
    assert (array[1:, 3] == 2).all()
    whole[0], sample.data[...] = 5, 6
    assert (array[0] == 5).all()
    assert (array[1:, 3] == 6).all()


@pytest.mark.parametrize(
    "plain",
    [
        np.asarray,
        lambda array: np.asarray(array)[:, 1],
        lambda array: np.asarray(array)[::2, ::-1],
        lambda array: np.asarray(array).T,
        lambda array: array.view(np.ndarray)[1:],
    ],
)
def test_a_view_that_does_not_know_it_is_no_copy(any_pool: mh.Pool, plain: Any) -> None:
    """What `numpy.asarray` makes of a shared array lies in shared memory all the same."""
    array = mh.shared_array((4, 3))
    view = plain(array)
    assert type(view) is np.ndarray

    def add(views: dict[str, Array], number: int) -> Array:
        views["one"] += number
        return views["one"].view(np.ndarray)

    back = any_pool.submit(add, {"one": view}, 1).result()
    assert (view == 1).all()
    back += 1
    assert (view == 2).all()

    def captures() -> None:
        view[...] += 1

    any_pool.submit(captures).result()
    assert (view == 3).all()
    assert array.sum() == 3 * view.size


@program_test
def test_a_view_goes_without_the_store() -> None:
    """Where the store has no room all is in the message, and the memory is the same."""
    view = np.asarray(mh.shared_array(100))
    with mh.Pool(1, store="1MB") as pool:
        pool.submit(lambda view, _: view.fill(1), view, bytearray(3_000_000)).result()
    assert (view == 1).all()


def test_a_tensor_of_a_shared_array(any_pool: mh.Pool) -> None:
    torch = pytest.importorskip("torch")
    array = mh.shared_array((4, 3))
    tensor = torch.from_numpy(array)[:, 1]
    any_pool.submit(lambda tensor: tensor.add_(1), tensor).result()
    assert array.tolist() == [[0, 1, 0]] * 4


def test_two_views_of_one_memory_meet_in_a_task(any_pool: mh.Pool) -> None:
    array = count_up()

    def write(row: Array, column: Array) -> float:
        row[...] = 50
        return float(column[1])

    assert any_pool.submit(write, array[1], array[:, 2]).result() == 50


def test_nested_tasks(pool: mh.Pool) -> None:
    array = mh.shared_array((3, 4))

    def outer(array: Array) -> None:
        mh.map(fill, array.T, range(4)).list()

    pool.submit(outer, array).result()
    assert (array == np.arange(4)).all()


def test_several_pools() -> None:
    array = mh.shared_array((2, 3))
    with mh.Pool(1) as one, mh.Pool(1) as other:
        futures = [one.submit(fill, array[0], 1), other.submit(fill, array[1], 2)]
        for future in futures:
            future.result()
        assert array.tolist() == [[1] * 3, [2] * 3]
        other.submit(fill, one.submit(same, array[:, 0]).result(), 3).result()
    assert array.tolist() == [[3, 1, 1], [3, 2, 2]]


def wait_for(array: Array, path: str, value: float) -> None:
    report_arrival(path)
    while array[0] != value:
        time.sleep(0.001)
    array[1] = value + 1


def test_a_running_task_sees_what_is_written(pool: mh.Pool, gate: Gate) -> None:
    array = mh.shared_array(2)
    future = pool.submit(wait_for, array, gate.path, 5.0)
    gate.wait_arrivals()
    array[0] = 5
    future.result(_WATCHDOG_SECONDS)
    assert array[1] == 6


def test_an_array_that_may_not_be_written_stays_so(any_pool: mh.Pool) -> None:
    array = count_up()
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        any_pool.submit(fill, array[1], 1).result()
    row = np.broadcast_to(array[0], (3, 4), subok=True)
    assert any_pool.submit(lambda rows: rows.strides, row).result() == (0, 8)


@program_test
def test_a_global_of_the_program() -> None:
    import numpy as np

    import manyhands as mh

    array = mh.shared_array((3, 2))

    def put(index: int) -> None:
        array[index] = index

    with mh.Pool(2) as pool:
        pool.map(put, range(3)).list()
        assert (array == np.arange(3)[:, None]).all()


# ------------------------------------------------------------------------ what is no shared memory


def test_what_is_computed_is_plain(any_pool: mh.Pool) -> None:
    array = count_up()
    computed: list[Callable[[Array], Any]] = [
        lambda a: a * 2,
        lambda a: a.copy(),
        lambda a: np.sort(a, axis=0),
        lambda a: np.concatenate([a, a]),
        lambda a: a.sum(axis=0),
        lambda a: np.add(a, a[0]),
    ]
    expected = array.copy()
    for compute in computed:
        for result in (compute(array), any_pool.submit(compute, array).result()):
            assert type(result) is np.ndarray
            result[...] = -1
        assert np.array_equal(array, expected)
    # What NumPy itself still calls a shared array is sent as any other.
    result = any_pool.submit(lambda a: a[[0, 1]], array).result()
    result[...] = -1
    assert np.array_equal(array, expected)
    for scalar in (array.sum(), array.max(), np.mean(array), array[0, 0] + 1):
        assert isinstance(scalar, np.float64)


def test_arithmetic_in_place_is_in_shared_memory(pool: mh.Pool) -> None:
    array = count_up()

    def change(array: Array) -> None:
        array *= 2
        np.add(array[0], 1, out=array[0])

    pool.submit(change, array).result()
    expected = np.arange(20.0).reshape(5, 4) * 2
    expected[0] += 1
    assert np.array_equal(array, expected)


@pytest.mark.parametrize("protocol", range(6))
def test_for_others_it_is_pickled_with_its_contents(protocol: int) -> None:
    array = count_up()
    for made in (
        pickle.loads(pickle.dumps(array[:, 1], protocol)),
        copy.deepcopy(array)[:, 1],
        copy.copy(array)[:, 1],
    ):
        assert made.tolist() == [1, 5, 9, 13, 17]
        made[...] = 0
    assert array[0, 1] == 1


def test_a_task_that_pickles_it_has_the_contents(pool: mh.Pool) -> None:
    pickled = pool.submit(pickle.dumps, count_up()[1]).result()
    assert pickle.loads(pickled).tolist() == [4, 5, 6, 7]


# -------------------------------------------------------------------------------------- lifetimes


def sum_of(array: Array) -> Callable[[], Any]:
    def add() -> Any:
        return np.sum(array)

    return add


@pytest.mark.parametrize("hand_over", ["argument", "captured"])
def test_a_task_that_waits_keeps_the_memory(pool: mh.Pool, gate: Gate, hand_over: str) -> None:
    for _ in range(2):
        pool.submit(pass_through, gate.path)
    gate.wait_arrivals(2)
    if hand_over == "argument":
        future = pool.submit(np.sum, count_up())
    else:
        future = pool.submit(sum_of(count_up()))
    gc.collect()
    gate.open()
    assert future.result() == 190


def test_a_view_that_a_task_keeps_keeps_the_memory() -> None:
    """P14 (cpython#91044, numpy#23305, numpy#18294): memory goes while it is used."""
    assert maps() == 0
    with mh.Pool(1) as pool:
        array = count_up()
        pool.submit(keep, array[3]).result()
        del array
        until_unmapped(maps)
        assert pool.submit(maps).result() == 1
        other = mh.shared_array((5, 4))
        pool.submit(fill, other, -1).result()
        assert pool.submit(list_kept).result() == [12, 13, 14, 15]
        del other
        pool.submit(drop_kept).result()
        until_unmapped(lambda: pool.submit(maps).result())


def test_descriptors_are_given_back() -> None:
    def use() -> None:
        array = mh.shared_array(1000)
        with mh.Pool(1) as pool:
            pool.map(fill, array.reshape(10, 100), range(10)).list()

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert maps() == 0


def test_a_part_that_nobody_holds_any_more_cannot_come_back() -> None:
    with mh.Pool(1) as pool:
        pool.submit(keep, mh.shared_array(3)).result()
        future = pool.submit(pop_kept)
        pool.submit(abs, 1).result()
        with pytest.raises(RuntimeError, match="nobody holds it any more"):
            future.result()


# ------------------------------------------------------------------------------- types and shapes


@pytest.mark.parametrize("shape", [(), 0, 1, (0,), (3, 0, 2), [2, 3], (np.int64(4),)])
def test_shapes(pool: mh.Pool, shape: Any) -> None:
    array = mh.shared_array(shape, "i2")
    plain = np.zeros(shape, "i2")
    assert (array.shape, array.dtype, array.flags.writeable) == (plain.shape, plain.dtype, True)
    assert np.array_equal(array, plain)
    result = pool.submit(same, array).result()
    assert (result.shape, result.dtype) == (plain.shape, plain.dtype)
    pool.submit(fill, result, 7).result()
    assert (array == 7).all()


def test_an_empty_part(pool: mh.Pool) -> None:
    result = pool.submit(same, count_up()[5:, 1:3]).result()
    assert (result.shape, result.dtype) == ((0, 2), float)


@pytest.mark.parametrize(
    "dtype", [bool, ">f8", "c16", "S5", "U3", "M8[us]", "V7", [("a", ">i4"), ("b", "f8", (2,))]]
)
def test_types(pool: mh.Pool, dtype: Any) -> None:
    array = mh.shared_array(6, dtype)
    assert array.tobytes() == bytes(array.nbytes)
    array.view(np.uint8)[...] = np.arange(array.nbytes) % 2
    seen, *_ = pool.submit(fill, array[::2], np.zeros((), dtype)).result()
    assert seen.dtype == np.dtype(dtype)
    assert array[::2].tobytes() == bytes(array.nbytes // 2)
    assert array[1::2].tobytes() != bytes(array.nbytes // 2)


def test_fields(pool: mh.Pool) -> None:
    array = mh.shared_array(4, [("a", ">i4"), ("b", "f8")])
    array["b"] = 2
    pool.submit(fill, array["a"], 300).result()
    pool.submit(fill, array[["b"]][1:2], 3).result()
    assert array["a"].tolist() == [300] * 4
    assert array["b"].tolist() == [2, 3, 2, 2]


@pytest.mark.parametrize("dtype", [object, [("a", int), ("b", object)]])
def test_python_objects_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="Python objects in it, which cannot lie in memory"):
        mh.shared_array(3, dtype)
    with pytest.raises(TypeError, match="Python objects"):
        mh.share(np.zeros(3, dtype))


def test_shapes_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"no array has the shape \(2, -1\)"):
        mh.shared_array((2, -1))
    with pytest.raises(TypeError):
        mh.shared_array(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(12, dtype=">i2")[::-2],
        np.array(5.0),
        np.zeros((3, 0)),
        np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
        np.array(["one", "three"]),
    ],
    ids=str,
)
def test_share_keeps_contents_types_and_order(pool: mh.Pool, array: Array) -> None:
    shared = mh.share(array)
    like = array.copy(order="K")
    assert (shared.dtype, shared.shape, shared.strides) == (like.dtype, like.shape, like.strides)
    assert np.array_equal(shared, array)
    pool.submit(fill, shared, np.zeros((), array.dtype)).result()
    assert np.array_equal(shared, np.zeros_like(array))
    assert np.array_equal(like, array)


def test_share_of_what_is_shared_and_of_what_is_no_array(pool: mh.Pool) -> None:
    array = count_up()
    assert mh.share(array) is array
    column = mh.share(np.asarray(array)[:, 1])
    assert pool.submit(fill, column, 5).result()[2] == (32,)
    assert (array[:, 1] == 5).all()
    assert mh.share([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="share its data and its mask"):
        mh.share(np.ma.masked_array([1, 2], [True, False]))


# ------------------------------------------------------------------------------------------ files


def test_a_file(any_pool: mh.Pool, tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    array = mh.shared_array((100, 50), "<i4", path)
    assert not array.any()
    any_pool.map(fill, array[:60], range(60)).list()
    any_pool.submit(fill, array[:, 0], -1).result()
    expected = array.copy()
    assert np.array_equal(np.fromfile(path, "<i4").reshape(100, 50), expected)
    assert not array[60:, 1:].any()
    # Another array of the same file is the same memory.
    mh.shared_array((50, 100), "<i4", str(path))[0, 0] = 9
    assert array[0, 0] == 9
    del array
    again = mh.shared_array((100, 50), "<i4", path)
    assert np.array_equal(again[1:], expected[1:])
    with pytest.raises(ValueError, match="has 20000 bytes, and the array has 40000"):
        mh.shared_array((100, 50), "<i8", path)
    assert path.stat().st_size == 20000


def test_a_task_makes_a_file(pool: mh.Pool, tmp_path: Path) -> None:
    def make(path: Path) -> Array:
        array = mh.shared_array(10, path=path)
        array[...] = 4
        return array

    result = pool.submit(make, tmp_path / "made").result()
    assert result.tolist() == [4] * 10
    result[0] = 5
    assert np.fromfile(tmp_path / "made")[0] == 5
    with pytest.raises(RuntimeError, match="and not in a task"):
        pool.submit(mh.shared_array, 3).result()


def test_a_file_that_another_has_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    array = mh.shared_array(10, path=path)
    path.rename(tmp_path / "other")
    with mh.Pool(1) as pool:
        with pytest.raises(RuntimeError, match="its file was removed"):
            pool.submit(np.sum, array).result()
        path.write_bytes(bytes(80))
        with pytest.raises(RuntimeError, match="not the file any more"):
            pool.submit(np.sum, array).result()


def test_files_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mh.shared_array(3, path=tmp_path / "no" / "folder")
    with pytest.raises(IsADirectoryError):
        mh.shared_array(3, path=tmp_path)
    with pytest.raises(OSError, match="/proc/self/out"):
        mh.shared_array(3, path="/proc/self/out")


def test_a_file_that_has_no_room_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            mh.shared_array(1 << 20, path=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- room


def test_too_much_memory_is_refused() -> None:
    with pytest.raises(MemoryError, match=r"no room for \d+ bytes .* has \d+ bytes to give"):
        mh.shared_array(1 << 50)
    with pytest.raises(MemoryError):
        mh.shared_array((1 << 60, 1 << 60))


def taken(array: Any) -> int:
    """How many bytes of its memory the system has given."""
    memory = array
    while not isinstance(memory, _shared.Memory):
        memory = memory.base if isinstance(memory, np.ndarray) else memory.obj
    return os.fstat(memory._file).st_blocks * 512


SIZE = 8 << 20


def test_memory_is_taken_when_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared, "_is_strict", lambda: False)
    array = mh.shared_array(SIZE, np.uint8)
    assert taken(array) == 0
    with mh.Pool(1) as pool:
        pool.submit(fill_up, array[: SIZE // 2]).result(60)
    assert SIZE // 2 <= taken(array) < SIZE
    assert (array[: SIZE // 2] == 7).all()
    assert (array[SIZE // 2 :] == 0).all()


def fill_up(array: Any) -> None:
    array[:] = 7


@pytest.mark.parametrize("why", ["little is left", "much is promised", "strict"])
def test_memory_is_taken_at_once(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Where a write could find none: it would end the process, and be no error."""
    others = [mh.shared_array(SIZE, np.uint8) for _ in range(3)]
    promised = _shared._promised()
    left = promised + 5 * SIZE if why == "little is left" else 1 << 40
    if why == "much is promised":
        left = 4 * promised + 3 * SIZE
    monkeypatch.setattr(_shared, "_is_strict", lambda: why == "strict")
    monkeypatch.setattr(_shared._core, "memory_to_take", lambda: left)
    array = mh.shared_array(SIZE, np.uint8)
    assert taken(array) == SIZE
    del others


def test_numpy_is_imported_when_it_is_needed() -> None:
    source = "import sys, manyhands; assert 'numpy' not in sys.modules; manyhands.shared_array(2)"
    subprocess.run([sys.executable, "-c", source], check=True)
