"""The pools that the module's own functions share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from manyhands import _core, _nested
from manyhands._config import configured, default_engine, default_show_args
from manyhands._future import Future
from manyhands._options import UNSET, TaskOptions, Unset
from manyhands._pool import Pool, PoolView
from manyhands._results import Results
from manyhands._typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from manyhands._retry import Retry

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

_Key = tuple[str, int | None, bool, bool, tuple[str, ...] | None, int | None, bool | None]

# How many pools are kept that nobody asks for any more.
_MOST_POOLS = 8

_lock = threading.Lock()
_pools: dict[_Key, Pool] = {}
_generation = -1


def forget_parent() -> None:
    """In a child of fork: another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


def _shared(engine: str | None = None, workers: int | None = None, copy: bool = True) -> Pool:
    """The pool that calls with these wishes share; in a task, without any, the one that runs it."""
    global _generation
    if engine is None:
        engine = default_engine()
    if workers is None:
        workers = configured.workers
        if workers is None and engine == "process" and copy:
            running = _nested.current()
            if running is not None:
                return running
    if engine == "inline":
        workers = None
    settings = default_show_args(), configured.context, configured.inner_threads, configured.logging
    key = (engine, workers, copy, *settings)
    generation = _core.process_generation()
    pool = _pools.get(key)
    if pool is not None and _generation == generation:
        return pool
    with _lock:
        if _generation != generation:
            _pools.clear()  # the parent's
            _generation = generation
        pool = _pools.get(key)
        if pool is None:
            name = "default" if workers is None else f"default of {workers}"
            pool = Pool(workers, engine=engine, copy=copy, name=name)
            pool._is_default = True
            _end_idle()
            _pools[key] = pool
            # Who asks for as many by number is given the same.
            _pools.setdefault((engine, pool._workers, *key[2:]), pool)
        return pool


def _end_idle() -> None:
    """Ends the oldest pools that have nothing to do, if there are many."""
    for pool in list(dict.fromkeys(_pools.values()))[: -_MOST_POOLS + 1]:
        if not pool._maps and pool._pending() == 0:
            for key in [key for key, value in _pools.items() if value is pool]:
                del _pools[key]
            pool.shutdown(wait=False)


def submit(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Runs `fn(*args, **kwargs)` in a worker of the shared default pool; gives its future.

    Every argument goes to the function. Engine and workers are those of `mh.configure`, or of the
    environment.

    >>> import manyhands as mh
    >>> mh.submit(divmod, 7, 2).result()
    (3, 1)
    """
    return _shared().submit(fn, *args, **kwargs)


@overload
def map(
    fn: Callable[[A], R],
    iterable: Iterable[A],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
@overload
def map(
    fn: Callable[[A, B], R],
    iterable: Iterable[A],
    iterable2: Iterable[B],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
@overload
def map(
    fn: Callable[[A, B, C], R],
    iterable: Iterable[A],
    iterable2: Iterable[B],
    iterable3: Iterable[C],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
@overload
def map(
    fn: Callable[..., R],
    iterable: Iterable[Any],
    iterable2: Iterable[Any],
    iterable3: Iterable[Any],
    iterable4: Iterable[Any],
    /,
    *iterables: Iterable[Any],
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
def map(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    **options: Any,
) -> Results[R]:
    """`Pool.map` on a pool that all calls with the same `engine`, `workers` and `copy` share.

    These mean what they mean to `Pool`. All options are those of `Pool.map`, without `timeout`.

    >>> import manyhands as mh
    >>> list(mh.map(len, ["a", "bb"]))
    [1, 2]
    >>> list(mh.map(len, ["a", "bb"], engine="thread", workers=4))
    [1, 2]
    """
    if not iterables:
        raise TypeError("map() needs at least one iterable besides the function")
    pool = _shared(engine, workers, copy)
    return pool._results(fn, iterables, False, None, "map", options)


@overload
def starmap(
    fn: Callable[[A], R],
    iterable: Iterable[tuple[A]],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
@overload
def starmap(
    fn: Callable[[A, B], R],
    iterable: Iterable[tuple[A, B]],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
@overload
def starmap(
    fn: Callable[[A, B, C], R],
    iterable: Iterable[tuple[A, B, C]],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
@overload
def starmap(
    fn: Callable[..., R],
    iterable: Iterable[Iterable[Any]],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
    task_timeout: float | None = None,
    grace: float = 0.5,
    retry: int | Retry | None = None,
    seed: int | None = None,
    task_memory: int | str | None = None,
    priority: int = 0,
    capture: bool = False,
) -> Results[R]: ...
def starmap(
    fn: Callable[..., R],
    iterable: Iterable[Iterable[Any]],
    /,
    *,
    engine: str | None = None,
    workers: int | None = None,
    copy: bool = True,
    **options: Any,
) -> Results[R]:
    """`Pool.starmap` on a shared pool, as `map`.

    >>> import manyhands as mh
    >>> list(mh.starmap(max, [(1, 2), (4, 3)]))
    [2, 4]
    """
    return _shared(engine, workers, copy)._results(fn, (iterable,), True, None, "starmap", options)


def options(
    *,
    task_timeout: float | Unset | None = UNSET,
    grace: float | Unset = UNSET,
    retry: int | Retry | Unset | None = UNSET,
    seed: int | Unset | None = UNSET,
    task_memory: int | str | Unset | None = UNSET,
    priority: int | Unset = UNSET,
    capture: bool | Unset = UNSET,
) -> PoolView:
    """The shared default pool, with other options for tasks; see `Pool.options`.

    >>> import manyhands as mh
    >>> mh.options(task_timeout=60).submit(abs, -1).result()
    1
    """
    chosen = TaskOptions().but(task_timeout, grace, retry, seed, task_memory, priority, capture)
    return PoolView(_shared, chosen)
