"""The pool."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from manyhands import _core, _encoding, _future
from manyhands._config import (
    check_engine,
    check_workers,
    configured,
    default_engine,
    default_show_args,
    default_workers,
)
from manyhands._describe import is_coroutine_function, name_of
from manyhands._future import Future, forward_logs, stop_teller
from manyhands._launch import forget_launch, launch
from manyhands._options import UNSET, TaskOptions, Unset, map_options, shortest
from manyhands._results import Results, Watch, caller
from manyhands._stats import PoolStats, WorkerStats

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from manyhands._retry import Retry

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

_FOREIGN_SPELLINGS = ("max_workers", "processes", "n_jobs", "num_workers", "nprocs")

# How long running tasks have to end when a block is left by an exception, in seconds.
_GRACE = 0.5

# How long the end of a pool is waited for before it is said what it waits for, in seconds.
_PATIENCE = 5.0
_MOST_SHOWN = 4

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool(_core.PoolBase, Executor):
    """Workers that run functions: a `concurrent.futures.Executor`.

    Workers are started when there is work for them. What they are is the engine's:

    - "process": processes, from one that has imported what the first function needs. Tasks get
      copies of their arguments. A worker that dies costs the task that it was running; everything
      else goes on and the worker is replaced. No `if __name__ == "__main__"` guard is needed, and
      lambdas, closures and functions of a script or notebook work.
    - "thread": threads of this process, for tasks that wait, or compute in code that lets go of the
      interpreter. Tasks get the same objects. A task that waits for another of the same pool needs
      a thread that is free for that one.
    - "inline": none. `submit` runs the function, and a map runs it when its result is taken, for
      debugging and for tests. Arguments and results are copied as for processes.

    Args:
        workers: the most workers; by default `mh.configure`'s, else `MANYHANDS_WORKERS`, else
            `cpu_count()` processes, or `min(32, cpu_count() + 4)` threads. Inline there is one, the
            calling thread.
        engine: "process", "thread" or "inline"; by default `mh.configure`'s, else
            `MANYHANDS_ENGINE`, else "process".
        copy: for engine="inline", whether arguments and results are copied. Processes always copy,
            threads never.
        initializer: a function that each worker runs before its first task. Where it raises, the
            pool is broken: all its tasks end with that exception.
        initargs: its arguments.
        preload: names of modules to import once, before worker processes are forked; what the first
            function names is imported anyway.
        name: for messages, and the names of threads.
        show_args: whether errors show shortened arguments; by default `mh.configure`'s, else yes,
            unless `MANYHANDS_SHOW_ARGS` is 0.
        task_timeout: the most seconds that a task may take from its start; `TaskTimeout` after
            that. By default without limit. On processes alone: nothing else can end what runs.
        grace: how many seconds a task that is to end has to clean up, from the `TaskStopped` that
            is raised in it until its worker is killed; 0.5 by default.
        retry: how often a task runs again after an exception, or a `Retry` that says more; by
            default it does not.

    Raises:
        ValueError: `workers` is below 1, or above 4000; there is no such engine.
        RuntimeError: no Python interpreter was found for the workers, or the system lacks what a
            pool needs; the message says what.

    >>> import manyhands as mh
    >>> with mh.Pool(2) as pool:
    ...     futures = [pool.submit(pow, 2, n) for n in range(4)]
    ...     [future.result() for future in futures]
    [1, 2, 4, 8]
    """

    name: str

    def __new__(
        cls,
        workers: int | None = None,
        *,
        engine: str | None = None,
        copy: bool = True,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        preload: Sequence[str] | None = None,
        name: str | None = None,
        show_args: bool | None = None,
        task_timeout: float | None = None,
        grace: float = 0.5,
        retry: int | Retry | None = None,
        **unknown: object,
    ) -> Self:
        _refuse_unknown(unknown)
        engine = default_engine() if engine is None else check_engine(engine)
        workers = default_workers(engine) if workers is None else check_workers(workers)
        if not copy and engine == "process":
            raise ValueError('copy=False is for engine="inline": processes share no objects')
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {type(initializer).__name__}")
        if isinstance(preload, str):
            raise TypeError("preload is a list of module names, not one string")
        if show_args is None:
            show_args = default_show_args()
        start = None if initializer is None else (initializer, tuple(initargs))
        prefix = ""
        if engine == "process":
            _refuse_while_loading()
            launch()
            if preload:
                _core.preload(list(preload))
        elif engine == "thread":
            from manyhands._threads import prefix as prefix_of

            prefix = prefix_of(name)
        else:
            workers = 1
        limits = TaskOptions().but(engine, task_timeout, grace, retry)
        pool = super().__new__(
            cls, engine, workers, start, show_args, copy, prefix, limits.native()
        )
        pool._limits = limits
        pool.name = name if name is not None else f"pool of {workers}"
        pool._engine = engine
        pool._workers = workers
        pool._is_default = False
        pool._maps = weakref.WeakSet()
        pool._kept = _Kept()
        _pools.add(pool)
        return pool

    _engine: str
    _workers: int
    _limits: TaskOptions
    _is_default: bool
    # What was mapped and not dropped: a clean end finishes what nobody has iterated.
    _maps: weakref.WeakSet[Results[Any]]
    _kept: _Kept

    if TYPE_CHECKING:
        # What may be written: without the spellings that `__new__` takes only to refuse them.
        def __init__(
            self,
            workers: int | None = None,
            *,
            engine: str | None = None,
            copy: bool = True,
            initializer: Callable[..., object] | None = None,
            initargs: Iterable[Any] = (),
            preload: Sequence[str] | None = None,
            name: str | None = None,
            show_args: bool | None = None,
            task_timeout: float | None = None,
            grace: float = 0.5,
            retry: int | Retry | None = None,
        ) -> None: ...

    # Stricter than `Executor.map`: items have to fit the function.
    @overload  # type: ignore[override]
    def map(
        self,
        fn: Callable[[A], R],
        iterable: Iterable[A],
        /,
        *,
        timeout: float | None = None,
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
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B], R],
        iterable: Iterable[A],
        iterable2: Iterable[B],
        /,
        *,
        timeout: float | None = None,
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
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        fn: Callable[[A, B, C], R],
        iterable: Iterable[A],
        iterable2: Iterable[B],
        iterable3: Iterable[C],
        /,
        *,
        timeout: float | None = None,
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
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        fn: Callable[..., R],
        iterable: Iterable[Any],
        iterable2: Iterable[Any],
        iterable3: Iterable[Any],
        iterable4: Iterable[Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
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
    ) -> Results[R]: ...
    def map(
        self,
        fn: Callable[..., R],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        **options: Any,
    ) -> Results[R]:
        """Runs `fn(*items)` for the items of the iterables; the results, as they come.

        The first items are taken and started in the call, and more as results are taken: endless
        input works in constant memory. The shortest of several iterables ends it.

        Args:
            fn: what to run. What a generator function yields comes one by one.
            iterables: its arguments.
            timeout: seconds from the call until the last result; `TimeoutError` after that.
            ordered: whether results come in the order of the input, or as they are ready.
            on_error: for an item that fails: "raise" raises its exception in its place and cancels
                the others; "return" gives a `Failure` in its place; "skip" leaves it out, and
                `.failures` has it; "group" raises all in an `ExceptionGroup` at the end.
            buffersize: the most items that were taken and whose results were not; 100,000 and 64 MB
                by default.
            total: how many items there are, where the iterables cannot tell, for progress.
            batch: the function gets a list of up to so many items, and returns a list of as many
                results, or yields any number of them; these come one by one.
            progress: True and False show it or not; by default it is shown on a terminal and in a
                notebook after two seconds. A callable, or a bar of tqdm or rich, is told instead.
            chunksize: accepted as a hint and not needed: portions follow the measured durations.
            task_timeout: the most seconds that an item may take from its start, as in `Pool`.
            grace: how many seconds it has to clean up then.
            retry: how often an item runs again that fails, as in `Pool`.

        >>> import manyhands as mh
        >>> with mh.Pool(2) as pool:
        ...     list(pool.map(pow, [1, 2, 3], [2, 2, 2]))
        [1, 4, 9]
        """
        if not iterables:
            raise TypeError("map() needs at least one iterable besides the function")
        return self._results(fn, iterables, False, timeout, "map", options)

    @overload
    def starmap(
        self,
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
        task_timeout: float | None = None,
        grace: float = 0.5,
        retry: int | Retry | None = None,
    ) -> Results[R]: ...
    @overload
    def starmap(
        self,
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
        task_timeout: float | None = None,
        grace: float = 0.5,
        retry: int | Retry | None = None,
    ) -> Results[R]: ...
    @overload
    def starmap(
        self,
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
        task_timeout: float | None = None,
        grace: float = 0.5,
        retry: int | Retry | None = None,
    ) -> Results[R]: ...
    @overload
    def starmap(
        self,
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
        task_timeout: float | None = None,
        grace: float = 0.5,
        retry: int | Retry | None = None,
    ) -> Results[R]: ...
    def starmap(
        self, fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Any
    ) -> Results[R]:
        """As `map`, over tuples of arguments: `fn(*item)` for each item.

        >>> import manyhands as mh
        >>> with mh.Pool(2) as pool:
        ...     list(pool.starmap(pow, [(1, 2), (2, 2)]))
        [1, 4]
        """
        return self._results(fn, (iterable,), True, None, "starmap", options)

    def _results(
        self,
        fn: Callable[..., R],
        iterables: tuple[Iterable[Any], ...],
        star: bool,
        timeout: float | None,
        method: str,
        options: dict[str, Any],
        limits: TaskOptions | None = None,
    ) -> Results[R]:
        chosen = map_options(method, fn, options)
        if limits is None:
            limits = self._limits
        limits = limits.but(self._engine, chosen.task_timeout, chosen.grace, chosen.retry)
        if is_coroutine_function(fn):
            from manyhands._local import refusal

            raise TypeError(refusal(name_of(fn)))
        total = chosen.total
        if total is None:
            total = shortest(iterables)
        if total is not None and chosen.batch is not None:
            total = -(-total // chosen.batch)
        name = name_of(fn)
        progress = configured.progress if chosen.progress is None else chosen.progress
        watch = Watch(name, total, self._workers, progress)
        try:
            source = self._map(
                fn,
                iterables,
                star,
                chosen.ordered,
                chosen.batch,
                timeout,
                chosen.buffersize,
                limits.native(),
            )
        except BaseException:
            watch.stop()
            raise
        results: Results[R] = Results._make(
            source,
            name=name,
            total=total,
            engine=self._engine,
            workers=self._workers,
            on_error=chosen.on_error,
            batched=chosen.batch is not None,
            site=caller() if self._is_default else None,
            keep=None if self._is_default else self._kept.take,
            watch=watch,
        )
        results._pool = self
        self._maps.add(results)
        return results

    def options(
        self,
        *,
        task_timeout: float | Unset | None = UNSET,
        grace: float | Unset = UNSET,
        retry: int | Retry | Unset | None = UNSET,
    ) -> PoolView:
        """This pool, with other options for tasks: `submit`, `map` and `starmap` as it has them.

        Args:
            task_timeout: the most seconds that a task may take from its start; None is no limit.
            grace: how many seconds a task that is to end has to clean up.
            retry: how often it runs again after a failure, or a `Retry` that says more.

        >>> import manyhands as mh
        >>> with mh.Pool(1) as pool:
        ...     strict = pool.options(task_timeout=30)
        ...     strict.submit(pow, 2, 3).result()
        8
        """
        return PoolView(lambda: self, self._limits.but(self._engine, task_timeout, grace, retry))

    def terminate(self) -> None:
        """Ends all tasks at once: what waits is cancelled, what runs is killed with its worker.

        Threads cannot be killed: what they run is waited for.

        >>> import time, manyhands as mh
        >>> pool = mh.Pool(1)
        >>> future = pool.submit(time.sleep, 600)
        >>> pool.terminate()
        >>> future.cancelled()
        True
        """
        self._close(True, True)
        self._wait(True, None)
        self._kept.drop()
        forward_logs()

    def stats(self) -> PoolStats:
        """What the pool and its workers do now.

        >>> import manyhands as mh
        >>> with mh.Pool(2) as pool:
        ...     pool.stats().pending
        0
        """
        forward_logs()
        found = self._stats()
        workers = tuple(
            WorkerStats(state=_state(worker), **worker) for worker in found.pop("workers")
        )
        return PoolStats(workers=workers, **found)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more tasks. What was submitted still runs; then the workers leave.

        Args:
            wait: whether to wait for that.
            cancel_futures: whether tasks that have not started are cancelled.
        """
        if not cancel_futures:
            self._finish_maps()
        self._close(cancel_futures, False)
        if wait:
            _wait_telling(self, logging.INFO)
            self._kept.drop()
            forward_logs()

    def _finish_maps(self) -> None:
        """Maps that nobody has iterated run to their end; others must not wait for this thread."""
        for results in [*self._maps, *self._kept]:
            results._leave()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.shutdown()
        else:
            _end(self)

    def __repr__(self) -> str:
        return f"<manyhands.Pool {self.name!r}: {self._workers} workers, {self._pending()} tasks>"

    def __reduce__(self) -> Any:
        raise TypeError("a pool cannot be pickled; make one where it is used")


