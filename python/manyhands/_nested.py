"""The pool that runs a task, as the task sees it.

A task may use its pool: what it submits goes to the pool's parent, which gives it to any of its
workers. A pool that is pickled for a task arrives as a view of that kind.
"""

from __future__ import annotations

import os
import threading

from manyhands import _core
from manyhands._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manyhands._options import TaskOptions
    from manyhands._pool import Pool, PoolView

__all__ = ["Origin", "arrived", "current", "forget_parent"]

# The process that made a pool, and the pool's number and name there.
Origin = tuple[int, int, str]

_lock = threading.Lock()
_current: tuple[int, Pool] | None = None


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


def current() -> Pool | None:
    """Stands for the pool whose worker this process is; None in other processes."""
    global _current
    found = _core.pool_of_this_worker()
    if found is None:
        return None
    generation = _core.process_generation()
    known = _current
    if known is None or known[0] != generation:
        from manyhands._pool import Pool

        with _lock:
            _current = known = (generation, Pool._of_this_worker(found[1]))
    return known[1]


def arrived(pid: int, number: int, name: str, options: TaskOptions | None) -> Pool | PoolView:
    """What a pickled pool, or with options a view of it, is in the process that unpickles it."""
    from manyhands import _pool

    if pid == os.getpid():
        found = [pool for pool in _pool._pools if pool._number() == number]
        for pool in found:
            return pool if options is None else _pool.PoolView(pool, options)

    def use() -> Pool:
        found = _core.pool_of_this_worker()
        pool = current() if found is not None and found[0] == number else None
        if pool is None:
            raise RuntimeError(
                f"a task can use the pool that runs it, and {name!r} is another; make a pool in "
                "the task, or submit this from where the pool was made"
            )
        return pool

    from manyhands._options import TaskOptions

    return _pool.PoolView(use, options or TaskOptions(), (pid, number, name))
