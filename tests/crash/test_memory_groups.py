"""Control groups with little memory: right values or `MemoryError`; whom the kernel kills.

What needs no group but much memory is here, too.
"""

from __future__ import annotations

import functools
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
import procfs
from gate import Gate, pass_through
from manyhands import _core
from observing import until
from programs import Ended, Program, program


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


def run_in(group: Group, chosen: Program, seconds: float = 90, **given: Any) -> Ended:
    """Runs a program in the group; skips the test where that is not permitted."""
    ended = chosen.run(**given, before=group.enter(), seconds=seconds)
    if ended.code == 77:
        pytest.skip(f"this machine does not permit to enter a control group: {ended.err}")
    print(ended)
    return ended.check()


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
        leave(directory)


@contextmanager
def made_inner_group(version: Callable[[], tuple[Path, str, str]], outer: Group) -> Iterator[Group]:
    """A group in that group, without a limit of its own."""
    _, limit, events = version()
    directory = outer.directory / "inner"
    if limit == "memory.max":
        (outer.directory / "cgroup.subtree_control").write_text("+memory")
    directory.mkdir()
    try:
        of_its_own = (directory / limit).read_text().strip()
        assert of_its_own == "max" or int(of_its_own) > 1 << 60
        yield Group(directory, directory / events)
    finally:
        leave(directory)


