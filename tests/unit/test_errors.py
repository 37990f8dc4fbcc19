"""What people see when a task fails, its worker dies, or something cannot travel."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import manyhands as mh
from observing import pids_of, settle
from programs import output_of


def same(value: Any) -> Any:
    return value


def fail(*args: Any, **kwargs: Any) -> None:
    raise ValueError("text", 5)


def inner(value: int) -> float:
    return 1 / value


def outer(value: int) -> float:
    try:
        return inner(value)
    except ZeroDivisionError as error:
        raise LookupError("outer") from error


@pytest.fixture
def discreet() -> Iterator[mh.Pool]:
    with mh.Pool(1, show_args=False) as pool:
        yield pool


def error_of(pool: mh.Pool, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    error = pool.submit(function, *args, **kwargs).exception()
    assert error is not None
    return error


def shown(error: BaseException) -> str:
    """As an interpreter shows it."""
    return "".join(traceback.format_exception(error))


# ----------------------------------------------------------------------- exceptions of the task


def test_the_type_and_the_arguments_arrive(pool: mh.Pool) -> None:
    error = error_of(pool, fail)
    assert type(error) is ValueError
    assert error.args == ("text", 5)


def test_one_note_with_index_arguments_worker_and_attempt(pool: mh.Pool) -> None:
    pid = pool.submit(os.getpid).result()
    error = error_of(pool, fail, 1, "two", key=[3])
    assert len(error.__notes__) == 1
    note = error.__notes__[0]
    match = re.fullmatch(
        r"manyhands: task (\d+): fail\(1, 'two', key=\[3\]\), in worker (\d+), attempt 1", note
    )
    assert match, note
    assert int(match[1]) >= 1
    assert int(match[2]) in {*pids_of(pool)} | {pid}


def test_the_index_in_a_map_is_the_items(pool: mh.Pool) -> None:
    pool.submit(same, 1).result()
    with pytest.raises(ZeroDivisionError) as caught:
        list(pool.map(inner, [2, 1, 0]))
    assert caught.value.__notes__[0].startswith("manyhands: item 2: inner(0), in worker ")


def test_long_arguments_are_shortened(pool: mh.Pool) -> None:
    note = error_of(pool, fail, "x" * 1000, list(range(1000)), {"key": "y" * 500}).__notes__[0]
    assert len(note) < 400
    assert "..." in note
    many = error_of(pool, fail, *range(50)).__notes__[0]
    assert "fail(0, 1, 2, 3, ... 46 more)" in many


class Unprintable:
    def __repr__(self) -> str:
        raise OSError("no repr")


def test_arguments_whose_repr_raises(pool: mh.Pool) -> None:
    note = error_of(pool, fail, Unprintable()).__notes__[0]
    assert "fail(<Unprintable" in note


def test_arguments_of_several_lines(pool: mh.Pool) -> None:
    assert "\n" not in error_of(pool, fail, "a\nb", ["c\nd"]).__notes__[0]


def test_notes_of_the_task_are_kept(pool: mh.Pool) -> None:
    def work() -> None:
        error = ValueError("noted")
        error.add_note("mine")
        raise error

    notes = error_of(pool, work).__notes__
    assert notes[0] == "mine"
    assert len(notes) == 2


def test_the_remote_traceback_is_the_cause(pool: mh.Pool) -> None:
    error = error_of(pool, inner, 0)
    cause = error.__cause__
    assert type(cause) is mh.RemoteTraceback
    assert cause.text.startswith("Traceback (most recent call last):\n")
    assert "in inner\n    return 1 / value" in cause.text
    assert __file__ in cause.text
    assert "ZeroDivisionError: division by zero" in cause.text
    text = shown(error)
    assert "in inner" in text
    assert "The above exception was the direct cause" in text


def test_the_chain_of_causes_is_in_the_remote_traceback(pool: mh.Pool) -> None:
    text = shown(error_of(pool, outer, 0))
    assert "ZeroDivisionError" in text
    assert "in inner" in text
    assert "in outer" in text


def test_the_traceback_has_no_frames_of_ours(pool: mh.Pool) -> None:
    text = error_of(pool, inner, 0).__cause__.text
    assert "_worker.py" not in text
    assert "_zygote.py" not in text


def test_source_lines_of_closures_are_shown(pool: mh.Pool) -> None:
    def work() -> None:
        raise ValueError("here")  # in this very line

    assert "# in this very line" in shown(error_of(pool, work))


def test_an_exception_group(pool: mh.Pool) -> None:
    def work() -> None:
        raise ExceptionGroup("several", [ValueError(1), TypeError(2)])

    error = error_of(pool, work)
    assert type(error) is ExceptionGroup
    assert [type(part) for part in error.exceptions] == [ValueError, TypeError]


class Own(Exception):
    def __init__(self, number: int, *, name: str = "") -> None:
        super().__init__(number)
        self.number = number
        self.name = name


class Demanding(Exception):
    """Cannot be rebuilt from its `args`, a common mistake (P5)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class FailingReduce(Exception):
    def __reduce__(self) -> Any:
        raise OSError("no reduce")


