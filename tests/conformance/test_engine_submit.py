"""`submit` on every engine: what goes in, what comes back, and what failures look like."""

from __future__ import annotations

import asyncio
import collections
import datetime
import decimal
import functools
import operator
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from capabilities import Capabilities
from tasks import (
    CustomError,
    Explodes,
    Fatal,
    Unpicklable,
    append,
    collect,
    count_to,
    fail,
    same,
    square,
)

import manyhands as mh

Point = collections.namedtuple("Point", "x y")


class Box:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Box and self.value == other.value

    __hash__ = None  # type: ignore[assignment]

    def times(self, number: int) -> Any:
        return self.value * number

    @classmethod
    def made(cls, value: Any) -> Box:
        return cls(value)

    @staticmethod
    def negated(value: int) -> int:
        return -value


# ---------------------------------------------------------------------------- arguments and results


def test_every_argument_goes_to_the_function(pool: mh.Pool) -> None:
    assert pool.submit(collect).result() == ((), {})
    assert pool.submit(collect, 1, "two", [3]).result() == ((1, "two", [3]), {})
    assert pool.submit(collect, 1, key=2, fn=3).result() == ((1,), {"key": 2, "fn": 3})
    assert pool.submit(collect, workers=1, timeout=2, self=3, engine="none").result() == (
        (),
        {"workers": 1, "timeout": 2, "self": 3, "engine": "none"},
    )
    many = list(range(300))
    assert pool.submit(collect, *many).result() == (tuple(many), {})


VALUES = [
    None,
    True,
    0,
    -1,
    10**100,
    1.5,
    float("inf"),
    1j,
    "",
    "text ä \N{OLD PERSIAN SIGN AURAMAZDAA} \x00",
    "lone \ud800 surrogate",
    b"bytes\x00",
    bytearray(b"bytes"),
    (),
    (1, (2, [3])),
    [],
    [[1], {"key": {2}}],
    {},
    {1: "one", (2,): ["two"], None: None},
    set(),
    frozenset({1, 2}),
    range(3),
    slice(1, 2, 3),
    Ellipsis,
    NotImplemented,
    datetime.datetime(2026, 1, 2, 3, 4, 5),
    decimal.Decimal("1.10"),
    Point(1, 2),
    Box([1, Box(2)]),
    collections.Counter("hello"),
    collections.deque([1, 2], maxlen=5),
    int,
    Box,
    len,
    square,
]


def test_values_of_all_kinds_go_there_and_back(pool: mh.Pool) -> None:
    for value in VALUES:
        result = pool.submit(same, value).result()
        assert type(result) is type(value)
        assert result == value
    assert pool.submit(collect, *VALUES).result() == (tuple(VALUES), {})


def test_values_of_all_kinds_are_made_there(pool: mh.Pool) -> None:
    nan = pool.submit(float, "nan").result()
    assert nan != nan
    assert pool.submit(lambda: {"a": [Box(1), {2}]}).result() == {"a": [Box(1), {2}]}
    assert pool.submit(lambda: lambda number: number + 1).result()(1) == 2
    error = pool.submit(lambda: ValueError("a value, and not raised")).result()
    assert isinstance(error, ValueError)
    large = pool.submit(bytes, 3 << 20).result()
    assert large == bytes(3 << 20)


def test_callables_of_all_kinds(pool: mh.Pool) -> None:
    factor = 3
    box = Box(2)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
        (len, ("abc",), 3),
        (square, (3,), 9),
        (lambda number: number * factor, (2,), 6),
        (functools.partial(pow, 2), (5,), 32),
        (functools.partial(functools.partial(collect, 1), key=2), (3,), ((1, 3), {"key": 2})),
        (box.times, (4,), 8),
        (Box.made, (1,), Box(1)),
        (Box.negated, (1,), -1),
        (Box, (5,), Box(5)),
        ("-".join, (["a", "b"],), "a-b"),
        (str.upper, ("a",), "A"),
        (operator.attrgetter("value"), (box,), 2),
    ]
    for function, args, expected in calls:
        assert pool.submit(function, *args).result() == expected


def test_a_recursive_value(pool: mh.Pool) -> None:
    row: list[Any] = [1]
    row.append(row)
    result = pool.submit(same, row).result()
    assert result[1] is result
    table: dict[str, Any] = {}
    table["self"] = (table,)
    result = pool.submit(same, table).result()
    assert result["self"][0] is result


def test_what_is_not_callable_is_refused(pool: mh.Pool) -> None:
    with pytest.raises(TypeError, match=r"^the first argument must be callable, not int$"):
        pool.submit(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="submit"):
        pool.submit()  # type: ignore[call-arg]


