# ruff: noqa: PT017 - these programs run without pytest.
"""What bad input gets: an error at once or in that task's future, never a hang (P5, P6)."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import signal
import sys
import threading
from concurrent import futures as futures_module
from pathlib import Path

import pytest

import manyhands as mh
from programs import program_test

# ---- Arguments -----------------------------------------------------------------------------------


@program_test
def test_unpicklable_argument_names_its_path() -> None:
    class Model:
        def __init__(self):
            self._lock = threading.Lock()

    class Holder:
        def __init__(self):
            self.model = Model()

    with mh.Pool(1) as pool:
        try:
            pool.submit(print, 0, Holder())
        except mh.NotPicklable as error:
            assert "args[1].model._lock" in str(error), error
            assert "lock" in str(error).rpartition("_lock")[2], error
            assert isinstance(error, pickle.PicklingError)
        else:
            raise AssertionError("it was taken")
        try:
            pool.submit(print, end=threading.Lock())
        except mh.NotPicklable as error:
            assert "kwargs" in str(error), error
            assert "end" in str(error), error
        else:
            raise AssertionError("it was taken")
        # The pool is none the worse for it.
        assert pool.submit(abs, -1).result(20) == 1
        assert pool.stats().pending == 0


@program_test
def test_unpicklable_item_of_map() -> None:
    with mh.Pool(2) as pool:
        results = pool.map(str, [1, 2, threading.Lock(), 4])
        assert next(results) == "1"
        assert next(results) == "2"
        try:
            next(results)
        except mh.NotPicklable:
            pass
        else:
            raise AssertionError("it was taken")
        assert list(pool.map(abs, [-1, -2])) == [1, 2]


@pytest.mark.parametrize("method", ["__reduce__", "__getstate__"])
@pytest.mark.parametrize("error", ["ValueError", "KeyError", "SystemExit", "RecursionError"])
@program_test
def test_argument_whose_pickling_raises(method: str, error: str) -> None:
    class Bad:
        def fail(self):
            raise vars(builtins)[error]("no")

    setattr(Bad, method, Bad.fail)
    with mh.Pool(1) as pool:
        try:
            pool.submit(print, Bad())
        except mh.NotPicklable as problem:
            assert "args[0]" in str(problem), problem
        except BaseException as problem:
            assert type(problem).__name__ == error, problem
        else:
            raise AssertionError("it was taken")
        assert pool.submit(abs, -1).result(20) == 1


@pytest.mark.parametrize(
    "error", ["ValueError('no')", "SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"]
)
@program_test
def test_argument_whose_unpickling_raises(error: str) -> None:
    class Bad:
        def __getstate__(self):
            return {"a": 1}

        def __setstate__(self, state):
            raise eval(error)

    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result(20)
        future = pool.submit(id, Bad())
        problem = future.exception(20)
        assert isinstance(problem, ValueError | mh.TaskError), repr(problem)
        # The worker does not mind.
        assert pool.submit(os.getpid).result(20) == pid
        assert pool.stats().deaths == 0


@program_test
def test_argument_that_is_nested_too_deeply() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with mh.Pool(1) as pool:
        try:
            pool.submit(len, deep)
        except (mh.NotPicklable, RecursionError) as error:
            assert str(error)
        else:
            raise AssertionError("it was taken")
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_argument_that_kills_the_worker_as_it_arrives() -> None:
    class Bomb:
        def __reduce__(self):
            return os._exit, (7,)

    with mh.Pool(2) as pool:
        others = [pool.submit(abs, -n) for n in range(20)]
        future = pool.submit(id, Bomb())
        others += [pool.submit(abs, -n) for n in range(20)]
        # What shows the arguments in the message must not set it off here.
        error = future.exception(20)
        assert isinstance(error, mh.WorkerDied), repr(error)
        assert (error.cause, error.code) == ("exit", 7), (error.cause, error.code)
        assert [other.result(20) for other in others] == [*range(20), *range(20)]


# ---- Results -------------------------------------------------------------------------------------


@program_test
def test_unpicklable_result() -> None:
    def make():
        return {"locks": [threading.Lock()]}

    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result(20)
        error = pool.submit(make).exception(20)
        assert isinstance(error, mh.NotPicklable), repr(error)
        assert "lock" in str(error), error
        assert pool.submit(os.getpid).result(20) == pid


@pytest.mark.parametrize("method", ["__reduce__", "__getstate__"])
@pytest.mark.parametrize(
    "error", ["ValueError('no')", "SystemExit(3)", "KeyboardInterrupt()", "BaseException('no')"]
)
@program_test
def test_result_whose_pickling_raises(method: str, error: str) -> None:
    class Bad:
        def fail(self):
            raise eval(error)

    setattr(Bad, method, Bad.fail)
    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result(20)
        problem = pool.submit(Bad).exception(20)
        assert isinstance(problem, mh.TaskError | ValueError | BaseException), repr(problem)
        assert not isinstance(problem, SystemExit | KeyboardInterrupt), repr(problem)
        assert pool.submit(os.getpid).result(20) == pid


@pytest.mark.parametrize(
    "error", ["ValueError('no')", "SystemExit(3)", "KeyError(1)", "RecursionError()"]
)
@program_test
def test_result_whose_unpickling_raises(error: str) -> None:
    here = os.getpid()

    class Bad:
        def __getstate__(self):
            return {"a": 1}

        def __setstate__(self, state):
            if os.getpid() == here:
                raise eval(error)

    with mh.Pool(1) as pool:
        problem = pool.submit(Bad).exception(20)
        assert isinstance(problem, mh.NotPicklable), repr(problem)
        assert "result" in str(problem), problem
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_result_that_ends_its_worker_while_it_is_pickled() -> None:
    class Bomb:
        def __reduce__(self):
            os._exit(9)

    with mh.Pool(1) as pool:
        error = pool.submit(Bomb).exception(20)
        assert isinstance(error, mh.WorkerDied), repr(error)
        assert (error.cause, error.code) == ("exit", 9)
        assert pool.submit(abs, -1).result(20) == 1


# ---- Exceptions ----------------------------------------------------------------------------------


@program_test
def test_exception_with_required_arguments() -> None:
    class Positional(Exception):
        def __init__(self, code, reason):
            super().__init__(f"{code}: {reason}")

    class Keyword(Exception):
        def __init__(self, *, code):
            super().__init__(f"code {code}")

    def fail(positional):
        raise Positional(5, "broken") if positional else Keyword(code=6)

    with mh.Pool(1) as pool:
        for positional, name, text in [
            (True, "Positional", "5: broken"),
            (False, "Keyword", "code 6"),
        ]:
            error = pool.submit(fail, positional).exception(20)
            # Either it was rebuilt as it was, or another stands for it that says all.
            if isinstance(error, mh.RemoteError):
                assert name in error.type_name, error.type_name
                assert text in error.remote_message, error.remote_message
            else:
                assert type(error).__name__ == name
            assert text in str(error), error
            assert "raise Positional" in str(error.__cause__)


@pytest.mark.parametrize("where", ["dump", "load"])
@program_test
def test_exception_whose_own_pickling_fails(where: str) -> None:
    here = os.getpid()

    def explode(*args):
        raise ZeroDivisionError("in the exception")

    class Bad(Exception):
        def __reduce__(self):
            if where == "dump":
                explode()
            return super().__reduce__()

        def __setstate__(self, state):
            if os.getpid() == here:
                explode()

    def fail():
        error = Bad("the message")
        error.detail = 1
        raise error

    with mh.Pool(1) as pool:
        error = pool.submit(fail).exception(20)
        assert isinstance(error, mh.RemoteError), repr(error)
        assert "the message" in str(error), error
        assert "Bad" in error.type_name
        assert "raise error" in str(error.__cause__)
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_exception_with_an_unpicklable_attribute() -> None:
    def fail():
        error = ValueError("the message")
        error.lock = threading.Lock()
        raise error

    with mh.Pool(1) as pool:
        error = pool.submit(fail).exception(20)
        assert isinstance(error, mh.RemoteError), repr(error)
        assert "the message" in str(error)
        assert error.type_name == "ValueError"


@pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"])
@program_test
def test_exceptions_that_would_end_this_program(raised: str) -> None:
    def fail():
        raise eval(raised)

    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result(20)
        error = pool.submit(fail).exception(20)
        assert isinstance(error, mh.RemoteError), repr(error)
        assert error.type_name == raised.partition("(")[0]
        assert pool.submit(os.getpid).result(20) == pid
        try:
            list(pool.map(lambda _: fail(), range(3)))
        except mh.RemoteError:
            pass
        else:
            raise AssertionError("nothing was raised")


@program_test
def test_other_base_exceptions_travel() -> None:
    class Stop(BaseException):
        pass

    def fail():
        raise Stop("here")

    with mh.Pool(1) as pool:
        error = pool.submit(fail).exception(20)
        assert type(error) is Stop
        assert str(error) == "here"
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_exit_of_the_process_in_a_task() -> None:
    with mh.Pool(2) as pool:
        for code in (0, 3):
            error = pool.submit(os._exit, code).exception(20)
            assert isinstance(error, mh.WorkerDied), repr(error)
            assert (error.cause, error.code) == ("exit", code)
            assert error.pid > 0
            assert f"status {code}" in str(error)
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_sys_exit_in_a_task_ends_only_the_task() -> None:
    with mh.Pool(1) as pool:
        pid = pool.submit(os.getpid).result(20)
        error = pool.submit(sys.exit, "gone").exception(20)
        assert isinstance(error, mh.RemoteError), repr(error)
        assert "gone" in str(error)
        assert pool.submit(os.getpid).result(20) == pid


@program_test
def test_endless_recursion() -> None:
    def deeper(n):
        return deeper(n + 1)

    with mh.Pool(1) as pool:
        error = pool.submit(deeper, 0).exception(20)
        assert isinstance(error, RecursionError), repr(error)
        assert pool.submit(abs, -1).result(20) == 1


@pytest.mark.parametrize("how", ["ValueError", "SystemExit", "KeyboardInterrupt", "exit"])
@program_test
def test_exception_whose_str_fails(how: str) -> None:
    here = os.getpid()

    class Bad(Exception):
        def __str__(self):
            if os.getpid() == here:
                return "fine"
            if how == "exit":
                os._exit(4)
            raise vars(builtins)[how]

        __repr__ = __str__

    def fail():
        raise Bad

    with mh.Pool(1) as pool:
        error = pool.submit(fail).exception(20)
        if how == "exit":
            assert isinstance(error, mh.WorkerDied), type(error)
        else:
            assert type(error) is Bad, repr(error)
            assert pool.stats().deaths == 0
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_exception_groups_causes_and_notes_arrive() -> None:
    def fail():
        try:
            raise KeyError("inner")
        except KeyError as inner:
            error = ExceptionGroup("several", [ValueError(1), TypeError(2)])
            error.add_note("a note of the task")
            raise error from inner

    with mh.Pool(1) as pool:
        error = pool.submit(fail).exception(20)
        assert isinstance(error, ExceptionGroup)
        assert [type(part) for part in error.exceptions] == [ValueError, TypeError]
        assert "a note of the task" in error.__notes__
        assert "inner" in str(error.__cause__)


@program_test
def test_huge_exception() -> None:
    def fail():
        raise ValueError("x" * 20_000_000)

    with mh.Pool(1) as pool:
        error = pool.submit(fail).exception(25)
        assert isinstance(error, ValueError)
        assert len(str(error)) == 20_000_000


@program_test
def test_arguments_whose_repr_fails_are_no_trouble() -> None:
    class Bad:
        def __repr__(self):
            raise SystemExit

    def fail(argument):
        raise ValueError("the task's own")

    def die(argument):
        os._exit(1)

    with mh.Pool(1) as pool:
        error = pool.submit(fail, Bad()).exception(20)
        assert type(error) is ValueError, repr(error)
        error = pool.submit(die, Bad()).exception(20)
        assert type(error) is mh.WorkerDied, repr(error)
        assert pool.submit(abs, -1).result(20) == 1


# ---- Initializers --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@program_test
def test_failing_initializer(workers: int) -> None:
    births = Path("births")
    births.touch()

    def start(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        raise LookupError("the initializer's own")

    pool = mh.Pool(workers, initializer=start, initargs=(str(births.absolute()),))
    futures = []
    for _ in range(30):
        try:
            futures.append(pool.submit(abs, -1))
        except LookupError:
            break  # known already
    assert futures
    for future in futures:
        error = future.exception(20)
        assert type(error) is LookupError, repr(error)
        assert str(error) == "the initializer's own"
        assert "raise LookupError" in str(error.__cause__)
    try:
        pool.submit(abs, -1)
    except LookupError:
        pass
    else:
        raise AssertionError("a broken pool took a task")
    pool.shutdown()
    # No respawn loop: each place of the pool tried once at most.
    assert 1 <= len(births.read_text().split()) <= workers


@pytest.mark.parametrize("how", ["_exit", "kill", "exit"])
@program_test
def test_initializer_that_ends_its_worker(how: str) -> None:
    births = Path("births")
    births.touch()

    def start(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        if how == "_exit":
            os._exit(5)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(6)

    pool = mh.Pool(2, initializer=start, initargs=(str(births.absolute()),))
    future = pool.submit(abs, -1)
    error = future.exception(25)
    if how != "exit":
        assert isinstance(error, mh.WorkerDied), repr(error)
        assert "initializer" in str(error)
    else:
        assert isinstance(error, mh.RemoteError), repr(error)
    pool.shutdown()
    assert 1 <= len(births.read_text().split()) <= 8


@program_test
def test_initializer_that_cannot_be_pickled() -> None:
    lock = threading.Lock()
    try:
        mh.Pool(1, initializer=print, initargs=(lock,))
    except mh.NotPicklable as error:
        assert "lock" in str(error)
    else:
        raise AssertionError("it was taken")


@program_test
def test_initializer_runs_again_in_a_replacement() -> None:
    def start(value):
        global state
        state = value

    def read():
        return state, os.getpid()

    with mh.Pool(1, initializer=start, initargs=(42,)) as pool:
        first = pool.submit(read).result(20)
        assert first[0] == 42
        assert isinstance(pool.submit(os._exit, 1).exception(20), mh.WorkerDied)
        second = pool.submit(read).result(20)
        assert second[0] == 42
        assert second[1] != first[1]


# ---- The pool itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, -1, -(10**30)])
def test_too_few_workers(workers: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        mh.Pool(workers)


@pytest.mark.parametrize("workers", [1.5, "2", True, [1]])
def test_workers_of_the_wrong_type(workers: object) -> None:
    with pytest.raises(TypeError, match="whole number"):
        mh.Pool(workers)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [10**30, 10**9, 2**31])
@program_test
def test_absurd_numbers_of_workers(workers: int) -> None:
    try:
        pool = mh.Pool(workers)
    except (ValueError, OverflowError, RuntimeError, MemoryError) as error:
        assert str(error)
    else:
        with pool:
            assert pool.submit(abs, -1).result(20) == 1


@pytest.mark.parametrize(
    "spelling",
    ["max_workers", "processes", "n_jobs", "num_workers", "nprocs", "worker", "max_tasks"],
)
def test_wrong_keywords_are_refused_with_a_hint(spelling: str) -> None:
    with pytest.raises(TypeError, match=spelling) as caught:
        mh.Pool(**{spelling: 2})  # type: ignore[arg-type]
    if spelling in ("max_workers", "processes", "n_jobs"):
        assert "workers=2" in str(caught.value)


@program_test
def test_submit_after_shutdown() -> None:
    pool = mh.Pool(1)
    future = pool.submit(abs, -1)
    pool.shutdown()
    assert future.result(0) == 1
    for use in (
        lambda: pool.submit(abs, 1),
        lambda: list(pool.map(abs, [1])),
        lambda: list(pool.starmap(abs, [(1,)])),
    ):
        try:
            use()
        except RuntimeError as error:
            assert "shut down" in str(error), error
        else:
            raise AssertionError("it was taken")
    pool.shutdown()  # harmless


@program_test
def test_things_that_are_not_functions() -> None:
    with mh.Pool(1) as pool:
        for wrong in (None, 5, "abs"):
            try:
                error = pool.submit(wrong).exception(20)
            except TypeError as problem:
                error = problem
            assert isinstance(error, TypeError), repr(error)
            assert "callable" in str(error), error
        try:
            pool.map(abs, 5)
        except TypeError:
            pass
        else:
            raise AssertionError("5 is not iterable")
        try:
            pool.map(abs)
        except TypeError:
            pass
        else:
            raise AssertionError("map needs an iterable")
        error = pool.submit(abs).exception(20)
        assert isinstance(error, TypeError)
        assert pool.submit(abs, -1).result(20) == 1


@program_test
def test_a_pool_is_not_for_a_forked_child() -> None:
    pool = mh.Pool(2)
    assert pool.submit(abs, -1).result(20) == 1
    waiting = pool.submit(abs, -2)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            problems = []
            for use in (lambda: pool.submit(abs, -1), lambda: pool.map(abs, [1]), pool.stats):
                try:
                    use()
                except RuntimeError as error:
                    problems.append(str(error))
            assert len(problems) == 3, problems
            assert all("forked" in problem for problem in problems), problems
            repr(pool)
            pool.shutdown()
            with mh.Pool(2) as own:
                assert own.submit(abs, -3).result(20) == 3
                assert list(own.map(abs, [-4, -5])) == [4, 5]
            assert list(mh.map(abs, [-6])) == [6]
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
                os._exit(code)
        sys.exit(0)  # by way of the exit handlers
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    # The parent's pool has noticed nothing.
    assert waiting.result(20) == 2
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
    assert pool.stats().deaths == 0
    pool.shutdown()


@program_test
def test_futures_of_the_parent_in_a_forked_child() -> None:
    def square(n):
        return n * n

    with mh.Pool(2) as pool:
        ended = pool.submit(abs, -7)
        assert ended.result(20) == 7
        for _ in range(5):
            futures = [pool.submit(square, n) for n in range(2000)]
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    assert ended.result(5) == 7
                    for future in futures:
                        # Refused, or known already; but it returns, and takes nothing.
                        for use in (future.done, future.running, future.cancelled, future.cancel):
                            try:
                                use()
                            except RuntimeError:
                                pass
                    try:
                        futures[-1].result(1)
                    except (RuntimeError, TimeoutError, futures_module.CancelledError):
                        pass
                    code = 0
                finally:
                    os._exit(code)
            assert [future.result(20) for future in futures] == [n * n for n in range(2000)]
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        assert pool.stats().deaths == 0


@program_test
def test_a_map_iterator_dropped_in_a_forked_child() -> None:
    def square(n):
        return n * n

    with mh.Pool(2) as pool:
        for _ in range(5):
            results = pool.map(square, range(2000))
            assert next(results) == 0
            child = os.fork()
            if child == 0:
                del results
                os._exit(0)
            assert list(results) == [n * n for n in range(1, 2000)]
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        assert pool.stats().deaths == 0


@program_test
def test_another_pool_and_a_future_cannot_be_sent() -> None:
    with mh.Pool(1) as pool, mh.Pool(1, engine="thread") as threads:
        try:
            pool.submit(repr, threads)
        except (TypeError, mh.NotPicklable) as error:
            assert "pool" in str(error)
        else:
            raise AssertionError("it was taken")
        assert "PoolView" in pool.submit(repr, pool).result(20)  # see `_nested`
        future = pool.submit(abs, -1)
        try:
            pool.submit(repr, future)
        except (TypeError, mh.NotPicklable):
            pass
        else:
            raise AssertionError("it was taken")
        assert future.result(20) == 1


@program_test
def test_containers_that_contain_themselves() -> None:
    def check(own):
        return own[0] is own, own

    knot: list = []
    knot.append(knot)
    table: dict = collections.OrderedDict()
    table[0] = table
    with mh.Pool(1) as pool:
        for own in (knot, table):
            same, back = pool.submit(check, own).result(20)
            assert same
            assert back[0] is back
