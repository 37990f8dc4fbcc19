"""What is put past the budget: on disk, and like what is in memory."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import manyhands as mh
import procfs
from arrays import describe, drop_kept, keep, kept, same
from gate import Gate, pass_through
from manyhands import _core, _store
from observing import until_released
from programs import program, program_test, started

Array = np.ndarray[Any, Any]

# Bytes of an array of which one fits in the budget, and how many numbers these are.
SIZE = 4_000_000
COUNT = SIZE // 8
BUDGET = 6_000_000


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that has no room left."""
    stats = _core.store_stats()
    assert not stats["spilled"]
    _store.set_budget(BUDGET)
    # What is warm is used again, whatever the budget.
    filling = []
    while not _core.store_stats()["spilled"]:
        filling.append(mh.put(make(-1)))
    filling.pop()
    monkeypatch.setattr(_store, "_is_warned", False)
    yield
    assert all((array == -1).all() for array in filling)
    _store.set_budget(stats["budget"])


@pytest.fixture
def pool(full: None) -> Iterator[mh.Pool]:
    """A pool whose store has no room left."""
    with mh.Pool(2) as pool:
        yield pool
        until_released(pool, "spilled")


def make(number: float) -> Array:
    return np.full(COUNT, float(number))


def write(array: Array) -> None:
    array[3] = 1


VALUES: dict[str, Any] = {
    "array": lambda: np.arange(float(COUNT)),
    "structure": lambda: {"arrays": [make(1), make(2)], "text": "text", "bytes": bytes(100)},
    "frame": lambda: pd.DataFrame({"a": make(1), "b": np.arange(COUNT)}),
    "records": lambda: np.zeros(COUNT, [("a", "<i4"), ("b", "S5")]),
    "big-endian": lambda: np.arange(COUNT).astype(">i8"),
}


@pytest.mark.parametrize("name", VALUES)
def test_it_is_equal(pool: mh.Pool, name: str) -> None:
    value = VALUES[name]()
    put = mh.put(value)
    assert pool.stats().store.spilled >= COUNT
    assert type(put) is type(value)
    expected = describe(put)
    assert pool.submit(describe, value).result().replace(", 'writeable'", "") == expected.replace(
        ", 'writeable'", ""
    )
    assert list(pool.map(describe, [put, put])) == [expected] * 2
    assert describe(pool.submit(same, put).result()) == expected


def test_nobody_writes_to_it(pool: mh.Pool) -> None:
    put = mh.put(make(5))
    with pytest.raises(ValueError, match="read-only"):
        put[3] = 1
    for array in (put, put[10:], [put][0].reshape(100, -1)):
        error = pool.submit(write, array).exception()
        assert isinstance(error, ValueError)
        assert "read-only" in str(error)
        notes = "\n".join(error.__notes__)
        assert "share()" in notes
        assert ".copy()" in notes
    assert (put == 5).all()


def test_a_reference_is_passed(pool: mh.Pool, gate: Gate) -> None:
    put = mh.put(np.arange(float(COUNT)))
    blocked = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    before = pool.stats().store
    parts = [put, put[1000:], {"a": [put[:-5]]}, put.reshape(2, -1)[1]]
    futures = [pool.submit(describe, part) for part in parts * 10]
    after = pool.stats().store
    assert (after.spilled, after.live, after.in_flight) == (before.spilled, before.live, 0)
    gate.open()
    assert [future.result() for future in futures] == [describe(part) for part in parts] * 10
    assert [future.result() for future in blocked] == [None] * 2
    results = [pool.submit(same, put[5:]).result() for _ in range(10)]
    assert all(np.array_equal(result, put[5:]) for result in results)
    assert pool.stats().store.spilled == before.spilled


def test_to_put_it_again_moves_nothing(pool: mh.Pool) -> None:
    put = mh.put(make(3))
    before = pool.stats().store
    again = mh.put({"part": put[10:], "whole": put})
    assert pool.stats().store.spilled == before.spilled
    del put
    assert (again["whole"] == 3).all()
    assert (again["part"] == 3).all()


def test_its_space_is_free_when_nobody_holds_it(pool: mh.Pool) -> None:
    before = files_on_disk()
    for _ in range(10):
        put = mh.put(make(4))
        assert pool.stats().store.spilled >= SIZE
        assert pool.submit(np.sum, put).result() == 4 * COUNT
        del put
        until_released(pool, "spilled")
    assert files_on_disk() == before


def files_on_disk() -> list[str]:
    """The descriptors of this process of files without a name in the temporary directory."""
    folder = os.path.realpath(tempfile.gettempdir())
    return [
        what
        for what in procfs.descriptors().values()
        if what.startswith(folder) and what.endswith("(deleted)") and "memfd" not in what
    ]


def test_a_task_keeps_it(full: None) -> None:
    def sums() -> list[float]:
        return [float(array.sum()) for array in kept]

    with mh.Pool(1) as single:
        put = mh.put(make(2))
        single.submit(keep, put[10:]).result()
        del put
        for number in range(20):
            other = mh.put(make(number))
            assert single.submit(np.max, other).result() == number
        del other
        assert single.submit(sums).result() == [2.0 * (COUNT - 10)]
        assert single.stats().store.spilled >= SIZE
        single.submit(drop_kept).result()
        until_released(single, "spilled")
        single.submit(keep, mh.put(make(2))).result()
        assert single.stats().store.spilled >= SIZE
        assert isinstance(single.submit(os._exit, 1).exception(), mh.WorkerDied)
        until_released(single, "spilled")


