"""What a map gives: `Results`, and `Failure` for items that failed."""

from __future__ import annotations

import builtins
import logging
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from weakref import ref

from manyhands import _core
from manyhands._errors import (
    NotPicklable,
    RemoteTraceback,
    TaskMemoryExceeded,
    TaskTimeout,
    WorkerDied,
)
from manyhands._snapshot import Snapshot
from manyhands._typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from types import TracebackType

    from manyhands._capture import KeptOfMap
    from manyhands._hints import Hint
    from manyhands._typing import Self

R = TypeVar("R")
T = TypeVar("T")

# Failures that are kept; the others are counted.
_MOST_FAILURES = 10_000

# What is measured in less time says little, in seconds.
_LONG = 0.5

# What an event loop is given at a time.
_AT_ONCE = 1000


class Failure(Snapshot):
    """An item that failed. It does not change.

    >>> import manyhands as mh
    >>> failure, = mh.map(int, ["x"], on_error="return")
    >>> failure.exception
    ValueError("invalid literal for int() with base 10: 'x'")
    >>> failure.index, failure.input, failure.cause
    (0, 'x', 'exception')
    """

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "exception": "what it failed with",
        "index": "its place in the input, from 0",
        "input": "the item; a copy of it on an engine that copies, None where it cannot be had",
        "attempts": "how often it was tried; 0 if it never ran",
        "pid": "the worker's process id, 0 where there was none",
        "cause": (
            "'exception': the function raised; 'not_picklable': the item or its result cannot be "
            "sent; 'timeout': its `task_timeout` was up; 'memory': it took more than its "
            "`task_memory`; 'cancelled': it never ran, or was ended; "
            "else why its worker died, as `WorkerDied.cause`"
        ),
        "output": "what it has written, with `capture=`; else None",
    }

    exception: BaseException
    index: int
    input: Any
    attempts: int
    pid: int
    cause: str
    output: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON: the exception becomes its type, its message and its traceback.

        >>> import manyhands as mh
        >>> failure, = mh.map(int, ["x"], on_error="return")
        >>> failure.to_dict()["type"], failure.to_dict()["index"]
        ('ValueError', 0)
        """
        import traceback

        kind = type(self.exception)
        name = kind.__qualname__
        if kind.__module__ not in ("builtins", "__main__"):
            name = f"{kind.__module__}.{name}"
        try:
            message = str(self.exception)
        except Exception as problem:  # the user's __str__
            message = f"<its str() raised {type(problem).__name__}>"
        text = "".join(traceback.format_exception(self.exception))
        return {
            "index": self.index,
            "type": name,
            "message": message,
            "traceback": text,
            "attempts": self.attempts,
            "pid": self.pid,
            "cause": self.cause,
            "output": self.output,
        }


class Summary(Snapshot):
    """What a map has done so far. It does not change.

    >>> import manyhands as mh
    >>> mh.map(abs, range(100)).run().done
    100
    """

    __slots__ = {  # noqa: RUF023 - in the order in which people read them
        "total": "items of the input; None while it has not come to its end",
        "done": "items whose end was handed over, failures among them",
        "failed": "how many of these failed",
        "wall": "seconds since the map was made, until its last result",
        "busy": "seconds that workers spent in the function, all together",
        "cpu": (
            "processor seconds of that: far below `busy` where items wait, for a disk, a network, "
            "a lock or a core"
        ),
        "sent": "encoded bytes of items",
        "received": "encoded bytes of results",
        "workers": "the most workers that could run it",
        "engine": "'process', 'thread' or 'inline'",
        "hints": (
            "what would have been much faster, in words to paste; most often nothing. They are "
            "logged as well, by `manyhands.hints`, when the map ends"
        ),
    }

    total: int | None
    done: int
    failed: int
    wall: float
    busy: float
    cpu: float
    sent: int
    received: int
    workers: int
    engine: str
    hints: tuple[str, ...]


class Results(_core.ResultsBase, Generic[R]):
    """The results of a map, as they come: an iterator.

    The first items are started in the call of `map`, and more as results are taken: endless input
    works in constant memory. Take the results once: by iterating, also with `async for`; by `list`;
    or by `run`, which drops them.

    >>> import manyhands as mh
    >>> results = mh.map(pow, [1, 2, 3], [2, 2, 2])
    >>> next(results)
    1
    >>> list(results)
    [4, 9]
    """

    _name: str
    _total: int | None
    _engine: str
    _workers: int
    _started: float
    _ended: float | None
    # What the first look found that came after the end.
    _last_measures: tuple[float, float, int, int] | None
    _failures: builtins.list[Failure]
    _on_error: str
    _site: tuple[str, int] | None
    _keep: Callable[[Results[Any]], None] | None
    _progress: Any
    # Waits for results on behalf of an event loop.
    _thread: ThreadPoolExecutor | None
    # The pool ends when nobody refers to it any more, and not before its maps.
    _pool: Any
    # What keeps what the items write, with `capture=`.
    _kept_output: KeptOfMap | None = None

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise TypeError("Results are made by map() and starmap()")

    @classmethod
    def _make(
        cls,
        source: _core.SourceHandle,
        *,
        name: str,
        total: int | None,
        engine: str,
        workers: int,
        on_error: str,
        batched: bool,
        site: tuple[str, int] | None,
        keep: Callable[[Results[Any]], None] | None = None,
        watch: Watch,
    ) -> Self:
        """Results of a source. If they are dropped unused, `keep` gets them, or a warning names the
        `site` where they were made."""
        results = cls.__new__(cls, source, on_error, batched)
        results._name = name
        results._total = total
        results._engine = engine
        results._workers = workers
        results._on_error = on_error
        results._started = watch.started
        results._ended = None
        results._last_measures = None
        results._failures = []
        results._site = site
        results._keep = keep
        results._thread = None
        results._progress = watch.progress
        watch.results = ref(results)
        watch.made = True
        return results

    if TYPE_CHECKING:
        # The native part has them, and knows no types.
        def __next__(self) -> R: ...
        def list(self) -> builtins.list[R]: ...
        def run(self) -> Summary: ...

    def with_input(self) -> Iterator[tuple[Any, R]]:
        """Iterates over pairs: the item, and its result.

        With several iterables the item is the tuple of arguments. Call it before the first result
        is taken.

        >>> import manyhands as mh
        >>> dict(mh.map(len, ["a", "bb"], ordered=False).with_input())["bb"]
        2
        """
        self._with_input()
        return self  # type: ignore[return-value]

    @property
    def failures(self) -> builtins.list[Failure]:
        """The items that have failed so far, in the order in which they were taken; at most 10,000.

        There are none with `on_error="raise"`, which raises the first.
        """
        return self._failures

    @property
    def outputs(self) -> dict[int, str]:
        """What items have written to standard output and errors so far, by their places.

        There is nothing without `capture=`, nor of items that have written nothing. Kept are the
        newest 10,000 items that have, and 64 MiB; of each as much as `Future.output` has.

        >>> import manyhands as mh
        >>> results = mh.map(print, ["a", "b"], capture=True)
        >>> results.list(), results.outputs
        ([None, None], {0: 'a\\n', 1: 'b\\n'})
        """
        return {} if self._kept_output is None else self._kept_output.texts()

    @property
    def summary(self) -> Summary:
        """What was done so far."""
        pulled, taken, failed, _, complete, _ = self._counts()
        until = self._ended if self._ended is not None else time.monotonic()
        busy, cpu, sent, received = self._last_measures or self._measures()
        if self._ended is not None:
            # A worker tells of its last short items after their results, perhaps after this.
            self._last_measures = busy, cpu, sent, received
        hint = self._hint_of(busy, cpu)
        return Summary(
            total=pulled if complete else self._total,
            done=taken,
            failed=failed,
            wall=until - self._started,
            busy=busy,
            cpu=cpu,
            sent=sent,
            received=received,
            workers=self._workers,
            engine=self._engine,
            hints=() if hint is None else (str(hint),),
        )

    def _hint(self) -> Hint | None:
        busy, cpu, _, _ = self._measures()
        return self._hint_of(busy, cpu)

    def _hint_of(self, busy: float, cpu: float) -> Hint | None:
        wall = (self._ended or time.monotonic()) - self._started
        # While the interpreter goes away nothing can be imported, and nobody reads hints.
        if wall < _LONG or sys.is_finalizing():
            return None
        from manyhands._hints import hint_of

        return hint_of(
            done=self._counts()[1],
            wall=wall,
            busy=busy,
            cpu=cpu,
            workers=self._workers,
            engine=self._engine,
        )

    def _is_complete(self) -> bool:
        """Whether its input was taken to its end, or nobody wants that."""
        _, _, _, _, complete, over = self._counts()
        return complete or over or self._used

    def close(self) -> None:
        """Takes no more input and cancels what has not started; what was not taken is dropped."""
        self._cancel()
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        pulled, taken, failed, _, complete, over = self._counts()
        total = pulled if complete else self._total
        of = f"{taken:,}" if total is None else f"{taken:,} of {total:,}"
        state = f"{of} taken"
        if failed:
            state += f", {failed:,} failed"
        if over:
            hint = "nothing more comes"
        elif self._used:
            hint = "go on iterating, or call .run() to finish"
        else:
            hint = "iterate it, or call .list() or .run()"
        return f"<manyhands.Results of {self._name}: {state}; {hint}>"

    def __await__(self) -> Generator[Any, None, builtins.list[R]]:
        return self._gather().__await__()

    async def _gather(self) -> builtins.list[R]:
        found: builtins.list[R] = []
        while await self._wait_in_thread():
            found += self._fetched(_AT_ONCE)
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        # Results are fetched by the hundred, and kept here: a loop that is left loses none.
        while not (found := self._fetched(1)):
            if not await self._wait_in_thread():
                raise StopAsyncIteration
        result: R = found[0]
        return result

    async def _wait_in_thread(self) -> bool:
        """Fetches results in a thread of its own; false at the end."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        thread = self._thread
        if thread is None:
            thread = self._thread = ThreadPoolExecutor(1, "manyhands-results")
        loop = asyncio.get_running_loop()
        is_there = False
        try:
            is_there = await loop.run_in_executor(thread, self._fetch, _AT_ONCE)
        except BaseException:
            # Cancelled, or an item failed: the thread waits for nothing more.
            self._cancel()
            raise
        finally:
            if not is_there:
                thread.shutdown(wait=False)
                if self._thread is thread:
                    self._thread = None
        return is_there

    def _finish(self) -> None:
        """The map has ended: nothing is shown of it any more. Called by the native part, too."""
        if self._ended is None:
            self._ended = time.monotonic()
            hint = self._hint()
            if hint is not None:
                logging.getLogger("manyhands.hints").info("%s: %s", self._name, hint)
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.finish()

    def _warn_if_lost(self) -> None:
        """Says what did not run, if nobody ever asked for a result."""
        site = self._site
        if site is None or self._used:
            return
        pulled, _, _, _, complete, over = self._counts()
        total = pulled if complete else self._total
        if over or total == 0:
            return
        self._site = None
        if total is None:
            what = f"what its input has after {pulled:,} items did not run"
        elif total > pulled:
            what = f"at least {total - pulled:,} of its {total:,} items did not run"
        else:
            what = f"the results of its {pulled:,} items are lost, and some may not have run"
        warnings.warn_explicit(
            f"a map of {self._name} was never iterated: {what}. Iterate it, or call .run()",
            RuntimeWarning,
            *site,
        )

    def __del__(self) -> None:
        try:
            lost, keep, progress = self._site, self._keep, self._progress
        except AttributeError:
            return  # it was never made
        if keep is not None and not self._used and not self._counts()[5]:
            # From now on it lives until its pool ends.
            keep(self)
        try:
            if lost is not None:
                self._warn_if_lost()
        finally:
            if progress is not None:
                self._finish()


