"""The threads of thread pools. What they do is in Rust; see `crew.rs`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

from manyhands import _core, _local

__all__ = ["end_all", "forget_parent", "join", "prefix", "some_run", "start"]

_pools = itertools.count(1)

# The threads that run. A pool that nobody refers to any more still does what it was given.
_running: dict[threading.Thread, _core.CrewMember] = {}


def prefix(name: str | None) -> str:
    """How the names of a pool's threads begin."""
    return f"manyhands-{name if name is not None else next(_pools)}"


def start(member: _core.CrewMember, name: str) -> threading.Thread:
    """Starts a thread.

    It is a daemon to the interpreter, which does not wait for it, but for our exit handler: that
    one lets pools do what they were given, and joins.
    """
    thread = threading.Thread(target=_run, args=(member,), name=name, daemon=True)
    _running[thread] = member
    try:
        thread.start()
    except BaseException:
        _running.pop(thread, None)
        raise
    return thread


def _run(member: _core.CrewMember) -> None:
    try:
        if _initialize(member):
            member.work()
    finally:
        member.leave()
        _running.pop(threading.current_thread(), None)


def _initialize(member: _core.CrewMember) -> bool:
    initializer = member.initializer
    if initializer is None:
        return True
    function, args = initializer
    try:
        function(*args)
    except BaseException as error:  # a SystemExit, too, would leave the pool's tasks waiting
        member.break_down(_local.initializer_failed(error))
        return False
    return True


def join(threads: Iterable[threading.Thread]) -> None:
    """Waits for threads that have nothing left to do."""
    for thread in threads:
        thread.join()


def end_all(cancel: bool) -> None:
    """Closes the pools whose threads run, and waits for these.

    Args:
        cancel: whether what has not started is cancelled.
    """
    for member in list(_running.values()):
        member.close(cancel)
    for thread in list(_running):
        if thread is not threading.current_thread():
            thread.join()


def some_run() -> bool:
    """Whether any thread has not ended yet."""
    return bool(_running)


def forget_parent() -> None:
    """In a child of fork: the threads are the parent's."""
    _running.clear()
