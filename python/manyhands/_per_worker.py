"""Objects that live as long as their worker: made at first use, closed when it leaves.

A `PerWorker` is a handle. It travels as a token, with a `Broadcast` of how to make the object, and
as a name where it is a global of a module that workers import. What handles have made is kept by a
*keeper*: a worker process has one, and elsewhere each thread has its own, so also the threads of a
pool. A keeper makes each object once, and closes what it has made once, the last one first.

What is asynchronous is made, used and closed on the event loop of its keeper (`_worker_loop`),
which is there from the first such object on and ends after the last one is closed.

A child of fork starts with nothing: it neither uses nor closes what its parent has made.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import CoroutineType
from weakref import WeakValueDictionary, ref

from manyhands import _core, _resolve
from manyhands._broadcast import Broadcast, broadcast
from manyhands._describe import is_coroutine_function, name_of
from manyhands._typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from manyhands._worker_loop import WorkerLoop

__all__ = ["PerWorker", "arrived", "close_here", "per_worker"]

T = TypeVar("T")
R = TypeVar("R")

_Recipe = tuple[Callable[[], Any], Callable[[Any], object] | None]

# Of `co_flags`.
_GENERATOR = 0x20
_ASYNCHRONOUS_GENERATOR = 0x200

_known: WeakValueDictionary[str, PerWorker[Any]] = WeakValueDictionary()


class PerWorker(Generic[T]):
    """An object of each worker, from `mh.per_worker`: `.get()` gives that of the worker it runs in.

    Pass the handle itself to tasks: as an argument, captured by a function, as a global of it. It
    can be pickled for tasks of this program alone, and not be stored.
    """

    __slots__ = ("__weakref__", "_home", "_is_sending", "_label", "_recipe", "_sent", "_token")

    _token: str
    # What messages call it: the name of its factory.
    _label: str
    # The module whose code has made it.
    _home: str | None
    # None where the handle came from another process.
    _recipe: _Recipe | None
    # The same, as workers get it, from the first time that it is sent.
    _sent: Broadcast[_Recipe] | None
    _is_sending: bool

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise TypeError("a PerWorker is made by mh.per_worker(factory)")

    def get(self) -> T:
        """The object of this worker, made if this is its first use here.

        In a worker process all threads get the same one; elsewhere each thread has its own.

        An asynchronous one is made on the event loop of the worker, for which this waits. In a
        coroutine on that loop (see `run`) it is given if it is there already.

        Raises:
            RuntimeError: the worker is leaving and has closed the object, or the factory asks for
                what it is about to make, or an asynchronous object is to be made on an event loop
                that waits for this.

        What the factory raises is raised here, and the next call asks the factory again.
        """
        found: T = _keeper().get(self)
        return found

    def run(self, coroutine: Awaitable[R]) -> R:
        """Runs a coroutine on the event loop of this worker, and gives what comes of it.

        For what asynchronous objects do: it is the loop on which they were made. The object is made
        first, if it is not there yet, so that `get()` in the coroutine gives it at once. The loop
        runs in a thread of its own as long as the worker has objects, also between tasks. The
        coroutine runs in a copy of the caller's context; where the task is to end, by a time limit
        or because it is cancelled, so is the coroutine.

        Args:
            coroutine: what to run, or anything else that can be awaited.

        Raises:
            TypeError: it cannot be awaited.
            RuntimeError: it is called on that loop, where the coroutine is to be awaited.

        What the coroutine raises, and the factory, is raised here.

        >>> import manyhands as mh
        >>> class Client:
        ...     async def ask(self, number):
        ...         return number * 2
        ...     async def aclose(self):
        ...         pass
        >>> async def connect():
        ...     return Client()
        >>> client = mh.per_worker(connect)
        >>> def ask(number):
        ...     return client.run(client.get().ask(number))
        >>> with mh.Pool(2) as pool:
        ...     list(pool.map(ask, [1, 2]))
        [2, 4]
        """
        if not hasattr(type(coroutine), "__await__"):
            raise TypeError(
                f"run() takes a coroutine, as an async def function makes it, not "
                f"{type(coroutine).__name__}"
            )
        has_begun = False

        async def awaited() -> R:
            nonlocal has_begun
            has_begun = True
            return await coroutine

        try:
            keeper = _keeper()
            if keeper.is_on_loop():
                raise RuntimeError("run() would wait for its own event loop: await the coroutine")
            keeper.get(self)
            result: R = keeper.loop().call(awaited)
        finally:
            if not has_begun and isinstance(coroutine, CoroutineType):
                coroutine.close()  # else it is said of it that nobody has awaited it
        return result

    def __reduce__(self) -> Any:
        name = self._global_name()
        if name is not None:
            return _resolve._attribute, (self._home, name)
        return arrived, (self._token, self._label, self._to_send())

    def _global_name(self) -> str | None:
        """Its name in the module that made it, if workers import that: there it is the module's."""
        from manyhands._code import importable

        module = importable(self._home)
        if module is None:
            return None
        return next((name for name, value in vars(module).items() if value is self), None)

    def _to_send(self) -> Broadcast[_Recipe] | None:
        # While the recipe is pickled the handle may be met again, as a global of what it calls.
        if not _core.is_heard() or self._is_sending:
            return None
        if self._sent is None and self._recipe is not None:
            self._is_sending = True
            try:
                self._sent = broadcast(self._recipe)
            finally:
                self._is_sending = False
        return self._sent

    def _how(self) -> _Recipe:
        if self._recipe is None:
            if self._sent is None:
                raise RuntimeError(
                    f"this process does not know how to make what {self._label} makes: the handle "
                    "came as a result; pass it to the task, or make it with per_worker() here"
                )
            self._recipe = self._sent.value
        return self._recipe

    def __repr__(self) -> str:
        return f"<manyhands.PerWorker of {self._label}>"