def _refuse_while_loading() -> None:
    """Refuses a pool in the body of a module that a worker imports for its own parent.

    The workers of that pool would import the module again, and so on without end (cpython#155890
    tells of a silent deadlock instead).
    """
    if "manyhands._zygote" not in sys.modules:
        return  # neither a worker nor what workers are forked from
    frame = sys._getframe()
    while frame.f_back is not None:
        callee, frame = frame, frame.f_back
        where = frame.f_globals.get("__name__"), frame.f_code.co_name
        if where == ("manyhands._worker", "main"):
            # What it calls is a task, or else loads one.
            loads = callee.f_globals.get("__name__") == "manyhands._resolve"
            if not loads and not callee.f_code.co_filename.startswith("<frozen importlib"):
                return
        elif where != ("manyhands._zygote", "_preload"):
            continue
        raise RuntimeError(
            "a worker imports a module whose body makes a pool, which would go on for ever: make "
            "the pool in a function, not while the module is imported"
        )


def _refuse_unknown(unknown: dict[str, object]) -> None:
    for name, value in unknown.items():
        if name in _FOREIGN_SPELLINGS:
            raise TypeError(f"Pool() has no {name}=; write workers={value!r}")
        raise TypeError(f"Pool() got an unexpected keyword argument {name!r}")


