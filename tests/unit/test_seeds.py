"""Random numbers of tasks: what is seeded besides `rng()`, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import SeedSequence

import manyhands as mh

SEED = 7

# All that is global and that tasks draw from.
Drawn = tuple[float, float, int]


def draw(_item: object = None) -> Drawn:
    return random.random(), float(np.random.rand()), int(mh.rng().integers(1 << 62))


def expected(*path: int) -> Drawn:
    """The same without manyhands."""
    sequence = SeedSequence(SEED, spawn_key=path)
    return (
        random.Random(f"{SEED}/{','.join(map(str, path))}").random(),
        float(np.random.RandomState(sequence.generate_state(8)).rand()),
        int(np.random.default_rng(sequence).integers(1 << 62)),
    )


# What stands for torch, which is no dependency of the tests.
TORCH = """
import random
_own = random.Random(1)
rand, get_rng_state, set_rng_state = _own.random, _own.getstate, _own.setstate
def manual_seed(number):
    assert 0 <= number < 1 << 63
    _own.seed(number)
def seed():
    _own.seed()
"""


def run(folder: Path, program: str) -> str:
    """What a program prints that finds modules in the folder first."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_workers(pool: mh.Pool, most: int = 8) -> int:
    """Kills workers that were born; how many."""
    kills = 0
    for worker in pool.stats().workers[:most]:
        if worker.pid:  # else it is being born
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
                kills += 1
    return kills


@pytest.fixture(params=["process", "inline"])
def own_globals(request: pytest.FixtureRequest) -> Iterator[mh.Pool]:
    """Engines whose tasks have the global generators for themselves."""
    with mh.Pool(2, engine=request.param) as pool:
        yield pool


def test_global_generators_are_seeded(own_globals: mh.Pool) -> None:
    pool = own_globals
    wanted = [expected(i) for i in range(30)]
    assert pool.map(draw, range(30), seed=SEED).list() == wanted
    view = pool.options(seed=SEED)
    assert [view.submit(draw).result(timeout=60) for _ in range(3)] == wanted[:3]


def test_a_generator_goes_on_with_the_global_ones(own_globals: mh.Pool) -> None:
    def draw_some(_item: int) -> Iterator[Drawn]:
        for _ in range(3):
            yield draw()

    found = []
    for drawn in own_globals.map(draw_some, range(2), seed=SEED):
        draw()  # what the caller draws is nothing to the task
        found.append(drawn)
    for index in range(2):
        own = random.Random(f"{SEED}/{index}")
        wanted = [own.random() for _ in range(3)]
        assert [drawn[0] for drawn in found[3 * index : 3 * index + 3]] == wanted
    assert found[0] == expected(0)
    assert found[3] == expected(1)
    assert len(set(found)) == 6


def test_inline_tasks_leave_the_callers_generators_as_they_were() -> None:
    def draw_and_fail(_item: object) -> None:
        draw()
        raise LookupError

    random.seed(3)
    np.random.seed(3)
    wanted = [(random.random(), float(np.random.rand())) for _ in range(6)]
    random.seed(3)
    np.random.seed(3)
    found = []
    with mh.Pool(engine="inline", seed=SEED) as pool:
        results = pool.map(draw, range(2))
        for _ in range(2):
            found.append((random.random(), float(np.random.rand())))
            next(results)
        found.append((random.random(), float(np.random.rand())))
        pool.submit(draw).result()
        found.append((random.random(), float(np.random.rand())))
        with pytest.raises(LookupError):
            pool.submit(draw_and_fail, 0).result()
        found.append((random.random(), float(np.random.rand())))
        list(pool.map(draw_and_fail, [0], on_error="return"))
        found.append((random.random(), float(np.random.rand())))
    assert found == wanted


def test_threads_leave_the_global_generators_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes()
    with mh.Pool(2, engine="thread", seed=SEED) as pool:
        pool.map(lambda _: mh.rng().random(), range(20)).list()
    after = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes()
    assert after == before


def test_nothing_of_a_seed_is_left_for_tasks_without_one() -> None:
    drawn = []
    with mh.Pool(1) as pool:
        for _ in range(4):
            pool.map(draw, [0], seed=SEED).list()
            drawn.append(pool.submit(draw).result(timeout=60))
            pool.options(seed=SEED).submit(draw).result(timeout=60)
            drawn += pool.map(draw, range(2)).list()
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == 12


def test_numpy_9650_each_worker_and_each_replacement_draws_its_own() -> None:
    """P13 (numpy#9650, numpy#14729, numpy#12231): forked workers all draw the same numbers."""

    drawn: list[tuple[int, Drawn]] = []

    def first(_item: int) -> tuple[int, Drawn]:
        import time

        time.sleep(0.05)  # so that all workers take part
        return os.getpid(), draw()

    with mh.Pool(3, preload=["random", "numpy.random"]) as pool:
        for _ in range(3):
            by_worker: dict[int, Drawn] = {}
            for pid, values in pool.map(first, range(12)):
                by_worker.setdefault(pid, values)
            drawn += by_worker.items()
            kill_workers(pool)
    assert len(dict(drawn)) >= 3
    for kind in zip(*dict(drawn).values(), strict=True):
        assert len(set(kind)) == len(dict(drawn))


