"""Random streams of tasks: the same on every engine, whoever runs what, when and how often."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import Capabilities, Mapping
from numpy.random import SeedSequence

import manyhands as mh

SEED = 20260


def draw(_item: object = None) -> int:
    return int(mh.rng().integers(1 << 62))


def expected(*path: int, seed: int = SEED) -> int:
    """What the first draw of the task with that path is, without manyhands."""
    return int(np.random.default_rng(SeedSequence(seed, spawn_key=path)).integers(1 << 62))


def test_a_seed_of_a_map_counts_alone(mapping: Mapping) -> None:
    for _ in range(2):
        assert mapping.map(draw, range(50), seed=SEED).list() == [expected(i) for i in range(50)]
    found = mapping.starmap(draw, [(i,) for i in range(20)], seed=SEED, ordered=False)
    assert set(found) == {expected(i) for i in range(20)}


def test_long_items_have_the_streams_of_their_indexes(pool: mh.Pool) -> None:
    items = [b"x" * (40_000 if i % 2 else 1) for i in range(12)]
    assert pool.map(draw, items, seed=SEED).list() == [expected(i) for i in range(12)]


def test_a_batch_is_one_task(pool: mh.Pool) -> None:
    def draw_all(items: list[int]) -> list[int]:
        return [draw() for _ in items]

    found = pool.map(draw_all, range(6), batch=2, seed=SEED).list()
    assert found[::2] == [expected(0), expected(1), expected(2)]
    assert len(set(found)) == 6


def test_a_seeded_pool_counts_its_calls(engine: Capabilities) -> None:
    def program() -> list[Any]:
        with mh.Pool(2, engine=engine.name, seed=SEED) as pool:
            first, second = pool.submit(draw), pool.submit(draw)
            return [
                first.result(timeout=60),
                second.result(timeout=60),
                pool.map(draw, range(3)).list(),
                pool.options(grace=1).submit(draw).result(timeout=60),
                pool.map(draw, range(2), seed=5).list(),
                list(pool.starmap(draw, [(1,), (2,)])),
            ]

    found = program()
    assert found == program()
    assert found == [
        expected(0),
        expected(1),
        [expected(2, i) for i in range(3)],
        expected(3),
        [expected(i, seed=5) for i in range(2)],
        [expected(4, i) for i in range(2)],
    ]


def test_a_view_with_a_seed_counts_its_own_calls(pool: mh.Pool) -> None:
    view = pool.options(seed=SEED)
    pool.submit(draw).result(timeout=60)
    assert view.submit(draw).result(timeout=60) == expected(0)
    assert view.map(draw, range(2)).list() == [expected(1, 0), expected(1, 1)]
    assert view.options(retry=1).submit(draw).result(timeout=60) == expected(2)
    assert pool.options(seed=SEED).submit(draw).result(timeout=60) == expected(0)


def test_none_is_no_seed(engine: Capabilities) -> None:
    with mh.Pool(2, engine=engine.name, seed=SEED) as pool:
        plain = pool.options(seed=None)
        drawn = [plain.submit(draw).result(timeout=60), *pool.map(draw, range(4), seed=None)]
        assert len(set(drawn)) == 5
        assert not set(drawn) & {expected(0), *(expected(0, i) for i in range(4))}


def test_a_task_has_one_generator(pool: mh.Pool) -> None:
    def same(_item: int) -> tuple[bool, int]:
        generator = mh.rng()
        first = int(generator.integers(1 << 62))
        return mh.rng() is generator, first

    assert pool.map(same, range(8), seed=SEED).list() == [(True, expected(i)) for i in range(8)]


def test_a_run_after_a_failure_draws_the_same(pool: mh.Pool, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def flaky(index: int) -> int:
        drawn = draw()
        trace = Path(folder, f"{index}-ran")
        if not trace.exists():
            trace.write_text(str(drawn))
            raise OSError("the first time")
        assert trace.read_text() == str(drawn)
        return drawn

    wanted = [expected(i) for i in range(10)]
    assert pool.map(flaky, range(10), seed=SEED, retry=2).list() == wanted
    view = pool.options(seed=SEED, retry=2)
    assert [view.submit(flaky, 100 + i).result(timeout=60) for i in range(4)] == wanted[:4]


def test_a_generator_draws_from_one_stream(pool: mh.Pool) -> None:
    def draw_some(_count: int) -> Iterator[int]:
        for _ in range(3):
            yield int(mh.rng().integers(1 << 62))

    wanted = []
    for index in range(4):
        generator = np.random.default_rng(SeedSequence(SEED, spawn_key=(index,)))
        wanted += [int(generator.integers(1 << 62)) for _ in range(3)]
    assert pool.map(draw_some, range(4), seed=SEED).list() == wanted


def test_nested_calls_go_on_from_the_path_of_their_asker(pool: mh.Pool) -> None:
    def below(own: mh.Pool) -> list[Any]:
        return [
            own.submit(draw).result(),
            own.map(draw, range(2)).list(),
            own.submit(draw).result(),
            own.map(draw, range(2), seed=3).list(),
            draw(),
        ]

    def task(_item: int) -> list[Any]:
        return below(pool)

    for _ in range(2):
        assert pool.map(task, range(3), seed=SEED).list() == [
            [
                expected(i, 0),
                [expected(i, 1, 0), expected(i, 1, 1)],
                expected(i, 2),
                [expected(0, seed=3), expected(1, seed=3)],
                expected(i),
            ]
            for i in range(3)
        ]


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("whose", ["askers", "all"])
def test_nested_calls_of_tasks_that_run_again(
    engine: Capabilities, workers: int, whose: str, tmp_path: Path
) -> None:
    """An asker that ends after its first nested call counts its calls anew when it runs again, and
    so whoever it asks draws the same as if nothing had happened. What it asks ends, too."""

    def check(how: str) -> None:
        folder = tmp_path / how
        folder.mkdir()
        retry = mh.Retry(1) if how == "fails" else mh.Retry(0, deaths=9)

        def end_once(name: str, *drawn: int) -> None:
            trace = folder / name
            if trace.exists():
                assert trace.read_text() == str(drawn)  # the same as the first time
                return
            trace.write_text(str(drawn))
            if how == "fails":
                raise OSError("the first time")
            os.kill(os.getpid(), signal.SIGKILL)

        def leaf(name: str) -> int:
            drawn = draw()
            if whose == "all":
                end_once(name, drawn)
            return drawn

        def ask(index: int) -> list[Any]:
            below = pool.options(retry=retry)
            first = below.submit(leaf, f"{index} 0").result()
            rest = below.map(leaf, [f"{index} 1 {item}" for item in range(2)]).list()
            end_once(f"{index}", first, *rest)
            return [first, rest, below.submit(leaf, f"{index} 2").result(), draw()]

        with mh.Pool(workers, engine=engine.name) as pool:
            found = pool.map(ask, range(4), seed=SEED, retry=retry).list()
        assert found == [
            [
                expected(i, 0),
                [expected(i, 1, 0), expected(i, 1, 1)],
                expected(i, 2),
                expected(i),
            ]
            for i in range(4)
        ]
        assert len(list(folder.iterdir())) == (4 if whose == "askers" else 20)

    check("fails")
    if engine.isolation:
        check("dies")


def test_a_pool_that_a_task_makes_goes_on_too(pool: mh.Pool) -> None:
    def task(_item: int) -> list[int]:
        with mh.Pool(2, engine="thread") as inner:
            return inner.map(draw, range(3)).list()

    wanted = [[expected(i, 0, j) for j in range(3)] for i in range(2)]
    assert pool.map(task, range(2), seed=SEED).list() == wanted


def test_a_seed_from_outside_counts_for_nothing_in_a_seeded_task(engine: Capabilities) -> None:
    with mh.Pool(2, engine=engine.name, seed=1) as pool:
        view = pool.options(seed=2)

        def task(_item: int) -> list[int]:
            return [
                pool.submit(draw).result(),
                view.submit(draw).result(),
                *pool.map(draw, range(2)),
            ]

        for _ in range(2):
            assert pool.map(task, range(2), seed=SEED).list() == [
                [expected(i, 0), expected(i, 1), expected(i, 2, 0), expected(i, 2, 1)]
                for i in range(2)
            ]


def test_a_seed_that_a_task_gives_counts_after_its_path(engine: Capabilities) -> None:
    def task(_item: int) -> list[int]:
        view = mh.options(seed=9)
        with mh.Pool(1, engine="inline", seed=8) as inner:
            return [
                view.submit(draw).result(),
                *inner.map(draw, range(2)),
                *inner.map(draw, range(2), seed=SEED),
                view.submit(draw).result(),
            ]

    with mh.Pool(2, engine=engine.name) as pool:
        for _ in range(2):
            assert pool.map(task, range(2), seed=SEED).list() == [
                [
                    expected(i, 0, seed=9),
                    expected(i, 1, 0, seed=8),
                    expected(i, 1, 1, seed=8),
                    expected(0),
                    expected(1),
                    expected(i, 2, seed=9),
                ]
                for i in range(2)
            ]


def test_limits_of_time_change_nothing(pool: mh.Pool) -> None:
    def draw_some(_count: int) -> Iterator[int]:
        for _ in range(2):
            yield draw()

    limited = pool.options(seed=SEED, task_timeout=60)
    assert limited.submit(draw).result(timeout=60) == expected(0)
    wanted = [expected(i) for i in range(5)]
    assert pool.map(draw, range(5), seed=SEED, task_timeout=60).list() == wanted
    found = pool.map(draw_some, range(5), seed=SEED, task_timeout=60).list()
    assert found[::2] == wanted


def test_what_a_task_spawns_is_no_stream_of_its_calls(pool: mh.Pool) -> None:
    def task(_item: int) -> tuple[int, list[int]]:
        spawned = [int(child.integers(1 << 62)) for child in mh.rng().spawn(2)]
        return pool.submit(draw).result(), spawned

    below, spawned = pool.map(task, [0], seed=SEED).list()[0]
    assert below == expected(0, 0)
    assert spawned == [expected(0, 1 << 31), expected(0, (1 << 31) + 1)]


@pytest.mark.parametrize("seed", [0, 1 << 64, (1 << 128) - 1])
def test_seeds_of_all_sizes(pool: mh.Pool, seed: int) -> None:
    assert pool.map(draw, [0], seed=seed).list() == [expected(0, seed=seed)]


@pytest.mark.parametrize("seed", [True, 1.0, "7", np.int64(7), SeedSequence(7)])
def test_other_types_are_refused(pool: mh.Pool, engine: Capabilities, seed: Any) -> None:
    refusal = f"seed must be a whole number of type int, or None, not {type(seed).__name__}"
    with pytest.raises(TypeError, match=refusal):
        pool.map(draw, [0], seed=seed)
    with pytest.raises(TypeError, match=refusal):
        pool.options(seed=seed)
    with pytest.raises(TypeError, match=refusal):
        mh.Pool(1, engine=engine.name, seed=seed)
    with pytest.raises(TypeError, match=refusal):
        mh.options(seed=seed)


@pytest.mark.parametrize("seed", [-1, 1 << 128])
def test_seeds_out_of_bounds_are_refused(pool: mh.Pool, seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be from 0 to 2\*\*128 - 1, not"):
        pool.map(draw, [0], seed=seed)
    with pytest.raises(ValueError, match=r"seed must be from 0 to 2\*\*128 - 1, not"):
        mh.Pool(1, seed=seed)
