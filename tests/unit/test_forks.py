"""Children that a program forks while its other threads are in the middle of something."""

from __future__ import annotations

from pathlib import Path

import pytest

from programs import output_of

WITHOUT_WARNINGS = """
import functools, operator, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of what is tried here
import manyhands as mh
"""


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
    assert output_of(tmp_path, WITHOUT_WARNINGS + program.replace("\n        ", "\n")) == ""


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
    shown = output_of(tmp_path, WITHOUT_WARNINGS + program.replace("\n        ", "\n"))
    assert shown.splitlines() == ["True", "[]"]


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
    shown = output_of(tmp_path, WITHOUT_WARNINGS + program.replace("\n        ", "\n"))
    assert shown.splitlines() == ["[1, 2]", "0", "8"]
