"""Control groups with little memory: right values or `MemoryError`, and the kernel kills nobody."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import manyhands as mh
from programs import program

# What a group may have, of which Python and NumPy in each process take the greater part.
LIMIT = 64_000_000


def _version1() -> tuple[Path, str, str]:
    root = Path("/sys/fs/cgroup/memory")
    if not (root / "cgroup.procs").exists():
        pytest.skip("there is no memory controller of version 1 here")
    return root, "memory.limit_in_bytes", "memory.oom_control"


def _version2() -> tuple[Path, str, str]:
    root = Path("/sys/fs/cgroup")
    controllers = root / "cgroup.controllers"
    if not controllers.exists() or "memory" not in controllers.read_text().split():
        pytest.skip("there is no memory controller of version 2 here")
    return root, "memory.max", "memory.events"


@pytest.fixture(params=[_version1, _version2], ids=["v1", "v2"])
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group of so much memory, in which the kernel has to kill nobody."""
    root, limit, events = request.param()
    directory = root / f"manyhands-test-{os.getpid()}"
    try:
        if limit == "memory.max":
            (root / "cgroup.subtree_control").write_text("+memory")
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"this machine does not permit to make a control group: {error}")
    try:
        (directory / limit).write_text(str(LIMIT))
        yield directory
        killed = re.search(r"^oom_kill (\d+)$", (directory / events).read_text(), re.MULTILINE)
        assert killed is None or killed[1] == "0"
    finally:
        deadline = time.monotonic() + 10
        while (directory / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        directory.rmdir()


@program
def three_limits(way: str, size: int, limit: int) -> None:
    """Three times what there is, in arrays of so many bytes."""
    count = size // 8
    numbers = range(3 * limit // size)

    def make(number):
        return np.full(count, float(number))

    held, errors = [], []
    with mh.Pool(2) as pool:
        assert pool.submit(np.sum, np.ones(3)).result(20) == 3
        for number in numbers:
            try:
                if way == "arguments":
                    held.append((number, pool.submit(np.sum, make(number))))
                elif way == "put":
                    held.append((number, mh.put(make(number))))
                else:
                    held.append((number, pool.submit(make, number).result(60)))
            except MemoryError as error:
                errors.append(str(error))
        for number, one in held:
            try:
                if way == "arguments":
                    assert one.result(60) == number * count
                elif way == "put":
                    assert pool.submit(np.sum, one).result(60) == number * count
                else:
                    assert (one == number).all()
            except MemoryError as error:
                errors.append(str(error))
        assert all(re.search("[0-9]+ bytes", error) for error in errors), errors
        # What is on disk takes no memory.
        assert way == "results" or not errors, errors
        assert pool.submit(abs, -1).result(20) == 1
        assert pool.stats().deaths == 0
        held.clear()
    print(way, "fine", len(errors), "errors", errors[:1])


@pytest.mark.parametrize("size", [8_000_000, 1_000_000])
@pytest.mark.parametrize("way", ["arguments", "put", "results"])
def test_three_times_the_memory(group: Path, way: str, size: int) -> None:
    enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" || exit 77; exec "$@"', str(group)]
    ended = three_limits.run(way=way, size=size, limit=LIMIT, before=enter, seconds=90)
    if ended.code == 77:
        pytest.skip(f"this machine does not permit to enter a control group: {ended.err}")
    print(ended)
    assert ended.check().out.startswith(f"{way} fine")