class Watch:
    """How the display of a map's progress sees it, which must not keep it alive."""

    __slots__ = ("made", "progress", "results", "started", "workers")

    def __init__(self, label: str, total: int | None, workers: int, target: Any) -> None:
        from manyhands import _progress

        self.results: Callable[[], Results[Any] | None] = lambda: None
        self.made = False
        self.started = time.monotonic()
        self.workers = workers
        self.progress: _progress.Progress | None = None
        # Whoever asks for what is not there is told before any work is sent.
        self.progress = _progress.start(self.read, total=total, label=label, target=target)

    def stop(self) -> None:
        """There will be no map."""
        if self.progress is not None:
            self.progress.finish()

    def read(self) -> tuple[int, int, int, int, int] | None:
        results = self.results()
        if results is None:
            return None if self.made else (0, 0, 0, self.workers, 0)
        pulled, taken, failed, ended, complete, _ = results._counts()
        done = max(taken, min(ended, pulled))
        if complete and self.progress is not None:
            self.progress.total = pulled
        return done, failed, taken, self.workers, min(self.workers, pulled - done)


def caller() -> tuple[str, int]:
    """File and line of the first frame outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and name.partition(".")[0] == "manyhands"


def _cause(error: BaseException, ran_here: bool) -> str:
    from concurrent.futures import CancelledError

    if isinstance(error, NotPicklable):
        return "not_picklable"
    if ran_here or isinstance(error.__cause__, RemoteTraceback):
        return "exception"  # whatever it is, the function raised it: it may use pools of its own
    if isinstance(error, WorkerDied):
        return error.cause
    if isinstance(error, TaskTimeout):
        return "timeout"
    if isinstance(error, TaskMemoryExceeded):
        return "memory"
    if isinstance(error, CancelledError):
        return "cancelled"
    return "exception"


def failure(
    error: BaseException,
    index: int,
    item: Any,
    attempts: int,
    pid: int,
    timed_out: bool,
    results: Results[Any],
) -> Failure:
    """The failure of an item, which `results` keeps."""
    ran_here = attempts > 0 and results._engine != "process"
    found = Failure(
        exception=error,
        index=index,
        input=item,
        attempts=attempts,
        pid=pid,
        cause="timeout" if timed_out else _cause(error, ran_here),
        output=None if results._kept_output is None else results._kept_output.text(index),
    )
    if len(results._failures) < _MOST_FAILURES:
        results._failures.append(found)
    return found


def raised(error: BaseException, results: Results[Any], index: int) -> BaseException:
    """The exception of an item, as the map raises it: its note says how far the map was."""
    if isinstance(error, StopIteration):
        # Raised as it is, it would end the caller's loop as if all were done.
        stands = RuntimeError(f"{results._name} raised StopIteration")
        stands.__cause__ = error
        for note in getattr(error, "__notes__", ()):
            stands.add_note(note)
        error = stands
    pulled, taken, _, _, complete, _ = results._counts()
    total = pulled if complete else results._total
    done = f"{taken - 1:,}" if total is None else f"{taken - 1:,} of {total:,}"
    more = f'{done} items were done; on_error="return" goes on and gives failures in their place'
    notes = getattr(error, "__notes__", None)
    if notes and notes[-1].startswith("manyhands: "):
        notes[-1] = f"{notes[-1].replace('manyhands: task', 'manyhands: item', 1)}; {more}"
    else:
        error.add_note(f"manyhands: item {index}; {more}")
    return error


def stopped(error: BaseException, results: Results[Any]) -> None:
    """Says with a Ctrl-C how far the map was."""
    pulled, taken, _, _, complete, _ = results._counts()
    total = pulled if complete else results._total
    done = f"{taken:,}" if total is None else f"{taken:,} of {total:,}"
    error.add_note(f"manyhands: {results._name}: stopped after {done} items")


def group(errors: list[BaseException], results: Results[Any]) -> BaseException:
    """All failures of a map as one exception."""
    _, taken, failed, _, _, _ = results._counts()
    message = f"{failed:,} of {taken:,} items of {results._name} failed"
    return BaseExceptionGroup(message, errors)


def summary(results: Results[Any]) -> Summary:
    """For the native `run`."""
    results._finish()
    return results.summary
