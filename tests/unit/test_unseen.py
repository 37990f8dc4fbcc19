"""P15: exceptions of tasks that nobody looks at are told of, once, when their pool ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import random
import re
import time
import weakref
from collections.abc import Iterator

import pytest

import manyhands as mh
from programs import run

ENGINES = ["process", "thread", "inline"]


def fail(number: int) -> None:
    raise ValueError(f"number {number}")


def fail_if(fails: bool) -> int:
    if fails:
        raise LookupError
    return 1


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What was told of unseen exceptions."""
    lines: list[str] = []
    yield lines
    assert [line for line in caplog.messages if "nobody looked" in line] == lines


@pytest.mark.parametrize("engine", ENGINES)
def test_tasks_that_are_submitted_and_forgotten(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    with mh.Pool(2, engine=engine, name="mine") as pool:
        for number in range(20_000):
            pool.submit(fail, number)
        for number in range(100):
            pool.submit(abs, number)
    pool.shutdown()
    [line] = caplog.messages
    assert re.fullmatch(
        r"the pool 'mine': 20,000 tasks failed, and nobody looked at their exceptions; the first: "
        r"ValueError: number \d+ \(task \d+: fail\(\d+\), in .*attempt 1\)"
        if engine != "inline"
        else r"the pool 'mine': 20,000 tasks failed, and nobody looked at their exceptions; the "
        r"first: ValueError: number 0 \(task 0: fail\(0\), in the calling thread\)",
        line,
    ), line
    assert caplog.records[0].name == "manyhands"
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize("engine", ENGINES)
def test_one_task(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    with mh.Pool(1, engine=engine, name="mine") as pool:
        future = pool.submit(fail, 5)
        while not future.done():
            time.sleep(0.001)
        del future
    [line] = caplog.messages
    assert line.startswith(
        "the pool 'mine': 1 task failed, and nobody looked at its exception: ValueError: number 5 "
        "(task 0: fail(5), in "
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_who_looks_is_not_told(engine: str, told: list[str]) -> None:
    async def wait(pool: mh.Pool) -> None:
        with pytest.raises(ValueError, match="number"):
            await pool.submit(fail, 4)

    with mh.Pool(2, engine=engine) as pool:
        with pytest.raises(ValueError, match="number 1"):
            pool.submit(fail, 1).result()
        assert pool.submit(fail, 2).exception() is not None
        futures = [pool.submit(fail, 3) for _ in range(10)]
        for future in concurrent.futures.as_completed(futures):
            assert future.exception() is not None
            assert future.exception() is not None
        del futures, future
        asyncio.run(wait(pool))
        assert pool.map(fail, range(10), on_error="skip").list() == []
        pool.submit(abs, -1)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_cancelled_did_not_fail(engine: str, told: list[str]) -> None:
    with mh.Pool(1, engine=engine) as pool:
        pool.submit(time.sleep, 0.05)
        for _ in range(10):
            pool.submit(abs, -1).cancel()


@pytest.mark.parametrize("engine", ENGINES)
def test_who_looks_after_the_end_is_not_told(engine: str, told: list[str]) -> None:
    with mh.Pool(1, engine=engine) as pool:
        futures = [pool.submit(fail, number) for number in range(10)]
    pool.terminate()
    assert all(future.exception() is not None for future in futures)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_counts_once(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever comes first: that it fails, that it is dropped, or that somebody looks."""
    choose = random.Random(5)
    wanted = 0
    with mh.Pool(2, engine=engine) as pool:
        kept = []
        for _ in range(3000):
            fails, what = choose.random() < 0.5, choose.choice(["drop", "keep", "look", "wait"])
            future = pool.options(retry=choose.choice([0, 1])).submit(fail_if, fails)
            if what == "look":
                assert (future.exception() is not None) == fails
            elif what == "keep":
                kept.append(future)
            elif what == "wait":
                concurrent.futures.wait([future])
            wanted += fails and what in ("drop", "wait")
            del future
        for future in kept:
            future.exception()
    [line] = caplog.messages
    assert f": {wanted:,} tasks failed, and nobody" in line


def test_time_outs_and_deaths_count(caplog: pytest.LogCaptureFixture) -> None:
    with mh.Pool(1, name="mine", grace=0.05) as pool:
        pool.options(task_timeout=0.05).submit(time.sleep, 600)

    def nap() -> None:  # until it is asked to end
        while True:
            time.sleep(0.01)

    with mh.Pool(1, engine="thread", name="other", grace=60) as pool:
        pool.options(task_timeout=0.05).submit(nap)
    assert len(caplog.messages) == 2
    for name, line in zip(["mine", "other"], caplog.messages, strict=True):
        start = f"the pool '{name}': 1 task failed, and nobody looked at its exception: TaskTimeout"
        assert line.startswith(start)


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_nothing_is_kept_of_them(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    class Large:
        pass

    def work(large: Large) -> None:
        raise ValueError(large)

    with mh.Pool(1, engine=engine, copy=engine == "thread") as pool:
        large = Large()
        gone = weakref.ref(large)
        pool.submit(work, large)
        del large
        while pool.stats().pending:
            time.sleep(0.001)
        gc.collect()
        while gone() is not None:  # the thread may hold it for a moment more
            time.sleep(0.001)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", ["pool = mh.Pool(2, engine={!r}, name='x')", "pool = mh"])
def test_at_the_end_of_the_program(engine: str, pool: str) -> None:
    ended = run(
        "-c",
        f"""
import manyhands as mh

def fail(number):
    raise ValueError(number)

mh.configure(engine={engine!r})
{pool.format(engine)}
kept = [pool.submit(fail, number) for number in range(7)]
kept[0].exception()
pool.submit(fail, 99)
""",
    )
    assert ended.code == 0, ended
    (line,) = ended.err.splitlines()
    assert ": 7 tasks failed, and nobody looked at their exceptions" in line


def test_a_program_that_an_exception_ends_is_not_told_of_what_it_would_have_looked_at() -> None:
    ended = run(
        "-c",
        """
import manyhands as mh

pool = mh.Pool(2)
futures = [pool.submit(int, "x") for _ in range(10)]
for future in futures:
    future.result()
""",
    )
    assert ended.code == 1
    assert "nobody looked" not in ended.err


def test_a_future_in_garbage(caplog: pytest.LogCaptureFixture) -> None:
    """The collector may have emptied the exception when the future goes."""
    for engine in ENGINES:
        with mh.Pool(1, engine=engine) as pool:
            for number in range(20):
                future = pool.submit(fail, number)
                while not future.done():
                    time.sleep(0.001)
                future.itself = future  # type: ignore[attr-defined]
                del future
            gc.collect()
    assert len(caplog.messages) == 3
    assert all(": 20 tasks failed" in line for line in caplog.messages)
