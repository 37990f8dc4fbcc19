"""Events: what processes alone have to tell, what becomes of those nobody takes, and their end."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from random import Random
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from manyhands import _events


@pytest.fixture
def gate(tmp_path: Path) -> Any:
    with closed_gate(tmp_path) as gate:
        yield gate


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kinds(events: list[mh.Event], index: int = 0) -> list[str]:
    """What was said of a task, or of neighbours among which it is."""
    return [
        event.kind
        for event in events
        if event.index is not None and event.index <= index < event.index + (event.count or 1)
    ]


# ------------------------------------------------------------------------------------- what comes


def test_a_killed_worker() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append) as pool:
        with pytest.raises(mh.WorkerDied):
            pool.submit(kill_self).result()
        assert pool.submit(abs, -1).result() == 1
    assert [event.kind for event in seen if event.index != 1] == [
        "queued",
        "born",
        "started",
        "died",
        "ended",
        "born",
        "left",
    ]
    born, died, again, left = [event for event in seen if event.index is None]
    assert died.cause == "was killed by SIGKILL"
    assert (born.slot, born.pid, born.generation) == (died.slot, died.pid, died.generation)
    assert (born.slot, born.generation) == (0, 1)
    assert (again.slot, again.generation) == (left.slot, left.generation) == (0, 2)
    assert again.pid == left.pid != born.pid
    [ended] = [event for event in seen if event.kind == "ended" and event.index == 0]
    assert (ended.outcome, ended.cause, ended.pid) == ("died", died.cause, born.pid)


def test_a_worker_that_exits() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append) as pool, pytest.raises(mh.WorkerDied):
        pool.submit(os._exit, 3).result()
    assert {event.cause for event in seen if event.kind == "died"} == {"exited with status 3"}


def test_deaths_are_logged_for_who_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "manyhands"), mh.Pool(1) as pool:
        with pytest.raises(mh.WorkerDied) as raised:
            pool.submit(kill_self).result()
        pool.stats()
    lines = [record for record in caplog.records if "killed by signal 9" in record.getMessage()]
    assert [record.levelno for record in lines] == [logging.INFO]
    assert f"worker {raised.value.pid} (slot 0)" in lines[0].getMessage()


def test_items_of_a_killed_worker(gate: Gate) -> None:
    seen: list[mh.Event] = []

    def work(item: int) -> int:
        if item == 20:
            kill_self()
        return item

    with mh.Pool(1, on_event=seen.append) as pool:
        results = list(pool.map(work, range(40), on_error="return"))
    assert len(results) == 40
    ends = [event for event in seen if event.kind == "ended"]
    assert sum(event.count or 0 for event in ends) == 40
    [died] = [event for event in ends if event.outcome == "died"]
    assert (died.index, died.count) == (20, 1)


def test_a_task_that_killed_its_worker_runs_again() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append, retry=mh.Retry(0, deaths=1)) as pool:
        with pytest.raises(mh.WorkerDied):
            pool.submit(kill_self).result()
    assert kinds(seen) == ["queued", "started", "retried", "started", "ended"]
    told = [(event.kind, event.outcome, event.attempt) for event in seen if event.outcome]
    assert told == [("retried", "died", 1), ("ended", "died", 2)]


@pytest.mark.parametrize("way", ["asked", "killed", "item"])
def test_a_task_that_takes_too_long(way: str, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"

    def stubborn(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                deaf.touch()
                time.sleep(seconds)
            except mh.TaskStopped:
                pass

    # Who does not listen has to get to where it does not; a late machine gets another turn.
    limit = 1 if way == "killed" else 0.05
    for _ in range(10):
        seen: list[mh.Event] = []
        with mh.Pool(1, on_event=seen.append, task_timeout=limit, grace=0.05) as pool:
            with pytest.raises(mh.TaskTimeout):
                if way == "asked":
                    pool.options(grace=60).submit(time.sleep, 600).result()
                elif way == "killed":
                    pool.submit(stubborn, 600).result()
                else:
                    pool.map(time.sleep, [600], grace=60).list()
        if way != "killed" or deaf.exists():
            break
    assert kinds(seen) == ["queued", "started", "ended"]
    [ended] = [event for event in seen if event.kind == "ended"]
    assert ended.outcome == "timeout"
    assert ended.seconds is not None
    assert ended.seconds >= limit
    gone = {event.kind for event in seen if event.kind in ("died", "stopped")}
    assert gone == ({"stopped"} if way == "killed" else set())


def test_a_time_out_that_runs_again() -> None:
    seen: list[mh.Event] = []
    retry = mh.Retry(1, on=mh.TaskTimeout)
    with mh.Pool(1, on_event=seen.append, task_timeout=0.05, grace=60, retry=retry) as pool:
        with pytest.raises(mh.TaskTimeout):
            pool.submit(time.sleep, 600).result()
    told = [(event.kind, event.outcome) for event in seen if event.outcome]
    assert told == [("retried", "timeout"), ("ended", "timeout")]


def test_cancelling_what_runs(gate: Gate) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append) as pool:
        future = pool.submit(pass_through, gate.path)
        gate.wait_arrivals()
        assert future.cancel()
        gate.open()
    assert kinds(seen) == ["queued", "started", "cancelled"]
    [cancelled] = [event for event in seen if event.kind == "cancelled"]
    assert cancelled.slot == 0
    assert cancelled.attempt == 1


def test_terminate(gate: Gate) -> None:
    seen: list[mh.Event] = []
    pool = mh.Pool(2, on_event=seen.append)
    futures = [pool.submit(pass_through, gate.path) for _ in range(2)]
    gate.wait_arrivals(2)
    futures += [pool.submit(abs, 1) for _ in range(3)]
    pool.terminate()
    assert all(future.cancelled() for future in futures)
    for index in range(2):
        assert kinds(seen, index) == ["queued", "started", "cancelled"]
    for index in range(2, 5):
        assert kinds(seen, index) == ["queued", "cancelled"]
    assert [event.kind for event in seen if event.index is None] == ["born"] * 2 + ["stopped"] * 2


@pytest.mark.parametrize("way", ["submit", "map", "later item"])
def test_a_start_is_told_while_the_task_runs(gate: Gate, way: str) -> None:
    seen: list[mh.Event] = []

    def work(item: int) -> None:
        if item == last:
            pass_through(gate.path)

    last = 30 if way == "later item" else 0
    with mh.Pool(1, on_event=seen.append) as pool:
        if way == "submit":
            future: Any = pool.submit(work, 0)
        else:
            results = pool.map(work, range(last + 1))
        gate.wait_arrivals()

        def is_told() -> bool:
            return any(
                event.index is not None and event.index <= last < event.index + (event.count or 0)
                for event in list(seen)
                if event.kind == "started"
            )

        until(is_told)
        gate.open()
        if way == "submit":
            future.result()
        else:
            assert len(results.list()) == last + 1
    # Once, with all that came before and after it.
    for kind in ("queued", "started", "ended"):
        told = [
            index
            for event in seen
            if event.kind == kind and event.index is not None
            for index in range(event.index, event.index + (event.count or 0))
        ]
        assert sorted(told) == list(range(last + 1)), kind


def test_an_item_that_cannot_be_sent() -> None:
    seen: list[mh.Event] = []
    items: list[Any] = [1, threading.Lock(), 3]
    with mh.Pool(1, on_event=seen.append) as pool:
        list(pool.map(str, items, on_error="return"))
    assert kinds(seen, 1) == ["queued", "ended"]
    [ended] = [event for event in seen if event.kind == "ended" and event.index == 1]
    assert ended.outcome == "not run"


def test_a_submit_that_is_refused_is_no_event() -> None:
    seen: list[mh.Event] = []
    for engine in ("process", "thread", "inline"):
        with mh.Pool(1, engine=engine, on_event=seen.append) as pool:
            pass
        with pytest.raises(RuntimeError):
            pool.submit(abs, 1)
    assert seen == []


# -------------------------------------------------------------------------------------- listeners


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_what_is_lost_is_counted(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_events, "_MOST_UNREAD", 20)
    seen: list[mh.Event] = []
    first_came, go_on = threading.Event(), threading.Event()

    def slow(event: mh.Event) -> None:
        first_came.set()
        assert go_on.wait(60)
        seen.append(event)

    with mh.Pool(1, engine=engine, on_event=slow) as pool:
        pool.submit(abs, 1).result()
        assert first_came.wait(60)
        for _ in range(100):
            pool.submit(abs, 1).result()
        go_on.set()
    lost = [event for event in seen if event.kind == "dropped"]
    assert lost
    assert all(event.index is None and event.task is None for event in lost)
    of_tasks = sum(1 for event in seen if event.index is not None)
    of_workers = sum(1 for event in seen if event.kind in ("born", "left"))
    workers = 0 if engine == "inline" else 2
    dropped = sum(event.count or 0 for event in lost)
    assert of_tasks + of_workers + dropped == 303 + workers


@pytest.mark.parametrize("wrong", [3, "print", None.__class__])
def test_what_cannot_listen(wrong: Any) -> None:
    if callable(wrong):
        return
    with pytest.raises(TypeError, match="on_event must be callable"):
        mh.Pool(1, on_event=wrong)


def test_a_coroutine_function_cannot_listen() -> None:
    async def listen(event: mh.Event) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="on_event must be a plain function"):
        mh.Pool(1, on_event=listen)


def hold(path: str, megabytes: int) -> int:
    held = bytearray(b"x") * (megabytes * 1_000_000)
    pass_through(path)
    return len(held)


def test_the_memory_of_a_worker(gate: Gate) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, on_event=seen.append) as pool:
        pid = pool.submit(os.getpid).result()
        future = pool.submit(hold, gate.path, 200)
        until(lambda: max((event.bytes or 0 for event in seen), default=0) > 100_000_000)
        gate.open()
        assert future.result() == 200_000_000
    for event in seen:
        assert (event.bytes is not None) == (event.kind == "memory")
        if event.kind == "memory":
            assert (event.pid, event.slot, event.cause, event.task) == (pid, 0, None, None)


def test_tasks_that_wait_for_memory(gate: Gate) -> None:
    seen: list[mh.Event] = []

    def told() -> list[str | None]:
        return [event.cause for event in seen if event.kind == "memory" and event.bytes is None]

    with mh.Pool(2, memory_limit="1GB", task_memory="700MB", on_event=seen.append) as pool:
        futures = [pool.submit(pass_through, gate.path) for _ in range(3)]
        until(lambda: told() == ["short"])
        gate.open()
        for future in futures:
            future.result()
        # What waits for memory no more is seen while there is something to do.
        until(lambda: pool.submit(abs, -1).result() == 1 and told() == ["short", "enough"])


def test_how_much_a_task_took_that_took_too_much(gate: Gate) -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, task_memory="100MB", on_event=seen.append) as pool:
        with pytest.raises(mh.TaskMemoryExceeded) as caught:
            pool.submit(hold, gate.path, 300).result()
    [ended] = [event for event in seen if event.kind == "ended"]
    assert (ended.outcome, ended.bytes) == ("memory", caught.value.peak)


def test_a_pool_that_cannot_be_made_leaves_no_thread() -> None:
    with pytest.raises(ValueError, match="copy=False"):
        mh.Pool(1, copy=False, engine="process", on_event=print)
    assert "manyhands-events" not in {thread.name for thread in threading.enumerate()}


def test_events_are_values() -> None:
    seen: list[mh.Event] = []
    with mh.Pool(1, engine="inline", on_event=seen.append) as pool:
        pool.submit(abs, 1)
    queued = seen[0]
    assert pickle.loads(pickle.dumps(queued)) == queued
    assert len({*seen, *seen}) == 3
    with pytest.raises(AttributeError):
        queued.kind = "ended"  # type: ignore[misc]
    text = repr(queued)
    assert text.startswith("Event(kind='queued', time=")
    assert "task='abs', index=0, count=1)" in text
    fields = {name: getattr(queued, name) for name in mh.Event.__slots__}
    assert mh.Event(**fields) == queued


def test_a_hanging_listener_does_not_keep_who_was_interrupted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyhands._pool._PATIENCE", 0.05)
    go_on = threading.Event()
    with pytest.raises(KeyError), mh.Pool(1, on_event=lambda event: go_on.wait(60)) as pool:
        pool.submit(abs, 1).result()
        raise KeyError
    assert any("it is not waited for" in record.getMessage() for record in caplog.records)
    go_on.set()


# ------------------------------------------------------------------------- programs and processes


def run(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text("import os, time\nimport manyhands as mh\n" + source)
    return subprocess.run(
        # From CPython 3.12 on it warns of each fork of a program with threads.
        [sys.executable, "-W", "ignore::DeprecationWarning", str(path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


TASKS = 20


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
@pytest.mark.parametrize("end", ["", "pool.shutdown(wait=False)", "del pool, futures", "1 / 0"])
def test_the_end_of_the_program(tmp_path: Path, engine: str, end: str) -> None:
    done = run(
        tmp_path,
        f"""