def test_it_goes_to_any_pool(pool: mh.Pool) -> None:
    put = mh.put(make(2))
    for engine in ("thread", "inline", "process"):
        with mh.Pool(1, engine=engine) as other:
            assert other.submit(np.sum, put).result() == 2 * COUNT

    def nested(array: Array) -> float:
        with mh.Pool(1) as inner:
            return float(inner.submit(np.sum, array).result())

    assert pool.submit(nested, put).result() == 2 * COUNT
    assert pool.submit(lambda array: mh.submit(np.sum, array).result(), put).result() == 2 * COUNT


def test_a_line_in_the_log(pool: mh.Pool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "manyhands"):
        held = [mh.put([make(1), make(2)]), mh.put(make(3))]
    lines = [record for record in caplog.records if "went to a file" in record.getMessage()]
    assert [record.levelname for record in lines] == ["WARNING", "INFO"]
    text = lines[0].getMessage()
    assert text.startswith(f"put: {2 * SIZE} bytes went to a file in {tempfile.gettempdir()}: ")
    assert f"no room for {SIZE} bytes" in text
    assert f"of its {_core.store_stats()['budget']} bytes are in use" in text
    assert len(held) == 2


def test_the_temporary_directory_is_honoured(
    pool: mh.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = mh.put(make(1))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    put = mh.put(make(2))
    assert [what for what in files_on_disk() if what.startswith(str(tmp_path))]
    assert not list(tmp_path.iterdir())
    assert pool.submit(lambda *arrays: [a[-1] for a in arrays], elsewhere, put).result() == [1, 2]


@pytest.mark.parametrize("what", ["missing", "in memory alone"])
def test_no_room_there_either(
    pool: mh.Pool, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P16 (ray#25085): what cannot be spilled is tried again and again, for ever."""
    directory = "/proc" if what == "in memory alone" else str(tmp_path / "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", directory)
    with pytest.raises(MemoryError) as caught:
        mh.put([make(1)])
    text = str(caught.value)
    assert f"the object store has no room for {SIZE} bytes" in text
    assert f"no file in {directory} has room for {SIZE} bytes" in text
    assert pool.stats().store.spilled == 0
    monkeypatch.undo()
    assert pool.submit(np.sum, mh.put(make(1))).result() == COUNT


@program_test
def test_files_may_be_only_so_long() -> None:
    def make(number):
        return np.full(500_000, float(number))

    # The store may be no longer either, and Python ignores the signal that would end others.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, hard))
    with mh.Pool(2) as pool:
        held = [mh.put(make(number)) for number in range(8)]
        for number, array in enumerate(held):
            assert pool.submit(np.sum, array).result(20) == number * 500_000
        assert pool.stats().store.spilled >= 20_000_000
        try:
            mh.put(np.ones(2_000_000))
        except MemoryError as error:
            text = str(error)
        else:
            raise AssertionError("it was put")
        assert "no room for 16000000 bytes" in text, text
        assert os.strerror(errno.EFBIG) in text, text
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_no_temporary_directory() -> None:
    tempfile.gettempdir = lambda: os.listdir("/nowhere")
    with mh.Pool(1, store="1MB") as pool:
        try:
            mh.put(np.ones(500_000))
        except MemoryError as error:
            text = str(error)
        else:
            raise AssertionError("it was put")
        assert "no room for 4000000 bytes" in text, text
        assert "/nowhere" in text, text
        assert pool.submit(np.sum, np.ones(500_000)).result(20) == 500_000


@program
def three_budgets() -> None:
    """P16 (ray#14788, distributed#6110): what is past the budget is spilled, and nothing hangs.

    Three times the budget is put and held: all is right, and all is released.
    """

    with mh.Pool(2, store="64MB") as pool:
        held = [mh.put(np.full(1_000_000, float(number))) for number in range(24)]
        stats = pool.stats().store
        assert 0 < stats.live <= 64_000_000, stats
        assert stats.spilled >= 100_000_000, stats
        for number, array in enumerate(held):
            assert (array == number).all()
            assert pool.submit(np.sum, array).result(20) == number * 1e6
            assert pool.submit(np.sum, array[:10]).result(20) == number * 10
        del held, array
        until_released(pool)
    print("all is well")


def test_three_times_the_budget() -> None:
    assert three_budgets.run(seconds=90).check().out == "all is well\n"


@program
def past_the_budget() -> None:
    """What is in flight is of maps whose results nobody takes meanwhile."""
    with mh.Pool(2, store="9MB") as pool:
        for count in (500_000, 100_000, 20_000):
            arrays = (np.full(count, float(number)) for number in range(30))
            results = pool.map(np.negative, arrays)
            assert [result[-1] for result in results] == [-number for number in range(30)]
        results = pool.map(np.negative, [np.full(500_000, 1.0)] * 10)
        for result in results:
            assert pool.submit(np.sum, result * 2).result(20) == -1_000_000
        # Nor does an object wait for what is its own.
        arrays = [np.full(500_000, float(number)) for number in range(5)]
        assert pool.submit(np.sum, arrays).result(20) == 5_000_000
    print("all is well")


def test_a_map_past_the_budget() -> None:
    assert past_the_budget.run(seconds=60).check().out == "all is well\n"


KILLED = """
import os, time
import numpy as np
import manyhands as mh
if __name__ == "__main__":
    pool = mh.Pool(2, store="1MB")
    held = mh.put(np.ones(1_000_000))
    assert pool.submit(np.sum, held).result() == 1_000_000
    pool.submit(time.sleep, 60)
    print("held", pool.stats().store.spilled, flush=True)
    time.sleep(60)
"""


def test_a_killed_parent_leaves_nothing() -> None:
    with started([sys.executable, "program.py"], files={"program.py": KILLED}) as running:
        running.until("held")
        os.kill(running.pid, signal.SIGKILL)
        ended = running.end()
        assert ended.code == -signal.SIGKILL
        assert not ended.survivors
        assert not ended.leftovers