class FailingSetState(Exception):
    def __reduce__(self) -> Any:
        return (FailingSetState, (), {"a": 1})

    def __setstate__(self, state: Any) -> None:
        raise OSError("no setstate")


class FailingStr(Exception):
    def __str__(self) -> str:
        raise OSError("no str")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class NotAnError(Exception):
    def __reduce__(self) -> Any:
        return (int, (5,))


class Outside(BaseException):
    pass


def raise_it(make: Callable[..., BaseException], *args: Any, **kwargs: Any) -> None:
    raise make(*args, **kwargs)


def test_exceptions_of_own_types(pool: mh.Pool) -> None:
    error = error_of(pool, raise_it, Own, 7, name="seven")
    assert type(error) is Own
    assert (error.number, error.name, error.args) == (7, "seven", (7,))


def test_exceptions_of_a_local_class(pool: mh.Pool) -> None:
    class Local(Exception):
        pass

    def work() -> None:
        raise Local("local")

    assert type(error_of(pool, work)) is Local


@pytest.mark.parametrize(
    ("make", "args", "expected"),
    [
        (Demanding, (5, "five"), "Demanding: 5: five; unpickling it raised TypeError"),
        (FailingReduce, ("x",), "FailingReduce: x; this exception cannot be pickled"),
        (FailingSetState, (), "FailingSetState; unpickling it raised OSError: no setstate"),
        (HoldsLock, (), "HoldsLock: locked; this exception cannot be pickled"),
        (NotAnError, ("x",), "what it unpickles to is no exception but int"),
        (SystemExit, (3,), "raised SystemExit: 3, which is kept from ending this program"),
        (KeyboardInterrupt, (), "raised KeyboardInterrupt, which is kept from ending"),
        (GeneratorExit, (), "raised GeneratorExit, which is kept from ending"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_exceptions_that_another_stands_for(
    pool: mh.Pool, make: Any, args: tuple[Any, ...], expected: str
) -> None:
    error = error_of(pool, raise_it, make, *args)
    assert type(error) is mh.RemoteError
    assert expected in str(error)
    assert error.type_name.endswith(make.__name__)
    assert isinstance(error.__cause__, mh.RemoteTraceback)
    assert "raise_it" in error.__cause__.text
    assert len(error.__notes__) == 1
    assert pool.submit(same, 1).result() == 1


def test_an_exception_whose_str_raises(pool: mh.Pool) -> None:
    error = error_of(pool, raise_it, FailingStr)
    assert type(error) is FailingStr
    assert pool.submit(same, 1).result() == 1


def test_an_exception_that_is_no_exception_class(pool: mh.Pool) -> None:
    error = error_of(pool, raise_it, Outside, "base")
    assert type(error) is Outside
    assert error.args == ("base",)


@pytest.mark.parametrize("exit_with", [sys.exit, exit, quit], ids=["sys.exit", "exit", "quit"])
def test_a_task_that_wants_to_end_the_program(pool: mh.Pool, exit_with: Any) -> None:
    error = error_of(pool, exit_with, 3)
    assert type(error) is mh.RemoteError
    assert "SystemExit: 3" in str(error)
    assert pool.submit(same, 1).result() == 1


def test_errors_from_deep_recursion(pool: mh.Pool) -> None:
    def down(depth: int) -> int:
        return down(depth + 1)

    assert type(error_of(pool, down, 0)) is RecursionError
    assert pool.submit(same, 1).result() == 1


def test_memory_error(pool: mh.Pool) -> None:
    assert type(error_of(pool, bytes, 1 << 62)) in (MemoryError, OverflowError)
    assert pool.submit(same, 1).result() == 1


def test_cancelled_error_of_a_task_is_an_error(pool: mh.Pool) -> None:
    future = pool.submit(raise_it, concurrent.futures.CancelledError)
    assert type(future.exception()) is concurrent.futures.CancelledError
    assert not future.cancelled()
    asynchronous = pool.submit(raise_it, asyncio.CancelledError)
    assert isinstance(asynchronous.exception(), asyncio.CancelledError | mh.RemoteError)


def test_stop_iteration_of_a_task(pool: mh.Pool) -> None:
    assert type(error_of(pool, next, iter(()))) is StopIteration
    results = pool.map(next, [iter((1,)), iter(()), iter((3,))])
    assert next(results) == 1


def test_many_failing_tasks(pool: mh.Pool) -> None:
    futures = [pool.submit(inner, number % 2) for number in range(2000)]
    for number, future in enumerate(futures):
        if number % 2:
            assert future.result() == 1.0
        else:
            assert type(future.exception()) is ZeroDivisionError


def test_a_huge_exception(pool: mh.Pool) -> None:
    error = error_of(pool, raise_it, ValueError, "x" * 3_000_000)
    assert type(error) is ValueError
    assert len(error.args[0]) == 3_000_000


# --------------------------------------------------------------------------------- hidden arguments


def test_show_args_hides_arguments_in_the_note(discreet: mh.Pool) -> None:
    error = error_of(discreet, fail, "secret", password="secret")
    assert "secret" not in error.__notes__[0]
    assert re.fullmatch(r"manyhands: task 0: fail, in worker \d+, attempt 1", error.__notes__[0]), (
        error.__notes__
    )
    assert "secret" not in shown(error)


def test_show_args_hides_arguments_of_a_death(discreet: mh.Pool) -> None:
    def die(password: str) -> None:
        os._exit(1)

    message = str(error_of(discreet, die, "secret"))
    assert "secret" not in message
    assert "die)" in message


def test_show_args_hides_arguments_of_a_map(discreet: mh.Pool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text") as caught:
        list(discreet.map(fail, [str(tmp_path)]))
    assert str(tmp_path) not in shown(caught.value)


def test_show_args_hides_arguments_of_a_method(discreet: mh.Pool) -> None:
    class Client:
        def __init__(self, password: str) -> None:
            self.password = password

        def __repr__(self) -> str:
            return f"Client({self.password})"

        def call(self) -> None:
            raise ValueError("failed")

    error = error_of(discreet, Client("secret").call)
    assert "secret" not in shown(error)
    error = error_of(discreet, fail, key=Client("secret"))
    assert "secret" not in shown(error)


def test_the_variable_hides_arguments(tmp_path: Path) -> None:
    source = """
        import os, manyhands as mh
        with mh.Pool(1) as pool, mh.Pool(1, show_args=True) as open_pool:
            for pool in pool, open_pool:
                for work in int, os._exit:
                    try:
                        pool.submit(work, "not a number").result()
                    except Exception as error:
                        print(error.__notes__[0].split(",")[0])
                try:
                    pool.submit(os._exit, 77).result()
                except mh.WorkerDied as error:
                    print("77)" in str(error))
        """
    hidden = "manyhands: task 0: int\nmanyhands: task 1: _exit\nFalse\n"
    visible = (
        "manyhands: task 0: int('not a number')\nmanyhands: task 1: _exit('not a number')\nTrue\n"
    )
    assert output_of(tmp_path, source, env={"MANYHANDS_SHOW_ARGS": "0"}) == hidden + visible
    assert output_of(tmp_path, source, env={"MANYHANDS_SHOW_ARGS": "1"}) == visible + visible
    assert output_of(tmp_path, source) == visible + visible


# ---------------------------------------------------------------------------------------- deaths


def kill_self(number: int, *_: Any) -> None:
    os.kill(os.getpid(), number)


def exit_with(status: int) -> None:
    os._exit(status)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGBUS]
)
def test_a_death_names_task_and_signal(pool: mh.Pool, number: signal.Signals) -> None:
    error = error_of(pool, kill_self, int(number), "argument")
    assert type(error) is mh.WorkerDied
    assert (error.cause, error.code) == ("signal", number)
    assert error.pid > 0
    text = str(error)
    assert f"worker {error.pid} was killed by {number.name} while it ran task " in text
    assert f"(kill_self({int(number)}, 'argument'))" in text
    assert "other tasks go on" in text
    assert ("kernel's log" in text) == (number == signal.SIGKILL)
    assert pool.submit(same, 1).result() == 1


@pytest.mark.parametrize("status", [0, 1, 255])
def test_a_death_by_exit(pool: mh.Pool, status: int) -> None:
    error = error_of(pool, exit_with, status)
    assert type(error) is mh.WorkerDied
    assert (error.cause, error.code) == ("exit", status)
    assert f"exited with status {status} while it ran task" in str(error)
    assert f"(exit_with({status}))" in str(error)


def test_a_death_is_several_kinds_of_error(pool: mh.Pool) -> None:
    error = error_of(pool, exit_with, 1)
    assert isinstance(error, mh.TaskError)
    assert isinstance(error, concurrent.futures.BrokenExecutor)
    assert isinstance(error, RuntimeError)


def test_a_death_costs_one_task() -> None:
    with mh.Pool(2) as pool:
        futures = [pool.submit(same, number) for number in range(300)]
        killers = [pool.submit(exit_with, 9) for _ in range(3)]
        futures += [pool.submit(same, number) for number in range(300, 600)]
        assert [type(killer.exception()) for killer in killers] == [mh.WorkerDied] * 3
        assert [future.result() for future in futures] == list(range(600))
        assert pool.stats().deaths == 3


# ------------------------------------------------------------------------- what cannot travel


class Model:
    def __init__(self) -> None:
        self._lock = threading.Lock()


class Holder:
    def __init__(self) -> None:
        self.model = Model()


class Rebellious:
    """Travels one way only."""

    def __reduce__(self) -> Any:
        return (int, ("no number",))


class PartlyBack:
    def __setstate__(self, state: Any) -> None:
        if "worker" not in state:
            raise OSError("will not be unpickled")

    def __getstate__(self) -> Any:
        return {"x": 1}


def test_an_argument_that_cannot_be_pickled_is_refused_at_once(pool: mh.Pool) -> None:
    settle(pool)  # what other tests have left to it
    done = pool.stats().done
    with pytest.raises(mh.NotPicklable) as caught:
        pool.submit(same, 1, Holder())
    assert "args[1].model._lock" in str(caught.value)
    assert "lock" in str(caught.value)
    assert isinstance(caught.value, pickle.PicklingError)
    assert isinstance(caught.value, mh.TaskError)
    assert pool.stats().done == done
    assert pool.submit(same, 1).result() == 1


def test_the_path_names_keywords_and_items(pool: mh.Pool) -> None:
    lock = threading.Lock()
    with pytest.raises(mh.NotPicklable, match=r"kwargs\['key'\]"):
        pool.submit(same, key=lock)
    with pytest.raises(mh.NotPicklable, match=r"args\[0\]\['a'\]\[1\]"):
        pool.submit(same, {"a": [1, lock]})
    with pytest.raises(mh.NotPicklable, match="lock"):
        pool.submit(lambda: lock)


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        lambda: (number for number in ()),
        lambda: open(os.devnull),  # noqa: SIM115
        sys._getframe,
        socket.socket,
    ],
    ids=["lock", "generator", "file", "frame", "socket"],
)
def test_things_that_cannot_travel(pool: mh.Pool, make: Callable[[], Any]) -> None:
    thing = make()
    try:
        with pytest.raises(mh.NotPicklable, match=r"args\[0\]"):
            pool.submit(same, thing)
    finally:
        if hasattr(thing, "close"):
            thing.close()
    # and back
    error = error_of(pool, make)
    assert type(error) is mh.NotPicklable
    assert "result" in str(error)
    assert pool.submit(same, 1).result() == 1