# ----------------------------------------------------------------------------------- whose they are


def test_who_has_which_object(engine: Capabilities, pool: mh.Pool) -> None:
    row = [0]
    result = pool.submit(append, row).result()
    assert result == [0, 1]
    if engine.copies:
        assert row == [0]
    else:
        assert result is row


def test_an_argument_is_as_it_was_when_it_was_submitted(
    engine: Capabilities, pool: mh.Pool
) -> None:
    """Where arguments are the same objects, this is for the caller to see to."""
    row = [0]
    futures = []
    for number in range(20):
        row[0] = number
        futures.append(pool.submit(list, row))
        if not engine.copies:
            futures[-1].result()
    assert [future.result() for future in futures] == [[number] for number in range(20)]


def test_one_object_in_two_arguments_is_one_object_there(pool: mh.Pool) -> None:
    row = [0]
    assert pool.submit(operator.is_, row, row).result()
    assert pool.submit(lambda a, b: a is b[0], row, [row]).result()
    assert pool.submit(lambda *, a, b: a is b, a=row, b=row).result()


def test_copy_false(engine: Capabilities) -> None:
    row = [0]
    if engine.shares_on_request:
        with mh.Pool(2, engine=engine.name, copy=False) as pool:
            assert pool.submit(append, row).result() is row
            assert pool.submit(same, lock := threading.Lock()).result() is lock
        assert list(mh.map(append, [row], engine=engine.name, copy=False)) == [row]
        assert row == [0, 1, 2]
    else:
        text = r'^copy=False is for engine="inline": processes share no objects$'
        with pytest.raises(ValueError, match=text):
            mh.Pool(2, engine=engine.name, copy=False)
        with pytest.raises(ValueError, match=text):
            mh.map(append, [row], engine=engine.name, copy=False)


# --------------------------------------------------------------------------------------- exceptions


def thrower(number: int) -> float:
    return innermost(number)


def innermost(number: int) -> float:
    return 1 / number


def chained(number: int) -> float:
    try:
        return innermost(number)
    except ZeroDivisionError as error:
        raise CustomError(5, detail="chained") from error


def frames(error: BaseException) -> list[str]:
    """The functions of the traceback that is shown last, as people see it."""
    text = "".join(traceback.format_exception(error))
    return [line.rpartition(", in ")[2] for line in text.splitlines() if line.startswith("  File")]


def test_an_exception_with_its_type_traceback_and_note(engine: Capabilities, pool: mh.Pool) -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        pool.submit(thrower, 0).result()
    error = caught.value
    [note] = error.__notes__
    assert note.startswith("manyhands: task 0: thrower(0), in ")
    there = ["thrower", "innermost"]
    if engine.own_exceptions:
        assert error.__cause__ is None
        assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-2:] == there
        assert frames(error)[-2:] == there
    else:
        assert isinstance(error.__cause__, mh.RemoteTraceback)
        text = error.__cause__.text
        assert [name for name in there if name in text] == there
        assert text.index("in thrower") < text.index("in innermost")
        assert "_worker" not in text, "the user's frames alone"
        assert frames(error)[:2] == there
    # Whatever the engine, nothing of ours is between the caller and the task.
    assert not [name for name in frames(error) if name in ("_run", "work", "explained")]


def test_the_note_says_where_and_with_what(engine: Capabilities, pool: mh.Pool) -> None:
    pool.submit(fail, 1).exception()
    error = pool.submit(fail, "x" * 1000).exception()
    assert error is not None
    [note] = error.__notes__
    assert note.startswith("manyhands: task 1: fail('xxx")
    assert len(note) < 150
    where = note.rpartition(", in ")[2]
    if engine.background:
        assert where.startswith("worker ")
        assert where.endswith(", attempt 1")
    else:
        assert where == "the calling thread"


def test_arguments_are_hidden_on_request(engine: Capabilities) -> None:
    with mh.Pool(2, engine=engine.name, show_args=False) as pool:
        error = pool.submit(fail, "secret").exception()
        assert error is not None
        [note] = error.__notes__
        assert note.startswith("manyhands: task 0: fail, in ")
        with pytest.raises(ValueError, match="item secret") as caught:
            list(pool.map(fail, ["secret"]))
        assert "secret" not in caught.value.__notes__[0]


def test_an_exception_with_its_cause_and_its_attributes(
    engine: Capabilities, pool: mh.Pool
) -> None:
    error = pool.submit(chained, 0).exception()
    assert type(error) is CustomError
    assert (error.code, error.detail, str(error)) == (5, "chained", "code 5")
    text = "".join(traceback.format_exception(error))
    assert "ZeroDivisionError: division by zero" in text
    assert "direct cause" in text
    if engine.own_exceptions:
        assert isinstance(error.__cause__, ZeroDivisionError)