@overload
def per_worker(factory: Callable[[], AbstractContextManager[T]]) -> PerWorker[T]: ...
@overload
def per_worker(factory: Callable[[], AbstractAsyncContextManager[T]]) -> PerWorker[T]: ...
@overload
def per_worker(
    factory: Callable[[], Awaitable[AbstractAsyncContextManager[T]]],
) -> PerWorker[T]: ...
@overload
def per_worker(
    factory: Callable[[], Awaitable[T]], *, close: Callable[[T], object] | None = None
) -> PerWorker[T]: ...
@overload
def per_worker(
    factory: Callable[[], T], *, close: Callable[[T], object] | None = None
) -> PerWorker[T]: ...
def per_worker(
    factory: Callable[[], Any], *, close: Callable[[Any], object] | None = None
) -> PerWorker[Any]:
    """A handle for an object that each worker makes at first use, and keeps for its later tasks.

    For connections, clients, models: what is expensive to make, or cannot be sent. `handle.get()`
    gives the object of the worker that runs the task. It lives as long as the worker: a process, a
    thread with engine="thread". Inline, and outside of tasks, each thread has its own. Where a
    worker dies, the one that takes its place makes a new one.

    It is closed when the worker leaves, after its last task and before what tasks registered with
    `atexit`; that of another thread when the thread ends, and that of the main thread at the end of
    the program, after all pools. What was made last is closed first. What closing raises is logged
    ("manyhands", a warning). Leaving takes at most 5 seconds in a worker process; one that takes
    longer is killed. A worker that is killed, by `Pool.terminate` for example, closes nothing.

    Asynchronous objects are made and closed on an event loop that each worker has for them, and
    used there by `handle.run(coroutine)`. Asynchronous is what a factory or a `close` that is an
    `async def` function makes or closes, and what a plain factory gives if that can be awaited or
    is an asynchronous context manager alone.

    Args:
        factory: makes the object; called without arguments. What it and `close` capture is sent
            once to each worker, as it is when the handle is first sent. If it returns a context
            manager, that is entered, `get()` gives what its `__enter__` gave, and it is exited in
            the end. A generator function decorated by `contextlib.contextmanager` is such a one.
            So is, on the event loop, one decorated by `contextlib.asynccontextmanager`.
        close: called with the object in the end, which is not entered then. Without it an object
            that is no context manager is closed by its method `close()`, if it has one; an
            asynchronous object by `aclose()` before that. For objects whose `with` is about
            something else: that of a `sqlite3.Connection` is a transaction.

    Raises:
        TypeError: `factory` or `close` cannot be called; the factory is a generator function that
            is not decorated.

    >>> import manyhands as mh
    >>> def connect():
    ...     return {"connected": True}  # stands for something expensive
    >>> connection = mh.per_worker(connect)
    >>> def ask(number):
    ...     return connection.get()["connected"], number
    >>> with mh.Pool(2) as pool:
    ...     list(pool.map(ask, [1, 2]))
    [(True, 1), (True, 2)]
    """
    if not callable(factory):
        raise TypeError(f"factory must be callable, not {type(factory).__name__}")
    if close is not None and not callable(close):
        raise TypeError(f"close must be callable, not {type(close).__name__}")
    flags = getattr(getattr(factory, "__code__", None), "co_flags", 0)
    if flags & (_GENERATOR | _ASYNCHRONOUS_GENERATOR):
        kind = "async" if flags & _ASYNCHRONOUS_GENERATOR else ""
        raise TypeError(
            f"{name_of(factory)} is a generator function, and would make a generator: decorate it "
            f"by contextlib.{kind}contextmanager, so that what it yields is the object"
        )
    made = _make(_resolve.new_token(), name_of(factory))
    made._recipe = factory, close
    made._home = sys._getframe(1).f_globals.get("__name__")
    return made


