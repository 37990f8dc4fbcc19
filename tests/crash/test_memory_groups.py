"""Control groups with little memory: right values or `MemoryError`; whom the kernel kills."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyhands as mh
from programs import Ended, program


@dataclass
class Group:
    """A control group."""

    directory: Path
    events: Path

    def enter(self) -> list[str]:
        """What a program is run by, so that it is in the group; it ends with 77 if it may not."""
        enter = 'echo $$ > "$0/cgroup.procs" || exit 77; exec "$@"'
        return ["sh", "-c", enter, str(self.directory)]

    def kills(self) -> int | None:
        """How many of its processes the kernel has killed; None where it does not tell."""
        killed = re.search(r"^oom_kill (\d+)$", self.events.read_text(), re.MULTILINE)
        return None if killed is None else int(killed[1])


def check_entered(ended: Ended) -> None:
    if ended.code == 77:
        pytest.skip(f"this machine does not permit to enter a control group: {ended.err}")


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


@contextmanager
def made_group(version: Callable[[], tuple[Path, str, str]], limit_bytes: int) -> Iterator[Group]:
    """A group of so much memory."""
    root, limit, events = version()
    directory = root / f"manyhands-test-{os.getpid()}"
    try:
        if limit == "memory.max":
            (root / "cgroup.subtree_control").write_text("+memory")
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"this machine does not permit to make a control group: {error}")
    try:
        (directory / limit).write_text(str(limit_bytes))
        yield Group(directory, directory / events)
    finally:
        deadline = time.monotonic() + 10
        while (directory / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        directory.rmdir()


VERSIONS = pytest.mark.parametrize("version", [_version1, _version2], ids=["v1", "v2"])


@pytest.fixture(params=[_version1, _version2], ids=["v1", "v2"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A group of so much memory, in which the kernel has to kill nobody."""
    with made_group(request.param, LIMIT) as group:
        yield group
        assert not group.kills()


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
def test_three_times_the_memory(group: Group, way: str, size: int) -> None:
    ended = three_limits.run(way=way, size=size, limit=LIMIT, before=group.enter(), seconds=90)
    check_entered(ended)
    print(ended)
    assert ended.check().out.startswith(f"{way} fine")


@program
def more_than_the_group_has(limit: int) -> None:
    """The kernel kills the worker that takes all; the error says so, and what there was."""

    def swallow():
        taken = []
        while True:
            taken.append(np.ones(1_000_000))

    with mh.Pool(2) as pool:
        assert pool.submit(abs, -1).result(20) == 1
        error = pool.submit(swallow).exception(60)
        assert isinstance(error, mh.WorkerDied), error
        assert (error.cause, error.code) == ("oom", 9), error
        text = str(error)
        assert "was killed by the kernel's OOM killer while it ran task 1 (swallow())" in text, text
        allowed = limit - limit % 4096
        assert f"its control group may have {allowed:,} bytes (/sys/fs/cgroup" in text, text
        assert text.endswith(
            "task_memory= would end one task before that, and fewer workers need less"
        )
        assert pool.submit(abs, -2).result(60) == 2
        [failure] = pool.map(lambda number: swallow(), [1], on_error="return")
        assert failure.cause == "oom", failure
        # Who is killed otherwise is not the kernel's.
        error = pool.submit(lambda: os.kill(os.getpid(), 9)).exception(60)
        assert (error.cause, error.code) == ("signal", 9), error
    print("fine:", text)


@VERSIONS
def test_whom_the_kernel_kills_is_named(version: Callable[[], tuple[Path, str, str]]) -> None:
    """P20 (distributed#1829): "Workers die with no reason given"."""
    limit = 200_000_000
    with made_group(version, limit) as group:
        ended = more_than_the_group_has.run(limit=limit, before=group.enter(), seconds=90)
        check_entered(ended)
        print(ended)
        assert ended.check().out.startswith("fine:")
        assert group.kills() in (None, 2)


@program
def limited_tasks(limit: int) -> None:
    """With `task_memory=` each is ended before the kernel ends any."""

    def swallow(number):
        taken = []
        while number % 2:
            taken.append(np.ones(100_000))
            time.sleep(0.002)
        return number

    with mh.Pool(2) as pool:
        results = pool.map(swallow, range(8), task_memory="40MB", on_error="return").list()
        assert [result for result in results if isinstance(result, int)] == [0, 2, 4, 6]
        causes = [result.cause for result in results if not isinstance(result, int)]
        assert causes == ["memory"] * 4, results
        assert pool.stats().deaths == 0
    print("fine")


@VERSIONS
def test_limited_tasks(version: Callable[[], tuple[Path, str, str]]) -> None:
    limit = 300_000_000
    with made_group(version, limit) as group:
        ended = limited_tasks.run(limit=limit, before=group.enter(), seconds=90)
        check_entered(ended)
        print(ended)
        assert ended.check().out == "fine\n"
        assert not group.kills()


@program
def more_tasks_than_fit(tasks: int, megabytes: int) -> None:
    """All of them together have ten times what the group has."""

    def fill(number):
        name = f"running-{number}"
        open(name, "w").close()
        taken = np.ones(megabytes * 1_000_000 // 8)
        time.sleep(0.02)
        count = sum(other.startswith("running-") for other in os.listdir("."))
        del taken
        os.unlink(name)
        return count

    with mh.Pool(8, task_memory="250MB", memory_limit="1GB") as pool:
        futures = [pool.submit(fill, number) for number in range(tasks // 2)]
        counts = [future.result(80) for future in futures]
        counts += pool.map(fill, range(tasks // 2)).list()
        assert len(counts) == tasks
        assert 1 < max(counts) <= 4, counts
        assert pool.stats().deaths == 0
    print("fine", sorted(set(counts)))


@VERSIONS
def test_more_tasks_than_fit(version: Callable[[], tuple[Path, str, str]]) -> None:
    """P20 (celery#5645, distributed#2130): who has no room waits; the kernel has to kill nobody."""
    with made_group(version, 1_200_000_000) as group:
        given: dict[str, Any] = {"tasks": 64, "megabytes": 200}
        ended = more_tasks_than_fit.run(**given, before=group.enter(), seconds=90)
        check_entered(ended)
        print(ended)
        assert ended.check().out.startswith("fine ")
        assert not group.kills()
