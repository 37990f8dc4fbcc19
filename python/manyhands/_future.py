"""Futures: those of `concurrent.futures`, resolved by Rust.

A future is two things. Its native part knows the task, waits for it and decodes its result; nothing
else exists as long as people call `result()`. Once somebody wants to be *told* of the end (a
callback, `wait`, `as_completed`, an event loop), the future is observed: it gets the condition, the
waiters and the callbacks that the standard library works on, and a thread of ours tells them.

For an observed future the state that the standard library sees changes only under its condition,
together with the telling, so that nobody is told twice or never.
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent import futures

from manyhands import _core
from manyhands._typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from manyhands._capture import Kept

T = TypeVar("T")

_PENDING = "PENDING"
_RUNNING = "RUNNING"
_CANCELLED = "CANCELLED_AND_NOTIFIED"
_FINISHED = "FINISHED"

_log = logging.getLogger("manyhands")


class _Watch:
    """What an observed future has besides its task."""

    __slots__ = ("callbacks", "condition", "ended", "teller", "waiters")

    def __init__(self, teller: _Teller) -> None:
        # A child of fork has another, and nobody there tells what this one was to tell.
        self.teller = teller
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Any], object]] = []
        self.ended = False


class Future(_core.TaskFuture, futures.Future[T]):
    """The result of a task that was submitted, now or later.

    A `concurrent.futures.Future`: `wait`, `as_completed`, callbacks and `asyncio.wrap_future` work
    on it. It can be awaited. Made by `submit` and by nobody else.

    >>> import manyhands as mh
    >>> with mh.Pool(1) as pool:
    ...     pool.submit(sum, [1, 2, 3]).result()
    6
    """

    _watch: _Watch | None = None
    # What keeps what the task writes, with `capture=`.
    _kept: Kept | None = None

    if TYPE_CHECKING:
        # The native part has it, and knows no types.
        def result(self, timeout: float | None = None) -> T: ...

    def _observed(self) -> _Watch:
        return self._told_here() or _teller.observe(self)

    def _told_here(self) -> _Watch | None:
        watch = self._watch
        return watch if watch is not None and watch.teller is _teller else None

    # To type checkers these are the attributes that `concurrent.futures.Future` has.
    if not TYPE_CHECKING:

        @property
        def _condition(self) -> threading.Condition:
            return self._observed().condition

        @property
        def _waiters(self) -> list[Any]:
            return self._observed().waiters

        @property
        def _state(self) -> str:
            watch = self._told_here()
            if self.done() if watch is None else watch.ended:
                return _CANCELLED if self.cancelled() else _FINISHED
            return _RUNNING if self.running() else _PENDING

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        # What asyncio asks of futures from Python 3.14 on.
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        error = self.exception()
        return True, False, None if error is not None else self.result(), error

    def cancel(self) -> bool:
        """Cancels the task; whether it is cancelled.

        One that has not started never does. One that runs is ended: the future is cancelled at
        once, `TaskStopped` is raised in the task, and after its `grace` its worker is killed, and
        what it has started. Whatever it comes to meanwhile is dropped. A thread cannot be killed:
        after the grace its pool goes on without it. A task that has ended is left alone.
        """
        return self._cancel()

    @property
    def output(self) -> str | None:
        """What the task has written to standard output and errors so far; None without `capture=`.

        It does not wait: ask once the task has ended to have all. Of a task that failed, took too
        long, was cancelled or has died with its worker it is what it had written until then; of one
        that was tried several times that of all attempts, one after another. Of very much the first
        and the last 512 KiB are there, and between them a line that says how much is left out.

        >>> import manyhands as mh
        >>> with mh.Pool(1, capture=True) as pool:
        ...     future = pool.submit(print, "so far, so good")
        ...     future.result(), future.output
        (None, 'so far, so good\\n')
        """
        kept = self._kept
        if kept is None:
            return None
        self.done()  # what has come is taken
        return kept.text()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Has `fn(self)` called when the task has ended: at once if it has, else by a thread of
        manyhands. What the callback raises is logged. Whoever leaves the block of its pool, or
        waits for the pool's end, waits for its callbacks, too.
        """
        watch = self._observed()
        with watch.condition:
            if not watch.ended:
                watch.callbacks.append(fn)
                return
        _call(fn, self)

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio  # 25 ms that only programs with an event loop have to pay, and have paid

        return asyncio.wrap_future(self).__await__()

    def set_running_or_notify_cancel(self) -> bool:
        """Always raises: the pool alone moves its futures."""
        raise RuntimeError("the futures of manyhands are moved by their pool alone")

    def set_result(self, result: T) -> None:
        """Always raises: the pool alone moves its futures."""
        raise RuntimeError("the futures of manyhands are moved by their pool alone")

    def set_exception(self, exception: BaseException | None) -> None:
        """Always raises: the pool alone moves its futures."""
        raise RuntimeError("the futures of manyhands are moved by their pool alone")

    def __repr__(self) -> str:
        return f"<manyhands.Future at {id(self):#x} state={self._state.lower()}>"