def test_pytorch_5059_each_worker_draws_its_own_of_torch_too(tmp_path: Path) -> None:
    """P13 (pytorch#5059): what was imported before the fork draws the same in all workers."""
    (tmp_path / "torch.py").write_text(TORCH)
    program = """if True:
        import os
        import time
        from pathlib import Path
        import manyhands as mh

        def task(index):
            import torch
            folder = Path(torch.__file__).parent
            (folder / f"drawing {os.getpid()}").touch()
            while len(list(folder.glob("drawing *"))) < 2:
                time.sleep(0.001)  # so that both take part
            return os.getpid(), torch.rand()

        with mh.Pool(2, preload=["torch"]) as pool:
            drawn = pool.map(task, range(40)).list()
            assert len({pid for pid, _ in drawn}) == 2
            assert len({number for _, number in drawn}) == 40, drawn
    """
    assert run(tmp_path, program) == ""


def inside(index: int) -> float:
    """The share of so many points in a circle, and a jump at random."""
    points = mh.rng().random((1000, 2))
    share = float(((points**2).sum(axis=1) < 1).mean())
    return share + float(mh.rng().normal()) * 1e-3 + index


def test_monte_carlo_is_bit_equal_on_any_workers_with_deaths(tmp_path: Path) -> None:
    """P13 (numpy#9650): one seed, one result, whoever computes it and however often."""

    def with_deaths(index: int, folder: str) -> float:
        value = inside(index)
        trace = Path(folder, str(index))
        if index % 17 == 3 and not trace.exists():
            trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    with mh.Pool(engine="inline") as pool:
        wanted = pool.map(inside, range(200), seed=SEED).list()
    assert len(set(wanted)) == 200
    for workers in (1, 2, 8):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with mh.Pool(workers) as pool:
            assert pool.map(inside, range(200), seed=SEED).list() == wanted
            retry = mh.Retry(0, deaths=9)
            items = [(index, str(folder)) for index in range(200)]
            assert list(pool.starmap(with_deaths, items, seed=SEED, retry=retry)) == wanted
            unordered = pool.map(inside, range(200), seed=SEED, ordered=False)
            assert sorted(unordered) == sorted(wanted)
        assert len(list(folder.iterdir())) == 12
    for workers in (1, 2, 8):
        with mh.Pool(workers, engine="thread") as pool:
            assert pool.map(inside, range(200), seed=SEED).list() == wanted


def by_generator() -> list[float]:
    """A share of points by `random`, by NumPy's global generator, and by that of the task."""
    points = np.array([random.random() for _ in range(400)]).reshape(200, 2)
    return [
        float(((drawn**2).sum(axis=1) < 1).mean()) + float(drawn[-1, 0]) * 1e-3
        for drawn in (points, np.random.rand(200, 2), mh.rng().random((200, 2)))
    ]


def test_monte_carlo_by_global_generators_with_deaths_and_failures(tmp_path: Path) -> None:
    """P13 (numpy#9650, numpy#14729): the same with what is global, where tasks have that for
    themselves. On threads they have not, and only `rng()` is promised."""

    def with_trouble(index: int, folder: str, deadly: bool) -> list[list[float]]:
        first = by_generator()
        trace = Path(folder, str(index))
        # In the middle: what was drawn before is drawn again.
        if index % 5 == 3 and not trace.exists():
            trace.touch()
            if deadly and index % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError
        return [first, by_generator()]

    def in_threads(index: int, folder: str) -> list[float]:
        values = [inside(index)]
        trace = Path(folder, str(index))
        if index % 5 == 3 and not trace.exists():
            trace.touch()
            raise OSError
        return [*values, inside(index)]

    with mh.Pool(engine="inline") as pool:
        wanted = pool.map(lambda _: [by_generator(), by_generator()], range(60), seed=SEED).list()
        calm = pool.map(lambda index: [inside(index), inside(index)], range(60), seed=SEED).list()
    shares = [share for first, second in wanted for share in first + second]
    assert len(set(shares)) == 60 * 6, "each draws its own"
    retry = mh.Retry(2, deaths=9)
    for engine, workers in (("process", 1), ("process", 2), ("process", 8), ("inline", 1)):
        folder = tmp_path / f"{engine} {workers}"
        folder.mkdir()
        items = [(index, str(folder), engine == "process") for index in range(60)]
        with mh.Pool(workers, engine=engine) as pool:
            assert list(pool.starmap(with_trouble, items, seed=SEED, retry=retry)) == wanted
            deaths = pool.stats().deaths
        assert len(list(folder.iterdir())) == 12
        assert deaths == (6 if engine == "process" else 0)
    for workers in (1, 2, 8):
        folder = tmp_path / f"threads {workers}"
        folder.mkdir()
        calls = [(index, str(folder)) for index in range(60)]
        with mh.Pool(workers, engine="thread") as pool:
            assert list(pool.starmap(in_threads, calls, seed=SEED, retry=retry)) == calm
        assert len(list(folder.iterdir())) == 12