class PoolView:
    """A pool with options of its own for tasks; made by `options()`. It needs no end.

    >>> import manyhands as mh
    >>> mh.options(task_timeout=60).map(abs, [-1, -2]).list()
    [1, 2]
    """

    __slots__ = ("_limits", "_pool")

    def __init__(self, pool: Callable[[], Pool], limits: TaskOptions) -> None:
        self._pool = pool
        self._limits = limits

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """As `Pool.submit`."""
        return self._pool()._submit(self._limits.native(), fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        **options: Any,
    ) -> Results[R]:
        """As `Pool.map`."""
        if not iterables:
            raise TypeError("map() needs at least one iterable besides the function")
        pool = self._pool()
        return pool._results(fn, iterables, False, timeout, "map", options, self._limits)

    def starmap(
        self, fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Any
    ) -> Results[R]:
        """As `Pool.starmap`."""
        pool = self._pool()
        return pool._results(fn, (iterable,), True, None, "starmap", options, self._limits)

    def options(
        self,
        *,
        task_timeout: float | Unset | None = UNSET,
        grace: float | Unset = UNSET,
        retry: int | Retry | Unset | None = UNSET,
    ) -> PoolView:
        """The same, but for what is given."""
        engine = self._pool()._engine
        return PoolView(self._pool, self._limits.but(engine, task_timeout, grace, retry))

    def __repr__(self) -> str:
        return f"<manyhands.PoolView of {self._pool()!r}: {self._limits}>"