from manyhands import _pool

# A machine may take tens of milliseconds for each sleep of one, or stand still.
_pool._PATIENCE = 60

def listen(event):
    time.sleep(0.001)
    if event.kind == "ended":
        print(event.index, flush=True)

pool = mh.Pool(1, engine={engine!r}, on_event=listen)
futures = [pool.submit(abs, 1) for _ in range({TASKS})]
assert all(future.result() for future in futures)
{end}
""",
    )
    assert done.returncode == (1 if "/" in end else 0), done.stderr
    assert done.stderr.splitlines()[-1:] == (
        ["ZeroDivisionError: division by zero"] if "/" in end else []
    )
    assert done.stdout.split() == [str(index) for index in range(TASKS)]


def test_a_listener_that_hangs_ends_with_the_program(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
from manyhands import _pool
_pool._PATIENCE = 0.05
pool = mh.Pool(1, on_event=lambda event: time.sleep(600))
pool.submit(abs, 1).result()
raise SystemExit(pool._listener is None) if False else ValueError("mine")
""",
    )
    assert done.returncode == 1
    assert "ValueError: mine" in done.stderr


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_a_child_of_fork_hears_nothing(tmp_path: Path, engine: str) -> None:
    done = run(
        tmp_path,
        f"""
parent = os.getpid()
said = []

def listen(event):
    said.append(event.kind)
    if os.getpid() != parent:
        print("heard in a child", flush=True)

pool = mh.Pool(1, engine={engine!r}, on_event=listen)
pool.submit(abs, 1).result()
child = os.fork()
if child == 0:
    pool.shutdown()
    with mh.Pool(1, engine={engine!r}, on_event=lambda event: said.append("child")) as own:
        own.submit(abs, 1).result()
    assert said.count("child") >= 3, said
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
pool.submit(abs, 1).result()
pool.shutdown()
print(said.count("ended"))
""",
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["7", "2"], "")


