"""Objects that live as long as their worker: made once, closed once."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from gate import Gate, closed_gate, pass_through
from observing import pids_of, stop_once, until
from programs import program_test, run


class Connection:
    """Says in a file when it is opened and closed, and by whom."""

    def __init__(self, log: Path, name: str = "it") -> None:
        self.log, self.name = log, name
        self.say("opened")

    def say(self, what: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{what} {self.name} {os.getpid()} {threading.get_ident()}\n")

    def close(self) -> None:
        self.say("closed")


def said(log: Path, what: str) -> list[tuple[str, ...]]:
    """By whom something was said."""
    if not log.exists():
        return []
    return [
        tuple(words[1:])
        for line in log.read_text().splitlines()
        if (words := line.split())[0] == what
    ]


Handle = mh.PerWorker[Connection]


def use(handle: Handle, _: object = None) -> tuple[int, int]:
    return os.getpid(), id(handle.get())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closed_gate(tmp_path) as gate:
        yield gate


def handle_of(log: Path) -> Handle:
    return mh.per_worker(lambda: Connection(log))


def balanced(log: Path, least: int = 1) -> None:
    """All that was opened is closed, once, by who opened it."""
    opened = said(log, "opened")
    assert len(opened) >= least
    assert sorted(said(log, "closed")) == sorted(opened)


def test_each_worker_makes_it_once_and_closes_it(log: Path) -> None:
    handle = handle_of(log)
    with mh.Pool(2) as pool:
        found = list(pool.map(use, [handle] * 200))
        found += [pool.submit(use, handle).result() for _ in range(20)]
        captured = list(pool.map(lambda _: use(handle), range(200)))
        pool.refresh(use)
        found += [pool.submit(use, handle=handle).result() for _ in range(20)]
    assert len(set(found + captured)) == len(said(log, "opened")) <= 2
    balanced(log)


def test_two_maps_and_functions_made_anew_share_it(log: Path) -> None:
    handle = handle_of(log)
    with mh.Pool(1) as pool:
        found = set()
        for number in range(5):
            found.update(pool.map(lambda _, number=number: use(handle), range(3)))  # type: ignore[misc]
    assert len(found) == 1
    balanced(log)


def test_two_handles_of_one_factory_are_two_objects(log: Path) -> None:
    one, two = handle_of(log), handle_of(log)
    with mh.Pool(1) as pool:
        first, second = pool.submit(lambda: (use(one), use(two))).result()
    assert first != second
    balanced(log, 2)


def test_what_was_made_last_is_closed_first(log: Path) -> None:
    first = mh.per_worker(lambda: Connection(log, "first"))

    def on_top_of_it() -> Connection:
        first.get().say("used")
        return Connection(log, "second")

    def close(connection: Connection) -> None:
        first.get().say("used")
        connection.close()

    second = mh.per_worker(on_top_of_it, close=close)
    with mh.Pool(1) as pool:
        pool.submit(use, second).result()
    assert [name for name, *_ in said(log, "opened")] == ["first", "second"]
    assert [name for name, *_ in said(log, "closed")] == ["second", "first"]
    assert len(said(log, "used")) == 2


def test_context_managers_are_entered_and_exited(log: Path) -> None:
    @contextlib.contextmanager
    def manager() -> Iterator[str]:
        connection = Connection(log)
        try:
            yield "what it yields"
        finally:
            connection.close()

    handle = mh.per_worker(manager)
    with mh.Pool(1) as pool:
        assert {pool.submit(handle.get).result() for _ in range(3)} == {"what it yields"}
        assert not said(log, "closed")
    balanced(log)


def test_close_is_called_in_place_of_the_exit(log: Path) -> None:
    class Transaction(Connection):
        def __enter__(self) -> str:
            raise AssertionError("entered")

        def __exit__(self, *_: object) -> None:
            raise AssertionError("exited")

    def make() -> Connection:
        return Transaction(log)

    handle = mh.per_worker(make, close=Connection.close)
    with mh.Pool(1) as pool:
        pool.submit(use, handle).result()
    balanced(log)


def test_a_factory_that_raises_is_asked_again(log: Path) -> None:
    def make() -> Connection:
        with log.open("a") as file:
            file.write("tried\n")
        if len(said(log, "tried")) < 3:
            raise ConnectionError("not yet")
        return Connection(log)

    handle = mh.per_worker(make)
    with mh.Pool(1) as pool:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="not yet"):
                pool.submit(use, handle).result()
        assert pool.submit(use, handle).result() == pool.submit(use, handle).result()
    assert len(said(log, "tried")) == 3
    balanced(log)


def test_closing_that_raises_is_logged_and_the_rest_is_closed(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise SystemExit("no way")

    first, second = handle_of(log), mh.per_worker(lambda: Connection(log), close=fail)
    with mh.Pool(1) as pool:
        pool.submit(lambda: (use(first), use(second))).result()
    assert len(said(log, "opened")) == 2
    assert len(said(log, "closed")) == 1
    told = caplog.text
    assert "was not closed as it should be" in told
    assert "no way" in told


def test_a_worker_that_is_killed_closes_nothing_and_the_next_makes_it_anew(log: Path) -> None:
    handle = handle_of(log)
    with mh.Pool(1) as pool:
        first, _ = pool.submit(use, handle).result()
        os.kill(first, signal.SIGKILL)
        with contextlib.suppress(mh.WorkerDied):
            pool.submit(use, handle).result()
        second, _ = pool.submit(use, handle).result()
    assert first != second
    assert {int(pid) for _, pid, _ in said(log, "opened")} == {first, second}
    assert [int(pid) for _, pid, _ in said(log, "closed")] == [second]


def test_of_workers_that_die_now_and_then_all_others_close_theirs(log: Path) -> None:
    handle = handle_of(log)

    def task(number: int) -> tuple[int, int]:
        found = use(handle)
        if number % 60 == 17 and len(said(log, "opened")) < 7:
            with log.open("a") as file:
                file.write(f"killed {os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    with mh.Pool(2) as pool:
        list(pool.map(task, range(300), retry=mh.Retry(1, deaths=10)))
    killed = {pid for (pid,) in said(log, "killed")}
    opened = [pid for _, pid, _ in said(log, "opened")]
    assert killed
    assert len(opened) == len(set(opened))
    assert sorted(pid for _, pid, _ in said(log, "closed")) == sorted(set(opened) - killed)


def test_workers_that_are_recycled_close_theirs(log: Path) -> None:
    handle = handle_of(log)
    with mh.Pool(2, recycle_after_tasks=5) as pool:
        found = [pool.submit(use, handle).result() for _ in range(40)]
    assert len({pid for pid, _ in found}) > 2
    balanced(log, 3)


@pytest.mark.parametrize("way", ["resize", "idle_timeout", "terminate"])
def test_workers_that_leave_before_the_end_of_their_pool(way: str, log: Path, gate: Gate) -> None:
    """Those that leave close theirs at once; those that are killed with what they run do not."""
    handle, path = handle_of(log), gate.path

    def use_and_wait() -> tuple[int, int]:
        found = use(handle)
        pass_through(path)
        return found

    seen: list[mh.Event] = []
    idle_timeout = 0.1 if way == "idle_timeout" else None
    with mh.Pool(2, idle_timeout=idle_timeout, on_event=seen.append) as pool:
        # Both run at once, so that each has an object.
        futures = [pool.submit(use_and_wait) for _ in range(2)]
        gate.wait_arrivals(2)
        pids = {int(pid) for _, pid, _ in said(log, "opened")}
        assert len(pids) == len(said(log, "opened")) == 2
        assert not said(log, "closed")
        if way == "terminate":
            pool.terminate()
            stay: set[int | None] = set()
        else:
            gate.open()
            assert {future.result(100)[0] for future in futures} == pids
            if way == "resize":
                pool.resize(1)
            width = 1 if way == "resize" else 0
            until(lambda: len(pool.stats().workers) == width, pool.stats)
            stay = {*pids_of(pool)}
            assert stay < pids
        # Before the pool ends.
        closed = sorted(int(pid) for _, pid, _ in said(log, "closed"))
    assert all(future.cancelled() is (way == "terminate") for future in futures)
    # Who takes too long to leave is killed, too.
    killed = {event.pid for event in seen if event.kind == "stopped"}
    assert closed == ([] if way == "terminate" else sorted(pids - stay - killed))


def test_threads_of_a_task_that_ask_at_once_get_one_object(log: Path) -> None:
    def slowly() -> Connection:
        made = Connection(log)
        started = time.monotonic()
        while time.monotonic() < started + 0.05:
            time.sleep(0.001)  # the others come meanwhile, or later
        return made

    handle = mh.per_worker(slowly)

    def task() -> int:
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(id(handle.get()))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        return len(set(found))

    with mh.Pool(1) as pool:
        assert pool.submit(task).result() == 1
    # By the worker's main thread, whichever has made it.
    assert [pid for _, pid, _ in said(log, "opened")] == [pid for _, pid, _ in said(log, "closed")]
    assert len(said(log, "opened")) == 1


def test_a_factory_that_asks_for_its_own_object() -> None:
    handles: list[mh.PerWorker[Any]] = []

    def ask() -> object:
        return handles[0].get()

    handles.append(mh.per_worker(ask))
    with pytest.raises(RuntimeError, match="asks for the object that it is about to make"):
        handles[0].get()


def test_a_factory_that_is_stopped_is_asked_again(log: Path) -> None:
    def make() -> Connection:
        with log.open("a") as file:
            file.write("tried\n")
        while len(said(log, "tried")) < 2:
            time.sleep(0.01)
        return Connection(log)

    handle = mh.per_worker(make)
    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result()
        future = pool.options(grace=60).submit(use, handle)
        stop_once(lambda: said(log, "tried"), future)
        assert pool.submit(use, handle).result()[0] == pid
    balanced(log)


def test_an_initializer_makes_what_tasks_find(log: Path) -> None:
    handle = handle_of(log)
    with mh.Pool(1, initializer=use, initargs=(handle,)) as pool:
        assert len(set(pool.map(use, [handle] * 10))) == 1
    balanced(log)
    assert len(said(log, "opened")) == 1


def test_tasks_of_tasks_find_it(log: Path) -> None:
    handle = handle_of(log)
    with mh.Pool(1) as pool:

        def ask() -> tuple[tuple[int, int], tuple[int, int]]:
            return use(handle), pool.submit(use, handle).result()

        found = {made for _ in range(5) for made in pool.submit(ask).result()}
    # A worker that lends its place has another one beside it.
    assert len(found) == len(dict(found)) == len(said(log, "opened"))
    balanced(log)


def test_a_handle_that_a_task_makes_lives_as_long_as_the_worker(log: Path) -> None:
    def task() -> tuple[int, int]:
        return use(mh.per_worker(lambda: Connection(log)))

    with mh.Pool(1) as pool:
        for _ in range(3):
            pool.submit(task).result()
        assert len(said(log, "opened")) == 3
        assert not said(log, "closed")
    balanced(log)


def test_each_thread_of_a_pool_has_its_own(log: Path) -> None:
    handle = handle_of(log)
    barrier = threading.Barrier(2, timeout=60)

    def task(_: object) -> tuple[int, int]:
        barrier.wait()
        return threading.get_ident(), use(handle)[1]

    with mh.Pool(2, engine="thread") as pool:
        found = list(pool.map(task, range(20)))
        assert len(set(found)) == len(dict(found)) == len({made for _, made in found}) == 2
        assert not said(log, "closed")
    balanced(log, 2)


def test_a_thread_pool_in_a_task_has_its_own(log: Path) -> None:
    handle = handle_of(log)

    def task() -> bool:
        ours = handle.get()
        with mh.Pool(1, engine="thread") as threads:
            theirs = threads.submit(handle.get).result()
        assert len(said(log, "closed")) == 1
        return ours is theirs

    with mh.Pool(1) as pool:
        assert pool.submit(task).result() is False
    balanced(log, 2)


def test_inline_it_is_the_calling_threads(log: Path) -> None:
    handle = handle_of(log)

    def here() -> None:
        before = len(said(log, "closed"))
        ours = use(handle)
        with mh.Pool(engine="inline") as pool:
            assert pool.submit(use, handle).result() == ours
            assert list(pool.map(use, [handle])) == [ours]
        assert len(said(log, "closed")) == before

    for _ in range(2):
        thread = threading.Thread(target=here)
        thread.start()
        thread.join()
    balanced(log, 2)


def test_a_child_that_a_task_forks_starts_with_nothing(log: Path) -> None:
    handle = handle_of(log)

    def task() -> int:
        handle.get()
        child = os.fork()
        if child == 0:
            handle.get()
            return 0
        return os.waitpid(child, 0)[1]

    with mh.Pool(1) as pool:
        assert pool.submit(task).result() == 0
        opened = said(log, "opened")
        assert len({pid for _, pid, _ in opened}) == 2
        # The child has closed its own, and not that of the worker.
        assert said(log, "closed") == opened[1:]
    balanced(log, 2)


def test_it_is_one_handle_here() -> None:
    handle = mh.per_worker(dict)
    assert handle.get() is handle.get()
    assert pickle.loads(pickle.dumps(handle)) is handle
    assert copy.deepcopy(handle) is handle
    assert repr(handle) == "<manyhands.PerWorker of dict>"
    assert len(pickle.dumps(handle)) < 200


_of_this_module = mh.per_worker(dict)


def test_a_global_of_a_module_is_that_of_the_workers_module() -> None:
    def both(handle: mh.PerWorker[Any]) -> bool:
        import test_per_worker

        return handle is test_per_worker._of_this_module

    with mh.Pool(1) as pool:
        assert pool.submit(both, _of_this_module).result()


def test_what_a_task_returns_is_the_handle() -> None:
    handle = mh.per_worker(dict)
    with mh.Pool(1) as pool:
        assert pool.submit(lambda: handle).result() is handle
        foreign = pool.submit(lambda: mh.per_worker(dict)).result()
    with pytest.raises(RuntimeError, match="does not know how to make what dict makes"):
        foreign.get()


def _generator() -> Iterator[int]:
    yield 1


async def _asynchronous_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mh.per_worker(3), "factory must be callable, not int"),  # type: ignore[call-overload]
        (lambda: mh.per_worker(dict, close=3), "close must be callable, not int"),  # type: ignore[call-overload]
        (lambda: mh.per_worker(_generator), "contextlib.contextmanager"),
        (lambda: mh.per_worker(_asynchronous_generator), "contextlib.asynccontextmanager"),
        (lambda: mh.per_worker(dict).run(3), "run\\(\\) takes a coroutine"),  # type: ignore[arg-type]
        (lambda: mh.PerWorker(dict), "made by mh.per_worker"),
    ],
)
def test_what_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()


@program_test
def test_a_child_of_the_program_starts_with_nothing() -> None:
    made, closed = [], []

    def make():
        made.append(os.getpid())
        return made

    handle = mh.per_worker(make, close=lambda _: closed.append(os.getpid()))
    handle.get()
    child = os.fork()
    if child == 0:
        handle.get()
        assert made[1:] == [os.getpid()]
        from manyhands import _per_worker

        _per_worker.close_here()
        assert closed == [os.getpid()]
        os._exit(17)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert len(made) == 1
    assert not closed


@program_test
def test_functions_of_main_and_the_default_pool() -> None:
    class Connection:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.write(2, b"closed ")

    def connect():
        os.write(2, b"opened ")
        return Connection()

    connection = mh.per_worker(connect)

    def ask(_=None):
        return os.getpid(), id(connection.get())

    mh.configure(workers=2)
    found = set(mh.map(ask, range(100)))
    found.add(mh.submit(ask).result())
    assert len(found) == len(dict(found)) <= 2
    assert os.getpid() not in dict(found)


def test_the_end_of_the_program_closes_what_is_there() -> None:
    text = """
import contextlib, os, sys
import manyhands as mh

@contextlib.contextmanager
def manager():
    print("opened", flush=True)
    yield "it"
    print("closed", flush=True)

handle = mh.per_worker(manager)
assert mh.map(handle.get.__func__, [handle], workers=1).list() == ["it"]
assert mh.map(lambda _: handle.get(), [1], engine="thread", workers=1).list() == ["it"]
late = mh.Pool(engine="inline")
assert late.submit(handle.get).result() == "it"
"""
    ended = run("-c", text)
    assert ended.code == 0, ended
    assert sorted(ended.out.split()) == ["closed"] * 3 + ["opened"] * 3
