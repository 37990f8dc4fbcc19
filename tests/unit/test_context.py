"""Which context variables travel to processes, and what is said of names that do not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

import manyhands as mh
from programs import program_test

user: ContextVar[Any] = ContextVar("user", default="nobody")
other: ContextVar[str] = ContextVar("other", default="nothing")

NAME = f"{__name__}:user"


def who(_: object = None) -> tuple[Any, str]:
    return user.get(), other.get()


def call_the_value() -> Any:
    return user.get()()


def set_other(value: str) -> None:
    other.set(value)


def as_user(name: Any, call: Callable[[], Any]) -> Any:
    def inside() -> Any:
        user.set(name)
        other.set("set")
        return call()

    return copy_context().run(inside)


@pytest.fixture
def configured() -> Iterator[None]:
    mh.configure(context=[NAME])
    yield
    mh.configure(context=None)


def test_what_was_not_named_stays() -> None:
    with mh.Pool(1, context=[NAME]) as pool:
        assert as_user("me", lambda: pool.submit(who).result()) == ("me", "nothing")
    with mh.Pool(1) as pool:
        assert as_user("me", lambda: pool.submit(who).result()) == ("nobody", "nothing")


@pytest.mark.usefixtures("configured")
def test_configured_for_all_pools() -> None:
    with mh.Pool(1) as pool:
        assert as_user("me", lambda: pool.submit(who).result()) == ("me", "nothing")
    with mh.Pool(1, context=[]) as pool:
        assert as_user("me", lambda: pool.submit(who).result()) == ("nobody", "nothing")
    assert as_user("me", lambda: mh.submit(who).result()) == ("me", "nothing")
    assert as_user("me", lambda: list(mh.map(who, [1], workers=1))) == [("me", "nothing")]


def test_the_default_pool_is_another_one_then() -> None:
    assert as_user("me", lambda: list(mh.map(who, [1], workers=1))) == [("nobody", "nothing")]
    mh.configure(context=[NAME])
    try:
        assert as_user("me", lambda: list(mh.map(who, [1], workers=1))) == [("me", "nothing")]
    finally:
        mh.configure(context=None)
    assert as_user("me", lambda: list(mh.map(who, [1], workers=1))) == [("nobody", "nothing")]


def test_an_initializers_values_stay_where_nothing_is_set() -> None:
    with mh.Pool(1, initializer=set_other, initargs=("initial",), context=[NAME]) as pool:
        assert as_user("me", lambda: pool.submit(who).result()) == ("me", "initial")


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        ("a:b", TypeError, "context is a list of names"),
        (3, TypeError, "context is a list of names"),
        ([3], TypeError, 'named as "module:name", not 3'),
        (["user"], ValueError, "named as \"module:name\", not 'user'"),
        ([":user"], ValueError, 'named as "module:name"'),
        (
            ["no_such_module:user"],
            ValueError,
            "no context variable 'no_such_module:user': No module",
        ),
        ([f"{__name__}:gone"], ValueError, "there is no context variable .*gone"),
        (["os:path"], TypeError, "'os:path' is no contextvars.ContextVar, but of the type module"),
    ],
)
def test_names_that_are_refused(engine: str, names: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mh.Pool(1, engine=engine, context=names)
    with pytest.raises(error, match=says):
        mh.configure(context=names)
    assert as_user("me", lambda: list(mh.map(who, [1], workers=1))) == [("nobody", "nothing")]


def test_a_value_that_cannot_be_sent() -> None:
    with mh.Pool(1, context=[NAME]) as pool:
        with pytest.raises(mh.NotPicklable, match=f"context.*{NAME}"):
            as_user(threading.Lock(), lambda: pool.submit(who))
        with pytest.raises(mh.NotPicklable, match=f"context.*{NAME}"):
            as_user(threading.Lock(), lambda: pool.map(who, [1]))
        assert pool.submit(who).result() == ("nobody", "nothing")


def test_values_by_value_and_large_ones() -> None:
    large = "x" * 3_000_000
    with mh.Pool(2, context=[NAME]) as pool:
        found = as_user(lambda: 42, lambda: pool.submit(call_the_value).result())
        assert found == 42
        results = as_user(large, lambda: pool.map(lambda _: len(user.get()), range(1000)))
        assert set(results) == {len(large)}
        assert results.summary.sent < 10 * len(large)


def test_values_of_which_there_are_many() -> None:
    with mh.Pool(2, context=[NAME]) as pool:
        futures = [as_user(number, lambda: pool.submit(who)) for number in range(2000)]
        assert [future.result()[0] for future in futures] == list(range(2000))


def test_values_that_take_turns_on_one_worker() -> None:
    with mh.Pool(1, context=[NAME]) as pool:
        held = pool.submit(time.sleep, 0.1)  # so that a value is gone before its task runs
        names = [("me", "you", "them")[n % 3] for n in range(60)]
        tasks = [as_user(name, lambda: pool.submit(who)) for name in names]
        calls = [as_user(name, lambda: pool.submit(lambda: (user.get(),))) for name in names]
        maps = [
            as_user(name, lambda: pool.map(lambda n: (n, user.get()), range(3))) for name in names
        ]
        assert held.result() is None
        assert [task.result()[0] for task in tasks] == names
        assert [call.result() for call in calls] == [(name,) for name in names]
        for name, results in zip(names, maps, strict=True):
            assert list(results) == [(n, name) for n in range(3)]


def test_a_generator_of_a_thread_is_as_it_is() -> None:
    ends: list[object] = []

    def talk() -> Iterator[Any]:
        try:
            heard = yield user.get()
            try:
                yield heard
            except KeyError:
                yield user.get()
        finally:
            ends.append(user.get())

    with mh.Pool(1, engine="thread") as pool:
        for _ in range(2):
            found = as_user("me", lambda: pool.submit(talk).result())
            assert next(found) == "me"
            assert found.send("heard") == "heard"
            assert found.throw(KeyError()) == "me"
            found.close()
    assert ends == ["me", "me"]


def test_a_worker_that_dies_leaves_them_to_the_next() -> None:
    with mh.Pool(1, context=[NAME]) as pool:
        as_user("me", lambda: pool.submit(who).result())
        with pytest.raises(mh.WorkerDied):
            pool.submit(lambda: os.kill(os.getpid(), signal.SIGKILL)).result()
        assert as_user("me", lambda: pool.submit(who).result()) == ("me", "nothing")


@program_test
def test_a_variable_of_the_script_that_is_not_named() -> None:
    from contextvars import ContextVar

    request = ContextVar("request")

    def find():
        return request.get()

    with mh.Pool(1) as pool:
        error = pool.submit(find).exception()
    assert isinstance(error, NameError)
    assert 'name it in context=["__main__:request"]' in str(error.__notes__)


@program_test
def test_a_child_of_fork_has_its_own() -> None:
    from contextvars import ContextVar

    large = ContextVar("large")
    large.set(bytes(1_000_000))

    def find():
        return len(large.get())

    with mh.Pool(1, context=["__main__:large"]) as pool:
        assert pool.submit(find).result() == 1_000_000
        child = os.fork()
        if child == 0:
            with mh.Pool(1, context=["__main__:large"]) as own:
                found = own.submit(find).result(timeout=20)
            os._exit(17 if found == 1_000_000 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


@program_test
def test_a_variable_of_the_script() -> None:
    from contextvars import ContextVar

    request = ContextVar("request")
    level = ContextVar("level", default=3)

    def find(_=None):
        return request.get("unset"), level.get()

    with mh.Pool(2, context=["__main__:request", "__main__:level"]) as pool:
        assert pool.submit(find).result() == ("unset", 3)
        request.set("one")
        assert pool.submit(find).result() == ("one", 3)
        level.set(4)
        assert set(pool.map(find, range(100))) == {("one", 4)}