class _Kept:
    """Maps that were dropped before anybody took a result: what ends their pool finishes them.

    As long as it keeps one it keeps the pool, too, which the map needs.
    """

    __slots__ = ("_maps",)

    def __init__(self) -> None:
        self._maps: list[Results[Any]] | None = []

    def take(self, results: Results[Any]) -> None:
        """Called as the last reference goes; none are taken once the pool has ended."""
        if self._maps is not None:
            self._maps.append(results)

    def drop(self) -> None:
        """The pool has ended."""
        self._maps = None

    def __iter__(self) -> Iterator[Results[Any]]:
        return iter(list(self._maps or ()))


def _state(worker: dict[str, Any]) -> str:
    if worker["pid"] == 0:
        return "starting"
    return "idle" if worker["task_age"] is None else "busy"


def _wait_telling(pool: Pool, level: int) -> None:
    """Waits for the end of a closed pool; says what for if that takes long."""
    if pool._wait(True, _PATIENCE):
        return
    stats = pool.stats()
    running = [
        f"{worker.task or 'a task'} (task {worker.task_index}, for {worker.task_age:.0f} s, "
        + (f"in worker {worker.pid})" if pool._engine == "process" else "in a thread)")
        for worker in stats.workers
        if worker.task_age is not None and worker.task_index is not None
    ]
    shown = ", ".join(running[:_MOST_SHOWN])
    if len(running) > _MOST_SHOWN:
        shown += f" and {len(running) - _MOST_SHOWN} more"
    logging.getLogger("manyhands").log(
        level,
        "the pool %r is closed and waits for %s: %s%s; pool.terminate() would end them, and "
        "task_timeout= limits each",
        pool.name,
        "1 task" if stats.pending == 1 else f"{stats.pending:,} tasks",
        shown or "none of them runs",
        "" if stats.pending <= len(running) else f"; {stats.pending - len(running):,} wait",
    )
    pool._wait(True, None)