def test_an_argument_that_cannot_be_unpickled(pool: mh.Pool) -> None:
    error = error_of(pool, same, Rebellious())
    assert isinstance(error, ValueError | mh.TaskError)
    assert "no number" in str(error)
    assert pool.submit(same, 1).result() == 1


def test_a_result_that_cannot_be_unpickled(pool: mh.Pool) -> None:
    error = error_of(pool, Rebellious)
    assert type(error) is mh.NotPicklable
    assert re.search(r"the result of task \d+ \(Rebellious\) cannot be unpickled here", str(error))
    assert "ValueError" in str(error)
    assert pool.submit(same, 1).result() == 1


def test_a_result_that_cannot_be_unpickled_in_a_map(pool: mh.Pool) -> None:
    results = pool.map(lambda n: Rebellious() if n == 1 else n, range(3))
    assert next(results) == 0
    with pytest.raises(mh.NotPicklable):
        next(results)


def test_a_deep_argument(pool: mh.Pool) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((mh.NotPicklable, RecursionError)):
        pool.submit(len, deep)
    assert pool.submit(same, 1).result() == 1


# --------------------------------------------------------------------------------- our own types


def test_our_errors_can_be_pickled() -> None:
    deaths = ((4, "exited with status 3"), (5, "was killed by SIGKILL"))
    died = mh.WorkerDied("text", pid=5, cause="signal", code=9, deaths=deaths)
    copy = pickle.loads(pickle.dumps(died))
    assert (type(copy), str(copy)) == (mh.WorkerDied, "text")
    assert (copy.pid, copy.cause, copy.code, copy.deaths) == (5, "signal", 9, deaths)
    assert mh.WorkerDied("text").deaths == ()
    remote = mh.RemoteError("text", type_name="a.B", remote_message="m")
    copy = pickle.loads(pickle.dumps(remote))
    assert (str(copy), copy.type_name, copy.remote_message) == ("text", "a.B", "m")
    trace = pickle.loads(pickle.dumps(mh.RemoteTraceback("lines")))
    assert trace.text == "lines"
    for kind in (mh.TaskError, mh.NotPicklable, mh.TaskTimeout, mh.TaskMemoryExceeded):
        assert type(pickle.loads(pickle.dumps(kind("text")))) is kind


