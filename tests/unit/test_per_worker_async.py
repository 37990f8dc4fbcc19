"""Asynchronous objects that live as long as their worker: made, used and closed on one loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from manyhands._worker_loop import WorkerLoop
from observing import pids_of, stop_once
from programs import program_test

ENGINES: list[Any] = ["process", "thread", "inline"]


class Client:
    """Says in a file when it is opened, used and closed, and on which loop."""

    def __init__(self, log: Path, name: str = "it") -> None:
        self.log, self.name = log, name
        self.beats = 0

    async def say(self, what: str) -> None:
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        with self.log.open("a") as log:
            log.write(f"{what} {self.name} {os.getpid()}/{threading.get_ident()}/{id(loop)}\n")

    async def ask(self, number: int) -> int:
        await self.say("used")
        return number * 2

    async def aclose(self) -> None:
        await self.say("closed")

    def close(self) -> None:
        raise AssertionError("closed by the wrong method")


class Session(Client):
    async def __aenter__(self) -> Session:
        await self.say("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.say("closed")

    # As some libraries have it, to say what is wrong.
    def __enter__(self) -> None:
        raise AssertionError("entered")

    def __exit__(self, *_: object) -> None:
        raise AssertionError("exited")

    aclose = None  # type: ignore[assignment]


def said(log: Path, what: str) -> list[tuple[str, str]]:
    """Which, and where."""
    if not log.exists():
        return []
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(name, where) for said, name, where in lines if said == what]


def balanced(log: Path, least: int = 1) -> None:
    """All that was opened is closed, once, on the loop on which it was opened and used."""
    opened = said(log, "opened")
    assert len(opened) >= least
    assert sorted(said(log, "closed")) == sorted(opened)
    assert set(said(log, "used")) <= set(opened)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


# Each way to make an asynchronous object.


def _by_a_coroutine(log: Path) -> mh.PerWorker[Any]:
    async def make() -> Client:
        client = Client(log)
        await client.say("opened")
        return client

    return mh.per_worker(make)


def _by_a_coroutine_that_gives_a_manager(log: Path) -> mh.PerWorker[Any]:
    async def make() -> Session:
        return Session(log)

    return mh.per_worker(make)


def _by_a_manager(log: Path) -> mh.PerWorker[Any]:
    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[Client]:
        client = Client(log)
        await client.say("opened")
        try:
            yield client
        finally:
            await client.say("closed")

    return mh.per_worker(manager)


def _by_a_plain_function(log: Path) -> mh.PerWorker[Any]:
    async def make() -> Session:
        return Session(log)

    def plain() -> Any:
        return make()

    return mh.per_worker(plain)


def _with_close(log: Path) -> mh.PerWorker[Any]:
    async def make() -> Session:
        client = Session(log)
        await client.say("opened")
        return client

    async def close(client: Client) -> None:
        await client.say("closed")

    return mh.per_worker(make, close=close)


def _with_a_plain_factory_and_asynchronous_close(log: Path) -> mh.PerWorker[Any]:
    def make() -> Client:
        loop = asyncio.get_running_loop()
        with log.open("a") as file:
            file.write(f"opened it {os.getpid()}/{threading.get_ident()}/{id(loop)}\n")
        return Client(log)

    async def close(client: Client) -> None:
        await client.say("closed")

    return mh.per_worker(make, close=close)


WAYS: list[Callable[[Path], mh.PerWorker[Any]]] = [
    _by_a_coroutine,
    _by_a_coroutine_that_gives_a_manager,
    _by_a_manager,
    _by_a_plain_function,
    _with_close,
    _with_a_plain_factory_and_asynchronous_close,
]


def ask(handle: mh.PerWorker[Any], number: int) -> int:
    return handle.run(handle.get().ask(number))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_made_used_and_closed_on_one_loop(
    log: Path, way: Callable[[Path], mh.PerWorker[Any]], engine: Any
) -> None:
    handle = way(log)

    def use() -> None:
        with mh.Pool(None if engine == "inline" else 2, engine=engine) as pool:
            assert list(pool.map(ask, [handle] * 20, range(20))) == list(range(0, 40, 2))
            assert pool.submit(ask, handle, 4).result() == 8

    # With a thread of its own, whose end closes what was made inline.
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(said(log, "used")) == 21
    assert len(said(log, "opened")) <= 2
    balanced(log)


def test_a_coroutine_gets_what_is_there(log: Path) -> None:
    handle = _by_a_coroutine(log)

    async def twice(number: int) -> int:
        client = handle.get()
        first, second = await asyncio.gather(client.ask(number), client.ask(number + 1))
        return first + second  # type: ignore[no-any-return]

    with mh.Pool(1) as pool:
        assert list(pool.map(lambda number: handle.run(twice(number)), range(3))) == [2, 6, 10]
    balanced(log)


def test_what_it_does_by_itself_goes_on_between_tasks(log: Path) -> None:
    async def beat(client: Client) -> None:
        while True:
            client.beats += 1
            await asyncio.sleep(0.001)

    @contextlib.asynccontextmanager
    async def beating() -> AsyncIterator[Client]:
        client = Client(log)
        task = asyncio.create_task(beat(client))
        yield client
        task.cancel()

    handle = mh.per_worker(beating)

    def wait_for_beats() -> int:
        client = handle.get()
        before: int = client.beats
        while client.beats < before + 5:  # the task itself has no event loop that runs
            threading.Event().wait(0.001)
        return client.beats - before

    with mh.Pool(1) as pool:
        assert pool.submit(wait_for_beats).result(timeout=60) >= 5


def test_tasks_left_on_the_loop_are_cancelled_in_the_end(log: Path) -> None:
    async def endless(client: Client) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await client.say("ended")

    async def make() -> Client:
        client = Client(log)
        client.task = asyncio.create_task(endless(client))  # type: ignore[attr-defined]
        await client.say("opened")
        return client

    handle = mh.per_worker(make)
    with mh.Pool(1) as pool:
        pool.submit(ask, handle, 1).result()
    balanced(log)
    assert said(log, "ended") == said(log, "opened")


def test_a_factory_that_raises_is_asked_again(log: Path) -> None:
    async def make() -> Client:
        client = Client(log)
        await client.say("tried")
        if len(said(log, "tried")) < 3:
            raise ConnectionError("not yet")
        await client.say("opened")
        return client

    handle = mh.per_worker(make)
    with mh.Pool(1) as pool:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="not yet"):
                pool.submit(ask, handle, 1).result()
        assert pool.submit(ask, handle, 1).result() == 2
    balanced(log)


def test_a_system_exit_is_an_error_of_its_task_and_not_the_end_of_the_loop(log: Path) -> None:
    handle = _by_a_coroutine(log)

    async def leave() -> None:
        raise SystemExit("no")

    def task() -> int:
        with contextlib.suppress(SystemExit):
            handle.run(leave())
        return ask(handle, 3)

    with mh.Pool(1) as pool:
        assert pool.submit(task).result() == 6
    balanced(log)


def test_closing_that_raises_is_logged_and_the_rest_is_closed(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: object) -> None:
        raise SystemExit("no way")

    async def make() -> int:
        return 3

    first, second = _by_a_coroutine(log), mh.per_worker(make, close=fail)
    with mh.Pool(1) as pool:
        pool.submit(lambda: (first.get(), second.get())).result()
        [pid] = pids_of(pool)
    balanced(log)
    told = caplog.text
    assert f"in worker {pid} was not closed as it should be" in told
    assert "no way" in told


def test_a_worker_that_is_killed_closes_nothing_and_the_next_makes_it_anew(log: Path) -> None:
    handle = _by_a_coroutine(log)
    with mh.Pool(1) as pool:
        pool.submit(ask, handle, 1).result()
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(mh.WorkerDied):
            pool.submit(ask, handle, 1).result()
        pool.submit(ask, handle, 1).result()
    first, second = said(log, "opened")
    assert first[1].startswith(f"{pid}/")
    assert said(log, "closed") == [second]


def test_workers_that_are_recycled_close_theirs(log: Path) -> None:
    handle = _by_a_manager(log)
    with mh.Pool(2, recycle_after_tasks=5) as pool:
        for number in range(40):
            assert pool.submit(ask, handle, number).result() == 2 * number
    balanced(log, 3)


def test_a_plain_object_whose_method_close_is_asynchronous(log: Path) -> None:
    class Plain:
        async def close(self) -> None:
            await Client(log).say("closed")

    handle = mh.per_worker(Plain)
    with mh.Pool(1) as pool:
        pool.submit(lambda: handle.get() and None).result()
    assert len(said(log, "closed")) == 1


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_coroutine_ends_with_its_task(log: Path, engine: Any) -> None:
    handle = _by_a_coroutine(log)

    async def wait() -> None:
        try:
            await handle.get().say("waits")
            await asyncio.Event().wait()
        finally:
            await handle.get().say("stopped")

    def task() -> None:
        handle.run(wait())

    with mh.Pool(1, engine=engine) as pool:
        pool.submit(ask, handle, 1).result()
        stop_once(lambda: said(log, "waits"), pool.options(grace=60).submit(task))
        assert pool.submit(ask, handle, 1).result() == 2
    balanced(log)
    assert said(log, "stopped") == said(log, "opened")


@pytest.mark.parametrize("when", ["before", "behind"])
def test_an_interrupt_beside_the_moment_in_which_a_coroutine_is_handed_over(when: str) -> None:
    loop = WorkerLoop(lambda: None)
    hand_over = loop._loop.call_soon_threadsafe
    begun, ended = threading.Event(), threading.Event()
    calls = itertools.count()

    async def wait() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    def interrupted(*args: Any, **options: Any) -> asyncio.Handle:
        is_first = next(calls) == 0
        if is_first and when == "before":
            raise KeyboardInterrupt
        handle = hand_over(*args, **options)
        if is_first:
            assert begun.wait(60)
            raise KeyboardInterrupt
        return handle

    loop._loop.call_soon_threadsafe = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        loop.call(wait)
    assert begun.is_set() == ended.is_set() == (when == "behind")
    loop.close()


def test_a_factory_that_is_stopped_is_asked_again(log: Path) -> None:
    async def make() -> Client:
        client = Client(log)
        await client.say("tried")
        if len(said(log, "tried")) < 2:
            await asyncio.Event().wait()
        await client.say("opened")
        return client

    handle = mh.per_worker(make)
    with mh.Pool(1) as pool:
        future = pool.options(grace=60).submit(ask, handle, 1)
        stop_once(lambda: said(log, "tried"), future)
        assert pool.submit(ask, handle, 1).result() == 2
    balanced(log)


def test_an_object_that_needs_another_one(log: Path) -> None:
    first = _by_a_coroutine(log)

    async def on_top_of(client: Client) -> Client:
        await client.say("used")
        second = Client(log, "second")
        await second.say("opened")
        return second

    # In the task's thread, which can wait for the first.
    second = mh.per_worker(lambda: on_top_of(first.get()))
    with mh.Pool(1) as pool:
        assert pool.submit(ask, second, 1).result() == 2
    balanced(log, 2)
    assert [name for name, _ in said(log, "closed")] == ["second", "it"]


def test_the_loop_does_not_wait_for_itself(log: Path) -> None:
    handle = _by_a_coroutine(log)
    own: list[mh.PerWorker[Any]] = []

    async def nothing() -> None: ...

    async def ask_for_itself() -> object:
        return own[0].get()

    async def make_there() -> None:
        handle.get()

    async def run_there() -> None:
        handle.run(nothing())

    own.append(mh.per_worker(ask_for_itself))
    plain = mh.per_worker(dict)
    with pytest.raises(RuntimeError, match="is about to make what is asked for here"):
        own[0].get()
    with pytest.raises(RuntimeError, match="cannot wait for it on the event loop"):
        plain.run(make_there())
    with pytest.raises(RuntimeError, match="await the coroutine"):
        plain.run(run_there())
    assert not said(log, "opened")


@program_test
def test_nobody_is_told_of_coroutines_that_were_not_awaited() -> None:
    import warnings

    warnings.simplefilter("error")

    async def nothing() -> None: ...

    async def work() -> None:
        for refused in (other.get, lambda: plain.run(nothing())):
            try:
                refused()
            except RuntimeError:
                continue
            raise AssertionError

    def fail() -> None:
        raise OSError

    def makes_a_coroutine():
        return nothing()

    other = mh.per_worker(makes_a_coroutine)
    plain = mh.per_worker(dict)
    plain.run(work())
    try:
        mh.per_worker(fail).run(nothing())
    except OSError:
        gc.collect()
    else:
        raise AssertionError


def test_the_coroutine_has_the_callers_context(log: Path) -> None:
    variable = contextvars.ContextVar("variable", default=0)
    handle = _by_a_coroutine(log)

    async def read() -> int:
        await asyncio.sleep(0)
        return variable.get()

    with mh.Pool(1, engine="thread") as pool:
        variable.set(5)
        assert pool.submit(lambda: handle.run(read())).result() == 5


def test_a_thread_takes_its_loop_along() -> None:
    async def make() -> int:
        return 3

    handle = mh.per_worker(make)

    def loops() -> int:
        return sum(thread.name == "manyhands-loop" for thread in threading.enumerate())

    before = loops()
    thread = threading.Thread(target=handle.get)
    thread.start()
    thread.join()
    assert loops() == before
    with mh.Pool(2, engine="thread") as pool:
        assert set(pool.map(lambda _: handle.get(), range(10))) == {3}
        assert before < loops() <= before + 2
    assert loops() == before


def test_a_thread_that_ends_leaves_none_in_the_books() -> None:
    """Its objects are closed when `threading` has forgotten it, and must not hear of it again."""

    async def make() -> Client:
        return Client(Path(os.devnull))

    handle = mh.per_worker(make, close=Client.aclose)
    before = {*threading.enumerate()}
    for _ in range(3):
        thread = threading.Thread(target=handle.get)
        thread.start()
        thread.join()
        assert {*threading.enumerate()} <= before  # others may end meanwhile


def test_a_child_that_a_task_forks_starts_with_nothing(log: Path) -> None:
    handle = _by_a_coroutine(log)

    def task() -> int:
        ask(handle, 1)
        child = os.fork()
        if child == 0:
            return ask(handle, 1) - 2
        return os.waitpid(child, 0)[1]

    with mh.Pool(1) as pool:
        assert pool.submit(task).result() == 0
    assert len({where.split("/")[0] for _, where in said(log, "opened")}) == 2
    balanced(log, 2)


@program_test
def test_the_end_of_the_program_closes_it() -> None:
    async def make() -> int:
        return 3

    async def close(_: int) -> None:
        await asyncio.sleep(0)
        print("closed", flush=True)

    handle = mh.per_worker(make, close=close)
    assert handle.get() == 3