def leave(directory: Path) -> None:
    """Removes the group, when its processes have ended."""
    deadline = time.monotonic() + 10
    while (directory / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    directory.rmdir()


def check_memory(needed: int) -> None:
    """Skips the test on a machine that does not have so much to spare."""
    facts = _core.machine_facts()
    known = [facts["memory_available"], facts["memory_limit"]]
    free = min((size for size in known if size is not None), default=0)
    if free < needed:
        pytest.skip(f"the test needs {needed:,} bytes of memory, and {free:,} are free here")


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
    ended = run_in(group, three_limits, way=way, size=size, limit=LIMIT)
    assert ended.out.startswith(f"{way} fine")


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
        assert run_in(group, more_than_the_group_has, limit=limit).out.startswith("fine:")
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
        assert run_in(group, limited_tasks, limit=limit).out == "fine\n"
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
        ended = run_in(group, more_tasks_than_fit, tasks=64, megabytes=200)
        assert ended.out.startswith("fine ")
        assert not group.kills()


@program
def more_tasks_than_fit_seen_from_outside(tasks: int, limit: int, size: int) -> None:
    """The same without a group: what the workers have taken is looked at again and again."""
    warm, gate, moves = Gate(Path("."), "warm"), Gate(Path(".")), Path("moves").absolute()
    moves.touch()

    def arrive(path):
        pass_through(path)
        return os.getpid()

    def note():
        """A byte when a task begins, and one when it has given back what it had."""
        with moves.open("ab", buffering=0) as file:
            file.write(b".")

    def fill(number, path):
        note()
        taken = bytearray([number]) * size
        if number < 8:
            pass_through(path)
        time.sleep(0.02)
        total = sum(taken[::1_000_000])
        del taken  # too large for the allocator to keep
        note()
        return total

    with mh.Pool(8, task_memory="250MB", memory_limit=limit) as pool:
        # All at once, so that each is another worker's.
        small = pool.options(task_memory="1MB")
        started = [small.submit(arrive, os.path.abspath(warm.path)) for _ in range(8)]
        warm.wait_arrivals(8)
        warm.open()
        workers = {future.result(100) for future in started}
        assert len(workers) == 8, workers
        before = {pid: procfs.anonymous_bytes(pid) for pid in workers}

        def taken():
            """By how much all of them have grown."""
            return sum(procfs.anonymous_bytes(pid) - before[pid] for pid in workers)

        path = os.path.abspath(gate.path)
        futures = [pool.submit(fill, number, path) for number in range(tasks)]
        gate.wait_arrivals(2)
        # Whoever has started has all its memory; while the gate is closed nobody gives any back.
        until(lambda: procfs.all_sleep(workers), pool.stats)
        at_rest = taken()
        assert 2 * size <= at_rest <= limit, at_rest
        gate.open()
        samples = [at_rest]

        def ended(future):
            # Only where none began or ended from the first number to the last: else what one has
            # given back and what another took for it would both be in the sum.
            moved = moves.stat().st_size
            sample = taken()
            if moves.stat().st_size == moved:
                samples.append(sample)
            time.sleep(0.005)  # who looks all the time takes the tasks' processor
            return future.done()

        for future in futures:
            until(functools.partial(ended, future), pool.stats)
        results = [future.result() for future in futures]
        assert results == [number * (size // 1_000_000) for number in range(tasks)], results
        assert max(samples) <= limit, samples
        assert moves.stat().st_size == 2 * tasks
        # Nobody was replaced, so that these were all that there was to see.
        assert {worker.pid for worker in pool.stats().workers} == workers
        assert pool.stats().deaths == 0
    print(f"fine {at_rest:,} at rest, {max(samples):,} at most in {len(samples)} samples")


def test_more_tasks_than_fit_without_a_group() -> None:
    """What is reserved is enough to hold back, where nobody may make a group that would show it."""
    check_memory(4_000_000_000)
    given: dict[str, Any] = {"tasks": 64, "limit": 1_000_000_000, "size": 200_000_000}
    ended = more_tasks_than_fit_seen_from_outside.run(**given, seconds=150)
    print(ended)
    assert ended.check().out.startswith("fine ")


@program
def what_fits_by_a_part(part: str, reserved: int, fitting: int) -> None:
    """So many tasks run at once, each of which reserves so much, and never one more."""
    gate = Gate(Path("."))
    directory = os.getcwd()

    def work(number, path):
        name = f"{directory}/running-{number}"
        open(name, "w").close()
        pass_through(path)
        count = sum(other.startswith("running-") for other in os.listdir(directory))
        os.unlink(name)
        return count

    with mh.Pool(4, memory_limit=part, task_memory=reserved) as pool:
        path = os.path.abspath(gate.path)
        futures = [pool.submit(work, number, path) for number in range(12)]
        gate.wait_arrivals(fitting)
        # No worker is about to begin another one.
        until(lambda: procfs.all_sleep(procfs.descendants(os.getpid())), pool.stats)
        running = [name for name in os.listdir(directory) if name.startswith("running-")]
        assert len(running) == fitting, running
        gate.open()
        counts = [future.result(60) for future in futures]
        assert max(counts) <= fitting, counts
        assert pool.stats().deaths == 0
    print("fine", len(running))


@VERSIONS
def test_a_part_of_what_the_group_has(version: Callable[[], tuple[Path, str, str]]) -> None:
    """80 % are of the group's limit: two tasks fit, of which three would fit into what is left."""
    limit, reserved = 2_000_000_000, 540_000_000
    check_memory(2 * limit)
    with made_group(version, limit) as group:
        for part, fitting in (("80%", 2), ("100%", 3)):
            ended = run_in(
                group, what_fits_by_a_part, part=part, reserved=reserved, fitting=fitting
            )
            assert ended.out == f"fine {fitting}\n", part
        assert not group.kills()


@program
def held_back_by_the_outer_group(tasks: int, megabytes: int) -> None:
    """The pool's own limit would let all eight workers run at once."""

    def fill(number):
        name = f"running-{number}"
        open(name, "w").close()
        taken = np.full(megabytes * 1_000_000 // 8, float(number))
        if number < 2:
            # Two do run at once: each waits for the other.
            open(f"came-{number}", "w").close()
            until(lambda: os.path.exists("came-0") and os.path.exists("came-1"))
        time.sleep(0.02)
        count = sum(other.startswith("running-") for other in os.listdir("."))
        value = float(taken[-1])
        del taken
        os.unlink(name)
        return value, count

    with mh.Pool(8, task_memory="250MB", memory_limit="2GB") as pool:
        futures = [pool.submit(fill, number) for number in range(tasks)]
        found = [future.result(80) for future in futures]
        assert [value for value, _ in found] == list(range(tasks)), found
        assert 1 < max(count for _, count in found) <= 4, found
        assert pool.stats().deaths == 0
    print("fine", max(count for _, count in found))


@VERSIONS
def test_each_level_of_groups_counts(version: Callable[[], tuple[Path, str, str]]) -> None:
    """The processes are in a group without a limit, in one that has too little for all of them."""
    limit = 1_000_000_000
    check_memory(2 * limit)
    with made_group(version, limit) as outer, made_inner_group(version, outer) as inner:
        ended = run_in(inner, held_back_by_the_outer_group, 150, tasks=32, megabytes=200)
        assert ended.out.startswith("fine ")
        assert not outer.kills()
        assert not inner.kills()