def _call(callback: Callable[[Any], object], future: Future[Any]) -> None:
    try:
        callback(future)
    except BaseException:  # a SystemExit would end the thread that tells everybody
        _log.exception("a callback of %r raised", future)


def _wait_for_end(future: Future[Any]) -> None:
    try:
        future.exception()
    except futures.CancelledError:
        pass  # an end like any other


class _Teller:
    """The thread that tells of ends, and the futures that it has to tell of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._observed: dict[int, Future[Any]] = {}
        self._thread: threading.Thread | None = None
        self._generation = _core.process_generation()
        self._stopping = False
        # Who waits until all that has ended by now was told of.
        self._followed: list[threading.Event] = []

    def observe(self, future: Future[Any]) -> _Watch:
        with self._lock:
            watch = future._told_here()
            if watch is not None:
                return watch
            watch = _Watch(self)
            if future.done():  # raises in a child of fork, if nobody there knows
                watch.ended = True
                future._watch = watch
                return watch
            token = next(self._tokens)
            self._observed[token] = future
            if not future._observe(token):
                del self._observed[token]
                watch.ended = True
            elif self._thread is None and not self._start():
                # Nobody can tell of the end: it is waited for.
                del self._observed[token]
                _wait_for_end(future)
                watch.ended = True
            future._watch = watch
            return watch

    def _start(self) -> bool:
        self._stopping = False
        thread = threading.Thread(target=self._run, name="manyhands-teller", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False  # from Python 3.12 on no thread starts once the interpreter ends
        self._thread = thread
        return True

    def _run(self) -> None:
        stopping = False
        while not stopping:
            # Looked at first: whatever ended before the stop is told of.
            stopping = self._stopping
            with self._lock:
                followed, self._followed = self._followed, []
            for token in _core.wait_completions(0.0 if stopping or followed else 3600.0):
                self._tell(token)
            for event in followed:
                event.set()
            forward_logs()

    def _tell(self, token: int) -> None:
        with self._lock:
            future = self._observed.pop(token, None)
        if future is None:
            return  # its end was waited for, see `observe`
        watch = future._watch
        assert watch is not None
        with watch.condition:
            watch.ended = True
            for waiter in watch.waiters:
                if future.cancelled():
                    waiter.add_cancelled(future)
                elif future._has_value():
                    waiter.add_result(future)
                else:
                    waiter.add_exception(future)
            watch.condition.notify_all()
        for callback in watch.callbacks:
            _call(callback, future)
        watch.callbacks.clear()

    def has_told(self, timeout: float | None) -> bool:
        """Waits until all ends so far were told of, with their callbacks; whether they were."""
        event = threading.Event()
        with self._lock:
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return True
            self._followed.append(event)
        _core.ring_completions()
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not event.wait(min(1.0, max(0.0, until - time.monotonic()))):
            if not thread.is_alive():
                return True  # the program ends
            if time.monotonic() >= until:
                return False
        return True

    def stop(self) -> None:
        """Ends the thread when it has told of all ends so far; for the end of the program."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._stopping = True
            _core.ring_completions()
            thread.join()
            self._thread = None


def forward_logs() -> None:
    """Hands on what the supervisor, which knows no Python, had to log."""
    for is_warning, text, stack in _core.take_logs():
        if stack is not None:
            from manyhands._stack import readable

            text = f"{text}:\n{readable(stack).rstrip()}"
        _log.log(logging.WARNING if is_warning else logging.INFO, "%s", text)


_teller = _Teller()


def may_wait() -> bool:
    """Whether this thread may wait for tasks to end: not one of an event loop, nor the teller."""
    loops = sys.modules.get("asyncio.events")
    if loops is not None and loops._get_running_loop() is not None:
        return False
    return threading.current_thread() is not _teller._thread


def has_told(timeout: float | None) -> bool:
    """Waits until all ends so far were told of, with their callbacks; whether they were."""
    return _teller.has_told(timeout)


def stop_teller() -> None:
    """Ends the thread that tells of ends."""
    _teller.stop()


def forget_parent() -> None:
    """In a child of fork: the parent's futures are not told of here."""
    global _teller
    _teller = _Teller()
