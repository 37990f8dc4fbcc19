"""`mh.put`: an equal object of the same type, sent by reference, which nobody writes to."""

from __future__ import annotations

import ctypes
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import manyhands as mh
from arrays import Sample, describe, drop_kept, keep, kept, same
from gate import Gate, pass_through
from observing import live, until_released

Array = np.ndarray[Any, Any]

# Numbers in an array that goes by the store, and its bytes.
COUNT = 500_000
SIZE = 8 * COUNT


@pytest.fixture
def pool() -> Iterator[mh.Pool]:
    """Each test has a pool of its own, whose workers hold nothing yet."""
    with mh.Pool(2) as pool:
        yield pool


@pytest.fixture
def single() -> Iterator[mh.Pool]:
    """One worker, which has seen no task."""
    with mh.Pool(1) as pool:
        yield pool


def make() -> Array:
    return np.arange(float(COUNT))


def write(array: Array) -> None:
    array[3] = 1


def frame() -> pd.DataFrame:
    numbers = np.arange(COUNT // 10)
    return pd.DataFrame(
        {
            "floats": numbers / 7,
            "integers": numbers,
            "strings": [f"name {number % 100}" for number in numbers],
            "categories": pd.Categorical([f"kind {number % 5}" for number in numbers]),
        }
    )


VALUES: dict[str, Callable[[], Any]] = {
    "array": make,
    "Fortran order": lambda: np.asfortranarray(make().reshape(1000, -1)),
    "every second": lambda: make()[::2],
    "big-endian": lambda: make().astype(">f8"),
    "records": lambda: np.zeros(COUNT, [("a", "<i4"), ("b", "S5")]),
    "objects": lambda: np.array([1, "text", None, [2]], dtype=object),
    "small array": lambda: np.arange(10),
    "0-d": lambda: np.array(2.5),
    "without elements": lambda: np.zeros((0, 3)),
    "masked": lambda: np.ma.MaskedArray(make(), mask=make() % 2 == 0),
    "frame": frame,
    "series": lambda: frame()["floats"],
    "index": lambda: pd.Index(make()),
    "bytes": lambda: bytes(SIZE),
    "bytearray": lambda: bytearray(SIZE),
    "no bytes": lambda: b"",
    "dict": lambda: {"arrays": [make(), make()], "deep": {"er": (make(), "text")}, 7: None},
    "dataclass": lambda: Sample("one", make()),
    "plain": lambda: {"a": [1, 2.5, "text", None, True], "b": (1, b"bytes")},
    "number": lambda: 5,
    "text": lambda: "text" * 100_000,
    "nothing": lambda: None,
}


def unlocked(text: str) -> str:
    """A description without what it says of being writable."""
    return text.replace(", 'writeable'", "").replace("'writeable'", "")


@pytest.mark.parametrize("name", VALUES)
def test_it_is_equal(pool: mh.Pool, name: str) -> None:
    value = VALUES[name]()
    before = describe(value)
    # In the layout that pickle gives it.
    expected = unlocked(describe(pickle.loads(pickle.dumps(value, 5))))
    put = mh.put(value)
    assert type(put) is type(value)
    assert unlocked(describe(put)) == expected
    assert unlocked(pool.submit(describe, put).result()) == expected
    assert list(map(unlocked, pool.map(describe, [put, put]))) == [expected] * 2
    returned = pool.submit(same, put).result()
    assert type(returned) is type(value)
    assert unlocked(describe(returned)) == expected
    assert describe(value) == before


def test_it_is_a_snapshot(pool: mh.Pool) -> None:
    array = make()
    put, wrapped = mh.put(array), mh.put([array])
    array[:] = -1
    assert np.array_equal(put, make())
    assert np.array_equal(wrapped[0], make())
    assert pool.submit(np.sum, put).result() == make().sum()
    assert array.flags.writeable


def test_nobody_writes_to_it(pool: mh.Pool) -> None:
    put = mh.put(make())
    assert not put.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        put[3] = 1
    with pytest.raises(ValueError, match="read-only"):
        put[10:20] += 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        put.flags.writeable = True
    for array in (put, put[:], put[10:20_000], [put][0].reshape(1000, -1)):
        error = pool.submit(write, array).exception()
        assert isinstance(error, ValueError)
        assert "read-only" in str(error)
        notes = "\n".join(error.__notes__)
        assert "share()" in notes
        assert ".copy()" in notes
    assert np.array_equal(put, make())
    copied = pool.submit(lambda array: array.copy() + 1, put).result()
    assert np.array_equal(copied, put + 1)


def test_nothing_in_a_task_may_write_to_it(pool: mh.Pool) -> None:
    """Neither through the array nor through the memory below it."""

    def writable(array: Array) -> list[str]:
        found = []
        memory: Any = array
        while memory is not None:
            try:
                ctypes.c_char.from_buffer(memory)
                found.append(type(memory).__name__)
            except TypeError:
                pass
            memory = getattr(memory, "base", getattr(memory, "obj", None))
        return found

    put = mh.put(make())
    for part in (put, put[10:], put.reshape(1000, -1)[5:].T):
        assert writable(part) == []
        assert pool.submit(writable, part).result() == []
        assert writable(pool.submit(same, part).result()) == []
    # Others are their tasks' own.
    assert "ndarray" in pool.submit(writable, make()).result()


def test_writers_and_readers_of_one_block(single: mh.Pool) -> None:
    """A result and what was put of it are one block, of which a task may write to one."""

    def write(*arrays: Array) -> list[float]:
        for number, array in enumerate(arrays):
            if array.flags.writeable:
                array[:] = number + 50
        return [float(array[0]) for array in arrays]

    result = single.submit(np.full, COUNT, 3.0).result()
    before = live(single)
    put = mh.put(result)
    assert live(single) == before
    for _ in range(3):
        assert single.submit(write, result, put).result() == [50, 3]
        assert single.submit(write, put, result).result() == [3, 51]
        assert single.submit(write, put, result, put[5:], result[5:]).result() == [3, 51, 3, 53]
        assert single.submit(float, put[7]).result() == 3
    # Kept from one task to the next: first who reads, then who writes.
    for kept_one, other in ((put, result), (result, put)):
        single.submit(keep, kept_one).result()
        for _ in range(3):
            expected = [50, 3] if other is result else [3, 3]
            assert single.submit(write, other, put).result() == expected
            assert single.submit(lambda: float(kept[0][0])).result() == 3
        single.submit(drop_kept).result()
    assert (result == 3).all()
    assert (put == 3).all()


def test_its_views_share_one_mapping(single: mh.Pool) -> None:
    """A worker maps the store once for all that it sees of what was put, however much it keeps."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("manyhands-store")

    put = mh.put(make())
    single.submit(np.sum, put).result()
    base = single.submit(mappings).result()
    assert base == 2
    for start in range(0, COUNT, COUNT // 20):
        single.submit(keep, put[start:]).result()
        assert single.submit(mappings).result() == base
    assert single.submit(lambda: len(kept)).result() == 20
    # What a task may write to has its own mapping beside them.
    result = single.submit(make).result()
    mh.put(result)
    single.submit(keep, result).result()
    single.submit(keep, result).result()
    assert single.submit(mappings).result() == base + 1
    single.submit(drop_kept).result()
    assert single.submit(mappings).result() == base


def test_to_look_again_takes_no_page_fault(single: mh.Pool) -> None:
    def faults(array: Array) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array.sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    put = mh.put(make())
    parts = [put[start : start + COUNT // 20] for start in range(0, COUNT, COUNT // 20)]
    pages = SIZE // resource.getpagesize()
    single.submit(faults, make()).result()
    first = sum(single.map(faults, parts))
    again = [sum(single.map(faults, parts)) for _ in range(5)]
    # The kernel maps some pages around each fault.
    assert first >= pages / 100
    assert min(again) <= 3, f"{first} at first, then {again}"


def test_other_errors_have_no_such_note(pool: mh.Pool) -> None:
    """Neither one of the user's own, nor one about an array that was never put."""

    def fail(array: Array) -> None:
        raise ValueError("a matter of taste")

    def lock(array: Array) -> None:
        array.flags.writeable = False
        array[0] = 1

    for function, argument in ((fail, mh.put(make())), (lock, make())):
        error = pool.submit(function, argument).exception()
        assert isinstance(error, ValueError)
        assert "share()" not in "\n".join(getattr(error, "__notes__", []))


def test_nobody_writes_to_what_holds_it(pool: mh.Pool) -> None:
    put = mh.put({"array": make(), "frame": pd.DataFrame({"a": make()})})
    assert not put["array"].flags.writeable

    def write_array(held: dict[str, Any]) -> None:
        held["array"][0] = 1

    def write_frame(held: dict[str, Any]) -> None:
        held["frame"].iloc[0, 0] = 1.0

    for function in (write_array, write_frame):
        with pytest.raises(ValueError, match="read-only"):
            function(put)
        error = pool.submit(function, put).exception()
        assert isinstance(error, ValueError)
        assert ".copy()" in "\n".join(error.__notes__)
    # What holds the arrays is each one's own.
    assert pool.submit(lambda held: held.pop("array").sum(), put).result() == make().sum()
    assert np.array_equal(put["array"], make())


def test_tables_are_grouped_in_tasks(pool: mh.Pool) -> None:
    table = frame()

    def totals(table: pd.DataFrame) -> pd.Series:
        return table.groupby("categories", observed=True)["floats"].sum()

    put = mh.put(table)
    pd.testing.assert_frame_equal(put, table)
    for result in pool.map(totals, [put, put[100:20_000], put]):
        assert len(result) == 5
    pd.testing.assert_series_equal(pool.submit(totals, put).result(), totals(table))
    changed = pool.submit(lambda table: table.assign(floats=0.0), put).result()
    assert not changed["floats"].any()
    pd.testing.assert_frame_equal(put, table)


PASSED: dict[str, Callable[[Array], Any]] = {
    "itself": same,
    "list": lambda put: [1, put],
    "dict": lambda put: {"a": {"b": put}},
    "dataclass": lambda put: Sample("one", put),
    "twice": lambda put: (put, put),
    "slice": lambda put: put[1000:-1000],
    "two slices": lambda put: [put[:-10], put[10:]],
    "table": lambda put: put.reshape(1000, -1),
    "row": lambda put: put.reshape(2, -1)[1],
    "transposed": lambda put: put.reshape(1000, -1).T,
    "other type": lambda put: put.view("<i8"),
    "every other": lambda put: put[::2],
    "backwards": lambda put: put[-5:5:-1],
    "columns": lambda put: put.reshape(1000, -1)[:, 20:400],
    "columns of a part": lambda put: Sample("one", put.reshape(100, -1)[10:90, 30:4000:3].T),
    "part of the bytes": lambda put: put.view("<i4").reshape(-1, 2)[:, 1],
    "repeated": lambda put: np.broadcast_to(put[::2], (3, len(put) // 2)),
}


@pytest.mark.parametrize("name", PASSED)
def test_a_reference_is_passed(pool: mh.Pool, gate: Gate, name: str) -> None:
    """With the workers held up, what is in the store is one copy, however often it was sent."""
    put = mh.put(make())
    value = PASSED[name](put)
    blocked = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    before = live(pool)
    assert before >= SIZE
    futures = [pool.submit(describe, value) for _ in range(20)]
    assert live(pool) < before + SIZE // 2
    gate.open()
    assert {future.result() for future in futures} == {describe(value)}
    assert [future.result() for future in blocked] == [None, None]
    del put, value
    until_released(pool, "live", most=before - SIZE)


def test_a_part_with_gaps_is_written_to_by_nobody(pool: mh.Pool) -> None:
    put = mh.put(make())
    part = put.reshape(1000, -1)[:, ::2]
    with pytest.raises(ValueError, match="read-only"):
        pool.submit(write, part).result()
    result = pool.submit(same, make()).result()
    part = result.reshape(1000, -1)[:, ::2]
    # What comes of a result is private and writable, as the result is.
    pool.submit(write, part).result()
    assert (result == make()).all()


def test_many_tasks_over_slices(pool: mh.Pool) -> None:
    put = mh.put(make())
    before = live(pool)
    parts = [put[start : start + COUNT // 1000] for start in range(0, COUNT, COUNT // 1000)]
    expected = [float(part.sum()) for part in parts]
    assert len(parts) == 1000
    assert [float(one) for one in pool.map(np.sum, parts)] == expected
    futures = [pool.submit(np.sum, part) for part in parts]
    assert live(pool) < before + SIZE // 2
    assert [float(future.result()) for future in futures] == expected


def test_it_is_handed_back_by_reference(pool: mh.Pool) -> None:
    put = mh.put(make())
    before = live(pool)
    results = [pool.submit(same, put).result() for _ in range(10)]
    results += [pool.submit(lambda array: array[5:-5], put).result() for _ in range(10)]
    assert live(pool) < before + SIZE // 2
    assert all(np.array_equal(result, put) for result in results[:10])
    assert all(np.array_equal(result, put[5:-5]) for result in results[10:])


def test_to_put_it_again_moves_nothing(pool: mh.Pool) -> None:
    result = pool.submit(make).result()
    before = live(pool)
    put = mh.put(result)
    assert not put.flags.writeable
    # A result belongs to its owner, who may write to it after that.
    result[0] = 7
    assert put[0] == 0
    after = live(pool)
    again = mh.put(put)
    assert live(pool) == after
    assert before <= after <= before + 2 * SIZE
    assert np.array_equal(again, put)


def test_it_survives_its_pool_and_goes_to_any() -> None:
    put = mh.put(make())
    total = make().sum()
    for _ in range(2):
        with mh.Pool(1) as first, mh.Pool(2) as second:
            assert first.submit(np.sum, put).result() == total
            assert list(second.map(np.sum, [put] * 3)) == [total] * 3
    for engine in ("thread", "inline"):
        with mh.Pool(2, engine=engine) as pool:
            assert pool.submit(np.sum, put).result() == total
            assert not pool.submit(lambda array: array.flags.writeable, put).result()
    assert mh.submit(np.sum, put[10:]).result() == put[10:].sum()
    assert np.array_equal(put, make())


def test_it_is_freed_when_it_is_dropped(pool: mh.Pool) -> None:
    before = live(pool)
    for _ in range(30):
        put = mh.put(make())
        assert live(pool) >= before + SIZE
        assert pool.submit(np.sum, put).result() == make().sum()
        del put
        until_released(pool, "live", most=before)
    part = mh.put([make(), make()])[1][10:20]
    assert live(pool) >= before + SIZE
    assert part.tolist() == list(range(10, 20))
    del part
    until_released(pool, "live", most=before)


def test_a_task_keeps_it(pool: mh.Pool) -> None:
    """A worker holds it on after the parent has dropped it; more of it costs no more."""

    def kept_sums() -> list[float]:
        return [float(array.sum()) for array in kept]

    with mh.Pool(1) as single:
        before = live(single)
        put = mh.put(make())
        for _ in range(5):
            single.submit(keep, put).result()
        assert live(single) < before + SIZE + SIZE // 2
        del put
        for number in range(50):
            assert single.submit(np.max, np.full(COUNT, float(number))).result() == number
        assert live(single) >= before + SIZE
        assert single.submit(kept_sums).result() == [make().sum()] * 5
        single.submit(drop_kept).result()
        until_released(single, "live", most=before)


def test_a_captured_one_is_read_only(pool: mh.Pool) -> None:
    put = mh.put(make())
    assert pool.submit(lambda: float(put.sum())).result() == make().sum()
    assert pool.submit(lambda: bool(put.flags.writeable)).result() is False
    assert list(pool.map(lambda number: float(put[number]), range(100))) == list(range(100))
