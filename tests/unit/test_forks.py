"""Children that a program forks while its other threads are in the middle of something."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from programs import output_of

BEGIN = """
import functools, operator, os, signal, sys, threading, time, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of what is tried here
import manyhands as mh

def child(work):
    "The status of a child in which this is called."
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]

def refused(work):
    "Says so of what has to be refused in a child."
    try:
        work()
    except RuntimeError as error:
        print("a child that was forked" in str(error), flush=True)
"""


def said_by(folder: Path, program: str) -> list[str]:
    """The lines that a program prints after what all here begin with."""
    return output_of(folder, BEGIN + textwrap.dedent(program)).splitlines()


def test_a_thread_is_at_what_it_does_for_the_first_time(tmp_path: Path) -> None:
    # A thread has events to handle, for long; then come those of a kind that it had none of. The
    # main thread waits for its turn, gets it as soon as that other one gives it away, and forks.
    program = """
        import ctypes

        hold = ctypes.PyDLL(None).usleep
        os.register_at_fork(before=functools.partial(hold, 100))  # time for the other thread
        sys.setswitchinterval(1e-6)

        def attempt(seconds):
            may_run, may_hear, has_heard = threading.Event(), threading.Event(), threading.Event()
            def listen(event):
                has_heard.set()
                may_hear.wait()
            pool = mh.Pool(1, engine="thread", on_event=listen)
            first = pool.submit(may_run.wait)
            has_heard.wait()
            for _ in range(900):
                pool.submit(abs, 1)
            may_run.set()
            first.result()
            may_hear.set()
            # Without a bytecode between, or it would give its turn away.
            steps = (functools.partial(time.sleep, seconds), os.fork)
            child = tuple(map(operator.call, steps))[1]
            if child == 0:
                signal.alarm(30)
                with mh.Pool(1, engine="thread", on_event=lambda event: None) as own:
                    own.submit(abs, 1).result()
                os._exit(0)
            os._exit(os.waitpid(child, 0)[1] != 0)

        for number in range(150):
            child = os.fork()  # which does all for the first time
            if child == 0:
                attempt(number * 2e-6)
            _, status = os.waitpid(child, 0)
            if status:
                print(number, status)
                break
    """
    assert said_by(tmp_path, program) == []


def test_locks_are_free_in_a_child(tmp_path: Path) -> None:
    program = """
        import importlib, pkgutil

        LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition)

        def locks():
            "Those of modules, and of objects that modules have."
            found = {}
            for name, module in list(sys.modules.items()):
                if not name.startswith("manyhands"):
                    continue
                for attribute, value in list(vars(module).items()):
                    inner = {} if isinstance(value, type) else getattr(value, "__dict__", {})
                    if getattr(type(value), "__module__", "").startswith("manyhands"):
                        for key, part in inner.items():
                            if isinstance(part, LOCKS):
                                found[f"{name}.{attribute}.{key}"] = part
                    if isinstance(value, LOCKS):
                        found[f"{name}.{attribute}"] = value
            return found

        for module in pkgutil.iter_modules(mh.__path__):
            if module.name != "__main__":
                importlib.import_module(f"manyhands.{module.name}")
        mh.submit(abs, 1).result()
        held, may_end = threading.Event(), threading.Event()

        def hold():
            for lock in locks().values():
                lock.acquire()
            held.set()
            may_end.wait()

        print(len(locks()) > 8)
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            kept = [name for name, lock in locks().items() if not lock.acquire(blocking=False)]
            print(sorted(kept), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        os._exit(0)
    """
    assert said_by(tmp_path, program) == ["True", "[]"]


@pytest.mark.parametrize("engine", ["process", "thread", "inline"])
def test_a_thread_makes_the_default_pool(tmp_path: Path, engine: str) -> None:
    program = f"""
        mh.configure(engine={engine!r})
        from manyhands import _default

        making, may_make = threading.Event(), threading.Event()
        make = _default.Pool

        def make_slowly(*args, **kwargs):
            if threading.current_thread() is not threading.main_thread():
                making.set()
                may_make.wait()
            return make(*args, **kwargs)

        _default.Pool = make_slowly
        thread = threading.Thread(target=lambda: print(mh.submit(pow, 2, 3).result()))
        thread.start()
        making.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            print(list(mh.map(abs, [-1, -2])), flush=True)
            mh.submit(abs, 1).result()
            sys.exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
        may_make.set()
        thread.join()
    """
    assert said_by(tmp_path, program) == ["[1, 2]", "0", "8"]


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_map_for_whose_result_another_thread_waits(tmp_path: Path, engine: str) -> None:
    program = f"""
        pool = mh.Pool(1, engine={engine!r})
        results = pool.map(time.sleep, [0.0, 3.0])
        next(results)
        thread = threading.Thread(target=lambda: print(list(results)))
        thread.start()
        time.sleep(0.5)

        def try_all():
            for use in (next, list, lambda results: results.run(), lambda results: [*results]):
                refused(lambda: use(results))
            results.close()
            pool.shutdown()

        print(child(try_all), flush=True)
        thread.join()
        pool.shutdown()
    """
    assert said_by(tmp_path, program) == ["True"] * 4 + ["0", "[None]"]


def test_a_map_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text(
        BEGIN
        + textwrap.dedent("""
        def task(path):
            results = mh.map(abs, range(1000))
            found = [next(results)]
            def use():
                sys.stdout = open(path, "w")
                refused(lambda: list(results))
                results.close()
            status = child(use)
            return found + list(results) == list(range(1000)), status, open(path).read()
        """)
    )
    program = """
        sys.path.insert(0, os.getcwd())
        import forking
        with mh.Pool(2) as pool:
            print(pool.submit(forking.task, "said").result())
    """
    (line,) = output_of(tmp_path, BEGIN + textwrap.dedent(program), cwd=tmp_path).splitlines()
    assert line == r"(True, 0, 'True\n')"


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_what_another_thread_has_for_itself_goes_with_it(tmp_path: Path, engine: str) -> None:
    # The interpreter lets go of it in the child before it tells anybody of the fork.
    program = f"""
        local, has_it, may_go_on = threading.local(), threading.Event(), threading.Event()
        pool = mh.Pool(2, engine={engine!r}, on_event=lambda event: None)

        def use():
            local.pool = mh.Pool(1, engine={engine!r})
            local.future = local.pool.submit(time.sleep, 0.5)
            local.results = pool.map(time.sleep, [0.002] * 1000)
            print(next(local.results))
            has_it.set()
            may_go_on.wait()
            print(local.future.result(), len(list(local.results)))
            local.pool.shutdown()

        thread = threading.Thread(target=use)
        thread.start()
        has_it.wait()
        print(*set(child(lambda: None) for _ in range(20)), flush=True)
        may_go_on.set()
        thread.join()
        pool.shutdown()
    """
    assert said_by(tmp_path, program) == ["None", "0", "None 999"]


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_map_that_nobody_iterates_is_its_process_s_alone(tmp_path: Path, engine: str) -> None:
    program = f"""
        def note(number):
            with open("notes", "a") as notes:
                notes.write(f"{{number}}\\n")
            time.sleep(0.001)

        def leave():
            pool.__exit__(None, None, None)

        pool = mh.Pool(2, engine={engine!r})
        results = pool.map(note, iter(range(400)))
        print(*set(child(leave) for _ in range(10)), flush=True)
        print(len(results.list()))
        pool.shutdown()
        print(len(open("notes").readlines()))
    """
    output = output_of(tmp_path, BEGIN + textwrap.dedent(program), cwd=tmp_path)
    assert output.split() == ["0", "400", "400"]


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_futures_that_are_observed(tmp_path: Path, engine: str) -> None:
    program = f"""
        import asyncio, concurrent.futures

        pool = mh.Pool(2, engine={engine!r})
        pending, known = pool.submit(time.sleep, 2), pool.submit(abs, -3)
        for future in (pending, known):
            future.add_done_callback(lambda future: None)
        assert known.result() == 3  # else the child knows of none

        async def wait_for(future):
            return await asyncio.wrap_future(future)

        def use():
            refused(lambda: asyncio.run(wait_for(pending)))
            refused(lambda: concurrent.futures.wait([pending], timeout=20))
            refused(lambda: pending.add_done_callback(print))
            print(asyncio.run(wait_for(known)), concurrent.futures.wait([known]).done == {{known}})
            known.add_done_callback(lambda future: print(future.result(), flush=True))

        held = known._watch.condition
        with held:  # as another thread may
            print(child(use), flush=True)
        print(pending.result())
        pool.shutdown()
    """
    assert said_by(tmp_path, program) == ["True", "True", "True", "3 True", "3", "0", "None"]


def test_an_initializer_of_threads_that_forks(tmp_path: Path) -> None:
    program = """
        pids = []

        def fork():
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
            else:
                pids.append(pid)

        def note():
            with open("notes", "a") as notes:
                notes.write("x")

        pool = mh.Pool(1, engine="thread", initializer=fork)
        future = pool.submit(note)
        future.result()
        print(os.waitpid(pids[0], 0)[1])
        pool.shutdown()
        print(open("notes").read())
    """
    output = output_of(tmp_path, BEGIN + textwrap.dedent(program), cwd=tmp_path)
    assert output.split() == ["0", "x"]


@pytest.mark.parametrize("engine", ["thread", "inline"])
def test_what_a_child_writes_amid_a_task_that_is_captured(tmp_path: Path, engine: str) -> None:
    program = f"""
        from manyhands import _capture

        def task():
            print("before")
            def write():
                print("in a child", flush=True)
            with _capture._current.kept._lock:  # as another thread may
                status = child(write)
            print("after", status)

        with mh.Pool(1, engine={engine!r}, capture=True) as pool:
            future = pool.submit(task)
            future.result()
            print(future.output.split())
    """
    assert said_by(tmp_path, program) == ["in a child", "['before', 'after', '0']"]


def test_descriptors_of_a_child_stay_open(tmp_path: Path) -> None:
    program = """
        import gc
        pool = mh.Pool(3)
        pool.submit(abs, 1).result()

        def use():
            global pool
            files = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
            del pool
            gc.collect()
            for file in files:
                os.fstat(file)

        print(child(use), flush=True)
        print(pool.submit(abs, -1).result())
        pool.shutdown()
    """
    assert said_by(tmp_path, program) == ["0", "1"]


def test_a_large_result_that_was_not_looked_at(tmp_path: Path) -> None:
    program = """
        import numpy

        pool = mh.Pool(1)
        future = pool.submit(numpy.arange, 1_000_000)
        while not future.done():
            time.sleep(0.01)

        def use():
            mine = mh.Pool(1)
            other = mine.submit(numpy.zeros, 1_000_000).result()
            refused(future.result)

        print(child(use), flush=True)
        print(int(future.result()[-1]))
        pool.shutdown()
    """
    assert said_by(tmp_path, program) == ["True", "0", "999999"]


def test_locks_of_objects_that_a_child_uses(tmp_path: Path) -> None:
    # A thread holds each lock that an object of manyhands has, while the program forks.
    program = """
        import gc, itertools

        LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition)
        pool = mh.Pool(1, engine="thread", capture=True, on_event=lambda event: None)
        future = pool.submit(print, "here")
        future.add_done_callback(lambda future: None)
        future.result()  # else the child knows of none
        results = pool.map(print, range(3))
        results.list()

        def hold():
            for found in gc.get_objects():
                if type(found).__module__.startswith("manyhands"):
                    kinds = type(found).__mro__
                    slots = itertools.chain(*(getattr(kind, "__slots__", ()) for kind in kinds))
                    for name in {*slots, *getattr(found, "__dict__", ())}:
                        lock = getattr(found, name, None) if isinstance(name, str) else None
                        if isinstance(lock, LOCKS):
                            lock.acquire()
                            held.append(f"{type(found).__name__}.{name}")
            is_held.set()
            may_end.wait()

        def use():
            print(future.output, future.result(), future.done(), repr(future)[:10])
            print(len(results.outputs))
            future.add_done_callback(lambda future: None)
            pool.shutdown()
            with mh.Pool(1, engine="thread", capture=True, on_event=lambda event: None) as own:
                print(own.submit(abs, -1).result(), flush=True)

        held, is_held, may_end = [], threading.Event(), threading.Event()
        threading.Thread(target=hold, daemon=True).start()
        is_held.wait()
        print(child(use), flush=True)
        os._exit(0)
    """
    shown = said_by(tmp_path, program)
    assert shown == ["here", " None True <manyhands", "3", "1", "0"]
