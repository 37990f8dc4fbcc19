"""The pool that the module's own functions share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, overload

from manyhands import _core
from manyhands._future import Future
from manyhands._pool import Pool

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
def map(fn: Callable[[A], R], iterable: Iterable[A], /) -> Iterator[R]: ...
@overload
def map(
    fn: Callable[[A, B], R], iterable: Iterable[A], iterable2: Iterable[B], /
) -> Iterator[R]: ...
@overload
def map(
    fn: Callable[[A, B, C], R],
    iterable: Iterable[A],
    iterable2: Iterable[B],
    iterable3: Iterable[C],
    /,
) -> Iterator[R]: ...
@overload
def map(
    fn: Callable[..., R],
    iterable: Iterable[Any],
    iterable2: Iterable[Any],
    iterable3: Iterable[Any],
    iterable4: Iterable[Any],
    /,
    *iterables: Iterable[Any],
) -> Iterator[R]: ...
def map(fn: Callable[..., R], /, *iterables: Iterable[Any]) -> Iterator[R]:
    """`Pool.map` on the shared default pool.

    >>> import manyhands as mh
    >>> list(mh.map(len, ["a", "bb"]))
    [1, 2]
    """
    return _default().map(fn, *iterables)


@overload
def starmap(fn: Callable[[A], R], iterable: Iterable[tuple[A]], /) -> Iterator[R]: ...
@overload
def starmap(fn: Callable[[A, B], R], iterable: Iterable[tuple[A, B]], /) -> Iterator[R]: ...
@overload
def starmap(fn: Callable[[A, B, C], R], iterable: Iterable[tuple[A, B, C]], /) -> Iterator[R]: ...
@overload
def starmap(fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /) -> Iterator[R]: ...
def starmap(fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /) -> Iterator[R]:
    """`Pool.starmap` on the shared default pool.

    >>> import manyhands as mh
    >>> list(mh.starmap(max, [(1, 2), (4, 3)]))
    [2, 4]
    """
    return _default().starmap(fn, iterable)