def test_the_tree_of_our_errors() -> None:
    for name in mh.__all__:
        kind = getattr(mh, name)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            assert issubclass(kind, mh.TaskError) or kind in (mh.RemoteTraceback, mh.TaskStopped)
    assert issubclass(mh.TaskTimeout, TimeoutError)
    assert issubclass(mh.TaskMemoryExceeded, MemoryError)


def test_our_errors_from_a_nested_pool_travel(pool: mh.Pool) -> None:
    def work() -> None:
        with mh.Pool(1) as inner_pool:
            inner_pool.submit(exit_with, 3).result()

    error = error_of(pool, work)
    assert type(error) is mh.WorkerDied
    assert (error.cause, error.code) == ("exit", 3)


def test_an_error_of_a_program_a_task_started(pool: mh.Pool) -> None:
    error = error_of(pool, subprocess.check_call, [sys.executable, "-c", "raise SystemExit(4)"])
    assert type(error) is subprocess.CalledProcessError
    assert error.returncode == 4


def test_the_kernels_log_says_nothing_of_a_worker_that_exits() -> None:
    with mh.Pool(1) as pool:
        exited = pool.submit(os._exit, 9).exception()
        killed = pool.submit(lambda: os.kill(os.getpid(), signal.SIGKILL)).exception()
    assert "exited with status 9" in str(exited)
    assert ["kernel's log" in str(error) for error in (exited, killed)] == [False, True]
