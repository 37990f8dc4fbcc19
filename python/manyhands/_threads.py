"""The threads of thread pools. What they do is in Rust; see `crew.rs`."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable

from manyhands import _core, _local
from manyhands._resolve import close_per_worker
from manyhands._typing import NoReturn

__all__ = [
    "end_all",
    "forget_parent",
    "is_member",
    "join",
    "left_behind",
    "prefix",
    "some_run",
    "start",
    "start_clock",
]

# For how long a thread is joined that may be left behind, in seconds.
_LOOK_AGAIN = 0.05

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
        # Before its pool hears that it has left: who waited for that finds all closed.
        try:
            close_per_worker()
        finally:
            member.leave()
            _running.pop(threading.current_thread(), None)


def _initialize(member: _core.CrewMember) -> bool:
    initializer = member.begin(threading.get_ident())
    if initializer is None:
        return True
    function, args = initializer
    try:
        function(*args)
    except BaseException as error:  # a SystemExit, too, would leave the pool's tasks waiting
        member.break_down(_local.initializer_failed(error))
        return False
    return True


def left_behind(line: str) -> None:
    """A pool goes on without a thread whose task does not end, as the line says.

    Nobody waits for it. It ends when its task does, or with the program.
    """
    logging.getLogger("manyhands").warning("%s", line)


def start_clock() -> None:
    """Starts the thread that sees when the time of a task is up."""
    clock = threading.Thread(target=_core.run_clock, name="manyhands-clock", daemon=True)
    try:
        clock.start()
    except RuntimeError as error:
        # CPython 3.12 starts none while the program ends, which leaves everybody behind anyhow.
        if "interpreter shutdown" not in str(error):
            raise


class Parked(SystemExit):
    """Raised in a thread that runs on while the program ends, and hears of nothing.

    The interpreter makes an exception where it is raised, or at the latest where it is caught. So
    whoever would go on sleeps for good instead.
    """

    def __new__(cls, *_args: object) -> NoReturn:
        _core.park_here()


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
    for thread, member in list(_running.items()):
        if thread is not threading.current_thread():
            while thread.is_alive() and not member.is_left:
                thread.join(_LOOK_AGAIN)  # it may be left behind meanwhile


def is_member() -> bool:
    """Whether this thread is a worker of a pool."""
    return threading.current_thread() in _running


def some_run() -> bool:
    """Whether any thread has not ended yet, but for those that were left behind."""
    return not all(member.is_left for member in list(_running.values()))


def forget_parent() -> None:
    """In a child of fork: the threads are the parent's."""
    _running.clear()