def test_an_exception_keeps_its_own_notes(pool: mh.Pool) -> None:
    def noted() -> None:
        error = KeyError("key")
        error.add_note("mine")
        raise error

    error = pool.submit(noted).exception()
    assert isinstance(error, KeyError)
    assert error.__notes__[0] == "mine"
    assert error.__notes__[-1].startswith("manyhands: task 0: ")


def test_each_task_has_its_own_exception(pool: mh.Pool) -> None:
    errors = [pool.submit(fail, number).exception() for number in range(20)]
    assert [str(error) for error in errors] == [f"item {number}" for number in range(20)]
    assert len({id(error) for error in errors}) == 20
    assert all(len(error.__notes__) == 1 for error in errors if error is not None)


def test_a_group_of_exceptions(pool: mh.Pool) -> None:
    def several() -> None:
        raise ExceptionGroup("several", [ValueError(1), KeyError("two")])

    error = pool.submit(several).exception()
    assert isinstance(error, ExceptionGroup)
    assert [type(one) for one in error.exceptions] == [ValueError, KeyError]


def test_a_base_exception_is_the_tasks_own(pool: mh.Pool) -> None:
    def fatal() -> None:
        raise Fatal("no Exception")

    error = pool.submit(fatal).exception()
    assert type(error) is Fatal
    with pytest.raises(Fatal, match="no Exception"):
        pool.submit(fatal).result()
    assert pool.submit(square, 3).result() == 9


def test_stop_iteration_and_asyncios_cancelled_error(pool: mh.Pool) -> None:
    def stops() -> None:
        raise StopIteration(5)

    def cancels() -> None:
        raise asyncio.CancelledError("mine")

    error = pool.submit(stops).exception()
    assert isinstance(error, StopIteration)
    assert error.value == 5
    future = pool.submit(cancels)
    assert isinstance(future.exception(), asyncio.CancelledError)
    assert not future.cancelled()


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt])
def test_what_would_end_the_program(
    engine: Capabilities, pool: mh.Pool, kind: type[BaseException]
) -> None:
    def ends() -> None:
        raise kind("now")

    if kind is KeyboardInterrupt and engine.interrupts_caller:
        with pytest.raises(KeyboardInterrupt, match="now"):
            pool.submit(ends)
    else:
        error = pool.submit(ends).exception()
        assert isinstance(error, mh.RemoteError)
        assert (error.type_name, error.remote_message) == (kind.__name__, "now")
        assert f"raised {kind.__name__}: now, which is kept from ending this program" in str(error)
        if engine.own_exceptions:
            assert type(error.__cause__) is kind
        else:
            assert isinstance(error.__cause__, mh.RemoteTraceback)
    assert pool.submit(square, 3).result() == 9


def endless(number: int) -> int:
    return endless(number + 1)


def test_a_recursion_without_end(pool: mh.Pool) -> None:
    error = pool.submit(endless, 0).exception()
    assert isinstance(error, RecursionError)
    assert "endless(0)" in error.__notes__[-1]
    assert pool.submit(square, 3).result() == 9


def test_memory_error(pool: mh.Pool) -> None:
    def too_much() -> bytes:
        return bytes(1 << 60)

    assert isinstance(pool.submit(too_much).exception(), MemoryError)


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has nothing to say")


def test_an_exception_without_a_text(pool: mh.Pool) -> None:
    def mute() -> None:
        raise Speechless

    assert type(pool.submit(mute).exception()) is Speechless


class Lonely(Exception):
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


def test_an_exception_that_cannot_be_pickled(engine: Capabilities, pool: mh.Pool) -> None:
    def alone() -> None:
        raise Lonely("text")

    error = pool.submit(alone).exception()
    if engine.own_exceptions:
        assert type(error) is Lonely
        return
    assert isinstance(error, mh.RemoteError)
    assert error.type_name.endswith("Lonely")
    assert error.remote_message == "text"
    assert "this exception cannot be pickled" in str(error)


# --------------------------------------------------------------------------- what cannot be pickled


def test_an_argument_that_cannot_be_pickled(engine: Capabilities, pool: mh.Pool) -> None:
    job = Unpicklable()
    if engine.copies:
        with pytest.raises(mh.NotPicklable, match=r"^args\[1\]\.lock is a thread lock$"):
            pool.submit(collect, 1, job)
        with pytest.raises(mh.NotPicklable, match=r"key.*\.lock is a thread lock$"):
            pool.submit(collect, key=job)
    else:
        (_, found), _ = pool.submit(collect, 1, job).result()
        assert found is job
    assert pool.submit(square, 3).result() == 9