def test_a_listener_that_forks(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
parent = os.getpid()
codes = []

def listen(event):
    if event.kind != "ended":
        return
    child = os.fork()
    if child == 0:
        return  # a child that goes on: its thread has to end by itself
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

with mh.Pool(1, on_event=listen) as pool:
    for _ in range(3):
        pool.submit(abs, 1).result()
print(codes)
""",
    )
    assert (done.returncode, done.stdout) == (0, "[0, 0, 0]\n"), done.stderr


# ---------------------------------------------------------------------------------------- a storm


def maybe(seed: int, folder: str) -> int:
    """Does what the seed says: returns, raises, takes its time, or ends its worker."""
    choice = seed % 11
    if choice == 0:
        raise ValueError(seed)
    if choice == 1:
        time.sleep(0.02)
    if choice == 2:
        time.sleep(600)
    if choice == 3 and seed % 3 == 0:
        kill_self()
    if choice == 4:
        with open(Path(folder, str(seed)), "ab", buffering=0) as file:
            file.write(b".")
            if file.tell() < 3:
                raise OSError(seed)
    return seed


def test_every_task_has_one_story(tmp_path: Path) -> None:
    """Whatever happens at once: one beginning, runs that begin and end, one end."""
    random = Random(seed := int(os.environ.get("MANYHANDS_SEED", time.time_ns() % 1_000_000)))
    print("seed", seed)
    folder = str(tmp_path)
    seen: list[mh.Event] = []
    submitted = mapped = 0
    retry = mh.Retry(2, on=OSError, deaths=1)
    pool = mh.Pool(3, on_event=seen.append, task_timeout=0.1, grace=0.05, retry=retry)
    for _ in range(12):
        futures = [pool.submit(maybe, random.randrange(10_000), folder) for _ in range(20)]
        submitted += 20
        strict = pool.options(retry=None) if random.random() < 0.5 else pool
        count = random.randrange(1, 60)
        items = [random.choice((1, 4, 5, 6, 7)) for _ in range(count)]
        results = strict.map(maybe, items, [folder] * count, on_error="return")
        for future in futures:
            if random.random() < 0.2:
                future.cancel()
        if random.random() < 0.3:
            workers = [worker.pid for worker in pool.stats().workers if worker.pid]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(workers), signal.SIGKILL)
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
    ends: Counter[str | None] = Counter()
    for event in seen:
        assert event.kind != "dropped"
        if event.index is None or event.count is None:
            continue
        letter = {"queued": "q", "started": "s", "retried": "r", "ended": "e", "cancelled": "c"}
        for index in range(event.index, event.index + event.count):
            told = stories.get((event.map, index), "")
            stories[event.map, index] = told + letter[event.kind]
            runs = told.count("s") + (event.kind == "started")
            assert event.attempt in (None, runs), (event, told)
        if event.kind in ("ended", "cancelled"):
            ends[event.outcome] += event.count
    wrong = {task: told for task, told in stories.items() if not STORY.fullmatch(told)}
    assert not wrong, f"seed {seed}"
    assert sum(1 for number, _ in stories if number is None) == submitted
    assert sum(ends.values()) == len(stories) >= submitted + mapped
    born = [(event.slot, event.generation) for event in seen if event.kind == "born"]
    gone = [
        (event.slot, event.generation)
        for event in seen
        if event.kind in ("died", "stopped", "left")
    ]
    assert len(set(born)) == len(born)
    assert sorted(born) == sorted(gone)  # type: ignore[type-var]


STORY = re.compile(r"q(sr)*(se|s?c|e)")