def _end(pool: Pool) -> None:
    """Cancels what waits, gives what runs a moment, and kills the rest; threads are waited for."""
    _end_but_for_threads(pool)
    pool._wait(True, None)
    pool._kept.drop()
    forward_logs()


def _end_but_for_threads(pool: Pool) -> None:
    pool._close(True, False)
    if pool._wait(False, _GRACE):
        return
    pool._close(True, True)
    if pool._engine == "process":
        pool._wait(True, None)


def _end_all() -> None:
    """Ends all pools; threads are waited for."""
    pools = _close_all()
    for pool in pools:
        _end(pool)
    _end_threads(True)


def _end_all_but_for_threads() -> bool:
    """Ends all pools, but for threads that run something; whether there is none."""
    for pool in _close_all():
        _end_but_for_threads(pool)
    forward_logs()
    threads = sys.modules.get("manyhands._threads")
    return threads is None or not threads.some_run()


def _close_all() -> list[Pool]:
    """From here on no pool starts anything."""
    pools = list(_pools)
    for pool in pools:
        for results in list(pool._maps):
            results._site = None  # who is told of the exception knows that not all ran
        pool._close(True, False)
    return pools


def _end_threads(cancel: bool) -> None:
    """Ends the threads of pools, also of those that are gone."""
    threads = sys.modules.get("manyhands._threads")
    if threads is not None:
        threads.end_all(cancel)


_interrupted_at_end = False


def _ended_by_exception() -> bool:
    # `last_value` is set by the interpreter when an exception ends the program; in an interactive
    # session it may be one of long ago.
    ended = getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")
    return ended or _interrupted_at_end


def _notice_interrupt_at_end() -> None:
    """From here on Python only reports a Ctrl-C, while it waits for threads, and then goes on."""
    report = sys.unraisablehook

    def notice(args: Any, /) -> None:
        global _interrupted_at_end
        if args.exc_type is KeyboardInterrupt:
            _interrupted_at_end = True
        report(args)

    sys.unraisablehook = notice


def _at_exit() -> None:
    pools = list(_pools)
    if _ended_by_exception():
        _end_all()
    else:
        for pool in pools:
            if pool._is_default:
                for results in list(pool._maps):
                    results._warn_if_lost()
            else:
                pool._finish_maps()
            pool._close(False, False)
        for pool in pools:
            # The program seems to have ended, and does not: its user is told why.
            _wait_telling(pool, logging.WARNING)
        _end_threads(False)
    stop_teller()
    _core.stop_supervisor()
    # Last: they may be taking results of what has just ended.
    if not _core.park_bystanders():
        logging.getLogger("manyhands").info(
            "a daemon thread still runs a task of manyhands while the program ends"
        )


def _before_threads_end() -> None:
    """Ends the pools of an interrupted program before it waits for its other threads.

    Those may be waiting for tasks that take hours. What they hear then, that their tasks were
    cancelled, is no news to who pressed Ctrl-C: it is kept from the terminal.
    """
    if not _pools:
        return
    if not isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
        _notice_interrupt_at_end()
        return
    show = threading.excepthook

    def show_others(args: threading.ExceptHookArgs, /) -> None:
        if args.exc_type is not CancelledError:
            show(args)

    threading.excepthook = show_others
    _end_all()


def _after_fork_in_child() -> None:
    _core.after_fork_in_child()
    _pools.clear()
    _future.forget_parent()
    _encoding.forget_parent()
    forget_launch()
    threads = sys.modules.get("manyhands._threads")
    if threads is not None:
        threads.forget_parent()


atexit.register(_at_exit)
try:
    # Exit handlers run after the interpreter has waited for all threads; the standard library's own
    # executors register here, too, for the same reason.
    threading._register_atexit(_before_threads_end)  # type: ignore[attr-defined]
except RuntimeError:
    pass  # first imported while the program ends
os.register_at_fork(after_in_child=_after_fork_in_child)
