"""What type checkers infer from the public API: mypy always, pyright where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[2]

GOOD = """
import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, as_completed, wait
from functools import partial
from typing import Any, assert_type

import manyhands as mh


def one(number: int) -> str:
    return str(number)


def two(number: int, text: str) -> bytes:
    return text.encode() * number


def three(a: int, b: str, c: float) -> list[int]:
    return [a]


def with_default(number: int, text: str = "") -> float:
    return 1.0


def nothing() -> None:
    return None


def several(*numbers: int) -> set[int]:
    return set(numbers)


def keywords(*, key: int) -> dict[str, int]:
    return {"key": key}


class Adder:
    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, number: int) -> complex:
        return self.start + number

    def __call__(self, number: int) -> complex:
        return number


numbers = [1, 2]
texts = ["a", "b"]
floats = (1.0, 2.0)

with mh.Pool(2) as pool:
    assert_type(pool, mh.Pool)
    assert_type(mh.broadcast({"a": 1}), mh.Broadcast[dict[str, int]])
    assert_type(mh.broadcast([1]).value, list[int])
    assert_type(pool.submit(one, 1), mh.Future[str])
    assert_type(pool.submit(one, 1).result(), str)
    assert_type(pool.submit(one, 1).result(timeout=1.5), str)
    assert_type(pool.submit(one, number=1), mh.Future[str])
    assert_type(pool.submit(two, 1, "a"), mh.Future[bytes])
    assert_type(pool.submit(with_default, 1), mh.Future[float])
    assert_type(pool.submit(nothing), mh.Future[None])
    assert_type(pool.submit(several, 1, 2, 3), mh.Future[set[int]])
    assert_type(pool.submit(keywords, key=1), mh.Future[dict[str, int]])
    assert_type(pool.submit(Adder, 1), mh.Future[Adder])
    assert_type(pool.submit(Adder(1).add, 1), mh.Future[complex])
    assert_type(pool.submit(Adder(1), 1), mh.Future[complex])
    assert_type(pool.submit(lambda: 5), mh.Future[int])
    assert_type(pool.submit(partial(two, 1), "a"), mh.Future[bytes])
    assert_type(pool.submit(one, 1).exception(), BaseException | None)
    assert_type(pool.submit(one, 1).cancel(), bool)

    assert_type(pool.map(one, numbers), mh.Results[str])
    assert_type(list(pool.map(one, numbers)), list[str])
    assert_type(pool.map(two, numbers, texts), mh.Results[bytes])
    assert_type(pool.map(three, numbers, texts, floats), mh.Results[list[int]])
    assert_type(pool.map(several, numbers, numbers, numbers, numbers), mh.Results[set[int]])
    assert_type(pool.map(several, *[numbers] * 9), mh.Results[set[int]])
    assert_type(pool.map(with_default, numbers), mh.Results[float])
    assert_type(pool.map(with_default, numbers, texts), mh.Results[float])
    assert_type(pool.map(one, numbers, timeout=5, chunksize=3), mh.Results[str])
    assert_type(pool.map(lambda number: number + 1, numbers), mh.Results[int])
    assert_type(pool.map(lambda a, b: f"{a}{b}", numbers, texts), mh.Results[str])
    assert_type(pool.map(Adder, numbers), mh.Results[Adder])
    assert_type(pool.map(len, texts), mh.Results[int])
    assert_type(pool.map(str.upper, texts), mh.Results[str])
    assert_type(pool.map(one, (number for number in range(3))), mh.Results[str])

    pairs = [(1, "a")]
    assert_type(pool.starmap(two, pairs), mh.Results[bytes])
    assert_type(pool.starmap(two, zip(numbers, texts)), mh.Results[bytes])
    assert_type(pool.starmap(one, [(1,)]), mh.Results[str])
    assert_type(pool.starmap(three, [(1, "a", 1.0)]), mh.Results[list[int]])
    assert_type(pool.starmap(several, [[1, 2], [3]]), mh.Results[set[int]])
    assert_type(pool.starmap(lambda a, b: f"{a}{b}", pairs), mh.Results[str])

    assert_type(pool.stats(), mh.PoolStats)
    assert_type(pool.stats().workers, tuple[mh.WorkerStats, ...])
    assert_type(pool.dump(), mh.PoolDump)
    assert_type(pool.dump().workers[0].stack, str | None)
    assert_type(pool.stats().workers[0].task_age, float | None)

    futures = [pool.submit(one, number) for number in numbers]
    for future in as_completed(futures):
        assert_type(future.result(), str)
    done, pending = wait(futures)
    for ended in done:
        assert_type(ended.result(), str)
    by_input = {pool.submit(one, number): number for number in numbers}
    for future in as_completed(by_input):
        assert_type(future, concurrent.futures.Future[str])

assert_type(mh.submit(one, 1), mh.Future[str])
assert_type(mh.map(one, numbers), mh.Results[str])
assert_type(mh.map(two, numbers, texts), mh.Results[bytes])
assert_type(mh.map(three, numbers, texts, floats), mh.Results[list[int]])
assert_type(mh.map(several, *[numbers] * 9), mh.Results[set[int]])
assert_type(mh.starmap(two, pairs), mh.Results[bytes])
assert_type(mh.cpu_count(), int)


