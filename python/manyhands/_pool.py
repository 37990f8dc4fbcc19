"""The pool."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor

from manyhands import _core, _follower, _forks, _nested, _resolve
from manyhands._config import (
    check_engine,
    check_inner_threads,
    check_workers,
    configured,
    default_engine,
    default_show_args,
    default_workers,
)
from manyhands._describe import is_coroutine_function, name_of
from manyhands._dump import PoolDump, make_dump
from manyhands._events import Event, Listener, check_listener
from manyhands._future import forward_logs, has_told, stop_teller
from manyhands._options import (
    UNSET,
    TaskOptions,
    Unset,
    check_priority,
    check_seconds,
    map_options,
    shortest,
)
from manyhands._results import Results, Watch, caller
from manyhands._stats import PoolStats, StoreStats, WorkerStats
from manyhands._store import set_budget, set_budget_from_environment
from manyhands._typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from types import TracebackType

    from manyhands._capture import Captures as _Captures
    from manyhands._capture import Kept as _KeptOutput
    from manyhands._capture import KeptOfMap as _KeptOfMap
    from manyhands._logs import Reader as _Reader
    from manyhands._recycling import Recycling as _Recycling
    from manyhands._retry import Retry
    from manyhands._typing import Self

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

_FOREIGN_SPELLINGS = ("max_workers", "processes", "n_jobs", "num_workers", "nprocs")

# How long the end of a pool is waited for before it is said what it waits for, in seconds.
_PATIENCE = 5.0
_MOST_SHOWN = 4

# For how many seconds nothing may happen in a pool that has tasks, though nothing keeps it; None is
# as long as usual, 30. Tests are less patient.
_stalled_after: float | None = None

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()

# `recycle_after_tasks`, `recycle_rss`, `recycle_age` and `idle_timeout` where none is given.
_NEVER_RECYCLED = (None, None, None, None)


class Pool(_core.PoolBase, Executor):
    """Workers that run functions: a `concurrent.futures.Executor`.

    Workers are started when there is work for them. What they are is the engine's:

    - "process": processes, from one that has imported what the first function needs. Tasks get
      copies of their arguments. A worker that dies costs the task that it was running; everything
      else goes on and the worker is replaced. No `if __name__ == "__main__"` guard is needed, and
      lambdas, closures and functions of a script or notebook work.
    - "thread": threads of this process, for tasks that wait, or compute in code that lets go of the
      interpreter. Tasks get the same objects.
    - "inline": none. `submit` runs the function, and a map runs it when its result is taken, for
      debugging and for tests. Arguments and results are copied as for processes.

    Tasks may use the pool that runs them. One that waits for others lends its place, so that they
    never wait for each other for want of workers.

    Args:
        workers: the most workers; by default `mh.configure`'s, else `MANYHANDS_WORKERS`, else
            `cpu_count()` processes, which in a task is the share of its worker, or
            `min(32, cpu_count() + 4)` threads. Inline there is one, the calling thread.
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
            that. By default without limit.
        grace: how many seconds a task that is to end has to clean up, from the `TaskStopped` that
            is raised in it until its worker is killed; 0.5 by default. A thread cannot be killed:
            the pool goes on without it, and with another one.
        retry: how often a task runs again after an exception, or a `Retry` that says more; by
            default it does not.
        seed: from 0 to 2**128 - 1: each task draws its random numbers from a stream of its own,
            made from the seed and from which call on the pool it is, and which item. So results do
            not depend on workers, order and retries. By default each worker has its own entropy.
        task_memory: the most private memory that a task may add to its worker, as a number of bytes
            or a text as "500MB", at least 1 MB; past it the task is ended with its worker, and
            raises `TaskMemoryExceeded`. What is in the object store does not count. By default
            without limit; on processes alone.
        priority: which of the tasks that wait starts first: the higher, from minus a billion to a
            billion; 0 by default. Tasks that are equal start in the order in which they came. What
            runs is not interrupted. Inline all run at once, so it has no effect there.
        capture: whether what a task writes to standard output and errors is kept on its future, see
            `Future.output`, in place of being shown; by default it is shown. On processes that is
            also what C code and programs that the task starts write; on threads, and inline, what
            the task's own thread writes by `sys.stdout` and `sys.stderr`.
        exit_grace: the most seconds that the end of the pool may take: of its block, of `shutdown`,
            of the program. Then what waits is cancelled and what runs is ended, in its `grace`, and
            a line of the log says what was lost. By default all that was submitted runs.
        stuck_after: after how many seconds the log (`"manyhands"`, a warning) tells once, with its
            stack, of a task that also runs for more than ten times as long as any before it that
            ran the same function; None for never. On processes alone.
        on_event: a function that is called with an `Event` for all that happens to tasks and
            workers, one after another, in a thread of its own. It holds no task up. All has been
            told when the block is left or `shutdown` returns. An exception of it is logged, and it
            is called on.
        store: how much memory the object store of this process may take, which all pools share, as
            a number of bytes or a text as "8GB"; by default `MANYHANDS_STORE`, else half of what
            the machine, or the control group, had left at the first pool. Past it large data
            travels in private memory, and what is `put` goes to the temporary directory.
        context: names of context variables as "module:name": on processes a task finds the values
            that these have where it is submitted; by default `mh.configure`'s, else none. Where the
            program has imported OpenTelemetry, the current context of that travels, too, but with
            an empty list. On threads, and inline, tasks find all variables of the caller.
        memory_limit: how much memory the tasks of this pool may take together, as a number of
            bytes, a text as "8GB", or as "80%" of what the machine, or the control group, has. A
            task starts only if what those that run reserve, and what is really left, leave room for
            its `task_memory`, or without that for an equal share, `memory_limit / workers`; until
            then it waits, and one may always run. By default without limit; on processes alone.
        recycle_after_tasks: after how many tasks, or items of maps, a worker process gives way to
            a fresh one, which is started before that; None for never.
        recycle_rss: with how much resident memory of its own, between two tasks, it gives way, as a
            number of bytes or a text as "2GB". What it shares with others (files, the store) does
            not count. A worker that is above it before its first task breaks the pool.
        recycle_age: after how many seconds of its life it gives way.
        idle_timeout: after how many seconds with nothing to do a worker, process or thread, leaves;
            workers come back with work. None for never.
        logging: whether what tasks log is handled in this process, by its handlers, and before
            the result of the task is seen. Workers take the levels of this process at their birth,
            if it has configured `logging` by then; else, and with False, theirs is not configured.
            By default `mh.configure`'s, else yes.

    Raises:
        ValueError: `workers` is below 1, or above 4000; there is no such engine; `stuck_after` is
            not above 0; `seed` is out of its bounds; `task_memory` is above `memory_limit`;
            `recycle_rss` is below 1 MB; the engine has no processes to recycle; `context` names
            something that does not exist; `priority` is out of its bounds.
        TypeError: `seed` or `priority` is no int; `capture` is no bool; `context` names something
            that is no context variable.
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
        exit_grace: float | None = None,
        stuck_after: float | None = 60.0,
        on_event: Callable[[Event], object] | None = None,
        store: int | str | None = None,
        context: Sequence[str] | None = None,
        memory_limit: int | str | None = None,
        recycle_after_tasks: int | None = None,
        recycle_rss: int | str | None = None,
        recycle_age: float | None = None,
        idle_timeout: float | None = None,
        inner_threads: int | None = None,
        logging: bool | None = None,
        **unknown: object,
    ) -> Self:
        _refuse_unknown(unknown)
        engine = default_engine() if engine is None else check_engine(engine)
        workers = default_workers(engine) if workers is None else check_workers(workers)
        if not copy and engine == "process":
            raise ValueError('copy=False is for engine="inline": processes share no objects')
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {type(initializer).__name__}")
        if stuck_after is not None and not stuck_after > 0:
            raise ValueError(
                f"stuck_after is seconds above 0, or None for never, not {stuck_after}"
            )
        if isinstance(preload, str):
            raise TypeError("preload is a list of module names, not one string")
        if show_args is None:
            show_args = default_show_args()
        listener = None
        if on_event is not None:
            check_listener(on_event)
            listener = Listener(on_event)
        start = None if initializer is None else (initializer, tuple(initargs))
        prefix = ""
        reader = None
        in_notebook = False
        if logging is False and engine != "process":
            raise ValueError(
                'logging=False is for engine="process": what threads log is logged here'
            )
        if engine == "process":
            _refuse_while_loading()
            # With it comes what defines functions: not before somebody needs it.
            from manyhands._launch import launch

            launch()
            if logging is None:
                logging = configured.logging is not False
            in_notebook = hasattr(sys.stdout, "set_thread_parent")
            from manyhands._logs import Reader

            reader = Reader(name, logging)
            if preload:
                _core.preload(list(preload))
            if store is not None:
                set_budget(store)
            else:
                set_budget_from_environment()
        elif engine == "thread":
            from manyhands._threads import prefix as prefix_of

            prefix = prefix_of(name)
        else:
            # What shows errors, as the other engines have it by now: not in the middle of a task.
            from manyhands import _local  # noqa: F401

            workers = 1
        names = configured.context
        if context is not None:
            from manyhands._context import check_names

            names = check_names(context)
        if names != () and (names or "opentelemetry.context" in sys.modules):
            from manyhands._context import with_telemetry

            names = with_telemetry(names or ())
        if in_notebook:
            from manyhands import _cells

            if _cells.find_notebook():
                names = (*(names or ()), _cells.NAME)
        budget = None
        if memory_limit is not None:
            from manyhands._memory import check_limit

            budget = check_limit(memory_limit, engine)
        task_options = TaskOptions().but(
            task_timeout, grace, retry, seed, task_memory, capture=capture
        )
        priority = check_priority(priority)
        if exit_grace is not None:
            check_seconds("exit_grace", exit_grace)
        wishes = recycle_after_tasks, recycle_rss, recycle_age, idle_timeout
        recycled: _Recycling = _NEVER_RECYCLED
        if wishes != _NEVER_RECYCLED:
            from manyhands._recycling import recycling

            recycled = recycling(engine, *wishes)
        if inner_threads is not None:
            inner_threads = check_inner_threads(inner_threads, engine)
        else:
            inner_threads = configured.inner_threads
        pool = super().__new__(
            cls,
            engine,
            workers,
            start,
            show_args,
            copy,
            prefix,
            task_options.native(),
            (stuck_after, _stalled_after),
            None if listener is None else listener.stream,
            None if reader is None else (reader.stream, reader.wanted),
            budget,
            recycled,
            inner_threads,
            priority,
        )
        if names and engine == "process":
            from manyhands._context import carrier

            pool._carry(carrier(names))
        pool._options = task_options
        pool._exit_grace = exit_grace
        pool.name = name if name is not None else f"pool of {workers}"
        pool._engine = engine
        pool._workers = workers
        pool._is_default = False
        pool._maps = weakref.WeakSet()
        pool._kept = _Kept()
        pool._listener = listener
        pool._reader = reader
        if listener is not None:
            listener.start(pool.name)
        _pools.add(pool)
        return pool

    @classmethod
    def _of_this_worker(cls, workers: int) -> Pool:
        """What stands in a worker for the pool that runs it; see `_nested`."""
        options = TaskOptions()
        native = options.native()
        watch = (None, _stalled_after)
        rest = None, None, None, _NEVER_RECYCLED, None, 0
        pool = _core.PoolBase.__new__(
            cls, "nested", workers, None, True, True, "", native, watch, *rest
        )
        pool._options = options
        pool._exit_grace = None
        pool.name = "the pool of this task"
        pool._engine = "process"
        pool._workers = workers
        pool._is_default = True
        pool._maps = weakref.WeakSet()
        pool._kept = _Kept()
        pool._listener = None
        pool._reader = None
        return pool

    _engine: str
    _workers: int
    _options: TaskOptions
    _exit_grace: float | None
    _is_default: bool
    # What was mapped and not dropped: a clean end finishes what nobody has iterated.
    _maps: weakref.WeakSet[Results[Any]]
    _kept: _Kept
    _listener: Listener | None
    _reader: _Reader | None

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
            seed: int | None = None,
            task_memory: int | str | None = None,
            priority: int = 0,
            capture: bool = False,
            exit_grace: float | None = None,
            stuck_after: float | None = 60.0,
            on_event: Callable[[Event], object] | None = None,
            store: int | str | None = None,
            context: Sequence[str] | None = None,
            memory_limit: int | str | None = None,
            recycle_after_tasks: int | None = None,
            recycle_rss: int | str | None = None,
            recycle_age: float | None = None,
            idle_timeout: float | None = None,
            inner_threads: int | None = None,
            logging: bool | None = None,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
            seed: each item's random stream comes from this number and the item's index alone (with
                `batch`, the index of its list).
            task_memory: the most memory that an item may add to its worker, as in `Pool`.
            priority: which tasks and items that wait go first: the higher, as in `Pool`. A map
                gives way to what is higher between any two items.

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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        seed: int | None = None,
        task_memory: int | str | None = None,
        priority: int = 0,
        capture: bool = False,
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
        task_options: TaskOptions | None = None,
    ) -> Results[R]:
        chosen = map_options(method, fn, options)
        if task_options is None:
            task_options = self._options
        task_options = task_options.but(
            chosen.task_timeout,
            chosen.grace,
            chosen.retry,
            chosen.seed,
            chosen.task_memory,
            chosen.priority,
            chosen.capture,
            alone=True,
        )
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
        native = task_options.native()
        kept = None
        if task_options.capture:
            kept = self._keep_outputs()
            native = (*native[:-1], kept)
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
                native,
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
        try:
            results._pool = self
            results._kept_output = kept
            self._maps.add(results)
        except BaseException:
            results.close()  # who was interrupted has nothing that could be iterated
            raise
        return results

    def _keep_output(self) -> _KeptOutput:
        """What keeps what a task writes; called by `submit`, which is native."""
        from manyhands._capture import Kept

        return Kept(self._captures())

    def _keep_outputs(self) -> _KeptOfMap:
        """What keeps what the items of a map write."""
        from manyhands._capture import KeptOfMap

        return KeptOfMap(self._captures())

    def _captures(self) -> _Captures | None:
        if self._reader is None:
            return None
        captures = self._reader.captures()
        captures.prepare(self._workers)
        return captures

    def options(
        self,
        *,
        task_timeout: float | Unset | None = UNSET,
        grace: float | Unset = UNSET,
        retry: int | Retry | Unset | None = UNSET,
        seed: int | Unset | None = UNSET,
        task_memory: int | str | Unset | None = UNSET,
        priority: int | Unset = UNSET,
        capture: bool | Unset = UNSET,
    ) -> PoolView:
        """This pool, with other options for tasks: `submit`, `map` and `starmap` as it has them.

        Args:
            task_timeout: the most seconds that a task may take from its start; None is no limit.
            grace: how many seconds a task that is to end has to clean up.
            retry: how often it runs again after a failure, or a `Retry` that says more.
            seed: random streams come from this number, and from which call with these options a
                task is; None is none.
            task_memory: the most memory that it may add to its worker; None is no limit.
            priority: which of the tasks that wait starts first: the higher, 0 by default. A task
                that a task submits has the priority of that one where nothing is given.
            capture: whether what a task writes to standard output and errors is kept on its
                future, see `Future.output`, in place of being shown.

        >>> import manyhands as mh
        >>> with mh.Pool(1) as pool:
        ...     strict = pool.options(task_timeout=30)
        ...     strict.submit(pow, 2, 3).result()
        8
        """
        options = self._options.but(
            task_timeout, grace, retry, seed, task_memory, priority, capture
        )
        return PoolView(self, options)

    def terminate(self) -> None:
        """Ends all tasks at once: what waits is cancelled, what runs is killed with its worker.

        Threads cannot be killed: what they run is asked to end, and left behind after its `grace`.

        >>> import time, manyhands as mh
        >>> pool = mh.Pool(1)
        >>> future = pool.submit(time.sleep, 600)
        >>> pool.terminate()
        >>> future.cancelled()
        True
        """
        self._close(True, True)
        self._wait(True, None)
        self._has_ended(logging.INFO, None)

    def stats(self) -> PoolStats:
        """What the pool and its workers do now.

        >>> import manyhands as mh
        >>> with mh.Pool(2) as pool:
        ...     pool.stats().pending
        0
        """
        forward_logs()
        found = self._stats()
        leases = {worker["pid"]: worker.pop("leases", 0) for worker in found["workers"]}
        workers = tuple(
            WorkerStats(state=_state(worker), idle=_idle(worker), **worker)
            for worker in found.pop("workers")
        )
        store = StoreStats(
            leases={pid: count for pid, count in leases.items() if count}, **_core.store_stats()
        )
        return PoolStats(workers=workers, store=store, **found)

    def resize(self, workers: int) -> None:
        """Has the pool use so many workers from now on. It does not wait for that.

        Those that are too many start nothing new and leave when what they run has ended; what they
        held goes to others. More are started when there is work for them.

        Args:
            workers: how many.

        Raises:
            ValueError: `workers` is below 1, or above 4000; the engine has no workers, which is
                so inline.
            RuntimeError: the pool is shut down or broken; or this is one of its tasks.

        >>> import manyhands as mh
        >>> with mh.Pool(1) as pool:
        ...     results = pool.map(abs, range(-3, 0))
        ...     pool.resize(2)
        ...     pool.workers, list(results)
        (2, [3, 2, 1])
        """
        from manyhands._recycling import resize

        resize(self, workers)

    @property
    def workers(self) -> int:
        """How many workers the pool may have; fewer live while there is no work for all.

        >>> import manyhands as mh
        >>> with mh.Pool(2) as pool:
        ...     pool.workers
        2
        """
        return self._workers

    def refresh(self, fn: Callable[..., object], /) -> None:
        """Has a function's captured data sent anew when it is next used.

        What a function captures (its globals, closure, defaults, the arguments of a partial, the
        object of a bound method) is sent once to each worker, as it was at first use. That one of
        these is bound anew is noticed; what changes inside of an object, such as a list that is
        appended to, is not. This makes it count. It holds for all pools.

        >>> import manyhands as mh
        >>> prices = {"pear": 4}
        >>> def price(name):
        ...     return prices[name]
        >>> with mh.Pool(2) as pool:
        ...     before = pool.submit(price, "pear").result()
        ...     prices["pear"] = 5
        ...     pool.refresh(price)
        ...     before, pool.submit(price, "pear").result()
        (4, 5)
        """
        if not callable(fn):
            raise TypeError(f"the argument must be callable, not {type(fn).__name__}")
        from manyhands._encoding import refresh

        refresh(fn)

    def dump(self) -> PoolDump:
        """What each worker does just now: its task, and its Python stack.

        Also of a worker that sits in C code and lets no other thread run: it is asked by a signal
        (`SIGRTMIN + 13`), whose handler writes the stack. All are asked at once. Who does not
        answer within a second, being stopped or asleep in the kernel, is shown as the kernel sees
        it. Idle workers are not asked.

        Of threads it shows the stacks, and no names of functions. Inline there is nothing to show.

        >>> import time, manyhands as mh
        >>> with mh.Pool(1) as pool:
        ...     future = pool.submit(time.sleep, 600)
        ...     while not future.running():
        ...         time.sleep(0.01)
        ...     pool.dump().workers[0].task
        ...     future.cancel()
        'sleep'
        True
        """
        forward_logs()
        return make_dump(self.name, self._engine, self._dump())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more tasks. What was submitted still runs; then the workers leave.

        Args:
            wait: whether to wait for that.
            cancel_futures: whether tasks that have not started are cancelled.
        """
        until = self._end_by() if wait else None
        if not cancel_futures:
            self._finish_maps(until)
        self._close(cancel_futures, False)
        if wait:
            _wait_telling(self, logging.INFO, until)
            self._has_ended(logging.INFO, self._patience())

    def _has_ended(self, level: int, patience: float | None) -> None:
        self._kept.drop()
        _wait_for_listeners(self, level, patience)
        forward_logs()
        _tell_unseen(self, False)

    def _end_by(self) -> float | None:
        """When its end is over at the latest, if it begins now."""
        return None if self._exit_grace is None else time.monotonic() + self._exit_grace

    def _patience(self) -> float | None:
        """For how long a listener that hangs is waited for, once that was told."""
        return None if self._exit_grace is None else 0

    def _finish_maps(self, until: float | None) -> None:
        """Maps that nobody has iterated run to their end; others must not wait for this thread."""
        for results in [*self._maps, *self._kept]:
            results._leave(_left(until))

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
        return _nested.arrived, (*self._origin(), None)

    def _origin(self) -> _nested.Origin:
        """By which a worker knows this pool again."""
        number = self._number()
        if number == 0:
            raise TypeError(
                f'a pool with engine="{self._engine}" cannot be pickled; make one where it is used'
            )
        return os.getpid(), number, self.name


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
        from manyhands._recycling import FOREIGN

        if name in FOREIGN:
            raise TypeError(f"Pool() has no {name}=; write {FOREIGN[name]}={value!r}")
        raise TypeError(f"Pool() got an unexpected keyword argument {name!r}")


class PoolView(_core.ViewBase):
    """A pool with options of its own for tasks; made by `options()`. It needs no end.

    >>> import manyhands as mh
    >>> mh.options(task_timeout=60).map(abs, [-1, -2]).list()
    [1, 2]
    """

    __slots__ = ("_options", "_origin")

    _options: TaskOptions
    _origin: _nested.Origin | None

    def __new__(
        cls,
        pool: Pool | Callable[[], Pool],
        task_options: TaskOptions,
        origin: _nested.Origin | None = None,
    ) -> PoolView:
        self = super().__new__(cls, pool, task_options.native())
        self._options = task_options
        self._origin = origin
        return self

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
        pool: Pool = self._pool()
        return pool._results(fn, iterables, False, timeout, "map", options, self._options)

    def starmap(
        self, fn: Callable[..., R], iterable: Iterable[Iterable[Any]], /, **options: Any
    ) -> Results[R]:
        """As `Pool.starmap`."""
        pool: Pool = self._pool()
        return pool._results(fn, (iterable,), True, None, "starmap", options, self._options)

    def options(
        self,
        *,
        task_timeout: float | Unset | None = UNSET,
        grace: float | Unset = UNSET,
        retry: int | Retry | Unset | None = UNSET,
        seed: int | Unset | None = UNSET,
        task_memory: int | str | Unset | None = UNSET,
        priority: int | Unset = UNSET,
        capture: bool | Unset = UNSET,
    ) -> PoolView:
        """The same, but for what is given."""
        options = self._options.but(
            task_timeout, grace, retry, seed, task_memory, priority, capture
        )
        return PoolView(self._source(), options, self._origin)

    def __reduce__(self) -> Any:
        return _nested.arrived, (*(self._origin or self._pool()._origin()), self._options)

    def __repr__(self) -> str:
        return f"<manyhands.PoolView of {self._pool()!r}: {self._options}>"


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
    if worker["pid"] is None:
        return "starting"
    return "idle" if worker["task_age"] is None else "busy"


def _idle(worker: dict[str, Any]) -> float:
    running = worker["task_age"] or 0.0
    known = float(worker["busy"]) + float(worker["transfer"]) + running
    return max(0.0, float(worker["age"]) - known)


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())


def _wait_telling(pool: Pool, level: int, until: float | None) -> None:
    """Waits for the end of a closed pool; says what for if that takes long, and ends it in time."""
    left = _left(until)
    ended = pool._wait(True, _PATIENCE if left is None else min(left, _PATIENCE))
    if not ended and (left is None or left > _PATIENCE):
        _tell(pool, level)
        ended = pool._wait(True, _left(until))
    if until is not None and (not ended or _cut(pool)):
        _give_up(pool)


def _cut(pool: Pool) -> list[Results[Any]]:
    """The maps that nobody iterates and whose input was not taken to its end."""
    return [results for results in [*pool._maps, *pool._kept] if not results._is_complete()]


def _tell(pool: Pool, level: int) -> None:
    """Says what a closed pool waits for."""
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
        _tasks(stats.pending),
        shown or "none of them runs",
        "" if stats.pending <= len(running) else f"; {stats.pending - len(running):,} wait",
    )


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _give_up(pool: Pool) -> None:
    """Ends a closed pool whose `exit_grace` is up, and says what was lost."""
    stats = pool.stats()
    cut = _cut(pool)
    functions = [worker.task for worker in stats.workers if worker.task is not None]
    functions += [results._name for results in cut]
    _end(pool)
    pool._maps.clear()
    if stats.pending == 0 and not cut:
        return  # workers that did not leave: nothing is lost
    names = list(dict.fromkeys(functions))
    shown = ", ".join(names[:_MOST_SHOWN])
    if len(names) > _MOST_SHOWN:
        shown += f" and {len(names) - _MOST_SHOWN} more"
    running = sum(worker.task_age is not None for worker in stats.workers)
    logging.getLogger("manyhands").warning(
        "the pool %r has not ended in its exit_grace of %g s: %s lost, %d of them while they ran"
        "%s%s",
        pool.name,
        pool._exit_grace,
        f"{_tasks(stats.pending)} {'is' if stats.pending == 1 else 'are'}",
        running,
        f" (functions: {shown})" if shown else "",
        "; the input of a map was not taken to its end" if cut else "",
    )


def _tell_unseen(pool: Pool, all: bool) -> None:
    """Says once how many tasks failed and nobody looked.

    Args:
        all: also those whose futures are still there. Who has one may look at it after the end of
            the pool, but not after that of the program.
    """
    count, example = pool._take_unseen(all)
    if count:
        logging.getLogger("manyhands").warning(
            "the pool %r: %s failed, and nobody looked at %s%s",
            pool.name,
            _tasks(count),
            "its exception" if count == 1 else "their exceptions",
            "" if example is None else f"{'' if count == 1 else '; the first'}: {example}",
        )


def _wait_for_listeners(pool: Pool, level: int, limit: float | None = None) -> None:
    """Waits until all ends and events of an ended pool were told; says so if that takes long, and
    then waits up to `limit` seconds more."""
    unless = "" if limit is None else ", or hangs; it is not waited for"
    if not has_told(_PATIENCE):
        logging.getLogger("manyhands").log(
            level, "the pool %r has ended, and a callback still runs%s", pool.name, unless
        )
        has_told(limit)
    if pool._reader is not None:
        # A handler that hangs keeps nobody: it was not the pool that was told to wait for it.
        pool._reader.join(_PATIENCE)
    listener = pool._listener
    if listener is None or listener.join(_PATIENCE):
        return
    logging.getLogger("manyhands").log(
        level,
        "the pool %r has ended, and its on_event has still to be called with about %d events%s",
        pool.name,
        listener.unread() + 1,
        unless,
    )
    listener.join(limit)


def _end(pool: Pool) -> None:
    """Cancels what waits, asks what runs to end, and ends the rest after its grace."""
    _end_but_for_workers(pool)
    pool._wait(True, None)
    # Whoever ends by an exception, or a Ctrl-C, is not kept by a listener that hangs.
    pool._has_ended(logging.WARNING, 0)


def _end_but_for_workers(pool: Pool) -> None:
    pool._close(True, False)
    pool._ask()
    if pool._wait(False, pool._options.grace):
        return
    pool._close(True, True)
    if pool._engine == "process":
        pool._wait(True, None)


def _end_all() -> None:
    """Ends all pools; threads that do not end are left behind."""
    pools = _close_all()
    for pool in pools:
        _end(pool)
    _end_threads(True)


def _end_all_but_for_threads() -> bool:
    """Ends all pools, but for threads that run something; whether there is none."""
    for pool in _close_all():
        _end_but_for_workers(pool)
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
    ended = getattr(sys, "last_value", None) is not None or _core.was_interrupted()
    return (ended and not hasattr(sys, "ps1")) or _interrupted_at_end


def _notice_interrupt_at_end() -> None:
    """From here on Python only reports a Ctrl-C, while it waits for threads, and then goes on."""
    report = sys.unraisablehook

    def notice(args: Any, /) -> None:
        global _interrupted_at_end
        if args.exc_type is KeyboardInterrupt:
            _interrupted_at_end = True
        report(args)

    sys.unraisablehook = notice


def _notice_interrupt_before_exit(caller: object) -> None:
    """The same for a Ctrl-C that came before that.

    Python has ended its threads when it calls exit handlers, and its main thread counts as ended
    then, unless an exception came in between. Others may call them, too, as
    `atexit._run_exitfuncs`: it has a caller.
    """
    global _interrupted_at_end
    main = threading.main_thread()
    if caller is None and threading.get_ident() == main.ident and main.is_alive():
        _interrupted_at_end = True


def _at_exit() -> None:
    _notice_interrupt_before_exit(sys._getframe().f_back)
    pools = list(_pools)
    if _ended_by_exception():
        _end_all()
    else:
        ends = [(pool, pool._end_by()) for pool in pools]
        for pool, until in ends:
            if pool._is_default:
                for results in list(pool._maps):
                    results._warn_if_lost()
            else:
                pool._finish_maps(until)
            pool._close(False, False)
        for pool, until in ends:
            # The program seems to have ended, and does not: its user is told why.
            _wait_telling(pool, logging.WARNING, until)
            _wait_for_listeners(pool, logging.WARNING, pool._patience())
        _end_threads(False)
    _follower.finish_all(_PATIENCE)
    stop_teller()
    for pool in pools:
        # A program that an exception ends did not come to looking.
        _tell_unseen(pool, not _ended_by_exception())
    _core.stop_supervisor()
    _resolve.close_per_worker()
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
    is_interrupted = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if not (is_interrupted or (_core.was_interrupted() and not hasattr(sys, "ps1"))):
        _notice_interrupt_at_end()
        return
    show = threading.excepthook

    def show_others(args: threading.ExceptHookArgs, /) -> None:
        if args.exc_type is not CancelledError:
            show(args)

    threading.excepthook = show_others
    _end_all()


def forget_parent() -> None:
    """In a child of fork: the pools are the parent's."""
    _pools.clear()


atexit.register(_at_exit)
try:
    # Exit handlers run after the interpreter has waited for all threads; the standard library's own
    # executors register here, too, for the same reason.
    threading._register_atexit(_before_threads_end)  # type: ignore[attr-defined]
except RuntimeError:
    pass  # first imported while the program ends
_forks.watch()
