"""Objects that live as long as their worker: made at first use, closed when it leaves.

A `PerWorker` is a handle. It travels as a token, with a `Broadcast` of how to make the object, and
as a name where it is a global of a module that workers import. What handles have made is kept by a
*keeper*: a worker process has one, and elsewhere each thread has its own, so also the threads of a
pool. A keeper makes each object once, and closes what it has made once, the last one first.

A child of fork starts with nothing: it neither uses nor closes what its parent has made.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from manyhands import _core, _resolve
from manyhands._broadcast import Broadcast, broadcast
from manyhands._describe import is_coroutine_function, name_of
from manyhands._typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["PerWorker", "arrived", "close_here", "per_worker"]

T = TypeVar("T")

_Recipe = tuple[Callable[[], Any], Callable[[Any], object] | None]

_GENERATOR = 0x20  # of `co_flags`

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

        Raises:
            RuntimeError: the worker is leaving and has closed the object, or the factory asks for
                what it is about to make.
            TypeError: the factory has made something asynchronous.

        What the factory raises is raised here, and the next call asks the factory again.
        """
        found: T = _keeper().get(self)
        return found

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
    longer is killed. A worker that is killed closes nothing.

    Args:
        factory: makes the object; called without arguments. What it and `close` capture is sent
            once to each worker, as it is when the handle is first sent. If it returns a context
            manager, that is entered, `get()` gives what its `__enter__` gave, and it is exited in
            the end. A generator function decorated by `contextlib.contextmanager` is such a one.
        close: called with the object in the end, which is not entered then. Without it an object
            that is no context manager is closed by its method `close()`, if it has one. For objects
            whose `with` is about something else: that of a `sqlite3.Connection` is a transaction.

    Raises:
        TypeError: `factory` or `close` cannot be called; the factory is asynchronous, which nobody
            awaits yet, or a generator function that is not decorated.

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
    for function, role in ((factory, "factory"), (close, "close function")):
        if is_coroutine_function(function):
            raise TypeError(_not_awaited(name_of(function), role))
    if getattr(getattr(factory, "__code__", None), "co_flags", 0) & _GENERATOR:
        raise TypeError(
            f"{name_of(factory)} is a generator function, and would make a generator: decorate it "
            "by contextlib.contextmanager, so that what it yields is the object"
        )
    made = _make(_resolve.new_token(), name_of(factory))
    made._recipe = factory, close
    made._home = sys._getframe(1).f_globals.get("__name__")
    return made


def _not_awaited(name: str, role: str) -> str:
    return (
        f"{name} is an asynchronous {role}, and nobody would await it: per_worker() takes plain "
        "functions and plain context managers alone, so far"
    )


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

    def get(self, handle: PerWorker[Any]) -> Any:
        place = self._places.get(handle._token)
        if place is None:
            if self._is_leaving:
                raise _left(handle)
            place = self._places.setdefault(handle._token, _Place())
        if place.has_value:
            return place.value
        with place.lock:
            if not place.has_value:
                self._fill(place, handle)
            return place.value

    def _fill(self, place: _Place, handle: PerWorker[Any]) -> None:
        if self._is_leaving:
            raise _left(handle)
        if place.is_making:
            raise RuntimeError(f"{handle._label} asks for the object that it is about to make")
        place.is_making = True
        try:
            place.value, closer = _open(handle._how(), handle._label)
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
                closer()
            except BaseException:  # a SystemExit would leave the others open
                import logging

                logging.getLogger("manyhands").warning(
                    "what %s made in process %d was not closed as it should be",
                    label,
                    os.getpid(),
                    exc_info=True,
                )

    def __del__(self) -> None:
        # Of a thread that has ended. In a child of fork it is the parent's to close.
        if self._closers and self._pid == os.getpid() and not sys.is_finalizing():
            self.close()


def _left(handle: PerWorker[Any]) -> RuntimeError:
    return RuntimeError(
        f"{handle!r} has no object here any more: this worker is leaving, and closes what it has"
    )


def _open(recipe: _Recipe, label: str) -> tuple[Any, Callable[[], object]]:
    """The object, and what closes it."""
    factory, close = recipe
    made = factory()
    kind = type(made)
    if hasattr(kind, "__await__") or (
        close is None and hasattr(kind, "__aenter__") and not hasattr(kind, "__enter__")
    ):
        if hasattr(kind, "__await__") and hasattr(made, "close"):
            made.close()  # a coroutine, of which nobody hears that it was not awaited
        raise TypeError(_not_awaited(label, "factory"))
    if close is not None:
        chosen = close
        return made, lambda: chosen(made)
    if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
        return kind.__enter__(made), lambda: kind.__exit__(made, None, None, None)
    closer = getattr(made, "close", None)
    return made, closer if callable(closer) else _nothing


def _nothing() -> None:
    """There is nothing to close."""


class _Threads(threading.local):
    """The keepers of threads: each goes with its thread."""

    keeper: _Keeper | None = None


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