def _make(token: str, label: str) -> PerWorker[Any]:
    made: PerWorker[Any] = PerWorker.__new__(PerWorker)
    made._token = token
    made._label = label
    made._home = made._recipe = made._sent = None
    made._is_sending = False
    _known[token] = made
    return made


def arrived(token: str, label: str, sent: Broadcast[_Recipe] | None) -> PerWorker[Any]:
    """What a pickled handle is in the process that unpickles it: one for each token."""
    found = _known.get(token)
    if found is None:
        found = _make(token, label)
    if found._sent is None:
        found._sent = sent
    return found


# ----------------------------------------------------------------------------------- keepers


class _Place:
    """Where a keeper has the object of one handle, once that is made."""

    __slots__ = ("has_value", "is_making", "lock", "value")

    def __init__(self) -> None:
        # Held while the object is made: who asks meanwhile waits for it.
        self.lock = threading.RLock()
        self.is_making = False
        self.has_value = False
        self.value: Any = None


class _Keeper:
    """Has what handles have made, for a worker process or a thread."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._places: dict[str, _Place] = {}
        # In the order in which they were made: token and name of the handle, and what closes it.
        self._closers: list[tuple[str, str, Callable[[], object]]] = []
        self._is_leaving = False
        self._loop: WorkerLoop | None = None
        self._loop_lock = threading.Lock()

    def loop(self) -> WorkerLoop:
        """The event loop of what is asynchronous."""
        if self._loop is None:
            from manyhands._worker_loop import WorkerLoop

            with self._loop_lock:
                if self._loop is None:
                    # Not held by its thread: else it would not go with the thread that it is of.
                    keeper = ref(self)
                    self._loop = WorkerLoop(lambda: setattr(_threads, "owner", keeper))
        return self._loop

    def is_on_loop(self) -> bool:
        """Whether this thread is that of the event loop, which cannot wait for itself."""
        return self._loop is not None and self._loop.is_here()

    def get(self, handle: PerWorker[Any]) -> Any:
        place = self._places.get(handle._token)
        if place is None:
            if self._is_leaving:
                raise _left(handle)
            place = self._places.setdefault(handle._token, _Place())
        if place.has_value:
            return place.value
        if not place.lock.acquire(blocking=not self.is_on_loop()):
            raise RuntimeError(
                f"{handle._label} is about to make what is asked for here, on the event loop that "
                "it may need: ask for it before run()"
            )
        try:
            if not place.has_value:
                self._fill(place, handle)
            return place.value
        finally:
            place.lock.release()

    def _fill(self, place: _Place, handle: PerWorker[Any]) -> None:
        if self._is_leaving:
            raise _left(handle)
        if place.is_making:
            raise RuntimeError(f"{handle._label} asks for the object that it is about to make")
        place.is_making = True
        try:
            place.value, closer = _open(self, handle._how(), handle._label)
            self._closers.append((handle._token, handle._label, closer))
            place.has_value = True
        finally:
            place.is_making = False

    def close(self) -> None:
        """Closes what was made, and makes nothing from here on."""
        self._is_leaving = True
        while self._closers:
            token, label, closer = self._closers.pop()
            # What is closed later may still use it; what asks anew gets nothing that is closed.
            self._places.pop(token, None)
            try:
                answer = closer()
                if hasattr(type(answer), "__await__"):
                    self.loop().call(lambda answer=answer: answer)  # type: ignore[misc]
            except BaseException:  # a SystemExit would leave the others open
                import logging

                logging.getLogger("manyhands").warning(
                    "what %s made in %s was not closed as it should be",
                    label,
                    _whose(),
                    exc_info=True,
                )
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def __del__(self) -> None:
        # Of a thread that has ended. In a child of fork it is the parent's to close.
        if self._closers and self._pid == os.getpid() and not sys.is_finalizing():
            self.close()


def _left(handle: PerWorker[Any]) -> RuntimeError:
    return RuntimeError(
        f"{handle!r} has no object here any more: this worker is leaving, and closes what it has"
    )


def _whose() -> str:
    """The worker that this thread is of, for messages."""
    if _core.pool_of_this_worker() is not None and not _is_of_crew():
        return f"worker {os.getpid()}"
    return f"{threading.current_thread().name}, process {os.getpid()}"


def _open(keeper: _Keeper, recipe: _Recipe, label: str) -> tuple[Any, Callable[[], object]]:
    """The object, and what closes it, or gives what is to be awaited for that.

    That refers to no keeper, which would not go with its thread else.
    """
    factory, close = recipe
    if is_coroutine_function(factory) or (close is not None and is_coroutine_function(close)):
        return _open_on_loop(keeper, factory, close, label)
    made = factory()
    kind = type(made)
    if hasattr(kind, "__await__") or (
        close is None and hasattr(kind, "__aenter__") and not hasattr(kind, "__enter__")
    ):
        try:
            return _open_on_loop(keeper, lambda: made, close, label)
        finally:
            if kind is CoroutineType:
                made.close()  # of one that was not awaited it would be said; else this is nothing
    if close is not None:
        chosen = close
        return made, lambda: chosen(made)
    if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
        return kind.__enter__(made), lambda: kind.__exit__(made, None, None, None)
    closer = getattr(made, "close", None)
    return made, closer if callable(closer) else _nothing


def _open_on_loop(
    keeper: _Keeper,
    factory: Callable[[], Any],
    close: Callable[[Any], object] | None,
    label: str,
) -> tuple[Any, Callable[[], object]]:
    """The same for what is asynchronous."""
    if keeper.is_on_loop():
        raise RuntimeError(
            f"what {label} makes is asynchronous, and get() cannot wait for it on the event loop: "
            "ask for it before run()"
        )
    loop = keeper.loop()
    opened: list[tuple[Any, Callable[[], Any]]] = []

    async def open_it() -> None:
        made = factory()
        if hasattr(type(made), "__await__"):
            made = await made
        opened.append(await _entered(made, close))

    try:
        loop.call(open_it)
    except BaseException:
        if opened:  # the task was asked to end just then
            loop.call(opened[0][1])
        raise
    [(value, closer)] = opened
    return value, lambda: loop.call(closer)


async def _entered(
    made: Any, close: Callable[[Any], object] | None
) -> tuple[Any, Callable[[], object]]:
    """The object, and what closes it, both on the event loop; what closes may be asynchronous."""
    kind = type(made)
    if close is not None:
        return made, lambda: close(made)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
        return await kind.__aenter__(made), lambda: kind.__aexit__(made, None, None, None)
    if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
        return kind.__enter__(made), lambda: kind.__exit__(made, None, None, None)
    closer = getattr(made, "aclose", None) or getattr(made, "close", None)
    return made, closer if callable(closer) else _nothing


def _nothing() -> None:
    """There is nothing to close."""


class _Threads(threading.local):
    """The keepers of threads: each goes with its thread."""

    keeper: _Keeper | None = None
    # In the thread of an event loop: the keeper that has the loop.
    owner: ref[_Keeper] | None = None


_threads = _Threads()
_process: _Keeper | None = None
# What a parent has made stays alive in its child: letting it go might close what both have open.
_parents: list[Any] = []
_lock = threading.Lock()


def _keeper() -> _Keeper:
    """The keeper of the worker process, or of this thread."""
    global _process
    if _core.pool_of_this_worker() is not None and not _is_of_crew():
        if _process is None:
            with _lock:
                if _process is None:
                    _process = _Keeper()
        return _process
    keeper = _threads.keeper
    if keeper is None and _threads.owner is not None:
        keeper = _threads.owner()
    if keeper is None:
        keeper = _threads.keeper = _Keeper()
    return keeper


def _is_of_crew() -> bool:
    """Whether this thread is a worker of a pool of threads."""
    threads = sys.modules.get("manyhands._threads")
    return threads is not None and threads.is_member()


def close_here() -> None:
    """Closes what this thread has made; in a worker process that leaves, all of it."""
    for keeper in (_threads.keeper, None if _is_of_crew() else _process):
        if keeper is not None:
            keeper.close()


def _forget_parent() -> None:
    """In a child of fork."""
    global _process, _threads, _lock
    _parents.append((_process, _threads, _threads.keeper))
    _process, _threads, _lock = None, _Threads(), threading.Lock()


os.register_at_fork(after_in_child=_forget_parent)
