"""The pool that the module's own functions share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, overload

from manyhands import _core
from manyhands._future import Future
from manyhands._pool import Pool
from manyhands._results import Results

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_pool: Pool | None = None
_generation = -1


def _default() -> Pool:
    global _pool, _generation
    generation = _core.process_generation()
    pool = _pool
    if pool is not None and _generation == generation:
        return pool
    with _lock:
        if _pool is None or _generation != generation:
            _pool = Pool(name="default")
            _pool._is_default = True
            _generation = generation
        return _pool


def submit(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Runs `fn(*args, **kwargs)` in a worker of the shared default pool; gives its future.

    >>> import manyhands as mh
    >>> mh.submit(divmod, 7, 2).result()
    (3, 1)
    """
    return _default().submit(fn, *args, **kwargs)


@overload
def map(
    fn: Callable[[A], R],
    iterable: Iterable[A],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
@overload
def map(
    fn: Callable[[A, B], R],
    iterable: Iterable[A],
    iterable2: Iterable[B],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
@overload
def map(
    fn: Callable[[A, B, C], R],
    iterable: Iterable[A],
    iterable2: Iterable[B],
    iterable3: Iterable[C],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
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
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
def map(fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Any) -> Results[R]:
    """`Pool.map` on the shared default pool.

    >>> import manyhands as mh
    >>> list(mh.map(len, ["a", "bb"]))
    [1, 2]
    """
    pool = _default()
    if not iterables:
        raise TypeError("map() needs at least one iterable besides the function")
    return pool._results(fn, iterables, False, None, "map", options)


@overload
def starmap(
    fn: Callable[[A], R],
    iterable: Iterable[tuple[A]],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
@overload
def starmap(
    fn: Callable[[A, B], R],
    iterable: Iterable[tuple[A, B]],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
@overload
def starmap(
    fn: Callable[[A, B, C], R],
    iterable: Iterable[tuple[A, B, C]],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
@overload
def starmap(
    fn: Callable[..., R],
    iterable: Iterable[Iterable[Any]],
    /,
    *,
    ordered: bool = True,
    on_error: str = "raise",
    buffersize: int | None = None,
    total: int | None = None,
    batch: int | None = None,
    progress: Any = None,
    chunksize: int | None = None,
) -> Results[R]: ...
def starmap(
    fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Any
) -> Results[R]:
    """`Pool.starmap` on the shared default pool.

    >>> import manyhands as mh
    >>> list(mh.starmap(max, [(1, 2), (4, 3)]))
    [2, 4]
    """
    return _default()._results(fn, (iterable,), True, None, "starmap", options)
