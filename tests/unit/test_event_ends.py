"""Each way in which a task can end is told once: ends that are special to an engine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import pytest
from test_stuck import freeze_own_queue

import manyhands as mh
import procfs
from gate import Gate, closed_gate, pass_through
from manyhands import _core, _pool

LETTERS = {"queued": "q", "started": "s", "retried": "r", "ended": "e", "cancelled": "c"}
STORY = re.compile(r"q(sr)*(se|s?c|e)")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def of_tasks(events: list[mh.Event]) -> list[tuple[str, str | None]]:
    return [(event.kind, event.outcome) for event in events if event.index is not None]


def of_threads(events: list[mh.Event]) -> list[tuple[str, int | None]]:
    return [(event.kind, event.slot) for event in events if event.index is None]


# ------------------------------------------------------------------- workers that are to leave


def exit_behind(path: str) -> None:
    pass_through(path)
    os._exit(3)


def test_a_worker_that_dies_amid_its_task_while_its_pool_is_ended(gate: Gate) -> None:
    """It has not left in good order: what it had is not closed."""
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append) as pool:
        pool.submit(exit_behind, gate.path)
        gate.wait_arrivals()
        [worker] = pool.stats().workers
        assert worker.pid is not None
        zygote = _core.zygote_pid()
        os.kill(zygote, signal.SIGSTOP)  # it does not tell of the death at once
        try:
            gate.open()
            until(lambda: procfs.stat(worker.pid)[0] == "Z")
            pool.terminate()
        finally:
            os.kill(zygote, signal.SIGCONT)
    until(lambda: {"ended", "cancelled"} & {event.kind for event in seen} != set())
    # Another comes if it was seen before the pool is ended.
    of_it = [event for event in seen if event.index is None and event.pid == worker.pid]
    assert [(event.kind, event.cause) for event in of_it] == [
        ("born", None),
        ("died", "exited with status 3"),
    ]


# ------------------------------------------------------------------- threads that are left behind


def deaf(path: str) -> None:
    """Waits at the gate, also if it was asked to end."""
    try:
        pass_through(path)
    except mh.TaskStopped:
        pass_through(path)


@pytest.mark.parametrize("way", ["submit", "map"])
@pytest.mark.parametrize("retry", [None, mh.Retry(3, on=mh.TaskTimeout)])
def test_what_does_not_hear_that_its_time_is_up(way: str, retry: mh.Retry | None) -> None:
    seen: list[mh.Event] = []
    # C code from its first step on, however late that is: no bytecode, at which it would hear.
    held: SimpleQueue[None] = SimpleQueue()
    with mh.Pool(1, engine="thread", name="told", on_event=seen.append, grace=0.05) as pool:
        strict = pool.options(task_timeout=0.05, retry=retry)
        if way == "submit":
            assert isinstance(strict.submit(held.get).exception(), mh.TaskTimeout)
        else:
            [failure] = strict.map(SimpleQueue.get, [held], on_error="return")
            assert isinstance(failure, mh.Failure)
        until(lambda: pool.stats().left_behind == 1)
        assert pool.submit(abs, -1).result() == 1
        held.put(None)
        until(
            lambda: not any(thread.name == "manyhands-told-0" for thread in threading.enumerate())
        )
    once = [("queued", None), ("started", None)]
    assert of_tasks(seen) == [*once, ("ended", "timeout"), *once, ("ended", "ok")]
    # Of its end nobody is told, who had been told that the pool goes on without it.
    assert of_threads(seen) == [("born", 0), ("stopped", 0), ("born", 1), ("left", 1)]


def test_cancelling_what_does_not_hear_it(gate: Gate) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, engine="thread", on_event=seen.append, grace=0.05) as pool:
        future = pool.submit(deaf, gate.path)
        gate.wait_arrivals()
        assert future.cancel()
        until(lambda: pool.stats().left_behind == 1)
        gate.open()
    assert of_tasks(seen) == [("queued", None), ("started", None), ("cancelled", None)]
    assert of_threads(seen) == [("born", 0), ("stopped", 0)]


@pytest.mark.parametrize("way", ["submit", "map", "map with a limit"])
def test_a_pool_that_ends_without_its_threads(gate: Gate, way: str) -> None:
    seen: list[mh.Event] = []
    pool = mh.Pool(1, engine="thread", on_event=seen.append, grace=0.05)
    if way == "submit":
        kept: Any = [pool.submit(deaf, gate.path) for _ in range(2)]
    else:
        limit = None if way == "map" else 600.0
        kept = pool.map(deaf, [gate.path] * 2, task_timeout=limit)
    gate.wait_arrivals()
    pool.terminate()
    del kept
    counts = Counter(event.kind for event in seen for _ in range(event.count or 1))
    # All is told, though its thread still runs.
    assert counts == {"queued": 2, "started": 1, "cancelled": 2, "born": 1, "stopped": 1}


def maybe(seed: int, folder: str) -> int:
    """Does what the seed says: returns, raises, takes its time, hears that it is to end, or not."""
    choice = seed % 8
    if choice == 0:
        raise ValueError(seed)
    if choice == 1:
        time.sleep(0.02)
    if choice == 2:
        while True:
            time.sleep(0.001)
    if choice == 3 and seed % 3 == 0:
        time.sleep(0.3)  # deaf as long
    if choice == 4:
        with open(Path(folder, str(seed)), "ab", buffering=0) as file:
            file.write(b".")
            if file.tell() < 3:
                raise OSError(seed)
    return seed


def test_every_task_of_threads_has_one_story(tmp_path: Path) -> None:
    """Whatever happens at once: one beginning, runs that begin and end, one end."""
    random = Random(seed := int(os.environ.get("MANYHANDS_SEED", time.time_ns() % 1_000_000)))
    print("seed", seed)
    folder = str(tmp_path)
    seen: list[mh.Event] = []
    retry = mh.Retry(2, on=(OSError, mh.TaskTimeout))
    options: dict[str, Any] = {"task_timeout": 0.05, "grace": 0.05, "retry": retry}
    pool = mh.Pool(3, engine="thread", on_event=seen.append, **options)
    submitted = mapped = 0
    for _ in range(8):
        futures = [pool.submit(maybe, random.randrange(10_000), folder) for _ in range(10)]
        submitted += 10
        strict = pool.options(retry=None) if random.random() < 0.5 else pool
        count = random.randrange(1, 40)
        items = [random.choice((0, 1, 4, 5, 6, 7, 10)) for _ in range(count)]
        results = strict.map(maybe, items, [folder] * count, on_error="return")
        for future in futures:
            if random.random() < 0.2:
                future.cancel()
        if random.random() < 0.3:
            results.close()
        else:
            assert len(results.list()) == count
            mapped += count
        for future in futures:
            if random.random() < 0.5:
                with contextlib.suppress(CancelledError):
                    future.exception()
    if random.random() < 0.5:
        pool.shutdown()
    else:
        pool.terminate()
    stories: dict[tuple[int | None, int], str] = {}
    for event in seen:
        if event.index is not None and event.count is not None:
            for index in range(event.index, event.index + event.count):
                told = stories.get((event.map, index), "")
                stories[event.map, index] = told + LETTERS[event.kind]
    wrong = {task: told for task, told in stories.items() if not STORY.fullmatch(told)}
    assert not wrong, f"seed {seed}"
    assert sum(1 for number, _ in stories if number is None) == submitted
    assert len(stories) >= submitted + mapped
    born = [event.slot for event in seen if event.kind == "born"]
    gone = [event.slot for event in seen if event.kind in ("stopped", "left")]
    assert sorted(born) == sorted(gone)  # type: ignore[type-var]


# ----------------------------------------------------------------------- tasks that tasks submit


def counts_of(events: list[mh.Event], task: str) -> Counter[tuple[str, str | None]]:
    return Counter((event.kind, event.outcome) for event in events if event.task == task)


def test_what_tasks_submit_is_told_of() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(2, on_event=seen.append) as pool:

        def outer(count: int) -> int:
            failed = pool.submit(int, "x").exception()
            assert isinstance(failed, ValueError)
            return sum(pool.map(abs, range(count)))

        assert pool.map(outer, [5, 5, 5]).list() == [10] * 3
    assert counts_of(seen, "abs") == {
        ("queued", None): 15,
        ("started", None): 15,
        ("ended", "ok"): 15,
    }
    failures = {("queued", None): 3, ("started", None): 3, ("ended", "error"): 3}
    assert counts_of(seen, "int") == failures


@pytest.mark.parametrize("way", ["cancel", "fail", "kill"])
def test_what_tasks_submit_and_nobody_wants(way: str, tmp_path: Path) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(2, on_event=seen.append) as pool, closed_gate(tmp_path) as gate:
        has_come = tmp_path / "has_come"

        def outer() -> None:
            running = pool.submit(pass_through, gate.path)
            # What a worker says of it is that it has not ended: the pool may not have taken it.
            while not has_come.exists():
                time.sleep(0.001)
            futures = [running, *(pool.submit(pass_through, gate.path) for _ in range(20))]
            if way == "cancel":
                assert all([future.cancel() for future in futures])
            elif way == "fail":
                raise LookupError
            else:
                os._exit(3)

        future = pool.submit(outer)
        gate.wait_arrivals()
        has_come.touch()
        error = future.exception()
        assert type(error) is {"cancel": type(None), "fail": LookupError}.get(way, mh.WorkerDied)

        def all_are_cancelled() -> bool:
            counts = counts_of(list(seen), "pass_through")
            # All were submitted before the first was cancelled.
            return counts["cancelled", None] == counts["queued", None] >= 1

        until(all_are_cancelled)
        gate.open()
    counts = counts_of(seen, "pass_through")
    assert counts["cancelled", None] == counts["queued", None] <= 21
    assert counts["queued", None] >= 1
    assert set(counts) <= {("queued", None), ("started", None), ("cancelled", None)}


# ------------------------------------------------------------------- what is stuck, or stands still


@pytest.mark.parametrize("way", ["submit", "map"])
def test_a_task_that_is_stuck(gate: Gate, way: str) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append, stuck_after=0.05) as pool:
        kept: Any = (
            pool.submit(pass_through, gate.path)
            if way == "submit"
            else pool.map(pass_through, [gate.path])
        )
        until(lambda: any(event.kind == "stuck" for event in seen))
        gate.open()
        kept.result() if way == "submit" else kept.list()
    kinds = [event.kind for event in seen if event.index == 0]
    assert kinds == ["queued", "started", "stuck", "ended"]
    [stuck] = [event for event in seen if event.kind == "stuck"]
    assert (stuck.task, stuck.count, stuck.attempt, stuck.slot) == ("pass_through", 1, 1, 0)
    assert (stuck.map is None) == (way == "submit")
    assert stuck.seconds is not None
    assert stuck.seconds >= 0.05


def test_a_pool_that_stands_still(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze(path: str) -> None:
        pass_through(path)
        freeze_own_queue()

    monkeypatch.setattr(_pool, "_stalled_after", 0.2)
    seen: list[mh.Event] = []
    pool = mh.Pool(1, on_event=seen.append)
    frozen = pool.submit(freeze, gate.path)
    gate.wait_arrivals()
    # Before it stands still: once it does, it may take no more at any moment.
    futures = [pool.submit(abs, number) for number in range(5)]
    gate.open()
    frozen.result()
    for future in futures:
        with pytest.raises(mh.PoolStalled):
            future.result()
    pool.terminate()
    told = [(event.kind, event.outcome) for event in seen if event.task == "abs"]
    assert told == [("queued", None)] * 5 + [("ended", "not run")] * 5
    [stalled] = [event for event in seen if event.kind == "stalled"]
    assert stalled.seconds is not None
    assert stalled.seconds >= 0.2