def test_a_worker_that_is_killed_from_outside_changes_nothing() -> None:
    def slow(index: int) -> float:
        import time

        time.sleep(0.002)
        return inside(index)

    with mh.Pool(2) as pool:
        wanted = pool.map(inside, range(100), seed=SEED).list()
        results = pool.map(slow, range(100), seed=SEED, retry=mh.Retry(0, deaths=9))
        found, kills = [], 0
        for count, value in enumerate(results):
            found.append(value)
            if count % 25 == 10:
                kills += kill_workers(pool, 1)
        assert found == wanted
        assert kills > 0


def test_a_library_that_a_task_imports_itself_is_seeded(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    program = """if True:
        import sys
        import manyhands as mh

        def task(index):
            import importlib.util
            assert importlib.util.find_spec("torch").name == "torch"
            first = "numpy" not in sys.modules and "torch" not in sys.modules
            import numpy as np
            import torch
            assert not type(torch.__loader__).__module__.startswith("manyhands")
            assert torch.__spec__.loader is torch.__loader__
            return first, float(np.random.rand()), torch.rand()

        for engine in ("process", "inline"):
            with mh.Pool(1, engine=engine, seed=7) as pool:
                rows = [pool.map(task, range(3), seed=7).list() for _ in range(2)]
                assert [row[0] for row in rows[0]] == [True, False, False], (engine, rows)
                assert [row[1:] for row in rows[0]] == [row[1:] for row in rows[1]]
                assert len({row[1:] for row in rows[0]}) == 3
                print(rows[1])
            assert not any("_seeds" in type(one).__module__ for one in sys.meta_path)
    """
    on_processes, inline = run(tmp_path, program).splitlines()
    assert on_processes == inline


def test_without_numpy_random_is_seeded_the_same(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('no numpy', name='numpy')\n")
    program = """if True:
        import random
        import manyhands as mh

        def task(index):
            return random.random()

        def ask(index):
            return mh.rng()

        with mh.Pool(2) as pool:
            print(pool.map(task, range(5), seed=7).list())
            print(pool.submit(ask, 0).exception())
            print(pool.options(seed=7).submit(ask, 0).exception())
    """
    drawn, *errors = run(tmp_path, program).splitlines()
    assert drawn == str([expected(i)[0] for i in range(5)])
    assert len(errors) == 2
    for error in errors:
        assert error.startswith("rng() gives a generator of NumPy, which is not installed")


def test_without_a_task_rng_is_of_the_process() -> None:
    assert mh.rng() is mh.rng()
    with mh.Pool(2) as pool:
        drawn = [value[2] for value in pool.map(draw, range(20))]
    assert len({*drawn, int(mh.rng().integers(1 << 62))}) == 21


def test_the_shared_pools_take_a_seed() -> None:
    assert mh.map(draw, range(3), seed=SEED).list() == [expected(i) for i in range(3)]
    assert list(mh.starmap(draw, [(1,)], seed=SEED)) == [expected(0)]
    assert mh.options(seed=SEED).submit(draw).result(timeout=60) == expected(0)


def test_an_initializer_takes_nothing_from_the_streams() -> None:
    def start() -> None:
        draw()

    with mh.Pool(2, initializer=start, seed=SEED) as pool:
        assert pool.map(draw, range(5)).list() == [expected(0, i) for i in range(5)]


def test_other_spellings_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"map\(\) has no random_state=; write seed="):
        mh.map(draw, [0], random_state=3)  # type: ignore[call-overload]


def test_a_seed_for_the_function_is_named() -> None:
    with mh.Pool(1) as pool:
        error: Any = pool.submit(len, "a", seed=3).exception(timeout=60)  # type: ignore[call-arg]
    assert isinstance(error, TypeError)

    def plain(item: int) -> int:
        return item

    with mh.Pool(1) as pool:
        error = pool.submit(plain, 1, seed=3).exception(timeout=60)  # type: ignore[call-arg]
    assert "pool.options(seed=3).submit(...)" in "".join(error.__notes__)


def test_options_with_a_seed_travel_and_show_it() -> None:
    with mh.Pool(1) as pool:
        view = pool.options(seed=5)
        assert "seed=5" in repr(view)
        options = pickle.loads(pickle.dumps(view._options))
        assert options.seed.number == 5
        assert options.but(grace=1).seed is options.seed
        assert options.but(seed=None).seed is None


@pytest.mark.parametrize("path", [(), (0,), (3,), (1 << 32,), (2**64 - 1, 5), tuple(range(40))])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**96 + 7, 2**128 - 1])
def test_the_words_that_seed_numpy_are_those_of_its_sequence(
    seed: int, path: tuple[int, ...]
) -> None:
    words = mh._core.seed_words(seed, path)
    assert words == SeedSequence(seed, spawn_key=path).generate_state(8).tolist()
