"""The flags of `capabilities.py` are true: each is looked at, on each engine."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from capabilities import ENGINES, Capabilities
from tasks import append

import manyhands as mh
from gate import closed_gate, pass_through
from programs import run_file


def _program_survives(engine: Capabilities, folder: Path) -> bool:
    """What ends its process has to run in a program of its own."""
    source = """
        import os, sys
        import manyhands as mh
        with mh.Pool(2, engine=sys.argv[1]) as pool:
            error = pool.submit(os._exit, 5).exception()
            print(type(error).__name__, pool.submit(abs, -1).result())
        """
    ended = run_file(folder, source, engine.name)
    if ended.code == 5:
        assert ended.out == ""
        return False
    assert (ended.code, ended.out) == (0, "WorkerDied 1\n"), str(ended)
    return True


def _has_own_pids(engine: Capabilities, folder: Path) -> bool:
    with mh.Pool(2, engine=engine.name) as pool:
        return pool.submit(os.getpid).result() != os.getpid()


def _copies(engine: Capabilities, folder: Path) -> bool:
    row = [0]
    with mh.Pool(2, engine=engine.name) as pool:
        result = pool.submit(append, row).result()
    assert result == [0, 1]
    assert (row == [0]) == (result is not row)
    return result is not row


def _copies_functions(engine: Capabilities, folder: Path) -> bool:
    seen: list[int] = []
    with mh.Pool(2, engine=engine.name) as pool:
        pool.map(seen.append, [1, 2]).run()
    assert sorted(seen) in ([], [1, 2])
    return not seen


def _shares_on_request(engine: Capabilities, folder: Path) -> bool:
    row = [0]
    try:
        pool = mh.Pool(2, engine=engine.name, copy=False)
    except ValueError:
        return False
    with pool:
        return pool.submit(append, row).result() is row


def _runs_in_background(engine: Capabilities, folder: Path) -> bool:
    # It goes through because nobody waits at a gate that is open.
    with closed_gate(folder) as gate, mh.Pool(2, engine=engine.name) as pool:
        if pool.submit(abs, -1).done() and pool.stats().workers == ():
            return False  # it was done in the call, and by nobody
        future = pool.submit(pass_through, gate.path, 5)
        gate.wait_arrivals()
        assert not future.done()
        gate.open()
        return future.result() == 5


def _is_parallel(engine: Capabilities, folder: Path) -> bool:
    with closed_gate(folder) as gate, mh.Pool(2, engine=engine.name) as pool:
        if not engine.background:
            return False  # the calling thread does one thing at a time
        futures = [pool.submit(pass_through, gate.path) for _ in range(2)]
        gate.wait_arrivals(2)
        gate.open()
        assert [future.result() for future in futures] == [None, None]
        return True


def _kills(engine: Capabilities, folder: Path) -> bool:
    if not engine.background:
        return False  # nothing runs while the block goes on
    # Who is ended has to be so behind a gate that nobody opens.
    with closed_gate(folder) as gate:
        with pytest.raises(ZeroDivisionError), mh.Pool(2, engine=engine.name) as pool:
            future = pool.submit(pass_through, gate.path, 5)
            gate.wait_arrivals()
            raise ZeroDivisionError
        assert future.done()
        return future.cancelled()


def _forces(engine: Capabilities, folder: Path) -> bool:
    if not engine.background:
        return False  # nobody could go on
    with mh.Pool(1, engine=engine.name, grace=0) as pool:
        # In C code from its first instruction on.
        future = pool.submit(time.sleep, 600 if engine.own_pids else 5)
        while not future.running():
            time.sleep(0.001)
        assert future.cancel()
        assert pool.submit(abs, -1).result() == 1
        return pool.stats().left_behind == 0


def _interrupt() -> None:
    raise KeyboardInterrupt


def _interrupts_caller(engine: Capabilities, folder: Path) -> bool:
    with mh.Pool(2, engine=engine.name) as pool:
        try:
            error = pool.submit(_interrupt).exception()
        except KeyboardInterrupt:
            return True
        assert isinstance(error, mh.RemoteError)
        return False


def _has_own_exceptions(engine: Capabilities, folder: Path) -> bool:
    with mh.Pool(2, engine=engine.name) as pool:
        error = pool.submit(int, "x").exception()
    assert isinstance(error, ValueError)
    assert (error.__cause__ is None) != isinstance(error.__cause__, mh.RemoteTraceback)
    return error.__cause__ is None


LOOKS: dict[str, Callable[[Capabilities, Path], bool]] = {
    "isolation": _program_survives,
    "own_pids": _has_own_pids,
    "copies": _copies,
    "copies_functions": _copies_functions,
    "shares_on_request": _shares_on_request,
    "background": _runs_in_background,
    "parallel": _is_parallel,
    "kill": _kills,
    "force": _forces,
    "interrupts_caller": _interrupts_caller,
    "own_exceptions": _has_own_exceptions,
}


@pytest.mark.parametrize("flag", LOOKS)
def test_the_flags_are_true(engine: Capabilities, flag: str, tmp_path: Path) -> None:
    assert LOOKS[flag](engine, tmp_path) == getattr(engine, flag)


def test_every_flag_is_looked_at() -> None:
    flags = {field.name for field in dataclasses.fields(Capabilities)} - {"name"}
    assert flags == set(LOOKS)


def test_every_engine_is_here() -> None:
    names = [engine.name for engine in ENGINES]
    with pytest.raises(ValueError, match="engine is one of") as caught:
        mh.Pool(2, engine="none")
    listed = str(caught.value).partition("one of ")[2].partition(";")[0]
    assert [name.strip('"') for name in listed.split(", ")] == names