def test_a_result_that_cannot_be_pickled(engine: Capabilities, pool: mh.Pool) -> None:
    future = pool.submit(Unpicklable)
    if engine.copies:
        error = future.exception()
        assert isinstance(error, mh.NotPicklable)
        assert str(error) == "the result.lock is a thread lock"
        assert error.__notes__[0].startswith("manyhands: task 0")
    else:
        assert type(future.result()) is Unpicklable
    assert pool.submit(square, 3).result() == 9


def test_a_function_that_captures_what_cannot_be_pickled(
    engine: Capabilities, pool: mh.Pool
) -> None:
    lock = threading.Lock()

    def lock_state() -> bool:
        return lock.locked()

    if engine.copies_functions:
        with pytest.raises(mh.NotPicklable, match="lock"):
            pool.submit(lock_state)
    else:
        assert pool.submit(lock_state).result() is False


def test_a_generator_is_a_result_like_others(engine: Capabilities, pool: mh.Pool) -> None:
    """Only maps stream."""
    future = pool.submit(count_to, 3)
    if engine.copies:
        error = future.exception()
        assert isinstance(error, mh.NotPicklable)
        assert str(error) == "the result is a generator"
    else:
        assert list(future.result()) == [0, 1, 2]


def test_a_result_that_raises_when_it_is_unpickled(engine: Capabilities, pool: mh.Pool) -> None:
    future = pool.submit(Explodes)
    if engine.copies:
        error = future.exception()
        # In a process it is the caller who unpickles; see the test of what differs.
        found = error if isinstance(error, LookupError) else error.__cause__
        assert isinstance(found, LookupError)
        assert str(found) == "it explodes"
    else:
        assert type(future.result()) is Explodes
    assert pool.submit(square, 3).result() == 9


def test_an_argument_that_raises_when_it_is_unpickled(engine: Capabilities, pool: mh.Pool) -> None:
    """Whoever makes the copy meets the exception: the task in its process, or else the caller."""
    if not engine.copies:
        assert type(pool.submit(same, Explodes()).result()) is Explodes
    elif engine.background:
        assert isinstance(pool.submit(same, Explodes()).exception(), LookupError)
    else:
        with pytest.raises(LookupError, match="it explodes"):
            pool.submit(same, Explodes())
    assert pool.submit(square, 3).result() == 9


async def coroutine(number: int) -> int:
    return number


async def asynchronous_generator(number: int) -> Any:
    yield number


@pytest.mark.parametrize("function", [coroutine, asynchronous_generator])
def test_nobody_awaits_a_coroutine(pool: mh.Pool, function: Any) -> None:
    """A map refuses the function, a task fails; nothing is left that was never awaited."""
    error = pool.submit(function, 1).exception()
    assert isinstance(error, TypeError | mh.NotPicklable)
    assert "coroutine" in str(error) or "async" in str(error)
    with pytest.raises(TypeError, match=r"^\w+ is a coroutine function \(async def\), and no"):
        pool.map(function, [1])
    with pytest.raises(TypeError, match="coroutine function"):
        pool.starmap(function, [(1,)])


# ------------------------------------------------------------------------------------ where it runs


def test_where_tasks_run(engine: Capabilities, pool: mh.Pool) -> None:
    def place() -> tuple[int, str]:
        return os.getpid(), threading.current_thread().name

    pids, names = zip(*[pool.submit(place).result() for _ in range(10)], strict=True)
    assert (os.getpid() in pids) == (not engine.own_pids)
    if engine.own_pids:
        assert set(names) == {"MainThread"}
    elif engine.background:
        assert all(name.startswith("manyhands-") for name in names)
    else:
        assert set(names) == {threading.current_thread().name}


def test_the_order_of_tasks_is_that_of_their_submission(engine: Capabilities) -> None:
    def note(number: int) -> int:
        seen.append(number)
        return len(seen)

    seen: list[int] = []
    with mh.Pool(1, engine=engine.name) as pool:
        futures = [pool.submit(note, number) for number in range(50)]
        assert [future.result() for future in futures] == list(range(1, 51))


def break_at_once() -> None:
    raise KeyError("at once")


def test_no_worker_follows_one_that_broke_the_pool(engine: Capabilities) -> None:
    if engine.own_pids:
        return  # their births are counted, see `test_pool.py`
    for _ in range(50):
        with mh.Pool(1, engine=engine.name, initializer=break_at_once) as pool:
            with pytest.raises(KeyError):
                pool.submit(abs, 1).result()