async def main() -> str:
    result = await mh.submit(one, 1)
    assert_type(result, str)
    gathered = await asyncio.gather(mh.submit(one, 1), mh.submit(two, 1, "a"))
    assert_type(gathered, tuple[str, bytes])
    waited = await asyncio.wait_for(mh.submit(one, 1), 5)
    assert_type(waited, str)
    wrapped = await asyncio.wrap_future(mh.submit(one, 1))
    assert_type(wrapped, str)
    loop = asyncio.get_running_loop()
    assert_type(await loop.run_in_executor(mh.Pool(), one, 1), str)
    return result


def use(executor: Executor) -> concurrent.futures.Future[str]:
    return executor.submit(one, 1)


def give() -> Executor:
    return mh.Pool(name="given", initializer=two, initargs=(1, "a"), preload=["json"])


def awaitable() -> Awaitable[str]:
    return mh.submit(one, 1)


def callback(future: concurrent.futures.Future[str]) -> None:
    assert_type(future.result(), str)


use(mh.Pool(2))
mh.submit(one, 1).add_done_callback(callback)

function: Callable[..., Any] = one
assert_type(mh.submit(function, 1), mh.Future[Any])
assert_type(mh.map(function, numbers), mh.Results[Any])


def death(error: mh.WorkerDied) -> tuple[int, str, int | None]:
    return error.pid, error.cause, error.code


class Own(mh.Pool):
    pass


with Own(1) as own:
    assert_type(own, Own)
"""

BAD = """
import manyhands as mh


def one(number: int) -> str:
    return str(number)


def two(number: int, text: str) -> bytes:
    return b""


pool = mh.Pool(2)
mh.nothing
pool.submit(one, "a")
pool.submit(one)
pool.submit(one, 1, 2)
pool.submit(one, number=1, other=2)
pool.submit(5)
pool.map(one, ["a"])
pool.map(one, [1], [2])
pool.map(two, [1])
pool.map(two, ["a"], [1])
pool.map(one, 5)
pool.map(one)
pool.map(one, [1], key=3)
pool.starmap(one, 5)
mh.submit(one, "a")
mh.map(one, ["a"])
mh.map(two, [1])
mh.map(one, [1], timeout=3)
mh.Pool("2")
mh.Pool(max_workers=2)
mh.Pool(2, print)
mh.Pool(initializer=5)
number: int = pool.submit(one, 1).result()
pool.stats().done = 5
"""


def checked(folder: Path, source: str, *command: str) -> tuple[int, str]:
    file = folder / "sample.py"
    file.write_text(textwrap.dedent(source))
    done = subprocess.run(
        [*command, str(file)], capture_output=True, text=True, cwd=folder, check=False
    )
    return done.returncode, done.stdout + done.stderr


def lines_with_errors(output: str) -> set[int]:
    return {
        int(line.split(":")[1])
        for line in output.splitlines()
        if "sample.py:" in line and " error" in line
    }


def mypy(folder: Path, source: str) -> tuple[int, str]:
    config = folder / "mypy.ini"
    config.write_text(
        f"[mypy]\nmypy_path = {ROOT / 'python'}\nstrict = True\npython_version = 3.11\n"
        f"cache_dir = {folder / 'cache'}\n"
        "[mypy-cloudpickle.*]\nignore_missing_imports = True\n"
    )
    return checked(folder, source, sys.executable, "-m", "mypy", "--config-file", str(config))


def expected_errors(source: str) -> set[int]:
    lines = textwrap.dedent(source).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("pool = ")) + 1
    return {number + 1 for number in range(start, len(lines)) if lines[number].strip()}


def test_mypy_infers(tmp_path: Path) -> None:
    assert GOOD.count("assert_type") > 50
    code, output = mypy(tmp_path, GOOD)
    assert code == 0, output


def test_mypy_refuses(tmp_path: Path) -> None:
    code, output = mypy(tmp_path, BAD)
    assert code == 1, output
    assert len(expected_errors(BAD)) > 20
    assert lines_with_errors(output) == expected_errors(BAD), output


def test_the_good_sample_runs(tmp_path: Path) -> None:
    # What the type checkers approve of is also what works.
    file = tmp_path / "sample.py"
    file.write_text(GOOD + "\nassert asyncio.run(main()) == '1'\nprint('ran')\n")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def pyright(folder: Path, source: str) -> tuple[int, str]:
    program = shutil.which("pyright") or shutil.which(
        "pyright", path=str(Path(sys.executable).parent)
    )
    if program is None:
        pytest.skip("pyright is not installed")
    (folder / "pyrightconfig.json").write_text(
        f'{{"extraPaths": ["{ROOT / "python"}"], "typeCheckingMode": "strict",'
        ' "pythonVersion": "3.11"}'
    )
    return checked(folder, source, program, "--pythonpath", sys.executable)


def test_pyright_infers(tmp_path: Path) -> None:
    code, output = pyright(tmp_path, GOOD)
    assert code == 0, output


def test_pyright_refuses(tmp_path: Path) -> None:
    code, output = pyright(tmp_path, BAD)
    assert code == 1, output
    found = {int(line.split(":")[1]) for line in output.splitlines() if "- error:" in line}
    assert found == expected_errors(BAD), output
